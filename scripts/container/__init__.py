"""Builds the image of the Containerfile and tries it: scripts/image --help."""
