"""Tests of Console by what it shows in terminals, files and streams that break."""

import gc
import itertools
import logging
import math
import re
import signal
import subprocess
import sys
import weakref

import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import RunningAverage
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import Console
from ignite_hooks import EpochMaxRAM
from ignite_hooks import ExperienceMaxRAM
from ignite_hooks import GrowthWatch
from ignite_hooks import MeanLoss
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Throughput
from ignite_hooks import TimeLedger
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.observe.value_text import duration_text
from ignite_hooks.observe.value_text import number_text
from ignite_hooks.observe.value_text import size_text
from tests.observe.terminal import process_in_terminal
from tests.observe.terminal import terminal
from tests.reference import FakeScaler
from tests.reference import Notes
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_trainer

ALWAYS = 1e-9  # seconds, so that a line is due after each step


def scores(*values, name="score"):
    """Returns a function for a Validation that returns one value after the other."""
    left = iter(values)
    return lambda: {name: next(left)}


def validated(values, batches=4, *, console=None, handlers=(), **options):
    """Returns a trainer with a Console and a validation in each epoch."""
    validation = Validation(scores(*values), every_epochs=1)
    handlers = [console or Console(), *handlers]
    return make_trainer(batches_of(batches), validation=validation, handlers=handlers, **options)


def table(text):
    """Returns the rows of the table in a text, each as a dict of the titles' last words."""
    rows, titles = [], None
    for line in text.splitlines():
        if re.match(r" *(step|iteration) ", line):
            titles = line.split()
        elif titles and re.match(r" *\d+ +\d+( |$)", line):
            rows.append(dict(zip(titles, line.split(), strict=False)))
    return rows


def lines_of(text):
    """Returns the lines of a text that are not part of the table."""
    return [line for line in text.splitlines() if not re.match(r" *(\d+ |step|val|grad)", line)]


# -- a file -------------------------------------------------------------------------------------


def test_file_has_the_start_the_rows_and_the_end(capsys, tmp_path):
    save = SaveCheckpoint(tmp_path / "saved", metric="val_score")
    trainer = validated([0.5, 0.75], checkpoint=save, accumulation=2)
    trainer.run(max_epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "Sequential with 58 parameters",
        "  2 steps an epoch, 2 batches a step",
        "  float32, 1 process on cpu",
        f"  checkpoints in {tmp_path / 'saved'}",
        "run begins, up to step 4 (max_epochs=2)",
    ]
    loss = [number_text(each) for each in losses_of_epochs(2)]
    numbers = r"\s+[\d.]+ [MG]iB"
    assert re.fullmatch(rf"   2      1   {loss[0]}  0\.5000\*{numbers}", lines[7])
    assert re.fullmatch(rf" +4 +2 +{loss[1]} +0\.7500\* .*{numbers}", lines[-3])
    assert re.fullmatch(r"run finished at step 4 \(max_epochs\) after \d\.\d s", lines[-2])
    assert lines[-1] == "best val_score: 0.7500 at step 4, epoch 2"
    assert sys.stdout.write.__self__ is sys.stdout


def losses_of_epochs(epochs, batches=4, accumulation=2):
    trainer = make_trainer(batches_of(batches), accumulation=accumulation)
    means = Notes()
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: means.append(engine.state.metrics["loss"])
    )
    MeanLoss(every_steps=10**6).attach(trainer)
    trainer.run(max_epochs=epochs)
    return means


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("accumulation", [1, 4])  # 7 batches: the last window is shorter
def test_loss_of_a_row_is_the_mean_since_the_last_row(capsys, every, accumulation):
    handlers = [Console(), MeanLoss(every_steps=every)]
    trainer = make_trainer(batches_of(7), handlers=handlers, accumulation=accumulation)
    # Others may write under the same name.
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, lambda engine: engine.state.metrics.update(loss="a text")
    )
    trainer.run(max_epochs=2)
    rows = table(capsys.readouterr().out)
    expected = losses_of_epochs(2, 7, accumulation)
    assert [row["loss"] for row in rows] == [number_text(each) for each in expected]


def test_lines_come_every_so_many_seconds(capsys):
    for every, count in ((60.0, 0), (ALWAYS, 4)):
        make_trainer(batches_of(4), handlers=[Console(every_seconds=every)]).run()
        lines = [line for line in capsys.readouterr().out.splitlines() if " of 4 (" in line]
        assert len(lines) == count
    assert re.fullmatch(
        r"step 3 of 4 \(75%\), \d\.\d s left, epoch 1/1, \d\.\d s elapsed", lines[2]
    )


