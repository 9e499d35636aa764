"""The life of the process: the run, the sidecar, the end, and what is reported of them."""
