"""The batches of one epoch, one by one, and what a handler asks for meanwhile."""

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from typing import TYPE_CHECKING
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.data.active_loader import set_aside
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.trainer.postponed import Postponed
from ignite_hooks.trainer.requests import Request
from ignite_hooks.trainer.resuming import ResumableEngine

if TYPE_CHECKING:
    from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["IteratingEngine", "Terminate", "TerminateEpoch"]


class Terminate(Exception):
    """The run ends."""


class TerminateEpoch(Exception):
    """The epoch ends."""


class IteratingEngine(ResumableEngine):
    """Takes batch after batch through the scopes and events of an iteration.

    Whether to stop, to end the epoch or to interrupt is asked where Ignite asks: after the events
    that can ask for it. What is open in the loop or in the epoch is left first, and then
    ``Terminate`` or ``TerminateEpoch`` takes the way out of the generators.

    A subclass must leave the three flags as they are here: the loop does not look at them.
    """

    should_terminate = Request()
    should_terminate_single_epoch = Request()
    should_interrupt = Request()

    def __init__(
        self, process_function: Callable[[Engine, Any], Any], optimizer_step: "OptimizerStep"
    ) -> None:
        self._requests: dict[str, Any] = {}
        super().__init__(process_function, optimizer_step)
        self.stop_reason: str | None = None
        self.hook_channels = Channels(self)
        self._postponed = Postponed()
        self._at_end: list[Callable[[], None]] = []
        self._depth_in_loop = self._depth_in_epoch = 0
        self._batches: Iterator[Any] = iter(())
        self._has_data = False

    def defer(self, act: Callable[[], None], turn: int = 0) -> None:
        """Has ``act`` called once when all handlers of this moment have returned.

        That is after STARTED, after ITERATION_COMPLETED, or, from the last batch of an epoch on,
        after EPOCH_COMPLETED. What has a smaller ``turn`` comes first.
        """
        self._postponed.add(act, turn)

    def call_at_end(self, act: Callable[[], None]) -> Callable[[], None]:
        """Has ``act`` called where a run ends: at its last step boundary, after what is postponed.

        That is before TERMINATE and COMPLETED, whose handlers a longer run would not call here. A
        run that ends between two boundaries, or by a failure, does not call it.

        Returns:
            What undoes this.
        """
        self._at_end.append(act)
        return lambda: self._at_end.remove(act)

    @property
    def is_leaving_epoch(self) -> bool:
        """Whether the rest of the epoch is about to be left out, at whose end all waits then."""
        return bool(self.should_terminate_single_epoch and self._place.progress.batches)

    def _iterations(self) -> Generator[Any, None, None]:
        state, fire, channels = self.state, self._fire_event, self.hook_channels
        requests = self._requests
        fire_of_data = fire if self._has_data else _silent
        try:
            while not self._place.progress.is_full:
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
                self._count_batch()
                with channels.on_step:
                    fire(Events.ITERATION_STARTED)
                    if requests:
                        yield from self._obey()
                    with channels.on_batch:
                        state.output = self._process_function(self, state.batch)
                    fire(Events.ITERATION_COMPLETED)
                    progress = self._place.progress
                    is_last = progress.is_full
                    limit = self._limits.reached(progress, self._optimizer_step.steps)
                    if limit is not None:
                        self._stop_at(limit, is_last)
                    is_due = self._postponed.waiting or requests
                    if is_due and not (is_last or self.is_leaving_epoch):
                        self._do_postponed(is_over=False)
                if is_last and self.should_terminate:
                    return  # the epoch completes first
                if requests:
                    yield from self._obey()
        except TerminateEpoch:
            fire(Events.TERMINATE_SINGLE_EPOCH, iter_counter=self._place.progress.batches)
            self._optimizer_step.drop_window()
            self._feed.next_pass()
            self._batches = iter(self._feed)

    def _enter_next_pass(self, fire: Callable[[Any], None]) -> Generator[Any, None, None]:
        """Gets the first batch of a new pass over the data, as one has ended."""
        ended = self._batches
        fire(Events.DATALOADER_STOP_ITERATION)
        yield from self._obey()
        if self._batches is ended:  # no handler has set other data
            self._batches = iter(self._feed)
        self.state.batch = next(self._batches)

    def _stop_at(self, limit: str, is_last: bool) -> None:
        """Ends the run when it is time; at the end of an epoch ``max_iters`` needs no TERMINATE."""
        if limit == "max_steps" or (limit == "max_iters" and not is_last):
            self.stop_reason = self.stop_reason or ("terminate" if self.should_terminate else limit)
            self.should_terminate = self.should_terminate or True

    def _do_postponed(self, *, is_over: bool) -> None:
        """Does what waits, and what is to be done where the run ends if it ends here."""
        self._postponed.do()
        is_over = is_over or bool(self.should_terminate)
        if is_over and self.is_at_boundary and not self.is_leaving_epoch:
            for act in tuple(self._at_end):
                act()

    def _obey(self) -> Generator[Any, None, None]:
        if self.should_terminate:
            self.hook_channels.scopes.leave(self._depth_in_loop)
            raise Terminate
        if self.should_terminate_single_epoch:
            self.hook_channels.scopes.leave(self._depth_in_epoch)
            raise TerminateEpoch
        if self.should_interrupt:
            self._fire_event(Events.INTERRUPT)
            self.should_interrupt = False
            feed = self._feed
            with set_aside(feed.loader):
                yield self.state
            if feed is not self._feed:  # set_data, meanwhile
                feed.deactivate()


def _silent(event: Any) -> None:
    """Without data Ignite fires no events of the data."""