@pytest.mark.parametrize(
    ("data", "limits", "shown"),
    [
        (batches_of(4), {"max_epochs": 3}, "up to step 12 (max_epochs=3)"),
        (batches_of(4), {"max_steps": 5}, "up to step 5 (max_steps=5)"),
        (batches_of(4), {"max_iters": 6}, "up to step 6 (max_iters=6)"),
        (Repeatable(batches_of(4)), {"max_steps": 5}, "up to step 5 (max_steps=5)"),
    ],
)
def test_bar_is_over_the_whole_run(capsys, data, limits, shown):
    make_trainer(data, handlers=[Console(every_seconds=ALWAYS)]).run(**limits)
    text = capsys.readouterr().out
    assert f"run begins, {shown}\n" in text
    (last,) = {int(each) for each in re.findall(r"step \d+ of (\d+) ", text)}
    assert f"step {last} of {last} (100%)" in text


def test_changed_limit_changes_the_end(capsys):
    trainer = make_trainer(batches_of(4), handlers=[Console(every_seconds=ALWAYS)])

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def raise_limit(engine):
        engine.state.max_epochs = 2

    trainer.run()
    text = capsys.readouterr().out
    assert "step 1 of 4 (25%)" in text
    assert "step 3 of 8 (38%)" in text
    assert "step 8 of 8 (100%)" in text


def test_unknown_length_has_no_end(capsys):
    trainer = make_trainer(Repeatable(batches_of(3)), handlers=[Console(every_seconds=ALWAYS)])
    trainer.run(max_epochs=1)
    text = capsys.readouterr().out
    assert "run begins (max_epochs=1)\n" in text
    assert re.search(r"^step 2, epoch 1/1, ", text, re.MULTILINE)


def test_open_window_counts_for_the_end(capsys):
    trainer = make_trainer(batches_of(10), handlers=[Console(every_seconds=ALWAYS)], accumulation=4)
    with trainer.add_event_handler(Events.ITERATION_COMPLETED(once=6), stopping("interrupt")):
        trainer.run(max_epochs=1)
    trainer.run()
    assert "run continues after step 1, up to step 3 (" in capsys.readouterr().out
    assert trainer.state.optimizer_step == 3


@pytest.mark.parametrize("wording", ["step", "epoch"])
def test_each_validation_has_one_row(capsys, wording):
    schedule = {"every_steps": 2} if wording == "step" else {"every_epochs": 1}
    first = Validation(scores(*range(9)), **schedule)
    second = Validation(scores(*range(9)), **schedule, prefix="other_")
    handlers = [Console(), MeanLoss(every_steps=1)]
    trainer = make_trainer(batches_of(4), validation=first, handlers=handlers)
    second.attach(trainer)
    trainer.run(max_epochs=2)
    rows = table(capsys.readouterr().out)
    steps = [2, 4, 6, 8] if wording == "step" else [4, 8]
    assert [int(row["step"]) for row in rows] == steps
    assert [row["score"] for row in rows] == [str(number) for number in range(len(steps))]


def test_end_within_an_epoch_has_a_row(capsys):
    make_trainer(batches_of(4), handlers=[Console()]).run(max_steps=6)
    text = capsys.readouterr().out
    assert [row["step"] for row in table(text)] == ["4", "6"]
    assert "run finished at step 6 (max_steps) after" in text


# -- the best value -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "mode", "marked"),
    [
        ([0.5, 0.25, 0.75, 0.75], "max", [0, 2, 3]),
        ([0.5, 0.25, 0.75, 0.25], "min", [0, 1, 3]),
        ([math.nan, 0.25, math.nan, 0.5], "max", [1, 3]),
        ([torch.tensor(0.5), torch.tensor(0.75)], "max", [0, 1]),
        (["good", None, 0.5, True], "max", [2]),
        ([10**300, 0.5], "max", [0]),
    ],
)
def test_best_values_are_marked(capsys, values, mode, marked):
    trainer = validated(values, console=Console(metric="val_score", mode=mode))
    trainer.run(max_epochs=len(values))
    rows = table(capsys.readouterr().out)
    assert [number for number, row in enumerate(rows) if "*" in row["score"]] == marked


def test_nothing_is_marked_without_a_metric(capsys):
    validated([0.5, 0.75]).run(max_epochs=2)
    text = capsys.readouterr().out
    assert "*" not in text
    assert "best" not in text


@pytest.mark.parametrize(
    ("metric", "shown"),
    [
        ("val_scor", "because `state.metrics` has no such name; did you mean `val_score`?"),
        ("val_score", "because no value is a number"),
    ],
)
def test_run_without_a_best_value_says_so(capsys, metric, shown):
    validated(["good"], console=Console(metric=metric)).run()
    assert capsys.readouterr().out.splitlines()[-1] == f"best {metric}: none, {shown}"


