"""Handlers for the cache of the device, for Python's garbage and for peaks of memory."""
