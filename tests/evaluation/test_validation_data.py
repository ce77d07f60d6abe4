"""Resumed data of evaluators, compared with those of an unbroken run."""

import itertools
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import Average
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.manifest import with_checksum
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:resumed from"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # of torchdata
]

STEPS = 6  # of two passes


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Still(Dataset):
    """A data set that draws no random numbers."""

    def __init__(self, size=6):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.full((4,), index / 10)


class Drawing(Still):
    """A data set that draws from all global generators."""

    def __getitem__(self, index):
        noise = random.random() + np.random.rand()
        return super().__getitem__(index) + torch.rand(4) + noise


class Described(Still):
    """A data set that gives other samples in each pass."""

    data_pass = 0

    def set_epoch(self, data_pass):
        self.data_pass = data_pass

    def __getitem__(self, index):
        return super().__getitem__(index) + self.data_pass


class Forgetful(Still):
    """A data set that counts the samples that it has given, and does not save the number."""

    given = 0

    def __getitem__(self, index):
        self.given += 1
        return super().__getitem__(index) + self.given


class Counting(Forgetful):
    """A data set that counts its samples, and saves the number."""

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state_dict):
        self.given = state_dict["given"]


class Endless:
    """Batches that continue from one iteration to the next, with the position as state."""

    def __init__(self):
        self.given = 0

    def __iter__(self):
        while True:
            self.given += 1
            yield torch.full((2, 4), self.given / 10)

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state_dict):
        self.given = state_dict["given"]


class Passes(IterableDataset):
    """A stream that differs in each pass, and saves its position and the number of passes."""

    def __init__(self):
        self.passes = self.given = 0

    def __iter__(self):
        while self.given < 6:
            self.given += 1
            yield torch.full((4,), self.given / 10 + self.passes)
        self.passes, self.given = self.passes + 1, 0

    def state_dict(self):
        return {"passes": self.passes, "given": self.given}

    def load_state_dict(self, state_dict):
        self.passes, self.given = state_dict["passes"], state_dict["given"]


