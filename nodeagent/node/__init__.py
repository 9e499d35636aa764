"""Observes the node as a value, waits for devices, and performs plans."""
