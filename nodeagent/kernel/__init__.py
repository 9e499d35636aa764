"""The interfaces of the kernel, one module each. They import nothing from higher floors."""
