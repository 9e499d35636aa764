"""The NIC driver's life: built, compared, blacklisted, restarted."""
