"""The node: observed as a value, waited for, and changed as a plan says."""
