"""How a model becomes the graph of a file, and its weights bytes."""