def test_best_value_that_is_loaded_before_the_attachment_is_kept():
    console = Console()
    saved = {"best": {"name": "score", "value": 1, "step": 4, "epoch": 1}, "losses": {}}
    console.load_state_dict({**saved, "reports": {"unreported": []}})
    with console.attach(make_trainer()):
        assert console.state_dict()["best"] == saved["best"]
    assert console.state_dict()["best"] is None


def test_new_run_forgets_the_best_value(capsys):
    trainer = validated([0.75, 0.5], console=Console(metric="val_score"))
    trainer.run(max_epochs=1)
    trainer.run(max_epochs=1)
    text = capsys.readouterr().out
    assert [row["score"] for row in table(text)] == ["0.7500*", "0.5000*"]
    assert text.count("Sequential") == 1  # the description has not changed
    assert text.count("run begins") == 2


# -- stops, failures and resumption -------------------------------------------------------------


def stopping(way):
    def stop(engine):
        if way == "terminate":
            engine.terminate()
        elif way == "interrupt":
            engine.interrupt()
        else:
            raise way

    return stop


@pytest.mark.parametrize(
    ("way", "shown"),
    [
        ("terminate", r"run stopped at step 3 \(terminate\) after .*"),
        ("interrupt", r"run interrupted at step 3 after .*"),
        (OSError("disk\nfull"), r"run failed at step 3 \(OSError: disk full\) after .*"),
        (KeyboardInterrupt(), r"run stopped at step 3 \(KeyboardInterrupt\) after .*"),
        (ValueError("x" * 999), r"run failed at step 3 \(ValueError: x{87}…\) after .*"),
    ],
)
def test_end_of_a_stopped_run_gives_the_reason(capsys, way, shown):
    trainer = validated([0.25, 0.5], 5, console=Console(metric="val_score"))
    with trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=3), stopping(way)):
        if isinstance(way, str):
            trainer.run(max_epochs=2)
        else:
            with pytest.raises(type(way)):
                trainer.run(max_epochs=2)
    assert any(re.fullmatch(shown, line) for line in capsys.readouterr().out.splitlines())
    trainer.run()
    text = capsys.readouterr().out
    assert text.startswith("run continues after step 3, up to step 10 (max_epochs=2)\n")
    assert "run finished at step 10 (max_epochs)" in text
    loss = losses_of_epochs(2, 5, 1)
    assert [row["loss"] for row in table(text)][-1] == number_text(loss[1])
    if way != "terminate":  # the losses were reported in a row at the stop
        assert table(text)[0]["loss"] == number_text(loss[0])


def test_failure_of_an_epoch_shows_the_validation(capsys):
    trainer = validated([0.25])

    @trainer.on(Events.EPOCH_COMPLETED)
    def fail(engine):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        trainer.run()
    assert [row["score"] for row in table(capsys.readouterr().out)] == ["0.2500"]


@pytest.mark.parametrize("steps", [4, 6, 8])
def test_resumed_run_shows_the_rows_of_an_unbroken_one(capsys, tmp_path, steps):
    def run(values, limits, **options):
        trainer = validated(values, console=Console(metric="val_score"), **options)
        trainer.run(**limits)
        return capsys.readouterr().out

    whole = table(run([0.5, 0.75, 0.25], {"max_epochs": 3}))
    run([0.5, 0.75], {"max_steps": steps}, checkpoint=SaveCheckpoint(tmp_path))
    left = [0.5, 0.75, 0.25][steps // 4 :]
    text = run(left, {"max_epochs": 3}, resume_from=ResumeCheckpoint(tmp_path))
    assert f"resumed from {tmp_path / f'step_{steps:08}'}, step {steps}" in text
    assert f"run continues after step {steps}, up to step 12 (max_epochs=3)" in text
    columns = ("step", "epoch", "score") if steps == 6 else ("step", "epoch", "loss", "score")
    resumed = [[row[name] for name in columns] for row in table(text)]
    assert resumed == [[row[name] for name in columns] for row in whole][steps // 4 :]
    assert "best val_score: 0.7500 at step 8, epoch 2" in text


def test_checkpoint_within_an_epoch_has_the_losses_of_the_row(capsys, tmp_path):
    def run(**options):
        handlers = [Console(), MeanLoss(every_steps=2)]
        make_trainer(batches_of(8), handlers=handlers, **options).run(max_epochs=2)
        return table(capsys.readouterr().out)

    save = SaveCheckpoint(tmp_path, every_steps=5, keep_last="all")
    unbroken = [row["loss"] for row in run(checkpoint=save)]
    for step, first in ((5, 0), (10, 1), (15, 1)):
        resumed = run(resume_from=tmp_path / f"step_{step:08}")
        assert [row["loss"] for row in resumed] == unbroken[first:]


def test_console_that_is_added_at_a_resume_has_the_losses_since(capsys, tmp_path):
    def run(*handlers, **options):
        handlers = [MeanLoss(every_steps=2), *handlers]
        trainer, losses = make_trainer(batches_of(8), handlers=handlers, **options), Notes()
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.loss))
        )
        trainer.run(max_epochs=2)
        return losses

    losses = run(checkpoint=SaveCheckpoint(tmp_path, every_steps=10, keep_last="all"))
    with pytest.warns(UserWarning, match="Console"):  # the checkpoint has no state of it
        run(Console(), resume_from=tmp_path / "step_00000010")
    (row,) = table(capsys.readouterr().out)
    assert row["loss"] == number_text(sum(losses[10:]) / 6)


