"""The trainer, its loop, and the position, limits and requests of a run."""
