"""Tests that an edited checkpoint with right hashes is refused, with file and field named."""

import copy
import json
import random
import shutil
import warnings
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from ignite.handlers import EMAHandler
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.lr_scheduler import LinearLR
from torch.optim.lr_scheduler import MultiStepLR
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import SequentialLR
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.manifest import with_checksum
from tests.versions import needs

TRAINER, RANK = "trainer.pt", "rank_00000.pt"
OPTIMIZER, SCHEDULER = "optimizer.bin", "scheduler.bin"
DELETED, GROWN = "deleted", "grown"


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


MAKERS = {
    "StepLR": (adam, lambda o: StepLR(o, 2, 0.7)),
    "OneCycleLR": (sgd, lambda o: OneCycleLR(o, 0.1, total_steps=30)),
    "SequentialLR": (adam, lambda o: SequentialLR(o, [LinearLR(o), CosineAnnealingLR(o, 9)], [3])),
    "MultiStepLR": (sgd, lambda o: MultiStepLR(o, [2, 4])),
}


def adam_with(rate=0.01, **settings):
    return lambda parameters: torch.optim.Adam(parameters, rate, foreach=False, **settings)


TENSOR_BETAS = (torch.tensor(0.9), torch.tensor(0.99))

# Unusual, and legal: what a schedule has made of the settings no constructor needs to take.
LEGAL = {
    "a rate that is a tensor": (
        lambda parameters: torch.optim.Adam(parameters, torch.tensor(0.01)),
        lambda o: CosineAnnealingLR(o, 9),
    ),
    "betas of which one is a tensor": (
        lambda parameters: adam_with(torch.tensor(0.01), betas=TENSOR_BETAS)(parameters),
        lambda o: OneCycleLR(o, 0.1, total_steps=30),
    ),
    "a negative rate": (adam_with(), lambda o: LambdaLR(o, lambda n: 1 - n)),
    "amsgrad": (adam_with(amsgrad=True, maximize=True), lambda o: StepLR(o, 2)),
    "a group without parameters": (
        lambda parameters: adam_with()([{"params": parameters}, {"params": []}]),
        lambda o: StepLR(o, 2),
    ),
}
MAKERS |= LEGAL


class OneEntry:
    """A user's object whose state must have one entry."""

    def state_dict(self):
        return {"count": 3}

    def load_state_dict(self, state):
        state["count"] += 1


def build(schedule="StepLR", directory=None):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.3), torch.nn.Linear(3, 2)
    )
    make_optimizer, make_scheduler = MAKERS[schedule]
    generator = torch.Generator().manual_seed(2)
    data = TensorDataset(torch.randn(20, 4), torch.randn(20, 2))
    also = {"noise": torch.nn.Linear(1, 1), "plain": OneEntry()}
    trainer = create_supervised_trainer(
        model,
        make_optimizer(model.parameters()),
        F.mse_loss,
        DataLoader(data, 4, shuffle=True, generator=generator),
        accelerator=Accelerator(cpu=True),
        lr_scheduler=make_scheduler,
        checkpoint=directory and SaveCheckpoint(directory, also=also),
    )
    EMAHandler(model).attach(trainer, event=Events.ITERATION_COMPLETED)
    return trainer


