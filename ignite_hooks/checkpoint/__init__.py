"""Checkpoints: what is there is whole, and what is not whole is not there."""
