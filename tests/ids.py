"""Names of parameters that are the same in every process, which pytest-xdist needs."""

import re


def stable_id(value):
    """Returns the ``repr`` without addresses, sets in a fixed order."""
    if isinstance(value, set | frozenset) and len(value) > 1:
        return f"{type(value).__name__} of {', '.join(sorted(map(stable_id, value)))}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