def test_loss_that_is_added_to_a_continued_run_is_in_its_rows(capsys):
    trainer = make_trainer(batches_of(4), handlers=[Console()])
    trainer.run(max_epochs=1)
    MeanLoss(prefix="other_").attach(trainer)
    trainer.run(max_epochs=2)
    assert [row["loss"] for row in table(capsys.readouterr().out)] == [
        number_text(each) for each in losses_of_epochs(2, 4, 1)
    ]


@pytest.mark.parametrize("is_resumed", [True, False])
def test_value_from_before_a_stop_is_in_the_next_row(capsys, tmp_path, is_resumed):
    trainer = make_trainer(
        batches_of(4), handlers=[Console()], checkpoint=SaveCheckpoint(tmp_path, every_steps=3)
    )
    own = trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED(once=2), lambda engine: engine.state.metrics.update(extra=7)
    )
    failing = trainer.add_event_handler(
        Events.ITERATION_STARTED(once=4), stopping(KeyError("once"))
    )
    with own, failing, pytest.raises(KeyError, match="once"):
        trainer.run()
    assert table(capsys.readouterr().out) == []
    if is_resumed:
        trainer = make_trainer(batches_of(4), handlers=[Console()], resume_from=tmp_path)
    trainer.run()
    (row,) = table(capsys.readouterr().out)
    assert row["extra"] == "7"


def test_finished_run_that_is_resumed_shows_nothing(capsys, tmp_path):
    validated([0.5], checkpoint=SaveCheckpoint(tmp_path)).run()
    capsys.readouterr()
    validated([0.5], resume_from=ResumeCheckpoint(tmp_path)).run()
    assert capsys.readouterr().out == ""


# -- values -------------------------------------------------------------------------------------


class Results(Handler):
    """Writes values at the end of each epoch."""

    def __init__(self, **values):
        self.values = values

    def attach_to(self, attachment):
        attachment.on(
            Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(self.values)
        )


def shown_with(capsys, values):
    make_trainer(batches_of(2), handlers=[Console(), Results(**values)]).run()
    return capsys.readouterr().out


def test_values_of_any_type_are_shown(capsys):
    text = shown_with(
        capsys,
        {
            "word": "a text",
            "two_lines": "one\ntwo\x1b[2J and more",
            "nothing": None,
            "flag": True,
            "tensor": torch.tensor([0.5, 1e-5]),
            "mapping": {"a": 1, "b": [2.5]},
            "matrix": torch.zeros(100, 100),
            "endless": "x" * 1000,
        },
    )
    below = " ".join(line.strip() for line in text.splitlines() if line.startswith("    "))
    assert "two_lines one two [2J and more" in below
    assert "mapping {a: 1, b: [2.500]}" in below
    assert "tensor [0.5000, 1e-5]" in below
    assert "matrix a tensor of shape (100, 100)" in below
    assert 0 < below.count("x") - 1 < 250
    (row,) = [line for line in text.splitlines() if re.match(r" *2 +1 ", line)]
    assert re.search(r"a text +None +True", row)


def test_names_of_any_kind_are_shown(capsys):
    names = {"a\nb\x1b[2J": 1, "c\td" * 9: 2, "größe/{e}": 3, "": 4, 5: 6}
    trainer = make_trainer(batches_of(2), handlers=[Console(metric="a\nb\x1b[2J")])
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(names)
    )
    trainer.run()
    text = capsys.readouterr().out
    assert all(line.isprintable() for line in text.splitlines())
    rows = [line.split() for line in text.splitlines() if re.match(r" *2 +1 ", line)]
    assert {"1*", "3", "4", "6"} <= {*rows[0]}
    assert "best a b [2J: 1 at step 2, epoch 1\n" in text


