"""Resumes with another batch size, or with other data, from the middle of a pass."""

from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from ignite.engine import Events
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler
from torch.utils.data import SequentialSampler
from torch.utils.data import TensorDataset

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.data.feed import DataFeed

pytestmark = pytest.mark.filterwarnings("ignore:resumed from")

SIZE = 24


def numbers(size=SIZE):
    return TensorDataset(torch.arange(float(size))[:, None], torch.zeros(size, 1))


def generator():
    return torch.Generator().manual_seed(9)


def with_replacement(batch_size, **options):
    sampler = RandomSampler(
        range(SIZE), replacement=True, num_samples=SIZE + 16, generator=generator()
    )
    return DataLoader(numbers(), batch_size, sampler=sampler, **options)


ORDERS = {
    "in order": lambda batch_size, **options: DataLoader(numbers(), batch_size, **options),
    "shuffled": lambda batch_size, **options: DataLoader(
        numbers(), batch_size, shuffle=True, **options
    ),
    "shuffled by its own generator": lambda batch_size, **options: DataLoader(
        numbers(), batch_size, shuffle=True, generator=generator(), **options
    ),
    "with replacement": with_replacement,
}


def trainer_of(data, *, seedable=False, accumulation=1, **options):
    torch.manual_seed(4)
    model = torch.nn.Linear(1, 1)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=accumulation,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable),
    )
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-6),
        F.mse_loss,
        data,
        accelerator=accelerator,
        **options,
    )
    seen = trainer.seen = {}

    @trainer.on(Events.ITERATION_STARTED)
    def note(engine):
        x = engine.state.batch[0] if isinstance(engine.state.batch, list) else engine.state.batch
        seen.setdefault(engine.state.epoch, []).append(x.flatten().tolist())

    return trainer


def samples(seen):
    return {epoch: [*chain(*batches)] for epoch, batches in seen.items()}


def sizes(seen):
    return {epoch: [len(batch) for batch in batches] for epoch, batches in seen.items()}


