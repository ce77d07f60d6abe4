from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset

from ignite_hooks.data import pass_end
from ignite_hooks.data.pass_end import PassEnd
from ignite_hooks.data.sources import AdaptedLoader
from ignite_hooks.data.sources import PlainIterable


class Drawn:
    """An iterable of numbers without a length, which records those that it gave."""

    def __init__(self, count):
        self.count = count
        self.numbers = []

    def __iter__(self):
        for number in range(self.count):
            self.numbers.append(number)
            yield number


class Promising(Drawn):
    """Drawn numbers with a length, which may be wrong."""

    def __init__(self, count, promised):
        super().__init__(count)
        self.promised = promised

    def __len__(self):
        return self.promised


@Sequence.register
class Listed(Promising):
    """A sequence, whose length is trusted like that of a list."""


def fetch_all(end, source, given=0, data_pass=0):
    """Yields each batch of a pass, whether it is the last, and how many were drawn by then."""
    drawn = source.loader.numbers if isinstance(source.loader, Drawn) else []
    with source.active(data_pass):
        for is_last in end.fetch(source.batches(data_pass, given), data_pass, given):
            yield end.ahead.popleft(), is_last, len(drawn)


def test_certain_length_is_counted_without_fetching_ahead():
    source = PlainIterable(Listed(3, promised=3))
    end = PassEnd(source)
    assert end.length == 3
    assert list(fetch_all(end, source)) == [(0, False, 1), (1, False, 2), (2, True, 3)]


@pytest.mark.parametrize("data", [Drawn(3), Promising(3, promised=99)], ids=["drawn", "promising"])
def test_uncertain_length_fetches_one_batch_ahead(data):
    source = PlainIterable(data)
    end = PassEnd(source)
    assert end.length is None
    assert list(fetch_all(end, source)) == [(0, False, 2), (1, False, 3), (2, True, 3)]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(5))


def test_loader_that_marks_its_end_is_not_fetched_ahead():
    source = AdaptedLoader(Accelerator(cpu=True).prepare(DataLoader(Stream(), batch_size=2)))
    end = PassEnd(source)
    assert end.length is None
    passed = [(is_last, len(end.ahead)) for _, is_last, _ in fetch_all(end, source)]
    assert passed == [(False, 0), (False, 0), (True, 0)]


@pytest.mark.parametrize("data", [Drawn(4), Listed(4, 4)], ids=["drawn", "listed"])
def test_pass_entered_in_its_middle_ends_at_the_same_batch(data):
    source = PlainIterable(data)
    rest = [(number, is_last) for number, is_last, _ in fetch_all(PassEnd(source), source, given=2)]
    assert rest == [(2, False), (3, True)]


@pytest.mark.parametrize(
    ("gives", "promised", "given"), [(2, 3, "only 2"), (4, 3, "more"), (0, 3, "only 0")]
)
def test_wrong_promised_length_is_an_error_naming_the_pass(gives, promised, given):
    source = PlainIterable(Listed(gives, promised))
    end = PassEnd(source)
    with pytest.raises(RuntimeError, match=rf"which is 3; it gave {given} in pass 5: correct"):
        list(fetch_all(end, source, data_pass=4))


def test_synchronize_length_reads_the_length_again():
    data = [[1]]
    end = PassEnd(PlainIterable(data))
    data.append([2])
    assert end.length == 1
    end.synchronize_length()
    assert end.length == 2


@pytest.mark.filterwarnings("ignore:rank 0 has more batches in a pass than another rank")
class TestSeveralRanks:
    """A pass end with a simulated second rank; tests/distributed has two real ranks."""

    @pytest.fixture
    def others(self, monkeypatch):
        numbers, asked = [], []

        def smallest(own, accelerator):
            number, *digests = own
            asked.append(number)
            return [min(number, numbers.pop(0)), *digests]

        monkeypatch.setattr(pass_end, "min_over_ranks", smallest)
        return numbers, asked

    @pytest.mark.parametrize(("theirs", "length"), [(2, 2), (5, 3), (-1, None)])
    def test_length_is_the_smallest_of_all_ranks_or_unknown(self, theirs, length, others):
        others[0].append(theirs)
        end = PassEnd(PlainIterable(Listed(3, 3)), Accelerator(cpu=True))
        assert end.length == length

    def test_rank_ends_its_pass_with_the_shortest_rank(self, others):
        others[0].append(2)
        source = PlainIterable(Listed(3, 3))
        end = PassEnd(source, Accelerator(cpu=True))
        assert list(fetch_all(end, source)) == [(0, False, 1), (1, True, 2)]

    def test_unknown_length_is_synchronized_once_per_window(self, others):
        numbers, asked = others
        numbers += [-1, 4, 3]  # of lengths; of windows of 3: one whole one, and it has 3 left
        source = PlainIterable(Drawn(9))
        end = PassEnd(source, Accelerator(cpu=True, gradient_accumulation_steps=3))
        passed = [(number, is_last) for number, is_last, _ in fetch_all(end, source)]
        assert passed == [(number, number == 5) for number in range(6)]
        assert asked == [-1, 4, 4]
        assert not end.ahead, "what the others have not is not kept for the next pass"
