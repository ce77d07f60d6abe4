"""New workers continue from the random states and object states of the former ones."""

import random
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import get_worker_info

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.data.feed import DataFeed
from tests.reference import weights

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")

SIZE = 11


class Drawing(Dataset):
    """Samples draw different amounts of numbers, from all types of generators."""

    def __init__(self):
        self.rng = np.random.default_rng(1)

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        noise = 0.0
        for _ in range(index % 3):
            noise += float(torch.rand(1)) + random.random() + np.random.rand() + self.rng.random()
        return torch.tensor([index / SIZE + noise]), torch.zeros(1)


class Seldom(Drawing):
    """Draws for one sample only."""

    def __getitem__(self, index):
        noise = float(torch.rand(1)) if index == 7 else 0.0
        return torch.tensor([index / SIZE + noise]), torch.zeros(1)


class Counting(Drawing):
    """Gives the number of samples so far, which is saved in its state."""

    def __init__(self):
        self.given = 0

    def __getitem__(self, index):
        self.given += 1
        return torch.tensor([index / SIZE + self.given]), torch.zeros(1)

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state_dict):
        self.given = state_dict["given"]


class Forgetful(Counting):
    """Counts the samples as ``Counting`` does, without a state."""

    state_dict = load_state_dict = None


class Late(Drawing):
    """Makes its generator on first use, as many data sets do."""

    def __init__(self):
        self.rng = None

    def __getitem__(self, index):
        if self.rng is None:
            self.rng = np.random.default_rng(get_worker_info().seed)
        return torch.tensor([index / SIZE + self.rng.random()]), torch.zeros(1)


def jitter(samples):
    """Draws in the worker after the data set has made the samples."""
    x, y = torch.utils.data.default_collate(samples)
    return x + torch.rand(1), y


def seed_libraries(worker):
    """Seeds Python and numpy in a worker, as torch's notes on randomness recommend."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


KINDS = {
    "one worker": lambda **options: DataLoader(Drawing(), 2, num_workers=1, **options),
    "two workers": lambda **options: DataLoader(Drawing(), 2, num_workers=2, **options),
    "three workers": lambda **options: DataLoader(Drawing(), 2, num_workers=3, **options),
    "a sample in a batch": lambda **options: DataLoader(Drawing(), None, num_workers=2, **options),
    "draws for one sample": lambda **options: DataLoader(Seldom(), 2, num_workers=2, **options),
    "a data set with a state": lambda **options: DataLoader(
        Counting(), 2, num_workers=2, **options
    ),
    "a collate_fn that draws": lambda **options: DataLoader(
        Drawing(), 2, num_workers=2, collate_fn=jitter, worker_init_fn=seed_libraries, **options
    ),
}


def trainer_of(data, **options):
    torch.manual_seed(4)
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    accelerator = Accelerator(cpu=True)
    return create_supervised_trainer(
        model, optimizer, F.mse_loss, data, accelerator=accelerator, **options
    )


MANY = [each for each in KINDS if each not in ("two workers", "a data set with a state")]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.exhaustive] * (each in MANY)) for each in KINDS],
)
def test_run_with_workers_resumes_exactly_from_every_step(name, persistent, tmp_path):
    def make():
        return KINDS[name](shuffle=True, persistent_workers=persistent)

    save = SaveCheckpoint(tmp_path, every_steps=1, keep_last="all")
    whole = trainer_of(make(), checkpoint=save)
    whole.run(max_epochs=3)
    checkpoints = sorted(tmp_path.glob("step_*"))
    assert len(checkpoints) == whole.state.iteration
    for checkpoint in checkpoints[:: 1 if name != "a sample in a batch" else 5]:
        again = trainer_of(make(), resume_from=checkpoint)
        again.run(max_epochs=3)
        assert torch.equal(weights(again.model), weights(whole.model)), checkpoint.name
        assert str(again.resume_report.parts["data"]) == "exact"


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("name", ["three workers", "a data set with a state"])
def test_run_with_workers_continues_exactly_after_each_stop(name, persistent):
    whole = trainer_of(KINDS[name](shuffle=True, persistent_workers=persistent))
    whole.run(max_epochs=3)
    again = trainer_of(KINDS[name](shuffle=True, persistent_workers=persistent))
    for step in range(1, whole.state.iteration + 1):
        again.run(max_steps=step)
    assert torch.equal(weights(again.model), weights(whole.model))


def test_a_resumed_run_can_be_resumed(tmp_path):
    def make():
        return KINDS["two workers"](shuffle=True, persistent_workers=True)

    whole = trainer_of(make())
    whole.run(max_epochs=3)
    trainer_of(make(), checkpoint=SaveCheckpoint(tmp_path)).run(max_steps=3)
    for step in (4, 6, 9, 18):
        options = {"checkpoint": SaveCheckpoint(tmp_path), "resume_from": tmp_path}
        again = trainer_of(make(), **options)
        again.run(max_steps=step)
    assert torch.equal(weights(again.model), weights(whole.model))


@pytest.mark.exhaustive
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_of_every_start_method_are_tracked(context, tmp_path):
    def make():
        return KINDS["two workers"](multiprocessing_context=context)

    whole = trainer_of(make(), checkpoint=SaveCheckpoint(tmp_path, every_steps=3, keep_last="all"))
    whole.run(max_epochs=1)
    again = trainer_of(make(), resume_from=tmp_path / "step_00000003")
    again.run(max_epochs=1)
    assert torch.equal(weights(again.model), weights(whole.model))


def resume_report_of_data(then, now, folder, steps=3):
    trainer_of(then, checkpoint=SaveCheckpoint(folder)).run(max_steps=steps)
    again = trainer_of(now, resume_from=folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "resumed from")
        again.run(max_steps=steps + 1)
    return again.resume_report.parts["data"]


@pytest.mark.parametrize("number", [1, 3])
def test_changed_number_of_workers_is_reported(number, tmp_path):
    then = KINDS["two workers"]()
    part = resume_report_of_data(then, DataLoader(Drawing(), 2, num_workers=number), tmp_path)
    assert part.level == "changed"
    assert part.reason == (
        f"2 workers then, {number} now: if the data set draws random numbers, these differ, "
        "because other processes draw them; otherwise nothing changes"
    )


def test_unsaved_change_in_workers_is_reported(tmp_path):
    part = resume_report_of_data(
        *(DataLoader(Forgetful(), 2, num_workers=1) for _ in range(2)), tmp_path
    )
    assert part.level == "unknown"
    assert "in workers: dataset.given has changed since the run began" in part.reason


def test_generator_made_in_workers_is_reported(tmp_path):
    part = resume_report_of_data(
        *(DataLoader(Late(), 2, num_workers=1) for _ in range(2)), tmp_path
    )
    assert part.level == "unknown"
    assert "dataset.rng (PCG64) is made in the workers" in part.reason


class Switching(Drawing):
    """Changes its state at a rare sample."""

    def __init__(self):
        self.has_switched = False

    def __getitem__(self, index):
        self.has_switched = self.has_switched or index == 6
        return torch.tensor([index + 10.0 * self.has_switched]), torch.zeros(1)


def test_change_is_reported_from_its_batch_on(tmp_path):
    part = resume_report_of_data(
        *(DataLoader(Switching(), 2, num_workers=1) for _ in range(2)), tmp_path
    )
    assert str(part) == "exact"
    data = (DataLoader(Switching(), 2, num_workers=1) for _ in range(2))
    part = resume_report_of_data(*data, tmp_path / "later", steps=4)
    assert "in workers: dataset.has_switched has changed" in part.reason


class Heavy(Counting):
    """Has a large state, which changes with each sample."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def state_dict(self):
        return {"given": self.given, "more": torch.zeros(self.numbers) + self.given}


