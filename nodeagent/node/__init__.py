"""Observes the node as a value, waits for it, and changes it as a plan says."""
