"""Tests of the table of file names against the files that a save writes."""

import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import StepLR

import ignite_hooks
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import layout
from tests.reference import batches_of
from tests.reference import make_model

ALWAYS = {layout.MANIFEST, layout.TRAINER, layout.OPTIMIZER, layout.rank_file(0)}


class Scaled(torch.nn.Module):
    """A loss function with a state."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, predicted, wanted):
        return self.scale * torch.nn.functional.mse_loss(predicted, wanted)


class Counting:
    """An object that is registered with the accelerator."""

    def state_dict(self):
        return {"count": 1}

    def load_state_dict(self, state_dict):
        pass


def files_of_a_save(directory, *, registered=0, loss_fn=torch.nn.functional.mse_loss, **options):
    scheduler = options.pop("lr_scheduler", None)
    accelerator = Accelerator(cpu=True)
    accelerator.register_for_checkpointing(*(Counting() for _ in range(registered)))
    model = make_model()
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        loss_fn,
        batches_of(1),
        accelerator=accelerator,
        lr_scheduler=scheduler,
        checkpoint=SaveCheckpoint(directory, **options),
    )
    trainer.run(max_epochs=1)
    (folder,) = directory.glob("step_*")
    return {path.name for path in folder.iterdir()}


CASES = {
    "plain": ({}, {"model.safetensors"}),
    "by torch.save": ({"safe_serialization": False}, {"model.bin"}),
    "a loss with a state": ({"loss_fn": Scaled()}, {"model.safetensors", "loss_fn.safetensors"}),
    "a scheduler": (
        {"lr_scheduler": lambda optimizer: StepLR(optimizer, 2)},
        {"model.safetensors", layout.SCHEDULER},
    ),
    "registered objects": (
        {"registered": 2, "trust_pickle": True},
        {"model.safetensors", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_save_writes_the_files_of_the_table(tmp_path, case):
    options, more = CASES[case]
    assert files_of_a_save(tmp_path, **options) == ALWAYS | more


def test_every_file_name_is_in_the_documented_table():
    described = layout.__doc__
    constants = (layout.MANIFEST, layout.INCOMPLETE, layout.OPTIMIZER, layout.SCHEDULER)
    for name in (*constants, layout.SCALER, layout.TRAINER, layout.SHARDED):
        assert name in described
    assert layout.rank_file(0) in described
    assert layout.registered_file(0) in described
    assert layout.module_files("model")[0] in described


def test_no_other_module_spells_out_a_file_name():
    name = re.compile(
        r'"(manifest\.json|incomplete\.json|optimizer\.bin|scheduler\.bin|scaler\.pt|trainer\.pt|'
        r"sharded|[a-z_]+\.safetensors|rank_[0-9{*][^\"]*|custom_checkpoint[^\"]*)\""
    )
    found = {
        path.name: name.findall(path.read_text())
        for path in (Path(ignite_hooks.__file__).parent / "checkpoint").glob("*.py")
        if path.name != "layout.py" and name.search(path.read_text())
    }
    assert found == {}


@pytest.mark.parametrize("rank", [0, 7, 99_999, 123_456])
def test_rank_files_and_trainer_file_mark_a_checkpoint(rank):
    assert layout.OWN_FILE.fullmatch(layout.rank_file(rank))
    assert layout.OWN_FILE.fullmatch(layout.TRAINER)


@pytest.mark.parametrize("name", ["trainer_pt", "trainer.pt2", "rank_7.pt", "notes.txt", ""])
def test_files_of_users_do_not_mark_a_checkpoint(name):
    assert not layout.OWN_FILE.fullmatch(name)


def test_registered_files_are_sorted_by_number():
    names = {layout.registered_file(number) for number in range(12)}
    found = layout.registered_files(names | ALWAYS)
    assert found == [layout.registered_file(number) for number in range(12)]
