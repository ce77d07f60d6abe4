"""The base class of handlers that write values of their own to ``state.metrics``."""

from collections.abc import Sequence
from typing import Any
from typing import ClassVar

from ignite.engine import Engine

from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers

__all__ = ["MetricWriter"]


class MetricWriter(Handler):
    """A handler that writes values to ``engine.state.metrics`` on its own schedule.

    A subclass defines when it writes, so the handler cannot be attached to an event.

    Attributes:
        no_event: the words that follow the name of the class in the error message, if an event is
            given: the reason and the remedy.
    """

    no_event: ClassVar[str]

    def names(self) -> Sequence[str]:
        """Returns the keys that the handler writes in ``state.metrics``."""
        return ()

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that no event is given, and that no other MetricWriter writes the same keys."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: {type(self).__name__} {self.no_event}"
            )
        taken = {
            name for other in attached_handlers(engine, MetricWriter) for name in other.names()
        }
        for name in self.names():
            if name in taken:
                raise ValueError(
                    f"two metrics of one engine must not write to one name, got {name!r} twice: "
                    "remove() the other attachment, or have one of them write to another name"
                )
