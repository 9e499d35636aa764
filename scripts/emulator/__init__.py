"""The emulated node: a QEMU guest with real SR-IOV functions, built and run by scripts/lab.

Standard library only: a fresh Debian machine runs it with its own python3, before anything of the
project is installed.
"""
