"""What becomes of a place in the data when the data, or their batches, are others now."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

__all__ = ["ChangedData"]

Facts = Mapping[str, int | None]


@dataclass(frozen=True)
class ChangedData:
    """Compares the data that a place was in with those that there are now.

    Args:
        then: the facts of the feed whose place it is.
        now: those of the feed that is to go there.
        batches: how many batches of the pass come before the place.
        samples: how many samples of all processes these are; None if that is not certain.
        batches_left: how many batches the pass has behind these samples now; None if not known.
        window: batches in a full window of the optimizer.
        has_state: whether the data have a state that tells the place.
        is_given_up: whether only the batches before would lead there, and are not to be gone
            through.
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
        """Whether the place is a number of samples, which batches of another size go on behind."""
        return self.batches_left is not None and not self._differs("samples a pass")

    @property
    def begins_anew(self) -> bool:
        """Whether the place has no meaning in the data of now, and so the next pass begins."""
        if not self.batches or self.keeps_samples or self.has_state:
            return False
        if self.is_given_up:
            return True
        names = ("samples a pass", "samples a batch", "batches a pass")
        return any(self._differs(name) for name in names)

    def reasons(self) -> list[str]:
        """Returns what has changed, with its consequence in batches and optimizer steps."""
        found = []
        what = next((each for each in _SIZES if self._differs(each)), None)
        if what == "samples a batch" or (what is not None and self.batches):
            found.append(f"{self._change(what)}: {self._consequence()}")
        elif self.begins_anew:
            found.append(f"replay=False: {self._consequence()}")
        if self._differs("workers"):
            found.append(
                f"{self._change('workers')}: what the data set draws at random is drawn by other "
                "processes; without such draws nothing changes"
            )
        return found

    def _differs(self, name: str) -> bool:
        """A fact that one of them does not know is no difference."""
        then, now = self.then.get(name), self.now.get(name)
        return then != now and None not in (then, now)

    def _change(self, name: str) -> str:
        return f"{self.then[name]} {name} then, {self.now[name]} now"

    def _consequence(self) -> str:
        if self.begins_anew:
            return (
                f"the pass that was begun is left after {_number(self.batches, 'batch', 'batches')}"
                ", and the next one begins, with it the epoch anew unless its length is fixed; "
                "iterations and steps are counted on"
            )
        passes = f"a pass has {self._steps(self.now)}, and had {self._steps(self.then)}"
        if not self.batches:
            return passes
        if not self.keeps_samples:
            return "the data go on from their state"
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
