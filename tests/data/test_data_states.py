"""Data with a state are resumed from it, without loading earlier batches again."""

import gc
import io
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchdata.nodes
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import Sampler
from torch.utils.data import get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from ignite_hooks import DataFeed
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.data.snapshots import Snapshot
from tests.reference import Notes

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # of torchdata

SIZE = 5  # samples, or batches, of a pass


class Walk:
    """A stream whose samples are the steps of one random walk over all passes."""

    noise = 1.0

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)
        self.place = torch.zeros(1)
        self.index = self.drawn = 0

    def __iter__(self):
        while self.index < SIZE:
            self.index += 1
            self.drawn += 1
            # In place: the saved state must be a copy.
            self.place += torch.rand(1, generator=self.generator)
            yield self.place + self.noise * torch.rand(1)  # augmented
        self.index = 0

    def state_dict(self):
        return {
            "place": self.place,
            "index": self.index,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.place, self.index = state["place"], state["index"]
        self.generator.set_state(state["generator"])


class Forgetful(Walk):
    """A random walk whose state does not contain the generator."""

    def state_dict(self):
        return {"place": self.place, "index": self.index}

    def load_state_dict(self, state):
        self.place, self.index = state["place"], state["index"]


class Skipping(Walk):
    """A stream whose passes begin at 0, except the one after a state was loaded."""

    def __init__(self):
        super().__init__()
        self.start = 0

    def __iter__(self):
        start, self.start = self.start, 0
        for self.index in range(start + 1, SIZE + 1):
            self.drawn += 1
            yield torch.tensor([float(self.index)]) + torch.rand(1)

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = self.start = state["index"]


class Seeded(Walk):
    """A stream that draws its order at the start of a pass, seeded by ``set_epoch``."""

    def set_epoch(self, epoch):
        self.generator.manual_seed(epoch)

    def __iter__(self):
        self.start = getattr(self, "start", 0)
        self.before = self.generator.get_state()
        start, self.start = self.start, 0
        order = torch.randperm(SIZE, generator=self.generator)
        for self.index in range(start + 1, SIZE + 1):
            self.drawn += 1
            yield order[self.index - 1 :][:1] + torch.rand(1)

    def state_dict(self):
        return {"index": self.index, "before": getattr(self, "before", self.generator.get_state())}

    def load_state_dict(self, state):
        self.index = self.start = state["index"]
        self.generator.set_state(state["before"])


class RestartingIterator(Walk):
    """An iterator whose ``__iter__`` begins the next pass."""

    def __iter__(self):
        self.index = 0
        return self

    def __next__(self):
        if self.index == SIZE:
            raise StopIteration
        self.index += 1
        self.drawn += 1
        self.place += torch.rand(1, generator=self.generator)
        return self.place + torch.rand(1)


class Samples(Walk, IterableDataset):
    pass


class Passes(Seeded, IterableDataset):
    pass


class SplitByWorker(Skipping, IterableDataset):
    """Gives each worker its own samples, with random numbers that its state does not contain."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(2)

    def __iter__(self):
        start, self.start = self.start, 0
        shift = 10.0 * get_worker_info().id
        for self.index in range(start + 1, SIZE + 1):
            noise = random.random() + np.random.rand() + self.rng.random()
            yield torch.tensor([shift + self.index + noise]) + torch.rand(1)


class Restarting(IterableDataset):
    """A stream that resets its state at its end, which is at another time in each worker."""

    def __init__(self):
        self.index = 0

    def __iter__(self):
        worker = get_worker_info().id
        while self.index < SIZE + 3 * worker:
            self.index += 1
            yield torch.tensor([10.0 * worker + self.index]) + torch.rand(1)
        self.index = 0

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


class Counting:
    """A ``collate_fn`` with a state of the batches."""

    def __init__(self):
        self.batches = 0

    def __call__(self, samples):
        self.batches += 1
        return torch.cat([*samples, torch.tensor([float(self.batches)])])

    def state_dict(self):
        return {"batches": self.batches}

    def load_state_dict(self, state):
        self.batches = state["batches"]


class Streaming(DataLoader):
    """A loader with a state, as other libraries for sharded data have them."""

    def state_dict(self):
        return {"dataset": self.dataset.state_dict()}

    def load_state_dict(self, state):
        self.dataset.load_state_dict(state["dataset"])


class HalvingStateful(StatefulDataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch / 2


class Halving(Streaming):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch / 2


def nodes(dataset):
    sampler = torch.utils.data.RandomSampler(range(SIZE))
    node = torchdata.nodes.SamplerWrapper(sampler)
    return torchdata.nodes.Loader(torchdata.nodes.Batcher(node, 2, drop_last=False))


def with_generator(dataset):
    return DataLoader(dataset, 2, generator=torch.Generator().manual_seed(3))


KINDS = {
    "a stream of batches": (Walk, lambda data: data),
    "a stream without its generator": (Forgetful, lambda data: data),
    "a stream that skips": (Skipping, lambda data: data),
    "a stream that is seeded": (Seeded, lambda data: data),
    "an iterator": (RestartingIterator, lambda data: data),
    "torchdata's nodes": (Skipping, nodes),
    "a loader": (Samples, lambda data: DataLoader(data, 2)),
    "a loader of single samples": (Samples, lambda data: DataLoader(data, batch_size=None)),
    "a loader with a generator": (Samples, with_generator),
    "a loader with a stateful collate_fn": (
        Samples,
        lambda data: DataLoader(data, 2, collate_fn=Counting()),
    ),
    "a loader of a stream that is seeded": (Passes, lambda data: DataLoader(data, 2)),
    "torchdata's loader": (Samples, lambda data: StatefulDataLoader(data, 2)),
    "torchdata's loader that iterates": (Samples, lambda data: HalvingStateful(data, 2)),
    "torchdata's loader of a shuffled data set": (
        Skipping,
        lambda data: HalvingStateful(torch.arange(SIZE), 2, shuffle=True),
    ),
    "a loader with a state": (Samples, lambda data: Streaming(data, 2)),
    "a loader with a state that iterates": (Samples, lambda data: Halving(data, 2)),
}
WORKERS = {
    "a loader with workers": (SplitByWorker, lambda data: DataLoader(data, 2, num_workers=2)),
    "torchdata's loader with workers": (
        SplitByWorker,
        lambda data: StatefulDataLoader(data, 2, num_workers=2),
    ),
    "a stream that is at its beginning when it has ended": (
        Restarting,
        lambda data: DataLoader(data, 2, num_workers=2),
    ),
    "a loader with workers that stay": (
        SplitByWorker,
        lambda data: DataLoader(data, 2, num_workers=1, persistent_workers=True),
    ),
}


def take(feed, count, taken=None):
    """Gives ``count`` batches, each with a number that a model draws."""
    taken, batches = [] if taken is None else taken, iter(feed)
    while len(taken) < count:
        for batch in batches:
            taken.append(torch.as_tensor(batch).flatten().tolist() + torch.rand(1).tolist())
            if len(taken) == count:
                break
        else:
            batches = iter(feed)
    if feed.is_last:
        feed.finish()
    feed.close()
    return taken


def through_file(state):
    """Returns a state as it comes out of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def make_accelerator(name):
    config = DataLoaderConfiguration(use_stateful_dataloader=name == "stateful")
    return None if name == "none" else Accelerator(cpu=True, dataloader_config=config)


def resumes(kind, wrap, accelerator, count):
    """Resumes at each position of ``count`` batches; yields the position, data and differences."""

    def feed():
        data = kind()
        return data, DataFeed(wrap(data), accelerator)

    torch.manual_seed(1)
    whole = take(feed()[1], count)
    for given in range(count):
        torch.manual_seed(1)
        _, first = feed()
        assert take(first, given) == whole[:given]
        state, random = through_file(first.state_dict()), torch.get_rng_state()
        assert first.doubts() == []
        assert state["place"] is not None
        data, other = feed()
        differences = other.differences(state)
        other.load_state_dict(state)
        torch.set_rng_state(random)
        assert take(other, count - given) == whole[given:], given
        yield given, data, differences
        # A resumed feed can be closed and resumed too.
        torch.set_rng_state(random)
        other.load_state_dict(state)
        further = (given + count) // 2
        taken = take(other, further - given)
        state, random = through_file(other.state_dict()), torch.get_rng_state()
        assert state["place"] is not None
        assert take(other, count - further) == whole[further:]  # or continued
        _, third = feed()
        third.load_state_dict(state)
        torch.set_rng_state(random)
        assert taken + take(third, count - further) == whole[given:]


@pytest.mark.parametrize("name", ["none", "prepared", "stateful"])
@pytest.mark.parametrize(("kind", "wrap"), KINDS.values(), ids=KINDS)
def test_resumed_feed_does_not_load_earlier_batches(name, kind, wrap):
    accelerator = make_accelerator(name)
    passes = 3
    per_pass = len(take_pass(DataFeed(wrap(kind()), accelerator)))
    for given, data, differences in resumes(kind, wrap, accelerator, passes * per_pass):
        assert differences == []
        assert data.drawn <= passes * SIZE - SIZE * given // per_pass + 2


def take_pass(feed):
    return [*feed]


@pytest.mark.parametrize("name", ["prepared", "stateful"])
@pytest.mark.parametrize(("kind", "wrap"), WORKERS.values(), ids=WORKERS)
def test_feed_with_workers_resumes_exactly(name, kind, wrap):
    for _, _, differences in resumes(kind, wrap, make_accelerator(name), 8):
        assert differences == []


@pytest.mark.parametrize("given", [2, 2 * 3])
def test_changed_order_of_persistent_workers_is_reported(given):
    feed = DataFeed(DataLoader(SplitByWorker(), 2, num_workers=2, persistent_workers=True))
    take(feed, given)
    (difference,) = feed.differences(feed.state_dict())
    assert (
        "torchdata takes batches from persistent workers in another order than the saved run did"
        in difference
    )


# Samplers


class Numbers(Dataset):
    """A data set with augmentation that notes the indices of its samples."""

    def __init__(self):
        self.indices = Notes()

    def __len__(self):
        return 2 * SIZE

    @property
    def drawn(self):
        return len(self.indices)

    def __getitem__(self, index):
        self.indices.append(index)
        return torch.tensor([float(index)]) + torch.rand(1)


class DrawingSampler(Sampler):
    """A sampler that draws each index when requested, from one generator over all passes."""

    def __init__(self, size=1):
        self.size, self.shift, self.index = size, 0, 0
        self.generator = torch.Generator().manual_seed(1)

    def __len__(self):
        return 2 * SIZE // self.size

    def __iter__(self):
        while self.index < len(self):
            self.index += 1
            drawn = torch.randint(2 * SIZE, (self.size,), generator=self.generator) + self.shift
            drawn = (drawn % (2 * SIZE)).tolist()
            yield drawn if self.size > 1 else drawn[0]
        self.index = 0
        self.shift += 1

    def state_dict(self):
        return {
            "index": self.index,
            "shift": self.shift,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.index, self.shift = state["index"], state["shift"]
        self.generator.set_state(state["generator"])


class OrderSampler(Sampler):
    """A sampler that draws its order at the first index; its state has the generator before."""

    def __init__(self):
        self.generator, self.index, self.start = torch.Generator().manual_seed(1), 0, 0
        self.before = self.generator.get_state()

    def __len__(self):
        return 2 * SIZE

    def __iter__(self):
        start, self.start = self.start, 0
        self.before = self.generator.get_state()
        order = torch.randperm(2 * SIZE, generator=self.generator).tolist()
        for self.index in range(start + 1, 2 * SIZE + 1):
            yield order[self.index - 1]
        self.index, self.before = 0, self.generator.get_state()

    def state_dict(self):
        return {"index": self.index, "before": self.before}

    def load_state_dict(self, state):
        self.index = self.start = state["index"]
        self.before = state["before"]
        self.generator.set_state(self.before)


def distributed(data, **options):
    sampler = StatefulDistributedSampler(data, num_replicas=1, rank=0)
    return DataLoader(data, 2, sampler=sampler, **options)


SAMPLERS = {
    "a sampler": lambda data: DataLoader(data, 2, sampler=DrawingSampler()),
    "a sampler of single samples": lambda data: DataLoader(
        data, batch_size=None, sampler=DrawingSampler()
    ),
    "a sampler that draws its order again": lambda data: DataLoader(
        data, 2, sampler=OrderSampler()
    ),
    "a batch sampler": lambda data: DataLoader(data, batch_sampler=DrawingSampler(2)),
    "torchdata's sampler": distributed,
}


@pytest.mark.parametrize("name", ["none", "prepared", "stateful"])
@pytest.mark.parametrize("wrap", SAMPLERS.values(), ids=SAMPLERS)
def test_feed_resumes_from_the_state_of_its_sampler(name, wrap):
    accelerator = make_accelerator(name)
    loader = wrap(Numbers())
    for given, data, differences in resumes(Numbers, wrap, accelerator, 2 * len(loader)):
        assert differences == []
        assert data.drawn == 2 * 2 * SIZE - given * 2 * SIZE // len(loader)


def test_closed_feed_continues_without_loading_again():
    data = Numbers()
    feed = DataFeed(SAMPLERS["a sampler"](data), None)
    for _ in range(2 * SIZE):
        take(feed, 1)
    assert data.drawn == 2 * 2 * SIZE


def test_generator_shared_with_a_model_is_restored():
    def values(data, feed, count):
        taken, batches = [], iter(feed)
        for _ in range(count):
            taken += next(batches).tolist() + torch.rand(1, generator=data.generator).tolist()
        feed.close()
        return taken

    def made():
        data = Endless()
        return data, DataFeed(data, None)

    first = made()
    whole = values(*first, 6)
    data, feed = made()
    values(data, feed, 3)
    other = made()
    other[1].load_state_dict(through_file(feed.state_dict()))
    assert values(*other, 3) == values(data, feed, 3) == whole[6:]


def test_only_the_last_snapshots_are_kept():
    gc.collect()  # snapshots of other tests
    feed = DataFeed(Endless(), None)
    take(feed, 100)
    assert sum(type(each) is Snapshot for each in gc.get_objects()) < 10


def test_state_of_the_loader_comes_before_the_data_set():
    feed = DataFeed(Streaming(Samples(), 2), Accelerator(cpu=True))
    take(feed, 1)
    assert feed.state_dict()["place"]["of"] == "loader (Streaming)"


def test_stateful_loader_of_a_stateless_stream_is_not_saved():
    class Stateless(IterableDataset):
        def __iter__(self):
            return iter(torch.arange(SIZE))

    for kind in (StatefulDataLoader, HalvingStateful):
        feed = DataFeed(kind(Stateless(), 2), None)
        take(feed, 1)
        assert feed.state_dict()["place"] is None


# In a trainer


def make_trainer(data, accumulation=2, dropout=0.5, **options):
    torch.manual_seed(0)
    layers = torch.nn.Linear(1, 4), torch.nn.Dropout(dropout), torch.nn.Linear(4, 1)
    model = torch.nn.Sequential(*layers)
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        data=data,
        batch_processor=lambda model, x: (x, F.mse_loss(model(x.view(-1, 1)), x.view(-1, 1))),
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=accumulation),
        **options,
    )


