"""Tests with a limit of the file size: like on a full disk, a write stops within a file."""

import pytest

from tests.checkpoint.damage.training import STEPS
from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import whole_steps

FILES = [
    "model.safetensors",
    "model.bin",
    "optimizer.bin",
    "rank_00000.pt",
    "trainer.pt",
    "incomplete.json",
]


@pytest.mark.grid(5)
@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("name", FILES)
def test_a_full_disk_is_an_error_and_costs_no_checkpoint(nursery, quick_path, name, background):
    child = nursery.run(
        "train_limited",
        directory=str(quick_path),
        name=name,
        step=5,
        background=background,
        safe_serialization=name != "model.bin",
    )
    assert child.status == 0, child.reported("traceback")
    ((error_class, text),) = child.reported("error")
    assert child.reported("then") == [[2, 3, 4]]
    assert child.reported("folders") == [3]
    assert child.reported("step") == [STEPS]
    assert whole_steps(quick_path) == [STEPS - 2, STEPS - 1, STEPS]
    assert len(folders(quick_path)) == 3
    assert error_class == "OSError"
    assert "File too large" in text
