"""Tests of the record of a run, by the lines in its file."""

import gc
import json
import math
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import MeanLoss
from ignite_hooks import MetricsLog
from ignite_hooks import OptimizerStep
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TimeLedger
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.checkpoint import assert_resumable
from ignite_hooks.handlers import Handler
from ignite_hooks.handlers import Runtime
from ignite_hooks.handlers import checked_dataclass
from ignite_hooks.observe import read_metrics
from tests.reference import FakeScaler
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import shuffled
from tests.reference import weights

REPORTS = ("step", "validation", "epoch", "end")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def lines_of(path):
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def events_of(path):
    return [(line["event"], line["step"]) for line in lines_of(path)]


def reports_of(path):
    """Returns what must be equal in the records of a resumed and an unbroken run."""
    keys = ("event", "step", "epoch", "iteration", "metrics")
    return [[line[key] for key in keys] for line in lines_of(path) if line["event"] in REPORTS]


def trainer_with(path, *more, batches=7, every_steps=3, **options):
    """Returns a trainer whose losses and validations are recorded."""
    seed()
    trainer = make_trainer(
        shuffled(batches),
        handlers=[MeanLoss(every_steps=3), MetricsLog(path, every_steps=every_steps), *more],
        **options,
    )
    validation = Validation(lambda: {"steps": trainer.state.optimizer_step}, every_steps=4)
    validation.attach(trainer)
    return trainer


def unbroken(tmp_path, **options):
    path = tmp_path / "unbroken.jsonl"
    trainer_with(path, **options).run(max_epochs=3)
    return reports_of(path)


def test_lines_are_those_of_reports_and_events(path, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    save = SaveCheckpoint(checkpoints, every_steps=5, metric="val_steps")
    trainer_with(path, checkpoint=save).run()
    assert events_of(path) == [
        ("start", 0),
        ("step", 3),
        ("validation", 4),
        ("checkpoint", 5),
        ("step", 6),
        ("epoch", 7),
        ("checkpoint", 7),
        ("stop", 7),
    ]
    start, step, validation, checkpoint, *_, stop = lines_of(path)
    assert start["format"] == 1
    assert start["settings"]["optimizer"]["class"] == "SGD"
    assert start["versions"]["torch"] == torch.__version__
    assert start["machine"]["device"] == "cpu"
    assert start["limits"]["max_epochs"] == 1
    assert start["validation_prefixes"] == ["val_"]
    assert {"type": "MeanLoss", "every_steps": 3, "keys": None, "prefix": ""} in start["handlers"]
    assert step.keys() == {*("event", "step", "epoch", "iteration", "seconds", "time"), "metrics"}
    assert list(step["metrics"]) == ["loss"]
    assert validation["metrics"] == {"val_steps": 4}
    assert checkpoint["checkpoint"] == {
        "path": str(checkpoints / "step_00000005"),
        "step": 5,
        "epoch": 0,
        "iteration": 5,
        "metric": "val_steps",
        "metric_value": None,  # was measured at another step
        "metric_mode": "max",
    }
    assert stop["reason"] == "max_epochs"


@checked_dataclass
class Uploads(Handler):
    """A handler whose fields may hold secrets."""

    server: str
    options: dict[str, Any]

    def attach_to(self, attachment):
        pass


def test_secrets_of_handlers_are_not_recorded(path):
    options = {"names": ["a"], "login": {"api_key": "12ab", "user": "me"}, "key": 5}
    trainer_with(path, Uploads(server="https://me:12ab@host/a", options=options)).run(max_steps=1)
    (described,) = (e for e in lines_of(path)[0]["handlers"] if e["type"] == "Uploads")
    assert described["server"] == "https://***@host/a"
    assert described["options"]["login"] == {"api_key": "***", "user": "me"}
    assert described["options"]["names"] == ["a"]


def test_first_bytes_are_those_by_which_a_record_is_recognized(path):
    trainer_with(path).run()
    assert path.read_bytes().startswith(b'{"format": 1, "event": "start"')


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7, 10, 14])
@pytest.mark.parametrize("options", [{}, {"background": True}])
def test_record_of_a_resumed_run_is_that_of_an_unbroken_one(path, tmp_path, stop, options):
    checkpoints = tmp_path / "checkpoints"
    trainer_with(path, checkpoint=SaveCheckpoint(checkpoints, **options)).run(max_steps=stop)
    resumed = trainer_with(
        path, checkpoint=SaveCheckpoint(checkpoints, **options), resume_from=checkpoints
    )
    resumed.run(max_epochs=3)
    assert reports_of(path) == unbroken(tmp_path)
    named = [line["checkpoint"]["step"] for line in lines_of(path) if line["event"] == "checkpoint"]
    assert named == [stop, 21]


