"""A warning that is said once in a process, however many handlers come to say it."""

import warnings

__all__ = ["warn_once"]

_said: set[str] = set()


def warn_once(message: str) -> None:
    """Warns with ``message`` unless that was said before, wherever it came from.

    Python says a warning again for each line that it comes from. The line named is that of the
    caller's caller.
    """
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=3)
