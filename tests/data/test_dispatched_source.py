"""Streams with a state that rank 0 reads for all ranks."""

from collections import deque
from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from ignite_hooks import DataFeed
from ignite_hooks.core.place import FeedPosition
from tests.data.test_data_states import KINDS
from tests.data.test_data_states import SIZE
from tests.data.test_data_states import WORKERS
from tests.data.test_data_states import Samples
from tests.data.test_data_states import resumes

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # of torchdata

LOADERS = [
    "a loader",
    "a loader with a generator",
    "a loader with a stateful collate_fn",
    "a loader of a stream that is seeded",
]


def dispatching_accelerator(**options):
    config = DataLoaderConfiguration(dispatch_batches=True, **options)
    return Accelerator(cpu=True, dataloader_config=config)


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("name", LOADERS)
def test_resumed_stream_is_not_read_again(name, stateful):
    kind, wrap = KINDS[name]
    accelerator = dispatching_accelerator(use_stateful_dataloader=stateful)
    per_pass = len([*DataFeed(wrap(kind()), accelerator)])
    for given, data, differences in resumes(kind, wrap, accelerator, 2 * per_pass):
        assert differences == []
        assert data.drawn <= 2 * SIZE - SIZE * given // per_pass + 2


@pytest.mark.parametrize("name", WORKERS)
def test_workers_of_the_stream_continue(name):
    kind, wrap = WORKERS[name]
    accelerator = dispatching_accelerator()
    per_pass = len([*DataFeed(wrap(kind()), accelerator)])
    for _, _, differences in resumes(kind, wrap, accelerator, 2 * per_pass):
        assert differences == []


def test_stream_resumes_with_another_batch_size():
    def feed(size):
        return DataFeed(DataLoader(Samples(), size), accelerator)

    accelerator = dispatching_accelerator()
    first, other = feed(2), feed(1)
    batches = iter(first)
    next(batches)
    first.close()
    state = first.state_dict()
    assert not other.drops_pass(state)
    other.load_state_dict(state)
    assert len([*other]) == SIZE - 2


class Longer(Samples):
    noise = 0.0

    def __iter__(self):
        while self.index < 4 * SIZE:
            self.index += 1
            self.drawn += 1
            self.place += torch.rand(1, generator=self.generator)
            yield self.place.clone()
        self.index = 0


def test_rollback_of_a_window_does_not_replay_the_stream():
    config = DataLoaderConfiguration(dispatch_batches=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4, dataloader_config=config)
    whole = [*DataFeed(DataLoader(Longer(), 1), accelerator)]
    data = Longer()
    feed = DataFeed(DataLoader(data, 1), accelerator)
    deque(islice(feed, 4 + 3), maxlen=0)
    drawn = data.drawn
    feed.roll_back_to(FeedPosition(0, 4))
    assert torch.equal(torch.cat([*feed]), torch.cat(whole[4:]))
    assert data.drawn == drawn + len(whole) - 4


class Wrapping(Samples):
    """A stream without ``set_epoch``, which contains an object that has one."""

    def __init__(self):
        super().__init__()
        self.recorder = EpochRecorder()


class EpochRecorder:
    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch


def test_set_epoch_reaches_objects_inside_the_stream():
    data = Wrapping()
    feed = DataFeed(DataLoader(data, 2), dispatching_accelerator())
    for data_pass in range(3):
        assert {data.recorder.epoch for _ in feed} == {data_pass}