def test_too_big_state_of_a_worker_is_reported(tmp_path):
    part = resume_report_of_data(
        *(DataLoader(Heavy(300_000), 2, num_workers=1) for _ in range(2)), tmp_path
    )
    assert part.level == "unknown"
    assert "too big to be saved for each worker" in part.reason


def test_only_the_last_worker_states_are_kept():
    class Long(Heavy):
        def __len__(self):
            return 120

    batches = iter(DataFeed(DataLoader(Long(30_000), 2, num_workers=2)))
    next(batches)
    tracemalloc.start()
    given = sum(1 for _ in batches)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert given == 59
    assert peak < 20 * 120_000  # bytes; there were 59 states of 120,000 bytes


@pytest.mark.parametrize("data", [Forgetful, Late])
def test_unsaved_change_ends_with_its_workers(data, tmp_path):
    """The workers, and their copies of the data set, end with the pass after 6 steps."""
    part = resume_report_of_data(
        *(DataLoader(data(), 2, num_workers=1) for _ in range(2)), tmp_path, steps=6
    )
    assert str(part) == "exact"


def test_persistent_workers_of_an_unfinished_pass_are_reported(tmp_path):
    """Workers have prefetched, so it is unknown how many numbers they have drawn."""

    def make():
        return KINDS["two workers"](persistent_workers=True)

    trainer = trainer_of(make(), checkpoint=SaveCheckpoint(tmp_path))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch()
    )
    trainer.run(max_epochs=1)
    part = trainer_of(make(), resume_from=tmp_path).resume_report.parts["data"]
    assert part.level == "approximate"
    assert "random numbers that the data set draws in persistent workers differ" in part.reason


@pytest.mark.parametrize("persistent", [False, True])
def test_user_gets_plain_batches_and_unchanged_attributes(persistent):
    loader = KINDS["a collate_fn that draws"](persistent_workers=persistent)
    found = loader.collate_fn, loader.worker_init_fn
    feed = DataFeed(loader)
    for batches in (list(feed), list(loader), list(feed), list(loader)):
        assert {type(batch) for batch in batches} == {tuple}
        assert {len(batch) for batch in batches} == {2}
    batches = iter(feed)
    next(batches)
    feed.close()
    assert {len(batch) for batch in [*loader, *feed, *loader]} == {2}
    assert (loader.collate_fn, loader.worker_init_fn) == found


def test_workers_started_by_the_user_are_not_tracked():
    loader = KINDS["one worker"](persistent_workers=True)
    plain = list(loader)
    feed = DataFeed(loader)
    assert len(list(feed)) == len(plain)
    batches = iter(feed)
    next(batches)
    (difference,) = feed.differences(feed.state_dict())
    assert "random numbers that the data set draws in persistent workers differ" in difference
