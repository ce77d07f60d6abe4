"""The base class of handlers that write peaks of memory as metrics."""

from collections.abc import Sequence
from typing import Any

from ignite.engine import Engine

from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers

__all__ = ["PeakMetric"]


class PeakMetric(Handler):
    """A handler that writes peaks of memory, in MiB, to ``engine.state.metrics``.

    A subclass defines the two events between which it measures. So call ``attach(engine)`` without
    an event.
    """

    def names(self) -> Sequence[str]:
        """Returns the keys that the handler writes in ``state.metrics``."""
        return ()

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that no event is given, and that no other PeakMetric writes the same keys."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: {type(self).__name__} measures between "
                "fixed events; to measure the RAM of another part of the run, call start() and "
                "stop() of a MaxRAM"
            )
        taken = {name for other in attached_handlers(engine, PeakMetric) for name in other.names()}
        for name in self.names():
            if name in taken:
                raise ValueError(
                    f"two metrics of one engine must not write to one name, got {name!r} twice: "
                    "remove() the other attachment, or have one of them write to another name"
                )
