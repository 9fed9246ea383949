"""What reads a text, takes its embedding apart and puts the parts together again."""