def full_state(trainer):
    """Returns everything that must not change when a checkpoint is refused."""
    state = trainer.state
    shown = ("epoch", "iteration", "optimizer_step", "max_epochs", "max_steps", "epoch_length")
    return digest_of(
        [
            trainer.model.state_dict(),
            trainer.optimizer.state_dict(),
            trainer.lr_scheduler.state_dict(),
            trainer.position_state_dict(),
            {name: getattr(state, name) for name in shown},
            dict(state.metrics),
        ]
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the folder of a checkpoint for each schedule; no test changes it."""
    folders = {}
    for schedule in MAKERS.keys() - LEGAL.keys():
        directory = tmp_path_factory.mktemp(schedule)
        build(schedule, directory).run(max_steps=3)
        (folders[schedule],) = directory.glob("step_*")
    return folders


def edited(folder, target, file, change):
    """Returns a copy of a checkpoint with one file changed and its new hash in the manifest."""
    shutil.copytree(folder, target)
    path = target / file
    torch.save(change(torch.load(path, weights_only=True)), path)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"][file] = file_record(path).model_dump()
    (target / "manifest.json").write_bytes(with_checksum(json.dumps(manifest, indent=1).encode()))
    return target


def setting_value(path, value):
    """Returns a function that sets, deletes or lengthens the value at a path in a content."""

    def change(content):
        if not path:
            return value
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        last = path[-1]
        if value is DELETED:
            del inner[last]
        elif value is GROWN:
            found = inner[last]
            found.update(bogus=1) if isinstance(found, dict) else found.append(1)
        else:
            inner[last] = value
        return content

    return change


REFUSED = {
    "no dict": (RANK, (), [1], "must be a valid dictionary"),
    "empty": (TRAINER, (), {}, "kinds is missing"),
    "no objects": (TRAINER, ("objects",), None, "objects must be a valid dictionary"),
    "no flags": (TRAINER, ("modules", "model", "flags"), {}, r"model\.flags\.frozen is missing"),
    "a version that is a text": (
        TRAINER,
        ("modules", "model", "metadata", "1", "version"),
        "x",
        r"metadata\.1\.version must be a valid integer",
    ),
    "an alias of nothing": (
        TRAINER,
        ("modules", "model", "aliases"),
        {"a": "b"},
        r"modules\.model\.aliases: 'b' is not a tensor",
    ),
    "an attribute of the engine": (
        TRAINER,
        ("objects", "user_state"),
        {"max_epochs": 9},
        "max_epochs is an attribute that the engine sets",
    ),
    "a state that is refused": (
        TRAINER,
        ("objects", "also", "noise"),
        {},
        r"also/noise is a Linear, but its state in trainer\.pt is not the state of a module",
    ),
    "a module's tensors as a list": (
        TRAINER,
        ("objects", "also", "noise", "module"),
        [],
        r"objects\.also\.noise: module must be a valid dictionary",
    ),
    "a module's versions as a number": (
        TRAINER,
        ("objects", "also", "noise", "metadata", ""),
        1,
        r"objects\.also\.noise: metadata\. must be",
    ),
    "a module's flags less one": (
        TRAINER,
        ("objects", "also", "noise", "flags", "eval"),
        DELETED,
        r"objects\.also\.noise: flags\.eval is missing",
    ),
    "a handler's module that shares a list": (
        TRAINER,
        ("objects", "handlers", "EMAHandler", "shared", "1.running_mean"),
        [1],
        r"objects\.handlers\.EMAHandler: shared\.1\.running_mean must be a valid string",
    ),
    "a state of a user's that is refused": (
        TRAINER,
        ("objects", "also", "plain"),
        {},
        r"objects\.also\.plain must be a state that a OneEntry loads",
    ),
    "an unknown limit": (RANK, ("limits",), GROWN, r"limits\.bogus is not a field"),
    "a limit that is a text": (RANK, ("limits", "max_epochs"), "x", r"limits\.max_epochs must be"),
    "negative counters": (RANK, ("progress",), [-5, -1, -2, False], "progress must be three"),
    "more epochs than batches": (
        RANK,
        ("progress",),
        [3, 9, 3, False],
        "must not have more epochs",
    ),
    "another step": (RANK, ("optimizer_step",), 2, "step is 2, but 3 in the manifest"),
    "no step": (RANK, ("optimizer_step",), None, "optimizer_step must be a valid integer"),
    "no random states": (RANK, ("random",), {}, "python must be a state of a Random"),
    "a shorter random state": (
        RANK,
        ("random", "numpy", "state", "key"),
        torch.zeros(3, dtype=torch.int64),
        "numpy must be a state of a RandomState",
    ),
    "a generator of the data": (
        RANK,
        ("data", "source", "generators", "generator (torch.Generator, cpu)"),
        -1,
        r"source\.generators generator \(torch\.Generator, cpu\) must be a state",
    ),
    "no facts": (RANK, ("data", "facts"), None, r"data\.facts must be a valid dictionary"),
    "no position": (RANK, ("data", "position"), [1], "must be two numbers: of complete"),
    "a place in the data without its state": (
        RANK,
        ("data", "place"),
        {"of": "data (Stream)", "ahead": -1},
        r"data\.place\.ahead must be greater than or equal to 0",
    ),
    "a sampler without its elements": (
        RANK,
        ("data", "order"),
        {"of": "sampler (Shuffled)", "start": 0, "elements": {"indices": [1]}},
        r"data\.order\.elements must be elements of a sampler",
    ),
    "no groups": (OPTIMIZER, (), {}, "param_groups is missing"),
    "parameters in another order": (
        OPTIMIZER,
        ("param_groups", 0, "params", 0),
        5,
        "must number the parameters from 0",
    ),
    "a rate that is a text": (OPTIMIZER, ("param_groups", 0, "lr"), "0.1", "lr must be a number"),
    "a negative rate": (OPTIMIZER, ("param_groups", 0, "lr"), -0.1, "Invalid learning rate: -0.1"),
    "one beta": (OPTIMIZER, ("param_groups", 0, "betas"), (0.9,), "betas must be a list"),
    "a setting less": (OPTIMIZER, ("param_groups", 0, "eps"), DELETED, "eps is missing"),
    "a moment of another shape": (
        OPTIMIZER,
        ("state", 0, "exp_avg"),
        torch.zeros(2),
        r"state\.0\.exp_avg must be a tensor of its parameter's shape, \(3, 4\)",
    ),
    "a moment less": (OPTIMIZER, ("state", 0, "exp_avg_sq"), DELETED, "exp_avg_sq must be a tens"),
    "a negative count": (OPTIMIZER, ("state", 1, "step"), -1, "step must be a number of at least"),
    "a state too many": (OPTIMIZER, ("state", 77), {}, r"state\.77 belongs to no parameter"),
    "a schedule that is a list": (SCHEDULER, (), [1], "must be a dict"),
    "a method": (SCHEDULER, ("step",), 5, "'step' is not a field of a StepLR"),
    "another optimizer": (SCHEDULER, ("optimizer",), {}, "'optimizer' is not a field of a StepLR"),
    "no place": (SCHEDULER, ("last_epoch",), None, "last_epoch must be"),
    "a phase with an unknown end": (
        SCHEDULER,
        ("_schedule_phases", 0, "start_lr"),
        "x",
        "must be a state from which a OneCycleLR can make a step",
    ),
    "a rate too many": (SCHEDULER, ("base_lrs",), GROWN, "must have a rate for each of the 1"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_edited_content_is_refused_by_file_and_field(tmp_path, saved, kind):
    file, path, value, said = REFUSED[kind]
    schedule = "OneCycleLR" if "_schedule_phases" in path else "StepLR"
    folder = edited(saved[schedule], tmp_path / "step_00000003", file, setting_value(path, value))
    trainer = build(schedule, tmp_path / "new")
    trainer.run(max_steps=1)
    before = full_state(trainer)
    with pytest.raises(ValueError, match=said) as caught:
        ResumeCheckpoint(folder).attach(trainer)
    assert file in str(caught.value)
    assert full_state(trainer) == before


@pytest.mark.parametrize("kind", LEGAL)
def test_unusual_settings_are_resumed_bit_by_bit(tmp_path, kind):
    unbroken = build(kind)
    unbroken.run(max_steps=7)
    build(kind, tmp_path).run(max_steps=3)
    for steps in (5, 7):
        resumed = build(kind, tmp_path)
        ResumeCheckpoint(tmp_path).attach(resumed)
        resumed.run(max_steps=steps)
        assert resumed.resume_report.is_exact, resumed.resume_report
    for own in ("model", "optimizer"):
        states = [getattr(each, own).state_dict() for each in (unbroken, resumed)]
        assert digest_of(states[0]) == digest_of(states[1])


def test_only_three_problems_are_shown(tmp_path, saved):
    folder = edited(saved["StepLR"], tmp_path / "step_00000003", TRAINER, setting_value((), {}))
    with pytest.raises(ValueError, match=r"and \d+ more; was it edited") as caught:
        ResumeCheckpoint(folder).attach(build())
    assert str(caught.value).count("is missing") == 3


@needs("torch>=2.7")
def test_torch_of_another_device_build_is_the_same_torch(tmp_path, saved, monkeypatch):
    # A build for CUDA is "2.13.0+cu130" itself, and "2.13.0" by the metadata of its package.
    monkeypatch.setattr(torch, "__version__", f"{torch.__version__}.cu130")
    change = setting_value(("_is_initial",), DELETED)
    folder = edited(saved["StepLR"], tmp_path / "step_00000003", SCHEDULER, change)
    with pytest.raises(ValueError, match="_is_initial is missing"):
        ResumeCheckpoint(folder).attach(build())


@needs("torch>=2.7")
def test_scheduler_of_another_torch_may_lack_fields(tmp_path, saved):
    change = setting_value(("_is_initial",), DELETED)
    folder = edited(saved["StepLR"], tmp_path / "step_00000003", SCHEDULER, change)
    with pytest.raises(ValueError, match="_is_initial is missing"):
        ResumeCheckpoint(folder).attach(build())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["versions"]["torch"] = "2.6.0"
    (folder / "manifest.json").write_bytes(with_checksum(json.dumps(manifest).encode()))
    trainer = build()
    ResumeCheckpoint(folder).attach(trainer)
    assert trainer.lr_scheduler.state_dict()["last_epoch"] == 3


def test_random_state_of_a_device_is_left_out_on_a_cpu(tmp_path, saved):
    state = torch.zeros(16, dtype=torch.uint8)
    change = setting_value(("random", "device"), state)
    folder = edited(saved["StepLR"], tmp_path / "step_00000003", RANK, change)
    trainer = build()
    ResumeCheckpoint(folder).attach(trainer)
    with pytest.warns(UserWarning, match="from another kind of device"):
        trainer.run(max_steps=4)
    assert trainer.state.optimizer_step == 4


ODD = [
    *[None, "x", -1, [], {}, 1.5, True, 10**30, float("nan"), [1, 2, 3], {"a": 1}, b"b", (1,)],
    *[torch.zeros(3), DELETED, GROWN],
]


def places_in(content, path=()):
    yield path
    if isinstance(content, dict):
        for key, value in content.items():
            if key not in ("frozen", "objects"):  # what only their owners can tell
                yield from places_in(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from places_in(value, (*path, index))


@pytest.mark.grid(8)
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("file", [TRAINER, RANK, OPTIMIZER, SCHEDULER])
@pytest.mark.parametrize("schedule", sorted(MAKERS.keys() - LEGAL.keys()))
def test_odd_values_anywhere_are_refused_or_harmless(tmp_path, saved, schedule, file, part):
    """Sets odd values at some of the paths. If the resume accepts them, training must work."""
    content = torch.load(saved[schedule] / file, weights_only=True)
    cases = [(path, value) for path in places_in(content) for value in ODD]
    chosen = zlib.crc32(f"{schedule}{file}{part}".encode())
    for path, value in random.Random(chosen).sample(cases, 12):
        try:
            change = setting_value(path, value)(copy.deepcopy(content))
        except (AttributeError, KeyError, TypeError):
            continue  # there is nothing to delete or to lengthen
        folder = edited(saved[schedule], tmp_path / "step_00000003", file, lambda _, c=change: c)
        trainer = build(schedule)
        trainer.run(max_steps=1)
        before = full_state(trainer)
        refusal = None
        try:
            ResumeCheckpoint(folder).attach(trainer)
        except ValueError as error:
            refusal = str(error)
        if refusal is not None:
            assert file in refusal or "does not fit" in refusal, (path, value)
            assert full_state(trainer) == before, (path, value)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.run(max_steps=5)
        shutil.rmtree(folder)