@pytest.mark.parametrize("seedable", [False, True])
@pytest.mark.parametrize("name", ORDERS)
def test_changed_batch_size_keeps_the_order_of_the_samples(name, seedable, tmp_path):
    """The batch size changes twice in a pass; each sample is given once per epoch."""
    make = ORDERS[name]
    whole = trainer_of(make(4), seedable=seedable)
    whole.run(max_epochs=3)
    order = samples(whole.seen)

    save = SaveCheckpoint(tmp_path, keep_last="all")
    trainer_of(make(4), seedable=seedable, checkpoint=save).run(max_steps=len(whole.seen[1]) + 2)
    again = trainer_of(
        make(3), seedable=seedable, checkpoint=SaveCheckpoint(tmp_path), resume_from=tmp_path
    )
    assert again.resume_report.parts["data"].level == "changed"
    again.run(max_steps=len(whole.seen[1]) + 2 + 2)
    assert samples(again.seen) == {2: order[2][8:14]}
    assert sizes(again.seen) == {2: [3, 3]}
    last = trainer_of(make(7), seedable=seedable, resume_from=tmp_path)
    last.run(max_epochs=3)
    assert samples(last.seen) == {2: order[2][14:], 3: order[3]}
    rest = len(order[2]) - 14
    assert sizes(last.seen)[2] == [7] * (rest // 7) + ([rest % 7] if rest % 7 else [])


def save_in_second_pass(data, folder, **options):
    """Saves a checkpoint after two batches of the second pass."""
    trainer = trainer_of(data, checkpoint=SaveCheckpoint(folder), **options)
    trainer.run(max_epochs=1)
    trainer.run(max_steps=trainer.state.optimizer_step + 2)
    return trainer


def test_state_shows_the_epoch_length_after_the_change(tmp_path):
    save_in_second_pass(DataLoader(numbers(), 4, shuffle=True), tmp_path)
    trainer = trainer_of(DataLoader(numbers(), 8, shuffle=True), resume_from=tmp_path)
    shown = []
    trainer.add_event_handler(
        Events.EPOCH_STARTED | Events.ITERATION_COMPLETED,
        lambda engine: shown.append(engine.state.epoch_length),
    )
    trainer.run(max_epochs=3)
    assert shown == [2 + 2] * 3 + [3] * 4
    assert (trainer.state.epoch, trainer.state.iteration) == (3, 6 + 4 + 3)


def test_last_window_ends_with_the_changed_pass(tmp_path):
    options = {"accumulation": 2}
    data = DataLoader(numbers(), 3)
    trainer = trainer_of(data, checkpoint=SaveCheckpoint(tmp_path), **options)
    trainer.run(max_steps=1)
    trainer = trainer_of(DataLoader(numbers(), 4), resume_from=tmp_path, **options)
    message = str(trainer.resume_report.parts["data"])
    assert "the 18 samples left of this pass come in 5 batches (3 steps)" in message
    trainer.run(max_epochs=1)
    assert sizes(trainer.seen) == {1: [4, 4, 4, 4, 2]}
    assert trainer.state.optimizer_step == 1 + 3


def test_last_batch_is_given_when_drop_last_is_turned_off(tmp_path):
    def make(drop_last):
        return DataLoader(numbers(), 5, drop_last=drop_last)

    save_in_second_pass(make(True), tmp_path)
    trainer = trainer_of(make(False), resume_from=tmp_path)
    part = trainer.resume_report.parts["data"]
    assert str(part) == (
        "changed (4 batches a pass then, 5 now: the 14 samples left of this pass come in 3 batches "
        "(3 steps), and from the next pass on a pass has 5 batches (5 steps), and had 4 batches "
        "(4 steps))"
    )
    trainer.run(max_epochs=3)
    assert sizes(trainer.seen) == {2: [5, 5, 4], 3: [5, 5, 5, 5, 4]}


def test_changed_batch_size_is_reported_with_steps_per_pass(tmp_path):
    trainer_of(DataLoader(numbers(), 4), checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=1)
    trainer = trainer_of(DataLoader(numbers(), 8), resume_from=tmp_path)
    assert str(trainer.resume_report.parts["data"]) == (
        "changed (4 samples a batch then, 8 now: a pass has 3 batches (3 steps), and had 6 batches "
        "(6 steps))"
    )
    trainer.run(max_epochs=2)
    assert sizes(trainer.seen) == {2: [8, 8, 8]}


class CustomBatches(BatchSampler):
    """A batch sampler of a user's class, whose batches may have any size."""


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(float(SIZE))[:, None])


def loader_of_custom_batches(batch_size):
    return DataLoader(
        numbers(), batch_sampler=CustomBatches(SequentialSampler(numbers()), batch_size, False)
    )


OTHER_DATA = {
    "fewer samples": (
        DataLoader(numbers(), 4),
        DataLoader(numbers(12), 4),
        "24 samples a pass then, 12 now",
        3,
    ),
    "more samples in other batches": (
        DataLoader(numbers(), 4),
        DataLoader(numbers(48), 8),
        "24 samples a pass then, 48 now",
        6,
    ),
    "batches of a user's sampler": (
        loader_of_custom_batches(4),
        loader_of_custom_batches(8),
        "4 samples a batch then, 8 now",
        3,
    ),
    "a list": (
        [torch.ones(2, 1)] * 5,
        [torch.ones(2, 1)] * 4,
        "5 batches a pass then, 4 now",
        4,
    ),
    "a stream in other batches": (
        DataLoader(Stream(), 4),
        DataLoader(Stream(), 6),
        "4 samples a batch then, 6 now",
        4,
    ),
}
BY_BATCH = {
    "loss_fn": None,
    "batch_processor": lambda model, batch: (
        None,
        model(batch[0] if isinstance(batch, list) else batch).sum(),
    ),
}


def trainer_by_batch(data, **options):
    torch.manual_seed(4)
    model = torch.nn.Linear(1, 1)
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=1e-6),
        data=data,
        accelerator=Accelerator(cpu=True),
        **BY_BATCH,
        **options,
    )
    seen = trainer.seen = []
    for event in (Events.EPOCH_STARTED, Events.ITERATION_STARTED):
        trainer.add_event_handler(
            event, lambda engine: seen.append((engine.state.epoch, engine.state.iteration))
        )
    return trainer


