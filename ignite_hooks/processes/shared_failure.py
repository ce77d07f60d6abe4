"""Failures that all ranks raise at one place, because they have told each other of them.

A save that fails on one rank is one: the ranks exchange what became of it, and each raises. So they
are at the same place afterwards, and may go on together.
"""

__all__ = ["note_shared", "shared_text"]

_NAME = "_ignite_hooks_shared"


def note_shared(error: BaseException, text: str) -> None:
    """Notes that all ranks raise an error here, each its own.

    Args:
        error: that of this rank.
        text: what has failed on which ranks; the same on all of them.
    """
    setattr(error, _NAME, text)


def shared_text(error: BaseException) -> str:
    """Returns the text of an error that all ranks raise; an empty one of any other."""
    text: str = getattr(error, _NAME, "")
    return text
