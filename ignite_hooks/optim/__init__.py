"""The optimizer step and what belongs to it."""
