"""The base class of the handlers that clear the device's cache or collect Python's garbage."""

from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Scheduled

__all__ = ["Upkeep"]


class Upkeep(Scheduled):
    """A handler with the schedules ``every_steps`` and ``every_epochs``.

    Without either, the handler is called at the end of each epoch. With ``every_steps`` a trainer
    calls the handler at STEP_COMPLETED, when the gradients have been zeroed. If both schedules are
    due at the end of an epoch, the handler is called once.
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

        # A new run counts its iterations from 0 again, so the same number may come twice.
        attachment.on(Events.STARTED, forget_last)
        if self.every_steps is None and self.every_epochs is None:
            attachment.on(Events.EPOCH_COMPLETED, call_once)
        else:
            self.on_schedule(attachment, call_once)
