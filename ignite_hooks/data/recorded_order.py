"""Records samplers with a state in a loader with workers, which draws ahead of the batches.

The main process hands out index batches to workers before earlier batches have arrived. So the
sampler's state is ahead of the position of the run. The elements that were drawn in between are
kept, and saved with the present state: a process that resumes takes these elements first, and then
continues the sampler from its state. No element is drawn twice, and each one is drawn at the time
when an unbroken run draws it.
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

from ignite_hooks.core.object_graph import ExcludedFromSearch
from ignite_hooks.data.object_states import is_plain_data
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.snapshots import PlaceKeeper
from ignite_hooks.data.snapshots import is_same_state

__all__ = ["RecordedOrder", "pack_elements", "unpack_elements"]

_END = object()
# Elements of a pass that are checked for draws: if the first one draws from the global generators
# and the second does not, the whole order is drawn with the first.
_CHECKED_ELEMENTS = 2


class RecordedOrder(ExcludedFromSearch):
    """A wrapper of a sampler or batch sampler with a state, which a loader iterates in its place.

    An element is what the sampler yields: an index, or an index batch. Elements are counted from
    the start of a pass.

    Attributes:
        keeper: the sampler, with its names in the loader.
        capacity: how many of the most recent elements are kept.
        head_size: how many elements from the start of a pass are kept as well.
        size: the required length of every element but the last; None if lengths may differ. A pass
            with other lengths cannot be entered in its middle.
        is_beginning: whether an iteration over a pass is being started.

    Args:
        keeper: see above.
        head_size: see above.
        size: see above.
    """

    def __init__(self, keeper: PlaceKeeper, head_size: int = 0, size: int | None = None) -> None:
        self.keeper = keeper
        self.capacity = 0
        self.head_size = head_size
        self.size = size
        # Whether the state changes with each element; None until two elements were drawn.
        self._state_advances: bool | None = None
        self._is_unsavable = False  # whether the state or an element is not plain data
        # The state that was loaded last; None once an element was drawn after it.
        self._loaded_state: Any = None
        self._start_pass: int | None = None  # the pass that was begun last
        self._start_state: Any = None  # the state before the first element of that pass
        self._second_state: Any = None  # the state before its second element
        self.is_beginning = False
        self._continues_pass = False
        self._generators: Mapping[str, RandomGenerator] = {}
        self._reset()

    def _reset(self, data_pass: int | None = None) -> None:
        self._data_pass = data_pass
        self._elements = deque[Any]()
        self._head: list[Any] = []
        self._drawn_count = 0
        self._iterator: Iterator[Any] | None = None
        self._is_over, self._is_irregular = True, False
        # The global generators before iter() and before the first element, if that step drew from
        # them and later elements do not: then the step draws the order of the whole pass.
        self._before_iterator: RandomState | None = None
        self._before_first: RandomState | None = None

    @property
    def holder(self) -> Any:
        """The sampler that is recorded."""
        return self.keeper.holder

    @property
    def has_loaded_state(self) -> bool:
        """Returns whether a state was loaded and no element has been drawn since."""
        return self._loaded_state is not None

    @property
    def has_usable_state(self) -> bool:
        """Returns whether the state holds the position and can be saved, as far as is known."""
        return self._state_advances is not False and not self._is_unsavable

    @property
    def draws_on_iter(self) -> bool:
        """Returns whether the sampler's ``__iter__`` drew from the global generators."""
        return self._before_iterator is not None

    @property
    def batch_size(self) -> Any:
        """The batch size of the batch sampler, which Accelerate reads to split its batches."""
        return self.holder.batch_size

    def __len__(self) -> int:
        return len(self.holder)

    def __iter__(self) -> Iterator[Any]:
        if self._continues_pass:
            self._continues_pass, self._is_over = False, False
            self._iterator = self._resumed_iterator()
            return self._record_elements(self._iterator)
        # A pass begun outside ``beginning`` has no known number: a user iterates a loader with
        # persistent workers.
        self._reset(self._data_pass if self.is_beginning else None)
        # iter() is called at once, not with the first element: torch calls it twice for workers,
        # and a sampler may draw each time.
        random = RandomState.capture(generators=self._generators) if self.has_loaded_state else None
        before = RandomState.capture()
        iterator, self._is_over = iter(self.holder), False
        self._before_iterator = before if before.has_moved() else None
        self._iterator = iterator if random is None else self._elements_past_end(iterator, random)
        return self._record_elements(self._iterator)

    def _elements_past_end(self, iterator: Iterator[Any], random: RandomState) -> Iterator[Any]:
        """Yields the elements of a new pass after a state was loaded, perhaps one of a pass's end.

        Some samplers continue from the state of their end, and yield nothing in that iteration.
        Then another one is begun, with the generators as they were before the first.
        """
        first = next(iterator, _END)
        if first is _END:
            random.restore()
            iterator = iter(self.holder)
        else:
            yield first
        yield from _remaining_elements(iterator)

    @contextmanager
    def beginning(
        self, data_pass: int, generators: Mapping[str, RandomGenerator]
    ) -> Iterator[None]:
        """Counts the elements that are drawn from now on as those of a new pass.

        The iteration must be started in the body.

        Args:
            data_pass: the pass.
            generators: the random generators of the data, which the sampler may draw from.
        """
        self._reset(data_pass)
        self.is_beginning, self._generators = True, generators
        try:
            yield
        finally:
            self.is_beginning, self._generators = False, {}

    def continue_next(self) -> None:
        """Makes the next iteration continue a pass, from the state that the sampler has loaded."""
        self._continues_pass, self._drawn_count = True, max(self._drawn_count, _CHECKED_ELEMENTS)

    def rewind(self, data_pass: int) -> None:
        """Resets the sampler to the start of a pass that had begun; else saves its state there."""
        if self._start_pass != data_pass:
            state, self._start_pass = self._current_state(), data_pass
            self._is_unsavable = not is_plain_data(state)
            self._start_state = None if self._is_unsavable else state
        elif self._start_state is not None:
            self._load_into_holder(self._start_state)
        else:
            warnings.warn(
                f"the {type(self.holder).__name__} has no known state of the start of pass "
                f"{data_pass + 1}, and is iterated from where it is: other samples may come. Go "
                "back no further than to the position that was loaded",
                stacklevel=2,
            )

    def can_enter_at(self, data_pass: int, start: int) -> bool:
        """Returns whether a pass can be entered after ``start`` elements without redrawing any."""
        is_kept = self._drawn_count - len(self._elements) <= start
        # At the end of the pass ``start`` may exceed the count: the last batch may be smaller.
        is_drawn = start <= self._drawn_count or self._is_over
        return self._data_pass == data_pass and is_kept and is_drawn and not self._is_irregular

    def head(self, count: int) -> list[Any]:
        """Returns the first ``count`` elements of the pass, which pad its last batches.

        If the batch size has grown since the state was saved, fewer elements were kept than are
        needed; then they are repeated, as Accelerate does at the end of a small data set.
        """
        repeats = -(-count // max(1, len(self._head)))
        return [_copy_element(each) for each in (self._head * repeats)[:count]]

    def rest(self, start: int) -> Iterator[Any]:
        """Returns the elements after the first ``start``: recorded ones, then newly drawn ones."""
        kept = self._kept_after(start)
        if self._is_over:
            return iter(kept)
        if self._iterator is None:
            self._iterator = self._resumed_iterator()
        return chain(kept, self._record_elements(self._iterator))

    def _resumed_iterator(self) -> Iterator[Any]:
        """Returns the elements that follow a state which was loaded in the middle of a pass."""
        holder = self.holder
        if isinstance(holder, Iterator):
            return holder  # at the position of its state already; iter() may make it begin again
        opening = self._before_iterator or self._before_first
        return iter(holder) if opening is None else self._redraw_order(opening)

    def _redraw_order(self, opening: RandomState) -> Iterator[Any]:
        """Lets the sampler draw its order again, with the generators of the first time."""
        with RandomState.preserved():
            opening.restore_global()
            iterator = iter(self.holder)
            first = [*islice(iterator, 0 if self._before_first is None else 1)]
        yield from first
        yield from _remaining_elements(iterator)

    def exhaust(self) -> None:
        """Draws the remaining elements of the pass."""
        deque(self.rest(self._drawn_count), maxlen=0)

    def _kept_after(self, start: int) -> list[Any]:
        first = self._drawn_count - len(self._elements)
        return [_copy_element(each) for each in islice(self._elements, start - first, None)]

    def _record_elements(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yields the elements of an iterator, and records them while no other has replaced it."""
        while True:
            before = RandomState.capture() if self._drawn_count < _CHECKED_ELEMENTS else None
            element = next(iterator, _END)
            if element is _END:
                break
            if iterator is self._iterator:
                if before is not None and before.has_moved():
                    # A draw with the second element: the order is not drawn with the first.
                    self._before_first = None if self._drawn_count else before
                self._note_element(element)
            yield element
        if iterator is self._iterator:
            self._is_over, self._loaded_state = True, None

    def _note_element(self, element: Any) -> None:
        if self.size is not None and self._elements and len(self._elements[-1]) != self.size:
            self._is_irregular = True
        self._loaded_state = None
        self._drawn_count += 1
        self._elements.append(_copy_element(element))
        while len(self._elements) > self.capacity:
            self._elements.popleft()
        if self._drawn_count <= self.head_size:
            self._head.append(_copy_element(element))
        if self._drawn_count <= 2 and self._start_state is not None and not self._state_advances:
            self._check_advance(self._current_state())

    def _check_advance(self, state: Any) -> None:
        """Checks whether each of the first two elements of a pass has changed the state.

        A state that counts an element only when the next one is drawn, or that changes once per
        pass, does not hold the position.
        """
        if self._drawn_count == 1:
            self._second_state = state
        else:
            before, between = self._start_state, self._second_state
            self._state_advances = not (
                is_same_state(before, between) or is_same_state(between, state)
            )
            self._second_state = None

    def _current_state(self) -> Any:
        """Returns the present state: the loaded one if no element was drawn after it.

        Some samplers return a wrong state between ``load_state_dict`` and their next iteration.
        """
        if self._loaded_state is not None:
            return self._loaded_state
        return copy.deepcopy(self.holder.state_dict())

    def _load_into_holder(self, state: Any) -> None:
        """Loads a copy of ``state`` into the sampler, which may keep and change its argument."""
        self.holder.load_state_dict(copy.deepcopy(state))
        self._loaded_state = state

    def state_dict(self, data_pass: int, start: int, *, is_begun: bool) -> dict[str, Any] | None:
        """Returns the present state, and the recorded elements after the first ``start``.

        Args:
            data_pass: the pass.
            start: the number of elements before the position.
            is_begun: whether the pass has begun. If not, the state from before the pass is saved.

        Returns:
            Plain data; None if the elements are unknown, or cannot be saved as plain data.
        """
        is_within = is_begun and self.can_enter_at(data_pass, start)
        if is_within:
            self._check_end()
        if (start or is_begun) and not (is_within and self._state_advances):
            return None  # within a pass the state is of use only with the elements drawn ahead
        is_opened = self._start_pass == data_pass and not is_begun
        state = self._start_state if is_opened else self._current_state()
        elements = pack_elements(self._kept_after(start) if is_within else [])
        head = pack_elements(self._head if is_within else [])
        self._is_unsavable = (
            elements is None or head is None or state is None or not is_plain_data(state)
        )
        if self._is_unsavable:
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

    def _check_end(self) -> None:
        """Takes the sampler to the end of its iteration if it has yielded all its elements.

        From a state of before the end some samplers would begin another pass.
        """
        try:
            is_whole = self._drawn_count == len(self.holder)
        except TypeError:
            return
        if is_whole and not self._is_over and self._iterator is not None:
            self._is_over = next(self._iterator, _END) is _END
            self._loaded_state = None

    @property
    def opening(self) -> dict[str, Any] | None:
        """The states of the global generators from which the order of the pass was drawn.

        None if the order is not drawn from them by ``iter()`` or with the first element.
        """
        opening = {"iterator": self._before_iterator, "first": self._before_first}
        if not any(opening.values()):
            return None
        return {name: each and each.state_dict() for name, each in opening.items()}

    def load_opening(self, opening: Mapping[str, Any] | None) -> None:
        """Restores a value of ``opening``, from which the rest of a pass draws its order."""
        states = opening or {"iterator": None, "first": None}
        self._before_iterator, self._before_first = (
            states[each] and RandomState.from_state_dict(states[each])
            for each in ("iterator", "first")
        )

    def load_state_dict(self, data_pass: int, state_dict: Mapping[str, Any] | None) -> None:
        """Continues from a state of ``state_dict``, of a sampler of the same name; None resets."""
        self._reset()
        self._loaded_state = self._start_state = self._start_pass = None
        if state_dict is None:
            return
        self._load_into_holder(state_dict["state"])
        self._is_unsavable, self._is_over = False, state_dict["is_over"]
        if state_dict["is_within"]:
            self._data_pass = self._start_pass = data_pass
            self._state_advances = True
            self._elements.extend(unpack_elements(state_dict["elements"]))
            self._head = unpack_elements(state_dict["head"])
            self._drawn_count = state_dict["start"] + len(self._elements)
            self.load_opening(state_dict.get("opening"))

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns the reasons why the next elements may differ from those of the saved run."""
        if state_dict["is_within"] or state_dict["is_over"]:
            return []
        return [
            f"the pass before was left in its middle: {self.keeper.name} begins the next one where "
            "its state says, and may give what was left of it first"
        ]

    def doubts(self) -> list[str]:
        """Returns the reason why the state is not saved, if there is one."""
        if self._is_unsavable:
            return [
                f"the state_dict of {self.keeper.name}, or what it yields, has more in it than "
                "tensors, numbers, texts, lists and dicts, and is not saved: it is iterated again "
                "instead"
            ]
        if self._state_advances is False:
            return [
                f"the state_dict of {self.keeper.name} is the same after an element as before it, "
                "and is not saved: it is iterated again instead"
            ]
        if self._is_irregular:
            return [
                f"the state of {self.keeper.name} is not saved, because its batches differ in "
                f"length, and Accelerate leaves out those without {self.size} samples"
            ]
        if self._drawn_count == 1 and self._before_first is not None:
            return [
                f"{self.keeper.name} draws from the global random generators for its first "
                "element, and only the second one tells whether that was the order of the pass"
            ]
        return []


def _remaining_elements(iterator: Iterator[Any]) -> Iterator[Any]:
    """Yields the remaining elements without calling ``iter()``, which makes some begin again."""
    while (element := next(iterator, _END)) is not _END:
        yield element


def _copy_element(element: Any) -> Any:
    """Returns a copy of an index batch, because Accelerate pads the last one in place."""
    if type(element) is list:
        return element.copy()
    return element.clone() if isinstance(element, torch.Tensor) else element


def pack_elements(elements: Iterable[Any]) -> dict[str, Any] | None:
    """Returns elements as plain data, integers as one tensor; None if that is not possible."""
    elements = [*elements]
    is_nested = bool(elements) and all(type(each) is list for each in elements)
    flat = [*chain.from_iterable(elements)] if is_nested else elements
    types = {type(each) for each in flat}
    if types in ({int}, {np.int64}) and all(-(2**63) <= each < 2**63 for each in flat):
        return {
            "indices": torch.tensor(flat, dtype=torch.int64),
            "sizes": torch.tensor([*map(len, elements)]) if is_nested else None,
            "is_numpy": types == {np.int64},
        }
    return {"values": elements} if is_plain_data(elements) else None


def unpack_elements(state: Mapping[str, Any]) -> list[Any]:
    """Returns the elements that were given to ``pack_elements``."""
    if "values" in state:
        return [*state["values"]]
    indices = state["indices"]
    flat = [*indices.numpy()] if state["is_numpy"] else indices.tolist()
    if state["sizes"] is None:
        return flat
    following = iter(flat)
    return [[*islice(following, size)] for size in state["sizes"].tolist()]
