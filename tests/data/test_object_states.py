"""The state of users' data sets and samplers is saved, or reported if it cannot be restored."""

import functools
import itertools
from collections import defaultdict
from collections import deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler
from torch.utils.data import Sampler
from torch.utils.data import Subset

from ignite_hooks import DataFeed


class Data(Dataset):
    """A data set that calls ``change`` with itself for each sample."""

    def __init__(self, change=None, **attributes):
        vars(self).update(attributes)
        self.change = change or (lambda data: None)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.change(self)
        return torch.tensor([float(index)])


def counting(data):
    data.calls += 1


@dataclass(slots=True)
class SlotCounter:
    calls: int = 0

    def __call__(self, data):
        self.calls += 1


def closure_counter():
    calls = 0

    def change(data):
        nonlocal calls
        calls += 1

    return change


def class_counter():
    class Transform:
        calls = 0

        def __call__(self, data):
            type(self).calls += 1

    return Transform()


def generator():
    def generate():
        number = 0
        while True:
            number += 1
            yield number

    return generate()


class CountingSampler(Sampler):
    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter(range(4))

    def __len__(self):
        return 4


class CountingStream(IterableDataset):
    given = 0

    def __iter__(self):
        for number in range(4):
            self.given += 1
            yield torch.tensor([float(number)])


def loader(data, **options):
    return DataLoader(data, 2, **options)


CHANGING = {
    "a number": (lambda: loader(Data(counting, calls=0)), "dataset.calls"),
    "a number of numpy": (lambda: loader(Data(counting, calls=np.int64(0))), "dataset.calls"),
    "a tensor": (lambda: loader(Data(counting, calls=torch.zeros(()))), "dataset.calls"),
    "a text": (
        lambda: loader(Data(lambda data: setattr(data, "last", "b"), last="a")),
        "dataset.last",
    ),
    "a new attribute": (lambda: loader(Data(lambda data: setattr(data, "new", 1))), "dataset.new"),
    "a list": (lambda: loader(Data(lambda data: data.seen.append(1), seen=[])), "dataset.seen"),
    "a deque": (
        lambda: loader(Data(lambda data: data.seen.append(1), seen=deque(maxlen=2))),
        "dataset.seen",
    ),
    "a dict of lists": (
        lambda: loader(Data(lambda data: data.by["a"].append(1), by={"a": []})),
        "dataset.by",
    ),
    "a long list that grows": (
        lambda: loader(Data(lambda data: data.seen.append(1), seen=[0] * 100)),
        "dataset.seen",
    ),
    "slots of a transform": (lambda: loader(Data(SlotCounter())), "dataset.change.calls"),
    "a closure": (lambda: loader(Data(closure_counter())), "dataset.change.calls"),
    "a class": (lambda: loader(Data(class_counter())), "dataset.change.Transform.calls"),
    "a counter of Python": (
        lambda: loader(Data(lambda data: next(data.ids), ids=itertools.count())),
        "dataset.ids",
    ),
    "an iterator": (
        lambda: loader(Data(lambda data: next(data.ids), ids=iter(range(99)))),
        "dataset.ids",
    ),
    "a generator": (
        lambda: loader(Data(lambda data: next(data.ids), ids=generator())),
        "dataset.ids",
    ),
    "nested data sets": (
        lambda: loader(ConcatDataset([Subset(Data(counting, calls=0), [0, 1]), Data()])),
        "dataset.datasets.0.dataset.calls",
    ),
    "a sampler": (lambda: loader(Data(), sampler=CountingSampler()), "sampler.passes"),
    "a stream": (lambda: loader(CountingStream()), "dataset.given"),
    "a collate function": (
        lambda: loader(Data(), collate_fn=Collate()),
        "collate_fn.calls",
    ),
    "batches of a class": (lambda: Batches(), "data.calls"),
}


class Collate:
    calls = 0

    def __call__(self, batch):
        self.calls += 1
        return torch.stack(batch)


class Batches:
    calls = 0

    def __iter__(self):
        self.calls += 1
        return iter([torch.zeros(1)] * 2)


def after_a_pass(data):
    feed = DataFeed(data)
    list(feed)
    return feed


@pytest.mark.parametrize("what", CHANGING)
def test_unsaved_value_that_changes_is_reported(what):
    make, name = CHANGING[what]
    (doubt,) = after_a_pass(make()).doubts()
    assert doubt == f"{name} has changed since the run began and has no state_dict that is saved"


