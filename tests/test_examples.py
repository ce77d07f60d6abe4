import copy
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from importlib.metadata import metadata
from pathlib import Path
from statistics import fmean
from statistics import stdev
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from jupyter_core.utils import run_sync
from safetensors.torch import load_file
from sklearn.datasets import load_breast_cancer
from torch.utils.data import DataLoader
from torch.utils.data import random_split

from ignite_hooks.checkpoint import checkpoints
from ignite_hooks.checkpoint import load_weights
from ignite_hooks.observe import read_metrics
from tests import notebook

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
# Arguments that make the examples short.
SMALL = {
    "language_model.py": ["--steps", "2"],
    "memory_care.py": ["--epochs", "1"],
    "plain_engine.py": ["--epochs", "1"],
    "tabular.py": ["--folds", "2", "--epochs", "1"],
    "digits.py": ["--epochs", "1", "--batch-size", "256"],
    "gan.py": ["--epochs", "1"],
    "resume.py": ["--epochs", "1", "--checkpoints", "checkpoints"],
    "segmentation.py": ["--epochs", "1"],
    "transfer.py": ["--epochs", "1"],
}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]


def started(*arguments, folder=ROOT):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        # COLUMNS: wide enough for the Console, whatever the terminal of the tests has.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a timeout can also kill the workers of loaders
    )


def python(*arguments, folder=ROOT, limit=300, warnings=()):
    return output_of(started(*arguments, folder=folder), limit, warnings)


def output_of(process, limit=300, warnings=()):
    """Returns what a process has printed.

    Args:
        process: the process.
        limit: the seconds after which it is killed.
        warnings: the beginnings of all warnings that it must give.
    """
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
    assert process.returncode == 0, f"{output}\n{errors[-3000:]}"
    given = re.findall(r"Warning: (.*)", errors)
    assert len(given) == len(warnings), errors
    assert all(map(str.startswith, given, warnings)), errors
    return output


def blocks(language, page=ROOT / "README.md"):
    text = page.read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands():
    (block,) = blocks("sh")
    return block.splitlines()


def accuracies(output):
    """Returns the accuracies in the table that the Console shows."""
    rows = re.findall(r"^ *\d+ +\d+ +\S+ +([01]\.\d+)\*?(?: |$)", output, re.MULTILINE)
    return [float(number) for number in rows]


def results(output):
    """Returns the losses, the accuracies and the summary that the digits example has printed."""
    rows = re.findall(r"^ *\d+ +\d+ +\S+ +[01]\.\d+", output, re.MULTILINE)
    return rows, output.split("\n\n")[-1]


# Without those that another test runs in the same way.
@pytest.mark.parametrize("example", sorted({*EXAMPLES} - {"own_handler.py", "segmentation.py"}))
def test_every_example_runs(example, tmp_path):
    script = ROOT / "examples" / example
    assert python(script, "--cpu", *SMALL.get(example, []), folder=tmp_path)


