"""How a field's type says its rule when a value breaks it."""

from collections.abc import Callable
from typing import Any

from pydantic import BeforeValidator
from pydantic import ValidationInfo

__all__ = ["is_count", "is_integer", "is_number", "must_be"]


def must_be(
    rule: str, holds: Callable[[Any], bool], remedy: str, may_be_none: bool = True
) -> BeforeValidator:
    """Refuses a value with a message that has the field, the rule, the value and the remedy.

    Args:
        rule: how it goes on after "must be".
        holds: whether a value keeps the rule.
        remedy: what to do instead.
        may_be_none: whether None is let through, for fields whose type admits it.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if (value is None and may_be_none) or holds(value):
            return value
        raise ValueError(f"`{info.field_name}` must be {rule}, got {value!r}; {remedy}")

    return BeforeValidator(check)


def is_number(value: Any) -> bool:
    """Whether it is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether it is an integer; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Whether it is an integer of at least 1."""
    return is_integer(value) and value >= 1
