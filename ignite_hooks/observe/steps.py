"""The steps of any engine: committed optimizer steps, or iterations where there are none."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.engine import set_turn
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.events import TrainEvents
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["Steps", "optimizer_step_of"]

Callback = Callable[[Engine], Any]


class Steps:
    """Calls two callbacks of a handler: one after each step, and one after every so many steps.

    On an engine with an ``OptimizerStep``, such as a trainer, a step is a committed optimizer step.
    Its event is STEP_COMPLETED. On any other engine a step is an iteration, and its event is
    ITERATION_COMPLETED. On a trainer the callbacks are called before other handlers of the event.

    Args:
        attachment: the attachment of the handler.
        every: the number of steps from one call of the second callback to the next.

    Attributes:
        optimizer_step: the ``OptimizerStep`` of the engine, or None.
        accelerator: the accelerator of the ``OptimizerStep``, or None.
        next_due: the number of the step after which the second callback is due.
        count: returns the number of completed steps of the engine that it is called with.
    """

    def __init__(self, attachment: Attachment, every: int) -> None:
        engine = attachment.engine
        TrainEvents.register(engine)  # a plain engine may get these events from other handlers
        self._attachment, self._every = attachment, every
        self.optimizer_step = optimizer_step_of(engine)
        step = self.optimizer_step
        self.accelerator = None if step is None else step.accelerator
        counter = "iteration" if step is None else "optimizer_step"
        self.count: Callable[[Engine], int] = attrgetter(f"state.{counter}")
        self.next_due = self._next_after(self.count(engine))

    def call(self, after_each: Callback, report: Callback) -> None:
        """Attaches the two callbacks, which are called with the engine.

        Args:
            after_each: is called after each step.
            report: is called after each multiple of ``every`` steps, when ``after_each`` has
                returned. It is also called at the end of each epoch and at the end of the run,
                except if the run fails.
        """
        count = self.count

        def complete_step(engine: Engine) -> None:
            after_each(engine)
            done = count(engine)
            if done >= self.next_due:
                self.next_due = self._next_after(done)
                report(engine)

        def start(engine: Engine) -> None:
            step = self.optimizer_step
            # If a failure came before STEP_COMPLETED of the last step, the event is still fired.
            is_to_come = step is not None and not step.has_completed_step
            self.next_due = self._next_after(count(engine) - is_to_come)

        on = self._attachment.on
        complete_step.__qualname__ = type(self._attachment.handler).__name__  # for profilers
        set_turn(complete_step, Turn.METRICS)
        has_steps = self.optimizer_step is not None
        # A handler that ``add`` attaches costs less per call than a handler that ``on`` attaches.
        self._attachment.add(
            TrainEvents.STEP_COMPLETED if has_steps else Events.ITERATION_COMPLETED, complete_step
        )
        on(Events.STARTED, self._check_optimizer_step)
        on(Events.STARTED, start)
        # A run that ends within an epoch fires TERMINATE, but no EPOCH_COMPLETED.
        for event in (Events.EPOCH_COMPLETED, Events.TERMINATE, Events.COMPLETED):
            on(event, report, turn=Turn.METRICS)

    def _next_after(self, done: int) -> int:
        """Returns the first multiple of ``every`` above ``done``."""
        return max(0, done) // self._every * self._every + self._every

    def _check_optimizer_step(self, engine: Engine) -> None:
        """Raises an error if an ``OptimizerStep`` was attached after the handler."""
        if optimizer_step_of(engine) is not self.optimizer_step:
            name = type(self._attachment.handler).__name__
            raise ValueError(
                f"an OptimizerStep must be attached before a {name}, and was attached after it, or "
                f"replaced: the {name} would count other steps; remove the {name}, and attach it "
                "again"
            )


def optimizer_step_of(engine: Engine) -> OptimizerStep | None:
    """Returns the ``OptimizerStep`` of an engine, or None."""
    return next(iter(attached_handlers(engine, OptimizerStep)), None)
