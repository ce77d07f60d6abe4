"""Where a run is, and where it ends."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Any

from ignite.engine import Engine

from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.trainer.progress import Limits

if TYPE_CHECKING:
    from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["CountingEngine"]


class CountingEngine(QuickEngine):
    """Counts batches and epochs, apart from its state: what a handler writes there steers nothing.

    It stands at a place; what is not stepped yet goes back to the last step boundary.
    """

    state: Any

    def __init__(
        self, process_function: Callable[[Engine, Any], Any], optimizer_step: "OptimizerStep"
    ) -> None:
        super().__init__(process_function)
        self._optimizer_step = optimizer_step
        self._feed: Any = None  # a DataFeed once there is data
        self._place = Place()
        self._boundary = self._place
        self._has_drawn_since = False  # for batches that it went back over
        self._limits = Limits()
        self._shown = Limits()
        self._epoch_length: int | None = None
        self._passed_length: int | None = None

    @property
    def feed(self) -> Any:
        """What the batches come from, and where in the data the trainer is."""
        return self._feed

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

    @property
    def place(self) -> Place:
        """How far the training has come, and where in the data. Handlers can not change it."""
        return self._place

    @property
    def is_at_boundary(self) -> bool:
        """Whether every batch of this place was stepped with, or its window was given up."""
        window = self._optimizer_step.window
        return not window.count and window.taken == self._place.taken

    @property
    def is_between_steps(self) -> bool:
        """Whether no batch is on its way either: all that is to be known of this place is known."""
        return self.is_at_boundary and self._feed.position == self._place.position

    def _count_batch(self) -> None:
        window, place = self._optimizer_step.window, self._place
        if not window.count:
            self._boundary = place
        length = self._epoch_length
        iteration, epochs, batches, _ = place.progress
        is_last = self._feed.is_last if length is None else batches + 1 >= length
        progress = Progress(iteration + 1, epochs, batches + 1, is_last)
        self._place = Place(progress, self._feed.position, window.taken + 1)
        self.state.iteration = progress.iteration

    def _stand_at(self, progress: Progress) -> None:
        """This is a step boundary: the next run goes on here at the earliest."""
        taken = self._optimizer_step.window.taken
        self._place = self._boundary = Place(progress, self._feed.position, taken)

    def _go_back(self) -> None:
        """Stands where the last whole step ended."""
        self._has_drawn_since = not self.is_between_steps
        place = self._place if self.is_at_boundary else self._boundary
        self._place = place
        self.state.iteration = place.progress.iteration

    def _set_limits(self, limits: Limits) -> None:
        self._limits = self._shown = limits
        for name, limit in vars(limits).items():
            setattr(self.state, name, limit)

    def _limit_reached(self) -> str | None:
        return self._limits.reached(self._place.progress, self._optimizer_step.steps)

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
