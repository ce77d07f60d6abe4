"""The loop of events.py in code: Ignite's, with its edges made safe."""

import time
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.active_loader import set_aside
from ignite_hooks.channels import Channels
from ignite_hooks.counting import CountingEngine
from ignite_hooks.engine import has_handlers
from ignite_hooks.handlers.base import Handler
from ignite_hooks.postponed import Postponed

if TYPE_CHECKING:
    from ignite_hooks.handlers.optimizer_step import OptimizerStep

__all__ = ["TrainingLoop"]


class _Terminate(Exception):
    """The run ends."""


class _TerminateEpoch(Exception):
    """The epoch ends."""


class TrainingLoop(CountingEngine):
    """Runs epochs over a ``DataFeed``. What a handler writes to the state does not steer it.

    Every way out leads through ``_unwinding``: the open window is dropped, the loader is no longer
    Accelerate's active one, and counters and data stand at the last step boundary, where the next
    run goes on.
    """

    def __init__(
        self, process_function: Callable[[Engine, Any], Any], optimizer_step: "OptimizerStep"
    ) -> None:
        super().__init__(process_function, optimizer_step)
        self.stop_reason: str | None = None
        self.hook_channels = Channels(self)
        self._postponed = Postponed()
        self._started = 0.0
        self._depth_in_loop = self._depth_in_epoch = 0
        self._batches: Iterator[Any] = iter(())
        self._has_data = False

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Ignite; a handler of this package that can not work here says so now."""
        if isinstance(handler, Handler):
            handler.check(self, event_name)
        return super().add_event_handler(event_name, handler, *args, **kwargs)

    def postpone(self, act: Callable[[], None], turn: int = 0) -> None:
        """Has ``act`` called once when all handlers of this moment have returned.

        That is after STARTED, after ITERATION_COMPLETED, or, from the last batch of an epoch on,
        after EPOCH_COMPLETED. What has a smaller ``turn`` comes first.
        """
        self._postponed.add(act, turn)

    def _run_all(self) -> Generator[Any, None, Any]:
        self.stop_reason = None
        self.should_terminate = self.should_terminate_single_epoch = self.should_interrupt = False
        self._stand_at(self._place.progress)
        self._batches = iter(self._feed)
        with self.hook_channels.scopes as scopes:
            scopes.enter(self._unwinding())
            try:
                yield from self._loop()
            except GeneratorExit:  # interrupted, and never gone on with
                raise
            except BaseException as error:
                if not self._is_dealt_with(error):
                    raise
        return self.state

    def _loop(self) -> Generator[Any, None, None]:
        self._init_timers(self.state)
        self._started = time.time()
        self._depth_in_loop = self._depth_in_epoch = 0  # not in it yet
        with self.hook_channels.on_loop:
            self._depth_in_loop = self._depth_in_epoch = len(self.hook_channels.scopes.open)
            try:
                yield from self._epochs()
                self.stop_reason = self._limit_reached()
            except _Terminate:
                self._terminate(self.stop_reason or "terminate")
            except _TerminateEpoch:
                raise RuntimeError(
                    "terminate_epoch() must be called within an epoch, it was called at STARTED or "
                    "EPOCH_STARTED: call it at ITERATION_STARTED"
                ) from None
            self._complete()

    def _epochs(self) -> Generator[Any, None, None]:
        self.logger.info("Engine run starting with %s.", self._limits)
        self._listen()  # Ignite's profilers write to the table of handlers when attached …
        self._fire_event(Events.STARTED)
        self._listen()  # … and at this event
        yield from self._obey()
        self._postponed.do()
        while self._limit_reached() is None:
            self.state.epoch = self._place.progress.epochs + 1
            self._show_max_epochs()
            started = time.time()
            with self.hook_channels.on_epoch:
                self._depth_in_epoch = len(self.hook_channels.scopes.open)
                self._fire_event(Events.EPOCH_STARTED)
                yield from self._obey()
                yield from self._iterations()
                self.state.times[Events.EPOCH_COMPLETED.name] = time.time() - started
                self._complete_epoch()
            self.should_terminate_single_epoch = False
            self.state.times[Events.EPOCH_COMPLETED.name] = took = time.time() - started
            self.logger.info("Epoch[%d] complete, %.3f s.", self.state.epoch, took)
            yield from self._obey()

    def _stop(self) -> None:
        self.stop_reason = "terminate"
        if self._depth_in_loop:  # else STARTED has not been either
            self.hook_channels.scopes.leave(self._depth_in_loop)
            self._terminate("terminate")
            self._complete()

    def _terminate(self, reason: str) -> None:
        self.stop_reason = reason
        self._fire_event(Events.TERMINATE)

    def _complete(self) -> None:
        times = self.state.times
        times[Events.COMPLETED.name] = time.time() - self._started
        if self.should_terminate != "skip_completed":
            self._fire_event(Events.COMPLETED)
            times[Events.COMPLETED.name] = time.time() - self._started
        self.logger.info("Engine run finished (%s).", self.stop_reason)

    def _is_dealt_with(self, error: BaseException) -> bool:
        """Whether handlers of EXCEPTION_RAISED or an open context made an end of a failure."""
        self.stop_reason = "exception"
        self.logger.error("Engine run is terminating due to exception: %s", error)
        if not has_handlers(self, Events.EXCEPTION_RAISED):
            return self._is_stopped_by_context(error)
        try:
            self._fire_event(Events.EXCEPTION_RAISED, error)
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
                self._stop()
                return True
            self.should_terminate = False
        return False

    def _iterations(self) -> Generator[Any, None, None]:
        state, fire, channels = self.state, self._fire_event, self.hook_channels
        fire_of_data = fire if self._has_data else _silent
        try:
            while not self._place.progress.is_full:
                yield from self._fetch(fire_of_data)
                self._count_batch()
                with channels.on_step:
                    fire(Events.ITERATION_STARTED)
                    if self._is_signalled():
                        yield from self._obey()
                    with channels.on_batch:
                        state.output = self._process_function(self, state.batch)
                    fire(Events.ITERATION_COMPLETED)
                    is_last = self._place.progress.is_full
                    self._stop_at_limit(is_last)
                    if self._postponed and not is_last:
                        self._postponed.do()
                if is_last and self.should_terminate:
                    return  # the epoch completes first
                if self._is_signalled():
                    yield from self._obey()
        except _TerminateEpoch:
            fire(Events.TERMINATE_SINGLE_EPOCH, iter_counter=self._place.progress.batches)
            self._optimizer_step.drop_window()
            self._feed.next_pass()
            self._batches = iter(self._feed)

    def _fetch(self, fire: Callable[[Any], None]) -> Generator[Any, None, None]:
        """Gets a batch, from a new pass over the data when one has ended."""
        state = self.state
        state.batch = state.model_outputs = state.loss = None
        state.step_committed = False
        fire(Events.GET_BATCH_STARTED)
        if self._is_signalled():
            yield from self._obey()
        try:
            state.batch = next(self._batches)
        except StopIteration:
            ended = self._batches
            fire(Events.DATALOADER_STOP_ITERATION)
            yield from self._obey()
            if self._batches is ended:  # no handler has set other data
                self._batches = iter(self._feed)
            state.batch = next(self._batches)
        state.output = None
        fire(Events.GET_BATCH_COMPLETED)
        if self._is_signalled():
            yield from self._obey()

    def _complete_epoch(self) -> None:
        progress = self._place.progress
        self._feed.finish()
        if self._epoch_length is None and progress.is_full:
            self.state.epoch_length = self._passed_length = progress.batches
        self._stand_at(progress.with_epoch())
        if self.should_terminate_single_epoch != "skip_epoch_completed":
            self._fire_event(Events.EPOCH_COMPLETED)
        self._postponed.do()

    def _stop_at_limit(self, is_last: bool) -> None:
        """Ends the run when it is time; at the end of an epoch ``max_iters`` needs no TERMINATE."""
        limit = self._limit_reached()
        if limit == "max_steps" or (limit == "max_iters" and not is_last):
            self.stop_reason = self.stop_reason or ("terminate" if self.should_terminate else limit)
            self.should_terminate = self.should_terminate or True

    def _is_signalled(self) -> bool:
        return bool(
            self.should_terminate or self.should_terminate_single_epoch or self.should_interrupt
        )

    def _obey(self) -> Generator[Any, None, None]:
        if self.should_terminate:
            self.hook_channels.scopes.leave(self._depth_in_loop)
            raise _Terminate
        if self.should_terminate_single_epoch:
            self.hook_channels.scopes.leave(self._depth_in_epoch)
            raise _TerminateEpoch
        if self.should_interrupt:
            self._fire_event(Events.INTERRUPT)
            self.should_interrupt = False
            feed = self._feed
            with set_aside(feed.loader):
                yield self.state
            if feed is not self._feed:  # set_data, meanwhile
                feed.deactivate()

    @contextmanager
    def _unwinding(self) -> Iterator[None]:
        """Leaves nothing behind, and stands at the last step boundary."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, GeneratorExit):  # of an interrupted run that is given up
                self.stop_reason = "exception"
            raise
        finally:
            self._go_back()
            self._postponed.clear()
            self._optimizer_step.drop_window()
            self._feed.go_back_to(self._place.position)
            self._feed.close()


def _silent(event: Any) -> None:
    """Without data Ignite fires no events of the data."""
