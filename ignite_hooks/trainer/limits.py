"""The limits of a run, such as ``max_epochs``, and their copies in the engine's state."""

import sys
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import NamedTuple

from ignite.engine import State

from ignite_hooks.core.place import Progress
from ignite_hooks.core.rules import check_count
from ignite_hooks.core.rules import is_integer

__all__ = ["Limits", "ShownLimits"]


@dataclass(frozen=True)
class Limits:
    """The limits of a run. The run ends when the first of them is reached.

    All limits count from the beginning of the run, also if the run is continued.

    Args:
        max_epochs: the number of complete epochs; None for no such limit.
        max_iters: the number of batches; None for no such limit.
        max_steps: the number of committed optimizer steps, which are those that have changed the
            parameters; None for no such limit.
    """

    max_epochs: int | None = None
    max_iters: int | None = None
    max_steps: int | None = None

    def __or__(self, other: "Limits") -> "Limits":
        """Returns these limits; where a limit is None, the limit of ``other`` is used."""
        mine, theirs = vars(self), vars(other)
        return Limits(**{name: theirs[name] if mine[name] is None else mine[name] for name in mine})

    def __str__(self) -> str:
        given = {name: limit for name, limit in vars(self).items() if limit is not None}
        return ", ".join(f"{name}={limit}" for name, limit in given.items()) or "no limit"

    def with_changes(self, shown: "Limits", now: "Limits") -> "Limits":
        """Returns these limits, with the changes that a handler or the user wrote to the state.

        Args:
            shown: the limits that the trainer last wrote to the state.
            now: the limits that the state has now. A limit that differs from ``shown`` was changed.
        """
        mine, old, new = vars(self), vars(shown), vars(now)
        return Limits(**{n: mine[n] if new[n] == old[n] else new[n] for n in mine})

    def without_reached(self, progress: Progress, steps: int) -> "Limits":
        """Returns these limits, with None for each limit that is already reached."""
        limits = self
        while (name := limits.reached(progress, steps)) is not None:
            limits = replace(limits, **{name: None})
        return limits

    def check(self, progress: Progress, steps: int) -> None:
        """Raises a ValueError for limits that must not be passed to ``run``.

        Args:
            progress: the counters of the run.
            steps: the number of optimizer steps committed so far.
        """
        if self.max_epochs is not None and self.max_iters is not None:
            raise ValueError(
                "only one of `max_epochs` and `max_iters` must be given, got "
                f"{self.max_epochs} and {self.max_iters}: leave one out"
            )
        self.check_values(progress, steps)

    def check_values(self, progress: Progress, steps: int) -> None:
        """Raises a ValueError for a limit that is not a positive integer, or is exceeded already.

        For example, ``max_steps=100`` is exceeded after 101 steps. The arguments are those of
        ``check``.
        """
        # An epoch that has begun counts, because ``max_epochs`` takes effect only at its end.
        begun = progress.epochs + (progress.batches > 0)
        done = {"max_epochs": begun, "max_iters": progress.iteration, "max_steps": steps}
        for name, value in vars(self).items():
            if value is None:
                continue
            check_count(
                name,
                value,
                "leave it out for no such limit; if no limit at all is given, one epoch is run",
            )
            if value < done[name]:
                raise ValueError(
                    f"`{name}` must be at least what is done already, {done[name]}, got {value}: "
                    f"write a higher limit, or set trainer.state.{name} = None before run() to "
                    "begin a new run"
                )

    def check_written(self) -> None:
        """Raises a ValueError for limits that a handler must not write to the state.

        Unlike ``check_values``, this method allows a limit that is exceeded already: a handler that
        writes such a limit ends the run at once.
        """
        for name, value in vars(self).items():
            if value is not None and not (is_integer(value) and value >= 0):
                raise ValueError(
                    f"`trainer.state.{name}` must be an integer >= 0, or None for no such limit, "
                    f"got {value!r}: write the number at which the run is to end"
                )
        if self == Limits():
            raise ValueError(
                "`trainer.state` must keep one of max_epochs, max_iters and max_steps while the "
                "trainer runs, all are None: set one, or call terminate() to end the run"
            )

    def steps_to_come(
        self, progress: Progress, steps: int, window_size: int, epoch_length: int | None
    ) -> int:
        """Returns the number of optimizer steps that the run certainly makes before it ends.

        Args:
            progress: the counters of the run.
            steps: the number of optimizer steps committed so far.
            window_size: the number of batches in a full window, whose gradients are accumulated for
                one step.
            epoch_length: the number of batches in an epoch; None if not known.
        """
        counts = []
        if self.max_steps is not None:
            counts.append(self.max_steps - steps)
        if self.max_iters is not None:
            batches = self.max_iters - progress.iteration
            counts.append(progress.steps_in(batches, window_size, epoch_length))
        if self.max_epochs is not None:
            # If the length is not known, an epoch may have no batch, so no step is certain.
            length = epoch_length or 0
            batches = (self.max_epochs - progress.epochs) * length - progress.batches
            counts.append(progress.steps_in(max(0, batches), window_size, epoch_length))
        return min(counts)

    def epochs_to_come(
        self, progress: Progress, steps: int, window_size: int, epoch_length: int | None
    ) -> int:
        """Returns the number of epochs that the run certainly completes before it ends.

        The arguments are those of ``steps_to_come``.
        """
        counts = [] if self.max_epochs is None else [self.max_epochs - progress.epochs]
        # If the length is not known, ``max_iters`` or ``max_steps`` may end the run within the
        # present epoch. With ``sys.maxsize`` as the length, the next two counts are 0.
        length = epoch_length or sys.maxsize
        if self.max_iters is not None:
            batches = self.max_iters - progress.iteration
            counts.append((progress.batches + batches) // length)
        if self.max_steps is not None:
            # The epoch in which step ``max_steps`` + 1 would be made is not certain to complete.
            # ``epochs_for`` counts this epoch too, so 1 is subtracted.
            epochs = progress.epochs_for(self.max_steps - steps + 1, window_size, length)
            counts.append(epochs - 1 - progress.epochs)
        return min(counts)

    def reached(self, progress: Progress, steps: int) -> str | None:
        """Returns the name of the limit that ends the run now; None if no limit is reached."""
        if self.max_steps is not None and steps >= self.max_steps:
            return "max_steps"
        if self.max_iters is not None and progress.iteration >= self.max_iters:
            return "max_iters"
        if self.max_epochs is not None and progress.epochs >= self.max_epochs:
            return "max_epochs"
        return None


class ShownLimits(NamedTuple):
    """A copy of the limits and the epoch length that the state of an engine has.

    The trainer compares the copy with the state, to find out what handlers have written.
    """

    max_epochs: int | None = None
    max_iters: int | None = None
    max_steps: int | None = None
    epoch_length: int | None = None

    @classmethod
    def read(cls, state: State) -> "ShownLimits":
        """Reads the limits and the epoch length from ``state``."""
        shown: Any = state
        return cls(shown.max_epochs, shown.max_iters, shown.max_steps, shown.epoch_length)

    @property
    def limits(self) -> Limits:
        """The limits, without the epoch length."""
        return Limits(*self[:3])

    def asks_for_new_run(self, now: "ShownLimits") -> bool:
        """Returns whether the user has set a limit to None, which is how Ignite begins a new run.

        Args:
            now: the limits that the state has now. ``self`` has the earlier limits.
        """
        pairs = zip(self[:3], now[:3], strict=True)
        return any(before is not None and after is None for before, after in pairs)