@pytest.mark.parametrize("name", OTHER_DATA)
def test_epoch_starts_again_if_the_position_is_invalid(name, tmp_path):
    then, now, message, length = OTHER_DATA[name]
    trainer = trainer_by_batch(then, checkpoint=SaveCheckpoint(tmp_path))
    trainer.run(max_epochs=1)
    trainer.run(max_steps=trainer.state.optimizer_step + 2)
    done = trainer.state.iteration
    trainer = trainer_by_batch(now, resume_from=tmp_path)
    part = trainer.resume_report.parts["data"]
    assert part.level == "changed"
    assert part.reason == (
        f"{message}: the current pass is dropped after 2 batches and the next pass starts; if "
        "each epoch is one pass, the current epoch starts again with the next pass; the counts of "
        "iterations and steps continue"
    )
    with pytest.warns(UserWarning, match=message):
        trainer.run(max_epochs=3)
    counts = [done + number for number in range(2 * length + 1)]
    assert trainer.seen == [
        (2, done),
        *((2, number) for number in counts[1 : length + 1]),
        (3, counts[length]),
        *((3, number) for number in counts[length + 1 :]),
    ]
    assert trainer.state.optimizer_step == done + 2 * length


def test_changed_data_at_an_epoch_start_resumes_exactly(tmp_path):
    trainer_of(DataLoader(numbers(), 4), checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=1)
    trainer = trainer_of(DataLoader(numbers(32), 4), resume_from=tmp_path)
    assert str(trainer.resume_report.parts["data"]) == "exact"
    trainer.run(max_epochs=2)
    assert sizes(trainer.seen) == {2: [4] * 8}


def test_changed_batch_size_is_reported_beside_changed_data(tmp_path):
    trainer_of(DataLoader(numbers(), 4), checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=1)
    trainer = trainer_of(DataLoader(numbers(32), 8), resume_from=tmp_path)
    part = trainer.resume_report.parts["data"]
    assert part.level == "changed"
    assert part.reason == (
        "4 samples a batch then, 8 now: a pass has 4 batches (4 steps), and had 6 batches (6 steps)"
    )


def test_fixed_epoch_continues_with_the_next_pass_of_changed_data(tmp_path):
    trainer = trainer_of(DataLoader(numbers(), 4), checkpoint=SaveCheckpoint(tmp_path))
    trainer.run(max_steps=4, epoch_length=5)
    trainer = trainer_of(DataLoader(numbers(16), 4), resume_from=tmp_path)
    trainer.run(max_epochs=2)
    assert samples(trainer.seen) == {1: [0, 1, 2, 3], 2: [*range(4, 16), *range(8)]}


class Counted:
    """Batches without a known length, endless by default, that count how many were given."""

    def __init__(self, batches=10**9):
        self.batches, self.given = batches, 0

    def __iter__(self):
        for number in range(self.batches):
            self.given += 1
            yield torch.full((2, 1), float(number))


class StatefulCounted(Counted):
    """Counted batches whose state holds the position."""

    def __iter__(self):
        while self.given < self.batches:
            self.given += 1
            yield torch.full((2, 1), float(self.given - 1))
        self.given = 0

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state_dict):
        self.given = state_dict["given"]


def resumed_after(steps, data, now, folder, **options):
    trainer_by_batch(data, checkpoint=SaveCheckpoint(folder)).run(max_steps=steps)
    return trainer_by_batch(now, resume_from=ResumeCheckpoint(folder, **options))


def test_endless_data_starts_a_new_pass_without_replay(tmp_path):
    data = Counted()
    trainer = resumed_after(7, Counted(), data, tmp_path, replay=False)
    part = trainer.resume_report.parts["data"]
    assert part.level == "changed"
    assert part.reason.startswith("replay=False: the current pass is dropped after 7 batches")
    trainer.run(max_steps=9)
    assert data.given == 3  # including the one that is fetched ahead
    assert (trainer.state.epoch, trainer.state.iteration) == (1, 9)

    data = Counted()
    resumed_after(7, Counted(), data, tmp_path / "again").run(max_steps=9)
    assert data.given == 10


