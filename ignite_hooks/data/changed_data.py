"""Decides where a resumed run continues if the data or the batch size have changed.

The saved run is the run that wrote a checkpoint. The resumed run is the present run, which
continues from the checkpoint. A pass is one iteration over the whole data. The saved position is
the number of batches that the saved run had taken of its last pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

__all__ = ["ChangedData"]

Facts = Mapping[str, int | str | None]
"""Maps the name of a property of the data, for example "samples a pass", to the value.

The value is None if it is not known.
"""


@dataclass(frozen=True)
class ChangedData:
    """A comparison of the data of the saved run with the data of the present run.

    Args:
        then: the facts of the data in the saved run.
        now: the facts of the data in the present run.
        batches: the saved position, in batches.
        samples: the number of samples that all processes together had taken before the saved
            position; None if the number is not certain.
        batches_left: the number of batches that the remaining samples of this pass make in the
            present run; None if not known.
        window_size: the number of batches in a full accumulation window, which make one optimizer
            step.
        has_state: whether the position is restored from a saved state of the data.
        is_replay_refused: whether only a replay can reach the position, and the user has turned
            replays off. A replay loads the earlier batches of the pass again.
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
        """Returns whether the saved position can be found by counting samples.

        A position that counts samples is valid even if the batch size has changed.
        """
        is_known = self.batches_left is not None
        return is_known and not self._differs("samples a pass") and not self._differs("order")

    @property
    def ends_pass(self) -> bool:
        """Returns whether the pass ends at the saved position.

        True if the data or the batch size have changed and the remaining samples make no batch, for
        example because an incomplete last batch is dropped.
        """
        is_within = self.batches > 0 and bool(self.reasons())
        return is_within and self.keeps_samples and self.batches_left == 0

    @property
    def has_other_workers(self) -> bool:
        """Returns whether the number of workers has changed."""
        return self._differs("workers")

    @property
    def drops_pass(self) -> bool:
        """Returns whether the next pass starts, because the saved position cannot be reached."""
        if not self.batches or self.keeps_samples or self.has_state:
            return False
        if self.is_replay_refused:
            return True
        return any(self._differs(name) for name in _POSITION_FACTS)

    def reasons(self) -> list[str]:
        """Returns sentences, each of which names a change and the effect on the present run."""
        found = []
        # In the middle of a pass, a change of any of `_POSITION_FACTS` is reported. Before the
        # first batch of a pass, only a change of the order or of the batch size is reported,
        # because such a change alters all batches that follow.
        facts = _POSITION_FACTS if self.batches else ("order", "samples a batch")
        what = next((each for each in facts if self._differs(each)), None)
        if what is not None:
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
        """Returns whether the fact ``name`` is known for both runs, and has changed."""
        then, now = self.then.get(name), self.now.get(name)
        return then != now and None not in (then, now)

    def _describe_change(self, name: str) -> str:
        """Returns the first part of a sentence of ``reasons``: the values of the fact ``name``."""
        unit = "" if name == "order" else f" {name}"
        return f"{self.then[name]}{unit} then, {self.now[name]} now"

    def _describe_consequence(self) -> str:
        """Returns the last part of a sentence of ``reasons``: what the present run does."""
        if self.drops_pass:
            return (
                f"the current pass is dropped after {_quantity(self.batches, 'batch', 'batches')} "
                "and the next pass starts; if each epoch is one pass, the current epoch starts "
                "again with the next pass; the counts of iterations and steps continue"
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
        """Returns the number of batches and optimizer steps in a pass of data with ``facts``."""
        return self._describe_batches(facts["batches a pass"])

    def _describe_batches(self, batches: int | str | None) -> str:
        if not isinstance(batches, int):
            return "an unknown number of batches"
        steps = ceil(batches / self.window_size)
        return f"{_quantity(batches, 'batch', 'batches')} ({_quantity(steps, 'step', 'steps')})"


def _quantity(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


# A position that counts batches is valid only if all these facts are unchanged. If several of them
# have changed, `reasons` reports the first one in this order.
_POSITION_FACTS = ("order", "samples a pass", "samples a batch", "batches a pass")
