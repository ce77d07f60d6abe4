"""Checks of values, and the common parts of their error messages."""

from collections.abc import Callable
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from reprlib import Repr
from typing import Any

__all__ = [
    "check_count",
    "check_function",
    "conversion_hint",
    "did_you_mean",
    "is_count",
    "is_integer",
    "is_number",
    "short_repr",
    "shown_type",
]


def is_number(value: Any) -> bool:
    """Returns whether ``value`` is a number. True and False do not count as numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Returns whether ``value`` is an integer. True and False do not count as integers."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Returns whether ``value`` is an integer of at least 1."""
    return is_integer(value) and value >= 1


def check_count(name: str, value: Any, remedy: str) -> None:
    """Raises a ValueError if ``value`` is not an integer of at least 1.

    Args:
        name: the name of the argument, for the message.
        value: the value that was given.
        remedy: what to do instead, for the message.
    """
    if not is_count(value):
        shown = f"{short_repr(value)}{conversion_hint(value, is_count)}"
        raise ValueError(f"`{name}` must be an integer >= 1, got {shown}: {remedy}")


def check_function(name: str, value: Any, example: str) -> None:
    """Raises a TypeError if ``value`` is neither None nor a function.

    Args:
        name: the name of the argument, for the message.
        value: the value that was given.
        example: what to write instead, for the message.
    """
    if value is not None and not callable(value):
        raise TypeError(
            f"`{name}` must be a function, got {shown_type(value)}: write {example} for example"
        )


def conversion_hint(value: Any, holds: Callable[[Any], bool]) -> str:
    """Returns the words that say how to convert ``value``; "" if no conversion would help.

    The words follow the value in a message: "must be an integer >= 1, got 3.0, a float (write 3)".

    Args:
        value: a value that breaks a rule.
        holds: returns whether a value obeys the rule.
    """
    if isinstance(value, float) and value.is_integer() and holds(int(value)):
        return f", a float (write {int(value)})"
    if isinstance(value, str):
        for convert in (int, float):
            with suppress(ValueError):
                if holds(convert(value)):
                    return f", a string (write {convert(value)}, without quotes)"
    return ""


_SHORT_REPR = Repr()
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = _SHORT_REPR.maxlong = 80

_MAX_PRINTED_BITS = 2**13  # Python refuses to print more than 4,300 digits


def short_repr(value: Any) -> str:
    """Returns the ``repr`` of ``value`` for a message, shortened if it is long."""
    if isinstance(value, int) and value.bit_length() > _MAX_PRINTED_BITS:
        return f"an integer of {value.bit_length()} bits"
    return _SHORT_REPR.repr(value)


def shown_type(value: Any) -> str:
    """Returns the words that follow "got" in a message about the type of ``value``.

    For an object these words are the name of its class, and for the class ``Adam`` itself they are
    "the class Adam".
    """
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns a suggestion for a name that is not in ``names``: "did you mean `lr`?".

    If no name is similar, the result lists all names: "there are `lr`, `betas`".
    """
    names = list(names)
    close = get_close_matches(name, names, n=3)
    if close:
        return f"did you mean {' or '.join(f'`{each}`' for each in close)}?"
    return f"there are {', '.join(f'`{each}`' for each in names)}" if names else "there are none"