def weights(trainer):
    return torch.cat([each.detach().flatten() for each in trainer.model.parameters()]).tolist()


TRAINED = ("a stream of batches", "a loader", "torchdata's loader that iterates")
IN_TRAINING = {name: KINDS[name] for name in TRAINED}


@pytest.mark.parametrize(("kind", "wrap"), IN_TRAINING.values(), ids=IN_TRAINING)
def test_resumed_run_ends_with_equal_weights(tmp_path, kind, wrap):
    save = SaveCheckpoint(tmp_path, every_steps=1, keep_last=99)
    whole = make_trainer(wrap(kind()), checkpoint=save)
    whole.run(max_epochs=2)
    folders = sorted(tmp_path.glob("step_*"))
    assert len(folders) == whole.state.optimizer_step
    for folder in folders:
        resumed = make_trainer(wrap(kind()), resume_from=folder)
        resumed.run(max_epochs=2)
        assert weights(resumed) == weights(whole)
        assert resumed.resume_report.is_exact


class Broken(Exception):
    pass


def break_off(trainer, iteration, **limits):
    """Runs a trainer that fails at the start of an iteration."""

    def fail(engine):
        raise Broken

    failing = trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), fail)
    with failing, pytest.raises(Broken):
        trainer.run(**limits)


@pytest.mark.parametrize(("kind", "wrap"), IN_TRAINING.values(), ids=IN_TRAINING)
def test_failed_run_continues_from_its_last_step(kind, wrap):
    def run(fails_at=None):
        data = kind()
        data.noise = 0.0  # when a broken window is repeated, it draws other noise
        trainer = make_trainer(wrap(data), accumulation=3, dropout=0.0)
        if fails_at is not None:
            break_off(trainer, fails_at, max_epochs=2)
        trainer.run(max_epochs=2)
        assert data.drawn <= 2 * SIZE + (0 if fails_at is None else 2 * 4)
        return weights(trainer), trainer.state.iteration

    whole = run()
    for fails_at in range(1, whole[1] + 1):
        assert run(fails_at) == whole