def test_resumed_run_that_is_stopped_at_once_reports_nothing_twice(path, tmp_path):
    trainer_with(path, checkpoint=SaveCheckpoint(tmp_path)).run(max_steps=6)
    before = reports_of(path)
    resumed = trainer_with(path, resume_from=tmp_path)
    resumed.add_event_handler(Events.STARTED, resumed.terminate)
    resumed.run(max_epochs=3)
    assert reports_of(path) == before


class Crash(Exception):
    pass


def crash_at(trainer, step):
    @trainer.on(TrainEvents.STEP_COMPLETED(once=step))
    def crash(engine):
        raise Crash("it failed")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_crashed_run_is_cut_back_to_its_checkpoint(path, tmp_path, accumulation):
    options = {"accumulation": accumulation}
    checkpoints = tmp_path / "checkpoints"
    for crash in (8, 9, 7):
        save = SaveCheckpoint(checkpoints, every_steps=5, at_end=False)
        resume = ResumeCheckpoint(checkpoints, on_missing="start")
        trainer = trainer_with(path, checkpoint=save, resume_from=resume, **options)
        crash_at(trainer, crash)
        with pytest.raises(Crash):
            trainer.run(max_epochs=3)
        error = lines_of(path)[-1]
        assert (error["event"], error["step"]) == ("error", crash)
        assert (error["type"], error["message"]) == ("Crash", "it failed")
        assert "in crash\n" in error["traceback"]
    save = SaveCheckpoint(checkpoints, every_steps=5)
    trainer_with(path, checkpoint=save, resume_from=checkpoints, **options).run(max_epochs=3)
    assert reports_of(path) == unbroken(tmp_path, **options)
    resumes = [line for line in lines_of(path) if line["event"] == "resume"]
    assert [each["step"] for each in resumes] == [5, 5, 5]
    assert [each["cut"]["last_step"] for each in resumes] == [8, 9, 7]
    assert resumes[-1]["cut"]["end"]["type"] == "Crash"
    assert resumes[-1]["exact"] is True
    assert resumes[-1]["checkpoint"] == str(checkpoints / "step_00000005")
    assert resumes[-1]["parts"]["model"] == {"level": "exact", "reason": ""}


def test_next_run_after_a_failure_continues_the_record(path, tmp_path):
    trainer = trainer_with(path, accumulation=2)
    calls = []

    # A validation within a window whose batches are given again is cut.
    often = Events.ITERATION_STARTED(once=5)
    Validation(lambda: {"batch": 0.5 * len(calls)}, prefix="").attach(trainer, often)

    @trainer.on(Events.ITERATION_COMPLETED(once=5))
    def crash(engine):
        calls.append(len(events_of(path)))
        if len(calls) == 1:
            raise Crash

    with pytest.raises(Crash):
        trainer.run(max_epochs=2)
    assert events_of(path)[-2:] == [("validation", 2), ("error", 2)]
    trainer.run()
    assert events_of(path)[:4] == [("start", 0), ("error", 2), ("resume", 2), ("validation", 2)]
    assert lines_of(path)[2]["cut"]["lines"] == 1
    first, *reports = reports_of(path)
    assert first[-1] == {"batch": 0.5}
    assert reports == [each for each in unbroken(tmp_path, accumulation=2) if each[2] < 3]


