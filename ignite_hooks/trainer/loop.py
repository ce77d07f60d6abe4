"""The loop of a trainer, which runs the epochs as the drawing in ``events.py`` shows."""

import sys
import time
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from ignite.engine import Events
from ignite.engine import State
from ignite.metrics import Metric

from ignite_hooks.core.due_on_resume import due_numbers
from ignite_hooks.core.due_on_resume import make_due
from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.engine import bound_object
from ignite_hooks.core.engine import handlers_of
from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.core.stop_requests import ValidationStopped
from ignite_hooks.core.stop_requests import stop_monitors
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.undo_stack import UndoStack
from ignite_hooks.data.active_loader import deactivated
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.processes.decisions import Decisions
from ignite_hooks.processes.decisions import Question
from ignite_hooks.processes.host_group import has_host_group
from ignite_hooks.trainer.due_list import DueList
from ignite_hooks.trainer.ignite_handlers import warn_of_gradient_logger
from ignite_hooks.trainer.ignite_handlers import warn_of_lr_finder
from ignite_hooks.trainer.limits import ShownLimits
from ignite_hooks.trainer.run_position import RunPosition
from ignite_hooks.trainer.run_requests import AT_LIMIT
from ignite_hooks.trainer.run_requests import INTERRUPT_RUN
from ignite_hooks.trainer.run_requests import TERMINATE_EPOCH
from ignite_hooks.trainer.run_requests import TERMINATE_RUN
from ignite_hooks.trainer.run_requests import EpochTerminated
from ignite_hooks.trainer.run_requests import RequestFlag
from ignite_hooks.trainer.run_requests import RunRequests
from ignite_hooks.trainer.run_requests import RunTerminated
from ignite_hooks.trainer.run_requests import StopRequest
from ignite_hooks.trainer.running_metrics import RunningMetrics

__all__ = ["TrainingLoop"]


