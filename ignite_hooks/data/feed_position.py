"""A place in the data."""

from typing import NamedTuple

__all__ = ["FeedPosition"]


class FeedPosition(NamedTuple):
    """A place in the data.

    Args:
        data_pass: how many passes over the data came before this one.
        batches: how many batches of this pass have been given.
    """

    data_pass: int
    batches: int
