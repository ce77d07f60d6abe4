"""The loop of events.py in code: Ignite's, with its edges made safe."""

import sys
import time
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.engine import has_handlers
from ignite_hooks.core.handler import Handler
from ignite_hooks.trainer.iterating import IteratingEngine
from ignite_hooks.trainer.iterating import Terminate
from ignite_hooks.trainer.iterating import TerminateEpoch

if TYPE_CHECKING:
    from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["TrainingLoop"]


class TrainingLoop(IteratingEngine):
    """Runs epochs over a ``DataFeed``. What a handler writes to the state does not steer it.

    Every way out leads through ``_unwinding``: the open window is dropped, the loader is no longer
    Accelerate's active one, and counters and data stand at the last step boundary, where the next
    run goes on.
    """

    def __init__(
        self, process_function: Callable[[Engine, Any], Any], optimizer_step: "OptimizerStep"
    ) -> None:
        super().__init__(process_function, optimizer_step)
        self._started = 0.0

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Ignite; a handler of this package that can not work here says so now."""
        if isinstance(handler, Handler):
            handler.check(self, event_name)
        return super().add_event_handler(event_name, handler, *args, **kwargs)

    def _run_all(self) -> Generator[Any, None, Any]:
        self.stop_reason = None
        self._has_drawn_since = False
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
            except Terminate:
                self._terminate(self.stop_reason or "terminate")
            except TerminateEpoch:
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
        self._take_up(is_last_time=self._place.progress.batches == 0)
        while self._limit_reached() is None:
            self.state.epoch = self._place.progress.epochs + 1
            self._show_max_epochs()
            started = time.time()
            with self.hook_channels.on_epoch:
                self._depth_in_epoch = len(self.hook_channels.scopes.open)
                self._fire_event(Events.EPOCH_STARTED)
                yield from self._obey()
                self._take_up(is_last_time=True)
                yield from self._iterations()
                self.state.times[Events.EPOCH_COMPLETED.name] = time.time() - started
                self._complete_epoch()
            self.should_terminate_single_epoch = False
            self.state.times[Events.EPOCH_COMPLETED.name] = took = time.time() - started
            self.logger.info("Epoch[%d] complete, %.3f s.", self.state.epoch, took)
            yield from self._obey()

    def _terminate(self, reason: str) -> None:
        """Ends the run before its limit, with TERMINATE if STARTED has been."""
        self.stop_reason = reason
        if self._depth_in_loop:
            self.hook_channels.scopes.leave(self._depth_in_loop)
            self._fire_event(Events.TERMINATE)

    def _complete(self) -> None:
        times = self.state.times
        times[Events.COMPLETED.name] = time.time() - self._started
        if self.should_terminate != "skip_completed":
            self._fire_event(Events.COMPLETED)
            self._listen()  # where profilers take back what they wrote
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
                self._terminate("terminate")
                if self._depth_in_loop:  # COMPLETED too comes only after STARTED
                    self._complete()
                return True
            self.should_terminate = False
        return False

    def _complete_epoch(self) -> None:
        progress = self._place.progress
        self._feed.finish()
        if self._epoch_length is None and progress.is_full:
            self.state.epoch_length = self._passed_length = progress.batches
        self._stand_at(progress.with_epoch())
        if self.should_terminate_single_epoch != "skip_epoch_completed":
            self._fire_event(Events.EPOCH_COMPLETED)
        self._do_postponed(is_over=self._limit_reached() is not None)

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
            if not sys.is_finalizing():  # with an interrupted run; torch may be gone already
                self._go_back()
                self._postponed.clear()
                self._optimizer_step.drop_window()
                self._feed.go_back_to(self._place.position)
                self._feed.close()
