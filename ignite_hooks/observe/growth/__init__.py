"""Finds what grows over a run: the handler ``GrowthWatch``, and the parts that it is made of."""
