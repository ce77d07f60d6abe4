"""The schedule of the handlers that clear the cache or collect garbage."""

from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Scheduled

__all__ = ["Upkeep"]


class Upkeep(Scheduled):
    """A handler that is called on a schedule by step or by epoch, by default after each epoch.

    On a schedule by step the handler is called at STEP_COMPLETED, when the gradients have been
    zeroed. If both schedules are due at the end of an epoch, only the schedule by step calls the
    handler.
    """

    def attach_to(self, attachment: Attachment) -> None:
        """Attaches the handler to its schedules."""
        last_iteration: list[Any] = [None]

        def forget_last(engine: Engine) -> None:
            last_iteration[0] = None

        def call_once(engine: Engine) -> None:
            if last_iteration[0] != engine.state.iteration:
                last_iteration[0] = engine.state.iteration
                self(engine)

        # A new run counts its iterations from 0 again.
        attachment.on(Events.STARTED, forget_last)
        if self.every_steps is None and self.every_epochs is None:
            attachment.on(Events.EPOCH_COMPLETED, call_once)
        else:
            self.on_schedule(attachment, call_once)
