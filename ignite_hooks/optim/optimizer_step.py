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

from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import fire_within
from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import set_turn
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached
from ignite_hooks.core.held_signals import HeldSignals
from ignite_hooks.core.rules import whole_number
from ignite_hooks.core.scopes import NOTHING
from ignite_hooks.core.timetable import Timetable
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.event_channels import channels_of
from ignite_hooks.optim.accumulation import Accumulation
from ignite_hooks.optim.averaged_gradients import AveragedGradients
from ignite_hooks.optim.lr_scheduler import SchedulerAt
from ignite_hooks.optim.lr_scheduler import SchedulerDriver
from ignite_hooks.optim.prepared_optimizer import PreparedOptimizer
from ignite_hooks.optim.prepared_optimizer import check_optimizer
from ignite_hooks.optim.window import RemainingData
from ignite_hooks.optim.window import Window

__all__ = ["OptimizerStep"]


_STEPS_ITSELF = "steps_itself"


class OptimizerStep(Handler):
    """Does all that comes between the last backward of a window and the first forward of the next.

    Gradient accumulation goes wrong by hand in the corners: the last, shorter window of a pass, a
    step that the loss scaler skips, a scheduler that moves once per process. Here a window of k
    batches steps with the gradient of the mean of its k losses, whatever k; a skipped step moves
    neither counter nor scheduler; the scheduler moves once per committed step.

    A trainer makes one, and steps before ITERATION_COMPLETED; its gradients are zeroed when all
    handlers of that event have returned, and then STEP_COMPLETED fires. On a hand-made engine the
    process function does the forward pass and ``accelerator.backward(loss)``, with or without
    ``accelerator.accumulate``, and the step is the first handler of ITERATION_COMPLETED: attach it
    before others of that event. There STEP_COMPLETED comes directly after the step, and the
    gradients stay until the next iteration starts, or the epoch or the run ends.

    Whether the window will close is decided at ITERATION_STARTED (``accelerator.sync_gradients``).
    Committed steps are counted in ``state.optimizer_step``; ``state.step_committed`` says whether
    this iteration made one. Gradients are unscaled when the OPTIMIZER_STEP_STARTED handlers see
    them: they must not unscale again. (FSDP and DeepSpeed unscale where Accelerate has them do it.)

    Args:
        accelerator: its ``gradient_accumulation_steps`` is the size of the windows, in batches.
        optimizer: a torch optimizer, prepared or not.
        lr_scheduler: a torch scheduler on that optimizer, or a callable that makes one from the
            prepared optimizer. One that was prepared with Accelerate keeps Accelerate's own rule.
        scheduler_at: when the scheduler moves: after each "step", at the end of each "epoch", or
            after each "validation" but that before the first step.
        scheduler_metric: the name in ``state.metrics`` that a ReduceLROnPlateau is given.

    Raises:
        TypeError: an argument is of a kind that cannot be used.
        ValueError: the scheduler cannot be used; the engine has an OptimizerStep already.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Optimizer,
        lr_scheduler: Any = None,
        scheduler_at: SchedulerAt = "step",
        scheduler_metric: str | None = None,
    ) -> None:
        check_optimizer(optimizer)
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
        self.signals = HeldSignals()
        self.scheduler = SchedulerDriver(
            lr_scheduler, self.optimizer, scheduler_at, scheduler_metric, self.signals
        )
        self.steps = 0
        # What must be one is one line: an exception can come between any two. A call that is due
        # is on a list, and off it on the line that begins it.
        self._to_step: list[Callable[[], Any]] | None = None  # while a step is under way
        self._stepped: list[Any] = []  # the result of a step that is not counted yet
        self._to_move: list[Callable[[], Any]] = []  # the scheduler's step, if it is due
        self._broken_at = 0  # the step after which the scheduler's step has raised
        self._version_after_step: int | None = None  # of the first parameter
        self._number = 0  # of the step that is under way
        self._uncompleted: list[int] = []  # the step of which STEP_COMPLETED has not been fired
        self.window = Window()
        self.accumulation = Accumulation(self._gradient_state, self.window)
        self._divisor = 1  # of the losses of the window
        self._divides_exactly = False
        self.averaged: AveragedGradients | None = None  # with several processes, beside the model
        self._timetable = Timetable()
        self.is_stepping = False
        self.attachment: Attachment | None = None  # the last one
        # Of the engine that it is attached to; looked up once.
        self._called_before_step: list[Callable[[Engine], None]] = []
        self._fire: Callable[..., None] = fire_within

    @property
    def optimizer(self) -> Any:
        """The optimizer as Accelerate prepared it."""
        return self.prepared.optimizer

    @property
    def lr_scheduler(self) -> Any:
        """The scheduler, or None."""
        return self.scheduler.lr_scheduler

    @property
    def timetable(self) -> Timetable:
        """The callbacks by step; they are called after STEP_COMPLETED."""
        return self._timetable

    def start_from(self, step: int) -> None:
        """Sets the number of steps committed so far; nothing is left to be done after them."""
        self.steps = step
        self._to_step = None
        self._stepped, self._to_move = [], []
        self._broken_at, self._version_after_step = 0, None
        self._uncompleted.clear()
        self.signals.has_broken = False
        self._timetable.start_from(step)
        self.scheduler.forget_place()

    def backward(self, loss: torch.Tensor) -> None:
        """Back-propagates ``loss`` with its share in the mean over the window.

        In a trainer, where the length of the data is known, so is the size of the window when it
        opens, and the share is exact, also that of ``accelerator.backward``. Else losses are
        divided by the full size, and the gradient of a short window is scaled up at its end, which
        rounds differently.
        """
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
        full_size = self._divisor = self.accumulation.full_size()
        window.take(full_size, batches_left() if full_size > 1 else None)
        if window.size != full_size and self._divides_exactly:
            self._divisor = window.size
            self.accumulation.shorten(window.size)
        gradient_state.sync_gradients = window.is_closing
        # What `accelerator.accumulate`, if the process function uses it, makes the same of.
        self.accelerator.step = self._divisor - 1 if window.is_closing else window.count - 1

    def close_window(self, engine: Engine) -> bool:
        """Steps with the gradient of the mean over the window, and moves the scheduler.

        Returns:
            Whether the step was committed, and not skipped by the loss scaler. In either case the
            gradients are still there, for ``zero_grad``.
        """
        state: Any = engine.state
        self.is_stepping = True
        self._gradient_state.sync_gradients = True
        if self.averaged is not None:
            self.averaged.average()
        if self.window.count != self._divisor:
            self.prepared.scale(self._divisor / self.window.count)
            self.accumulation.shorten(self.window.count)  # for losses of the handlers
        self.prepared.unscale()
        with channels_of(engine).on_optimizer_step:
            self._fire(engine, TrainEvents.OPTIMIZER_STEP_STARTED)
            for callback in self._called_before_step:
                callback(engine)
            if self.scheduler.moves_by_step:
                self.scheduler.watch()
            before, signals = self.steps, self.signals
            self._number = before + 1
            self._to_move = []
            self._to_step = [self.prepared.step]
            if signals.is_stale:
                signals.look()
            signals.is_holding = True
            try:
                self._stepped.append(self._to_step.pop()())
                self.count_step(state)
                if self._to_move:
                    self._to_move.pop()()
            except BaseException:
                self._broken_at = self._number
                raise
            finally:
                signals.is_holding = False
                if signals.waiting:
                    signals.release()
            committed = self.steps != before
            if committed:
                if self.scheduler.moves_by_step:
                    self.scheduler.note_place()
                self._fire(engine, TrainEvents.OPTIMIZER_STEP_COMPLETED)
        self.is_stepping = False
        return committed

    def count_step(self, state: Any) -> None:
        """Counts a step that was made and is not counted; a call that broke off can be repeated."""
        if not self._stepped:
            return
        self._end_window()
        if self.prepared.has_changed_parameters():
            self.steps = state.optimizer_step = self._number
            self._version_after_step = self.prepared.first_parameter._version
            state.step_committed = True
            self._uncompleted[:] = [self._number]
            if self.scheduler.moves_by_step:
                self._to_move = [self.scheduler.lr_scheduler.step]
        self._to_step = None
        self._stepped.clear()

    @property
    def is_half_done(self) -> bool:
        """True if the last step broke off within: some parameters may have changed, others not."""
        return self.signals.has_broken or (self._to_step == [] and not self._stepped)

    @property
    def is_completed(self) -> bool:
        """True if STEP_COMPLETED was fired for the last step, and what it made due was called."""
        return not self._uncompleted and self.steps < self._timetable.next_due

    @property
    def is_whole(self) -> bool:
        """True if parameters, optimizer and scheduler are known to be those after the last step.

        That is asked after a failure. A process function may have been changing parameters, to look
        at the loss nearby say; what is written to ``parameter.data`` does not show here.
        """
        has_moved = not self._to_move and self._broken_at != self.steps
        return (
            not self.is_half_done
            and has_moved
            and self.prepared.first_parameter._version == self._version_after_step
        )

    def complete_step(self, engine: Engine) -> None:
        """Fires STEP_COMPLETED for the last committed step, and calls what is due after that step.

        What was begun by an earlier call is not done again, and what a failure kept from beginning
        is: the scheduler moves, and a handler that averages weights misses no step.
        """
        if self._to_move:
            self._move_scheduler()
        if self._uncompleted:
            self._fire(engine, TrainEvents.STEP_COMPLETED)
            self._uncompleted.clear()  # on a trainer done already, if there was a handler
        if self.steps >= self._timetable.next_due:
            self._timetable.call_due(self.steps)

    def _move_scheduler(self) -> None:
        self.signals.is_holding = True
        try:
            self._to_move.pop()()
        finally:
            self.signals.release()

    def end_validation(self, *, are_more_to_come: bool) -> None:
        """Notes that a validation has ended, unless nothing was trained before.

        ``scheduler.after_validation`` moves the scheduler then.
        """
        if self.steps:
            self.scheduler.end_validation(are_more_to_come=are_more_to_come)

    def zero_grad(self) -> None:
        """Zeroes the gradients of a window that was stepped with."""
        self.prepared.zero_grad()

    def drop_window(self) -> None:
        """Forgets the batches of the open window and zeroes their gradients."""
        self._end_window()
        self.is_stepping = False
        self.accelerator.step = 0
        self.prepared.zero_grad()

    def _end_window(self) -> None:
        self.window.close()
        self.accumulation.restore()

    def check(self, engine: Engine, event: Any) -> None:
        """One OptimizerStep for one engine, at the moments of its own."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: OptimizerStep acts at the end of each "
                "window; the accelerator's gradient_accumulation_steps makes windows longer"
            )
        if belongings(engine).get(_STEPS_ITSELF):
            raise ValueError(
                "`engine` must not be a trainer, which steps with an OptimizerStep of its own: "
                "give the optimizer and the scheduler to the factory"
            )
        if attached(engine, OptimizerStep):
            raise ValueError(
                "`engine` must have one OptimizerStep, and it has one already: remove() the other "
                "attachment first"
            )
        if self.attachment is not None and self.attachment.is_attached:
            raise ValueError(
                "an OptimizerStep must be attached to one engine, whose window it keeps, and this "
                "one is attached already: make another"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Opens windows at ITERATION_STARTED and closes them at ITERATION_COMPLETED.

        The loop of a trainer does so itself, between the events.
        """
        engine = attachment.engine
        TrainEvents.register(engine)
        channels_of(engine)  # attaches the channels of a plain engine, before a run
        state: Any = engine.state
        state.step_committed = False
        self.start_from(state.optimizer_step)
        self._called_before_step = called_before_step(engine)
        self._fire = type(engine).fire_event if isinstance(engine, QuickEngine) else fire_within
        if is_trainer(engine):
            belongings(engine)[_STEPS_ITSELF] = True
            # The process function of a plain engine may divide by a number of its own.
            self._divides_exactly = True
            assert isinstance(engine, QuickEngine)
            self._uncompleted = engine.due_until_fired(TrainEvents.STEP_COMPLETED)
            self._attach_to_trainer(attachment)
        else:
            if has_handlers(engine, Events.ITERATION_COMPLETED):
                warnings.warn(
                    "OptimizerStep was attached after other handlers of ITERATION_COMPLETED, which "
                    "will see the parameters before the step: attach it first",
                    stacklevel=3,
                )
            _PlainStepping(self).attach_to(attachment)
        self.attachment = attachment

    def _attach_to_trainer(self, attachment: Attachment) -> None:
        """Has callbacks by step, and the scheduler, act in their turns among the handlers.

        The loop calls both too, should a failure keep these handlers from being called.
        """

        def call_due(engine: Engine) -> None:
            if self.steps >= self._timetable.next_due:
                self._timetable.call_due(self.steps)

        call_due.__qualname__ = type(self).__name__  # what profilers show
        set_turn(call_due, Turn.DUE_BY_STEP)
        attachment.add(TrainEvents.STEP_COMPLETED, call_due)  # cheaper than `on`, for each step
        if self.scheduler.at == "epoch" and not self.scheduler.takes_metric:
            move = self.scheduler.after_epoch
            attachment.on(Events.EPOCH_COMPLETED, move, turn=Turn.SCHEDULER)


class _PlainStepping:
    """Opens, closes and drops windows at the events of a plain Ignite engine.

    Nothing tells there for sure what data is left, or when a handler looks at gradients for the
    last time. So those of a step stay until the next iteration starts, or the epoch or run ends.
    """

    def __init__(self, step: OptimizerStep) -> None:
        self._step = step
        self._data = RemainingData()
        self._has_gradients = False  # of a window that was stepped with
        self._moves_by_epoch = step.scheduler.at == "epoch"
        self._moves_late = self._moves_by_epoch and step.scheduler.takes_metric

    def attach_to(self, attachment: Attachment) -> None:
        """Adds the handlers of all these events."""
        attachment.during_run(self._in_run)
        attachment.on(Events.STARTED, self._start)
        attachment.on(Events.EPOCH_STARTED, self._data.epoch_starts)
        attachment.on(Events.ITERATION_STARTED, self._take_batch)
        attachment.on(Events.ITERATION_COMPLETED, self._close_if_full)
        attachment.on(Events.DATALOADER_STOP_ITERATION, self._close_late)
        attachment.on(Events.TERMINATE, self._data.run_terminates)
        dropping = Events.TERMINATE | Events.TERMINATE_SINGLE_EPOCH
        attachment.on(dropping, lambda engine: self._step.drop_window())
        attachment.on(Events.EPOCH_COMPLETED, self._end_epoch, first=True)
        if self._moves_by_epoch and not self._moves_late:
            attachment.on(Events.EPOCH_COMPLETED, self._move_scheduler)

    @contextmanager
    def _in_run(self, engine: Engine) -> Iterator[None]:
        with Attachment(self._step, engine) as late:
            if self._moves_late:  # added when the run begins, it follows the validation of an epoch
                late.on(Events.EPOCH_COMPLETED, self._move_scheduler)
            try:
                yield
            except BaseException:
                if not is_interrupted(engine):  # it still is if run() refused its arguments
                    self._step.drop_window()
                raise
            finally:
                self._zero_gradients()

    def _start(self, engine: Engine) -> None:
        state: Any = engine.state
        self._data.run_starts(engine)
        self._step.drop_window()
        if state.iteration == 0:
            self._step.start_from(0)
            self._step.scheduler.start_new_run()
            state.optimizer_step = 0

    def _take_batch(self, engine: Engine) -> None:
        state: Any = engine.state
        self._zero_gradients()
        state.step_committed = False
        self._step.take_batch(lambda: self._data.batches_left(engine))

    def _close_if_full(self, engine: Engine) -> None:
        if self._step.window.is_closing:
            self._close(engine)

    def _close_late(self, engine: Engine) -> None:
        """Steps with an open window when the data ended and nothing had told that it would."""
        step = self._step
        if not step.window.count:
            return
        if step.accelerator.use_distributed:
            raise RuntimeError(
                "`data` must tell its last batch as the last, for the processes to reduce their "
                f"gradients then; {type(engine.state.dataloader).__name__} does not: run the "
                "engine on DataFeed(data, accelerator)"
            )
        self._close(engine)

    def _close(self, engine: Engine) -> None:
        self._has_gradients = True
        if self._step.close_window(engine):
            self._step.complete_step(engine)

    def _end_epoch(self, engine: Engine) -> None:
        # It is open after a failure that a handler swallowed, or if the end was not foreseen.
        step = self._step
        if step.is_stepping or step.window.is_closing or not self._data.is_whole(engine):
            step.drop_window()
        else:
            self._close_late(engine)
        self._zero_gradients()

    def _move_scheduler(self, engine: Engine) -> None:
        self._step.scheduler.end_epoch(self._data.epoch_began_after)
        self._step.scheduler.after_epoch(engine)

    def _zero_gradients(self) -> None:
        if self._has_gradients:
            self._has_gradients = False
            self._step.zero_grad()


def called_before_step(engine: AnyEngine) -> list[Callable[[Engine], None]]:
    """Returns what is called after all handlers of OPTIMIZER_STEP_STARTED, before the step.

    It is kept with the engine, whose OptimizerStep may be replaced by another.
    """
    callbacks: list[Callable[[Engine], None]] = belongings(engine).setdefault("before_step", [])
    return callbacks
