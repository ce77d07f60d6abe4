"""The loop of a trainer: the drawing in ``events.py`` as code, and every way out of it."""

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

from ignite_hooks.core.due_on_resume import due_of
from ignite_hooks.core.due_on_resume import make_due
from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.engine import handlers_of
from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.engine import owner_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.core.restoring import Changes
from ignite_hooks.core.stop_requests import BrokenOff
from ignite_hooks.core.stop_requests import stop_watches
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.data.active_loader import set_aside
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.processes.decisions import Decisions
from ignite_hooks.processes.decisions import Question
from ignite_hooks.processes.host_group import has_host_group
from ignite_hooks.trainer.due_list import DueList
from ignite_hooks.trainer.ignite_handlers import warn_of_gradient_logger
from ignite_hooks.trainer.ignite_handlers import warn_of_lr_finder
from ignite_hooks.trainer.limits import Shown
from ignite_hooks.trainer.requests import AT_LIMIT
from ignite_hooks.trainer.requests import EPOCH
from ignite_hooks.trainer.requests import INTERRUPT
from ignite_hooks.trainer.requests import RUN
from ignite_hooks.trainer.requests import Request
from ignite_hooks.trainer.requests import Requests
from ignite_hooks.trainer.requests import Stop
from ignite_hooks.trainer.requests import Terminate
from ignite_hooks.trainer.requests import TerminateEpoch
from ignite_hooks.trainer.run_position import RunPosition
from ignite_hooks.trainer.running_metrics import RunningMetrics

__all__ = ["TrainingLoop"]


