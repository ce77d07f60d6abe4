"""The windows of an engine that is no trainer, where nothing says for sure what data is left."""

from typing import TYPE_CHECKING
from typing import Any

from accelerate.state import GradientState
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.handler import Attachment
from ignite_hooks.data.feed import DataFeed

if TYPE_CHECKING:
    from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["EngineData", "attach_to_foreign"]


class EngineData:
    """How much data a hand-made engine has left, by all that there is to tell.

    The number of batches in the epoch is counted here: after ``terminate_epoch()`` the remainder of
    ``iteration`` by ``epoch_length`` is no longer the place in the epoch.
    """

    def __init__(self) -> None:
        self._epoch_began_after = 0
        self._may_be_resumed = True
        self._was_terminated = False

    def run_starts(self, engine: Engine) -> None:
        """At STARTED: a state may have been loaded."""
        self._may_be_resumed = not self._was_terminated
        self._was_terminated = False

    def run_terminates(self, engine: Engine) -> None:
        """At TERMINATE: the next run begins with a whole epoch, Ignite's way."""
        self._was_terminated = True

    def epoch_starts(self, engine: Engine) -> None:
        """At EPOCH_STARTED: the first one may be resumed half-way."""
        done = engine.state.iteration
        within = done % (engine.state.epoch_length or 1) if self._may_be_resumed else 0
        self._epoch_began_after = done - within
        self._may_be_resumed = False

    def is_whole(self, engine: Engine) -> bool:
        """Whether the epoch that ends now had all its batches, as Ignite counts them."""
        return engine.state.iteration - self._epoch_began_after == engine.state.epoch_length

    def batches_left(self, engine: Engine) -> int | None:
        """How many batches come from the present one on before data, epoch or run ends."""
        state = engine.state
        max_iters = getattr(state, "max_iters", None)  # Ignite 0.5.4 has none
        ends = [
            state.dataloader.batches_left if isinstance(state.dataloader, DataFeed) else None,
            1 if _accelerate_sees_the_end(state.dataloader) else None,
            state.epoch_length
            and self._epoch_began_after + state.epoch_length - state.iteration + 1,
            max_iters and max_iters - state.iteration + 1,
        ]
        return min((end for end in ends if end is not None), default=None)


def attach_to_foreign(step: "OptimizerStep", attachment: Attachment) -> None:
    """Has ``step`` take, close and drop its windows at the events of a hand-made engine."""
    data = EngineData()

    def start(engine: Engine) -> None:
        data.run_starts(engine)
        step.drop_window()
        if engine.state.iteration == 0:
            step.start_from(0, engine)

    def take(engine: Any) -> None:
        engine.state.step_committed = False
        step.take_batch(engine, data.batches_left)

    def close(engine: Engine) -> None:
        if step.window.is_closing:
            step.close_window(engine)

    def end_epoch(engine: Engine) -> None:
        # It is open after a failure that a handler swallowed, or if the end was not foreseen.
        if step.is_stepping or step.window.is_closing or not data.is_whole(engine):
            step.drop_window()
        else:
            _close_late(step, engine)

    attachment.on(Events.STARTED, start)
    attachment.on(Events.EPOCH_STARTED, data.epoch_starts)
    attachment.on(Events.ITERATION_STARTED, take)
    attachment.on(Events.ITERATION_COMPLETED, close)
    attachment.on(Events.DATALOADER_STOP_ITERATION, lambda engine: _close_late(step, engine))
    attachment.on(Events.TERMINATE, data.run_terminates)
    dropping = Events.TERMINATE | Events.TERMINATE_SINGLE_EPOCH
    attachment.on(dropping, lambda engine: step.drop_window())
    attachment.on(Events.EPOCH_COMPLETED, end_epoch)


def _close_late(step: "OptimizerStep", engine: Engine) -> None:
    """The data ended and nothing had told that it would."""
    if not step.window.count:
        return
    if step.accelerator.use_distributed:
        raise RuntimeError(
            "`data` must tell its last batch as the last, for the processes to reduce their "
            f"gradients then; {type(engine.state.dataloader).__name__} does not: run the "
            "engine on DataFeed(data, accelerator)"
        )
    step.close_window(engine)


def _accelerate_sees_the_end(loader: object) -> bool:
    state = GradientState()
    return state.active_dataloader is loader and state.end_of_dataloader
