"""The edges: each module owns one kernel interface, and none imports what is above."""
