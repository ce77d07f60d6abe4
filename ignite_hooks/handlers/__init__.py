"""Handlers: each acts at moments of a run, on a trainer or on any Ignite engine."""
