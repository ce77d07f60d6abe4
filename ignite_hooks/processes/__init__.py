"""Exchanges between the ranks of a run, comparisons of ranks, and reports of their failures."""
