"""The optimizer step with gradient accumulation: one step for each window of batches.

A window is the batches whose gradients are accumulated for one optimizer step.
"""

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
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import fire_within
from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import set_turn
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.held_signals import HeldSignals
from ignite_hooks.core.rules import check_count
from ignite_hooks.core.scopes import NULL_CONTEXT
from ignite_hooks.core.timetable import Timetable
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.event_channels import channels_of
from ignite_hooks.optim.accumulation import Accumulation
from ignite_hooks.optim.averaged_gradients import AveragedGradients
from ignite_hooks.optim.lr_scheduler import SchedulerArgument
from ignite_hooks.optim.lr_scheduler import SchedulerAt
from ignite_hooks.optim.lr_scheduler import SchedulerDriver
from ignite_hooks.optim.prepared_optimizer import PreparedOptimizer
from ignite_hooks.optim.prepared_optimizer import check_optimizer
from ignite_hooks.optim.window import RemainingData
from ignite_hooks.optim.window import Window

__all__ = ["OptimizerStep", "callbacks_after_skip", "callbacks_before_step"]


# The key in ``engine_storage`` that marks a trainer, which has an OptimizerStep of its own.
_STEPS_ITSELF = "steps_itself"


class OptimizerStep(Handler):
    """Makes the optimizer step of each window of batches, and moves the scheduler.

    A *window* is the batches whose gradients are accumulated for one optimizer step. The scheduler
    *moves* when its ``step()`` is called. Hand-written gradient accumulation often fails in three
    cases: the last, shorter window of a pass over the data, a step that the loss scaler skips, and
    a prepared scheduler, which Accelerate moves n times per step if there are n processes.
    OptimizerStep follows these rules:

    - The step of a window of k batches uses the gradient of the mean of the k losses, for any k.
    - A step that the loss scaler skips is not committed: it is not counted, and the scheduler does
      not move.
    - The scheduler moves once per committed step.

    A trainer has an OptimizerStep of its own. The trainer makes the step before
    ITERATION_COMPLETED. When all handlers of ITERATION_COMPLETED have returned, the trainer zeroes
    the gradients and then fires STEP_COMPLETED.

    On a plain Ignite engine, one that is not a trainer, the process function does the forward pass
    and ``accelerator.backward(loss)``, with or without ``accelerator.accumulate``. The step is made
    by a handler of ITERATION_COMPLETED: attach the OptimizerStep before other handlers of this
    event. STEP_COMPLETED is fired directly after the step. The gradients stay until the next
    iteration starts, or until the epoch or the run ends.

    On any engine, ``accelerator.sync_gradients`` is True in an iteration that is known to be the
    last of its window, from ITERATION_STARTED on. ``state.optimizer_step`` counts the committed
    steps, and ``state.step_committed`` says whether the present iteration made a committed step.
    Handlers of OPTIMIZER_STEP_STARTED see gradients from which the loss scaler's factor has been
    removed, and must not remove it again. (With FSDP and DeepSpeed, Accelerate decides when the
    factor is removed.)

    Args:
        accelerator: its ``gradient_accumulation_steps`` is the size of the windows, in batches.
        optimizer: a torch optimizer, prepared or not.
        lr_scheduler: a torch scheduler on ``optimizer``, or a callable that makes a scheduler from
            the prepared optimizer. A scheduler that was prepared with Accelerate moves by
            Accelerate's rule: by default n times instead of once, if there are n processes.
        scheduler_at: when the scheduler moves: after each "step", at the end of each "epoch", or
            after each "validation". A validation before the first step does not move the scheduler.
        scheduler_metric: the name in ``state.metrics`` of the value that a ReduceLROnPlateau is
            given at each move; None for any other scheduler.

    Raises:
        TypeError: an argument has a type that cannot be used.
        ValueError: the scheduler cannot be used; the engine has an OptimizerStep already.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: Optimizer,
        lr_scheduler: SchedulerArgument = None,
        scheduler_at: SchedulerAt = "step",
        scheduler_metric: str | None = None,
    ) -> None:
        check_optimizer(optimizer)
        check_count(
            "accelerator.gradient_accumulation_steps",
            accelerator.gradient_accumulation_steps,
            "1 is no accumulation",
        )
        self.accelerator = accelerator
        # Looked up once: Accelerate's properties, above all `use_distributed`, would take 10 µs per
        # iteration.
        self._gradient_state = accelerator.gradient_state
        self.is_distributed = accelerator.use_distributed
        self.prepared = PreparedOptimizer(accelerator, optimizer)
        self.signals = HeldSignals()
        self.scheduler = SchedulerDriver(
            lr_scheduler, self.optimizer, scheduler_at, scheduler_metric, self.signals
        )
        self.steps = 0  # the number of committed steps
        # A signal handler can raise an exception between any two lines. So a function that is still
        # to be called is kept in a list, and one line removes it from the list and calls it. After
        # an exception, the list shows whether the call has begun.

        # None if no step is under way. During a step, the list has the function that makes the
        # step, and is empty once the call has begun.
        self._step_call: list[Callable[[], Any]] | None = None
        self._step_result: list[Any] = []  # the result of that call, until the step is counted
        # If the scheduler moves by step, ``lr_scheduler.step`` is put into this list when an
        # optimizer step is committed.
        self._scheduler_call: list[Callable[[], Any]] = []
        # The number of the last step in which the optimizer or the scheduler raised an exception.
        self._failed_step = 0
        # ``_version`` of the first parameter after the last committed step. Autograd counts the
        # in-place changes of a tensor in this attribute.
        self._version_after_step: int | None = None
        self._step_number = 0  # what ``steps`` becomes if the step under way is committed
        # When a step is committed, its number is put into this list. The list is emptied when
        # STEP_COMPLETED is fired for the step.
        self._uncompleted_step: list[int] = []
        self.window = Window()
        self.accumulation = Accumulation(self._gradient_state, self.window)
        self._divisor = 1  # the losses of the window are divided by this
        # Whether the losses of a short window are divided by its own size. Otherwise they are
        # divided by the size of a full window, and the gradient is scaled up before the step.
        self._divides_by_own_size = False
        # ``create_supervised_trainer`` sets this attribute if a module besides the model, such as
        # ``loss_fn``, has parameters, and training is data-parallel over several processes.
        self.averaged_gradients: AveragedGradients | None = None
        self._timetable = Timetable()
        self.is_stepping = False  # True within ``close_window``, and after a failure in it
        self.attachment: Attachment | None = None  # the last attachment
        # ``callbacks_before_step`` of the engine to which this object is attached.
        self._callbacks_before_step: list[Callable[[Engine], None]] = []
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
        """The callbacks of handlers with ``every_steps``, which are due after a committed step."""
        return self._timetable

    def start_from(self, step: int) -> None:
        """Sets the number of steps committed so far, and forgets all calls that are still due.

        Args:
            step: the number of committed steps.
        """
        self.steps = step
        self._step_call = None
        self._step_result, self._scheduler_call = [], []
        self._failed_step, self._version_after_step = 0, None
        self._uncompleted_step.clear()
        self.signals.was_interrupted = False
        self._timetable.start_from(step)
        self.scheduler.forget_position()

    def backward(self, loss: torch.Tensor) -> None:
        """Divides ``loss`` by the size of the window in batches, and back-propagates the result.

        In a trainer, if the length of the data is known, the divisor is the size of the present
        window. ``accelerator.backward``, which a user's code may call instead of this method, then
        divides by the same number.

        Otherwise the divisor is the size of a full window. If the window turns out to be shorter,
        its gradient is scaled up before the step, which rounds differently.
        """
        self.prepared.backward(loss, self._divisor)

    def gradient_sync(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Returns the context for the forward and backward pass of a batch.

        Within this context the processes exchange gradients at the last batch of a window only. If
        Accelerate's setting ``sync_each_batch`` is on, they exchange gradients at each batch.
        """
        if self.window.is_closing or self._gradient_state.plugin_kwargs.get(
            "sync_each_batch", False
        ):
            return NULL_CONTEXT
        no_sync: AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return no_sync

    def take_batch(self, batches_left: Callable[[], int | None]) -> None:
        """Adds a batch to the window, and sets ``sync_gradients``: True if the batch is the last.

        Args:
            batches_left: returns the number of batches from this batch to the end of the data, this
                batch included, or None if the end is not known. The function is called only if a
                full window has several batches.
        """
        gradient_state, window = self._gradient_state, self.window
        full_size = self._divisor = self.accumulation.full_size()
        window.take(full_size, batches_left() if full_size > 1 else None)
        if window.size != full_size and self._divides_by_own_size:
            self._divisor = window.size
            self.accumulation.shorten(window.size)
        gradient_state.sync_gradients = window.is_closing
        # The process function may use ``accelerator.accumulate``, which adds 1 to
        # ``accelerator.step``, and sets ``sync_gradients`` to True if the sum is a multiple of
        # ``gradient_accumulation_steps``. ``accelerator.step`` is chosen here so that
        # ``accumulate`` sets ``sync_gradients`` to the same value as the line above.
        self.accelerator.step = self._divisor - 1 if window.is_closing else window.count - 1

    def close_window(self, engine: Engine) -> bool:
        """Makes the step of the window, and moves a scheduler that moves by step.

        The gradients are kept until ``zero_grad`` is called.

        Returns:
            Whether the step was committed. A step that the loss scaler skips is not committed.
        """
        state: Any = engine.state
        self.is_stepping = True
        self._gradient_state.sync_gradients = True
        if self.averaged_gradients is not None:
            self.averaged_gradients.average()
        if self.window.count != self._divisor:
            self.prepared.scale(self._divisor / self.window.count)
            # A handler of OPTIMIZER_STEP_STARTED may make a backward pass. Its loss must be divided
            # by the number of batches in this window too.
            self.accumulation.shorten(self.window.count)
        self.prepared.unscale()
        with channels_of(engine).on_optimizer_step:
            self._fire(engine, TrainEvents.OPTIMIZER_STEP_STARTED)
            for callback in self._callbacks_before_step:
                callback(engine)
            if self.scheduler.moves_by_step:
                self.scheduler.check_not_moved_elsewhere()
            before, signals = self.steps, self.signals
            self._step_number = before + 1
            self._scheduler_call = []
            self._step_call = [self.prepared.step]
            if signals.must_wrap_handlers:
                signals.wrap_handlers()
            # Signal handlers are held back until the step is made and counted and the scheduler has
            # moved, because a run whose step is half done cannot be continued.
            signals.is_holding = True
            try:
                self._step_result.append(self._step_call.pop()())
                self.count_step(state)
                if self._scheduler_call:
                    self._scheduler_call.pop()()
            except BaseException:
                self._failed_step = self._step_number
                raise
            finally:
                signals.is_holding = False
                if signals.pending:
                    signals.release()
            committed = self.steps != before
            if committed:
                if self.scheduler.moves_by_step:
                    self.scheduler.note_position()
                self._fire(engine, TrainEvents.OPTIMIZER_STEP_COMPLETED)
            else:
                for callback in callbacks_after_skip(engine):
                    callback(engine)
        self.is_stepping = False
        return committed

    def count_step(self, state: Any) -> None:
        """Counts the last step if it was made and is not counted yet.

        If an exception breaks off this method, a second call counts the step.
        """
        if not self._step_result:
            return
        self._end_window()
        if self.prepared.has_changed_parameters():
            self.steps = state.optimizer_step = self._step_number
            self._version_after_step = self.prepared.first_parameter._version
            state.step_committed = True
            self._uncompleted_step[:] = [self._step_number]
            if self.scheduler.moves_by_step:
                self._scheduler_call = [self.scheduler.lr_scheduler.step]
        self._step_call = None
        self._step_result.clear()

    @property
    def is_half_done(self) -> bool:
        """True if the last optimizer step was broken off, and may have changed some parameters."""
        return self.signals.was_interrupted or (self._step_call == [] and not self._step_result)

    @property
    def has_completed_step(self) -> bool:
        """True if STEP_COMPLETED was fired for the last committed step and no callbacks are due."""
        return not self._uncompleted_step and self.steps < self._timetable.next_due

    @property
    def is_consistent(self) -> bool:
        """True if parameters, optimizer and scheduler are as the last committed step left them.

        After a failure a checkpoint is saved only if this is True. It is False, for example, if the
        process function changes parameters temporarily, to compute a second loss, and fails before
        it restores them. The check looks at the first parameter only, and does not notice writes to
        ``parameter.data``.
        """
        # False if the scheduler still has to move for the last step, or raised when it moved.
        has_scheduler_moved = not self._scheduler_call and self._failed_step != self.steps
        return (
            not self.is_half_done
            and has_scheduler_moved
            and self.prepared.first_parameter._version == self._version_after_step
        )

    def complete_step(self, engine: Engine) -> None:
        """Fires STEP_COMPLETED for the last committed step, and calls the callbacks due after it.

        After a failure the method can be called again. It then does only the work that has not
        begun yet, so a handler that averages weights is called at most once for each step.
        """
        if self._scheduler_call:
            self._move_scheduler()
        if self._uncompleted_step:
            self._fire(engine, TrainEvents.STEP_COMPLETED)
            # A trainer clears the list when it calls the first handler of STEP_COMPLETED. If there
            # is no handler, or the engine is not a trainer, the list is cleared here.
            self._uncompleted_step.clear()
        if self.steps >= self._timetable.next_due:
            self._timetable.call_due(self.steps)

    def _move_scheduler(self) -> None:
        """Calls ``step`` of the scheduler, and holds signal handlers back meanwhile."""
        self.signals.is_holding = True
        try:
            self._scheduler_call.pop()()
        finally:
            self.signals.release()

    def end_validation(self, *, are_results_missing: bool) -> None:
        """Notes that a validation has ended, for a scheduler that moves after each validation.

        A validation before the first step does not move the scheduler.

        Args:
            are_results_missing: whether the engine has another Validation that has not validated
                yet in this run. That Validation may be the one that measures the scheduler's
                metric.
        """
        if self.steps:
            self.scheduler.end_validation(are_results_missing=are_results_missing)

    def zero_grad(self) -> None:
        """Zeroes the gradients after the step of a window."""
        self.prepared.zero_grad()

    def drop_window(self) -> None:
        """Forgets the batches of the open window and zeroes their gradients."""
        self._end_window()
        self.is_stepping = False
        self.accelerator.step = 0
        self.prepared.zero_grad()

    def _end_window(self) -> None:
        """Closes the window, and restores the full number of batches per step."""
        self.window.close()
        self.accumulation.restore()

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that ``engine`` has no OptimizerStep yet, and that no event is given."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: OptimizerStep steps at the end of each "
                "window; for longer windows set gradient_accumulation_steps of the accelerator"
            )
        if engine_storage(engine).get(_STEPS_ITSELF):
            raise ValueError(
                "`engine` must not be a trainer, because a trainer has an OptimizerStep already: "
                "give the optimizer and the scheduler to the factory"
            )
        if attached_handlers(engine, OptimizerStep):
            raise ValueError(
                "`engine` must have one OptimizerStep, and it has one already: remove() the "
                "earlier attachment first"
            )
        if self.attachment is not None and self.attachment.is_attached:
            raise ValueError(
                "an OptimizerStep must be attached to one engine only, because it counts the "
                "batches of that engine, and it is attached already: make another OptimizerStep"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Attaches the handlers that make the steps.

        On a plain engine they open windows at ITERATION_STARTED and close windows at
        ITERATION_COMPLETED. A trainer's loop opens and closes windows itself.
        """
        engine = attachment.engine
        TrainEvents.register(engine)
        channels_of(engine)  # makes the channels of a plain engine, which ``close_window`` uses
        state: Any = engine.state
        state.step_committed = False
        self.start_from(state.optimizer_step)
        self._callbacks_before_step = callbacks_before_step(engine)
        self._fire = type(engine).fire_event if isinstance(engine, QuickEngine) else fire_within
        if is_trainer(engine):
            engine_storage(engine)[_STEPS_ITSELF] = True
            # On a plain engine this attribute stays False, because the process function may divide
            # each loss by the size of a full window itself.
            self._divides_by_own_size = True
            assert isinstance(engine, QuickEngine)
            self._uncompleted_step = engine.list_cleared_at(TrainEvents.STEP_COMPLETED)
            self._attach_to_trainer(attachment)
        else:
            if has_handlers(engine, Events.ITERATION_COMPLETED):
                warnings.warn(
                    "OptimizerStep was attached after other handlers of ITERATION_COMPLETED, which "
                    "will see the parameters before the step: attach it first",
                    stacklevel=3,
                )
            _PlainEngineStepping(self).attach_to(attachment)
        self.attachment = attachment

    def _attach_to_trainer(self, attachment: Attachment) -> None:
        """Attaches two handlers to a trainer.

        The first handler calls the callbacks of handlers with ``every_steps`` at STEP_COMPLETED.
        The second handler moves a scheduler that moves once per epoch and takes no metric.
        """

        def call_due_by_step(engine: Engine) -> None:
            if self.steps >= self._timetable.next_due:
                self._timetable.call_due(self.steps)

        call_due_by_step.__qualname__ = type(self).__name__  # the name that profilers show
        set_turn(call_due_by_step, Turn.DUE_BY_STEP)
        # A handler that ``add`` attaches costs less per call than a handler that ``on`` attaches.
        attachment.add(TrainEvents.STEP_COMPLETED, call_due_by_step)
        if self.scheduler.at == "epoch" and not self.scheduler.takes_metric:
            move = self.scheduler.move_after_epoch
            attachment.on(Events.EPOCH_COMPLETED, move, turn=Turn.SCHEDULER)


class _PlainEngineStepping:
    """Opens, closes and drops windows at the events of a plain Ignite engine.

    Handlers of ITERATION_COMPLETED may read the gradients, and a plain engine does not tell when
    the last of these handlers has returned. So gradients stay until the next iteration starts, or
    until the epoch or the run ends.
    """

    def __init__(self, step: OptimizerStep) -> None:
        self._step = step
        self._data = RemainingData()
        self._has_gradients = False  # whether the gradients of a step are still to be zeroed
        self._moves_each_epoch = step.scheduler.at == "epoch"
        self._moves_after_handlers = self._moves_each_epoch and step.scheduler.takes_metric

    def attach_to(self, attachment: Attachment) -> None:
        """Adds the handlers that open, close and drop windows and move the scheduler."""
        attachment.during_run(self._in_run)
        attachment.on(Events.STARTED, self._start)
        attachment.on(Events.EPOCH_STARTED, self._data.note_epoch_start)
        attachment.on(Events.ITERATION_STARTED, self._take_batch)
        attachment.on(Events.ITERATION_COMPLETED, self._close_if_full)
        attachment.on(Events.DATALOADER_STOP_ITERATION, self._close_at_data_end)
        attachment.on(Events.TERMINATE, self._data.note_run_termination)
        drop_events = Events.TERMINATE | Events.TERMINATE_SINGLE_EPOCH
        attachment.on(drop_events, lambda engine: self._step.drop_window())
        attachment.on(Events.EPOCH_COMPLETED, self._end_epoch, first=True)
        if self._moves_each_epoch and not self._moves_after_handlers:
            attachment.on(Events.EPOCH_COMPLETED, self._move_scheduler)

    @contextmanager
    def _in_run(self, engine: Engine) -> Iterator[None]:
        """Surrounds a run: drops the open window after a failure, and zeroes gradients."""
        with Attachment(self._step, engine) as attachment:
            # The handler that moves the scheduler is attached only now, when the run begins. So it
            # is called after the handlers that may write the metric, such as a validation.
            if self._moves_after_handlers:
                attachment.on(Events.EPOCH_COMPLETED, self._move_scheduler)
            try:
                yield
            except BaseException:
                # If run() has refused its arguments, an interrupted run stays interrupted, and its
                # window stays open.
                if not is_interrupted(engine):
                    self._step.drop_window()
                raise
            finally:
                self._zero_gradients()

    def _start(self, engine: Engine) -> None:
        """Drops the window of an earlier run; sets the number of steps to 0 for a new run."""
        state: Any = engine.state
        self._data.note_run_start(engine)
        self._step.drop_window()
        if state.iteration == 0:
            self._step.start_from(0)
            self._step.scheduler.start_new_run()
            state.optimizer_step = 0

    def _take_batch(self, engine: Engine) -> None:
        """Zeroes the gradients of the last step, and adds the batch to the window."""
        state: Any = engine.state
        self._zero_gradients()
        state.step_committed = False
        self._step.take_batch(lambda: self._data.batches_left(engine))

    def _close_if_full(self, engine: Engine) -> None:
        """Makes the step, if this is the last batch of the window."""
        if self._step.window.is_closing:
            self._close(engine)

    def _close_at_data_end(self, engine: Engine) -> None:
        """Makes the step of a window that is still open after the last batch of the data.

        Such a window is open because the data did not mark their last batch.

        Raises:
            RuntimeError: there are several processes. They should have exchanged gradients at the
                last batch of the window, but that batch was not known to be the last one.
        """
        step = self._step
        if not step.window.count:
            return
        if step.accelerator.use_distributed:
            raise RuntimeError(
                "`data` must mark its last batch if there are several processes, which exchange "
                f"gradients at that batch; {type(engine.state.dataloader).__name__} does not mark "
                "it: run the engine on DataFeed(data, accelerator)"
            )
        self._close(engine)

    def _close(self, engine: Engine) -> None:
        """Makes the step; if it is committed, fires STEP_COMPLETED and calls due callbacks."""
        self._has_gradients = True
        if self._step.close_window(engine):
            self._step.complete_step(engine)

    def _end_epoch(self, engine: Engine) -> None:
        """Makes the step of a window that is still open, or drops the window after a failure."""
        # The window is dropped if a handler of EXCEPTION_RAISED has swallowed a failure. Otherwise
        # it is open because the data did not mark their last batch.
        step = self._step
        if step.is_stepping or step.window.is_closing or not self._data.has_whole_epoch(engine):
            step.drop_window()
        else:
            self._close_at_data_end(engine)
        self._zero_gradients()

    def _move_scheduler(self, engine: Engine) -> None:
        """Moves a scheduler that moves once per epoch."""
        self._step.scheduler.end_epoch(self._data.epoch_began_after)
        self._step.scheduler.move_after_epoch(engine)

    def _zero_gradients(self) -> None:
        """Zeroes the gradients of the last step, once."""
        if self._has_gradients:
            self._has_gradients = False
            self._step.zero_grad()


def callbacks_before_step(engine: AnyEngine) -> list[Callable[[Engine], None]]:
    """Returns the callbacks that are called after the handlers of OPTIMIZER_STEP_STARTED.

    The callbacks are called directly before the step, to clip gradients for example. The list
    belongs to the engine, so it stays the same if the OptimizerStep is replaced.
    """
    callbacks: list[Callable[[Engine], None]] = engine_storage(engine).setdefault("before_step", [])
    return callbacks


def callbacks_after_skip(engine: AnyEngine) -> list[Callable[[Engine], None]]:
    """Returns the callbacks that are called when the loss scaler has skipped a step.

    The list belongs to the engine, so it stays the same if the OptimizerStep is replaced.
    """
    callbacks: list[Callable[[Engine], None]] = engine_storage(engine).setdefault("after_skip", [])
    return callbacks
