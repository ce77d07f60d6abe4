"""The loop of events.py in code: Ignite's, with its edges made safe."""

import time
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.active_loader import set_aside
from ignite_hooks.engine import QuickEngine
from ignite_hooks.engine import has_handlers
from ignite_hooks.handlers.base import Handler
from ignite_hooks.postponed import Postponed
from ignite_hooks.progress import Limits
from ignite_hooks.progress import Place
from ignite_hooks.progress import Progress
from ignite_hooks.scopes import ScopeStack

if TYPE_CHECKING:
    from ignite_hooks.handlers.optimizer_step import OptimizerStep

__all__ = ["TrainingLoop"]


class _Terminate(Exception):
    """The run ends."""


class _TerminateEpoch(Exception):
    """The epoch ends."""


class TrainingLoop(QuickEngine):
    """Runs epochs over a ``DataFeed``. What a handler writes to the state does not steer it.

    Every way out leads through ``_unwinding``: the open window is dropped, the loader is no longer
    Accelerate's active one, and counters and data stand at the last step boundary, where the next
    run goes on.
    """

    state: Any

    def __init__(
        self, process_function: Callable[[Engine, Any], Any], optimizer_step: "OptimizerStep"
    ) -> None:
        super().__init__(process_function)
        self.stop_reason: str | None = None
        self._optimizer_step = optimizer_step
        self._postponed = Postponed()
        self._feed: Any = None  # a DataFeed once there is data
        self._batches: Iterator[Any] = iter(())
        self._place = Place()
        self._boundary = self._place
        self._limits = Limits()
        self._shown = Limits()
        self._epoch_length: int | None = None
        self._passed_length: int | None = None
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

    @property
    def feed(self) -> Any:
        """What the batches come from, and where in the data the trainer is."""
        return self._feed

    def _run_all(self) -> Generator[Any, None, Any]:
        self.stop_reason = None
        self.should_terminate = self.should_terminate_single_epoch = self.should_interrupt = False
        self._stand_at(self._place.progress)
        self._batches = iter(self._feed)
        with ScopeStack() as scopes:
            scopes.enter(self._unwinding())
            try:
                yield from self._epochs()
            except GeneratorExit:  # interrupted, and never gone on with
                raise
            except BaseException as error:
                self.stop_reason = "exception"
                self.logger.error("Engine run is terminating due to exception: %s", error)
                if not has_handlers(self, Events.EXCEPTION_RAISED):
                    raise
                self._fire_event(Events.EXCEPTION_RAISED, error)
        return self.state

    def _epochs(self) -> Generator[Any, None, None]:
        times = self.state.times
        self._init_timers(self.state)
        started = time.time()
        try:
            self.logger.info("Engine run starting with %s.", self._limits)
            self._listen()  # Ignite's profilers write to the table of handlers when attached …
            self._fire_event(Events.STARTED)
            self._listen()  # … and at this event
            yield from self._obey()
            self._postponed.do()
            while self._limit_reached() is None:
                self.state.epoch = self._place.progress.epochs + 1
                self._show_max_epochs()
                epoch_started = time.time()
                self._fire_event(Events.EPOCH_STARTED)
                yield from self._obey()
                yield from self._iterations()
                times[Events.EPOCH_COMPLETED.name] = time.time() - epoch_started
                self._complete_epoch()
                times[Events.EPOCH_COMPLETED.name] = took = time.time() - epoch_started
                self.logger.info("Epoch[%d] complete, %.3f s.", self.state.epoch, took)
                yield from self._obey()
            self.stop_reason = self._limit_reached()
        except _Terminate:
            self.stop_reason = self.stop_reason or "terminate"
            self._fire_event(Events.TERMINATE)
        except _TerminateEpoch:
            raise RuntimeError(
                "terminate_epoch() must be called within an epoch, it was called at STARTED or "
                "EPOCH_STARTED: call it at ITERATION_STARTED"
            ) from None
        times[Events.COMPLETED.name] = time.time() - started
        if self.should_terminate != "skip_completed":
            self._fire_event(Events.COMPLETED)
            times[Events.COMPLETED.name] = time.time() - started
        self.logger.info("Engine run finished (%s).", self.stop_reason)

    def _iterations(self) -> Generator[Any, None, None]:
        state, fire = self.state, self._fire_event
        fire_of_data = fire if self._has_data else _silent
        try:
            while not self._place.progress.is_full:
                state.batch = state.model_outputs = state.loss = None
                fire_of_data(Events.GET_BATCH_STARTED)
                if self._is_signalled():
                    yield from self._obey()
                try:
                    state.batch = next(self._batches)
                except StopIteration:
                    ended = self._batches
                    fire_of_data(Events.DATALOADER_STOP_ITERATION)
                    yield from self._obey()
                    if self._batches is ended:  # no handler has set other data
                        self._batches = iter(self._feed)
                    state.batch = next(self._batches)
                state.output = None
                fire_of_data(Events.GET_BATCH_COMPLETED)
                if self._is_signalled():
                    yield from self._obey()
                self._count_batch()
                fire(Events.ITERATION_STARTED)
                if self._is_signalled():
                    yield from self._obey()
                state.output = self._process_function(self, state.batch)
                fire(Events.ITERATION_COMPLETED)
                is_last = self._place.progress.is_full
                self._stop_at_limit(is_last)
                if is_last and self.should_terminate:
                    return  # the epoch completes first
                if self._postponed and not is_last:
                    self._postponed.do()
                if self._is_signalled():
                    yield from self._obey()
        except _TerminateEpoch:
            fire(Events.TERMINATE_SINGLE_EPOCH, iter_counter=self._place.progress.batches)
            self._optimizer_step.drop_window()
            self._feed.next_pass()
            self._batches = iter(self._feed)

    def _complete_epoch(self) -> None:
        progress = self._place.progress
        self._feed.finish()
        if self._epoch_length is None and progress.is_full:
            self.state.epoch_length = self._passed_length = progress.batches
        self._stand_at(progress.with_epoch())
        if self.should_terminate_single_epoch != "skip_epoch_completed":
            self._fire_event(Events.EPOCH_COMPLETED)
        self.should_terminate_single_epoch = False
        self._postponed.do()

    def _show_max_epochs(self) -> None:
        """With ``max_steps`` alone ``max_epochs`` is what it takes, as far as can be told now."""
        state, limits, step = self.state, self._limits, self._optimizer_step
        length = self._epoch_length or self._passed_length
        if limits.max_steps is not None and limits.max_epochs is None and length is not None:
            window = step.accelerator.gradient_accumulation_steps
            steps_left = limits.max_steps - step.steps
            progress = self._place.progress
            state.max_epochs = progress.epochs_for(steps_left, window, length)
            self._shown = replace(self._shown, max_epochs=state.max_epochs)

    def _count_batch(self) -> None:
        window, place = self._optimizer_step.window, self._place
        if not window.count:
            self._boundary = place
        length = self._epoch_length
        in_epoch = place.progress.batches + 1
        is_last = self._feed.is_last if length is None else in_epoch >= length
        progress = place.progress.with_batch(is_last)
        self._place = Place(progress, self._feed.position, window.taken + 1)
        self.state.iteration = progress.iteration

    def _stand_at(self, progress: Progress) -> None:
        """This is a step boundary: the next run goes on here at the earliest."""
        taken = self._optimizer_step.window.taken
        self._place = self._boundary = Place(progress, self._feed.position, taken)

    @property
    def batches_left(self) -> int | None:
        """How many batches come from the present one on before the data, epoch or run ends."""
        left: int | None = self._feed.batches_left
        if self._epoch_length is not None:
            of_epoch = self._epoch_length - self._place.progress.batches + 1
            left = of_epoch if left is None else min(left, of_epoch)
        if self._limits.max_iters is not None:
            of_run = self._limits.max_iters - self._place.progress.iteration + 1
            left = of_run if left is None else min(left, of_run)
        return left

    def _limit_reached(self) -> str | None:
        return self._limits.reached(self._place.progress, self._optimizer_step.steps)

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
            raise _Terminate
        if self.should_terminate_single_epoch:
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
        finally:
            window, place = self._optimizer_step.window, self._place
            if window.count or window.taken != place.taken:
                place = self._boundary
            self._place = place
            self.state.iteration = place.progress.iteration
            self._postponed.clear()
            self._optimizer_step.drop_window()
            self._feed.go_back_to(place.position)
            self._feed.close()


def _silent(event: Any) -> None:
    """Without data Ignite fires no events of the data."""
