"""Warnings that are given once per process, however many handlers give them."""

import warnings
from functools import cache

__all__ = ["warn_once"]


@cache
def warn_once(message: str) -> None:
    """Warns with ``message``, once per message.

    Python's own filter shows a warning once for each line of code that gives it. This function
    shows a warning once for each text. The warning names the line of the caller's caller.
    """
    # If a filter turns the warning into an error, nothing is cached. So the next call raises the
    # error again.
    warnings.warn(message, stacklevel=3)
