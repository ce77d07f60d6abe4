"""Data of an engine: loaders, the order of their batches, and the position in them."""
