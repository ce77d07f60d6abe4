"""Makes an iterator that begins in the middle of a sample order, without iterating up to there.

An *order* is a sampler, a batch sampler or another iterable. Its *elements* are indices or lists of
indices. To *enter* an order at a position means to make an iterator over the elements after this
position. A *pass* is one iteration over the whole data.

In general, an iterator must yield ``n`` indices to reach position ``n``. But the samplers of torch
and Accelerate draw all indices with one call of ``randperm`` or ``multinomial``, or every 32
indices with one call of ``randint``. This module makes the same draws. So it gets the same indices,
and leaves the generator in the same state. It needs no more memory than an iteration from the start
of the pass. ``torch.randint`` gives the same numbers in one call as in many, so this module makes a
few large calls instead of many small ones. ``tests/data/test_sample_order.py`` fails if a sampler
changes how it draws.

The module makes these draws only if the class of the sampler is exactly a class of torch or
Accelerate, because a subclass may draw differently. Lists, tuples and ranges are entered by moving
the index of their iterator. Any other order is iterated up to the position.
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
    "batches_after",
    "elements_per_batch",
    "enter_at_element",
    "enter_at_sample",
    "enter_order",
    "order_name",
    "replayed_sampler",
    "samples_per_batch",
    "samples_per_pass",
    "with_recorded_sampler",
]

# The first elements of an order, and an iterator over the elements after the position.
_HeadAndRest: TypeAlias = tuple[list[Any], Iterator[Any]]

_BLOCK_SIZE = 32  # the number of indices that a RandomSampler with replacement draws in one call
# The largest number of indices that this module draws in one call. It bounds the memory, and must
# be a multiple of the block size.
_MAX_REDRAWN_AT_ONCE = 10**6
# Classes of orders whose ``__iter__`` returns an iterator of a list, a tuple or a range. Such an
# iterator can be moved to any index.
_DIRECT_ACCESS_TYPES = (SequentialSampler, DistributedSampler, list, tuple, range)
_INDEXED_ITERATORS = tuple(type(iter(each)) for each in (list[int](), (0,), range(0)))


def enter_order(order: Any, start: int, head_size: int = 0) -> _HeadAndRest:
    """Enters an order after its first ``start`` elements.

    The random numbers of these first elements are drawn here, so the generators must have the
    states from the start of the pass. The random numbers of later elements are drawn lazily.

    Args:
        order: a sampler, a batch sampler, or any iterable.
        start: the number of elements before the position.
        head_size: the number of elements to return from the start of the order; at most ``start``.

    Returns:
        The first ``head_size`` elements, and an iterator over the elements after the position.
    """
    if type(order) in (BatchSampler, BatchSamplerShard) and not head_size:
        size = samples_per_batch(order)
        if size is not None:
            return [], enter_at_sample(order, start * size)
    enter: Callable[[Any, int, int], _HeadAndRest] = _ENTER_FUNCTIONS.get(
        type(order), _enter_by_iterating
    )
    return enter(order, start, head_size)


def samples_per_batch(order: Any) -> int | None:
    """Returns the number of samples in one index batch of each process, summed over the processes.

    An index batch is a list of indices. Returns None for batch samplers of other classes than those
    of torch and Accelerate, because their batches may vary in size.
    """
    if type(order) is BatchSampler:
        return order.batch_size
    if type(order) is BatchSamplerShard and type(order.batch_sampler) is BatchSampler:
        size: int = order.batch_sampler.batch_size
        return size if order.split_batches else size * order.num_processes
    return None


def elements_per_batch(order: Any) -> int:
    """Returns how many elements of a recorded order are used when each process takes one batch.

    Args:
        order: a recorded order (``RecordedOrder``), or a batch sampler of torch or Accelerate that
            takes its elements from a recorded order. The elements of a recorded order are indices
            or index batches (lists of indices).
    """
    if type(order) is BatchSamplerShard and type(order.batch_sampler) is not BatchSampler:
        return 1 if order.split_batches else order.num_processes
    return samples_per_batch(order) or 1


def with_recorded_sampler(order: Any, recorded: RecordedOrder) -> Any:
    """Returns a copy of ``order`` in which ``recorded`` replaces the sampler ``recorded.holder``.

    If the order is this sampler itself, ``recorded`` is returned.
    """
    if order is recorded.holder:
        return recorded
    if type(order) is BatchSampler:
        samples = with_recorded_sampler(order.sampler, recorded)
        return BatchSampler(samples, order.batch_size, order.drop_last)
    shard = copy.copy(order)
    shard.batch_sampler = with_recorded_sampler(order.batch_sampler, recorded)
    return shard


def samples_per_pass(order: Any) -> int | None:
    """Returns the number of samples of all processes in a pass; None if not known."""
    if samples_per_batch(order) is None:
        return None
    batches = order.batch_sampler if type(order) is BatchSamplerShard else order
    try:
        return len(batches.sampler)
    except TypeError:
        return None


def enter_at_sample(order: Any, samples: int) -> Iterator[Any]:
    """Enters an order of batches after its first ``samples`` samples.

    The next batch begins directly after these samples, even if the batch size has changed.

    Args:
        order: an order for which ``samples_per_batch`` returns a number.
        samples: the number of samples of all processes before the position.
    """
    if type(order) is BatchSampler:
        _, rest = enter_order(order.sampler, samples)
        return iter(BatchSampler(rest, order.batch_size, order.drop_last))
    whole = order.batch_sampler
    first, rest = _enter_with_head(order, whole.sampler, samples)
    return _take_share(order, BatchSampler(rest, whole.batch_size, whole.drop_last), first)


def enter_at_element(order: Any, start: int) -> Iterator[Any]:
    """Enters a recorded order, or a batch sampler that takes its elements from a recorded order.

    The recorded order must still have the elements after ``start`` (``can_enter_at``).

    Args:
        order: the recorded order, or the batch sampler.
        start: the number of elements of the recorded order before the position.
    """
    if samples_per_batch(order) is not None:
        return enter_at_sample(order, start)
    if type(order) is RecordedOrder:
        return order.rest(start)
    whole = order.batch_sampler
    first, rest = _enter_with_head(order, whole, start)
    return _take_share(order, _RemainingBatches(rest, whole), first)


def _enter_with_head(
    shard: BatchSamplerShard, elements: Any, start: int
) -> tuple[bool, Iterator[Any]]:
    """Enters the elements that a shard divides over the processes.

    A shard pads the last batches of a pass with the samples that it has read first, which must be
    the samples from the start of the pass. So the result begins with the first batch of each
    process, which ``_take_share`` skips, and continues after the position. If the shard pads
    nothing, or if the first batches extend beyond the position, the first batches are left out.

    Args:
        shard: a ``BatchSamplerShard`` of Accelerate, which iterates over the batches of all
            processes and yields those of this process.
        elements: the order from which the shard takes its elements.
        start: the number of elements before the position.

    Returns:
        Whether the result begins with the first batch of each process, and an iterator over the
        elements.
    """
    a_batch = elements_per_batch(shard)
    begins_with_first_batches = shard.even_batches and not shard.drop_last and start >= a_batch
    first, rest = enter_order(elements, start, a_batch if begins_with_first_batches else 0)
    return begins_with_first_batches, chain(first, rest)


def _take_share(
    order: BatchSamplerShard, batches: Any, begins_with_first_batches: bool
) -> Iterator[Any]:
    """Returns this process's share of the batches.

    Args:
        order: the shard.
        batches: the batches of all processes.
        begins_with_first_batches: whether ``batches`` begin with the first batch of each process.
            If so, the shard reads them for the padding, and the result begins after them.
    """
    shard = copy.copy(order)
    shard.batch_sampler = batches
    return islice(iter(shard), 1 if begins_with_first_batches else 0, None)


class _RemainingBatches:
    """The remaining index batches of a pass, with the ``batch_size`` that Accelerate reads.

    Args:
        batches: the remaining index batches.
        whole: the batch sampler that gives the index batches of a whole pass.
    """

    def __init__(self, batches: Iterator[Any], whole: RecordedOrder) -> None:
        self._batches, self._whole = batches, whole

    def __iter__(self) -> Iterator[Any]:
        return self._batches

    @property
    def batch_size(self) -> Any:
        return self._whole.batch_size


def batches_after(order: Any, samples: int) -> int:
    """Returns the number of batches that the iterator of ``enter_at_sample`` yields.

    Args:
        order: a batch sampler of torch or Accelerate, of known length.
        samples: the number of samples of all processes before the position.
    """
    whole: Any = order.batch_sampler if type(order) is BatchSamplerShard else order
    count = max(0, len(whole.sampler) - samples)
    left = BatchSampler(range(count), whole.batch_size, whole.drop_last)
    if whole is order:
        return len(left)
    if order.split_batches and not order.even_batches and not order.drop_last:
        # The len() of the shard counts the last batch even if this process has no part of it.
        part: int = whole.batch_size // order.num_processes
        has_part: bool = count % whole.batch_size > part * order.process_index
        return count // int(whole.batch_size) + has_part
    shard = copy.copy(order)
    shard.batch_sampler = left
    return len(shard)


def replayed_sampler(order: Any) -> Any:
    """Returns the sampler that must be iterated from its start to enter an order.

    Returns None if the order can be entered without this iteration.
    """
    if type(order) is BatchSamplerShard:
        return replayed_sampler(order.batch_sampler)
    if type(order) is BatchSampler:
        return replayed_sampler(order.sampler)
    return None if type(order) in (*_ENTER_FUNCTIONS, *_DIRECT_ACCESS_TYPES) else order


def order_name(order: Any) -> str:
    """Returns the name of the sampler class that determines the order.

    If the name differs from the saved name, the order has changed.
    """
    if type(order) is BatchSamplerShard:
        return order_name(order.batch_sampler)
    if type(order) is BatchSampler:
        return order_name(order.sampler)
    if type(order) is RecordedOrder:
        return order_name(order.holder)
    name = type(order).__name__
    return f"{name}(replacement=True)" if getattr(order, "replacement", None) is True else name


def _enter_by_iterating(order: Iterable[Any], start: int, head_size: int) -> _HeadAndRest:
    """Enters an order by iterating over its elements before the position.

    Warns if elements after the first one are drawn from the global generators.
    """
    iterator: Any = iter(order)
    if type(iterator) in _INDEXED_ITERATORS:
        # Iterators of lists, tuples and ranges can be moved by the protocol of pickle.
        sequence = iterator.__reduce__()[1][0]
        iterator.__setstate__(start)
        return list(sequence[:head_size]), iterator
    # The global generators are in the state of the start of the pass, so a sampler that draws its
    # whole order with the first element gets the same order again. This needs no warning, so the
    # states of the generators are captured after the first element.
    before = list(islice(iterator, max(head_size, min(start, 1))))
    begun = RandomState.capture()
    deque(islice(iterator, start - len(before)), maxlen=0)
    if begun.has_moved():
        warnings.warn(
            f"{order_name(order)} draws from the global random generators while it is iterated. "
            f"Its first {start} elements are drawn again. When they were first drawn, other code "
            "may have drawn random numbers in between, so the elements that follow may differ. "
            "Give the sampler its own generator, or the methods state_dict() and load_state_dict()",
            stacklevel=2,
        )
    return before[:head_size], iterator


def _enter_recorded(order: RecordedOrder, start: int, head_size: int) -> _HeadAndRest:
    """Enters a recorded order: by its record, or by iterating if a pass begins without a record."""
    if order.is_beginning:
        return _enter_by_iterating(order, start, head_size)
    return order.head(head_size), order.rest(start)


def _enter_random(sampler: RandomSampler, start: int, head_size: int) -> _HeadAndRest:
    """Enters a ``RandomSampler`` by making the same draws as its ``__iter__``."""
    population, count = len(sampler.data_source), sampler.num_samples
    generator = sampler.generator
    if generator is None:
        # `RandomSampler.__iter__` draws this seed in the same way.
        seed = int(torch.empty((), dtype=torch.int64).random_().item())
        generator = torch.Generator()
        generator.manual_seed(seed)

    def with_replacement(number: int) -> torch.Tensor:
        return torch.randint(
            high=population, size=(number,), dtype=torch.int64, generator=generator
        )

    def without_replacement(number: int) -> torch.Tensor:
        return torch.randperm(population, generator=generator)[:number]

    draw: Callable[[int], torch.Tensor]
    if sampler.replacement:
        draw, block, at_once = with_replacement, _BLOCK_SIZE, _MAX_REDRAWN_AT_ONCE
    else:
        draw, block, at_once = without_replacement, population, population
    # A block is the indices that the sampler draws in one call. The full blocks before the position
    # are drawn in large calls, to move the generator. All other blocks are drawn as the sampler
    # draws them.
    full_blocks_end = count - count % block  # the number of indices in full blocks
    redrawn = min(start - start % block, full_blocks_end)
    before: list[int] = []
    for done in range(0, redrawn, at_once):
        drawn = draw(min(at_once, redrawn - done))
        before += drawn[: head_size - len(before)].tolist()
    # RandomSampler draws the last block even if it is empty, which moves the generator.
    blocks = (
        draw(block if done < full_blocks_end else count % block)
        for done in range(redrawn, full_blocks_end + 1, block)
    )
    if start == redrawn:
        return before, _flatten(blocks)
    drawn = next(blocks)
    before += drawn[: head_size - len(before)].tolist()
    return before, chain(drawn[start - redrawn :].tolist(), _flatten(blocks))


def _flatten(blocks: Iterator[torch.Tensor]) -> Iterator[int]:
    return chain.from_iterable(map(torch.Tensor.tolist, blocks))


def _enter_seedable(sampler: SeedableRandomSampler, start: int, head_size: int) -> _HeadAndRest:
    """Enters a seedable sampler, after seeding its generator as its ``__iter__`` does."""
    if sampler.generator is None:
        sampler.generator = torch.Generator(device=torch.get_default_device())
    sampler.generator.manual_seed(sampler.epoch + sampler.initial_seed)
    return _enter_random(sampler, start, head_size)


def _enter_subset(sampler: SubsetRandomSampler, start: int, head_size: int) -> _HeadAndRest:
    drawn = torch.randperm(len(sampler.indices), generator=sampler.generator)
    index = sampler.indices.__getitem__
    return [*map(index, drawn[:head_size].tolist())], map(index, drawn[start:].tolist())


def _enter_weighted(sampler: WeightedRandomSampler, start: int, head_size: int) -> _HeadAndRest:
    drawn = torch.multinomial(
        sampler.weights, sampler.num_samples, sampler.replacement, generator=sampler.generator
    )
    return drawn[:head_size].tolist(), iter(drawn[start:].tolist())


_ENTER_FUNCTIONS: dict[type, Callable[[Any, int, int], _HeadAndRest]] = {
    RandomSampler: _enter_random,
    RecordedOrder: _enter_recorded,
    SeedableRandomSampler: _enter_seedable,
    SubsetRandomSampler: _enter_subset,
    WeightedRandomSampler: _enter_weighted,
}
