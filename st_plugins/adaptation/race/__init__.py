"""What `adapt` does inside: the entries of the race, their training, and what they are judged by."""
