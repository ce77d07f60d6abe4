"""Memory: the device's cache and Python's garbage."""
