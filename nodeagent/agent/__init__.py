"""The agent's process: its start, sidecar and termination, what it reports, commands by hand."""