def test_value_from_before_a_failure_is_reported_after_it(path, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    trainer_with(path, checkpoint=SaveCheckpoint(checkpoints)).run(max_steps=1)
    trainer = trainer_with(path, resume_from=checkpoints, every_steps=6)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def write(engine):
        engine.state.metrics["other"] = 1.5

    crash_at(trainer, 3)
    with pytest.raises(Crash):
        trainer.run(max_epochs=1)
    trainer.run()
    assert [report[-1].get("other") for report in reports_of(path)] == [1.5, None, None]


def test_record_of_a_branch_is_not_continued_by_its_parent(path, tmp_path):
    parent, branch = tmp_path / "parent", tmp_path / "branch"
    trainer_with(path, checkpoint=SaveCheckpoint(parent, every_steps=4)).run(max_steps=9)
    options = {"resume_from": parent / "step_00000004"}
    trainer_with(path, checkpoint=SaveCheckpoint(branch), **options).run(max_steps=9)
    content = path.read_bytes()
    trainer = trainer_with(path, resume_from=parent / "step_00000008")
    with pytest.warns(UserWarning, match="belongs to another run"):
        trainer.run(max_steps=9)
    assert path.with_name("metrics.1.jsonl").read_bytes() == content


def test_checkpoint_in_the_background_stays_in_the_record_after_a_crash(path, tmp_path):
    options = {"every_steps": 5, "background": True, "at_end": False}
    trainer = trainer_with(path, checkpoint=SaveCheckpoint(tmp_path, **options))
    crash_at(trainer, 8)
    with pytest.raises(Crash):
        trainer.run(max_epochs=3)
    trainer_with(path, resume_from=tmp_path).run(max_epochs=3)
    named = [line["checkpoint"]["step"] for line in lines_of(path) if line["event"] == "checkpoint"]
    assert named == [5]


def test_each_of_two_checkpoint_handlers_is_recorded_once(path, tmp_path):
    trainer = trainer_with(path, SaveCheckpoint(tmp_path / "a", every_steps=3, at_end=False))
    SaveCheckpoint(tmp_path / "b", every_steps=6, at_end=False).attach(trainer)
    trainer.run()
    named = [line["checkpoint"]["path"] for line in lines_of(path) if line["event"] == "checkpoint"]
    folders = ("a/step_00000003", "a/step_00000006", "b/step_00000006")
    assert sorted(named) == [str(tmp_path / name) for name in folders]


@pytest.mark.parametrize("is_removed", [False, True])
def test_checkpoint_between_two_runs_is_recorded(path, tmp_path, is_removed):
    save = SaveCheckpoint(tmp_path, at_end=False)
    trainer = trainer_with(path, save)
    trainer.run()
    if is_removed:
        path.unlink()
        with pytest.warns(UserWarning, match="the file was removed or replaced"):
            save(trainer)
        assert not path.exists()
    else:
        save(trainer)
        assert events_of(path)[-2:] == [("stop", 7), ("checkpoint", 7)]


def test_record_that_was_replaced_in_an_interruption_is_not_changed(path):
    trainer = trainer_with(path)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=4))
    def interrupt(engine):
        engine.interrupt()

    trainer.run()
    trainer_with(path).run()
    content = path.read_bytes()
    with pytest.warns(UserWarning, match="removed or replaced since the last run"):
        trainer.run()
    assert path.with_name("metrics.2.jsonl").read_bytes() == content
    assert events_of(path) == [("resume", 6), ("step", 6), ("epoch", 7), ("stop", 7)]


def test_new_run_onto_half_a_line_begins_there(path):
    path.parent.mkdir()
    path.write_bytes(b'{"format": 1, "ev')
    trainer_with(path).run()
    assert lines_of(path)[0]["previous_record"] is None


class Interrupter:
    """Raises KeyboardInterrupt before one of the lines of code that make and write a line."""

    FUNCTIONS = ("_make_report_lines", "_make_line", "encoded", "plain_values", "write_waiting")
    FUNCTIONS += ("_write", "_forget_written", "_make", "_write_report")

    def __init__(self, number):
        self.left = number

    def __call__(self, frame, event, argument):
        return self.trace if frame.f_code.co_name in self.FUNCTIONS else None

    def trace(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.trace


@pytest.mark.parametrize("number", range(1, 54))
def test_signal_within_a_write_loses_and_doubles_nothing(path, tmp_path, number):
    trainer = trainer_with(path)
    before = sys.gettrace()

    @trainer.on(TrainEvents.STEP_COMPLETED(once=3))
    def interrupt(engine):
        sys.settrace(Interrupter(number))

    try:
        with suppress(KeyboardInterrupt):  # the highest numbers may exceed the lines
            trainer.run(max_epochs=3)
    finally:
        sys.settrace(before)
    if trainer.stop_reason == "exception":
        trainer.run()
    # A value whose report was broken off is in the next report.
    found, expected = (
        [value for *_, metrics in reports for value in metrics.items()]
        for reports in (reports_of(path), unbroken(tmp_path))
    )
    assert found == expected


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_error_without_a_text_leaves_the_run_unchanged(path, monkeypatch):
    trainer = trainer_with(path)
    error = Unprintable()

    @trainer.on(TrainEvents.STEP_COMPLETED(once=3))
    def fail(engine):
        raise error

    monkeypatch.setattr(trainer.logger, "disabled", True)  # it prints the error
    with pytest.raises(Unprintable) as caught:
        trainer.run()
    assert caught.value is error


def test_interrupted_run_is_one_run(path):
    trainer = trainer_with(path)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=4))
    def interrupt(engine):
        engine.interrupt()

    trainer.run()
    assert events_of(path)[-1] == ("validation", 4)
    trainer.run()
    events = [event for event, _ in events_of(path)]
    assert events == ["start", "step", "validation", "step", "epoch", "stop"]


