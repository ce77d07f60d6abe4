"""Warnings that are given once per process, however many handlers give them."""

import warnings
from functools import cache

__all__ = ["warn_once"]


@cache
def warn_once(message: str) -> None:
    """Warns with ``message``, once per message.

    Python's own filter repeats a warning for each line of code that gives it. Here the text alone
    counts. The warning names the line of the caller's caller.
    """
    # An error that a filter makes of the warning is not cached, and is raised each time.
    warnings.warn(message, stacklevel=3)