class Endless(Walk):
    def __iter__(self):
        while True:
            self.drawn += 1
            self.place += torch.rand(1, generator=self.generator)
            yield self.place.clone()


def test_endless_stream_is_not_loaded_again():
    data = Endless()
    trainer = make_trainer(data, accumulation=4)
    trainer.run(max_steps=10)
    assert data.drawn == 41
    break_off(trainer, 55, max_steps=20)
    assert data.drawn == 57  # one was ahead when the first run ended
    trainer.run(max_steps=20)
    assert data.drawn == 57 + 81 - 52


# What cannot be done


def test_checkpoint_without_a_snapshot_is_replayed():
    torch.manual_seed(1)
    whole = take(DataFeed(Skipping(), None), 8)
    torch.manual_seed(1)
    first = DataFeed(Skipping(), None)
    take(first, 3)
    state, random = through_file(first.state_dict()), torch.get_rng_state()
    del state["place"]
    data = Skipping()
    feed = DataFeed(data, None)
    (difference,) = feed.differences(state)
    assert "iterated again" in difference
    feed.load_state_dict(state)
    torch.set_rng_state(random)
    data.noise = 0
    assert [int(batch[0]) for batch in take(feed, 5)] == [int(batch[0]) for batch in whole[3:]]
    assert data.drawn == 3 + 2 + 4
    assert DataFeed(data, None).differences(through_file(feed.state_dict())) == []


