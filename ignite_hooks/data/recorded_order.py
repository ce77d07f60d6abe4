"""Samplers with a state in a loader with workers: recorded as they are drawn ahead of the batches.

The main process gives index batches to workers ahead of the batches that have come, so the state of
a sampler is that of a later place than the position of a run. The elements that were drawn between
the two are kept. With them the state of now fits: a process that resumes takes these elements, and
then asks the sampler, from its state, for more. No element is drawn twice, and each is drawn when
an unbroken run draws it.
"""

import copy
import warnings
from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from itertools import chain
from itertools import islice
from typing import Any

import numpy as np
import torch

from ignite_hooks.core.object_graph import Unsearched
from ignite_hooks.data.own_states import is_plain
from ignite_hooks.data.place_states import PlaceKeeper
from ignite_hooks.data.place_states import is_same_state
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState

__all__ = ["RecordedOrder", "packed", "unpacked"]

_END = object()
_WATCHED = 2  # elements of a pass: the first one may draw an order, and the next one tells


class RecordedOrder(Unsearched):
    """A sampler, or batch sampler, with a state, in the place where a loader iterates it.

    An element is what the sampler yields: an index, or an index batch. Elements are numbered from
    the start of a pass.

    Attributes:
        keeper: the sampler, with the names of it.
        capacity: how many of the elements drawn last are kept.
        head_size: how many elements of the start of a pass are kept as well.
        size: the length of each element but the last, where a pass can be entered only then.
        is_beginning: whether an iteration over a pass is being started.

    Args:
        keeper: as above.
        head_size: likewise.
        size: likewise.
    """

    def __init__(self, keeper: PlaceKeeper, head_size: int = 0, size: int | None = None) -> None:
        self.keeper = keeper
        self.capacity = 0
        self.head_size = head_size
        self.size = size
        self._is_told: bool | None = None  # whether an element changes the state
        self._is_refused = False  # whether what was to be saved has more in it than plain data
        self._loaded: Any = None  # the state that was loaded, until an element is drawn from it
        self._start_pass: int | None = None  # the last pass that the sampler was asked for
        self._start: Any = None  # the state before the first element of that pass
        self._second: Any = None  # that before the second one
        self.is_beginning = False
        self._is_continued = False
        self._generators: Mapping[str, RandomGenerator] = {}
        self._clear()

    def _clear(self, data_pass: int | None = None) -> None:
        self._pass = data_pass
        self._elements = deque[Any]()
        self._head: list[Any] = []
        self._drawn = 0
        self._iterator: Iterator[Any] | None = None
        self._is_over, self._is_irregular = True, False
        # The global generators before the iterator was asked for, and before the first element was:
        # where these drew from them, and later elements do not, an order is drawn at once.
        self._before_iterator: RandomState | None = None
        self._before_first: RandomState | None = None

    @property
    def holder(self) -> Any:
        """The sampler."""
        return self.keeper.holder

    @property
    def is_restored(self) -> bool:
        """Returns whether a state was loaded and no element has been drawn since."""
        return self._loaded is not None

    @property
    def tells_place(self) -> bool:
        """Returns whether the state tells the place, and can be saved, as far as is known."""
        return self._is_told is not False and not self._is_refused

    @property
    def draws_when_asked(self) -> bool:
        """Returns whether the global generators were drawn from to make the iterator."""
        return self._before_iterator is not None

    @property
    def batch_size(self) -> Any:
        """The batch size of a batch sampler, which Accelerate asks for to split its batches."""
        return self.holder.batch_size

    def __len__(self) -> int:
        return len(self.holder)

    def __iter__(self) -> Iterator[Any]:
        if self._is_continued:
            self._is_continued, self._is_over = False, False
            self._iterator = self._reopened()
            return self._following(self._iterator)
        # A pass that someone else begins, by iterating a loader whose workers stay, has no number.
        self._clear(self._pass if self.is_beginning else None)
        # Now, not with the first element: torch asks for the iterator twice, and a sampler may draw
        # each time.
        random = RandomState.capture(generators=self._generators) if self.is_restored else None
        before = RandomState.capture()
        iterator, self._is_over = iter(self.holder), False
        self._before_iterator = before if before.has_moved() else None
        self._iterator = iterator if random is None else self._past_end(iterator, random)
        return self._following(self._iterator)

    def _past_end(self, iterator: Iterator[Any], random: RandomState) -> Iterator[Any]:
        """Yields the elements of a pass, where the state that was loaded may be that of an end.

        Some samplers give what follows their state: after that of their end, nothing once.
        """
        first = next(iterator, _END)
        if first is _END:
            random.restore()
            iterator = iter(self.holder)
        else:
            yield first
        yield from _elements_of(iterator)

    @contextmanager
    def beginning(
        self, data_pass: int, generators: Mapping[str, RandomGenerator]
    ) -> Iterator[None]:
        """Around the start of an iteration over a pass: the elements are of that pass.

        Args:
            data_pass: the pass.
            generators: the random generators of the data, which the sampler may draw from.
        """
        self._clear(data_pass)
        self.is_beginning, self._generators = True, generators
        try:
            yield
        finally:
            self.is_beginning, self._generators = False, {}

    def continue_next(self) -> None:
        """Has the next iteration continue a pass, from a state that the sampler was given."""
        self._is_continued, self._drawn = True, max(self._drawn, _WATCHED)

    def rewind(self, data_pass: int) -> None:
        """Puts the sampler back to where a pass began, if it had begun, or notes its state."""
        if self._start_pass != data_pass:
            state, self._start_pass = self._state(), data_pass
            self._is_refused = not is_plain(state)
            self._start = None if self._is_refused else state
        elif self._start is not None:
            self._load(self._start)
        else:
            warnings.warn(
                f"the {type(self.holder).__name__} has no known state of the start of pass "
                f"{data_pass + 1}, and is iterated from where it is: other samples may come. Go "
                "back no further than to the position that was loaded",
                stacklevel=2,
            )

    def reaches(self, data_pass: int, start: int) -> bool:
        """Returns whether a pass can be entered after ``start`` elements without drawing them."""
        is_kept = self._drawn - len(self._elements) <= start
        is_drawn = start <= self._drawn or self._is_over  # the last batch may be smaller
        return self._pass == data_pass and is_kept and is_drawn and not self._is_irregular

    def head(self, count: int) -> list[Any]:
        """Returns the first elements of the pass.

        They even out the last batches of several processes. A larger batch size than that of the
        run before asks for more than were kept: these come again, as at the end of a small data
        set.
        """
        repeats = -(-count // max(1, len(self._head)))
        return [_copied(each) for each in (self._head * repeats)[:count]]

    def rest(self, start: int) -> Iterator[Any]:
        """Returns the elements after ``start`` of them: those that are kept, then further ones."""
        kept = self._kept(start)
        if self._is_over:
            return iter(kept)
        if self._iterator is None:
            self._iterator = self._reopened()
        return chain(kept, self._following(self._iterator))

    def _reopened(self) -> Iterator[Any]:
        """Returns the elements that follow a state which was loaded in the middle of a pass."""
        holder = self.holder
        if isinstance(holder, Iterator):
            return holder  # it stands where its state says, and may begin again if asked for itself
        opening = self._before_iterator or self._before_first
        return iter(holder) if opening is None else self._opened(opening)

    def _opened(self, opening: RandomState) -> Iterator[Any]:
        """Has the sampler draw its order once more, with the random numbers of the first time."""
        with RandomState.preserved():
            opening.restore_global()
            iterator = iter(self.holder)
            first = [*islice(iterator, 0 if self._before_first is None else 1)]
        yield from first
        yield from _elements_of(iterator)

    def exhaust(self) -> None:
        """Draws what is left of the pass."""
        deque(self.rest(self._drawn), maxlen=0)

    def _kept(self, start: int) -> list[Any]:
        first = self._drawn - len(self._elements)
        return [_copied(each) for each in islice(self._elements, start - first, None)]

    def _following(self, iterator: Iterator[Any]) -> Iterator[Any]:
        while True:
            before = RandomState.capture() if self._drawn < _WATCHED else None
            element = next(iterator, _END)
            if element is _END:
                break
            if iterator is self._iterator:
                if before is not None and before.has_moved():
                    self._before_first = None if self._drawn else before
                self._note(element)
            yield element
        if iterator is self._iterator:
            self._is_over, self._loaded = True, None

    def _note(self, element: Any) -> None:
        if self.size is not None and self._elements and len(self._elements[-1]) != self.size:
            self._is_irregular = True
        self._loaded = None
        self._drawn += 1
        self._elements.append(_copied(element))
        while len(self._elements) > self.capacity:
            self._elements.popleft()
        if self._drawn <= self.head_size:
            self._head.append(_copied(element))
        if self._drawn <= 2 and self._start is not None and not self._is_told:
            self._compare(self._state())

    def _compare(self, state: Any) -> None:
        """Notes whether each of the first two elements of a pass has changed the state.

        A state that counts an element only when the next one is asked for, or that changes with the
        pass alone, does not tell the place.
        """
        if self._drawn == 1:
            self._second = state
        else:
            before, between = self._start, self._second
            self._is_told = not (is_same_state(before, between) or is_same_state(between, state))
            self._second = None

    def _state(self) -> Any:
        """Returns the state of now; some samplers tell theirs wrongly until they are iterated."""
        if self._loaded is not None:
            return self._loaded
        return copy.deepcopy(self.holder.state_dict())

    def _load(self, state: Any) -> None:
        self.holder.load_state_dict(copy.deepcopy(state))
        self._loaded = state

    def state_dict(self, data_pass: int, start: int, *, is_begun: bool) -> dict[str, Any] | None:
        """Returns the state of now, and the elements of a pass after the first ``start`` of them.

        Args:
            data_pass: the pass.
            start: the number of elements before the position.
            is_begun: whether the pass has begun. If not, the state is that of before it.

        Returns:
            Plain data; None where the elements are not known, or where there is more in them.
        """
        is_within = is_begun and self.reaches(data_pass, start)
        if is_within:
            self._find_end()
        if (start or is_begun) and not (is_within and self._is_told):
            return None
        is_opened = self._start_pass == data_pass and not is_begun
        state = self._start if is_opened else self._state()
        elements = packed(self._kept(start) if is_within else [])
        head = packed(self._head if is_within else [])
        self._is_refused = elements is None or head is None or state is None or not is_plain(state)
        if self._is_refused:
            return None
        return {
            "of": self.keeper.name,
            "state": state,
            "start": start,
            "elements": elements,
            "head": head,
            "is_within": is_within,
            "is_over": self._is_over or is_opened,
            "opening": self.opening if is_within else None,
        }

    def _find_end(self) -> None:
        """Asks a sampler for its end if it has yielded as many elements as it has.

        A state of before the end would have some samplers begin another pass.
        """
        try:
            is_whole = self._drawn == len(self.holder)
        except TypeError:
            return
        if is_whole and not self._is_over and self._iterator is not None:
            self._is_over = next(self._iterator, _END) is _END
            self._loaded = None

    @property
    def opening(self) -> dict[str, Any] | None:
        """The global generators of the moments at which an order is drawn from them, if it is."""
        opening = {"iterator": self._before_iterator, "first": self._before_first}
        if not any(opening.values()):
            return None
        return {name: each and each.state_dict() for name, each in opening.items()}

    def load_opening(self, opening: Mapping[str, Any] | None) -> None:
        """Has the rest of a pass draw its order with the generators that ``opening`` has told."""
        states = opening or {"iterator": None, "first": None}
        self._before_iterator, self._before_first = (
            states[each] and RandomState.from_state_dict(states[each])
            for each in ("iterator", "first")
        )

    def load_state_dict(self, data_pass: int, state_dict: Mapping[str, Any] | None) -> None:
        """Continues a pass from what ``state_dict`` has returned of a sampler of this name."""
        self._clear()
        self._loaded = self._start = self._start_pass = None
        if state_dict is None:
            return
        self._load(state_dict["state"])
        self._is_refused, self._is_over = False, state_dict["is_over"]
        if state_dict["is_within"]:
            self._pass = self._start_pass = data_pass
            self._is_told = True
            self._elements.extend(unpacked(state_dict["elements"]))
            self._head = unpacked(state_dict["head"])
            self._drawn = state_dict["start"] + len(self._elements)
            self.load_opening(state_dict.get("opening"))

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns what keeps the next elements from being those that followed the state."""
        if state_dict["is_within"] or state_dict["is_over"]:
            return []
        return [
            f"the pass before was left in its middle: {self.keeper.name} begins the next one where "
            "its state says, and may give what was left of it first"
        ]

    def doubts(self) -> list[str]:
        """Returns why the state is not saved."""
        if self._is_refused:
            return [
                f"the state_dict of {self.keeper.name}, or what it yields, has more in it than "
                "tensors, numbers, texts, lists and dicts, and is not saved: it is iterated again "
                "instead"
            ]
        if self._is_told is False:
            return [
                f"the state_dict of {self.keeper.name} is the same after an element as before it, "
                "and is not saved: it is iterated again instead"
            ]
        if self._is_irregular:
            return [
                f"the state of {self.keeper.name} is not saved, because its batches differ in "
                f"length, and Accelerate leaves out those that have not {self.size} samples"
            ]
        if self._drawn == 1 and self._before_first is not None:
            return [
                f"{self.keeper.name} draws from the global random generators for its first "
                "element, and only the second one tells whether that was the order of the pass"
            ]
        return []


def _elements_of(iterator: Iterator[Any]) -> Iterator[Any]:
    """Yields what an iterator gives, without asking it for itself, at which some begin again."""
    while (element := next(iterator, _END)) is not _END:
        yield element


def _copied(element: Any) -> Any:
    """Copies an index batch: Accelerate adds to one at the end of a pass."""
    if type(element) is list:
        return element.copy()
    return element.clone() if isinstance(element, torch.Tensor) else element


def packed(elements: Iterable[Any]) -> dict[str, Any] | None:
    """Returns elements as plain data, integers as one tensor; None if they are something else."""
    elements = [*elements]
    is_nested = bool(elements) and all(type(each) is list for each in elements)
    flat = [*chain.from_iterable(elements)] if is_nested else elements
    kinds = {type(each) for each in flat}
    if kinds in ({int}, {np.int64}) and all(-(2**63) <= each < 2**63 for each in flat):
        return {
            "indices": torch.tensor(flat, dtype=torch.int64),
            "sizes": torch.tensor([*map(len, elements)]) if is_nested else None,
            "is_numpy": kinds == {np.int64},
        }
    return {"values": elements} if is_plain(elements) else None


def unpacked(state: Mapping[str, Any]) -> list[Any]:
    """Returns the elements that ``packed`` was given."""
    if "values" in state:
        return [*state["values"]]
    indices = state["indices"]
    flat = [*indices.numpy()] if state["is_numpy"] else indices.tolist()
    if state["sizes"] is None:
        return flat
    following = iter(flat)
    return [[*islice(following, size)] for size in state["sizes"].tolist()]
