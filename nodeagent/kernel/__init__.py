"""The edges: each module owns one kernel interface and knows nothing of the others."""
