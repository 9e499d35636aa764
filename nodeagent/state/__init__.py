"""The state of a node as values, and their JSON: pure."""
