"""The agent's process: start, sidecar, termination, status and metrics, and commands by hand."""
