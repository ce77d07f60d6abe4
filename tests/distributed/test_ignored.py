"""Settings that Accelerate silently ignores are reported, and exchanges have a timeout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.launch import on_two_processes

pytestmark = pytest.mark.distributed

ALONE = """
from accelerate import Accelerator
from ignite_hooks import create_supervised_evaluator
import torch
create_supervised_evaluator(torch.nn.Linear(1, 1), accelerator=Accelerator(cpu=True))
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("ignored", tmp_path_factory.mktemp("ignored"))


def test_manually_split_model_is_refused(findings):
    for found in findings.of("split_by_hand"):
        assert found["error"].startswith("`model` must be whole on every process, got parameters")
        assert "Accelerator has an fsdp_plugin" in found["error"]


def test_plugin_that_accelerate_ignores_is_reported(findings):
    for found in findings.of("with_a_plugin"):
        (said,) = found["said"]
        assert said.startswith("Accelerate ignores an FSDP plugin on this device")


def test_exchange_has_the_timeout_given_to_accelerate(findings):
    first, _ = findings.of("impatient")
    assert "Timed out waiting 1000ms" in first["error"]


def launched(folder, words, arguments=()):
    """Runs a script that makes an accelerator by ``accelerate launch``."""
    script = folder / "script.py"
    script.write_text(ALONE)
    launcher = ["-m", "accelerate.commands.launch", "--cpu", *words]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("words", [["--num_processes", "2"], ["--num_processes=2"]])
def test_one_process_instead_of_several_is_reported(tmp_path, words):
    done = launched(tmp_path, words)
    assert "was asked for 2 processes and has started one" in done.stderr


def test_processes_that_are_not_connected_are_an_error(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ALONE.replace("cpu=True", ""))
    done = subprocess.run(
        [*TORCHRUN, str(script)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "got one process, but WORLD_SIZE is 2: each process would train a model" in done.stderr


def test_number_of_processes_of_the_script_itself_is_not_reported(tmp_path):
    assert "was asked for" not in launched(tmp_path, [], ["--num_processes", "2"]).stderr