class Batches:
    """The batches of a ``Passes`` stream."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        return (each[None] for each in self.stream)

    def state_dict(self):
        return self.stream.state_dict()

    def load_state_dict(self, state_dict):
        self.stream.load_state_dict(state_dict)


def loader(dataset, **options):
    return DataLoader(dataset, **{"batch_size": 2, "shuffle": True} | options)


def with_workers(dataset, **options):
    return loader(dataset, num_workers=2, persistent_workers=True, **options)


class Run:
    """A trainer that validates at each step on data.

    Args:
        make: makes what ``Validation`` is given, of the trainer's data and an evaluator's maker.
        training: makes the data of training.
        prepares: whether they are prepared, so that all engines share one loader.
    """

    def __init__(self, make, training=lambda: loader(Drawing()), *, prepares=False, **options):
        self.accelerator = Accelerator(cpu=True)
        self.data = training()
        if prepares:
            self.data = self.accelerator.prepare(self.data)
        self.trainer = make_trainer(
            None, accelerator=self.accelerator, dropout=0.5, batch_processor=batch_loss, **options
        )
        self.evaluators = []
        for each in make(self):
            Validation(**{"every_steps": 1} | each).attach(self.trainer)
        self.seen = {}
        self.trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED, self.note)

    def evaluator(self):
        metric = Average(output_transform=lambda output: output[1].mean())
        made = create_supervised_evaluator(
            torch.nn.Linear(4, 1),
            {"mean": metric},
            accelerator=self.accelerator,
            prepare_batch=lambda batch, **_: (batch, batch),
        )
        self.evaluators.append(made)
        return made

    def note(self, trainer):
        self.seen[trainer.state.optimizer_step] = dict(trainer.state.metrics)

    def __call__(self, **limits):
        self.trainer.run(self.data, **limits or {"max_epochs": 2})
        return self

    @property
    def end(self):
        return weights(self.trainer.model).tolist(), torch.get_rng_state().tolist()

    @property
    def report(self):
        return self.trainer.resume_report.parts["validation data"]


def batch_loss(model, batch):
    return None, model(batch).pow(2).mean()


def on(make_data, **options):
    """Returns a maker of one Validation, with one evaluator on the data."""
    return lambda run: [{"evaluate": run.evaluator(), "data": make_data(), **options}]


def two_validations(run):
    evaluator, data = run.evaluator(), with_workers(Drawing())
    yield {"evaluate": evaluator, "data": data}
    yield {"evaluate": evaluator, "data": data, "every_steps": 2, "prefix": "again_"}
    yield {"evaluate": evaluator, "data": with_workers(Counting()), "prefix": "other_"}


def evaluators_by_name(run):
    """Returns two Validations, each with two evaluators by name that share the data."""
    stream = loader(Passes(), shuffle=False)
    data = {"held_out": with_workers(Drawing()), "batches": Batches(Passes()), "stream": stream}
    evaluate = {"raw": run.evaluator(), "average": run.evaluator()}
    return [
        {"evaluate": evaluate, "data": data, "max_batches": 9},
        {"evaluate": evaluate, "data": data, "max_batches": 9, "prefix": "2_", "every_steps": 2},
    ]


def of_training(run):
    return [{"evaluate": run.evaluator(), "data": run.data}]


EXACT = {
    "draws, workers that stay": on(lambda: with_workers(Drawing())),
    "draws nothing, workers that stay": on(lambda: with_workers(Still())),
    "draws, other workers in each pass": on(lambda: loader(Drawing(), num_workers=2)),
    "draws, no workers": on(lambda: loader(Drawing())),
    "has its own generator": on(
        lambda: with_workers(Drawing(), generator=torch.Generator().manual_seed(3))
    ),
    "is told the pass": on(lambda: loader(Described())),
    "is told the pass, workers that stay": on(lambda: with_workers(Described())),
    "has a state": on(lambda: loader(Counting())),
    "has a state, workers that stay": on(lambda: with_workers(Counting())),
    "is a stream with a state": on(lambda: loader(Passes(), shuffle=False), max_batches=9),
    "is batches with a state": on(lambda: Batches(Passes()), max_batches=9),
    "two validations": two_validations,
    "evaluators and data by name": evaluators_by_name,
}


@pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)
def test_a_resumed_run_validates_on_the_same_samples(make, tmp_path):
    found = resumed_at_each_step(make, tmp_path)
    assert found == {("exact", True)}


def resumed_at_each_step(make, folder, reasons=None, **options):
    """Returns the levels of reports, each with whether the run is as the unbroken one.

    Args:
        make: makes the validations.
        folder: where checkpoints are saved.
        reasons: a set that the reasons of the reports are added to.
        options: the options of ``Run``.
    """
    seed()
    save = SaveCheckpoint(folder, every_steps=1, keep_last="all")
    whole = Run(make, checkpoint=save, **options)()
    assert max(whole.seen) == whole.trainer.state.optimizer_step == STEPS
    found = set()
    for step in (1, 3, 4):  # in a pass, at its end, and at the first step of another
        seed(5)  # makes state that was not restored visible
        resumed = Run(make, resume_from=ResumeCheckpoint(folder / f"step_{step:08d}"), **options)()
        left = {number: each for number, each in whole.seen.items() if number > step}
        assert resumed.trainer.resume_report.parts["data"].level == "exact"
        assert resumed.end == whole.end
        found.add((resumed.report.level, resumed.seen == left))
        if reasons is not None:
            reasons.add(resumed.report.reason)
    return found


@pytest.mark.parametrize("prepares", [False, True])
def test_the_training_loader_can_be_validated_on(prepares, tmp_path):
    options = {"training": lambda: with_workers(Drawing()), "prepares": prepares}
    assert resumed_at_each_step(of_training, tmp_path, **options) == {("exact", True)}


def test_the_training_stream_is_validated_on_between_passes(tmp_path):
    def make(run):
        data = {"evaluate": run.evaluator(), "data": run.data, "max_batches": 9}
        return [{**data, "every_steps": 3}]

    def training():
        return loader(Passes(), shuffle=False)

    assert resumed_at_each_step(make, tmp_path, training=training) == {("exact", True)}


NAMED = {
    "left early, draws, workers that stay": (
        on(lambda: with_workers(Drawing()), max_batches=1),
        ("approximate", False),
        "val_: random numbers that the data set draws in persistent workers differ",
    ),
    "left early, batches that continue": (
        on(Endless, max_batches=2),
        ("approximate", True),
        "val_: the previous pass was left before its end",
    ),
    "an iterator": (
        on(lambda: iter(Endless()), max_batches=2),
        ("approximate", False),
        "val_: an iterator cannot be moved",
    ),
    "counts, and has no state": (
        on(lambda: loader(Forgetful())),
        ("unknown", False),
        "val_: dataset.given has changed since the run began and has no state_dict",
    ),
    "counts in workers that stay, and has no state": (
        on(lambda: with_workers(Forgetful())),
        ("unknown", False),
        "val_: in workers: dataset.given has changed since the run began",
    ),
}


@pytest.mark.parametrize(("make", "found", "why"), NAMED.values(), ids=NAMED)
def test_state_that_cannot_be_resumed_is_named(make, found, why, tmp_path):
    reasons = set()
    assert resumed_at_each_step(make, tmp_path, reasons=reasons) == {found}
    assert all(why in reason for reason in reasons)


def test_data_under_another_name_are_reported(tmp_path):
    seed()
    Run(on(lambda: loader(Still())), checkpoint=SaveCheckpoint(tmp_path))(max_steps=2)
    make = on(lambda: loader(Still()), prefix="held_out_")
    part = Run(make, resume_from=ResumeCheckpoint(tmp_path))(max_steps=3).report
    assert (part.level, part.reason.partition(":")[0]) == ("approximate", "held_out_")
    assert "the checkpoint has no data of this name, but has val_" in part.reason


def test_a_new_or_removed_validation_is_not_a_difference(tmp_path):
    seed()
    Run(on(lambda: loader(Still())), checkpoint=SaveCheckpoint(tmp_path))(max_steps=2)
    make = on(lambda: loader(Still()))
    resume = ResumeCheckpoint(tmp_path)
    with_one_more = Run(
        lambda run: [*make(run), *on(Endless, max_batches=1, prefix="2_")(run)], resume_from=resume
    )(max_steps=3)
    assert with_one_more.report.level == "exact"
    without = Run(lambda run: [], resume_from=ResumeCheckpoint(tmp_path))(max_steps=3)
    assert "validation data" not in without.trainer.resume_report.parts


def test_changed_data_are_reported(tmp_path):
    seed()
    Run(on(lambda: loader(Still())), checkpoint=SaveCheckpoint(tmp_path))(max_steps=2)
    make = on(lambda: loader(Still(), batch_size=3))
    part = Run(make, resume_from=ResumeCheckpoint(tmp_path))(max_steps=3).report
    assert (part.level, part.reason.partition(":")[0]) == ("changed", "val_")
    assert "2 samples a batch then, 3 now" in part.reason


def forget_places(folder):
    """Removes the data of evaluators from a checkpoint, which older versions did not save."""
    rank, manifest = folder / "rank_00000.pt", folder / "manifest.json"
    place = torch.load(rank, weights_only=True)
    assert place.pop("evaluations").keys() == {"val_"}
    torch.save(place, rank)
    content = json.loads(manifest.read_text())
    content["files"][rank.name] = file_record(rank).model_dump()
    manifest.write_bytes(with_checksum(json.dumps(content).encode()))


def test_a_checkpoint_without_data_positions_is_resumed(tmp_path):
    seed()
    Run(on(lambda: loader(Still())), checkpoint=SaveCheckpoint(tmp_path))(max_steps=2)
    forget_places(tmp_path / "step_00000002")
    part = Run(on(lambda: loader(Still())), resume_from=ResumeCheckpoint(tmp_path))().report
    assert (part.level, "does not hold the positions" in part.reason) == ("unknown", True)


def test_data_of_a_plain_engine_are_not_reported(tmp_path):
    def make(run):
        return [{"evaluate": Engine(lambda engine, batch: None), "data": [torch.ones(1)]}]

    seed()
    Run(make, checkpoint=SaveCheckpoint(tmp_path))(max_steps=2)
    resumed = Run(make, resume_from=ResumeCheckpoint(tmp_path))()
    assert "validation data" not in resumed.trainer.resume_report.parts


BROKEN_OFF = {
    name: EXACT[name]
    for name in (
        *("draws, workers that stay", "is told the pass", "has a state, workers that stay"),
        *("is a stream with a state", "is batches with a state", "evaluators and data by name"),
    )
}


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("make", BROKEN_OFF.values(), ids=BROKEN_OFF)
def test_a_broken_off_validation_is_repeated_on_the_same_samples(make, resumes, tmp_path):
    seed()
    whole = Run(make)()
    seed()
    run = Run(make, checkpoint=SaveCheckpoint(tmp_path))
    step = 3
    count = itertools.count(1)

    def stop(evaluator):
        if run.trainer.state.optimizer_step == step and next(count) == 2:
            signal.raise_signal(signal.SIGTERM)

    run.evaluators[-1].add_event_handler(Events.ITERATION_COMPLETED, stop)
    run()
    assert (run.trainer.stop_reason, max(run.seen)) == ("SIGTERM", step - 1)
    seen = run.seen
    if resumes:
        seed(5)
        run = Run(make, resume_from=ResumeCheckpoint(tmp_path))
    run()
    assert seen | run.seen == whole.seen
    assert run.end == whole.end


class CountingCollate:
    """A collate function that counts its batches in all uses, and saves the number."""

    made = 0

    def __call__(self, samples):
        self.made += 1
        return torch.stack(samples) + self.made / 10

    def state_dict(self):
        return {"made": self.made}

    def load_state_dict(self, state_dict):
        self.made = state_dict["made"]


def test_data_shared_with_training_are_restored_once(tmp_path):
    def make(run):
        data = loader(Passes(), shuffle=False, collate_fn=run.data.collate_fn)
        return [{"evaluate": run.evaluator(), "data": data, "max_batches": 9}]

    def training():
        return loader(Still(), collate_fn=CountingCollate())

    assert resumed_at_each_step(make, tmp_path, training=training) == {("exact", True)}


def test_a_stateful_sampler_left_early_starts_from_scratch(tmp_path):
    def trainer_of(**options):
        seed()
        trainer = make_trainer(DataLoader(Still(), 2), batch_processor=loss_of_weights, **options)
        evaluator = create_supervised_evaluator(
            trainer.model,
            {"mean": Average(output_transform=lambda output: output[0].mean())},
            prepare_batch=lambda batch, **kwargs: (batch, batch),
        )
        sampler = StatefulDistributedSampler(range(8), num_replicas=1, rank=0)
        held_out = DataLoader(torch.arange(32.0).view(8, 4), 2, sampler=sampler)
        Validation(evaluator, held_out, every_steps=1, max_batches=3).attach(trainer)
        trainer.run(max_epochs=2)
        return trainer

    whole = trainer_of(checkpoint=SaveCheckpoint(tmp_path, every_steps=1))
    resumed = trainer_of(resume_from=ResumeCheckpoint(tmp_path / "step_00000004"))
    assert resumed.state.optimizer_step == whole.state.optimizer_step == STEPS
    assert resumed.resume_report.parts["validation data"].level == "approximate"


def loss_of_weights(model, batch):
    return None, sum(each.pow(2).sum() for each in model.parameters())
