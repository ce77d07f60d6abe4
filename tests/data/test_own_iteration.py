"""Loaders that override the iteration, and loaders of loaders, keep their own iteration."""

import signal

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import DistributedSampler
from torch.utils.data import Subset
from torchdata.stateful_dataloader import StatefulDataLoader

from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.indexed_source import IndexedLoader
from ignite_hooks.data.prepare import prepare_source
from ignite_hooks.data.sources import CustomLoader
from ignite_hooks.data.workers import ignored_by_workers

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # of torchdata


class Still(Dataset):
    """A data set of 10 times the epoch that was set, plus the index."""

    def __init__(self, size=6):
        self.size = size
        self.epochs = [0]

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor([10.0 * self.epochs[-1] + index])


class Numbers(Still):
    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class Halving(DataLoader):
    """A loader that changes each batch in ``__iter__``."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch / 2


class ByIterator(DataLoader):
    """A loader that overrides ``_get_iterator``, as loaders of graphs do."""

    def _get_iterator(self):
        return (batch / 2 for batch in super()._get_iterator())


class Longer(Halving):
    """A loader whose length is too large."""

    def __len__(self):
        return 99


class CustomStateful(StatefulDataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch / 2


class Named(DataLoader):
    """A subclass that does not override the iteration."""


class Zipped:
    """A loader of loaders, which are iterated together."""

    def __init__(self, *loaders):
        self.loaders = loaders

    def __iter__(self):
        return (torch.cat(each) for each in zip(*self.loaders, strict=True))

    def __len__(self):
        return 99


class RestartingIterator:
    """An iterator that begins again whenever ``iter`` is called, as those of DALI do."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        self.next = 0
        return self

    def __next__(self):
        if self.next == 3:
            raise StopIteration
        self.next += 1
        return torch.tensor([[float(self.next)]])


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def values(batches):
    return [batch.flatten().tolist() for batch in batches]


CUSTOM_LOADERS = {
    "__iter__": Halving,
    "_get_iterator": ByIterator,
    "a wrong length": Longer,
    "of torchdata": CustomStateful,
}


@pytest.mark.parametrize("kind", CUSTOM_LOADERS.values(), ids=CUSTOM_LOADERS)
@pytest.mark.parametrize("even_batches", [True, False])
def test_subclass_keeps_its_iteration(accelerator, kind, even_batches):
    feed = DataFeed(kind(Numbers(), 2), accelerator, even_batches=even_batches)
    assert values(feed) == [[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]
    assert values(feed) == [[5.0, 5.5], [6.0, 6.5], [7.0, 7.5]]
    assert accelerator._dataloaders == []


def test_instance_may_override_iter(accelerator):
    loader = DataLoader(Numbers(), 3)
    loader._get_iterator = lambda: iter([torch.ones(1), torch.zeros(1)])
    assert values(DataFeed(loader, accelerator)) == [[1.0], [0.0]]


def test_trainer_and_evaluator_get_the_custom_batches(accelerator):
    model, seen = torch.nn.Linear(1, 1), []
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        batch_processor=lambda model, x: (x, F.mse_loss(model(x), x)),
        data=Longer(Numbers(), 3),
        accelerator=accelerator,
    )
    evaluator = create_supervised_evaluator(
        model, accelerator=accelerator, prepare_batch=lambda x, *_, **__: (x, x)
    )
    for engine in (trainer, evaluator):
        engine.add_event_handler(
            Events.ITERATION_STARTED, lambda engine: seen.append(engine.state.batch)
        )
    trainer.run(max_epochs=2)
    assert values(seen) == [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5], [5.0, 5.5, 6.0], [6.5, 7.0, 7.5]]
    assert trainer.state.epoch == 2
    seen.clear()
    evaluator.run(Halving(Numbers(), 4))
    assert values(seen) == [[0.0, 0.5, 1.0, 1.5], [2.0, 2.5]]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: DataLoader(Numbers()), IndexedLoader),
        (lambda: Named(Numbers()), IndexedLoader),
        (lambda: StatefulDataLoader(Numbers()), IndexedLoader),
        (lambda: Halving(Numbers()), CustomLoader),
    ],
)
def test_only_overridden_iteration_is_kept(accelerator, make, kind):
    assert type(prepare_source(make(), accelerator, True)) is kind
    assert type(prepare_source(make(), None, True)) is kind


class TwoProcessAccelerator:
    """A stand-in for an accelerator of two processes, with the attributes that are read."""

    num_processes = 2


def test_several_processes_need_a_distributed_sampler():
    with pytest.raises(ValueError, match="got a Halving, which overrides how a DataLoader"):
        prepare_source(Halving(Numbers(), 2), TwoProcessAccelerator(), True)
    sampler = DistributedSampler(Numbers(), 2, rank=1, shuffle=False)
    source = prepare_source(Halving(Numbers(), 3, sampler=sampler), TwoProcessAccelerator(), True)
    assert values(source.batches(0, 0)) == [[0.5, 1.5, 2.5]]


