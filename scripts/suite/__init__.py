"""What scripts/test runs: the checks, and how several of them run at the same time."""
