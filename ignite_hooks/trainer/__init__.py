"""The trainer and its loop."""