# Resuming


WORKERS = {
    "no workers": {},
    "workers": {"num_workers": 2},
    "workers that stay": {"num_workers": 2, "persistent_workers": True},
}


@pytest.mark.parametrize("options", WORKERS.values(), ids=WORKERS)
@pytest.mark.parametrize("given", range(7))
@pytest.mark.parametrize("data", [Numbers, Still])
def test_resumed_feed_gives_the_following_batches(accelerator, options, given, data):
    def feed():
        return DataFeed(Halving(data(), 2, shuffle=True, **options), accelerator)

    def take(feed, count):
        taken, batches = [], iter(feed)
        while len(taken) < count:
            for batch in batches:
                taken.append(batch.flatten().tolist() + torch.rand(1).tolist())  # as dropout does
                if len(taken) == count:
                    break
            else:
                batches = iter(feed)
        feed.close()
        return taken

    torch.manual_seed(1)
    whole = take(feed(), 12)
    torch.manual_seed(1)
    first = feed()
    assert take(first, given) == whole[:given]
    state, random = first.state_dict(), torch.get_rng_state()
    other = feed()
    doubts = other.differences(state)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    assert take(other, 12 - given) == whole[given:]
    is_within = bool(given % 3)
    assert is_within == any("iterated again" in doubt for doubt in doubts)
    assert first.doubts() == []


# Loaders of loaders


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}], ids=["no workers", "workers"])
def test_set_epoch_reaches_every_nested_loader(accelerator, options):
    one, other = Numbers(2), Subset(Numbers(2), [1, 0])
    sampler = DistributedSampler(other, 1, rank=0)
    loaders = Zipped(DataLoader(one, **options), DataLoader(other, sampler=sampler))
    feed = DataFeed(loaders, accelerator)
    for data_pass in range(3):
        first, second = values(feed)
        assert [first[0], second[0]] == [10.0 * data_pass, 10.0 * data_pass + 1]
        assert sorted([first[1], second[1]]) == [10.0 * data_pass, 10.0 * data_pass + 1]
        assert sampler.epoch == data_pass


@pytest.mark.parametrize("options", WORKERS.values(), ids=WORKERS)
@pytest.mark.parametrize("kind", [DataLoader, Named])
def test_set_epoch_reaches_a_nested_data_set(accelerator, options, kind):
    feed = DataFeed(kind(Subset(Numbers(), [0, 5]), 2, **options), accelerator)
    assert [values(feed) for _ in range(3)] == [[[0.0, 5.0]], [[10.0, 15.0]], [[20.0, 25.0]]]


@pytest.mark.parametrize("wrap", [lambda loader: loader, Zipped], ids=["itself", "within another"])
def test_set_epoch_of_the_outermost_object_is_called_alone(accelerator, wrap):
    class Late(Zipped):
        def set_epoch(self, epoch):
            for loader in self.loaders:
                loader.dataset.set_epoch(epoch + 7)

    numbers = Numbers(1)
    feed = DataFeed(wrap(Late(DataLoader(numbers))), accelerator)
    assert [values(feed), values(feed)] == [[[70.0]], [[80.0]]]
    assert {*numbers.epochs} == {0, 7, 8}


def test_promised_length_is_not_relied_on(accelerator):
    feed = DataFeed(Zipped(DataLoader(Numbers(2))), accelerator)
    assert feed.length is None
    assert len(values(feed)) == 2


def test_persistent_workers_of_nested_loaders_are_named(accelerator):
    feed = DataFeed(
        Zipped(DataLoader(Numbers(2), num_workers=1, persistent_workers=True)), accelerator
    )
    assert feed.doubts() == []
    assert len(values(feed)) == 2
    (doubt,) = feed.doubts()
    assert doubt.startswith("data.loaders.0 has persistent workers")


class Asks(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.tensor([signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN])


@pytest.mark.parametrize(
    "wrap", [Zipped, lambda loader: loader], ids=["a loader of loaders", "a subclass"]
)
def test_workers_of_custom_loaders_outlive_signals(accelerator, wrap):
    class Same(DataLoader):
        def __iter__(self):
            yield from super().__iter__()

    asking = Asks()
    ignored_by_workers[asking] = (signal.SIGUSR1,)
    feed = DataFeed(wrap(Same(asking, num_workers=1)), accelerator)
    assert values(feed) == [[True]]


def test_iterator_that_restarts_on_iter_is_restarted(accelerator):
    feed = DataFeed(RestartingIterator(), accelerator)
    assert [values(feed), values(feed)] == [[[1.0], [2.0], [3.0]]] * 2
    iterator = iter(feed)
    assert values([next(iterator)]) == [[1.0]]
    feed.close()
    assert values(feed) == [[2.0], [3.0]]  # the rest of the pass
