"""How far a run has come, and how far it is to go."""

from dataclasses import dataclass
from dataclasses import replace
from typing import Any

from ignite_hooks.core.place import Progress

__all__ = ["Limits", "whole_number"]


@dataclass(frozen=True)
class Limits:
    """What ends a run: whichever comes first; None is no limit. All count from the beginning.

    Args:
        max_epochs: complete epochs.
        max_iters: batches.
        max_steps: committed optimizer steps.
    """

    max_epochs: int | None = None
    max_iters: int | None = None
    max_steps: int | None = None

    @classmethod
    def of(cls, state: Any) -> "Limits":
        """Those that a state shows."""
        return cls(state.max_epochs, state.max_iters, state.max_steps)

    def __or__(self, other: "Limits") -> "Limits":
        """These, and those of ``other`` where these have none."""
        mine, theirs = vars(self), vars(other)
        return Limits(**{name: theirs[name] if mine[name] is None else mine[name] for name in mine})

    def edited(self, shown: "Limits", now: "Limits") -> "Limits":
        """These limits, shown on a state as ``shown``, after that was changed to ``now``.

        One that was taken away (``state.max_epochs = None``, Ignite's way to ask for a new
        beginning) takes away all.
        """
        mine, old, new = vars(self), vars(shown), vars(now)
        if any(old[name] is not None and new[name] is None for name in mine):
            return Limits()
        return Limits(**{n: mine[n] if new[n] == old[n] else new[n] for n in mine})

    def without_reached(self, progress: Progress, steps: int) -> "Limits":
        """Those that leave something to run."""
        limits = self
        while (name := limits.reached(progress, steps)) is not None:
            limits = replace(limits, **{name: None})
        return limits

    def check(self, progress: Progress, steps: int) -> None:
        """Raises a ValueError for a limit that is no positive integer or lies in the past."""
        done = {"max_epochs": progress.epochs, "max_iters": progress.iteration, "max_steps": steps}
        for name, value in vars(self).items():
            if value is None:
                continue
            whole_number(name, value, "leave it out for no such limit")
            if value < done[name]:
                raise ValueError(
                    f"`{name}` must be at least what is done already, {done[name]}, got {value}: "
                    f"set trainer.state.{name} = None before run() to begin anew"
                )
        if self.max_epochs is not None and self.max_iters is not None:
            raise ValueError(
                "only one of `max_epochs` and `max_iters` must be given, got "
                f"{self.max_epochs} and {self.max_iters}: leave one out (if it comes from the run "
                "before, set it on trainer.state to None to begin anew)"
            )

    def reached(self, progress: Progress, steps: int) -> str | None:
        """The name of the limit that leaves nothing to run, or None."""
        if self.max_steps is not None and steps >= self.max_steps:
            return "max_steps"
        if self.max_iters is not None and progress.iteration >= self.max_iters:
            return "max_iters"
        if self.max_epochs is not None and progress.epochs >= self.max_epochs:
            return "max_epochs"
        return None


def whole_number(name: str, value: Any, remedy: str) -> None:
    """Raises a ValueError unless ``value`` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}: {remedy}")
