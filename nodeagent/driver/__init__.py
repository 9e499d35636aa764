"""The NIC driver: build it, install it, check that a reload is safe, restart it."""
