"""Enters the order of the samples of a pass at any position, at the cost of its beginning.

A sampler yields its indices one by one, so position ``n`` is reached by asking for ``n`` indices.
The samplers of torch and Accelerate draw in a known way: one permutation of all samples, 32 indices
at a time, or all at once. This module makes the same draws, which gives the same indices and leaves
the generator in the same state, and builds no list that a fresh pass does not build. Indices that a
sampler draws 32 at a time are drawn again in few large calls: ``torch.randint`` gives the same
numbers in one call as in many. ``tests/data/test_sample_order.py`` fails if a sampler changes how
it draws.

Only these exact classes are treated so, not their subclasses. Any other order is iterated up to the
position, except for the iterators of lists, tuples and ranges, which have an index.
"""

import copy
import warnings
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from itertools import chain
from itertools import islice
from typing import Any
from typing import TypeAlias

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import BatchSampler
from torch.utils.data import DistributedSampler
from torch.utils.data import RandomSampler
from torch.utils.data import SequentialSampler
from torch.utils.data import SubsetRandomSampler
from torch.utils.data import WeightedRandomSampler

from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.recorded_order import RecordedOrder

__all__ = [
    "batches_behind",
    "elements_a_batch",
    "entered",
    "entered_at_element",
    "entered_at_sample",
    "gone_through",
    "name_of",
    "samples_a_batch",
    "samples_of",
    "with_recorded",
]

# The elements of the beginning that are asked for, and the iterator over the rest.
_Entered: TypeAlias = tuple[list[Any], Iterator[Any]]

_DRAWN_AT_ONCE = 32  # by a RandomSampler with replacement
_REDRAWN_AT_ONCE = 10**6
_WITH_PLACES = (SequentialSampler, DistributedSampler, list, tuple, range)
_WITH_INDEX = tuple(type(iter(each)) for each in (list[int](), (0,), range(0)))


def entered(order: Any, start: int, first: int = 0) -> _Entered:
    """Enters an order after its first ``start`` elements.

    The random numbers for these elements are drawn now, so the generators must be in the state in
    which the pass began. Later random numbers are drawn lazily, as the sampler draws them.

    Args:
        order: a sampler, a batch sampler, or any iterable.
        start: number of elements before the position.
        first: number of elements to return from the start of the order; at most ``start``.

    Returns:
        The first elements, and an iterator over the elements after the position.
    """
    if type(order) in (BatchSampler, BatchSamplerShard) and not first:
        size = samples_a_batch(order)
        if size is not None:
            return [], entered_at_sample(order, start * size)
    enter: Callable[[Any, int, int], _Entered] = _ENTERED_BY.get(type(order), _enter_any)
    return enter(order, start, first)


def samples_a_batch(order: Any) -> int | None:
    """Returns how many samples of all processes one index batch takes.

    Returns None if the number is not certain: other classes may yield batches of varying size.
    """
    if type(order) is BatchSampler:
        return order.batch_size
    if type(order) is BatchSamplerShard and type(order.batch_sampler) is BatchSampler:
        size: int = order.batch_sampler.batch_size
        return size if order.split_batches else size * order.num_processes
    return None


def elements_a_batch(order: Any) -> int:
    """Returns how many elements of a recorded order one index batch of this process takes.

    Args:
        order: a recorded order, or torch's or Accelerate's batch sampler over one.
    """
    if type(order) is BatchSamplerShard and type(order.batch_sampler) is not BatchSampler:
        return 1 if order.split_batches else order.num_processes
    return samples_a_batch(order) or 1


def with_recorded(order: Any, recorded: RecordedOrder) -> Any:
    """Returns the same order over a recorded sampler in place of the sampler itself."""
    if order is recorded.holder:
        return recorded
    if type(order) is BatchSampler:
        samples = with_recorded(order.sampler, recorded)
        return BatchSampler(samples, order.batch_size, order.drop_last)
    shard = copy.copy(order)
    shard.batch_sampler = with_recorded(order.batch_sampler, recorded)
    return shard


