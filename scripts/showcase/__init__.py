"""What shows and measures nodeagent in the emulated node: scripts/demo and scripts/bench."""
