"""The windows of a trainer, which knows for sure what data is left."""

from operator import attrgetter
from typing import TYPE_CHECKING
from typing import Any

from ignite.engine import Events

from ignite_hooks.core.handler import Attachment

if TYPE_CHECKING:
    from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["attach_to_training"]

_batches_left = attrgetter("batches_left")


def attach_to_training(step: "OptimizerStep", attachment: Attachment) -> None:
    """Has ``step`` take and close its windows, with two calls fewer in an iteration than by ``on``.

    The trainer itself drops them.
    """
    is_removed = False

    def take(engine: Any) -> None:
        if not is_removed:
            step.take_batch(engine, _batches_left)

    def close(engine: Any) -> None:
        if step.window.is_closing and not is_removed:
            step.close_window(engine)

    def stop() -> None:
        nonlocal is_removed
        is_removed = True

    attachment.add(Events.ITERATION_STARTED, take)
    attachment.add(Events.ITERATION_COMPLETED, close)
    attachment.on_removal(stop)