@pytest.mark.parametrize(
    "name",
    [
        "data_wait",
        "epoch_max_ram_mib",
        "grad_norm",
        "items_per_second",
        "lr",
        "remaining_seconds",
        "samples_per_second",
    ],
)
def test_known_name_with_another_value_does_not_stop_the_run(capsys, name):
    for value in ("word", None, [1, 2]):
        trainer = make_trainer(batches_of(8), handlers=[Console(every_seconds=ALWAYS)])

        def write(engine, value=value):
            engine.state.metrics[name] = value

        trainer.add_event_handler(TrainEvents.STEP_COMPLETED, write)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, write)
        trainer.run()
        assert "run finished at step 8" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_many_metrics_fit_the_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = shown_with(capsys, {f"metric_{number}": number / 7 for number in range(40)})
    lines = text.splitlines()[4:-1]
    assert max(map(len, lines)) <= int(columns)
    shown = {number for number in range(40) if f"metric_{number} {number_text(number / 7)}" in text}
    titles = {int(each) for each in re.findall(r"\d+", lines[1])}
    assert shown | titles == set(range(40))
    assert "loss" in lines[1]


def test_columns_are_aligned_and_repeated_when_they_change(capsys):
    trainer = make_trainer(batches_of(2), handlers=[Console()])
    lengths = iter(["a", "longer", "longer", None])

    @trainer.on(Events.EPOCH_COMPLETED)
    def note(engine):
        if (text := next(lengths)) is not None:
            engine.state.metrics["text"] = text
        else:
            engine.state.metrics["other"] = 3

    trainer.run(max_epochs=4)
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "iB" in line or "step " in line
    ]
    lines = [line for line in lines if not line.startswith(("run", " " * 2 + "float"))]
    titles = [line for line in lines if "epoch" in line]
    assert len(titles) >= 3
    assert all(
        len(title) == len(row) for title, row in itertools.pairwise(lines) if title in titles
    )


def test_attached_peaks_of_memory_are_shown(capsys):
    trainer = make_trainer(batches_of(2), handlers=[Console(), EpochMaxRAM()])
    trainer.run()
    assert size_text(trainer.state.metrics["epoch_max_ram_mib"] * 2**20) in capsys.readouterr().out


def test_peak_of_the_run_has_no_row_of_its_own(capsys):
    trainer = make_trainer(batches_of(2), handlers=[Console(), ExperienceMaxRAM()])
    trainer.run()
    assert len(table(capsys.readouterr().out)) == 1
    assert trainer.state.metrics["experience_max_ram_mib"] > 0


@pytest.mark.parametrize("prefix", ["", "of_program/"])
def test_times_and_growth_are_no_results(capsys, prefix):
    def titles(*handlers):
        make_trainer(batches_of(2), handlers=[Console(), *handlers]).run(max_epochs=2)
        rows = table(capsys.readouterr().out)
        return [[*row] for row in rows]

    ledger = TimeLedger(every_steps=1, prefix=prefix)
    watch = GrowthWatch(every_steps=1, prefix=f"{prefix}growth/")
    assert titles(ledger, watch) == titles()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.0, "0.0"),
        (12, "12"),
        (123456, "123456"),
        (1234567, "1.23e6"),
        (0.00031, "3.1e-4"),
        (-0.00031, "-3.1e-4"),
        (0.03, "0.0300"),
        (0.98612, "0.9861"),
        (9.8765, "9.877"),
        (98.765, "98.77"),
        (98765.4, "98765"),
        (1e-300, "1e-300"),
        pytest.param(10**400, "1e400", id="huge"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_have_four_digits(number, text):
    assert number_text(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0 s"),
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1:00"),
        (187, "3:07"),
        (7387, "2:03:07"),
        (93787, "1 d 2:03:07"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (337 * 2**20, "337 MiB"),
        (1000 * 2**20, "0.98 GiB"),
        (1.5 * 2**30, "1.50 GiB"),
        (80 * 2**30, "80.0 GiB"),
    ],
)
def test_sizes_have_a_unit(size, text):
    assert size_text(size) == text


# -- a terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [30, 80, 120])
def test_bar_stays_in_one_line_and_is_gone_at_the_end(monkeypatch, columns):
    with terminal(monkeypatch, columns) as opened:
        validated([0.5] * 30).run(max_epochs=30)
    assert len(opened.bars) >= 30
    assert max(map(len, opened.bars)) < columns
    assert re.search(r"^ 50% .*60/120", "\n".join(opened.bars), re.MULTILINE)
    assert not any("%|" in line or "% |" in line for line in opened.screen)
    assert "run finished at step 120" in "".join(opened.screen)
    assert len([line for line in opened.screen if re.match(r" *60 +15 ", line)]) == 1


def test_narrow_terminal_has_the_remaining_time_and_whole_words(monkeypatch):
    with terminal(monkeypatch, 40) as opened:
        validated([0.5] * 9, console=Console(metric="val_score")).run(max_epochs=9)
    assert any(re.search(r"/36 steps, .* left$", bar) for bar in opened.bars)
    assert opened.screen[-3:] == ["best val_score: 0.5000 at step 36,", "    epoch 9", ""]


def test_what_others_print_is_complete_and_in_lines_of_its_own(monkeypatch):
    logger = logging.getLogger("others")
    logger.propagate = False
    with terminal(monkeypatch) as opened:
        logger.addHandler(handler := logging.StreamHandler())
        trainer = validated([0.5] * 5)

        @trainer.on(TrainEvents.STEP_COMPLETED)
        def say(engine):
            step = engine.state.optimizer_step
            print("printed", step)
            print("two", "lines", sep="\n")
            logger.warning("logged %s", step)
            print("a part, ", end="", flush=True)
            print("and the rest", file=sys.stderr)

        trainer.run(max_epochs=5)
        logger.removeHandler(handler)
    screen = opened.screen
    for step in range(1, 21):
        at = screen.index(f"printed {step}")
        assert screen[at : at + 5] == [
            f"printed {step}",
            "two",
            "lines",
            f"logged {step}",
            "a part, and the rest",
        ]
    assert len([line for line in screen if re.match(r" *\d+ +\d+ ", line)]) == 5


def test_bar_is_shown_again_after_each_line(monkeypatch):
    with terminal(monkeypatch) as opened:
        trainer = make_trainer(batches_of(2), handlers=[Console()])
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: print("hello"))
        trainer.run()
    at = opened.output.index(b"hello") + len(b"hello\r\n")
    assert re.fullmatch(r"hello", opened.after(opened.output[:at])[-2])
    drawn = opened.output[at:].decode().split("\r")
    assert re.match(r" +0% \|.*0/2 steps", drawn[1])


