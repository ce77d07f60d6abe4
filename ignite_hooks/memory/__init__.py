"""Memory: the device's cache, Python's garbage, and peaks."""
