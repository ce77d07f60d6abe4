"""The order of the samples of a pass, entered at any place for what its beginning costs.

A sampler of torch tells its numbers one after the other, so the place ``n`` is reached by asking
for ``n`` of them. But of the samplers that come with torch and Accelerate it is known how they
draw: one permutation for all samples, 32 numbers at a time, or one draw of all. They are entered
here by the same draws, which give the same numbers and leave the generator in the same state;
nothing is listed that a pass from its beginning does not list. Numbers that are drawn one after
the other are drawn again by few large calls: ``randint`` gives the same numbers in one call as in
many. ``tests/data/test_sample_order.py`` fails when a sampler comes to draw otherwise.

That holds for these classes alone, not for a class that is derived from one. Any other order is
gone through, but for a list or a range, which have places.
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

__all__ = [
    "batches_behind",
    "entered",
    "entered_at_sample",
    "gone_through",
    "samples_a_batch",
    "samples_of",
]

# The elements of the beginning that are asked for, and the iterator over the rest.
_Entered: TypeAlias = tuple[list[Any], Iterator[Any]]

_DRAWN_AT_ONCE = 32  # by a RandomSampler with replacement
_REDRAWN_AT_ONCE = 10**6
_WITH_PLACES = (SequentialSampler, DistributedSampler, list, tuple, range)
_WITH_INDEX = tuple(type(iter(each)) for each in (list[int](), (0,), range(0)))


def entered(order: Any, start: int, first: int = 0) -> _Entered:
    """Enters an order behind its first ``start`` elements.

    The random numbers for these are drawn now, from the generators as they are: call it with the
    generators of the moment when the pass began. Those for the rest are drawn as the sampler does,
    when they are asked for.

    Args:
        order: a sampler, a batch sampler, or any iterable.
        start: how many of the elements come before the place.
        first: how many of these are returned, from the first on; at most ``start``.

    Returns:
        Those elements, and an iterator over all behind the place.
    """
    if type(order) in (BatchSampler, BatchSamplerShard) and not first:
        size = samples_a_batch(order)
        if size is not None:
            return [], entered_at_sample(order, start * size)
    enter: Callable[[Any, int, int], _Entered] = _ENTERED_BY.get(type(order), _enter_any)
    return enter(order, start, first)


def samples_a_batch(order: Any) -> int | None:
    """Returns how many samples an index batch takes, of all processes together.

    None where that is not certain: the batches of a batch sampler of another class may differ.
    """
    if type(order) is BatchSampler:
        return order.batch_size
    if type(order) is BatchSamplerShard and type(order.batch_sampler) is BatchSampler:
        size: int = order.batch_sampler.batch_size
        return size if order.split_batches else size * order.num_processes
    return None


def samples_of(order: Any) -> int | None:
    """Returns how many samples a pass has, of all processes together; None if it is not known."""
    if samples_a_batch(order) is None:
        return None
    batches = order.batch_sampler if type(order) is BatchSamplerShard else order
    try:
        return len(batches.sampler)
    except TypeError:
        return None


def entered_at_sample(order: Any, samples: int) -> Iterator[Any]:
    """Enters an order of batches behind its first ``samples`` samples, with its next batch there.

    Args:
        order: one for which ``samples_a_batch`` returns a number.
        samples: how many samples of all processes come before the place.
    """
    if type(order) is BatchSampler:
        _, rest = entered(order.sampler, samples)
        return iter(BatchSampler(rest, order.batch_size, order.drop_last))
    # The shard fills the last batches up with the first samples of the pass: it is shown the first
    # batch of each process as well. Where none was full, the rest is a pass of its own.
    whole, a_batch = order.batch_sampler, samples_a_batch(order) or 0
    is_filled = order.even_batches and not order.drop_last and samples >= a_batch
    first, rest = entered(whole.sampler, samples, a_batch if is_filled else 0)
    shard = copy.copy(order)
    shard.batch_sampler = BatchSampler(chain(first, rest), whole.batch_size, whole.drop_last)
    return islice(iter(shard), 1 if is_filled else 0, None)


def batches_behind(order: Any, samples: int) -> int:
    """Returns how many batches ``entered_at_sample`` gives of an order of a known length."""
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
    """Returns the sampler that is asked again for what comes before a place; None if none is."""
    if type(order) is BatchSamplerShard:
        return gone_through(order.batch_sampler)
    if type(order) is BatchSampler:
        return gone_through(order.sampler)
    return None if type(order) in (*_ENTERED_BY, *_WITH_PLACES) else order


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
            f"{type(order).__name__} draws from the global random generators while it is gone "
            f"through: the {start} numbers before the place of this run are drawn again without "
            "the random numbers that others drew in between, so those that follow may be others. "
            "Give it a generator of its own, or state_dict() and load_state_dict()",
            stacklevel=2,
        )
    return before[:first], iterator


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
    # The last one is drawn even if nothing is left for it.
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
    """It is seeded anew for each pass, by the feed's number of the pass."""
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
    SeedableRandomSampler: _enter_seedable,
    SubsetRandomSampler: _enter_subset,
    WeightedRandomSampler: _enter_weighted,
}
