"""Numbers that a text has and a float has not."""

import math

__all__ = ["finite"]


def finite(text: str) -> float:
    """The float that a number's digits stand for.

    Raises:
        ValueError: it is too large, and would be read as inf.
    """
    number = float(text)
    if math.isinf(number) and "inf" not in text.lower():
        raise ValueError(f"a number must be at most 1.8e308, got {text[:80]}: inf says what it is")
    return number