class TrainingLoop(QuickEngine):
    """Runs epochs over a ``DataFeed``, steered by a ``RunPosition``.

    However a run ends, ``_stand_at_boundary`` is called: the open window is dropped, the loader is
    no longer Accelerate's active one, and counters and data stand at the last step boundary, where
    the next run continues.

    Requests (``terminate()``, ``terminate_epoch()``, ``interrupt()``) are obeyed where Ignite obeys
    them: after the events that can make one. What is open in the loop or the epoch is left first,
    and then ``Terminate`` or ``TerminateEpoch`` takes the way out of the generators. A subclass
    must leave the three flags as they are here: the loop looks at the set of those that are set.

    With several processes a request of one rank is obeyed by all of them at the same step boundary
    (``Decisions``): at most ``agree_every`` + 1 windows later, or at the end of the epoch.
    """

    should_terminate = Request()
    should_terminate_single_epoch = Request()
    should_interrupt = Request()

    state: Any

    def __init__(
        self,
        process_function: Callable[["TrainingLoop", Any], Any],
        optimizer_step: OptimizerStep,
        agree_every: int = 1,
    ) -> None:
        is_alone = not has_host_group(optimizer_step.accelerator)
        self._requests = Requests(is_alone=is_alone)
        self._decisions: Decisions | None = None
        if not is_alone:
            self._decisions = Decisions(optimizer_step.accelerator, agree_every)
            self._decisions.add(Question(self._requests.to_tell, self._requests.obey))
        self._is_over = False  # no request changes who ended the run
        self._running_metrics = RunningMetrics(self._metrics, optimizer_step.signals)
        self._position = RunPosition(optimizer_step)
        super().__init__(process_function)  # type: ignore[arg-type]  # called with no other
        self._own_state = self.state
        self._position.unannounced = self.due_until_fired(Events.EPOCH_COMPLETED)
        self._changes = Changes()
        self._changes_around: tuple[Callable[[], None], ...] = ()  # by scopes that surround the run
        self._is_standing = True  # at a step boundary, with nothing left to be undone
        self._leaves_epoch: Any = False  # the request to, of a run that has failed
        self.stop_reason: str | None = None
        self.hook_channels = Channels(self)
        self._optimizer_step = optimizer_step
        self._due = DueList()
        self._at_end: list[Callable[[], None]] = []
        self._after_first_step: list[Callable[[], None]] = []  # of this run
        self._batches: Iterator[Any] = iter(())
        self._has_data = False
        self._depth_in_loop = self._depth_in_epoch = 0
        self._started = 0.0

    # The loop

    def _run_loop(self) -> Generator[State, None, State]:
        """The whole run, with what surrounds it; yields where the run is interrupted."""
        self.stop_reason = None
        self._requests.clear()
        if self._decisions is not None:
            self._decisions.begin()
        self._position.ended_by, self._is_over = None, False
        self._position.enter_run()
        self._running_metrics.enter(self._position.place.progress.iteration)
        self._changes_around = self._changes.present
        self._is_standing = False
        self._batches = iter(self._present_feed)
        with self.hook_channels.scopes as scopes:
            scopes.enter(_Unwinding(self))
            try:
                yield from self._loop()
            except GeneratorExit:  # interrupted, and never continued
                raise
            except BaseException as error:
                if not self._is_handled(error):
                    raise
        return self.state  # type: ignore[no-any-return]

    def _loop(self) -> Generator[State, None, None]:
        self._clear_times()
        self._started = time.time()
        self._depth_in_loop = self._depth_in_epoch = 0  # not in it yet
        with self.hook_channels.on_loop:
            self._depth_in_loop = self._depth_in_epoch = len(self.hook_channels.scopes.open)
            try:
                yield from self._epochs()
                self.stop_reason = self._position.limit_reached
                self._settle_end()
            except Terminate:
                self._terminate(self.stop_reason or self._requests.stop.reason)
            except TerminateEpoch:
                raise RuntimeError(
                    "terminate_epoch() must be called within an epoch, it was called at STARTED or "
                    "EPOCH_STARTED: call it at ITERATION_STARTED"
                ) from None
            self._complete()

    def _epochs(self) -> Generator[State, None, None]:
        position = self._position
        self._update_handlers()  # Ignite's profilers write to the table of handlers when attached …
        self._fire_to_profilers(Events.STARTED)  # … and at this event
        self._running_metrics.restore(self, is_last_time=position.place.progress.batches == 0)
        if self._decisions is not None:
            self._decisions.settle_now()
        self._look()
        if not (self.is_broken_off and self._requests.of_run == AT_LIMIT):  # that is not all yet
            yield from self._obey()
        self._finish_boundary()
        if self.is_leaving_epoch and not self._requests.of_run:
            self._cut_epoch()
        elif not position.place.progress.is_full:  # else the epoch completes first
            yield from self._obey()
        position.restore_random_state(is_last_time=position.place.progress.batches == 0)
        self._call_due_on_resume()
        while position.limit_reached is None or position.place.progress.is_full:
            self.state.epoch = position.place.progress.epochs + 1
            self._present_feed.look()
            self._show_lengths()
            started = time.time()
            with self.hook_channels.on_epoch:
                self._depth_in_epoch = len(self.hook_channels.scopes.open)
                if not position.has_epoch_to_complete:
                    self._fire(Events.EPOCH_STARTED)
                    self._follow_data()
                    self._look()
                    self._note_frozen()
                    if not position.place.progress.is_full:  # else the epoch completes first
                        if position.limit_reached is not None:  # now, not after the first batch
                            self._stop_at(position.limit_reached)
                        yield from self._obey()
                        if EPOCH in self._requests.asked:  # other ranks may not know of it
                            raise TerminateEpoch
                position.restore_random_state(is_last_time=True)
                self._running_metrics.restore(self, is_last_time=True)
                yield from self._iterations()
                self.state.times[Events.EPOCH_COMPLETED.name] = time.time() - started
                self._complete_epoch()
            self._requests.withdraw(EPOCH)
            self.state.times[Events.EPOCH_COMPLETED.name] = took = time.time() - started
            self.logger.info("Epoch[%d] complete, %.3f s.", self.state.epoch, took)
            yield from self._obey()
            self._look()  # it may have been interrupted meanwhile

    def _finish_boundary(self) -> None:
        """Does what the run before left undone as it failed after a step, and validates at start.

        If that was the last batch of an epoch, validation and save wait for the epoch to complete.
        """
        position = self._position
        if self._leaves_epoch and not position.place.progress.is_full:
            self._requests.set(EPOCH, self._leaves_epoch)
        self._due.resume()
        if self._optimizer_step.scheduler.is_validated:
            self.defer(self._move_scheduler, Turn.SCHEDULER)
        self._optimizer_step.complete_step(self)
        self._look()
        if not position.place.progress.is_full:
            self._call_due()
            if self._due.on_resume and self._requests.of_run == AT_LIMIT:  # no epoch is to come
                position.restore_random_state(is_last_time=True)
                if position.place.progress.batches:
                    self.state.epoch = position.place.progress.epochs + 1
                self._call_due_on_resume()

    def _call_due_on_resume(self) -> None:
        """Does what a stop broke off in the run that is resumed, when all of it is restored.

        If that was the last batch of an epoch, it waits for the epoch to complete.
        """
        if self._due.on_resume and self._position.is_restored:
            make_due(self, self._due.on_resume)
            self._due.on_resume = {}
            if not self._position.place.progress.is_full:
                self._call_due()

    def _iterations(self) -> Generator[State, None, None]:
        state, fire, channels = self.state, self._fire, self.hook_channels
        position, optimizer_step = self._position, self._optimizer_step
        requests, decisions, window = self._requests.obeyed, self._decisions, optimizer_step.window
        fire_of_data = fire if self._has_data else _fire_nothing
        optimizer_step.signals.is_stale = True  # loader workers may start, with a handler
        try:
            if self._due.on_resume:
                self._call_due_on_resume()
                if not position.place.progress.is_full:
                    yield from self._obey()
            while not position.place.progress.is_full:
                state.batch = state.model_outputs = state.loss = None
                state.step_committed = False
                fire_of_data(Events.GET_BATCH_STARTED)
                if requests:
                    yield from self._obey()
                try:
                    state.batch = next(self._batches)
                except StopIteration:
                    if position.has_lost_batches:
                        self._cut_short()
                        return
                    yield from self._enter_next_pass(fire_of_data)
                state.output = None
                fire_of_data(Events.GET_BATCH_COMPLETED)
                if requests:
                    yield from self._obey()
                progress = position.count_batch()
                state.iteration = progress.iteration
                if progress.batches == 1:
                    self._show_lengths()
                optimizer_step.take_batch(self._count_batches_left)
                if window.count == 1 < window.size:
                    self._running_metrics.open_window(progress.iteration - 1)
                is_closing = window.is_closing
                with channels.on_step:
                    fire(Events.ITERATION_STARTED)
                    if requests:
                        yield from self._obey()
                    with channels.on_batch:
                        state.output = self._process(self, state.batch)
                    is_committed = is_closing and optimizer_step.close_window(self)
                    fire(Events.ITERATION_COMPLETED)
                    if is_closing:
                        optimizer_step.zero_grad()
                    if is_committed:
                        optimizer_step.complete_step(self)
                        if self._after_first_step:
                            self._after_first_step.pop()()
                    if is_closing and decisions is not None:
                        decisions.settle()
                    self._look()
                    is_last = position.place.progress.is_full
                    is_due = self._due.entries or requests
                    if is_due and not (is_last or self.is_leaving_epoch):
                        self._call_due()
                    if is_closing and decisions is not None and not (is_last or requests):
                        decisions.ask()
                if is_last and self._requests.of_run:
                    return  # the epoch completes first
                if requests:
                    yield from self._obey()
                    self._look()  # it was interrupted
        except TerminateEpoch:
            self._cut_epoch()

    def _cut_epoch(self) -> None:
        """Ends the present epoch here: its open window and the rest of the pass are dropped."""
        batches = self._position.place.progress.batches
        self._optimizer_step.drop_window()
        self._present_feed.next_pass()
        self._batches = iter(self._present_feed)
        self._position.cut_epoch(self._requests.obeyed[EPOCH])
        self._fire(Events.TERMINATE_SINGLE_EPOCH, iter_counter=batches)

    def _enter_next_pass(self, fire: Callable[[Any], None]) -> Generator[State, None, None]:
        """Gets the first batch of a new pass over the data, as one has ended."""
        ended = self._batches
        fire(Events.DATALOADER_STOP_ITERATION)
        self._follow_data()
        yield from self._obey()
        if self._batches is ended:  # no handler has set other data
            self._batches = iter(self._present_feed)
        self._optimizer_step.signals.is_stale = True  # loader workers may start
        self.state.batch = next(self._batches)

    def _complete_epoch(self) -> None:
        self._present_feed.finish()
        progress = self._position.place.progress
        self._show_lengths()
        is_announced = self._position.cut != "skip_epoch_completed"
        self._position.complete_epoch()
        if is_announced:
            if self._optimizer_step.scheduler.end_epoch(progress.iteration - progress.batches):
                self.defer(self._move_scheduler, Turn.SCHEDULER)
            self._announce_epoch()
        self._position.unannounced.clear()  # done already, if there was a handler
        if self._decisions is None:
            self._call_due()
            return
        self._decisions.settle_now()
        has_due = bool(self._due.entries)
        self._call_due()
        if has_due and not self._requests.of_run:  # a handler of CHECKPOINT_SAVED may have asked
            self._decisions.settle_now()
            if self._requests.of_run:
                self._call_due()

    def _announce_epoch(self) -> None:
        """Fires EPOCH_COMPLETED; if the validation in it is broken off, the epoch stays open.

        The other handlers, which see the results, are called when the validation is made up.
        """
        (before,) = self._position.unannounced
        put_back = self._running_metrics.noted() if stop_watches(self) else _nothing
        try:
            self._fire(Events.EPOCH_COMPLETED)
            return
        except BrokenOff:
            self._position.reopen_epoch(before)
        put_back()  # they have computed
        self._requests.withdraw(EPOCH)  # the position knows it
        self._stop_broken_off()
        self.hook_channels.scopes.leave(self._depth_in_loop)
        raise Terminate

    def _move_scheduler(self) -> None:
        self._optimizer_step.scheduler.after_validation(self)
        self._optimizer_step.scheduler.after_epoch(self)

    def _complete(self) -> None:
        times = self.state.times
        times[Events.COMPLETED.name] = time.time() - self._started
        if self._requests.of_run != "skip_completed":
            self._fire_to_profilers(Events.COMPLETED)  # where they take back what they wrote
            times[Events.COMPLETED.name] = time.time() - self._started
        self.logger.info("Engine run finished (%s).", self.stop_reason)

    def _note_frozen(self) -> None:
        """Called when the handlers of EPOCH_STARTED have returned."""

    # Limits and lengths, which handlers read and write on the state

    def _look(self) -> None:
        """Adopts the limits and the length that handlers wrote, and ends the run at a limit."""
        state, position = self.state, self._position
        if state is not self._own_state:
            raise RuntimeError(
                "`trainer.state` must stay the object that it is while the trainer runs, and it "
                "was replaced: write to its attributes, or replace it between two runs"
            )
        now = (state.max_epochs, state.max_iters, state.max_steps, state.epoch_length)
        if now != position.shown:
            self._take_over()
        limit = position.limit_reached
        if limit is not None:
            progress = position.place.progress
            # At the end of an epoch only `max_steps` says so by TERMINATE; the others are expected.
            if progress.batches and (limit == "max_steps" or not progress.is_full):
                self._stop_at(limit)
        elif self._requests.obeyed and self.stop_reason in vars(position.limits):
            self.stop_reason = None  # it was reached, and now lies further
            if self._requests.of_run == AT_LIMIT:
                self._requests.withdraw(RUN)

    def _take_over(self) -> None:
        position, optimizer_step = self._position, self._optimizer_step
        now = Shown.on(self.state)
        self._check_can_end(now)
        if position.take_over(now):
            optimizer_step.drop_window()
            position.mark_boundary(position.place.progress)
        self._show_lengths()

    def _check_can_end(self, now: Shown) -> None:
        if now.epoch_length is None and not self._has_data:
            raise ValueError(
                "`trainer.state.epoch_length` must stay a number without data, got None: an epoch "
                "would never end"
            )

    def _show_limits(self) -> None:
        """Shows the limits and the length of the present epoch on the state."""
        position, state = self._position, self.state
        shown = Shown(**vars(position.limits), epoch_length=position.length_of_epoch)
        # One line: what is shown and not noted would be taken for what a user has written.
        state.max_epochs, state.max_iters, state.max_steps, state.epoch_length = position.shown = (
            shown
        )
        self._show_lengths()

    def _show_lengths(self) -> None:
        """Shows the length of the present epoch, and the epochs that ``max_steps`` alone takes.

        What a handler has just written there stays, for the next look.
        """
        state, position = self.state, self._position
        shown, length, max_epochs = position.shown, state.epoch_length, state.max_epochs
        if length == shown.epoch_length:
            length = position.length_to_show
            shown = shown._replace(epoch_length=length)
        epochs_to_take = position.epochs_to_take
        if epochs_to_take is not None and max_epochs == shown.max_epochs:
            max_epochs = epochs_to_take
            shown = shown._replace(max_epochs=max_epochs)
        # One line, as above.
        state.epoch_length, state.max_epochs, position.shown = length, max_epochs, shown

    def _follow_data(self) -> None:
        """Switches to data that a handler has assigned to ``state.dataloader``, as in Ignite."""
        data = self._data_on_state
        if data is not None:
            self.set_data(data)

    @property
    def _data_on_state(self) -> Any:
        """The data assigned to ``state.dataloader``; None if it shows the present loader."""
        data, feed = self.state.dataloader, self._position.feed
        return None if feed is not None and data is feed.loader else data

    # The ways out

    def _stop_at(self, limit: str) -> None:
        if self._decisions is not None and not self._requests.of_run:
            self._decisions.settle_now()  # no boundary is to come at which it could be obeyed
        asked = self._requests.stop.reason if self._requests.of_run else limit
        self.stop_reason = self.stop_reason or asked
        if not self._requests.of_run:  # else a handler may have set it to "skip_completed"
            self._requests.set(RUN, AT_LIMIT)

    def _cut_short(self) -> None:
        """Completes an epoch whose pass has fewer batches left than it had when it was begun."""
        self._optimizer_step.drop_window()
        progress = self._position.place.progress
        self._position.mark_boundary(progress._replace(is_full=True))

    def _obey(self) -> Generator[State, None, None]:
        requests = self._requests.obeyed
        if RUN in requests:
            self.hook_channels.scopes.leave(self._depth_in_loop)
            raise Terminate
        if EPOCH in requests:
            self.hook_channels.scopes.leave(self._depth_in_epoch)
            raise TerminateEpoch
        if INTERRUPT in requests:
            self._fire(Events.INTERRUPT)
            self._requests.withdraw(INTERRUPT)
            feed = self._present_feed
            try:
                with set_aside(feed.loader, alone=True):  # the scopes of a run are left meanwhile
                    yield self.state
            except GeneratorExit:  # abandoned: the feed may have ended before this one
                feed.deactivate()
                raise
            if feed is not self._position.feed:  # set_data, meanwhile
                feed.deactivate()

    def _terminate(self, reason: str) -> None:
        """Ends the run before its limit, with TERMINATE if STARTED has been fired."""
        self.stop_reason = reason
        self._settle_end()
        if self._depth_in_loop:
            self.hook_channels.scopes.leave(self._depth_in_loop)
            self._fire(Events.TERMINATE)

    def _settle_end(self) -> None:
        """Notes who ended the run: ``terminate()`` at TERMINATE or COMPLETED has no effect."""
        self._position.ended_by, self._is_over = self.ended_by, True

    def _is_handled(self, error: BaseException) -> bool:
        """Returns whether handlers of EXCEPTION_RAISED, or an open context, handled a failure."""
        self.stop_reason = "exception"
        self.logger.error("Engine run is terminating due to exception: %s", error)
        if not has_handlers(self, Events.EXCEPTION_RAISED):
            return self._is_stopped_by_context(error)
        try:
            self._fire(Events.EXCEPTION_RAISED, error)
        except BaseException as raised:
            if self._is_stopped_by_context(raised):
                return True
            raise
        is_stopped = self._is_stopped_by_context(error)
        return is_stopped or self.hook_channels.scopes.later_failure is None

    def _is_stopped_by_context(self, error: BaseException) -> bool:
        """Closes open contexts until one calls ``terminate()`` to end the failure cleanly."""
        scopes, self.should_terminate = self.hook_channels.scopes, False
        for is_caught in scopes.unwind(error, depth=1):
            if is_caught and self.should_terminate and scopes.later_failure is None:
                reason = self.stop_reason if self.stop_reason != "exception" else None
                self._requests.obey_own()
                self._terminate(reason or self._requests.stop.reason)
                if self._depth_in_loop:  # COMPLETED too comes only after STARTED
                    self._complete()
                return True
            self.should_terminate = False
        return False

    def _stand_at_boundary(self) -> None:
        """Leaves nothing behind, and stands at the last step boundary.

        What is due after the step of that boundary stays so if the run has failed. A call that
        broke off may be repeated: the next run does so.
        """
        if self._is_standing:
            return
        position, optimizer_step = self._position, self._optimizer_step
        has_failed = self.stop_reason == "exception"
        self._changes.undo(self._changes_around)
        self._forget_firing()
        self._due.settle()
        optimizer_step.count_step(self.state)
        drops_window = not position.is_at_boundary
        if has_failed and drops_window:
            self._due.clear()  # its batches are given again, and their handlers ask again
            optimizer_step.scheduler.forget_validation()
        is_leaving = has_failed and not drops_window and self.is_leaving_epoch
        self._leaves_epoch = is_leaving and self._requests.obeyed[EPOCH]
        position.roll_back(has_failed=True)  # ``run`` has the last word
        self.state.iteration = position.place.progress.iteration
        self._running_metrics.leave(self.state.iteration, drops_window=drops_window)
        optimizer_step.drop_window()
        self._present_feed.go_back_to(position.place.position)
        self._present_feed.close()
        self._changes.undo(self._changes_around)  # what the end of the feed has not
        self._is_standing = True

    def _call_due(self) -> None:
        """Calls what is due, and what is to be called where the run ends if it ends here."""
        self._try_due()
        self._look()
        is_over = bool(self._requests.of_run or self._position.limit_reached)
        if is_over and self._position.is_at_boundary and not self.is_leaving_epoch:
            for callback in tuple(self._at_end):
                callback()
            self._look()  # a handler of CHECKPOINT_SAVED may have written another limit

    def _finish_due(self) -> None:
        """Does what was asked for at COMPLETED, or in a window that was dropped at the end."""
        if self.stop_reason != "exception":
            self._try_due()
            self._due.entries = []

    def _try_due(self) -> None:
        try:
            self._due.call()
        except BrokenOff:
            self._stop_broken_off()

    def _stop_broken_off(self) -> None:
        """Stops, now that a validation was broken off for that: it stays due, and what follows."""
        self._due.break_off()
        for watch in stop_watches(self):
            watch.obey()
        self._due.call()

    # What handlers ask for: ``core/training_engine.py``

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds a handler; one of this package that cannot work here raises an error now."""
        if isinstance(handler, Handler):
            handler.check(self, event_name)
        warn_of_gradient_logger(handler, event_name)
        accelerator = self._optimizer_step.accelerator
        warn_of_lr_finder(handler, event_name, accelerator.gradient_accumulation_steps)
        return super().add_event_handler(event_name, handler, *args, **kwargs)

    def _update_handlers(self) -> None:
        self._running_metrics.forget_updates()
        super()._update_handlers()

    def _heard_as(self, name: Any, function: Any, args: Any, kwargs: Any) -> Callable[..., Any]:
        handler = super()._heard_as(name, function, args, kwargs)
        if name != Events.ITERATION_COMPLETED.name or owner_of(function, Metric) is None:
            return handler
        iteration = self._position.place.progress.iteration
        return self._running_metrics.counted((function, args), handler, iteration)

    def _metrics(self) -> Iterator[Metric]:
        """Ignite's metrics that are attached, some of them several times."""
        for function in handlers_of(self):
            metric = owner_of(function, Metric)
            if metric is not None:
                yield metric

    @property
    def feed(self) -> DataFeed | None:
        """The source of the batches, with the position in the data; None without data yet."""
        return self._position.feed

    @property
    def place(self) -> Place:
        """The counters and the position in the data. Handlers cannot change it."""
        return self._position.place

    @property
    def batches_left(self) -> int | None:
        """Batches from the present one on before data, epoch or run ends; None if not known."""
        return self._position.batches_left

    def _count_batches_left(self) -> int | None:
        return self._position.batches_left

    @property
    def is_between_steps(self) -> bool:
        """True if no window is open and no batch is on its way: the place is a step boundary."""
        return self._position.is_between_steps

    def terminate(self, skip_completed: bool = False, *, resumable: bool = False) -> None:
        """Ends the run after the present event; an open window is dropped.

        With several processes the run ends on all of them, at the same step boundary.

        The next ``run()`` of this process continues the run. Another process that resumes from its
        checkpoints does so only if all that asked for the end are resumable, as Ignite's
        ``TimeLimit`` and signals are: a run that ``EarlyStopping`` ended is finished.

        Args:
            skip_completed: as in Ignite: whether COMPLETED is left out.
            resumable: whether a process that resumes from a checkpoint continues the run, for a
                clock or a budget, or finds it finished.
        """
        if self.should_terminate in (False, AT_LIMIT):
            self._requests.asked_stops.clear()  # a request was withdrawn
        self._requests.asked_stops.append(Stop.called_from(sys._getframe(1), resumable=resumable))
        super().terminate(skip_completed)

    def stop_on_all_ranks(self, reason: str) -> None:
        """Ends the run after the present event, resumably. All ranks call it at the same place.

        Args:
            reason: the ``stop_reason``.
        """
        self.stop_reason = reason
        self._requests.end_with(Stop(reason, is_final=False))

    def ask_ranks(
        self, asked: Callable[[], Any], obey: Callable[[Sequence[Any]], None]
    ) -> Callable[[], None]:
        """Has ``obey`` called on all ranks, at the same step boundary, if one of them asks for it.

        It is called before what is due at that boundary, and at the ends of epochs. Only with
        several processes.

        Args:
            asked: returns what this rank asks for, which can be pickled, or None. It is called at
                each boundary.
            obey: is given what each rank has asked for, in their order.

        Returns:
            What undoes this.
        """
        assert self._decisions is not None
        return self._decisions.add(Question(asked, obey))

    @property
    def is_ending(self) -> bool:
        """True if all ranks know that the run ends at the next chance."""
        return bool(self._requests.of_run)

    @property
    def ended_by(self) -> str | None:
        """Names what finished the run before its limit; None for a limit or a resumable end."""
        if self._is_over or self._position.ended_by is not None:
            return self._position.ended_by
        is_asked, stop = self._requests.of_run not in (False, AT_LIMIT), self._requests.stop
        return stop.caller if is_asked and stop.is_final else None

    def finish_resumed_run(self, ended_by: str) -> None:
        """Leaves the next run nothing to do: ``ended_by`` has finished the one it resumes."""
        self._position.ended_by = ended_by

    @property
    def is_broken_off(self) -> bool:
        """True if a stop broke off what is due at this step boundary: it is made up later."""
        return self._due.is_broken_off

    @property
    def is_leaving_epoch(self) -> bool:
        """True if the rest of the epoch is about to be skipped; deferred callbacks wait for it."""
        return EPOCH in self._requests.obeyed and self._position.place.progress.batches > 0

    def defer(self, callback: Callable[[], None], turn: Turn = Turn.OTHERS) -> None:
        """Calls ``callback`` once, when all handlers of the present event have returned.

        That is after STARTED, after STEP_COMPLETED (or ITERATION_COMPLETED, if no step was made)
        or, from the last batch of an epoch on, after EPOCH_COMPLETED. A callback that fails after
        a step is called again by the next run.
        """
        self._due.add(callback, turn)

    def cancel(self, callback: Callable[[], None]) -> None:
        """Takes off a deferred callback, if it is still to be called."""
        self._due.drop(callback)

    def call_at_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` where a run ends: at its last step boundary, after deferred callbacks.

        That is before TERMINATE and COMPLETED, whose handlers a longer run would not call here. It
        is not called by a run that ends between two boundaries, or by a failure.

        Returns:
            What undoes this.
        """
        self._at_end.append(callback)
        return lambda: self._at_end.remove(callback)

    def call_on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` in the next run, if it resumes, where random generators are restored.

        That is for what handlers of STARTED and EPOCH_STARTED reset, metrics say. A finished run
        that is resumed calls it too.

        Returns:
            What undoes this.
        """
        return self._position.call_on_resume(callback)

    def position_state_dict(self) -> dict[str, Any]:
        """Returns the position of the run: numbers, lists and tensors, for ``torch.load``.

        That is the counters, the limits, the position in the data with the order of its samples,
        and the random generators. To be called at a step boundary, when all callbacks have
        returned. Model, optimizer and scheduler have states of their own.
        """
        has_failed = self.stop_reason == "exception"  # then what it left undone is due
        is_due = self._due.broken_off or (self._due.entries and has_failed)
        due = self._due.on_resume or (due_of(self) if is_due else {})
        return {**self._position.state_dict(), "validation": self.state.validation, "due": due}

    def load_position_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue there, on data that is built as the data was built then.

        The random generators are restored when the handlers of STARTED have returned, and in the
        middle of an epoch once more after those of EPOCH_STARTED: neither was called there in the
        run that is resumed. A run that was finished has nothing left to do: the next ``run``
        returns at once, unless a limit is given that lies further.
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
        """Loads Ignite's state: the next run continues at that iteration and batch.

        Shuffled data has the order it had only if its sampler draws it from the number of the
        pass, as Accelerate's seedable sampler does.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                "`state_dict` must be a mapping, as state_dict() returns it, got "
                f"{type(state_dict).__name__}: read it from its file first, with torch.load"
            )
        self._prepare_to_load("load_state_dict()")
        super().load_state_dict({"optimizer_step": 0, **state_dict})
        self.state.max_steps = None
        self._move_to_state()

    def state_dict(self) -> Any:
        """As Ignite's. Where the length of this epoch is not known, it is that of the last one."""
        state, position = super().state_dict(), self._position
        length = state["epoch_length"]
        if length is not None and length == position.shown.epoch_length:
            length = position.length_of_epoch  # without one it is only promised
        state["epoch_length"] = length or position.length_of_pass
        return state

    def _move_to_state(self) -> None:
        """Makes the next run continue at the counters of the state, within its limits."""
        state, position = self.state, self._position
        epochs, length = state.epoch, state.epoch_length or 0
        if state.iteration < epochs * length:
            epochs -= 1  # of a copy made in the middle of an epoch, which counts that one
        progress = Progress(state.iteration, epochs, state.iteration - epochs * length)
        shown = Shown.on(state)
        position.move_to(progress, state.optimizer_step, shown.limits, state.epoch_length)
        position.shown = shown

    def _prepare_to_load(self, what: str) -> None:
        self._check_not_running(what, "call terminate() first, and load after run()")
        self._close_interrupted()
        self._due.clear()
        self._running_metrics.forget()

    def _check_not_running(self, what: str, remedy: str) -> None:
        if is_running(self):
            raise RuntimeError(f"{what} must not be called while the trainer runs: {remedy}")

    @property
    def _present_feed(self) -> DataFeed:
        assert self._position.feed is not None
        return self._position.feed


class _Unwinding(AbstractContextManager[None, None]):
    """The outermost scope of a run. Not a generator, which a traceback could keep until later."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None and not isinstance(error, GeneratorExit):  # of a run that is abandoned
            self._loop.stop_reason = "exception"
        if not sys.is_finalizing():  # with an interrupted run; torch may be gone already
            self._loop._stand_at_boundary()


def _nothing() -> None:
    """Does nothing."""


def _fire_nothing(event: Any) -> None:
    """Fires nothing: without data Ignite fires no events of the data."""