def test_new_run_renames_the_record_of_the_run_before(path):
    contents = []
    trainer = trainer_with(path)
    for _ in range(3):
        trainer.run(max_epochs=1)
        contents.append(path.read_bytes())
    trainer_with(path).run(max_epochs=1)
    names = ["metrics.1.jsonl", "metrics.2.jsonl", "metrics.3.jsonl"]
    assert [path.with_name(name).read_bytes() for name in names] == contents
    assert lines_of(path)[0]["previous_record"] == "metrics.3.jsonl"
    assert [event for event, _ in events_of(path)].count("start") == 1


def test_requeued_job_without_a_checkpoint_begins_a_new_record(path, tmp_path):
    for _ in range(2):
        resume = ResumeCheckpoint(tmp_path / "checkpoints", on_missing="start")
        trainer = trainer_with(path, resume_from=resume)
        crash_at(trainer, 3)
        with pytest.raises(Crash):
            trainer.run()
    assert events_of(path) == events_of(path.with_name("metrics.1.jsonl"))


def removed(path):
    path.unlink()


def shortened(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))


def replaced(path):
    trainer_with(path).run()


@pytest.mark.parametrize(
    ("change", "message", "events"),
    [
        (removed, "is missing or empty: the new one begins at step 7", ["resume", "epoch"]),
        (shortened, "has 1 reports up to step 7, and had 4", ["start", "step", "resume"]),
        (replaced, "belongs to another run, and was renamed", ["resume", "step"]),
    ],
)
def test_resume_onto_another_record_warns_once(path, tmp_path, change, message, events):
    checkpoints = tmp_path / "checkpoints"
    trainer_with(path, checkpoint=SaveCheckpoint(checkpoints)).run(max_steps=7)
    change(path)
    before = path.read_bytes() if path.exists() else None
    resumed = trainer_with(path, resume_from=checkpoints)
    with pytest.warns(UserWarning, match=message) as caught:
        resumed.run(max_epochs=2)
    assert len(caught) == 1
    found = [event for event, _ in events_of(path)]
    assert found[0] == events[0]
    assert [each for each in found if each in events][: len(events)] == events or change is removed
    if change is replaced:
        assert path.with_name("metrics.2.jsonl").read_bytes() == before


