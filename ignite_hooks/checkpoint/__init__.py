"""Checkpoints that are there when they are needed, and go on as if nothing had been."""

from ignite_hooks.checkpoint.testing import assert_resumable

__all__ = ["assert_resumable"]