def samples_of(order: Any) -> int | None:
    """Returns how many samples of all processes a pass has; None if the number is not known."""
    if samples_a_batch(order) is None:
        return None
    batches = order.batch_sampler if type(order) is BatchSamplerShard else order
    try:
        return len(batches.sampler)
    except TypeError:
        return None


def entered_at_sample(order: Any, samples: int) -> Iterator[Any]:
    """Enters an order of batches after its first ``samples`` samples: the next batch starts there.

    Args:
        order: an order for which ``samples_a_batch`` returns a number.
        samples: samples of all processes before the position.
    """
    if type(order) is BatchSampler:
        _, rest = entered(order.sampler, samples)
        return iter(BatchSampler(rest, order.batch_size, order.drop_last))
    whole = order.batch_sampler
    first, rest = _with_head(order, whole.sampler, samples)
    return _divided(order, BatchSampler(rest, whole.batch_size, whole.drop_last), first)


def entered_at_element(order: Any, start: int) -> Iterator[Any]:
    """Enters an order over a recorded one after ``start`` elements of that, which it reaches."""
    if samples_a_batch(order) is not None:
        return entered_at_sample(order, start)
    if type(order) is RecordedOrder:
        return order.rest(start)
    whole = order.batch_sampler
    first, rest = _with_head(order, whole, start)
    return _divided(order, _Batches(rest, whole), first)


def _with_head(shard: BatchSamplerShard, elements: Any, start: int) -> tuple[bool, Iterator[Any]]:
    """Enters the elements that a shard divides; returns whether those of a batch come first.

    The shard pads the last batches with the first samples of the pass, so it needs the first batch
    of each process as well. If these were not full, the rest is divided as a pass is.
    """
    a_batch = elements_a_batch(shard)
    is_filled = shard.even_batches and not shard.drop_last and start >= a_batch
    first, rest = entered(elements, start, a_batch if is_filled else 0)
    return is_filled, chain(first, rest)


def _divided(order: BatchSamplerShard, batches: Any, is_filled: bool) -> Iterator[Any]:
    """Returns the part of this process of some batches, but for those that only fill the last."""
    shard = copy.copy(order)
    shard.batch_sampler = batches
    return islice(iter(shard), 1 if is_filled else 0, None)


class _Batches:
    """The index batches that are left of a pass, as Accelerate iterates them.

    Args:
        batches: the index batches.
        whole: what gives those of a pass.
    """

    def __init__(self, batches: Iterator[Any], whole: RecordedOrder) -> None:
        self._batches, self._whole = batches, whole

    def __iter__(self) -> Iterator[Any]:
        return self._batches

    @property
    def batch_size(self) -> Any:
        return self._whole.batch_size


def batches_behind(order: Any, samples: int) -> int:
    """Returns how many batches ``entered_at_sample`` yields, for an order of known length."""
    whole: Any = order.batch_sampler if type(order) is BatchSamplerShard else order
    count = max(0, len(whole.sampler) - samples)
    left = BatchSampler(range(count), whole.batch_size, whole.drop_last)
    if whole is order:
        return len(left)
    if order.split_batches and not order.even_batches and not order.drop_last:
        # Its own len() counts a last batch of which this process has no part.
        part: int = whole.batch_size // order.num_processes
        has_part: bool = count % whole.batch_size > part * order.process_index
        return count // int(whole.batch_size) + has_part
    shard = copy.copy(order)
    shard.batch_sampler = left
    return len(shard)


def gone_through(order: Any) -> Any:
    """Returns the sampler that is iterated from its start to enter the order; None if none is."""
    if type(order) is BatchSamplerShard:
        return gone_through(order.batch_sampler)
    if type(order) is BatchSampler:
        return gone_through(order.sampler)
    return None if type(order) in (*_ENTERED_BY, *_WITH_PLACES) else order


def name_of(order: Any) -> str:
    """Returns the name of the class that decides on the order, to notice another one."""
    if type(order) is BatchSamplerShard:
        return name_of(order.batch_sampler)
    if type(order) is BatchSampler:
        return name_of(order.sampler)
    if type(order) is RecordedOrder:
        return name_of(order.holder)
    name = type(order).__name__
    return f"{name}(replacement=True)" if getattr(order, "replacement", None) is True else name


