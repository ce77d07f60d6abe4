"""Warnings that are given once in a process, however many handlers come to give them."""

import warnings
from functools import cache

__all__ = ["warn_once"]


@cache
def warn_once(message: str) -> None:
    """Warns with ``message``, the first time that it is called with this message.

    Python repeats a warning for each line that it comes from; here the text alone counts. The line
    named is that of the caller's caller.
    """
    warnings.warn(message, stacklevel=3)