def test_open_line_is_completed_before_a_row(monkeypatch):
    with terminal(monkeypatch) as opened:
        trainer = make_trainer(batches_of(2), handlers=[Console()])
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda engine: print("not complete", end="")
        )
        trainer.run()
    assert "not complete" in opened.screen
    assert any(re.match(r" *2 +1 ", line) for line in opened.screen)


class Talkative(Dataset):
    """Prints in the worker that loads a sample."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        print(f"sample {index}", flush=True)
        return torch.zeros(4), torch.zeros(2)


def test_what_forked_workers_print_is_in_lines_of_its_own(monkeypatch):
    with terminal(monkeypatch) as opened:
        loader = DataLoader(Talkative(), 2, num_workers=1, multiprocessing_context="fork")
        make_trainer(loader, handlers=[Console()]).run()
    assert [line for line in opened.screen if line.startswith("sample")] == [
        f"sample {n}" for n in range(4)
    ]
    assert b"sample 0\r\n\r\x1b[Ksample 1" in opened.output  # the worker draws no bar


def test_bars_of_others_stay_whole(monkeypatch):
    from tqdm import tqdm

    with terminal(monkeypatch) as opened:

        def validate():
            for _ in tqdm(range(3), desc="inner", mininterval=0, leave=False):
                pass
            return {"score": 0.5}

        validation = Validation(validate, every_epochs=1)
        make_trainer(batches_of(2), validation=validation, handlers=[Console()]).run(max_epochs=2)
    assert not any("inner" in line for line in opened.screen)
    assert len([line for line in opened.screen if re.match(r" *\d+ +\d+ ", line)]) == 2


def test_two_consoles_share_a_terminal(monkeypatch):
    with terminal(monkeypatch) as opened:
        inner = Engine(lambda engine, batch: print("inner says", batch))
        Console().attach(inner)
        trainer = make_trainer(batches_of(2), handlers=[Console()])
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: inner.run([1, 2]))
        trainer.run()
    assert opened.screen.count("inner says 1") == 2
    assert sum("run finished at iteration 2 after" in line for line in opened.screen) == 2
    assert not any("% |" in line for line in opened.screen)


def test_method_that_others_have_replaced_is_restored(monkeypatch):
    with terminal(monkeypatch):
        stream, texts = sys.stdout, Notes()
        original = stream.write

        def write(text):
            texts.append(text)
            return original(text)

        stream.write = write
        trainer = make_trainer(batches_of(2), handlers=[Console()])
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: print("hello"))
        trainer.run()
        assert stream.write is write
        assert texts.count("hello") == 2
        del stream.write


def test_dumb_terminal_has_no_bar(monkeypatch):
    with terminal(monkeypatch) as opened:
        monkeypatch.setenv("TERM", "dumb")
        validated([0.5]).run()
    assert opened.bars == []
    assert any(line.startswith("run finished") for line in opened.screen)


def test_encoding_without_the_characters_gets_others(monkeypatch):
    with terminal(monkeypatch, encoding="ascii") as opened:
        trainer = make_trainer(
            batches_of(2),
            handlers=[Console(), Results(größe=1.0, text="…" * 20)],
            accumulation=2,
        )
        trainer.run()
    text = "\n".join(opened.screen)
    assert "gr??e" in text
    assert "~" * 20 in text
    assert any("#" in bar for bar in opened.bars)


def test_removal_in_a_run_ends_the_bar(monkeypatch):
    with terminal(monkeypatch) as opened:
        trainer = make_trainer(batches_of(9))
        attachment = Console().attach(trainer)

        @trainer.on(TrainEvents.STEP_COMPLETED(once=4))
        def remove(engine):
            attachment.remove()
            print("removed")

        trainer.run()
    assert opened.screen[-2:] == ["removed", ""]


def test_attachment_in_a_run_shows_the_rest(capsys):
    trainer = make_trainer(batches_of(8))
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED(once=4), lambda engine: Console().attach(engine)
    )
    trainer.run()
    text = capsys.readouterr().out
    assert "run continues after step 4, up to step 8" in text
    assert [row["step"] for row in table(text)] == ["8"]


# -- streams that break -------------------------------------------------------------------------


class Broken:
    """A stream that fails after some texts."""

    encoding = "utf-8"

    def __init__(self, error, texts):
        self.error, self.texts, self.calls = error, texts, 0

    def isatty(self):
        return True

    def write(self, text):
        self.calls += 1
        if self.calls > self.texts:
            raise self.error
        return len(text)

    def flush(self):
        pass


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(5, "I/O error"), ValueError("closed file")]
)
@pytest.mark.parametrize("texts", [0, 5, 12])
def test_broken_stream_does_not_stop_the_run(monkeypatch, error, texts):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream := Broken(error, texts))
        trainer = validated([0.5, 0.5])
        trainer.run(max_epochs=2)
    assert trainer.state.optimizer_step == 8
    assert "write" not in vars(stream)


def test_process_without_a_stream_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    trainer = validated([0.5])
    trainer.run()
    assert trainer.state.optimizer_step == 4


# -- other handlers and engines -----------------------------------------------------------------


def test_own_handlers_are_there_during_runs_only(capsys):
    trainer = make_trainer(batches_of(4), handlers=[Console()])
    seen = Notes()

    @trainer.on(Events.ITERATION_STARTED(once=1))
    def note(engine):
        seen.extend(len(attached_handlers(engine, each)) for each in (MeanLoss, Throughput))

    trainer.run()
    assert seen == [1, 1]
    assert attached_handlers(trainer, MeanLoss) == attached_handlers(trainer, Throughput) == []
    with MeanLoss(every_steps=1).attach(trainer):
        trainer.run(max_epochs=1)
    assert [row["step"] for row in table(capsys.readouterr().out)] == ["4", "4"]


def test_loss_of_another_handler_is_kept(capsys):
    trainer = make_trainer(batches_of(4), handlers=[Console()])
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: seen.extend(attached_handlers(engine, MeanLoss))
    )
    seen = Notes()
    trainer.run()
    assert seen == []
    (row,) = table(capsys.readouterr().out)
    assert row["loss"] == number_text(float(trainer.state.metrics["loss"]))


def test_argument_of_another_handler_is_no_name_of_a_metric(capsys):
    trainer = make_trainer(batches_of(4), handlers=[Console()])
    trainer.add_event_handler(Events.COMPLETED, lambda engine, name: None, "loss")
    trainer.run()
    (row,) = table(capsys.readouterr().out)
    assert row["loss"] == number_text(losses_of_epochs(1, 4, 1)[0])


def test_plain_engine_is_shown_by_iterations(capsys):
    engine = Engine(lambda engine, batch: torch.tensor(float(batch)))
    MeanLoss(every_steps=1).attach(engine)
    Console(metric="loss", mode="min", every_seconds=ALWAYS).attach(engine)
    engine.run([4.0, 2.0, 3.0], max_epochs=2)
    text = capsys.readouterr().out
    assert text.startswith("run begins, up to iteration 6 (max_epochs=2)\niteration 1 of 6 (17%)")
    assert [(row["iteration"], row["loss"]) for row in table(text)] == [
        ("3", "3.000*"),
        ("6", "3.000*"),
    ]
    assert "run finished at iteration 6 after" in text


@pytest.mark.parametrize("way", ["terminate", "failure", "handled failure"])
def test_end_of_a_plain_engine_gives_the_reason(capsys, way):
    def process(engine, batch):
        if batch == 2:
            if way == "terminate":
                engine.terminate()
            else:
                raise OSError("disk full")

    engine = Engine(process)
    Console().attach(engine)
    if way == "handled failure":
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
    if way == "failure":
        with pytest.raises(OSError, match="disk full"):
            engine.run([1, 2, 3])
    else:
        engine.run([1, 2, 3])
    shown = {
        "terminate": "run stopped at iteration 2 (terminate) after",
        "failure": "run failed at iteration 2 (OSError: disk full) after",
        "handled failure": "run finished at iteration 2 after",  # as Ignite, which completes it
    }
    assert shown[way] in capsys.readouterr().out


def test_skipped_steps_do_not_move_the_bar(capsys):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = FakeScaler(2, 3)
    console = Console(every_seconds=ALWAYS)
    make_trainer(batches_of(5), accelerator=accelerator, handlers=[console]).run()
    text = capsys.readouterr().out
    assert re.findall(r"^step (\d+) of \d+", text, re.MULTILINE) == ["1", "2", "3"]
    assert "run finished at step 3 (max_epochs)" in text


def test_training_is_the_same_with_a_console(capsys):
    weights = []
    for handlers in ([], [Console()]):
        trainer = make_trainer(batches_of(12), handlers=handlers)
        trainer.run(max_epochs=2)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*weights)


def test_console_is_freed_and_keeps_no_engine(capsys):
    console = Console()
    trainer = make_trainer(batches_of(2), handlers=[console])
    trainer.run()
    freed = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert freed() is None
    make_trainer(batches_of(2), handlers=[console]).run()
    freed = weakref.ref(console)
    del console
    gc.collect()
    assert freed() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": ""}, "`metric` must be a string that is not empty"),
        ({"mode": "best"}, '`mode` must be "max" or "min"'),
        ({"every_seconds": 0}, "`every_seconds` must be a finite number of seconds > 0"),
    ],
)
def test_wrong_argument_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Console(**arguments)


def test_wrong_attachment_is_an_error():
    console = Console()
    trainer = make_trainer(handlers=[console])
    with pytest.raises(ValueError, match="must be attached to one engine only"):
        console.attach(make_trainer())
    with pytest.raises(ValueError, match="`event` must be left out"):
        Console().attach(trainer, Events.EPOCH_COMPLETED)


def test_missing_package_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ignite-hooks\[console\]'"):
        Console()


# -- processes ----------------------------------------------------------------------------------


PROGRAM = """
import sys, warnings
from pathlib import Path
from ignite_hooks import Console, SaveCheckpoint, TrainEvents
from tests.reference import batches_of, make_trainer

