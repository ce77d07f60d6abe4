"""What metrics of peaks have in common: names of their own, and no event but their own."""

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine

from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached

__all__ = ["PeakMetric"]


class PeakMetric(Handler):
    """A handler that writes peaks, in MiB, to ``engine.state.metrics``."""

    def names(self) -> Sequence[str]:
        """The keys that it writes to."""
        return ()

    def check(self, engine: Engine, event: Any) -> None:
        """It has events of its own and names that no other on this engine has."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: {type(self).__name__} measures from one "
                "event to another; MaxRAM measures between any two moments"
            )
        taken = {name for other in attached(engine, PeakMetric) for name in other.names()}
        for name in self.names():
            if name in taken:
                raise ValueError(
                    f"two metrics of one engine must not write to one name, got {name!r} twice: "
                    "remove() the other attachment, or have one of them write to another name"
                )
