"""Handlers that clear the device's cache, collect Python's garbage, and measure peak memory."""
