"""What the handlers that tidy up have in common: when they do it."""

from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Scheduled

__all__ = ["Upkeep"]


class Upkeep(Scheduled):
    """Acts on a schedule of steps, of epochs, or both; without one at the end of each epoch.

    On a schedule of steps it acts at STEP_COMPLETED, when the gradients are zeroed. If both are due
    at the end of an epoch it acts once, on the step's schedule.
    """

    def attach_to(self, attachment: Attachment) -> None:
        """Acts on the schedules."""
        last_at: list[Any] = [None]

        def begin(engine: Engine) -> None:
            last_at[0] = None

        def act_once(engine: Engine) -> None:
            if last_at[0] != engine.state.iteration:
                last_at[0] = engine.state.iteration
                self(engine)

        attachment.on(Events.STARTED, begin)
        if self.every_steps is None and self.every_epochs is None:
            attachment.on(Events.EPOCH_COMPLETED, act_once)
        else:
            self.on_schedule(attachment, act_once)
