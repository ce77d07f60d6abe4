"""The place in the data as a state, for another process to go on at the same batch."""

from abc import ABC
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from ignite_hooks.core.place import FeedPosition
from ignite_hooks.data.sources import PlainIterable

__all__ = ["FeedState"]


class FeedState(ABC):
    """What a feed knows of its place, and what it takes to stand there elsewhere."""

    is_last: bool
    position: FeedPosition
    _source: PlainIterable

    @abstractmethod
    def seek(self, position: FeedPosition) -> None:
        """Goes to ``position``."""

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, and what it takes to go on there in another process.

        Numbers, lists and tensors, which ``torch.load`` takes without pickle. The global random
        generators are not in it: they belong to whoever draws from them next.
        """
        position = FeedPosition(self.position.data_pass + 1, 0) if self.is_last else self.position
        return {
            "position": list(position),
            "source": self._source.state_dict(),
            "facts": self._source.facts(),
        }

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """What keeps the batches from being those that the other feed gives next, if anything."""
        if not self._source.can_repeat:
            return ["an iterator can not be moved: it goes on from where it is"]
        before, now = state_dict["facts"], self._source.facts()
        found = [
            f"{before[name]} {name} then, {now[name]} now"
            for name in before
            if before[name] != now.get(name)
        ]
        generators = state_dict["source"]["generators"].keys()
        for name in sorted(generators ^ self._source.generators.keys()):
            when = "then" if name in generators else "now"
            found.append(f"there is a random generator {name} only {when}")
        is_within, has_workers = state_dict["position"][1], state_dict["source"].get("has_workers")
        if is_within and not self._source.is_entered_exactly:
            found.append(
                "batches that were given are gone through again: what they draw at random is drawn "
                "anew until this pass ends; without such draws it is exact"
            )
        if has_workers:
            found.append(
                "what the data set draws at random in workers that stay is drawn anew; without "
                "such draws it is exact"
            )
        elif now["workers"] and is_within:
            found.append(
                "what the data set draws at random in its workers is drawn anew until this pass "
                "ends; without such draws it is exact"
            )
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes to that place: the next ``iter`` gives the batches that the other feed gives next.

        It holds for data that is built the same way; the batches before are not loaded where the
        loader has a sampler. An iterator stays where it is.
        """
        self._source.load_state_dict(state_dict["source"])
        self.seek(FeedPosition(*state_dict["position"]))
