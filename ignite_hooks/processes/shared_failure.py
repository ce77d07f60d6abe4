"""Marks errors that all ranks raise because of the same failure.

For example, a save fails on one rank. The ranks exchange the outcome of the save, and each rank
raises an error. Afterwards all ranks are at the same place, and can continue together. The marks
show that these errors are one failure, although their classes may differ.
"""

__all__ = ["mark_shared", "shared_text"]

_ATTRIBUTE = "_ignite_hooks_shared"


def mark_shared(error: BaseException, text: str) -> None:
    """Marks an error as shared: all other ranks raise an error because of the same failure.

    Args:
        error: the error of this rank.
        text: says what has failed, and on which ranks. Must be equal on all ranks.
    """
    setattr(error, _ATTRIBUTE, text)


def shared_text(error: BaseException) -> str:
    """Returns the text with which an error was marked; an empty text for any other error."""
    text: str = getattr(error, _ATTRIBUTE, "")
    return text
