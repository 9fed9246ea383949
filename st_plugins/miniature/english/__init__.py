"""The words, the grammar and the meanings of the miniature world."""