class Pickled(Skipping):
    def state_dict(self):
        return {"index": self.index, "more": range(3)}


def test_state_that_needs_pickle_is_reported():
    feed = DataFeed(Pickled(), None)
    take(feed, 2)
    (doubt,) = feed.doubts()
    assert "state_dict of data (Pickled) contains something other than" in doubt
    assert feed.state_dict()["place"] is None


class Placeless(DrawingSampler):
    """A sampler whose state contains the pass, but no position in it."""

    def __iter__(self):
        self.shift += 1
        return iter(torch.randperm(2 * SIZE, generator=self.generator).tolist())

    def state_dict(self):
        return {"shift": self.shift}

    def load_state_dict(self, state):
        self.shift = state["shift"]


def test_state_without_a_position_is_reported():
    def feed():
        return DataFeed(DataLoader(torch.arange(2 * SIZE), 2, sampler=Placeless()), None)

    whole = take(feed(), 5)
    for given in (2, 4):
        first = feed()
        assert [batch[:2] for batch in take(first, given)] == [b[:2] for b in whole[:given]]
        state = through_file(first.state_dict())
        (doubt,) = first.doubts()
        assert "is the same after a batch as before it" in doubt
        for other in (first, feed()):
            other.load_state_dict(state)
            assert [batch[:2] for batch in take(other, 5 - given)] == [b[:2] for b in whole[given:]]