class WithSetEpoch(Data):
    def __init__(self):
        super().__init__(epoch=0, order=[])

    def set_epoch(self, epoch):
        self.epoch = epoch
        self._shuffle()

    def _shuffle(self):
        self.order = [(self.epoch + index) % 4 for index in range(4)]


class SeededByEpoch(Sampler):
    def __init__(self):
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(np.random.default_rng(self.epoch).permutation(4).tolist())

    def __len__(self):
        return 4


def changed_before():
    data = Data(calls=0)
    made = loader(data)
    data.calls = 7
    return made


def caching(data):
    data.cache[len(data.cache)] = torch.zeros(1)


def lazy_attribute(data):
    """Sets an attribute on first use, for example a file that each process opens itself."""
    if not hasattr(data, "reader"):
        data.reader = Data(size=4)


UNCHANGING = {
    "a data set without a state": lambda: loader(Data(size=4, names=["a"], table={"a": [1]})),
    "an epoch set by set_epoch": lambda: loader(WithSetEpoch(), sampler=SeededByEpoch()),
    "an object made on first use": lambda: loader(Data(lazy_attribute)),
    "a sampler of torch": lambda: loader(Data(), shuffle=True),
    "a replacing sampler of torch": lambda: loader(
        Data(), sampler=RandomSampler(range(4), True, generator=torch.Generator())
    ),
    "a change before the run": changed_before,
    "workers": lambda: loader(Data(counting, calls=0), num_workers=1),
    "a list": lambda: [torch.zeros(1)] * 3,
}


@pytest.mark.parametrize("what", UNCHANGING)
def test_unchanged_values_are_not_reported(what):
    feed = after_a_pass(UNCHANGING[what]())
    assert feed.doubts() == []
    list(feed)
    assert feed.doubts() == []


class Stateful:
    def __init__(self):
        self.calls, self.kind = 0, dict

    def __call__(self, data):
        self.calls += 1

    def state_dict(self):
        return self.kind(calls=self.calls)

    def load_state_dict(self, state_dict):
        self.calls = state_dict["calls"]


def test_state_of_a_transform_is_saved_and_restored():
    feed = after_a_pass(loader(Data(Stateful())))
    assert feed.doubts() == []
    other = Data(Stateful())
    DataFeed(loader(other)).load_state_dict(feed.state_dict())
    assert other.change.calls == 4


def test_state_that_needs_unpickling_is_reported():
    data = Data(Stateful())
    data.change.kind = functools.partial(defaultdict, int)
    feed = after_a_pass(loader(data))
    assert feed.state_dict()["source"]["objects"] == {}
    assert "dataset.change" in feed.doubts()[0]


class Resumable(CountingSampler):
    """Has a state without a position in the pass."""

    def state_dict(self):
        return {"passes": self.passes}

    def load_state_dict(self, state_dict):
        pytest.fail("the position in the pass would be applied twice")


class Counted(Resumable):
    def load_state_dict(self, state_dict):
        self.passes = state_dict["passes"]


def test_sampler_state_without_position_is_reported_with_workers():
    feed = after_a_pass(loader(Data(), sampler=Counted(), num_workers=1))
    (doubt,) = feed.doubts()
    assert "(Counted) is not saved, because it is the same after an element as before" in doubt
    other = DataFeed(loader(Data(), sampler=Counted(), num_workers=1))
    other.load_state_dict(feed.state_dict())
    assert len(list(other)) == 2


class StatefulStream(CountingStream):
    def __init__(self):
        self.inner = Resumable()


def test_state_of_a_part_of_a_stream_is_not_saved():
    feed = after_a_pass(loader(StatefulStream()))
    assert feed.state_dict()["source"]["objects"] == {}


def test_report_names_three_of_many_changes():
    def change(data):
        for name in "abcde":
            setattr(data, name, 1)

    (doubt,) = after_a_pass(loader(Data(change))).doubts()
    assert doubt.startswith("dataset.a, dataset.b, dataset.c and 2 more have changed")


def test_state_of_other_types_than_plain_data_is_reported():
    class Holding(Data):
        def state_dict(self):
            return {"seen": {1, 2}}

        def load_state_dict(self, state_dict):
            pass

    (doubt,) = after_a_pass(DataLoader(Holding())).doubts()
    assert doubt.startswith(
        "the state_dict of dataset is not saved, because it contains other types than tensors"
    )
