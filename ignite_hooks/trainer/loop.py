"""The loop of a trainer: the drawing in ``events.py`` as code, and every way out of it."""

import sys
import time
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

from ignite.engine import Events
from ignite.engine import State

from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.data.active_loader import set_aside
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.trainer.gradient_loggers import warn_of_gradient_logger
from ignite_hooks.trainer.run_position import Limits
from ignite_hooks.trainer.run_position import RunPosition

__all__ = ["TrainingLoop"]


class Terminate(Exception):
    """Ends the run."""


class TerminateEpoch(Exception):
    """Ends the epoch."""


class Request:
    """An attribute for one of Ignite's three flags.

    Ignite's methods and any handler set it as on any engine; the engine keeps those that are set in
    ``_requests``. So the loop, four times in an iteration, asks for all three at once: whether
    ``_requests`` is empty.
    """

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, engine: "TrainingLoop | None", owner: type[Any] | None = None) -> Any:
        return self if engine is None else engine._requests.get(self._name, False)

    def __set__(self, engine: "TrainingLoop", value: Any) -> None:
        if value:
            engine._requests[self._name] = value
        else:
            self.__delete__(engine)

    def __delete__(self, engine: "TrainingLoop") -> None:
        engine._requests.pop(self._name, None)


class DueList:
    """Callbacks that are due when all handlers of an event have returned, each to be called once.

    One that fails stays due, with those after it: the next run calls them first.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[Turn, Callable[[], None]]] = []

    def add(self, callback: Callable[[], None], turn: Turn) -> None:
        """Adds ``callback`` unless it is there already; an earlier turn is called earlier."""
        if all(callback != other for _, other in self.entries):
            self.entries.append((turn, callback))

    def drop(self, callback: Callable[[], None]) -> None:
        """Drops one."""
        self.entries = [entry for entry in self.entries if entry[1] != callback]

    def clear(self) -> None:
        """Drops all of them."""
        self.entries = []

    def call(self) -> None:
        """Calls what is due, and what becomes due meanwhile; who asks again waits."""
        called: list[Callable[[], None]] = []
        while waiting := [entry for entry in self.entries if entry[1] not in called]:
            entry = min(waiting, key=lambda each: each[0])
            called.append(entry[1])
            self.entries.remove(entry)
            try:
                entry[1]()
            except BaseException:
                self.add(entry[1], entry[0])
                raise


class TrainingLoop(QuickEngine):
    """Runs epochs over a ``DataFeed``, steered by a ``RunPosition``.

    Every way out leads through ``_unwinding``: the open window is dropped, the loader is no longer
    Accelerate's active one, and counters and data stand at the last step boundary, where the next
    run continues.

    Requests (``terminate()``, ``terminate_epoch()``, ``interrupt()``) are obeyed where Ignite obeys
    them: after the events that can make one. What is open in the loop or the epoch is left first,
    and then ``Terminate`` or ``TerminateEpoch`` takes the way out of the generators. A subclass
    must leave the three flags as they are here: the loop looks at the set of those that are set.
    """

    should_terminate = Request()
    should_terminate_single_epoch = Request()
    should_interrupt = Request()

    state: Any

    def __init__(
        self,
        process_function: Callable[["TrainingLoop", Any], Any],
        optimizer_step: OptimizerStep,
    ) -> None:
        self._requests: dict[str, Any] = {}
        super().__init__(process_function)  # type: ignore[arg-type]  # called with no other
        self._position = RunPosition(optimizer_step)
        self.stop_reason: str | None = None
        self.hook_channels = Channels(self)
        self._optimizer_step = optimizer_step
        self._due = DueList()
        self._at_end: list[Callable[[], None]] = []
        self._batches: Iterator[Any] = iter(())
        self._has_data = False
        self._depth_in_loop = self._depth_in_epoch = 0
        self._started = 0.0

    # The loop

    def _run_loop(self) -> Generator[State, None, State]:
        """The whole run, with what surrounds it; yields where the run is interrupted."""
        self.stop_reason = None
        self.should_terminate = self.should_terminate_single_epoch = self.should_interrupt = False
        self._position.enter_run()
        self._batches = iter(self._present_feed)
        with self.hook_channels.scopes as scopes:
            scopes.enter(self._unwinding())
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
            except Terminate:
                self._terminate(self.stop_reason or "terminate")
            except TerminateEpoch:
                raise RuntimeError(
                    "terminate_epoch() must be called within an epoch, it was called at STARTED or "
                    "EPOCH_STARTED: call it at ITERATION_STARTED"
                ) from None
            self._complete()

    def _epochs(self) -> Generator[State, None, None]:
        position = self._position
        self.logger.info("Engine run starting with %s.", position.limits)
        self._update_handlers()  # Ignite's profilers write to the table of handlers when attached …
        self._fire_to_profilers(Events.STARTED)  # … and at this event
        yield from self._obey()
        self._finish_boundary()
        if self.is_leaving_epoch and not self.should_terminate:
            self._cut_epoch()
        elif not position.place.progress.is_full:  # else the epoch completes first
            yield from self._obey()
        position.restore_random_state(is_last_time=position.place.progress.batches == 0)
        while position.limit_reached is None or position.place.progress.is_full:
            self.state.epoch = position.place.progress.epochs + 1
            self._show_max_epochs()
            started = time.time()
            with self.hook_channels.on_epoch:
                self._depth_in_epoch = len(self.hook_channels.scopes.open)
                if not position.has_epoch_to_complete:
                    self._fire(Events.EPOCH_STARTED)
                    yield from self._obey()
                position.restore_random_state(is_last_time=True)
                yield from self._iterations()
                self.state.times[Events.EPOCH_COMPLETED.name] = time.time() - started
                self._complete_epoch()
            self.should_terminate_single_epoch = False
            self.state.times[Events.EPOCH_COMPLETED.name] = took = time.time() - started
            self.logger.info("Epoch[%d] complete, %.3f s.", self.state.epoch, took)
            yield from self._obey()

    def _finish_boundary(self) -> None:
        """Does what the run before left undone as it failed after a step, and validates at start.

        If that was the last batch of an epoch, validation and save wait for the epoch to complete.
        """
        self._optimizer_step.complete_step(self)
        position = self._position
        progress, limit = position.place.progress, position.limit_reached
        if limit is not None and progress.batches:
            self._stop_at(limit, progress.is_full)
        if not progress.is_full:
            self._call_due(is_over=limit is not None)

    def _iterations(self) -> Generator[State, None, None]:
        state, fire, channels = self.state, self._fire, self.hook_channels
        position, requests, optimizer_step = self._position, self._requests, self._optimizer_step
        window = optimizer_step.window
        fire_of_data = fire if self._has_data else _fire_nothing
        try:
            while not position.place.progress.is_full:
                state.batch = state.model_outputs = state.loss = None
                state.step_committed = False
                fire_of_data(Events.GET_BATCH_STARTED)
                if requests:
                    yield from self._obey()
                try:
                    state.batch = next(self._batches)
                except StopIteration:
                    yield from self._enter_next_pass(fire_of_data)
                state.output = None
                fire_of_data(Events.GET_BATCH_COMPLETED)
                if requests:
                    yield from self._obey()
                progress = position.count_batch()
                state.iteration = progress.iteration
                optimizer_step.take_batch(self._count_batches_left)
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
                    is_last = progress.is_full
                    limit = position.limit_reached
                    if limit is not None:
                        self._stop_at(limit, is_last)
                    is_due = self._due.entries or requests
                    if is_due and not (is_last or self.is_leaving_epoch):
                        self._call_due(is_over=False)
                if is_last and self.should_terminate:
                    return  # the epoch completes first
                if requests:
                    yield from self._obey()
        except TerminateEpoch:
            self._cut_epoch()

    def _cut_epoch(self) -> None:
        """Ends the present epoch here: its open window and the rest of the pass are dropped."""
        batches = self._position.place.progress.batches
        self._optimizer_step.drop_window()
        self._present_feed.next_pass()
        self._batches = iter(self._present_feed)
        self._position.cut_epoch()
        self._fire(Events.TERMINATE_SINGLE_EPOCH, iter_counter=batches)

    def _enter_next_pass(self, fire: Callable[[Any], None]) -> Generator[State, None, None]:
        """Gets the first batch of a new pass over the data, as one has ended."""
        ended = self._batches
        fire(Events.DATALOADER_STOP_ITERATION)
        yield from self._obey()
        if self._batches is ended:  # no handler has set other data
            self._batches = iter(self._present_feed)
        self.state.batch = next(self._batches)

    def _complete_epoch(self) -> None:
        self._present_feed.finish()
        progress = self._position.place.progress
        length_of_pass = self._position.complete_epoch()
        if length_of_pass is not None:
            self.state.epoch_length = length_of_pass
        if self.should_terminate_single_epoch != "skip_epoch_completed":
            if self._optimizer_step.scheduler.end_epoch(progress.iteration - progress.batches):
                self.defer(self._move_scheduler, Turn.SCHEDULER)
            self._fire(Events.EPOCH_COMPLETED)
        self._call_due(is_over=self._position.limit_reached is not None)

    def _move_scheduler(self) -> None:
        self._optimizer_step.scheduler.after_epoch(self)

    def _complete(self) -> None:
        times = self.state.times
        times[Events.COMPLETED.name] = time.time() - self._started
        if self.should_terminate != "skip_completed":
            self._fire_to_profilers(Events.COMPLETED)  # where they take back what they wrote
            times[Events.COMPLETED.name] = time.time() - self._started
        self.logger.info("Engine run finished (%s).", self.stop_reason)

    def _show_max_epochs(self) -> None:
        """Shows, with ``max_steps`` alone, the epochs that it takes as far as can be told now."""
        max_epochs = self._position.epochs_to_take
        if max_epochs is not None:
            self.state.max_epochs = max_epochs
            self._position.show_max_epochs(max_epochs)

    # The ways out

    def _stop_at(self, limit: str, is_last: bool) -> None:
        """Ends the run when it is time; at the end of an epoch ``max_iters`` needs no TERMINATE."""
        if limit == "max_steps" or (limit == "max_iters" and not is_last):
            self.stop_reason = self.stop_reason or ("terminate" if self.should_terminate else limit)
            if not self.should_terminate:  # else a handler may have set it to "skip_completed"
                self.should_terminate = True

    def _obey(self) -> Generator[State, None, None]:
        if self.should_terminate:
            self.hook_channels.scopes.leave(self._depth_in_loop)
            raise Terminate
        if self.should_terminate_single_epoch:
            self.hook_channels.scopes.leave(self._depth_in_epoch)
            raise TerminateEpoch
        if self.should_interrupt:
            self._fire(Events.INTERRUPT)
            self.should_interrupt = False
            feed = self._present_feed
            with set_aside(feed.loader):
                yield self.state
            if feed is not self._position.feed:  # set_data, meanwhile
                feed.deactivate()

    def _terminate(self, reason: str) -> None:
        """Ends the run before its limit, with TERMINATE if STARTED has been fired."""
        self.stop_reason = reason
        if self._depth_in_loop:
            self.hook_channels.scopes.leave(self._depth_in_loop)
            self._fire(Events.TERMINATE)

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
                self._terminate("terminate")
                if self._depth_in_loop:  # COMPLETED too comes only after STARTED
                    self._complete()
                return True
            self.should_terminate = False
        return False

    @contextmanager
    def _unwinding(self) -> Iterator[None]:
        """Leaves nothing behind, and stands at the last step boundary.

        What is due after the step of that boundary stays so if the run has failed.
        """
        try:
            yield
        except BaseException as error:
            if not isinstance(error, GeneratorExit):  # of an interrupted run that is abandoned
                self.stop_reason = "exception"
            raise
        finally:
            if not sys.is_finalizing():  # with an interrupted run; torch may be gone already
                self._stand_at_boundary()

    def _stand_at_boundary(self) -> None:
        has_failed = self.stop_reason == "exception"
        if has_failed and not self._position.is_at_boundary:
            self._due.clear()  # its batches are given again, and their handlers ask again
        self._position.roll_back(has_failed=has_failed)
        self.state.iteration = self._position.place.progress.iteration
        self._optimizer_step.drop_window()
        self._present_feed.go_back_to(self._position.place.position)
        self._present_feed.close()

    def _call_due(self, *, is_over: bool) -> None:
        """Calls what is due, and what is to be called where the run ends if it ends here."""
        self._due.call()
        is_over = is_over or bool(self.should_terminate)
        if is_over and self._position.is_at_boundary and not self.is_leaving_epoch:
            for callback in tuple(self._at_end):
                callback()

    def _finish_due(self) -> None:
        """Does what was asked for at COMPLETED, or in a window that was dropped at the end."""
        if not self._position.has_failed:
            self._due.call()
            self._due.clear()

    # What handlers ask for: ``core/training_engine.py``

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds a handler; one of this package that cannot work here raises an error now."""
        if isinstance(handler, Handler):
            handler.check(self, event_name)
        warn_of_gradient_logger(handler, event_name)
        return super().add_event_handler(event_name, handler, *args, **kwargs)

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

    @property
    def is_leaving_epoch(self) -> bool:
        """True if the rest of the epoch is about to be skipped; deferred callbacks wait for it."""
        return bool(self.should_terminate_single_epoch and self._position.place.progress.batches)

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
        return {**self._position.state_dict(), "validation": self.state.validation}

    def load_position_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue there, on data that is built as the data was built then.

        The random generators are restored when the handlers of STARTED have returned, and in the
        middle of an epoch once more after those of EPOCH_STARTED: neither was called there in the
        run that is resumed. A run that was finished has nothing left to do: the next ``run``
        returns at once, unless a limit is given that lies further.
        """
        self._prepare_to_load("load_position_state_dict()")
        self._position.load_state_dict(state_dict)
        self._show_limits()
        state, progress = self.state, self._position.place.progress
        state.iteration, state.epoch = progress.iteration, progress.epochs
        state.epoch_length = self._position.epoch_length
        state.optimizer_step = self._position.steps
        state.validation = state_dict["validation"]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads Ignite's state: the next run continues at that iteration and batch.

        Shuffled data has the order it had only if its sampler draws it from the number of the
        pass, as Accelerate's seedable sampler does.
        """
        self._prepare_to_load("load_state_dict()")
        super().load_state_dict({"optimizer_step": 0, **state_dict})
        state = self.state
        state.max_steps = None
        batches = state.iteration - state.epoch * (state.epoch_length or 0)
        progress = Progress(state.iteration, state.epoch, batches)
        self._position.move_to(progress, state.optimizer_step, Limits.of(state), state.epoch_length)

    def _prepare_to_load(self, what: str) -> None:
        self._check_not_running(what, "call terminate() first, and load after run()")
        self._close_interrupted()
        self._due.clear()

    def _check_not_running(self, what: str, remedy: str) -> None:
        if is_running(self):
            raise RuntimeError(f"{what} must not be called while the trainer runs: {remedy}")

    def _show_limits(self) -> None:
        for name, limit in vars(self._position.limits).items():
            setattr(self.state, name, limit)

    @property
    def _present_feed(self) -> DataFeed:
        assert self._position.feed is not None
        return self._position.feed


def _fire_nothing(event: Any) -> None:
    """Fires nothing: without data Ignite fires no events of the data."""
