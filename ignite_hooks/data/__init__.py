"""Batches: where they come from, in which order, and the position among them."""