def test_new_log_of_a_resumed_run_begins_there_without_a_warning(path, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    make_trainer(shuffled(7), checkpoint=SaveCheckpoint(checkpoints)).run(max_steps=3)
    trainer = make_trainer(shuffled(7), handlers=[MetricsLog(path)], resume_from=checkpoints)
    with pytest.warns(UserWarning, match="not in the checkpoint: MetricsLog") as caught:
        trainer.run(max_epochs=1)
    assert len(caught) == 1
    assert events_of(path) == [("resume", 3), ("epoch", 7), ("stop", 7)]


def test_torn_last_line_is_cut_off(path, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    trainer_with(path, checkpoint=SaveCheckpoint(checkpoints)).run(max_steps=3)
    with path.open("ab") as file:
        file.write(b'{"event": "step", "st')
    trainer_with(path, resume_from=checkpoints).run(max_epochs=3)
    assert reports_of(path) == unbroken(tmp_path)


def test_killed_run_leaves_whole_lines_and_can_be_resumed(path, tmp_path):
    program = f"""
import os, signal
from ignite_hooks import SaveCheckpoint, TrainEvents
from tests.observe.test_metrics_log import trainer_with
trainer = trainer_with({str(path)!r}, checkpoint=SaveCheckpoint({str(tmp_path)!r}, every_steps=4))
@trainer.on(TrainEvents.STEP_COMPLETED(once=10))
def kill(engine):
    os.kill(os.getpid(), signal.SIGKILL)
trainer.run(max_epochs=3)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    assert events_of(path)[-1] == ("step", 9)
    trainer_with(path, resume_from=tmp_path).run(max_epochs=3)
    assert reports_of(path) == unbroken(tmp_path)
    assert lines_of(path)[0]["versions"]


def test_checkpoint_that_a_resumable_test_makes_is_exact(path):
    options = {"dropout": 0.1}
    assert_resumable(lambda: trainer_with(path, **options), max_steps=10, stops=[4, 5])


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_seconds_are_those_of_training_over_all_resumes(path, tmp_path):
    clock, checkpoints = Clock(), tmp_path / "checkpoints"

    def make(**options):
        trainer = make_trainer(
            shuffled(5), handlers=[MetricsLog(path, every_steps=1, clock=clock)], **options
        )

        @trainer.on(Events.ITERATION_STARTED)
        def take_time(engine):
            clock.now += 2.0

        return trainer

    trainer = make(checkpoint=SaveCheckpoint(checkpoints, at_end=False, every_steps=2))
    trainer.run(max_steps=3)
    clock.now += 100.0
    trainer.run(max_steps=4)
    clock.now = 5.0
    make(resume_from=checkpoints).run(max_epochs=1)
    steps = [line for line in lines_of(path) if line["event"] == "step"]
    assert [line["seconds"] for line in steps] == [2.0, 4.0, 6.0, 8.0, 10.0]


def test_seconds_after_a_background_save_are_not_counted_twice(path, tmp_path):
    clock, checkpoints = Clock(), tmp_path / "checkpoints"
    for crash, options in ((9, {}), (20, {"resume_from": checkpoints})):
        save = SaveCheckpoint(checkpoints, every_steps=4, at_end=False, background=True)
        handlers = [MetricsLog(path, every_steps=1, clock=clock), save]
        trainer = make_trainer(shuffled(10), handlers=handlers, **options)
        trainer.on(Events.ITERATION_STARTED)(lambda: setattr(clock, "now", clock.now + 2.0))
        crash_at(trainer, crash)
        with suppress(Crash):
            trainer.run(max_epochs=1)
    steps = [line for line in lines_of(path) if line["event"] == "step"]
    assert [line["seconds"] for line in steps] == [2.0 * step for step in range(1, 11)]


def test_nan_that_is_not_measured_again_is_reported_once(path):
    trainer = trainer_with(path, every_steps=1)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def write(engine):
        with torch.inference_mode():
            engine.state.metrics["tensor"] = torch.tensor(float("nan"))
        engine.state.metrics["array"] = np.array(float("nan"))

    trainer.run()
    for name in ("tensor", "array"):
        assert [step for _, step, *_, values in reports_of(path) if name in values] == [2]


def test_skipped_steps_are_recorded(path):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = FakeScaler(2)
    trainer_with(path, accelerator=accelerator).run()
    skips = [line for line in lines_of(path) if line["event"] == "skip"]
    assert [(line["step"], line["iteration"]) for line in skips] == [(1, 2)]


def test_removed_log_records_no_skipped_step(path):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = FakeScaler(2)
    trainer = make_trainer(batches_of(3), accelerator=accelerator)
    MetricsLog(path).attach(trainer).remove()
    trainer.run()
    assert not path.exists()


CYCLE: list = [1]
CYCLE.append(CYCLE)

VALUES = {
    "nan": (float("nan"), "NaN"),
    "inf": (float("inf"), "Infinity"),
    "minus": (torch.tensor(-float("inf")), "-Infinity"),
    "list": (torch.tensor([1.0, float("nan")]), [1.0, "NaN"]),
    "text": ("warm-up", "warm-up"),
    "large": (10**5000, "an integer of 16610 bits"),
    "fraction": (Fraction(10**400), f"Fraction(1{'0' * 28}...{'0' * 35}, 1)"),
    "extended": (np.ones(2, np.longdouble), [1.0, 1.0]),
    "extended scalar": (np.longdouble(1.5), 1.5),
    "bool": (np.bool_(True), True),
    "meta": (torch.ones(2, device="meta"), "a tensor of shape (2,)"),
    "long": ([0.5] * 1001, "list of length 1001"),
    "cycle": (CYCLE, "[1, [1, [1, [1, [1, [1, [...]]]]]]]"),
    "step": (torch.tensor(2), 2),
    "metrics": ({"inner": 0.5}, {"inner": 0.5}),
    "other": (object, "<class 'object'>"),
}


def test_values_are_kept_in_strict_json(path):
    trainer = make_trainer(batches_of(2), handlers=[MetricsLog(path)])

    @trainer.on(Events.EPOCH_COMPLETED)
    def write(engine):
        engine.state.metrics.update({name: value for name, (value, _) in VALUES.items()})

    trainer.run()
    (line,) = [line for line in lines_of(path) if line["event"] == "epoch"]
    assert line["metrics"] == {name: written for name, (_, written) in VALUES.items()}
    assert line["step"] == 2


def test_plain_engine_is_recorded_by_iterations(path):
    engine = Engine(lambda engine, batch: batch)

    @engine.on(Events.ITERATION_COMPLETED)
    def write(engine):
        engine.state.metrics["batch"] = float(engine.state.output)

    MetricsLog(path, every_steps=2).attach(engine)
    engine.run([1, 2, 3], max_epochs=1)
    assert [(event, step) for event, step in events_of(path)] == [
        ("start", 0),
        ("step", 2),
        ("epoch", 3),
        ("stop", 3),
    ]


def test_plain_engine_with_a_saved_state_continues_its_record(path):
    def make():
        engine = Engine(lambda engine, batch: batch)
        log = MetricsLog(path, every_steps=1)
        log.attach(engine)
        return engine, log

    engine, log = make()
    engine.run([1, 2, 3], max_epochs=1)
    saved = engine.state_dict(), log.state_dict()
    engine.run([1, 2, 3], max_epochs=2)
    engine, log = make()
    engine.load_state_dict(saved[0])
    log.load_state_dict(saved[1])
    engine.run([1, 2, 3], max_epochs=2)
    steps = [step for event, step in events_of(path) if event == "step"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not path.with_name("metrics.1.jsonl").exists()


def test_plain_engine_with_an_optimizer_step_is_recorded_by_steps(path):
    model = make_model(0.0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(engine, batch):
        accelerator.backward(model(batch[0]).pow(2).mean())

    engine = Engine(train)
    OptimizerStep(accelerator, optimizer).attach(engine)
    MetricsLog(path, every_steps=1).attach(engine)
    engine.run(batches_of(4))
    steps = [line for line in lines_of(path) if line["event"] == "step"]
    assert [(line["step"], line["iteration"]) for line in steps] == [(1, 2), (2, 4)]


def test_removed_in_a_run_it_writes_nothing_more(path):
    seed()
    trainer = make_trainer(shuffled(7))
    attachment = MetricsLog(path, every_steps=1).attach(trainer)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=3))
    def remove(engine):
        attachment.remove()

    trainer.run()
    assert events_of(path) == [("start", 0), ("step", 1), ("step", 2)]
    with MetricsLog(path).attach(trainer):
        pass


def test_attached_in_a_run_it_begins_there(path):
    trainer = make_trainer(shuffled(4))

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def attach(engine):
        MetricsLog(path, every_steps=1).attach(engine)

    trainer.run()
    assert events_of(path)[:2] == [("start", 2), ("step", 2)]
    assert events_of(path)[-1] == ("stop", 4)


def test_engine_and_handler_are_not_kept_alive(path):
    log = MetricsLog(path)
    trainer = make_trainer(batches_of(2), handlers=[log])
    trainer.run()
    found = [weakref.ref(each) for each in (trainer, log)]
    del trainer, log
    gc.collect()
    assert [each() for each in found] == [None, None]


def folder(path):
    path.mkdir(parents=True)


def below_a_file(path):
    path.parent.write_text("")


def foreign(path):
    path.parent.mkdir()
    path.write_text("precious\n")


def device(path):
    path.parent.mkdir()
    path.symlink_to("/dev/full")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (folder, "which is a folder: add the name of the file"),
        (below_a_file, "must be a file that can be written, got .*Error"),
        (foreign, "must be a record of MetricsLog or a new file"),
        (device, "which is no regular file"),
    ],
)
def test_path_that_cannot_be_written_is_an_error_when_attached(path, make, message):
    make(path)
    trainer = make_trainer(batches_of(2))
    with pytest.raises(ValueError, match=message):
        MetricsLog(path).attach(trainer)
    if make is foreign:
        assert path.read_text() == "precious\n"


def test_check_of_a_path_keeps_a_record_that_begins_meanwhile(path, monkeypatch):
    trainer = make_trainer(batches_of(2))

    def run_other(folder, **options):
        monkeypatch.undo()
        trainer_with(path).run()

    monkeypatch.setattr(Path, "mkdir", run_other)
    MetricsLog(path).attach(trainer)
    assert events_of(path)[-1] == ("stop", 7)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError, {"path": ""}, "`path` must be a path, got ''"),
        (ValueError, {"path": "s3://bucket/x"}, "`path` must be a file on this machine"),
        (ValueError, {"path": "x", "every_steps": 0}, "`every_steps` must be an integer >= 1"),
        (TypeError, {"path": "x", "clock": 3}, "`clock` must be a function, got int"),
        (TypeError, {}, "needs the argument `path`"),
    ],
)
def test_wrong_arguments_are_errors(error, options, message):
    with pytest.raises(error, match=message):
        MetricsLog(**options)


def test_attaching_twice_is_an_error(path):
    trainer, log = make_trainer(batches_of(2)), MetricsLog(path)
    attachment = log.attach(trainer)
    with pytest.raises(ValueError, match="must be attached to one engine only"):
        log.attach(make_trainer(batches_of(2)))
    with pytest.raises(ValueError, match="`path` must be different for each MetricsLog"):
        MetricsLog(path.parent / ".." / "run" / path.name).attach(trainer)
    with pytest.raises(ValueError, match="`event` must be left out"):
        MetricsLog("other").attach(trainer, Events.STARTED)
    attachment.remove()
    assert not path.exists()
    log.attach(trainer)


def test_second_run_at_the_same_time_is_an_error(path):
    trainer, other = trainer_with(path), trainer_with(path)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def run_other(engine):
        with pytest.raises(RuntimeError, match="another run writes to"):
            other.run()

    trainer.run()
    content = path.read_bytes()
    other.run()
    assert path.with_name("metrics.1.jsonl").read_bytes() == content


def test_worker_of_a_loader_does_not_keep_the_lock(path):
    seed()
    trainer = trainer_with(path)
    reading, writing = os.pipe()
    children = []

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def fork(engine):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # waits for the end of the parent's test
            os._exit(0)
        children.append(child)

    trainer.run()
    try:
        trainer_with(path).run()
    finally:
        os.close(writing)
        os.waitpid(children[0], 0)
        os.close(reading)


class Limit:
    """Bounds the size of files, as a full disk does."""

    def __init__(self):
        self.resource = pytest.importorskip("resource")
        self.before = self.resource.getrlimit(self.resource.RLIMIT_FSIZE)

    def set(self, size):
        self.resource.setrlimit(self.resource.RLIMIT_FSIZE, (size, self.before[1]))

    def lift(self):
        self.resource.setrlimit(self.resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("is_freed", [True, False])
def test_full_disk_is_one_warning_and_training_goes_on(path, tmp_path, is_freed):
    limit = Limit()
    trainer = trainer_with(path, every_steps=1)
    sizes = []

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def fill(engine):
        limit.set(path.stat().st_size + 100)  # half a line

    @trainer.on(TrainEvents.STEP_COMPLETED(once=6))
    def free(engine):
        sizes.append(path.stat().st_size)
        if is_freed:
            limit.lift()

    try:
        with pytest.warns(UserWarning, match="cannot be written .*training continues") as caught:
            trainer.run(max_epochs=3)
        found = path.read_bytes()
    finally:
        limit.lift()
    assert len(caught) == 1
    assert found.endswith(b"\n")
    bare = trainer_with(tmp_path / "bare.jsonl", every_steps=1)
    bare.run(max_epochs=3)
    assert torch.equal(weights(trainer.model), weights(bare.model))
    if is_freed:
        assert reports_of(path) == reports_of(tmp_path / "bare.jsonl")
        assert found[: sizes[0]].endswith(b"\n")
    else:
        assert events_of(path)[-1] == ("step", 1)


@pytest.mark.parametrize("is_freed_at_once", [True, False])
def test_lines_from_before_a_failure_are_written_after_it(path, tmp_path, is_freed_at_once):
    limit = Limit()
    trainer = trainer_with(path, every_steps=1)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def fill(engine):
        limit.set(path.stat().st_size)

    crash_at(trainer, 5)
    try:
        with pytest.warns(UserWarning, match="cannot be written"), pytest.raises(Crash):
            trainer.run(max_epochs=1)
        if is_freed_at_once:
            limit.lift()
        trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=6), limit.lift)
        trainer.run()
    finally:
        limit.lift()
    trainer_with(tmp_path / "bare.jsonl", every_steps=1).run()
    assert reports_of(path) == reports_of(tmp_path / "bare.jsonl")


def test_removed_file_is_one_warning(path):
    trainer = trainer_with(path, every_steps=1)

    removals = []

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def remove(engine):
        if not removals:
            removals.append(path.unlink())

    with pytest.warns(UserWarning, match="cannot be written .*training continues") as caught:
        trainer.run()
    assert len(caught) == 1
    assert not path.exists()
    trainer.state.max_epochs = None
    trainer.run()
    assert events_of(path)[0] == ("start", 0)


def test_record_that_was_replaced_between_two_runs_is_not_changed(path):
    trainer = trainer_with(path)
    trainer.run(max_steps=3)
    path.unlink()
    trainer_with(path).run()
    content = path.read_bytes()
    with pytest.warns(UserWarning, match="removed or replaced since the last run: .* at step 3"):
        trainer.run(max_steps=5)
    assert path.with_name("metrics.1.jsonl").read_bytes() == content
    assert events_of(path)[0] == ("resume", 3)


def test_wrong_call_of_run_writes_no_error(path):
    trainer = trainer_with(path)
    trainer.run()
    content = path.read_bytes()
    with pytest.raises(ValueError, match="max_epochs"):
        trainer.run(max_epochs=-1)
    assert path.read_bytes() == content


@pytest.mark.parametrize("relative", [True, False])
def test_path_is_made_absolute_at_once(tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    log = MetricsLog("a.jsonl" if relative else Path("~") / "a.jsonl")
    assert Path(log.path).is_absolute()


def test_running_record_can_be_read(path):
    trainer = trainer_with(path, every_steps=1)
    counts = []

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def read(engine):
        counts.append(len(read_metrics(path).columns["step"]))

    trainer.run()
    assert counts == [0, 1, 2, 3, 4, 5, 6]


@checked_dataclass
class Finds(Handler):
    """A handler that returns what a function finds."""

    find: Runtime = None

    def attach_to(self, attachment):
        pass

    def findings(self, engine):
        return self.find(engine)


def findings_of(path):
    return [(each["step"], each["findings"]) for each in lines_of(path) if "findings" in each]


def test_findings_are_recorded_when_they_have_changed(path, tmp_path):
    def find(engine):
        return {"half": engine.state.optimizer_step // 5, "api_key": "12ab", "far": math.inf}

    found = [{"half": each, "api_key": "***", "far": "Infinity"} for each in range(3)]
    handlers = [
        Finds(find=find),
        Finds(find=lambda engine: {}),
        Finds(find=lambda engine: {"a": 1}),
    ]
    save = SaveCheckpoint(tmp_path / "checkpoints", every_steps=10)
    trainer_with(path, *handlers, checkpoint=save).run(max_epochs=2)
    assert findings_of(path) == [
        (4, {"Finds": found[0], "Finds_3": {"a": 1}}),  # the first validation
        (7, {"Finds": found[1]}),  # the end of the epoch
        (10, {"Finds": found[2]}),  # the checkpoint
    ]
    trainer = trainer_with(
        path, Finds(find=find), resume_from=tmp_path / "checkpoints" / "step_00000010"
    )
    crash_at(trainer, 11)
    with pytest.raises(Crash):
        trainer.run(max_epochs=2)
    assert findings_of(path)[-2:] == [(10, {"Finds": found[2]}), (11, {"Finds": found[2]})]
    assert [line["event"] for line in lines_of(path)[-2:]] == ["findings", "error"]


def test_findings_are_recorded_before_each_end_of_a_run(path):
    trainer = trainer_with(path, Finds(find=lambda engine: {"a": 1}))
    trainer.run(max_steps=2)
    with trainer.add_event_handler(Events.STARTED, raise_error), pytest.raises(RuntimeError):
        trainer.run(max_epochs=2)
    assert [line["event"] for line in lines_of(path)] == [
        *("start", "end", "findings", "stop"),
        *("resume", "findings", "error"),  # what follows a resume may have been cut off
    ]


def test_end_is_recorded_also_if_ctrl_c_breaks_off_findings(path):
    def find(engine):
        if engine.state.iteration == 5:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        trainer_with(path, Finds(find=find)).run(max_steps=5)
    assert events_of(path)[-1] == ("stop", 5)


def test_findings_keep_their_name_when_another_handler_is_removed(path):
    trainer = trainer_with(path)
    first = Finds(find=lambda engine: {"a": 1}).attach(trainer)
    Finds(find=lambda engine: {"b": engine.state.epoch}).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), first.remove)
    trainer.run(max_epochs=2)
    assert findings_of(path) == [
        (4, {"Finds": {"a": 1}, "Finds_2": {"b": 1}}),
        (8, {"Finds_2": {"b": 2}}),
    ]


def raise_error(engine):
    raise RuntimeError("nothing to see")


def contain_itself(engine):
    found = {}
    found["self"] = found
    return found


@pytest.mark.parametrize(
    ("find", "reason"),
    [
        (raise_error, "RuntimeError: nothing to see"),
        (lambda engine: None, "TypeError: got NoneType"),
        (lambda engine: {"model": make_model()}, "is not JSON serializable"),
        (lambda engine: {"a": [1.5] * 20_000}, "bytes, and 65,536 are allowed"),
        (contain_itself, "RecursionError"),
    ],
    ids=["failure", "None", "object", "large", "circle"],
)
def test_findings_that_cannot_be_recorded_are_one_warning(path, find, reason):
    trainer = trainer_with(path, Finds(find=find), Finds(find=lambda engine: {"a": 1}))
    with pytest.warns(UserWarning, match=f"findings of Finds are left out.*{reason}") as caught:
        trainer.run(max_epochs=2)
    assert len(caught) == 1
    assert findings_of(path) == [(4, {"Finds_2": {"a": 1}})]
    assert events_of(path)[-1] == ("stop", 14)


def test_time_ledger_records_where_the_time_went(path):
    ledger = TimeLedger()
    trainer_with(path, ledger).run()
    *_, (step, found) = findings_of(path)
    assert step == 7
    assert found["TimeLedger"].keys() == {"seconds", "background", "advice"}
    assert found["TimeLedger"]["seconds"].keys() >= {"data", "forward", "validation", "other"}
