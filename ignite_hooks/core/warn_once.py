"""Warnings that are given once per process, however many handlers give them."""

import warnings
from functools import cache

__all__ = ["warn_once"]


@cache
def warn_once(message: str) -> None:
    """Warns with ``message``, once per message.

    Python's own filter shows a warning once for each line of code that gives the warning. The
    warning names the line that has called the caller of this function.
    """
    # If a filter turns the warning into an error, `cache` stores nothing. So the next call raises
    # the error again.
    warnings.warn(message, stacklevel=3)
