"""The optimizer step, once a window: at the right batch, with the right gradient, or not at all."""

import warnings
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from torch.optim import Optimizer

from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached
from ignite_hooks.core.rules import whole_number
from ignite_hooks.core.scopes import NOTHING
from ignite_hooks.core.timetable import Timetable
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.event_channels import channels_of
from ignite_hooks.optim.lr_scheduler import scheduler_for
from ignite_hooks.optim.prepared_optimizer import PreparedOptimizer
from ignite_hooks.optim.window import RemainingData
from ignite_hooks.optim.window import Window

__all__ = ["OptimizerStep"]


class OptimizerStep(Handler):
    """Does all that comes between the last backward of a window and the first forward of the next.

    Gradient accumulation goes wrong by hand in the corners: the last, shorter window of a pass, a
    step that the loss scaler skips, a scheduler that moves once per process. Here a window of k
    batches steps with the gradient of the mean of its k losses, whatever k; a skipped step moves
    neither counter nor scheduler; the scheduler moves once per committed step.

    A trainer makes one. On a hand-made engine the process function does the forward pass and
    ``accelerator.backward(loss)``, with or without ``accelerator.accumulate``. Whether the window
    will close is decided at ITERATION_STARTED (``accelerator.sync_gradients``); the step is the
    first handler of ITERATION_COMPLETED, so attach it before others of that event. It counts the
    committed steps in ``state.optimizer_step``; ``state.step_committed`` says whether this
    iteration made one. Gradients are unscaled when the OPTIMIZER_STEP_STARTED handlers see them:
    they must not unscale again. (FSDP and DeepSpeed unscale where Accelerate has them do it.)

    Args:
        accelerator: its ``gradient_accumulation_steps`` is the size of the windows, in batches.
        optimizer: a torch optimizer, prepared or not.
        lr_scheduler: a torch scheduler on that optimizer, or a callable that makes one from the
            prepared optimizer. One that was prepared with Accelerate keeps Accelerate's own rule.
        scheduler_at: "step", or "epoch" to move the scheduler at the end of each epoch instead.

    Raises:
        TypeError: an argument is of a kind that can not be used.
        ValueError: the scheduler can not be used; the engine has an OptimizerStep already.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Optimizer,
        lr_scheduler: Any = None,
        scheduler_at: str = "step",
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}: "
                "pass torch.optim.SGD(model.parameters(), lr=0.1), say"
            )
        if scheduler_at not in ("step", "epoch"):
            raise ValueError(
                f'`scheduler_at` must be "step" or "epoch", got {scheduler_at!r}: '
                "it says when the learning rate scheduler moves"
            )
        whole_number(
            "accelerator.gradient_accumulation_steps",
            accelerator.gradient_accumulation_steps,
            "1 is no accumulation",
        )
        self.accelerator = accelerator
        # Asked in each iteration: Accelerate's properties take 10 µs of it, `use_distributed` most.
        self._gradient_state = accelerator.gradient_state
        self.is_distributed = accelerator.use_distributed
        self.prepared = PreparedOptimizer(accelerator, optimizer)
        self.lr_scheduler = scheduler_for(self.optimizer, lr_scheduler)
        self.scheduler_at = scheduler_at
        self.steps = 0
        self.window = Window()
        self._divisor = 1
        self._timetable = Timetable()
        self.is_stepping = False
        self.attachment: Attachment | None = None  # the last one

    @property
    def optimizer(self) -> Any:
        """The optimizer as Accelerate prepared it."""
        return self.prepared.optimizer

    @property
    def timetable(self) -> Timetable:
        """What is due after how many committed steps; it acts when the gradients are cleared."""
        return self._timetable

    def start_from(self, step: int) -> None:
        """Sets the number of steps committed so far."""
        self.steps = step
        self._timetable.start_from(step)

    def backward(self, loss: torch.Tensor) -> None:
        """Back-propagates ``loss`` with its share in the mean over the window.

        Where the length of the data is known, so is the size of the window when it opens, and the
        share is exact. ``accelerator.backward`` divides by the full size always; the gradient of
        a short window is then scaled up at its end, which rounds differently.
        """
        self._divisor = self.window.size
        self.prepared.backward(loss, self._divisor)

    def synchronizing(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Around forward and backward: several processes exchange gradients for the last batch."""
        if self.window.is_closing or self._gradient_state.plugin_kwargs.get(
            "sync_each_batch", False
        ):
            return NOTHING
        no_sync: AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return no_sync

    def take_batch(self, batches_left: Callable[[], int | None]) -> None:
        """Adds a batch to the window, and decides whether gradients are exchanged after it.

        Args:
            batches_left: returns how many batches come from this one on, None where that is not
                known; called only where windows have several batches.
        """
        gradient_state, window = self._gradient_state, self.window
        full_size = self._divisor = gradient_state.num_steps
        window.take(full_size, batches_left() if full_size > 1 else None)
        gradient_state.sync_gradients = window.is_closing
        # What `accelerator.accumulate`, if the process function uses it, makes the same of.
        self.accelerator.step = full_size - 1 if window.is_closing else window.count - 1

    def close_window(self, engine: Engine) -> None:
        """Steps with the gradient of the mean over the window, and clears it."""
        state: Any = engine.state
        self.is_stepping = True
        self._gradient_state.sync_gradients = True
        if self.window.count != self._divisor:
            self.prepared.scale(self._divisor / self.window.count)
        self.prepared.unscale()
        with channels_of(engine).on_optimizer_step:
            engine.fire_event(TrainEvents.OPTIMIZER_STEP_STARTED)
            committed = self.prepared.step()
            self.window.close()
            if committed:
                self.steps += 1
                state.optimizer_step = self.steps
                state.step_committed = True
                if self.lr_scheduler is not None and self.scheduler_at == "step":
                    self.lr_scheduler.step()
                engine.fire_event(TrainEvents.OPTIMIZER_STEP_COMPLETED)
            self.prepared.zero_grad()
        self.is_stepping = False
        if committed:
            engine.fire_event(TrainEvents.GRADIENTS_CLEARED)
            if self.steps >= self._timetable.next_due:
                self._timetable.act(self.steps)

    def drop_window(self) -> None:
        """Forgets the batches of the open window and zeroes their gradients."""
        self.window.close()
        self.is_stepping = False
        self.accelerator.step = 0
        self.prepared.zero_grad()

    def check(self, engine: Engine, event: Any) -> None:
        """One OptimizerStep for one engine, at the moments of its own."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: OptimizerStep acts at the end of each "
                "window; the accelerator's gradient_accumulation_steps makes windows longer"
            )
        if attached(engine, OptimizerStep):
            raise ValueError(
                "`engine` must have one OptimizerStep, and it has one already (a trainer makes its "
                "own): remove() the other attachment first"
            )
        if self.attachment is not None and self.attachment.is_attached:
            raise ValueError(
                "an OptimizerStep must be attached to one engine, whose window it keeps, and this "
                "one is attached already: make another"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Opens windows at ITERATION_STARTED and closes them at ITERATION_COMPLETED."""
        engine = attachment.engine
        if has_handlers(engine, Events.ITERATION_COMPLETED):
            warnings.warn(
                "OptimizerStep was attached after other handlers of ITERATION_COMPLETED, which "
                "will see the parameters before the step: attach it first",
                stacklevel=3,
            )
        TrainEvents.register(engine)
        channels_of(engine)  # attaches the channels of a plain engine, before a run
        state: Any = engine.state
        state.step_committed = False
        self.start_from(state.optimizer_step)
        attachment.during_run(self._in_run)
        if is_trainer(engine):
            self._attach_to_trainer(attachment)
        else:
            self._attach_to_plain_engine(attachment)
        if self.lr_scheduler is not None and self.scheduler_at == "epoch":
            attachment.on(Events.EPOCH_COMPLETED, lambda engine: self.lr_scheduler.step())
        self.attachment = attachment

    def _attach_to_trainer(self, attachment: Attachment) -> None:
        """Opens and closes windows; the trainer knows what data is left, and drops them itself."""

        # By `add`, with two calls fewer in an iteration than by `on`: these are called in each.
        def take(trainer: TrainingEngine) -> None:
            if attachment.is_attached:
                self.take_batch(lambda: trainer.batches_left)

        def close(engine: Engine) -> None:
            if self.window.is_closing and attachment.is_attached:
                self.close_window(engine)

        attachment.add(Events.ITERATION_STARTED, take)
        attachment.add(Events.ITERATION_COMPLETED, close)

    def _attach_to_plain_engine(self, attachment: Attachment) -> None:
        """Opens, closes and drops windows at events: nothing tells for sure what data is left."""
        data = RemainingData()

        def start(engine: Engine) -> None:
            state: Any = engine.state
            data.run_starts(engine)
            self.drop_window()
            if state.iteration == 0:
                self.start_from(0)
                state.optimizer_step = 0

        def take(engine: Engine) -> None:
            state: Any = engine.state
            state.step_committed = False
            self.take_batch(lambda: data.batches_left(engine))

        def close(engine: Engine) -> None:
            if self.window.is_closing:
                self.close_window(engine)

        def end_epoch(engine: Engine) -> None:
            # It is open after a failure that a handler swallowed, or if the end was not foreseen.
            if self.is_stepping or self.window.is_closing or not data.is_whole(engine):
                self.drop_window()
            else:
                self._close_late(engine)

        attachment.on(Events.STARTED, start)
        attachment.on(Events.EPOCH_STARTED, data.epoch_starts)
        attachment.on(Events.ITERATION_STARTED, take)
        attachment.on(Events.ITERATION_COMPLETED, close)
        attachment.on(Events.DATALOADER_STOP_ITERATION, self._close_late)
        attachment.on(Events.TERMINATE, data.run_terminates)
        dropping = Events.TERMINATE | Events.TERMINATE_SINGLE_EPOCH
        attachment.on(dropping, lambda engine: self.drop_window())
        attachment.on(Events.EPOCH_COMPLETED, end_epoch)

    def _close_late(self, engine: Engine) -> None:
        """Steps with an open window when the data ended and nothing had told that it would."""
        if not self.window.count:
            return
        if self.accelerator.use_distributed:
            raise RuntimeError(
                "`data` must tell its last batch as the last, for the processes to reduce their "
                f"gradients then; {type(engine.state.dataloader).__name__} does not: run the "
                "engine on DataFeed(data, accelerator)"
            )
        self.close_window(engine)

    @contextmanager
    def _in_run(self, engine: Engine) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if not is_interrupted(engine):  # it still is if run() refused its arguments
                self.drop_window()
            raise
