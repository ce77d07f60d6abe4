"""Tests of the state of one object: shared tensors, functions in states, missing files."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from ignite.handlers import Checkpoint
from ignite.handlers import DiskSaver
from ignite.handlers import LambdaStateScheduler
from torch.optim.lr_scheduler import MultiStepLR
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.object_state import StatefulObject
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import seed


def normed():
    return torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def trainer_of(model, *handlers, data=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(
        model, optimizer, F.mse_loss, data or batches_of(4), accelerator=Accelerator(cpu=True)
    )
    for each in handlers:
        each.attach(trainer)
    return trainer


def read_back(state, path):
    Objects(state, "the object").write(path)
    return load_objects(path)


def test_a_module_keeps_its_flags_and_its_shared_tensors(tmp_path):
    seed()
    trainer = trainer_of(normed())
    held = copy.deepcopy(trainer.model)
    held[0].running_mean = trainer.model[0].running_mean
    held[1].requires_grad_(False)
    held.eval()
    state = read_back(StatefulObject(held, trainer).state_dict(), tmp_path / "a.pt")
    assert state["shared"] == {"0.running_mean": "model.0.running_mean"}

    other = trainer_of(normed())
    again = copy.deepcopy(other.model)
    again[0].running_var.data = other.model[0].running_var.data
    own_variance = other.model[0].running_var.clone()
    state["module"]["0.running_var"] += 1
    StatefulObject(again, other).load_state_dict(state)
    assert again[0].running_mean.data_ptr() == other.model[0].running_mean.data_ptr()
    assert again[0].running_var.data_ptr() != other.model[0].running_var.data_ptr()
    assert torch.equal(other.model[0].running_var, own_variance)
    assert torch.equal(again[1].weight, held[1].weight)
    assert not again.training
    assert not again[1].weight.requires_grad


class Holder:
    """A handler with a module."""

    def __init__(self, width):
        self.held = torch.nn.Linear(4, width)

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine):
        pass


def test_a_module_of_another_shape_is_refused_before_loading(tmp_path):
    trainer_of(torch.nn.Linear(4, 2), Holder(2), SaveCheckpoint(tmp_path)).run()
    other = trainer_of(torch.nn.Linear(4, 2), Holder(3))
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(ValueError, match=r"weight had the shape \(2, 4\), it has \(3, 4\)"):
        ResumeCheckpoint(tmp_path).attach(other)
    assert all(torch.equal(before[name], each) for name, each in other.model.state_dict().items())


def test_a_module_in_also_is_restored_with_its_flags(tmp_path):
    def make():
        seed()
        teacher = torch.nn.Linear(4, 2)
        return teacher, trainer_of(
            torch.nn.Linear(4, 2), SaveCheckpoint(tmp_path, also={"teacher": teacher})
        )

    teacher, trainer = make()
    with torch.no_grad():
        teacher.weight.add_(1)
    teacher.requires_grad_(False)
    trainer.run()
    again, other = make()
    ResumeCheckpoint(tmp_path).attach(other)
    assert torch.equal(again.weight, teacher.weight)
    assert not again.weight.requires_grad
    assert str(other.resume_report.parts["also"]) == "exact (teacher)"


def lambda_scheduler(optimizer):
    return LambdaStateScheduler(lambda step: 2.0 * step, "x")


def patched(optimizer):
    scheduler = MultiStepLR(optimizer, [1, 3], 0.5)
    scheduler.get_lr = functools.partial(MultiStepLR.get_lr, scheduler)
    return scheduler


@pytest.mark.parametrize("make", [lambda_scheduler, patched])
def test_functions_in_a_scheduler_state_are_kept(make, tmp_path):
    trainer = make_trainer(batches_of(1))
    one, two = make(trainer.optimizer), make(trainer.optimizer)
    counter = "last_epoch" if hasattr(one, "last_epoch") else "event_index"
    setattr(one, counter, 7)
    functions = {name: each for name, each in vars(two).items() if callable(each)}
    assert functions
    state = read_back(StatefulObject(one, trainer).state_dict(), tmp_path / "a.pt")
    StatefulObject(two, trainer).load_state_dict(state)
    assert getattr(two, counter) == 7
    assert all(getattr(two, name) is each for name, each in functions.items())
    assert getattr(two, "milestones", None) == getattr(one, "milestones", None)
    assert type(getattr(two, "milestones", None)) is type(getattr(one, "milestones", None))


def test_an_object_loads_a_copy_of_its_state():
    class Keeper:
        def __init__(self):
            self.kept = [0]

        def state_dict(self):
            return {"kept": self.kept}

        def load_state_dict(self, state_dict):
            self.kept = state_dict["kept"]

    trainer, keeper, state = make_trainer(batches_of(1)), Keeper(), {"kept": [1]}
    StatefulObject(keeper, trainer).load_state_dict(state)
    keeper.kept.append(2)
    assert state == {"kept": [1]}


@pytest.mark.parametrize("is_new_node", [False, True])
def test_missing_files_of_ignites_checkpoint_are_forgotten(is_new_node, tmp_path):
    def make(files):
        saver = DiskSaver(files, create_dir=True, require_empty=False)
        trainer = trainer_of(torch.nn.Linear(4, 2), data=batches_of(4))
        keeper = Checkpoint({"model": trainer.model}, saver, n_saved=2)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, keeper)
        SaveCheckpoint(tmp_path / "run", on_signals=()).attach(trainer)
        return trainer, keeper

    first, keeper = make(tmp_path / "files")
    first.run(max_steps=3)
    assert len(list((tmp_path / "files").iterdir())) == 2
    folder = tmp_path / ("new" if is_new_node else "files")
    second, keeper = make(folder)
    ResumeCheckpoint(tmp_path / "run").attach(second)
    part = second.resume_report.parts["handlers"]
    if is_new_node:
        assert part.level == "missing"
        assert part.reason == (
            f"Checkpoint: 2 of 2 files are not in {folder}, so they no longer count for `n_saved`"
        )
        with pytest.warns(UserWarning, match="2 of 2 files are not in"):
            second.run(max_steps=6)
    else:
        assert str(part) == "exact (Checkpoint)"
        second.run(max_steps=6)
    assert second.state.optimizer_step == 6
    names = [each.filename for each in keeper._saved]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert names == ["model_5.pt", "model_6.pt"]


class Reader:
    """A handler whose state names a file on its machine."""

    error: BaseException = FileNotFoundError("/scratch/a7/cache.bin")

    def __init__(self, is_refusing=False):
        self.number, self.is_refusing = 0, is_refusing

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        self.number += 1

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state_dict):
        if self.is_refusing:
            raise self.error
        self.number = state_dict["number"]


class Strict(Reader):
    error = ValueError("no such number")


def resumed(tmp_path, kind, **options):
    trainer = trainer_of(torch.nn.Linear(4, 2), kind(), SaveCheckpoint(tmp_path))
    trainer.run()
    reader = kind(is_refusing=True)
    other = trainer_of(torch.nn.Linear(4, 2), reader)
    ResumeCheckpoint(tmp_path).attach(other)
    return other


def test_a_handler_that_misses_a_file_is_reported_not_fatal(tmp_path):
    trainer = resumed(tmp_path, Reader)
    assert str(trainer.resume_report.parts["handlers"]) == (
        "missing (Reader: /scratch/a7/cache.bin)"
    )
    assert trainer.resume_report.parts["model"].level == "exact"


def test_a_handler_that_refuses_its_state_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such number"):
        resumed(tmp_path, Strict)


def test_schedulers_of_the_trainer_are_not_saved_twice(tmp_path):
    trainer = make_trainer(batches_of(2), lr_scheduler=lambda o: StepLR(o, 1))
    scheduler = trainer.lr_scheduler
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: scheduler.get_last_lr())
    SaveCheckpoint(tmp_path).attach(trainer)
    trainer.run()
    state = load_objects(tmp_path / "step_00000002" / "trainer.pt")
    assert state["objects"]["handlers"] == {}
