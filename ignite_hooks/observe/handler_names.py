"""Names for the handlers of a run, of which several may be of one class."""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Iterator

__all__ = ["numbered"]


def numbered(names: Iterable[str]) -> Iterator[str]:
    """Yields the names, with a number for those that came before: "MeanLoss", "MeanLoss_2"."""
    counts: Counter[str] = Counter()
    for name in names:
        counts[name] += 1
        yield name if counts[name] == 1 else f"{name}_{counts[name]}"
