"""What differs between two states of a node, and what has to be done about it: pure."""
