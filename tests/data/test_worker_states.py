"""Workers go on from where the workers of the run that is resumed were."""

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
    """Some samples draw more numbers than others, from all kinds of generators."""

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
    """Draws for one sample alone."""

    def __getitem__(self, index):
        noise = float(torch.rand(1)) if index == 7 else 0.0
        return torch.tensor([index / SIZE + noise]), torch.zeros(1)


class Counting(Drawing):
    """Gives the number of samples it has given, which it saves."""

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
    """The same, but it does not save it."""

    state_dict = load_state_dict = None


class Late(Drawing):
    """Makes its generator when it is needed, as many data sets do."""

    def __init__(self):
        self.rng = None

    def __getitem__(self, index):
        if self.rng is None:
            self.rng = np.random.default_rng(get_worker_info().seed)
        return torch.tensor([index / SIZE + self.rng.random()]), torch.zeros(1)


def jitter(samples):
    """Draws in the worker, behind the data set."""
    x, y = torch.utils.data.default_collate(samples)
    return x + torch.rand(1), y


def seed_libraries(worker):
    """The recipe of torch's notes on randomness."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


KINDS = {
    "one worker": lambda **options: DataLoader(Drawing(), 2, num_workers=1, **options),
    "two workers": lambda **options: DataLoader(Drawing(), 2, num_workers=2, **options),
    "three workers": lambda **options: DataLoader(Drawing(), 2, num_workers=3, **options),
    "a sample in a batch": lambda **options: DataLoader(Drawing(), None, num_workers=2, **options),
    "draws for one sample": lambda **options: DataLoader(Seldom(), 2, num_workers=2, **options),
    "a state of its own": lambda **options: DataLoader(Counting(), 2, num_workers=2, **options),
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


MANY = [each for each in KINDS if each not in ("two workers", "a state of its own")]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=[pytest.mark.exhaustive] * (each in MANY)) for each in KINDS],
)
def test_a_run_with_workers_is_resumed_exactly_from_every_step(name, persistent, tmp_path):
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
@pytest.mark.parametrize("name", ["three workers", "a state of its own"])
def test_a_run_with_workers_goes_on_exactly_after_each_stop(name, persistent):
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
def test_workers_of_every_kind_of_start_are_followed(context, tmp_path):
    def make():
        return KINDS["two workers"](multiprocessing_context=context)

    whole = trainer_of(make(), checkpoint=SaveCheckpoint(tmp_path, every_steps=3, keep_last="all"))
    whole.run(max_epochs=1)
    again = trainer_of(make(), resume_from=tmp_path / "step_00000003")
    again.run(max_epochs=1)
    assert torch.equal(weights(again.model), weights(whole.model))


def told_of(then, now, folder, steps=3):
    trainer_of(then, checkpoint=SaveCheckpoint(folder)).run(max_steps=steps)
    again = trainer_of(now, resume_from=folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "resumed from")
        again.run(max_steps=steps + 1)
    return again.resume_report.parts["data"]


@pytest.mark.parametrize("number", [1, 3])
def test_another_number_of_workers_is_told(number, tmp_path):
    then = KINDS["two workers"]()
    part = told_of(then, DataLoader(Drawing(), 2, num_workers=number), tmp_path)
    assert part.level == "changed"
    assert part.reason == (
        f"2 workers then, {number} now: random numbers that the data set draws come from other "
        "processes; without such draws nothing changes"
    )


def test_what_workers_change_and_do_not_save_is_told(tmp_path):
    part = told_of(*(DataLoader(Forgetful(), 2, num_workers=1) for _ in range(2)), tmp_path)
    assert part.level == "unknown"
    assert "in workers: dataset.given has changed since the run began" in part.reason


def test_a_generator_that_workers_make_is_told(tmp_path):
    part = told_of(*(DataLoader(Late(), 2, num_workers=1) for _ in range(2)), tmp_path)
    assert part.level == "unknown"
    assert "dataset.rng (PCG64) is made in the workers" in part.reason


class Turning(Drawing):
    """Changes when a rare sample comes."""

    def __init__(self):
        self.has_turned = False

    def __getitem__(self, index):
        self.has_turned = self.has_turned or index == 6
        return torch.tensor([index + 10.0 * self.has_turned]), torch.zeros(1)


def test_a_change_is_told_in_the_batch_after_which_it_is_there(tmp_path):
    part = told_of(*(DataLoader(Turning(), 2, num_workers=1) for _ in range(2)), tmp_path)
    assert str(part) == "exact"
    data = (DataLoader(Turning(), 2, num_workers=1) for _ in range(2))
    part = told_of(*data, tmp_path / "later", steps=4)
    assert "in workers: dataset.has_turned has changed" in part.reason


class Heavy(Counting):
    """With a state of some size, which changes with each sample."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def state_dict(self):
        return {"given": self.given, "more": torch.zeros(self.numbers) + self.given}


def test_a_state_that_is_too_big_for_each_worker_is_told(tmp_path):
    part = told_of(*(DataLoader(Heavy(300_000), 2, num_workers=1) for _ in range(2)), tmp_path)
    assert part.level == "unknown"
    assert "too big to be saved for each worker" in part.reason


def test_the_states_of_workers_do_not_pile_up():
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
    assert peak < 20 * 120_000  # of 59 states of that size


@pytest.mark.parametrize("data", [Forgetful, Late])
def test_what_workers_have_changed_ends_with_them(data, tmp_path):
    """At the end of a pass."""
    part = told_of(*(DataLoader(data(), 2, num_workers=1) for _ in range(2)), tmp_path, steps=6)
    assert str(part) == "exact"


def test_workers_that_have_loaded_for_a_pass_that_was_left_are_told(tmp_path):
    """They have loaded ahead, and it is not known how much they have drawn for it."""

    def make():
        return KINDS["two workers"](persistent_workers=True)

    trainer = trainer_of(make(), checkpoint=SaveCheckpoint(tmp_path))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate_epoch()
    )
    trainer.run(max_epochs=1)
    part = trainer_of(make(), resume_from=tmp_path).resume_report.parts["data"]
    assert part.level == "approximate"
    assert "in workers that stay is drawn anew" in part.reason


@pytest.mark.parametrize("persistent", [False, True])
def test_the_user_of_a_loader_sees_nothing_of_it(persistent):
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


def test_workers_that_their_user_has_started_are_not_followed():
    loader = KINDS["one worker"](persistent_workers=True)
    plain = list(loader)
    feed = DataFeed(loader)
    assert len(list(feed)) == len(plain)
    batches = iter(feed)
    next(batches)
    (told,) = feed.differences(feed.state_dict())
    assert "in workers that stay is drawn anew" in told