class TrainingLoop(QuickEngine):
    """Runs epochs over a ``DataFeed``, with the counters and limits of a ``RunPosition``.

    The methods that follow the drawing in ``events.py`` are, from the outside in, ``_run_loop``,
    ``_loop``, ``_epochs`` and ``_iterations``. All four are generators, so that ``interrupt()`` can
    suspend a run with its scopes open. A *scope* is a context manager around a part of the loop.
    The contexts that users register on a channel (on_loop, on_epoch, …) are scopes.

    A *window* is the batches whose gradients are accumulated for one optimizer step, and a *step
    boundary* is a place between two windows. At the end of each run, also of a run that failed,
    ``_roll_back_to_boundary`` drops the open window, deactivates the loader in Accelerate, and sets
    counters and data back to the last step boundary. The next run continues from this boundary.

    An epoch is *full* if it gets no further batch. If an epoch is full when the run is to end, the
    loop fires EPOCH_COMPLETED before it ends the run.

    The loop handles requests (``terminate()``, ``terminate_epoch()``, ``interrupt()``) after the
    same events as Ignite. To end the run, the loop leaves the scopes that are open within on_loop,
    and then raises ``RunTerminated`` to get out of the generators. To end only the epoch, the loop
    leaves the scopes within on_epoch, and then raises ``EpochTerminated``. A *stop* is a request to
    end the run, such as a signal, that can also break off a validation.

    A subclass must not replace the three flags (``should_terminate`` and so on), because the loop
    reads their values from ``RunRequests``.

    With several processes all ranks obey a request of one rank at the same step boundary
    (``Decisions``). This boundary is at most ``agree_every`` + 1 windows after the request, or at
    the end of the epoch if that comes first.

    Args:
        process_function: is called with the trainer and each batch. It makes the forward and the
            backward pass; the loop makes the optimizer step.
        optimizer_step: makes the optimizer step of each window, and counts the committed steps.
        agree_every: with several processes, the number of windows from one exchange of requests to
            the next.

    Attributes:
        stop_reason: why the last run ended. ``Trainer`` lists the values.
        hook_channels: the channels of this trainer, with the scopes that are open now.
    """

    should_terminate = RequestFlag()
    should_terminate_single_epoch = RequestFlag()
    should_interrupt = RequestFlag()

    state: Any

    def __init__(
        self,
        process_function: Callable[["TrainingLoop", Any], Any],
        optimizer_step: OptimizerStep,
        agree_every: int = 1,
    ) -> None:
        is_single_process = not has_host_group(optimizer_step.accelerator)
        self._requests = RunRequests(is_single_process=is_single_process)
        self._decisions: Decisions | None = None
        if not is_single_process:
            self._decisions = Decisions(optimizer_step.accelerator, agree_every)
            self._decisions.add(Question(self._requests.unshared_requests, self._requests.activate))
        self._is_end_noted = False  # once set, no further request changes ``ended_by``
        self._running_metrics = RunningMetrics(self._metrics, optimizer_step.signals)
        self._position = RunPosition(optimizer_step)
        # The engine passes itself to the process function, so the narrower argument type is safe.
        super().__init__(process_function)  # type: ignore[arg-type]
        # Kept to notice when a user replaces ``state`` by another object.
        self._own_state = self.state
        # The engine clears the list ``uncompleted_epoch`` when it calls the first handler of
        # EPOCH_COMPLETED.
        self._position.uncompleted_epoch = self.list_cleared_at(Events.EPOCH_COMPLETED)
        # The callbacks that undo the temporary changes of the run.
        self._changes = UndoStack()
        # The callbacks in ``_changes`` that the roll-back must not call. Each belongs to a scope
        # around the whole ``run``, which undoes its own change when ``run`` ends.
        self._outer_changes: tuple[Callable[[], None], ...] = ()
        # Whether the last run has been rolled back: the position is at a step boundary, and no
        # change is left to undo.
        self._is_rolled_back = True
        # The value of a ``terminate_epoch()`` that the next run must obey, because the last run
        # failed at a step boundary before it ended the epoch. False if there is none.
        self._pending_epoch_termination: Any = False
        self.stop_reason: str | None = None
        self.hook_channels = Channels(self)
        self._optimizer_step = optimizer_step
        self._due = DueList()
        self._end_callbacks: list[Callable[[], None]] = []
        # Callbacks that are called once in each run, after its first step.
        self._after_first_step: list[Callable[[], None]] = []
        self._batches: Iterator[Any] = iter(())
        self._has_data = False
        # How many scopes were open just after on_loop was entered, and just after on_epoch was
        # entered. Scopes that are opened later are within on_loop or on_epoch.
        self._loop_depth = self._epoch_depth = 0
        self._started = 0.0

    # The loop

    def _run_loop(self) -> Generator[State, None, State]:
        """Runs everything from STARTED to COMPLETED, and then rolls back.

        Yields the state when the run is interrupted, and returns the state when the run ends.
        """
        self.stop_reason = None
        self._requests.clear()
        if self._decisions is not None:
            self._decisions.begin()
        self._position.ended_by, self._is_end_noted = None, False
        self._position.enter_run()
        self._running_metrics.begin_run(self._position.place.progress.iteration)
        # So far only the scopes around the whole ``run`` have made changes.
        self._outer_changes = self._changes.pending
        self._is_rolled_back = False
        self._batches = iter(self._present_feed)
        with self.hook_channels.scopes as scopes:
            scopes.enter(_RollBackScope(self))
            try:
                yield from self._loop()
            except GeneratorExit:  # no failure: an interrupted run is closed, and will not continue
                raise
            except BaseException as error:
                if not self._handle_failure(error):
                    raise
        return self.state  # type: ignore[no-any-return]

    def _loop(self) -> Generator[State, None, None]:
        """Runs from STARTED to COMPLETED, within on_loop, as in the drawing."""
        self._clear_times()
        self._started = time.time()
        # As long as ``_loop_depth`` is 0, STARTED has not been fired, and a run that ends fires
        # neither TERMINATE nor COMPLETED.
        self._loop_depth = self._epoch_depth = 0
        with self.hook_channels.on_loop:
            self._loop_depth = self._epoch_depth = len(self.hook_channels.scopes.open)
            try:
                yield from self._epochs()
                self.stop_reason = self._position.limit_reached
                self._note_ended_by()
            except RunTerminated:
                self._end_terminated_run(self.stop_reason or self._requests.stop.reason)
            except EpochTerminated:
                raise RuntimeError(
                    "terminate_epoch() must be called within an epoch, that is, after "
                    "EPOCH_STARTED, and was called at STARTED or EPOCH_STARTED: call it at "
                    "ITERATION_STARTED"
                ) from None
            self._complete_run()

    def _epochs(self) -> Generator[State, None, None]:
        """Fires STARTED and runs the epochs, as in the drawing.

        Before the first epoch, the run completes the work that the previous run left undone.
        """
        position = self._position
        # Ignite's profilers write to Ignite's table of handlers directly, when they are attached
        # and again at STARTED. The engine, which keeps a copy of this table, does not notice. So
        # the copy is renewed here, and STARTED is fired from the table itself.
        self._update_handlers()
        self._fire_from_table(Events.STARTED)
        # Handlers of STARTED may have reset metrics. If the run continues in the middle of an
        # epoch, metrics are restored once more after EPOCH_STARTED.
        self._running_metrics.restore(self, is_last_time=position.place.progress.batches == 0)
        if self._decisions is not None:
            self._decisions.exchange_now()
        self._check_limits()
        # If a stop broke off a validation of the previous run, the validation is repeated below. So
        # the run must not end here, even if it is at its limit already.
        if not (self.is_broken_off and self._requests.terminate_flag == AT_LIMIT):
            yield from self._handle_requests()
        self._finish_previous_step()
        if self.is_leaving_epoch and not self._requests.terminate_flag:
            self._end_terminated_epoch()
        elif not position.place.progress.is_full:
            # If the epoch is full, requests wait: the ``while`` loop first completes the epoch.
            yield from self._handle_requests()
        position.restore_random_state(is_last_time=position.place.progress.batches == 0)
        self._call_deferred_on_resume()
        while position.limit_reached is None or position.place.progress.is_full:
            self.state.epoch = position.place.progress.epochs + 1
            self._present_feed.update_length()
            self._show_lengths()
            started = time.time()
            with self.hook_channels.on_epoch:
                self._epoch_depth = len(self.hook_channels.scopes.open)
                if not position.has_epoch_to_complete:
                    self._fire(Events.EPOCH_STARTED)
                    self._switch_data()
                    self._check_limits()
                    self._note_frozen_modules()
                    # If the epoch is full, it completes before the loop obeys any request.
                    if not position.place.progress.is_full:
                        # A handler of EPOCH_STARTED may have lowered a limit. The epoch then gets
                        # no batch.
                        if position.limit_reached is not None:
                            self._stop_at_limit(position.limit_reached)
                        yield from self._handle_requests()
                        # A ``terminate_epoch()`` at EPOCH_STARTED is an error. The rank that made
                        # the request raises the error without asking the other ranks.
                        if TERMINATE_EPOCH in self._requests.requested_flags:
                            raise EpochTerminated
                # Handlers of EPOCH_STARTED may have drawn random numbers and reset metrics. If the
                # run resumes in the middle of an epoch, these handlers were called once already,
                # when the epoch began. So the effects of their second call are undone here.
                position.restore_random_state(is_last_time=True)
                self._running_metrics.restore(self, is_last_time=True)
                yield from self._iterations()
                # As in Ignite, the time of the epoch is set twice: here, for the handlers of
                # EPOCH_COMPLETED to read, and below, after these handlers.
                self.state.times[Events.EPOCH_COMPLETED.name] = time.time() - started
                self._complete_epoch()
            self._requests.withdraw_flag(TERMINATE_EPOCH)
            self.state.times[Events.EPOCH_COMPLETED.name] = took = time.time() - started
            self.logger.info("Epoch[%d] complete, %.3f s.", self.state.epoch, took)
            yield from self._handle_requests()
            self._check_limits()  # a user may have written limits while the run was interrupted

    def _finish_previous_step(self) -> None:
        """Completes the last step of the previous run, and calls the deferred callbacks.

        The previous run may have failed after its last step, but before STEP_COMPLETED. If the
        epoch is full, the callbacks are called after EPOCH_COMPLETED instead.
        """
        position = self._position
        if self._pending_epoch_termination and not position.place.progress.is_full:
            self._requests.set_flag(TERMINATE_EPOCH, self._pending_epoch_termination)
        self._due.resume()
        if self._optimizer_step.scheduler.has_due_validation:
            self.defer(self._move_scheduler, Turn.SCHEDULER)
        self._optimizer_step.complete_step(self)
        self._check_limits()
        if not position.place.progress.is_full:
            self._call_deferred()
            # If the run is at a limit, no epoch follows. So the callbacks that were due when the
            # checkpoint was saved must be called now.
            if self._due.on_resume and self._requests.terminate_flag == AT_LIMIT:
                position.restore_random_state(is_last_time=True)
                # In the middle of an epoch ``state.epoch`` also counts the present epoch.
                if position.place.progress.batches:
                    self.state.epoch = position.place.progress.epochs + 1
                self._call_deferred_on_resume()

    def _call_deferred_on_resume(self) -> None:
        """Calls the callbacks that were due when the checkpoint of the resumed run was saved.

        Before the random generators are restored, this method does nothing. If the epoch is full,
        it only defers the callbacks, which are then called after EPOCH_COMPLETED.
        """
        if self._due.on_resume and self._position.is_restored:
            make_due(self, self._due.on_resume)
            self._due.on_resume = {}
            if not self._position.place.progress.is_full:
                self._call_deferred()

    def _iterations(self) -> Generator[State, None, None]:
        """Runs the iterations of an epoch, up to EPOCH_COMPLETED, as in the drawing.

        This is the hot path. Attributes are looked up once, and ``_handle_requests`` is called only
        if there are requests.
        """
        state, fire, channels = self.state, self._fire, self.hook_channels
        position, optimizer_step = self._position, self._optimizer_step
        requests, decisions = self._requests.active_flags, self._decisions
        window = optimizer_step.window
        fire_data_event = fire if self._has_data else _fire_nothing
        # The first batch may start the workers of a loader. torch then installs a handler of
        # SIGCHLD, which must be wrapped before the next optimizer step, so that signals can be held
        # back during the step.
        optimizer_step.signals.must_wrap_handlers = True
        try:
            if self._due.on_resume:
                self._call_deferred_on_resume()
                if not position.place.progress.is_full:
                    yield from self._handle_requests()
            while not position.place.progress.is_full:
                # GET_BATCH_STARTED … GET_BATCH_COMPLETED. Both events come before on_step opens, so
                # that a context on on_step does not measure the wait for data.
                state.batch = state.model_outputs = state.loss = None
                state.step_committed = False
                fire_data_event(Events.GET_BATCH_STARTED)
                if requests:
                    yield from self._handle_requests()
                try:
                    state.batch = next(self._batches)
                except StopIteration:
                    if position.ends_with_data:
                        self._end_short_epoch()
                        return
                    yield from self._enter_next_pass(fire_data_event)
                state.output = None
                fire_data_event(Events.GET_BATCH_COMPLETED)
                if requests:
                    yield from self._handle_requests()

                # ITERATION_STARTED … ITERATION_COMPLETED, with the process function and, if the
                # window is full, the optimizer step in between.
                progress = position.count_batch()
                state.iteration = progress.iteration
                if progress.batches == 1:
                    # The length of a pass may become known with its first batch.
                    self._show_lengths()
                optimizer_step.take_batch(self._count_batches_left)
                # At the first batch of a window of several batches, metrics are copied, to be
                # restored if the window is dropped. A window of one batch needs no copies: metrics
                # are updated after the step, and a window is dropped only before its step.
                if window.count == 1 < window.size:
                    self._running_metrics.open_window(progress.iteration - 1)
                is_closing = window.is_closing
                with channels.on_step:
                    fire(Events.ITERATION_STARTED)
                    if requests:
                        yield from self._handle_requests()
                    with channels.on_batch:
                        state.output = self._process(self, state.batch)
                    is_committed = is_closing and optimizer_step.close_window(self)
                    fire(Events.ITERATION_COMPLETED)

                    # All handlers of ITERATION_COMPLETED have returned. If the window has made a
                    # step, STEP_COMPLETED follows, and then the validation and the save, if due.
                    if is_closing:
                        optimizer_step.zero_grad()
                    if is_committed:
                        optimizer_step.complete_step(self)
                        if self._after_first_step:
                            self._after_first_step.pop()()
                    if is_closing and decisions is not None:
                        decisions.finish_exchange()
                    self._check_limits()
                    is_last = position.place.progress.is_full
                    has_deferred_or_requests = self._due.entries or requests
                    # At the last batch of an epoch the deferred callbacks wait for EPOCH_COMPLETED.
                    if has_deferred_or_requests and not (is_last or self.is_leaving_epoch):
                        self._call_deferred()
                    # The ranks exchange requests while the next window runs. At the end of an epoch
                    # ``_complete_epoch`` makes a blocking exchange instead.
                    if is_closing and decisions is not None and not (is_last or requests):
                        decisions.begin_exchange()
                if is_last and self._requests.terminate_flag:
                    return  # the epoch completes before the run ends
                if requests:
                    yield from self._handle_requests()
                    self._check_limits()  # adopts limits that were written during an interruption
        except EpochTerminated:
            self._end_terminated_epoch()

    def _end_terminated_epoch(self) -> None:
        """Drops the open window and the rest of the pass, so that the epoch can complete."""
        batches = self._position.place.progress.batches
        self._optimizer_step.drop_window()
        self._present_feed.next_pass()
        self._batches = iter(self._present_feed)
        self._position.end_epoch_early(self._requests.active_flags[TERMINATE_EPOCH])
        self._fire(Events.TERMINATE_SINGLE_EPOCH, iter_counter=batches)

    def _enter_next_pass(self, fire: Callable[[Any], None]) -> Generator[State, None, None]:
        """Gets the first batch of the next pass over the data, after the end of a pass."""
        ended = self._batches
        fire(Events.DATALOADER_STOP_ITERATION)
        self._switch_data()
        yield from self._handle_requests()
        if self._batches is ended:  # no handler has set other data
            self._batches = iter(self._present_feed)
        # The next pass may start workers, as in ``_iterations``.
        self._optimizer_step.signals.must_wrap_handlers = True
        self.state.batch = next(self._batches)

    def _complete_epoch(self) -> None:
        """Fires EPOCH_COMPLETED, and then calls the deferred callbacks, as in the drawing.

        With several processes the ranks exchange their requests here and wait for the result, so
        that a stop that was requested in this epoch ends the run before the next epoch begins.
        """
        self._present_feed.finish()
        progress = self._position.place.progress
        self._show_lengths()
        fires_completed = self._position.epoch_termination != "skip_epoch_completed"
        self._position.complete_epoch()
        if fires_completed:
            if self._optimizer_step.scheduler.end_epoch(progress.iteration - progress.batches):
                self.defer(self._move_scheduler, Turn.SCHEDULER)
            self._fire_epoch_completed()
        # If no handler of EPOCH_COMPLETED was called, the engine has not cleared this list.
        self._position.uncompleted_epoch.clear()
        if self._decisions is None:
            self._call_deferred()
            return
        self._decisions.exchange_now()
        has_due = bool(self._due.entries)
        self._call_deferred()
        # A callback, or a handler of CHECKPOINT_SAVED, may have requested a stop.
        if has_due and not self._requests.terminate_flag:
            self._decisions.exchange_now()
            if self._requests.terminate_flag:
                self._call_deferred()

    def _fire_epoch_completed(self) -> None:
        """Fires EPOCH_COMPLETED, whose handlers include the validation at the end of the epoch.

        If a stop breaks off this validation, the epoch stays incomplete, and the run ends. The next
        run fires EPOCH_COMPLETED again, which repeats the validation.

        Raises:
            RunTerminated: a stop broke off the validation.
        """
        (before,) = self._position.uncompleted_epoch
        # Ignite's metrics compute their values before the validation. If the validation is broken
        # off, the next run computes the values again, from the state that the metrics have now.
        restore_metrics = self._running_metrics.snapshot() if stop_monitors(self) else _do_nothing
        try:
            self._fire(Events.EPOCH_COMPLETED)
            return
        except ValidationStopped:
            self._position.reopen_epoch(before)
        restore_metrics()
        # If ``terminate_epoch()`` has ended this epoch, ``reopen_epoch`` has kept the request for
        # the next run.
        self._requests.withdraw_flag(TERMINATE_EPOCH)
        self._stop_broken_off()
        self.hook_channels.scopes.leave(self._loop_depth)
        raise RunTerminated

    def _move_scheduler(self) -> None:
        """Moves the scheduler if a validation or the end of an epoch has made a move due."""
        self._optimizer_step.scheduler.move_after_validation(self)
        self._optimizer_step.scheduler.move_after_epoch(self)

    def _complete_run(self) -> None:
        """Fires COMPLETED, except after ``terminate(skip_completed=True)``."""
        times = self.state.times
        times[Events.COMPLETED.name] = time.time() - self._started
        if self._requests.terminate_flag != "skip_completed":
            # Ignite's profilers also write to Ignite's table at COMPLETED, as at STARTED.
            self._fire_from_table(Events.COMPLETED)
            times[Events.COMPLETED.name] = time.time() - self._started
        self.logger.info("Engine run finished (%s).", self.stop_reason)

    def _note_frozen_modules(self) -> None:
        """Does nothing. ``Trainer`` overrides this method, which is called after EPOCH_STARTED."""

    # Limits and lengths, which handlers read and write on the state

    def _check_limits(self) -> None:
        """Adopts limits that handlers wrote to the state; ends the run if a limit is reached."""
        state, position = self.state, self._position
        if state is not self._own_state:
            raise RuntimeError(
                "`trainer.state` must stay the same object while the trainer runs, and it was "
                "replaced: write to its attributes, or replace it between two runs"
            )
        now = (state.max_epochs, state.max_iters, state.max_steps, state.epoch_length)
        if now != position.shown:
            self._adopt_limits()
        limit = position.limit_reached
        if limit is not None:
            progress = position.place.progress
            # If ``max_epochs`` or ``max_iters`` is reached at the end of an epoch, the run ends
            # without TERMINATE, as in Ignite. If ``max_steps`` is reached, TERMINATE is fired even
            # at the end of an epoch.
            if progress.batches and (limit == "max_steps" or not progress.is_full):
                self._stop_at_limit(limit)
        elif self._requests.active_flags and self.stop_reason in vars(position.limits):
            self.stop_reason = None  # a handler has raised the limit that was reached
            if self._requests.terminate_flag == AT_LIMIT:
                self._requests.withdraw_flag(TERMINATE_RUN)

    def _adopt_limits(self) -> None:
        """Adopts limits that were written to the state.

        A new epoch length may end the epoch within a window. The window is then dropped.
        """
        position, optimizer_step = self._position, self._optimizer_step
        now = ShownLimits.read(self.state)
        self._check_can_end(now)
        if position.adopt_limits(now):
            optimizer_step.drop_window()
            position.mark_boundary(position.place.progress)
        self._show_lengths()

    def _check_can_end(self, now: ShownLimits) -> None:
        """Raises a ValueError for an epoch without data and without a length."""
        if now.epoch_length is None and not self._has_data:
            raise ValueError(
                "`trainer.state.epoch_length` must be a number if the trainer has no data, got "
                "None: an epoch would never end; write a number, or give data"
            )

    def _show_limits(self) -> None:
        """Writes the limits and the length of the present epoch to the state."""
        position, state = self._position, self.state
        shown = ShownLimits(**vars(position.limits), epoch_length=position.length_of_epoch)
        # The next run treats a difference between the state and ``shown`` as a limit that a user
        # has written. So one statement writes to both: Ctrl-C does not come in between.
        state.max_epochs, state.max_iters, state.max_steps, state.epoch_length = position.shown = (
            shown
        )
        self._show_lengths()

    def _show_lengths(self) -> None:
        """Writes the length of the present epoch to ``state.epoch_length``.

        If the run has ``max_steps`` and no ``max_epochs``, also sets ``state.max_epochs`` to the
        number of epochs that the steps need. Values that handlers have written are kept, for
        ``_check_limits`` to adopt.
        """
        state, position = self.state, self._position
        shown, length, max_epochs = position.shown, state.epoch_length, state.max_epochs
        if length == shown.epoch_length:
            length = position.epoch_length_or_estimate
            shown = shown._replace(epoch_length=length)
        epochs_needed = position.epochs_needed
        if epochs_needed is not None and max_epochs == shown.max_epochs:
            max_epochs = epochs_needed
            shown = shown._replace(max_epochs=max_epochs)
        # One statement, as in ``_show_limits``.
        state.epoch_length, state.max_epochs, position.shown = length, max_epochs, shown

    def _switch_data(self) -> None:
        """Switches to data that a handler has assigned to ``state.dataloader``, as in Ignite."""
        data = self._assigned_data
        if data is not None:
            self.set_data(data)

    @property
    def _assigned_data(self) -> Any:
        """The data that was assigned to ``state.dataloader``; None if nothing was assigned."""
        data, feed = self.state.dataloader, self._position.feed
        return None if feed is not None and data is feed.loader else data

    # The ways to end a run

    def _stop_at_limit(self, limit: str) -> None:
        """Requests the end of the run because ``limit`` is reached.

        If a request to end the run is active already, that request gives the ``stop_reason``.
        """
        if self._decisions is not None and not self._requests.terminate_flag:
            # No step boundary follows, so this is the last chance to obey a request of another
            # rank.
            self._decisions.exchange_now()
        reason = self._requests.stop.reason if self._requests.terminate_flag else limit
        self.stop_reason = self.stop_reason or reason
        if not self._requests.terminate_flag:
            self._requests.set_flag(TERMINATE_RUN, AT_LIMIT)

    def _end_short_epoch(self) -> None:
        """Ends an epoch whose data have ended earlier than expected, and drops the open window."""
        self._optimizer_step.drop_window()
        progress = self._position.place.progress
        self._position.mark_boundary(progress._replace(is_full=True))

    def _handle_requests(self) -> Generator[State, None, None]:
        """Obeys the active requests. Yields the state if the run is to be interrupted.

        Raises:
            RunTerminated: the run is to end; the scopes within on_loop have been left.
            EpochTerminated: the epoch is to end; the scopes within on_epoch have been left.
        """
        requests = self._requests.active_flags
        if TERMINATE_RUN in requests:
            self.hook_channels.scopes.leave(self._loop_depth)
            raise RunTerminated
        if TERMINATE_EPOCH in requests:
            self.hook_channels.scopes.leave(self._epoch_depth)
            raise EpochTerminated
        if INTERRUPT_RUN in requests:
            self._fire(Events.INTERRUPT)
            self._requests.withdraw_flag(INTERRUPT_RUN)
            feed = self._present_feed
            try:
                # While the run is suspended, outer scopes may be left before this scope.
                with deactivated(feed.loader, out_of_order=True):
                    yield self.state
            except GeneratorExit:
                # The interrupted run is closed, and will not continue. But ``deactivated`` has made
                # the loader active again.
                feed.deactivate()
                raise
            if feed is not self._position.feed:  # set_data() was called during the interruption
                feed.deactivate()

    def _end_terminated_run(self, reason: str) -> None:
        """Ends the run before its limit. Fires TERMINATE if STARTED has been fired."""
        self.stop_reason = reason
        self._note_ended_by()
        if self._loop_depth:
            self.hook_channels.scopes.leave(self._loop_depth)
            self._fire(Events.TERMINATE)

    def _note_ended_by(self) -> None:
        """Notes which handler or function has ended the run, if any.

        A later ``terminate()``, by a handler of TERMINATE or COMPLETED, does not change the note.
        """
        self._position.ended_by, self._is_end_noted = self.ended_by, True

    def _handle_failure(self, error: BaseException) -> bool:
        """Fires EXCEPTION_RAISED and closes the open contexts.

        Returns:
            Whether a handler of EXCEPTION_RAISED, or a context, has handled the failure.
        """
        self.stop_reason = "exception"
        self.logger.error("Engine run is terminating due to exception: %s", error)
        if not has_handlers(self, Events.EXCEPTION_RAISED):
            return self._unwind_until_terminated(error)
        try:
            # All scopes are still open here, so that handlers see the state at the failure.
            self._fire(Events.EXCEPTION_RAISED, error)
        except BaseException as raised:
            if self._unwind_until_terminated(raised):
                return True
            raise
        is_stopped = self._unwind_until_terminated(error)
        return is_stopped or self.hook_channels.scopes.later_failure is None

    def _unwind_until_terminated(self, error: BaseException) -> bool:
        """Closes the open contexts until one handles the failure by calling ``terminate()``.

        Returns:
            Whether a context has handled the failure. If so, the run has ended as if it had been
            terminated.
        """
        # A call of ``terminate()`` before the failure does not count.
        scopes, self.should_terminate = self.hook_channels.scopes, False
        for is_caught in scopes.unwind(error, depth=1):
            if is_caught and self.should_terminate and scopes.later_failure is None:
                reason = self.stop_reason if self.stop_reason != "exception" else None
                self._requests.activate_own()
                self._end_terminated_run(reason or self._requests.stop.reason)
                if self._loop_depth:  # COMPLETED follows STARTED only
                    self._complete_run()
                return True
            self.should_terminate = False
        return False

    def _roll_back_to_boundary(self) -> None:
        """Sets counters and data back to the last step boundary, and drops the open window.

        Also undoes the temporary changes of the run. If an exception breaks off this method, the
        next run calls the method again.
        """
        if self._is_rolled_back:
            return
        position, optimizer_step = self._position, self._optimizer_step
        has_failed = self.stop_reason == "exception"
        self._changes.undo_all(self._outer_changes)
        self._reset_firing()
        self._due.remove_returned()
        optimizer_step.count_step(self.state)  # Ctrl-C may have come before the step was counted
        drops_window = not position.is_at_boundary
        if has_failed and drops_window:
            # The next run repeats the batches of the window, and handlers then defer their
            # callbacks again.
            self._due.clear()
            optimizer_step.scheduler.forget_validation()
        is_leaving = has_failed and not drops_window and self.is_leaving_epoch
        self._pending_epoch_termination = (
            is_leaving and self._requests.active_flags[TERMINATE_EPOCH]
        )
        # Each run counts as failed at first. The last statement of ``run`` corrects this, unless
        # Ctrl-C comes before that statement.
        position.roll_back(has_failed=True)
        self.state.iteration = position.place.progress.iteration
        self._running_metrics.end_run(self.state.iteration, drops_window=drops_window)
        optimizer_step.drop_window()
        self._present_feed.roll_back_to(position.place.position)
        self._present_feed.close()
        self._changes.undo_all(self._outer_changes)  # closing the feed may have made changes
        self._is_rolled_back = True

    def _call_deferred(self) -> None:
        """Calls the deferred callbacks, and at the end of the run those of ``call_at_end``."""
        self._call_deferred_or_stop()
        self._check_limits()
        is_over = bool(self._requests.terminate_flag or self._position.limit_reached)
        if is_over and self._position.is_at_boundary and not self.is_leaving_epoch:
            for callback in tuple(self._end_callbacks):
                callback()
            self._check_limits()  # a handler of CHECKPOINT_SAVED may have written another limit

    def _finish_deferred(self) -> None:
        """Calls the callbacks that are still due when a run has ended without a failure.

        Handlers of COMPLETED, or of events in a dropped window, have deferred these callbacks.
        """
        if self.stop_reason != "exception":
            self._call_deferred_or_stop()
            self._due.entries = []

    def _call_deferred_or_stop(self) -> None:
        """Calls the deferred callbacks; stops the run if a validation among them is broken off."""
        try:
            self._due.call()
        except ValidationStopped:
            self._stop_broken_off()

    def _stop_broken_off(self) -> None:
        """Stops the run after a validation was broken off.

        The validation and the callbacks after it are set aside for the next run. Each *stop
        monitor*, a source of requests to stop such as a signal, ends the run and defers a save. The
        deferred save is then made.
        """
        self._due.break_off()
        for monitor in stop_monitors(self):
            monitor.obey()
        self._due.call()

    # The interface for handlers, which is typed in ``core/training_engine.py``

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds a handler, as Ignite does.

        If a handler of this package cannot work on a trainer or at this event, the error is raised
        now, and not during the run.
        """
        if isinstance(handler, Handler):
            handler.check(self, event_name)
        warn_of_gradient_logger(handler, event_name)
        accelerator = self._optimizer_step.accelerator
        warn_of_lr_finder(handler, event_name, accelerator.gradient_accumulation_steps)
        return super().add_event_handler(event_name, handler, *args, **kwargs)

    def _update_handlers(self) -> None:
        """Renews the engine's copy of Ignite's table, and notes which handlers update metrics."""
        self._running_metrics.forget_updates()
        super()._update_handlers()

    def _make_callback(
        self, name: Any, function: Any, args: Any, kwargs: Any
    ) -> Callable[..., Any]:
        """Returns the function to call for a handler.

        If the handler updates a metric, the function also notes the iteration of each call.
        """
        handler = super()._make_callback(name, function, args, kwargs)
        if name != Events.ITERATION_COMPLETED.name or bound_object(function, Metric) is None:
            return handler
        iteration = self._position.place.progress.iteration
        return self._running_metrics.tracked((function, args), handler, iteration)

    def _metrics(self) -> Iterator[Metric]:
        """Yields the attached metrics of Ignite. The same metric may be yielded several times."""
        for function in handlers_of(self):
            metric = bound_object(function, Metric)
            if metric is not None:
                yield metric

    @property
    def feed(self) -> DataFeed | None:
        """The source of the batches, with the position in the data; None before there is data."""
        return self._position.feed

    @property
    def place(self) -> Place:
        """The counters and the position in the data, which handlers cannot change."""
        return self._position.place

    @property
    def batches_left(self) -> int | None:
        """The number of batches up to the next known end, including the present batch.

        The next end is the end of the data, of the epoch or of the run, whichever comes first. None
        if no end is known.
        """
        return self._position.batches_left

    def _count_batches_left(self) -> int | None:
        """Returns ``batches_left``. The optimizer step calls this only if it needs the number."""
        return self._position.batches_left

    @property
    def is_between_steps(self) -> bool:
        """True if no window is open and no batch has been read for the next window."""
        return self._position.is_between_steps

    def terminate(self, skip_completed: bool = False, *, resumable: bool = False) -> None:
        """Ends the run after the present event; an open window is dropped.

        With several processes the run ends on all of them, at the same step boundary.

        In this process, the next ``run()`` continues the run. In another process, which resumes
        from a checkpoint, ``run()`` continues the run only if all requests to end the run were
        resumable. Otherwise the run counts as finished, and ``run()`` trains nothing. Requests of
        Ignite's ``TimeLimit`` and of signals are resumable, and those of ``EarlyStopping`` are not.

        Args:
            skip_completed: whether COMPLETED is left out, as in Ignite.
            resumable: whether a process that resumes from a checkpoint continues the run. Pass True
                if, for example, a limit of time or cost is reached.
        """
        if self.should_terminate in (False, AT_LIMIT):
            # No handler's request is set now: all requests in ``requested_stops`` were withdrawn.
            self._requests.requested_stops.clear()
        # Ignite's handlers pass no reason, so the calling handler is found by its frame.
        self._requests.requested_stops.append(
            StopRequest.from_frame(sys._getframe(1), resumable=resumable)
        )
        super().terminate(skip_completed)

    def stop_on_all_ranks(self, reason: str) -> None:
        """Ends the run after the present event. Another process can resume the run.

        All ranks must call this at the same place.

        Args:
            reason: the ``stop_reason`` of the run.
        """
        self.stop_reason = reason
        self._requests.stop_on_all_ranks_with(StopRequest(reason, is_final=False))

    def request_on_all_ranks(
        self, asked: Callable[[], Any], obey: Callable[[Sequence[Any]], None]
    ) -> Callable[[], None]:
        """Lets any rank request that ``obey`` is called on all ranks, at the same step boundary.

        The ranks exchange their requests at step boundaries and at the end of each epoch. There,
        ``obey`` is called before the deferred callbacks. With one process this method must not be
        called.

        Args:
            asked: returns the request of this rank, an object that can be pickled, or None for no
                request. The function is called in each exchange.
            obey: is called if any rank has a request. The argument is the sequence of the requests
                by rank, with None for a rank without a request.

        Returns:
            A function that removes the two functions again.
        """
        assert self._decisions is not None
        return self._decisions.add(Question(asked, obey))

    @property
    def is_ending(self) -> bool:
        """True if the run ends, on all ranks, at the next place where the loop handles requests."""
        return bool(self._requests.terminate_flag)

    @property
    def ended_by(self) -> str | None:
        """The name of the handler or function that finished the run before its limit.

        None if a limit or a resumable request ended the run.
        """
        if self._is_end_noted or self._position.ended_by is not None:
            return self._position.ended_by
        is_asked, stop = self._requests.terminate_flag not in (False, AT_LIMIT), self._requests.stop
        return stop.caller if is_asked and stop.is_final else None

    def finish_resumed_run(self, ended_by: str) -> None:
        """Marks the resumed run as finished, so that the next ``run()`` trains nothing.

        Args:
            ended_by: the name of the handler or function that finished the run.
        """
        self._position.ended_by = ended_by

    @property
    def is_broken_off(self) -> bool:
        """True if callbacks are set aside for the next run, because a stop broke off a validation.

        Also True after the load of a checkpoint with due callbacks, until the resumed run has
        deferred these callbacks.
        """
        return self._due.is_broken_off

    @property
    def is_leaving_epoch(self) -> bool:
        """True if a ``terminate_epoch()`` is about to end the present epoch.

        Deferred callbacks are then called after EPOCH_COMPLETED.
        """
        return (
            TERMINATE_EPOCH in self._requests.active_flags
            and self._position.place.progress.batches > 0
        )

    def defer(self, callback: Callable[[], None], turn: Turn = Turn.OTHERS) -> None:
        """Calls ``callback`` once, when all handlers of the present event have returned.

        Deferred callbacks are called after STARTED, and after STEP_COMPLETED (or
        ITERATION_COMPLETED if no step was committed). At the last batch of an epoch they are called
        after EPOCH_COMPLETED instead. If a callback fails after a step, the next run calls it
        again.

        Args:
            callback: is called without arguments. A callback that is deferred already is not added
                again.
            turn: the place of the callback in the order of the calls. Deferred callbacks with an
                earlier turn are called earlier.
        """
        self._due.add(callback, turn)

    def cancel(self, callback: Callable[[], None]) -> None:
        """Removes a deferred callback, if it has not been called yet."""
        self._due.drop(callback)

    def call_at_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Registers ``callback``, to be called at the end of each run.

        The callback is called at the last step boundary, after the deferred callbacks and before
        TERMINATE and COMPLETED. So if the callback saves a checkpoint, the handlers of these two
        events cannot change what is saved. A run with a higher limit saves the same state at this
        boundary. A run that fails, or that ends between two step boundaries, does not call the
        callback.

        Returns:
            A function that removes the callback again.
        """
        self._end_callbacks.append(callback)
        return lambda: self._end_callbacks.remove(callback)

    def call_on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Registers ``callback``, to be called when a resumed run restores its random generators.

        The callback can restore state that handlers of STARTED and EPOCH_STARTED reset, metrics for
        example. The callback is also called if the resumed run is finished already and ``run``
        trains nothing.

        Returns:
            A function that removes the callback again.
        """
        return self._position.call_on_resume(callback)

    def position_state_dict(self) -> dict[str, Any]:
        """Returns the position of the run as numbers, lists and tensors, to be saved.

        The position consists of the counters, the limits, the position in the data with the order
        of its samples, and the states of the random generators. Model, optimizer and scheduler are
        not included. Call this at a step boundary, when all callbacks have returned. The key
        "validation" has the number of validations, and "due" has the numbers of the callbacks that
        are due (see ``due_numbers``).
        """
        # After a failure the callbacks that were not called are still due, and are saved as such.
        has_failed = self.stop_reason == "exception"
        is_due = self._due.broken_off or (self._due.entries and has_failed)
        due = self._due.on_resume or (due_numbers(self) if is_due else {})
        return {**self._position.state_dict(), "validation": self.state.validation, "due": due}

    def load_position_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue at the saved position, on data built in the same way.

        The random generators are restored when the handlers of STARTED have returned. If the saved
        position is in the middle of an epoch, the generators are restored again after the handlers
        of EPOCH_STARTED, which were called once already, when the epoch began. If the saved
        position is the end of a finished run, the next ``run`` trains only if a higher limit is
        passed; otherwise it returns at once.
        """
        self._prepare_to_load("load_position_state_dict()")
        self._position.load_state_dict(state_dict)
        self._due.on_resume = state_dict.get("due", {})
        self._show_limits()
        state, progress = self.state, self._position.place.progress
        state.iteration, state.epoch = progress.iteration, progress.epochs
        state.optimizer_step = self._position.steps
        state.validation = state_dict["validation"]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a state in Ignite's format. The next run continues after the saved iteration.

        The state does not contain the order of shuffled data. So the run gets the same batches only
        if the sampler derives the order from the number of the pass, as Accelerate's seedable
        sampler does.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"`state_dict` must be a mapping as state_dict() returns it, got a "
                f"{type(state_dict).__name__}: read it from its file first, with torch.load"
            )
        self._prepare_to_load("load_state_dict()")
        super().load_state_dict({"optimizer_step": 0, **state_dict})
        self.state.max_steps = None
        self._move_to_state()

    def state_dict(self) -> Any:
        """Returns the state in Ignite's format.

        If the epoch length is not known, the length of the last whole pass over the data is used.
        """
        state, position = super().state_dict(), self._position
        length = state["epoch_length"]
        if length is not None and length == position.shown.epoch_length:
            # The state may show an estimate; ``length_of_epoch`` is None if the length is unknown.
            length = position.length_of_epoch
        state["epoch_length"] = length or position.length_of_pass
        return state

    def _move_to_state(self) -> None:
        """Makes the next run continue from the counters and limits that the state has."""
        state, position = self.state, self._position
        epochs, length = state.epoch, state.epoch_length or 0
        if state.iteration < epochs * length:
            epochs -= 1  # in the middle of an epoch the state also counts the present epoch
        progress = Progress(state.iteration, epochs, state.iteration - epochs * length)
        shown = ShownLimits.read(state)
        position.move_to(progress, state.optimizer_step, shown.limits, state.epoch_length)
        position.shown = shown

    def _prepare_to_load(self, what: str) -> None:
        """Closes the run if it is interrupted, and drops the deferred callbacks.

        Raises:
            RuntimeError: the trainer is running.
        """
        self._check_not_running(what, "call terminate() first, and load after run()")
        self._close_interrupted()
        self._due.clear()
        self._running_metrics.forget()

    def _check_not_running(self, what: str, remedy: str) -> None:
        """Raises a RuntimeError if the trainer is running."""
        if is_running(self):
            raise RuntimeError(f"{what} must not be called while the trainer runs: {remedy}")

    @property
    def _present_feed(self) -> DataFeed:
        """The feed, which always exists during a run."""
        assert self._position.feed is not None
        return self._position.feed


class _RollBackScope(AbstractContextManager[None, None]):
    """The outermost scope of a run, which rolls back when the run ends.

    The scope is a class and not a generator with ``contextmanager``, because a suspended generator
    would stay open as long as user code keeps a traceback that contains it.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop

    def __exit__(self, error_type: Any, error: BaseException | None, traceback: Any) -> None:
        # GeneratorExit is no failure: an interrupted run is closed and will not continue.
        if error is not None and not isinstance(error, GeneratorExit):
            self._loop.stop_reason = "exception"
        # When Python exits, an interrupted run may be closed after torch is gone.
        if not sys.is_finalizing():
            self._loop._roll_back_to_boundary()


def _do_nothing() -> None:
    """Does nothing."""


def _fire_nothing(event: Any) -> None:
    """Replaces ``_fire`` for the GET_BATCH events, which Ignite does not fire without data."""