def test_state_of_another_class_is_reported():
    first = DataFeed(Walk(), None)
    take(first, 2)
    state = through_file(first.state_dict())
    of_another, _ = DataFeed(Skipping(), None).differences(state)
    assert of_another.startswith("the state of data (Walk) is not restored, because there is data")
    of_none = DataFeed([[1]] * 5, None).differences(state)
    assert any("there is nothing with a state now" in each for each in of_none)


def test_unfinished_former_pass_is_reported():
    first = DataFeed(Walk(), None)
    take(first, 2)
    first.next_pass()
    (difference,) = DataFeed(Walk(), None).differences(through_file(first.state_dict()))
    assert difference.startswith(
        "the previous pass was left before its end: data (Walk) begins the"
    )


def test_without_torchdata_the_batches_are_replayed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdata.stateful_dataloader", None)
    torch.manual_seed(1)
    whole = take(DataFeed(DataLoader(SplitByWorker(), 2, num_workers=2), None), 6)
    torch.manual_seed(1)
    first = DataFeed(DataLoader(SplitByWorker(), 2, num_workers=2), None)
    take(first, 2)
    state, random = through_file(first.state_dict()), torch.get_rng_state()
    feed = DataFeed(DataLoader(SplitByWorker(), 2, num_workers=2), None)
    assert any("with torchdata installed" in each for each in feed.differences(state))
    feed.load_state_dict(state)
    torch.set_rng_state(random)
    assert take(feed, 4) == whole[2:]