def test_epoch_starts_again_without_replay(tmp_path):
    trainer = resumed_after(7, Counted(5), Counted(5), tmp_path, replay=False)
    trainer.run(max_epochs=2)
    assert trainer.seen == [(2, 7), *((2, number) for number in range(8, 13))]


@pytest.mark.parametrize(
    "make",
    [StatefulCounted, lambda: DataLoader(numbers(), 2), lambda: [torch.ones(2, 1)] * 9],
    ids=["with a state", "with a sampler", "a list"],
)
def test_data_that_needs_no_replay_resumes_at_its_position(make, tmp_path):
    trainer = resumed_after(7, make(), make(), tmp_path, replay=False)
    assert str(trainer.resume_report.parts["data"]) == "exact"
    trainer.run(max_steps=9)
    assert (trainer.state.epoch, trainer.state.iteration) == (1, 9)


def test_replay_is_not_mentioned_between_two_passes(tmp_path):
    trainer = resumed_after(5, Counted(5), Counted(5), tmp_path, replay=False)
    assert "replay" not in trainer.resume_report.parts["data"].reason


@pytest.mark.parametrize("workers", [0, 1])
def test_state_of_a_former_version_counts_batches(workers):
    feed = DataFeed(DataLoader(numbers(), 4, num_workers=workers))
    batches = iter(feed)
    before = [next(batches)[0].flatten().tolist() for _ in range(2)]
    state = feed.state_dict()
    feed.close()
    for name in ("samples", "workers", "place", "draws_in_workers"):
        del state[name]
    del state["facts"]["samples a pass"]
    other = DataFeed(DataLoader(numbers(), 4, num_workers=workers))
    assert other.data_changes(state) == []
    assert not other.drops_pass(state)
    other.load_state_dict(state)
    rest = [batch[0].flatten().tolist() for batch in other]
    assert [*chain(*before, *rest)] == [*range(SIZE)]


def test_epoch_completes_if_too_few_samples_are_left(tmp_path):
    trainer_of(DataLoader(numbers(), 5), checkpoint=SaveCheckpoint(tmp_path)).run(max_steps=4)
    trainer = trainer_of(DataLoader(numbers(), 6, drop_last=True), resume_from=tmp_path)
    completed = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: completed.append((engine.state.epoch, engine.state.iteration)),
    )
    message = "the 4 samples left of this pass make no batch, so the pass ends; a pass has 4"
    assert message in trainer.resume_report.parts["data"].reason
    trainer.run(max_epochs=2)
    assert completed == [(1, 4), (2, 4 + 4)]
    assert sizes(trainer.seen) == {2: [6] * 4}


def test_changed_order_starts_the_epoch_again(tmp_path):
    trainer_of(DataLoader(numbers(), 4), checkpoint=SaveCheckpoint(tmp_path)).run(max_steps=2)
    trainer = trainer_of(DataLoader(numbers(), 4, shuffle=True), resume_from=tmp_path)
    message = (
        "SequentialSampler then, RandomSampler now: the current pass is dropped after 2 batches"
    )
    assert trainer.resume_report.parts["data"].reason.startswith(message)
    trainer.run(max_epochs=1)
    assert sorted(samples(trainer.seen)[1]) == [*range(SIZE)]


def test_changed_order_is_reported_between_two_passes(tmp_path):
    trainer_of(DataLoader(numbers(), 4), checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=1)
    trainer = trainer_of(with_replacement(4), resume_from=tmp_path)
    message = (
        "SequentialSampler then, RandomSampler(replacement=True) now: the samples come in another"
    )
    assert trainer.resume_report.parts["data"].reason.startswith(message)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_without_a_fixed_order_are_reported(persistent, tmp_path):
    def make():
        options = {"num_workers": 2, "persistent_workers": persistent}
        return DataLoader(numbers(), 4, in_order=False, **options)

    trainer_of(make(), checkpoint=SaveCheckpoint(tmp_path)).run(max_steps=2)
    part = trainer_of(make(), resume_from=tmp_path).resume_report.parts["data"]
    assert part.level == "approximate"
    assert "samples can come twice in this pass or not at all" in part.reason
    assert "exact" not in part.reason