def _enter_any(order: Iterable[Any], start: int, first: int) -> _Entered:
    iterator: Any = iter(order)
    if type(iterator) in _WITH_INDEX:
        sequence = iterator.__reduce__()[1][0]
        iterator.__setstate__(start)
        return list(sequence[:first]), iterator
    before = list(islice(iterator, max(first, min(start, 1))))
    begun = RandomState.capture()
    deque(islice(iterator, start - len(before)), maxlen=0)
    if begun.has_moved():
        warnings.warn(
            f"{name_of(order)} draws from the global random generators while it is iterated: "
            f"its first {start} elements are drawn again without the random numbers that others "
            "drew in between, so the elements that follow may differ. Give it its own generator, "
            "or state_dict() and load_state_dict()",
            stacklevel=2,
        )
    return before[:first], iterator


def _enter_recorded(order: RecordedOrder, start: int, first: int) -> _Entered:
    if order.is_beginning:
        return _enter_any(order, start, first)
    return order.head(first), order.rest(start)


def _enter_random(sampler: RandomSampler, start: int, first: int) -> _Entered:
    population, count = len(sampler.data_source), sampler.num_samples
    generator = sampler.generator
    if generator is None:
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        generator = torch.Generator()
        generator.manual_seed(seed)

    def with_replacement(number: int) -> torch.Tensor:
        return torch.randint(
            high=population, size=(number,), dtype=torch.int64, generator=generator
        )

    def without(number: int) -> torch.Tensor:
        return torch.randperm(population, generator=generator)[:number]

    draw: Callable[[int], torch.Tensor]
    if sampler.replacement:
        draw, block, at_once = with_replacement, _DRAWN_AT_ONCE, _REDRAWN_AT_ONCE
    else:
        draw, block, at_once = without, population, population
    whole = count - count % block
    behind = min(start - start % block, whole)
    before: list[int] = []
    for done in range(0, behind, at_once):
        drawn = draw(min(at_once, behind - done))
        before += drawn[: first - len(before)].tolist()
    # torch draws the last block even if it is empty.
    blocks = (
        draw(block if done < whole else count % block) for done in range(behind, whole + 1, block)
    )
    if start == behind:
        return before, _in_one(blocks)
    drawn = next(blocks)
    before += drawn[: first - len(before)].tolist()
    return before, chain(drawn[start - behind :].tolist(), _in_one(blocks))


def _in_one(blocks: Iterator[torch.Tensor]) -> Iterator[int]:
    return chain.from_iterable(map(torch.Tensor.tolist, blocks))


def _enter_seedable(sampler: SeedableRandomSampler, start: int, first: int) -> _Entered:
    """Seeds the sampler as it does itself at the start of each pass, from the pass number."""
    if sampler.generator is None:
        sampler.generator = torch.Generator(device=torch.get_default_device())
    sampler.generator.manual_seed(sampler.epoch + sampler.initial_seed)
    return _enter_random(sampler, start, first)


def _enter_subset(sampler: SubsetRandomSampler, start: int, first: int) -> _Entered:
    drawn = torch.randperm(len(sampler.indices), generator=sampler.generator)
    index = sampler.indices.__getitem__
    return [*map(index, drawn[:first].tolist())], map(index, drawn[start:].tolist())


def _enter_weighted(sampler: WeightedRandomSampler, start: int, first: int) -> _Entered:
    drawn = torch.multinomial(
        sampler.weights, sampler.num_samples, sampler.replacement, generator=sampler.generator
    )
    return drawn[:first].tolist(), iter(drawn[start:].tolist())


_ENTERED_BY: dict[type, Callable[[Any, int, int], _Entered]] = {
    RandomSampler: _enter_random,
    RecordedOrder: _enter_recorded,
    SeedableRandomSampler: _enter_seedable,
    SubsetRandomSampler: _enter_subset,
    WeightedRandomSampler: _enter_weighted,
}
