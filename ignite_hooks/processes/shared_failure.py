"""Failures that all ranks raise together at the same place, because they have exchanged them.

An example is a save that fails on one rank: the ranks exchange its outcome, and each raises an
error. Afterwards they are at the same place, and can continue together.
"""

__all__ = ["mark_shared", "shared_text"]

_ATTRIBUTE = "_ignite_hooks_shared"


def mark_shared(error: BaseException, text: str) -> None:
    """Marks an error as one of those that all ranks raise here, each rank its own.

    Args:
        error: the error of this rank.
        text: what has failed on which ranks; the same text on all ranks.
    """
    setattr(error, _ATTRIBUTE, text)


def shared_text(error: BaseException) -> str:
    """Returns the text of an error that all ranks raise; an empty text for any other error."""
    text: str = getattr(error, _ATTRIBUTE, "")
    return text
