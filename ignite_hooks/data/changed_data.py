"""Decides where a resumed run continues if the data or the batch size have changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

__all__ = ["ChangedData"]

Facts = Mapping[str, int | str | None]
"""Properties of the data of a feed, for example "samples a pass"; None if a value is not known."""


@dataclass(frozen=True)
class ChangedData:
    """A comparison of the data of a checkpoint with the data of the present run.

    Args:
        then: the facts of the data in the checkpoint.
        now: the facts of the data of the present run.
        batches: the number of batches of the current pass that the saved run had taken.
        samples: the number of samples of all processes in these batches; None if not certain.
        batches_left: the number of batches that the remaining samples of the pass make in the
            present run; None if not known.
        window_size: the number of batches in a full accumulation window.
        has_state: whether the position is restored from a state of the data.
        is_replay_refused: whether the position can only be reached by a replay, and the user has
            turned replays off.
    """

    then: Facts
    now: Facts
    batches: int
    samples: int | None
    batches_left: int | None
    window_size: int
    has_state: bool = False
    is_replay_refused: bool = False

    @property
    def keeps_samples(self) -> bool:
        """Returns whether the position is found by counting samples.

        If so, the batch size may have changed.
        """
        is_known = self.batches_left is not None
        return is_known and not self._differs("samples a pass") and not self._differs("order")

    @property
    def ends_pass(self) -> bool:
        """Returns whether too few samples of the pass are left for one more batch."""
        is_within = self.batches > 0 and bool(self.reasons())
        return is_within and self.keeps_samples and self.batches_left == 0

    @property
    def has_other_workers(self) -> bool:
        """Returns whether the number of workers has changed."""
        return self._differs("workers")

    @property
    def drops_pass(self) -> bool:
        """Returns whether the position cannot be resumed, and the next pass starts instead."""
        if not self.batches or self.keeps_samples or self.has_state:
            return False
        if self.is_replay_refused:
            return True
        return any(self._differs(name) for name in _POSITION_FACTS)

    def reasons(self) -> list[str]:
        """Returns sentences that name each change and its consequence for the present run."""
        found = []
        what = next((each for each in _POSITION_FACTS if self._differs(each)), None)
        # In the middle of a pass each change is reported. Before its first batch a change of the
        # order or of the batch size is reported, because it alters all batches that follow.
        if what in ("order", "samples a batch") or (what is not None and self.batches):
            found.append(f"{self._describe_change(what)}: {self._describe_consequence()}")
        elif self.drops_pass:
            found.append(f"replay=False: {self._describe_consequence()}")
        if self.has_other_workers:
            found.append(
                f"{self._describe_change('workers')}: if the data set draws random numbers, these "
                "differ, because other processes draw them; otherwise nothing changes"
            )
        return found

    def _differs(self, name: str) -> bool:
        """Returns whether a fact is known for both runs, and has changed."""
        then, now = self.then.get(name), self.now.get(name)
        return then != now and None not in (then, now)

    def _describe_change(self, name: str) -> str:
        unit = "" if name == "order" else f" {name}"
        return f"{self.then[name]}{unit} then, {self.now[name]} now"

    def _describe_consequence(self) -> str:
        if self.drops_pass:
            return (
                f"the current pass is dropped after {_quantity(self.batches, 'batch', 'batches')} "
                "and the next pass starts; an epoch without a fixed length starts again with that "
                "pass; iterations and steps keep counting"
            )
        if not self.batches and self._differs("order"):
            return "the samples come in another order"
        passes = (
            f"a pass has {self._describe_pass(self.now)}, and had {self._describe_pass(self.then)}"
        )
        if not self.batches:
            return passes
        if not self.keeps_samples:
            return "the data resume from their own state"
        total, given = self.now["samples a pass"], self.samples
        left = total - given if isinstance(total, int) and given is not None else 0
        samples = _quantity(left, "sample", "samples")
        if not self.batches_left:
            return f"the {samples} left of this pass make no batch, so the pass ends; {passes}"
        return (
            f"the {samples} left of this pass come in {self._describe_batches(self.batches_left)}, "
            f"and from the next pass on {passes}"
        )

    def _describe_pass(self, facts: Facts) -> str:
        return self._describe_batches(facts["batches a pass"])

    def _describe_batches(self, batches: int | str | None) -> str:
        if not isinstance(batches, int):
            return "an unknown number of batches"
        steps = ceil(batches / self.window_size)
        return f"{_quantity(batches, 'batch', 'batches')} ({_quantity(steps, 'step', 'steps')})"


def _quantity(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


# A position that counts batches is valid only if these facts are unchanged. If several have
# changed, the first one is reported.
_POSITION_FACTS = ("order", "samples a pass", "samples a batch", "batches a pass")
