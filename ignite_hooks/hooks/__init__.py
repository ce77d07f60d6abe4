"""Scopes around the parts of the loop."""
