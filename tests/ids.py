"""Test ids that are the same in every process, as pytest-xdist needs."""

import re


def stable_id(value):
    """Returns the ``repr`` of a value without memory addresses, and with sets in a fixed order."""
    if isinstance(value, set | frozenset) and len(value) > 1:
        return f"{type(value).__name__} of {', '.join(sorted(map(stable_id, value)))}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
