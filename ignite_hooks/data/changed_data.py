"""Decides where a resumed run continues when the data or the batch size have changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

__all__ = ["ChangedData"]

Facts = Mapping[str, int | None]


@dataclass(frozen=True)
class ChangedData:
    """Compares the data of a checkpoint with those of the present run.

    Args:
        then: the facts of the feed that was saved.
        now: the facts of the feed that resumes.
        batches: batches of the current pass that were given.
        samples: samples of all processes in these batches; None if the number is not certain.
        batches_left: batches that the pass has after these samples now; None if not known.
        window: batches in a full accumulation window.
        has_state: whether the position is restored from a state of the data.
        is_given_up: whether the position could only be reached by a replay, which is not wanted.
    """

    then: Facts
    now: Facts
    batches: int
    samples: int | None
    batches_left: int | None
    window: int
    has_state: bool = False
    is_given_up: bool = False

    @property
    def keeps_samples(self) -> bool:
        """Returns whether the position counts samples, so that the batch size may change."""
        return self.batches_left is not None and not self._differs("samples a pass")

    @property
    def starts_over(self) -> bool:
        """Returns whether the position cannot be resumed, and the next pass starts instead."""
        if not self.batches or self.keeps_samples or self.has_state:
            return False
        if self.is_given_up:
            return True
        names = ("samples a pass", "samples a batch", "batches a pass")
        return any(self._differs(name) for name in names)

    def reasons(self) -> list[str]:
        """Returns each change with its consequence in samples, batches and optimizer steps."""
        found = []
        what = next((each for each in _SIZES if self._differs(each)), None)
        if what == "samples a batch" or (what is not None and self.batches):
            found.append(f"{self._change(what)}: {self._consequence()}")
        elif self.starts_over:
            found.append(f"replay=False: {self._consequence()}")
        if self._differs("workers"):
            found.append(
                f"{self._change('workers')}: random numbers that the data set draws come from "
                "other processes; without such draws nothing changes"
            )
        return found

    def _differs(self, name: str) -> bool:
        """Returns whether a fact differs; one that is unknown on either side does not."""
        then, now = self.then.get(name), self.now.get(name)
        return then != now and None not in (then, now)

    def _change(self, name: str) -> str:
        return f"{self.then[name]} {name} then, {self.now[name]} now"

    def _consequence(self) -> str:
        if self.starts_over:
            return (
                f"the current pass is dropped after {_number(self.batches, 'batch', 'batches')} "
                "and the next one starts; an epoch without a fixed length starts again with it, "
                "and iterations and steps keep counting"
            )
        passes = f"a pass has {self._steps(self.now)}, and had {self._steps(self.then)}"
        if not self.batches:
            return passes
        if not self.keeps_samples:
            return "the data resume from their own state"
        left = (self.now["samples a pass"] or 0) - (self.samples or 0)
        return (
            f"the {left} samples left of this pass come in {self._steps_of(self.batches_left)}, "
            f"and from the next on {passes}"
        )

    def _steps(self, facts: Facts) -> str:
        return self._steps_of(facts["batches a pass"])

    def _steps_of(self, batches: int | None) -> str:
        if batches is None:
            return "an unknown number of batches"
        steps = ceil(batches / self.window)
        return f"{_number(batches, 'batch', 'batches')} ({_number(steps, 'step', 'steps')})"


def _number(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


_SIZES = ("samples a pass", "samples a batch", "batches a pass")