@pytest.mark.exhaustive
def test_digits_are_accurate_with_the_default_arguments(tmp_path):
    output = python("examples/digits.py", "--cpu", "--output", tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl").points("val_accuracy")[0][-1] == 230
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out_accuracy"] >= 0.97
    assert summary["optimizer_steps"] == 10 * 23  # 45 batches by two
    assert len(accuracies(output)) == summary["epochs"] == 10
    assert f"held out accuracy   {summary['held_out_accuracy']}" in output
    assert load_file(tmp_path / "run" / "model.safetensors")


def on_two_processes(*arguments, **options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return python(*TORCHRUN, port, *arguments, "--cpu", **options)


@pytest.mark.exhaustive
@pytest.mark.distributed
def test_digits_on_two_processes_are_accurate_and_printed_once(tmp_path):
    output = on_two_processes("examples/digits.py", "--output", tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["optimizer_steps"] == 10 * 12  # 23 batches for each process, by two
    assert summary["held_out_accuracy"] >= 0.97
    assert len(accuracies(output)) == 10
    # Each of the 360 images counts once; the accuracies are printed with four digits.
    read = [accuracy * 360 for accuracy in accuracies(output)]
    assert read == pytest.approx([round(number) for number in read], abs=0.02)
    assert output.count("held out accuracy") == 1


@pytest.mark.exhaustive
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("example", "last_line", "warnings"),
    [
        ("gan.py", "epoch 1: the pictures", []),
        ("segmentation.py", "[ #o]{24} ", []),
        ("transfer.py", "test accuracy", ["find_unused_parameters=True"] * 2),
    ],
)
def test_examples_print_once_on_two_processes(example, last_line, warnings, tmp_path):
    script = ROOT / "examples" / example
    output = on_two_processes(script, *SMALL[example], folder=tmp_path, warnings=warnings)
    assert re.match(last_line, output.splitlines()[-1])
    last_rows = re.findall(f"^{last_line}", output, re.MULTILINE)
    assert len(last_rows) == (24 if example == "segmentation.py" else 1)


@pytest.mark.slow
def test_resumed_digits_equal_those_of_one_run(tmp_path):
    def digits(epochs, *arguments):
        python("examples/digits.py", "--cpu", *SMALL["digits.py"], "--epochs", epochs, *arguments)

    digits(2, "--output", tmp_path / "one")
    digits(1, "--output", tmp_path / "two")
    digits(2, "--output", tmp_path / "two", "--resume")
    one, two = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two"))
    assert two == one
    weights = [load_file(tmp_path / run / "model.safetensors") for run in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.exhaustive
def test_stopped_and_restarted_example_ends_like_an_unbroken_run(tmp_path):
    script = ROOT / "examples" / "resume.py"
    unbroken = started(script, "--cpu", "--epochs", "3", "--checkpoints", tmp_path / "unbroken")
    arguments = [script, "--cpu", "--epochs", "3", "--checkpoints", tmp_path / "stopped"]
    # With -u the first line can be read when it is printed, while the script still runs.
    with started("-u", *arguments) as process:
        assert process.stdout.readline().startswith("epoch   1")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert re.search(r"^stopped at step \d+; the same command", output, re.MULTILINE)
    again = python(*arguments)
    assert "random generators: exact" in again
    assert again.splitlines()[-2:] == output_of(unbroken).splitlines()[-2:]


@pytest.mark.exhaustive
def test_a_settings_file_trains_like_the_command_line(tmp_path):
    small = SMALL["digits.py"]
    script = ROOT / "examples" / "digits.py"
    first = python(script, "--cpu", *small, "--save-config", "run.toml", folder=tmp_path)
    again = python(script, "--cpu", "--batch-size", "256", "--config", "run.toml", folder=tmp_path)
    assert results(first)[0]
    assert results(first) == results(again)
    (tmp_path / "run.yaml").write_text("type: run\nmax_epoch: 3\n")
    with started(script, "--config", "run.yaml", folder=tmp_path) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "run.yaml: max_epoch: `run` has no field 'max_epoch'; did you mean" in errors


def test_a_settings_file_of_fifteen_lines_is_a_whole_run(tmp_path, monkeypatch):
    assert len((ROOT / "examples" / "run.yaml").read_text().splitlines()) <= 15
    arguments = [ROOT / "examples" / "digits.py", "--cpu", *SMALL["digits.py"], "--config"]
    assert "accuracy" in python(*arguments, ROOT / "examples" / "run.yaml", folder=tmp_path)
    saved = [path.name for path in (tmp_path / "runs" / "from_file" / "checkpoints").iterdir()]
    assert any(name.startswith("step_") for name in saved)
    # Another folder is another run. The shell does not replace a ~ that follows a =.
    monkeypatch.setenv("HOME", str(tmp_path))
    output = python(*arguments, ROOT / "examples" / "run.yaml", "--output=~/other", folder=tmp_path)
    assert "run begins" in output
    written = [path.name for path in (tmp_path / "other").iterdir()]
    assert {*written} >= {"checkpoints", "model.safetensors", "report.html", "summary.json"}


@pytest.mark.exhaustive
def test_digits_with_one_seed_are_reproducible():
    arguments = ["examples/digits.py", "--cpu", "--seed", "3", *SMALL["digits.py"]]
    both = [started(*arguments), started(*arguments)]
    first, second = (results(output_of(each)) for each in both)
    assert first == second


def test_the_readme_commands_name_extras_and_files_that_exist():
    extras = metadata("ignite-hooks").get_all("Provides-Extra")
    assert commands() == [
        'pip install -c .ci/constraints.txt -e ".[examples]" && python examples/digits.py',
        'pip install -c .ci/constraints.txt -e ".[test]" && '
        "python -m pytest -n auto --dist worksteal",
    ]
    for command in commands():
        (extra,) = re.findall(r"\[(\w+)\]", command)
        assert extra in extras
    for file in (".ci/constraints.txt", ".ci/run", "examples/digits.py"):
        assert (ROOT / file).exists()


def test_the_constraints_pin_torch_so_that_a_cpu_build_fits():
    pins = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


def test_the_ci_script_finds_the_readme_commands():
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    finder = script[script.index("readme_command() {") : script.index("run() {")]
    for extra, command in zip(("examples", "test"), commands(), strict=True):
        bash = ["bash", "-euc", f"{finder}\nreadme_command {extra}"]
        found = subprocess.run(bash, cwd=ROOT, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == command


@pytest.mark.parametrize("example", [*EXAMPLES, "slurm.sh"])
def test_an_example_has_fewer_than_120_lines(example):
    lines = (ROOT / "examples" / example).read_text().splitlines()
    assert len(lines) < 120


def imported(example):
    spec = importlib.util.spec_from_file_location(example, ROOT / "examples" / f"{example}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def transferred(folder, epochs):
    """Trains a net with a frozen body in the first 2 epochs.

    Returns the module of the example, the net, a copy of the net before, and the test accuracy.
    """
    transfer = imported("transfer")
    net = transfer.make_net()
    before = copy.deepcopy(net)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=folder)
    args = SimpleNamespace(output=folder, epochs=epochs)
    accuracy = transfer.train("net", net, args, accelerator, body_lr=0.001, frozen_epochs=2)
    accelerator.end_training()
    return transfer, net, before, accuracy


def same_weights(one, other):
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_transfer_trains_the_body_only_after_the_frozen_epochs(tmp_path):
    for epochs, is_frozen in ((2, True), (3, False)):
        _, (body, head), before, _ = transferred(tmp_path / str(epochs), epochs)
        assert same_weights(body, before[0]) == is_frozen
        assert not same_weights(head, before[1])


def test_transfer_tests_the_best_averaged_weights(tmp_path):
    transfer, _, _, accuracy = transferred(tmp_path, epochs=21)
    test = random_split(transfer.five_digits(5), [300, 596], torch.Generator().manual_seed(0))[1]
    x, y = next(iter(DataLoader(test, len(test))))

    def tested(saved, part):
        net = transfer.make_net()
        load_weights(net, saved.path, part=part)
        return (net(x).argmax(1) == y).float().mean().item()

    found = checkpoints(tmp_path / "net" / "checkpoints")
    (best,) = (each for each in found if each.is_best)
    assert accuracy == pytest.approx(tested(best, "handlers/EMAHandler"))
    others = [tested(each, "handlers/EMAHandler") for each in found if each is not best]
    assert accuracy not in map(pytest.approx, [*others, tested(best, "model")])


def test_transfer_sends_both_learning_rates_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    transferred(tmp_path, epochs=3)
    curves = EventAccumulator(str(tmp_path / "net")).Reload()
    rates = [[point.value for point in curves.Scalars(name)] for name in ("lr_0", "lr_1")]
    # After 10 and 20 steps of the warm-up, the step itself included, and after the warm-up.
    assert rates[1] == pytest.approx([0.003 * (0.1 + 0.9 * step / 20) for step in (9, 19, 20)])
    assert rates[0] == pytest.approx([rate / 3 for rate in rates[1]])
    assert [point.step for point in curves.Scalars("val_accuracy")] == [10, 20, 30]


@pytest.mark.exhaustive
def test_transfer_is_worth_it(tmp_path):
    output = python(ROOT / "examples" / "transfer.py", "--cpu", folder=tmp_path)
    scratch, transfer = re.findall(r"(0\.\d+) (?:from scratch|transferred)", output)
    assert float(transfer) > float(scratch) + 0.05


def test_segmentation_records_both_losses_by_name(tmp_path):
    script = ROOT / "examples" / "segmentation.py"
    python(script, "--cpu", *SMALL["segmentation.py"], "--output", tmp_path)
    record = read_metrics(tmp_path / "metrics.jsonl")
    (steps, loss), *parts = (record.points(name) for name in ("loss", "cross_entropy", "dice"))
    assert list(steps) == [10, 20, 30, 32]
    assert loss == pytest.approx(
        [sum(each) for each in zip(*(part[1] for part in parts), strict=True)]
    )


@pytest.mark.exhaustive
def test_segmentation_finds_shapes_and_lowers_the_rate(tmp_path):
    output = python(ROOT / "examples" / "segmentation.py", "--cpu", "--output", tmp_path)
    record = read_metrics(tmp_path / "metrics.jsonl")
    assert max(record.points("val_iou")[1]) > 0.85
    rates = record.points("lr")[1]
    assert (rates[0], rates[-1] <= 0.005) == (0.01, True)
    rows = re.findall(r"^([ #o]{24}) \| ([ #o]{24})$", output, re.MULTILINE)
    true, predicted = ("".join(column) for column in zip(*rows, strict=True))
    assert {*true} == {" ", "#", "o"}
    assert sum(map(str.__eq__, true, predicted)) > 0.95 * 24 * 24


@pytest.mark.exhaustive
def test_gan_that_was_stopped_draws_the_same_pictures(tmp_path):
    script = ROOT / "examples" / "gan.py"
    arguments = [script, "--cpu", "--epochs", "30", "--every", "10", "--output"]
    unbroken = started(*arguments, tmp_path / "unbroken")
    with started("-u", *arguments, tmp_path / "stopped") as process:
        while "epoch_010.png" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=300)
    assert "run stopped at step" in output, errors
    again = python(*arguments, tmp_path / "stopped")
    assert "run continues after step" in again
    assert again.splitlines()[-1].startswith("epoch 30: the pictures are in")
    output_of(unbroken)
    pictures = [
        {p.name: p.read_bytes() for p in (tmp_path / run).glob("*.png")}
        for run in ("unbroken", "stopped")
    ]
    assert [*sorted(pictures[0])] == ["epoch_010.png", "epoch_020.png", "epoch_030.png"]
    assert len({*pictures[0].values()}) == 3
    assert pictures[0] == pictures[1]


# Programs in place of those of Slurm: they start tasks, signal them, and note what is requeued.
SLURM = {
    "srun": """
        test "$1" = --kill-on-bad-exit=1; shift
        for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
            SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & echo $! >> tasks
        done
        for task in $(cat tasks); do wait "$task"; done
        """,
    "scancel": """
        test "$*" = "--signal=TERM $SLURM_JOB_ID"
        kill -TERM $(cat tasks)
        """,
    "scontrol": """
        if test "$1" = show; then echo localhost; else echo "$*" >> requeued; fi
        """,
}


@pytest.mark.exhaustive
@pytest.mark.distributed
def test_slurm_job_continues_after_its_time_limit(tmp_path):
    for name, program in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash -eu\n{textwrap.dedent(program)}")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    number = str(os.getpid())  # from which the script makes the number of a port
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def job(checkpoints):
        (tmp_path / "tasks").unlink(missing_ok=True)
        arguments = ["--cpu", "--epochs", "12", "--checkpoints", checkpoints]
        return subprocess.Popen(
            ["bash", ROOT / "examples" / "slurm.sh", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": path,
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": "1",
                "SLURM_JOB_ID": number,
                "SLURM_JOB_NODELIST": "localhost",
                "SLURM_NTASKS": "2",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    whole = output_of(job("whole"))
    with job("stopped") as limited:
        assert limited.stdout.readline().startswith("epoch   1")
        limited.send_signal(signal.SIGUSR1)  # the time limit is near
        stopped = output_of(limited)
    assert "the same command continues" in stopped
    assert (tmp_path / "requeued").read_text() == f"requeue {number}\n"
    again = output_of(job("stopped"))
    assert again.splitlines()[-2:] == whole.splitlines()[-2:]
    assert (tmp_path / "requeued").read_text() == f"requeue {number}\n"  # only once


def numbers(pattern, text):
    """Returns the numbers that the groups of a pattern match, a list for each group."""
    rows = [map(float, match.groups()) for match in re.finditer(pattern, text)]
    return [list(column) for column in zip(*rows, strict=True)]


def test_the_own_handler_continues_its_average_after_a_resume(tmp_path):
    script = ROOT / "examples" / "own_handler.py"
    (tmp_path / "unbroken").mkdir()
    whole_run = started(script, "--cpu", "--epochs", "4", folder=tmp_path / "unbroken")
    python(script, "--cpu", "--epochs", "2", folder=tmp_path)
    resumed = python(script, "--cpu", "--epochs", "4", folder=tmp_path)
    unbroken = output_of(whole_run).splitlines()
    assert len(unbroken) == 5
    assert resumed.splitlines() == unbroken[2:]


@pytest.mark.exhaustive
def test_the_own_handler_validates_better_weights_than_the_last(tmp_path):
    output = python(ROOT / "examples" / "own_handler.py", "--cpu", folder=tmp_path)
    averaged, last = (numbers(rf"{each} ([\d.]+)%", output)[0] for each in ("weights", "accuracy"))
    assert len(averaged) == 10
    assert averaged[-1] >= last[-1] + 0.5


@pytest.mark.exhaustive
def test_the_language_model_learns_and_writes_text(tmp_path):
    arguments = ["--cpu", "--steps", "200"]
    output = python(ROOT / "examples" / "language_model.py", *arguments, folder=tmp_path)
    assert "items" in output.split()  # the column of tokens per second
    (losses,) = numbers(r"(?m)^ +[12]00 +1 +\S+ +([\d.]+)\*", output)
    assert losses[1] < losses[0] < 5  # bits per byte; 8 if all bytes were equally likely
    assert "\ndef " in output


def test_the_scaler_of_a_fold_never_sees_the_test_rows():
    table, labels = load_breast_cancer(return_X_y=True)
    train_rows, test_rows = np.arange(500), np.arange(500, 569)
    scaled = []
    for _ in range(2):
        train_data, _ = imported("tabular").loaders(table, labels, train_rows, test_rows)
        scaled.append(train_data.dataset.tensors[0])
        table[test_rows] *= 2
    assert torch.equal(*scaled)
    assert scaled[0].std(dim=0) == pytest.approx([1.0] * 30, abs=0.01)


@pytest.mark.exhaustive
def test_each_fold_of_the_table_leaves_no_tensor_and_no_memory(tmp_path):
    output = python(ROOT / "examples" / "tabular.py", "--cpu", folder=tmp_path)
    pattern = r"fold +\d+ +accuracy ([\d.]+)% +memory (\d+) MiB, (\d+) tensors"
    accuracies, mib, tensors = numbers(pattern, output)
    assert len(accuracies) == 10
    assert set(tensors) == {0}
    assert mib[-1] - mib[1] < 10  # the first fold loads libraries
    mean, deviation = (round(each(accuracies), 2) for each in (fmean, stdev))
    assert numbers(r"accuracy ([\d.]+)% ± ([\d.]+)%", output) == [
        [pytest.approx(mean, abs=0.02)],
        [pytest.approx(deviation, abs=0.02)],
    ]
    assert mean > 96


@pytest.mark.exhaustive
def test_the_plain_engine_trains_with_mixup(tmp_path):
    output = python(ROOT / "examples" / "plain_engine.py", "--cpu", folder=tmp_path)
    assert accuracies(output)[-1] >= 0.97
    assert "run finished at step 230" in output


def test_the_notebook_prints_what_it_shows(tmp_path):
    shown = notebook.read()
    executed = notebook.execute(notebook.read(), tmp_path)
    number = r"\d+(?:\.\d+)?"
    for ours, theirs in zip(executed.cells, shown.cells, strict=True):
        texts = [notebook.printed(each) for each in (ours, theirs)]
        assert re.sub(number, "#", texts[0]) == re.sub(number, "#", texts[1])
        ours_in, theirs_in = ([float(n) for n in re.findall(number, text)] for text in texts)
        assert ours_in == pytest.approx(theirs_in, abs=0.02)  # seven of 360 images
        assert len(notebook.pictures(ours)) == len(notebook.pictures(theirs))
    assert "every step once: True" in notebook.printed(executed.cells[-1])


@pytest.mark.exhaustive
def test_the_notebook_can_be_interrupted_anywhere_by_its_button(tmp_path):
    class Button(notebook.NotebookClient):
        """Interrupts the kernel when an epoch of the first run is complete."""

        is_pressed = False

        def process_message(self, message, cell, cell_index):
            text = message["content"].get("text", "")
            if "epoch 2" in text and not self.is_pressed:
                self.is_pressed = True
                run_sync(self.km.interrupt_kernel)()
            return super().process_message(message, cell, cell_index)

    interrupted = notebook.read()
    for cell in interrupted.cells:
        cell.source = cell.source.replace("signal.raise_signal(signal.SIGINT)", "pass")
        cell.source = cell.source.replace("max_epochs=8", "max_epochs=1000")
        cell.source = cell.source.replace("run()", "run(max_epochs=trainer.state.epoch + 2)")
    notebook.execute(interrupted, tmp_path, Button)
    end = notebook.printed(interrupted.cells[-1])
    assert "every step once: True" in end
    (step,), (resumed,) = numbers(
        r"error at step (\d+) KeyboardInterrupt\nresume at step (\d+)", end
    )
    assert step == resumed >= 90