steps, folder = int(sys.argv[1]), Path(sys.argv[2])
trainer = make_trainer(
    batches_of(10), handlers=[Console(every_seconds=1e-9)], checkpoint=SaveCheckpoint(folder)
)

@trainer.on(TrainEvents.STEP_COMPLETED)
def say(trainer):
    step = trainer.state.optimizer_step
    if "silent" not in sys.argv:
        print("printed", step)
    if step == 3:
        warnings.warn("careful")

trainer.run(max_steps=steps)
(folder / "result").write_text(str(trainer.state.optimizer_step))
"""


def command(tmp_path, steps):
    return [sys.executable, "-c", PROGRAM, str(steps), str(tmp_path)]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(signal.SIGINT, r"stopped .*KeyboardInt"), (signal.SIGTERM, "stopped .*SIGT")],
)
def test_signal_leaves_the_terminal_as_it_was(tmp_path, number, shown):
    with process_in_terminal(command(tmp_path, 10**9)) as (process, opened, read):
        read(until=b"printed 5\r\n")
        process.send_signal(number)
        read()
    lines = opened.screen
    assert re.search(rf"^run {shown}", "\n".join(lines), re.MULTILINE)
    assert any("UserWarning: careful" in line for line in lines)
    assert not any("% |" in line for line in lines)
    assert lines[-1] == ""
    printed = [line for line in lines if line.startswith("printed")]
    assert printed[-1] == f"printed {len(opened.output.split(b'printed')) - 1}"


def test_background_process_writes_complete_lines(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        subprocess.run(
            ["nohup", *command(tmp_path, 20)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    text = (tmp_path / "log").read_bytes()
    assert b"\r" not in text
    assert b"\x1b" not in text
    assert b"\nstep 20 of 20 (100%), " in text
    assert b"\nrun finished at step 20 (max_steps) after " in text


def test_closed_pipe_does_not_stop_the_run(tmp_path):
    with subprocess.Popen(
        [*command(tmp_path, 2000), "silent"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"Sequential with 58 parameters\n"
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "Error" not in errors
    assert (tmp_path / "result").read_text() == "2000"
