"""Records what a sampler yields, so that a run can resume from the saved state of the sampler.

A sampler has a state if it has ``state_dict`` and ``load_state_dict``. An *element* is one index,
or one index batch (the list of the indices of a batch), that the sampler yields. A *pass* is one
iteration over the whole data.

The main process sends index batches to workers before earlier batches have arrived. So the state of
the sampler is ahead of the position of the run. The elements that the sampler has yielded after the
position are kept, and saved with the state. A process that resumes takes these elements first, and
then continues the sampler from the saved state.

A *keeper* (``PositionKeeper``) wraps an object whose state determines which batch comes next. Here
it wraps the sampler.
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
from ignite_hooks.data.snapshots import PositionKeeper
from ignite_hooks.data.snapshots import is_same_state

__all__ = ["RecordedOrder", "pack_elements", "unpack_elements"]

_END = object()
# At the first two elements of a pass, this module checks whether the sampler draws from the global
# generators. If the sampler draws for the first element but not for the second, it has drawn the
# whole order with the first element.
_CHECKED_ELEMENTS = 2


class RecordedOrder(ExcludedFromSearch):
    """A wrapper that records the elements of a sampler or batch sampler with a state.

    A loader iterates over the wrapper in place of the sampler. Elements are counted from the start
    of a pass.

    Attributes:
        keeper: the keeper of the sampler.
        capacity: the number of most recent elements that are kept.
        head_size: the number of elements from the start of a pass that are kept in addition.
            Accelerate pads the last batches of the pass with these elements.
        size: the length of each index batch except the last; None if lengths may differ. Accelerate
            leaves out a batch of another length, and a run cannot resume in the middle of a pass
            with such a batch.
        is_beginning: whether the body of a ``with recorded.beginning(…)`` is running. In this body
            a new pass starts.

    Args:
        keeper: see the attribute.
        head_size: see the attribute.
        size: see the attribute.
    """

    def __init__(self, keeper: PositionKeeper, head_size: int = 0, size: int | None = None) -> None:
        self.keeper = keeper
        self.capacity = 0
        self.head_size = head_size
        self.size = size
        # Whether the state changes with each element; None until two elements were drawn.
        self._state_advances: bool | None = None
        self._is_unsavable = False  # whether the state or an element is not plain data
        # The state that was loaded last; None as soon as an element is drawn after the load.
        self._loaded_state: Any = None
        self._start_pass: int | None = None  # the pass that `_start_state` belongs to
        # The state before the first element of a pass; None if unknown or not plain data.
        self._start_state: Any = None
        # The state after the first element of the present pass, up to the second element.
        self._state_after_first: Any = None
        self.is_beginning = False
        self._continues_pass = False  # whether the next iteration continues a pass
        # The generators from which the sampler may draw; empty outside of the body of a
        # `with recorded.beginning(…)`.
        self._generators: Mapping[str, RandomGenerator] = {}
        self._reset()

    def _reset(self, data_pass: int | None = None) -> None:
        # The pass that the recorded elements belong to; None for a pass outside of `beginning`.
        self._data_pass = data_pass
        self._elements = deque[Any]()  # the most recent elements
        self._head: list[Any] = []  # the elements from the start of the pass
        self._drawn_count = 0  # the number of elements of the pass that were drawn
        self._iterator: Iterator[Any] | None = None  # the iterator whose elements are recorded
        # Whether the iterator has reached its end, and whether an index batch before the last has
        # another length than `size`.
        self._is_over, self._is_irregular = True, False
        # The states of the global generators before the sampler drew the order of the whole pass,
        # in iter() or with the first element; None if there was no such draw. From these states the
        # sampler draws the same order again.
        self._before_iterator: RandomState | None = None
        self._before_first: RandomState | None = None

    @property
    def holder(self) -> Any:
        """The sampler that is recorded."""
        return self.keeper.wrapped

    @property
    def has_loaded_state(self) -> bool:
        """Returns whether a state was loaded and no element has been drawn since."""
        return self._loaded_state is not None

    @property
    def has_usable_state(self) -> bool:
        """Returns whether the state of the sampler contains the position and can be saved.

        Whether the state contains the position is known after the first two elements of a pass.
        Until then, the state counts as usable.
        """
        return self._state_advances is not False and not self._is_unsavable

    @property
    def draws_on_iter(self) -> bool:
        """Returns whether the sampler's ``__iter__`` drew from the global generators."""
        return self._before_iterator is not None

    @property
    def batch_size(self) -> Any:
        """The batch size of the recorded batch sampler. Accelerate reads it to split batches."""
        return self.holder.batch_size

    def __len__(self) -> int:
        return len(self.holder)

    def __iter__(self) -> Iterator[Any]:
        if self._continues_pass:
            self._continues_pass, self._is_over = False, False
            self._iterator = self._resumed_iterator()
            return self._record_elements(self._iterator)
        # Outside of `beginning` a pass has no number. In this case the loader has no workers, or
        # the user iterates a loader whose persistent iterator keeps this wrapper.
        self._reset(self._data_pass if self.is_beginning else None)
        # The sampler's iter() may draw random numbers. It is called here, and not lazily with the
        # first element, so that it draws at the same time as without this wrapper.
        random = RandomState.capture(generators=self._generators) if self.has_loaded_state else None
        before = RandomState.capture()
        iterator, self._is_over = iter(self.holder), False
        self._before_iterator = before if before.has_moved() else None
        self._iterator = iterator if random is None else self._elements_past_end(iterator, random)
        return self._record_elements(self._iterator)

    def _elements_past_end(self, iterator: Iterator[Any], random: RandomState) -> Iterator[Any]:
        """Yields the elements of a new pass after a state was loaded.

        The loaded state may be from the end of a pass. Some samplers continue this pass, so their
        next iteration yields nothing. In this case the generators are restored, and a second
        iteration begins the new pass.

        Args:
            iterator: an iterator of the sampler.
            random: the states of the generators before this iterator was made.
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
        """Treats an iteration that starts within the ``with`` block as a new pass.

        Args:
            data_pass: the number of the pass, from 0.
            generators: the random generators of the data, from which the sampler may draw.
        """
        self._reset(data_pass)
        self.is_beginning, self._generators = True, generators
        try:
            yield
        finally:
            self.is_beginning, self._generators = False, {}

    def continue_next(self) -> None:
        """Makes the next iteration over this object continue a pass.

        The sampler then continues from the state that was loaded into it.
        """
        # `_drawn_count` is raised, because the next elements are not the first two of a pass, and
        # must not be checked as such.
        self._continues_pass, self._drawn_count = True, max(self._drawn_count, _CHECKED_ELEMENTS)

    def rewind(self, data_pass: int) -> None:
        """Sets the sampler back to the start of a pass.

        The first call for a pass comes before the pass begins. At this time the sampler is at the
        start of the pass, and its state is kept. Each further call for this pass loads the kept
        state, or warns if no state was kept.
        """
        if self._start_pass != data_pass:
            state, self._start_pass = self._current_state(), data_pass
            self._is_unsavable = not is_plain_data(state)
            self._start_state = None if self._is_unsavable else state
        elif self._start_state is not None:
            self._load_into_holder(self._start_state)
        else:
            warnings.warn(
                f"the {type(self.holder).__name__} has no known state of the start of pass "
                f"{data_pass + 1}, and is iterated from its present state, so the samples may "
                "differ. Go back no further than to the position that was loaded",
                stacklevel=2,
            )

    def can_enter_at(self, data_pass: int, start: int) -> bool:
        """Returns whether a pass can continue from its element with the index ``start``.

        This is possible if all elements before this index were drawn, and all elements that were
        drawn after them are still kept.
        """
        is_kept = self._drawn_count - len(self._elements) <= start
        # ``start`` counts the last batch of a pass as a full batch, although it may be smaller. So
        # at the end of the pass ``start`` may exceed the number of drawn elements.
        is_drawn = start <= self._drawn_count or self._is_over
        return self._data_pass == data_pass and is_kept and is_drawn and not self._is_irregular

    def head(self, count: int) -> list[Any]:
        """Returns the first ``count`` elements of the pass, with which its last batches are padded.

        If the batch size has grown since the state was saved, fewer than ``count`` elements were
        kept. The kept elements are then repeated, as Accelerate does at the end of a small data
        set.
        """
        repeats = -(-count // max(1, len(self._head)))
        return [_copy_element(each) for each in (self._head * repeats)[:count]]

    def rest(self, start: int) -> Iterator[Any]:
        """Returns the elements of the pass from index ``start`` on: kept ones, then new ones."""
        kept = self._kept_after(start)
        if self._is_over:
            return iter(kept)
        if self._iterator is None:
            self._iterator = self._resumed_iterator()
        return chain(kept, self._record_elements(self._iterator))

    def _resumed_iterator(self) -> Iterator[Any]:
        """Returns an iterator that continues a pass from the state loaded into the sampler."""
        holder = self.holder
        if isinstance(holder, Iterator):
            # The sampler is itself an iterator. iter() might make it begin again.
            return holder
        opening = self._before_iterator or self._before_first
        return iter(holder) if opening is None else self._redraw_order(opening)

    def _redraw_order(self, opening: RandomState) -> Iterator[Any]:
        """Yields the remaining elements of the sampler, which must first draw its order again.

        Args:
            opening: the states of the global generators from which the sampler draws the same order
                as before.
        """
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
        """Yields the elements of an iterator, and records them.

        Recording ends when another iterator has become ``self._iterator``.
        """
        while True:
            before = RandomState.capture() if self._drawn_count < _CHECKED_ELEMENTS else None
            element = next(iterator, _END)
            if element is _END:
                break
            if iterator is self._iterator:
                if before is not None and before.has_moved():
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

        If not, the state does not hold the position. For example, the state may change once per
        pass, or count an element only when the next element is drawn.

        Args:
            state: the state after the element that was just drawn, the first or the second.
        """
        if self._drawn_count == 1:
            self._state_after_first = state
        else:
            before, between = self._start_state, self._state_after_first
            self._state_advances = not (
                is_same_state(before, between) or is_same_state(between, state)
            )
            self._state_after_first = None

    def _current_state(self) -> Any:
        """Returns the present state of the sampler.

        Some samplers return a wrong state between ``load_state_dict`` and their next iteration. So
        the loaded state is returned until an element has been drawn after the load.
        """
        if self._loaded_state is not None:
            return self._loaded_state
        return copy.deepcopy(self.holder.state_dict())

    def _load_into_holder(self, state: Any) -> None:
        """Loads a copy of ``state``, because the sampler may keep and change its argument."""
        self.holder.load_state_dict(copy.deepcopy(state))
        self._loaded_state = state

    def state_dict(self, data_pass: int, start: int, *, is_begun: bool) -> dict[str, Any] | None:
        """Returns the present state, and the recorded elements from index ``start`` on.

        Args:
            data_pass: the number of the pass.
            start: the number of elements before the position.
            is_begun: whether the pass has begun. If not, the state from before the pass is saved.

        Returns:
            None if some of the elements are not recorded, or if the state or an element is not
            plain data. Otherwise a dict of plain data with these keys:

            - ``of``: the name of the keeper.
            - ``state``: the state of the sampler.
            - ``start``: the argument ``start``.
            - ``elements``: the elements that the sampler has yielded after the position.
            - ``head``: the first elements of the pass (see ``head_size``).
            - ``is_within``: whether the position is in a pass that has begun. If not, there are no
              elements.
            - ``is_over``: whether the sampler was between two iterations, not in the middle of one.
            - ``opening``: see the property ``opening``; None if ``is_within`` is False.
        """
        is_within = is_begun and self.can_enter_at(data_pass, start)
        if is_within:
            self._check_end()
        if (start or is_begun) and not (is_within and self._state_advances):
            # Within a pass, the state can be used only together with the recorded elements, and
            # only if each element changes the state.
            return None
        is_at_start = self._start_pass == data_pass and not is_begun
        state = self._start_state if is_at_start else self._current_state()
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
            "is_over": self._is_over or is_at_start,
            "opening": self.opening if is_within else None,
        }

    def _check_end(self) -> None:
        """Ends the iteration of a sampler that has yielded all elements, by asking for one more.

        Some samplers begin another pass if they resume from a state that was saved after the last
        element and before the end of the iteration.
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
        """The states of the global generators before the order of the pass was drawn from them.

        None if neither ``iter()`` nor the first element draws the order from the global generators.
        """
        opening = {"iterator": self._before_iterator, "first": self._before_first}
        if not any(opening.values()):
            return None
        return {name: each and each.state_dict() for name, each in opening.items()}

    def load_opening(self, opening: Mapping[str, Any] | None) -> None:
        """Restores a saved value of ``opening``, so that the same order can be drawn again."""
        states = opening or {"iterator": None, "first": None}
        self._before_iterator, self._before_first = (
            states[each] and RandomState.from_state_dict(states[each])
            for each in ("iterator", "first")
        )

    def load_state_dict(self, data_pass: int, state_dict: Mapping[str, Any] | None) -> None:
        """Loads a saved state into the sampler, and records the saved elements again.

        Args:
            data_pass: the number of the pass.
            state_dict: a result of the method ``state_dict``, saved by a keeper of the same name.
                None to forget the present pass.
        """
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
        """Returns the reasons why the next elements may differ from those of the saved run.

        The saved run is the run that made ``state_dict``.
        """
        if state_dict["is_within"] or state_dict["is_over"]:
            return []
        return [
            f"the previous pass was left before its end: {self.keeper.name} begins the "
            "next pass from its restored state, and may first give the rest of the previous pass"
        ]

    def doubts(self) -> list[str]:
        """Returns the reason why the state is not saved, if there is one."""
        if self._is_unsavable:
            return [
                f"the state_dict of {self.keeper.name} is not saved, because this state or an "
                "element contains other types than tensors, numbers, texts, lists and dicts: the "
                "sampler is iterated again instead"
            ]
        if self._state_advances is False:
            return [
                f"the state_dict of {self.keeper.name} is not saved, because it is the same after "
                "an element as before: the sampler is iterated again instead"
            ]
        if self._is_irregular:
            return [
                f"the state of {self.keeper.name} is not saved, because its batches differ in "
                f"length, and Accelerate leaves out batches that do not have {self.size} samples"
            ]
        if self._drawn_count == 1 and self._before_first is not None:
            return [
                f"{self.keeper.name} draws from the global random generators for its first "
                "element; whether this draw is the order of the whole pass is known only after the "
                "second element"
            ]
        return []


def _remaining_elements(iterator: Iterator[Any]) -> Iterator[Any]:
    """Yields the remaining elements of an iterator.

    ``iter()`` is not called, because it makes some iterators begin again.
    """
    while (element := next(iterator, _END)) is not _END:
        yield element


def _copy_element(element: Any) -> Any:
    """Returns a copy of an element if it is an index batch; otherwise the element.

    Index batches are copied because Accelerate pads the last index batch of a pass in place.
    """
    if type(element) is list:
        return element.copy()
    return element.clone() if isinstance(element, torch.Tensor) else element


def pack_elements(elements: Iterable[Any]) -> dict[str, Any] | None:
    """Returns elements as plain data, which contains no pickled objects; None if not possible.

    If the elements are integers or lists of integers, all integers are put into one tensor. The
    result then has the keys ``indices`` (this tensor), ``sizes`` (the lengths of the lists; None
    for integers) and ``is_numpy`` (whether the integers were ``np.int64``). Otherwise the only key
    is ``values``.
    """
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
