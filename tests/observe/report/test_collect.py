"""Tests of the data of a page, from records of real runs, and from generated ones for size."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from statistics import fmean

import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import EarlyStopping

from ignite_hooks import EpochMaxRAM
from ignite_hooks import MeanLoss
from ignite_hooks import MetricsLog
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Throughput
from ignite_hooks import TimeLedger
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.handlers import Handler
from ignite_hooks.handlers import Runtime
from ignite_hooks.handlers import checked_dataclass
from ignite_hooks.observe import read_metrics
from ignite_hooks.observe.record_lines import encoded
from ignite_hooks.observe.report.collect import collect
from tests.reference import FakeScaler
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import shuffled

MAX_JSON = 3_500_000
SECTIONS = ["metrics", "optimization", "speed", "memory", "growth"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def trainer_with(path, *more, **options):
    """Returns a trainer with five batches an epoch, whose record has reports of many kinds."""
    seed()
    log = MetricsLog(path, every_steps=2)
    handlers = [MeanLoss(every_steps=2), Throughput(every_steps=2), *more, log]
    trainer = make_trainer(shuffled(5), handlers=handlers, **options)

    def validate():
        return {"loss": 0.5, "steps": trainer.state.optimizer_step}

    Validation(validate, every_steps=4).attach(trainer)
    return trainer


def page_of(*paths):
    """Returns the data of a page, which JSON can hold in the usual size."""
    data = collect(paths)
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    assert len(text.encode()) < MAX_JSON
    return data


def run_of(path):
    (run,) = page_of(path)["runs"]
    return run


def curve_of(run, metric):
    (curve,) = [each for each in run["curves"] if each["metric"] == metric]
    return curve


def summary_of(run, metric):
    (summary,) = [each for each in run["summaries"] if each["metric"] == metric]
    return summary


def test_page_shows_what_the_run_has_done(path, tmp_path):
    save = SaveCheckpoint(
        tmp_path / "c", every_steps=4, keep_last=1, keep_best=1, metric="val_steps", mode="min"
    )
    trainer = trainer_with(path, TimeLedger(every_steps=2), EpochMaxRAM(), checkpoint=save)
    trainer.run(max_epochs=2)
    data = page_of(path)
    (run,) = data["runs"]
    assert (run["label"], run["path"], run["problem"]) == ("run", str(path), None)
    assert run["notes"] == []
    status = {"state": "finished", "text": "finished at step 10: max_epochs", "done": 1.0}
    assert run["status"] == {**status, "seconds_left": None}
    assert run["at"]["step"] == run["at"]["iteration"] == 10
    assert run["at"]["epoch"] == 2.0
    # The curve is that of the record.
    steps, losses = read_metrics(path).points("loss")
    loss = curve_of(run, "loss")
    assert loss["step"] == steps == [2, 4, 5, 6, 8, 10]
    assert loss["epoch"] == [0.4, 0.8, 1.0, 1.2, 1.6, 2.0]
    assert loss["mean"] == pytest.approx(losses, rel=1e-7)
    assert loss["low"] is loss["high"] is loss["count"] is None
    assert not loss["is_validation"]
    assert curve_of(run, "val_loss")["is_validation"]
    summary = summary_of(run, "loss")
    assert summary["last"] == losses[-1]
    assert summary["lowest"]["value"] == min(losses)
    assert summary["lowest"]["at"]["step"] == steps[losses.index(min(losses))]
    assert (summary["best"], summary["reports"], summary["not_finite"]) == ("lowest", 6, 0)
    assert summary_of(run, "val_steps")["best"] == "lowest"  # by the SaveCheckpoint
    # Panels and sections.
    panels = {each["title"]: each for each in data["panels"]}
    assert panels["loss"]["metrics"] == ["loss", "val_loss"]
    order = [SECTIONS.index(each["section"]) for each in data["panels"]]
    assert order == sorted(order)
    kinds = {title: (each["section"], each["unit"]) for title, each in panels.items()}
    assert kinds["val_steps"] == ("metrics", None)
    assert kinds["lr"] == kinds["grad_norm"] == ("optimization", None)
    assert kinds["samples_per_second"] == ("speed", "1/s")
    assert kinds["epoch_max_ram_mib"] == ("memory", "MiB")
    assert not any(title.startswith("time/") for title in panels)
    # Events and checkpoints.
    marks = [(each["kind"], each["at"]["step"]) for each in run["marks"]]
    assert marks == [
        ("validation", 4),
        ("checkpoint", 4),
        ("validation", 8),
        ("checkpoint", 8),
        ("checkpoint", 10),
        ("stop", 10),
    ]
    assert run["marks"][0]["text"] == "val_loss 0.5000, val_steps 4.000"
    found = [(c["at"]["step"], c["value"], c["is_best"], c["is_there"]) for c in run["checkpoints"]]
    assert found == [(4, 4.0, True, True), (8, 8.0, False, False), (10, None, False, True)]
    # Time, settings and the program.
    assert sum(each["share"] for each in run["times"]["parts"]) == pytest.approx(1, abs=1e-3)
    assert {"forward", "validation"} <= {each["name"] for each in run["times"]["parts"]}
    assert run["settings"]["optimizer/lr"] == 0.1
    assert run["settings"]["limits/max_epochs"] == 2
    assert run["settings"]["handlers/MeanLoss/every_steps"] == 2
    assert run["versions"].keys() >= {"torch", "python"}
    assert run["machine"]["device"] == "cpu"
    assert run["command"]
    assert run["failure"] is None
    assert run["resumes"] == data["differences"] == []


class Crash(Exception):
    pass


def crash_at(trainer, step):
    @trainer.on(TrainEvents.STEP_COMPLETED(once=step))
    def crash(engine):
        raise Crash("it failed")


def test_failed_run_is_shown_with_its_error_until_it_is_resumed(path, tmp_path):
    def save():
        return SaveCheckpoint(tmp_path / "c", every_steps=5, at_end=False)

    trainer = trainer_with(path, checkpoint=save())
    crash_at(trainer, 7)
    with pytest.raises(Crash):
        trainer.run(max_epochs=3)
    run = run_of(path)
    assert run["status"]["state"] == "failed"
    assert run["status"]["text"] == "failed at step 7: Crash: it failed"
    assert run["status"]["done"] == pytest.approx(7 / 15, abs=1e-4)
    assert (run["failure"]["type"], run["failure"]["message"]) == ("Crash", "it failed")
    assert "in crash\n" in run["failure"]["traceback"]
    assert run["failure"]["at"]["epoch"] == 1.4

    trainer_with(path, checkpoint=save(), resume_from=tmp_path / "c").run(max_epochs=3)
    run = run_of(path)
    assert run["status"]["state"] == "finished"
    assert run["failure"] is None
    (resume,) = run["resumes"]
    assert resume["at"]["epoch"] == 1.0
    assert resume["checkpoint"].endswith("step_00000005")
    assert (resume["exact"], resume["cut_end"]) == (True, "Crash: it failed")
    assert resume["cut_lines"] > 0
    assert {"name": "model", "level": "exact", "reason": ""} in resume["parts"]
    assert [each["kind"] for each in run["marks"]].count("resume") == 1

    unbroken = tmp_path / "unbroken.jsonl"
    trainer_with(unbroken).run(max_epochs=3)
    for name in ("step", "epoch", "mean"):
        assert curve_of(run, "loss")[name] == curve_of(run_of(unbroken), "loss")[name]


def test_run_in_progress_has_a_share_and_a_time_left(path):
    seen = []
    ticks = iter(range(10_000))
    trainer = make_trainer(
        shuffled(5), handlers=[MetricsLog(path, every_steps=1, clock=ticks.__next__)]
    )

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def look(engine):
        seen.append(run_of(path)["status"])

    trainer.run(max_epochs=2)
    assert {each["state"] for each in seen} == {"running"}
    # A handler of a step comes before its report, so the third sees two reports.
    assert seen[0]["seconds_left"] is None
    assert seen[4]["done"] == pytest.approx(0.4)
    assert seen[4]["seconds_left"] == pytest.approx(6 * 1.0, rel=0.4)
    assert seen[4]["text"] == "running, step 4"


def test_plain_engine_in_two_calls_of_run_is_one_run(path):
    engine = Engine(lambda engine, batch: engine.state.metrics.update(batch=float(batch)))
    MetricsLog(path, every_steps=2).attach(engine)
    engine.run([1, 2, 3, 4], max_epochs=1)
    engine.run([1, 2, 3, 4], max_epochs=2)
    run = run_of(path)
    assert run["status"]["text"] == "finished at step 8"
    assert curve_of(run, "batch")["mean"] == [2, 4, 2, 4]
    assert [each["checkpoint"] for each in run["resumes"]] == [None]


def test_ends_of_runs_are_told_apart(path, tmp_path):
    def status_after(name, attach, **limits):
        trainer = trainer_with(tmp_path / name)
        attach(trainer)
        trainer.run(**limits)
        return run_of(tmp_path / name)["status"]

    def stop_early(trainer):
        stopping = EarlyStopping(patience=1, score_function=lambda engine: 0.0, trainer=trainer)
        trainer.add_event_handler(TrainEvents.STEP_COMPLETED, stopping)

    def terminate(trainer):
        trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=3), trainer.terminate)

    early = status_after("early", stop_early, max_epochs=4)
    assert (early["state"], early["done"]) == ("finished", 1.0)
    assert early["text"].endswith(": EarlyStopping")
    plain = Engine(lambda engine, batch: None)
    MetricsLog(tmp_path / "plain").attach(plain)
    plain.add_event_handler(Events.ITERATION_COMPLETED(once=3), plain.terminate)
    plain.run(range(4), max_epochs=3)  # a plain engine gives no reason
    stopped = run_of(tmp_path / "plain")["status"]
    assert (stopped["text"], stopped["done"]) == ("stopped at step 3", 0.25)
    stopped = status_after("stopped", terminate, max_epochs=4)
    assert stopped == {
        "state": "stopped",
        "text": "stopped at step 3: terminate",
        "done": 0.15,
        "seconds_left": None,
    }

    def press_ctrl_c(trainer):
        raise KeyboardInterrupt

    trainer = trainer_with(tmp_path / "ctrl_c")
    trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=3), press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(max_epochs=4)
    run = run_of(tmp_path / "ctrl_c")
    assert (run["status"]["state"], run["failure"]) == ("stopped", None)
    assert run["status"]["text"] == "stopped at step 3: KeyboardInterrupt"
    assert [each["kind"] for each in run["marks"]] == ["stop"]


def test_skipped_steps_are_marks(path):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = FakeScaler(2)
    trainer_with(path, accelerator=accelerator).run()
    skips = [each for each in run_of(path)["marks"] if each["kind"] == "skip"]
    assert [(each["at"]["step"], each["at"]["iteration"]) for each in skips] == [(1, 2)]


@checked_dataclass
class GrowthWatch(Handler):
    """Finds what it is given, as the handler of this name does."""

    find: Runtime = None

    def attach_to(self, attachment):
        pass

    def findings(self, engine):
        return {"growing": self.find}


def test_findings_of_handlers_are_shown(path):
    cause = {"class": "list", "rate": 2.5, "chain": "c" * 500}
    trainer_with(path, GrowthWatch(find=[cause]), TimeLedger()).run()
    run = run_of(path)
    assert run["growth"] == [cause]
    *_, line = [each for each in read_metrics(path).lines if each["event"] == "findings"]
    seconds = line["findings"]["TimeLedger"]["seconds"]
    largest = run["times"]["parts"][0]
    assert largest["name"] == max(seconds, key=seconds.get)
    assert largest["share"] == pytest.approx(
        max(seconds.values()) / sum(seconds.values()), abs=1e-6
    )


def test_differences_between_runs_are_those_of_training(tmp_path):
    for name, lr, more in (("a", 0.1, ()), ("b", 0.2, (TimeLedger(),))):
        model = make_model()
        make_trainer(
            shuffled(3),
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=lr),
            handlers=[MetricsLog(tmp_path / name / "metrics.jsonl"), *more],
        ).run()
    data = page_of(tmp_path / "a", tmp_path / "b", tmp_path / "missing")
    assert [each["label"] for each in data["runs"]][:2] == ["a", "b"]
    assert data["differences"] == [
        {"name": "optimizer/lr", "values": [0.1, 0.2, None]},
        {"name": "handlers/TimeLedger", "values": [None, "attached", None]},
    ]


# Records that no run writes.

START = {"format": 1, "event": "start", "step": 0, "epoch": 0, "iteration": 0, "seconds": 0.0}
TIME = "2026-01-02T03:04:05.000+00:00"


def line_of(step, event="step", epoch=1, **metrics):
    at = {"step": step, "epoch": epoch, "iteration": step, "seconds": step / 2, "time": TIME}
    return {"event": event, **at, "metrics": metrics}


def written(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else encoded(line))
    return path


def several(path):
    written(path / "a.jsonl", START)
    written(path / "b.jsonl", START)
    written(path / "c.jsonl", b"{}\n")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "There is no such file"),
        (lambda path: path.mkdir(parents=True), "has no record: give the path"),
        (several, "has several records (a.jsonl, b.jsonl): give the path of one"),
        (lambda path: written(path, b"step,loss\n1,2\n"), "is no record: give the path"),
        (lambda path: written(path, b"x\n" * 3000, START), "is no record: give the path"),
        (lambda path: written(path, b""), "has no lines yet: wait until"),
        (lambda path: written(path, b'{"format": 1, "ev'), "has no lines yet: wait until"),
        (
            lambda path: written(path, {**START, "format": 2, "versions": {"ignite-hooks": "9.1"}}),
            "has format 2, written by ignite-hooks 9.1, and this version reads formats up to 1: "
            "upgrade with pip install -U ignite-hooks",
        ),
        (
            lambda path: (path.parent.mkdir(), os.mkfifo(path)),
            "cannot be read (not a regular file): give the path that MetricsLog writes to.",
        ),
        (lambda path: (path.parent.mkdir(), path.symlink_to(path)), "not a regular file"),
    ],
    ids=["missing", "folder", "several", "text", "long", "empty", "part", "newer", "fifo", "loop"],
)
def test_problem_with_a_record_is_on_its_page(path, make, problem):
    make(path)
    run = run_of(path)
    assert problem in run["problem"]
    assert run["status"]["state"] == "empty"
    assert run["curves"] == run["summaries"] == run["marks"] == []
    assert run["at"] is None


def test_path_of_an_unknown_user_is_a_problem():
    run = run_of(Path("~no_such_user/run"))
    assert run["problem"].startswith("The record cannot be read (")


def test_record_in_a_folder_is_found(path):
    other = written(path.parent / "other.jsonl", START, line_of(1, loss=1.0))
    written(path.parent / "data.jsonl", b'{"text": 1}\n')
    assert run_of(path.parent)["path"] == str(other)
    written(path, START)
    assert run_of(path.parent)["path"] == str(path)


@pytest.mark.parametrize(
    ("prefixes", "text"),
    [
        (["valid/"], "valid/loss 2.000"),
        ([""], "a 1.000, b 1.000, c 1.000, d 1.000"),
        ([], "a 1.000, b 1.000, c 1.000, d 1.000"),
    ],
)
def test_mark_of_a_validation_has_its_results(path, prefixes, text):
    metrics = {**dict.fromkeys("abcd", 1.0), "valid/loss": 2.0}
    line = line_of(1, "validation", **metrics)
    (mark,) = run_of(written(path, {**START, "validation_prefixes": prefixes}, line))["marks"]
    assert mark["text"] == text


def test_run_without_metrics_says_so(path):
    run = run_of(written(path, START))
    assert run["problem"] is None
    assert run["notes"] == ["The record has no metrics yet."]
    assert run["status"]["state"] == "running"


def test_damaged_lines_are_counted_and_a_partial_one_is_ignored(path):
    long = b'{"event": "' + b"x" * 2**23 + b'"}\n'
    damage = [b"\x00\n", b"[1]\n", long, line_of(2, loss=2.0), encoded(line_of(3, loss=3.0))[:-5]]
    run = run_of(written(path, b"damaged\n", line_of(1, loss=1.0), *damage))
    assert run["notes"] == ["The record has 4 damaged lines, left out here."]
    assert curve_of(run, "loss")["step"] == [1, 2]


HOSTILE = ["", "</script>", "__proto__", "{{ x }}", "\"a'", "a\nb", "\u2028", "val_", "step"]


def test_hostile_names_and_values_stay_data(path):
    values = dict.fromkeys(HOSTILE, 1.0)
    values |= {"\ud800": 1.0, "long" * 100: 1.0, "flag": True, "none": None, "list": [1.0, 2.0]}
    values |= {"text": "a", "big": 10**400, "dict": {"a": 1}, "late": "none yet"}
    run = run_of(written(path, START, {**line_of(1), "metrics": values}, line_of(2, late=2)))
    names = [each["metric"] for each in run["curves"]]
    assert sorted(names) == sorted([*HOSTILE, "\\ud800", "big", "late"])
    assert curve_of(run, "late")["step"] == [2]
    assert curve_of(run, "big")["mean"] == [None]
    assert run["notes"] == [
        "Metrics with names of more than 300 characters are left out.",
        "Metrics that are no numbers are left out: flag, none, list, text, dict",
    ]


def test_metric_after_any_number_of_others_is_a_curve(path):
    others = dict.fromkeys((f"time/handlers/{number}" for number in range(10_001)), 0.5)
    lines = [line_of(1, **others), line_of(2, a=1.0), line_of(3, a=2.0)]
    run = run_of(written(path, START, *lines))
    assert curve_of(run, "a")["mean"] == [1.0, 2.0]
    assert len(run["times"]["parts"]) == 100


def test_values_that_are_not_finite_are_marked(path):
    values = [1.0, "NaN", 3.0, "Infinity", "-Infinity", 2.0]
    lines = [line_of(step, a=value) for step, value in enumerate(values, 1)]
    run = run_of(written(path, START, *lines))
    curve, summary = curve_of(run, "a"), summary_of(run, "a")
    assert curve["mean"] == [1.0, None, 3.0, None, None, 2.0]
    assert curve["lost"] == [1, 3, 4]
    assert (summary["not_finite"], summary["last"]) == (3, 2.0)
    assert (summary["lowest"]["at"]["step"], summary["highest"]["at"]["step"]) == (1, 3)
    run = run_of(written(path, START, line_of(1, a="NaN")))
    assert summary_of(run, "a")["lowest"] is summary_of(run, "a")["last"] is None


def test_long_curve_keeps_its_extremes_ends_and_mean(path):
    values = [float(step % 7) for step in range(20_000)]
    values[12_345], values[6_789], values[0], values[-1] = 1e4, -1e4, 77.0, 88.0
    values[15_000] = float("nan")
    lines = (line_of(step, a=value) for step, value in enumerate(values, 1))
    run = run_of(written(path, START, *lines))
    curve = curve_of(run, "a")
    assert 500 <= len(curve["step"]) <= 1000
    assert (curve["step"][0], curve["mean"][0], curve["count"][0]) == (1, 77.0, 1)
    assert (curve["step"][-1], curve["mean"][-1], curve["count"][-1]) == (20_000, 88.0, 1)
    assert (max(curve["high"]), min(curve["low"])) == (1e4, -1e4)
    assert sum(curve["count"]) == len(values)
    assert max(curve["count"]) <= 2 * min(curve["count"][1:-2])
    (lost,) = curve["lost"]
    assert curve["step"][lost - 1] < 15_001 <= curve["step"][lost]
    finite = [each - 1 if index == lost else each for index, each in enumerate(curve["count"])]
    total = sum(mean * count for mean, count in zip(curve["mean"], finite, strict=True))
    expected = fmean(value for value in values if value == value)
    assert total / (len(values) - 1) == pytest.approx(expected)
    summary = summary_of(run, "a")
    assert summary["highest"] == {
        "value": 1e4,
        "at": {"step": 12_346, "epoch": 0.0, "iteration": 12_346, "seconds": 6173.0, "time": TIME},
    }
    assert (summary["reports"], summary["not_finite"]) == (20_000, 1)


def test_mean_of_large_values_does_not_overflow(path):
    lines = [line_of(step, a=1.5e308) for step in range(1, 2500)]
    curve = curve_of(run_of(written(path, START, *lines)), "a")
    assert max(curve["count"]) > 1
    assert {*curve["mean"]} == {1.5e308}


@pytest.mark.parametrize(
    ("runs", "metrics", "reports", "most"),
    [(1, 5, 1500, 1000), (1, 40, 1500, 775), (8, 40, 200, 96), (1, 800, 60, 51)],
)
def test_page_stays_small_whatever_it_shows(tmp_path, runs, metrics, reports, most):
    values = {f"a metric of some length {number}": -1.2345678901e-5 for number in range(metrics)}
    settings = {f"setting {number}": "x" * 150 for number in range(90)}
    lines = [
        {**START, "time": TIME, "settings": {"a": settings, "b": settings}},
        *(line_of(step * 12_345, **values) for step in range(reports)),
        {**line_of(1), "event": "error", "type": "E", "traceback": "x" * 50_000},
    ]
    paths = [written(tmp_path / f"{number}.jsonl", *lines) for number in range(runs)]
    for run in page_of(*paths)["runs"]:
        assert all(most / 2 <= len(each["step"]) <= most for each in run["curves"])
        is_cut = any("metrics are shown; the others are left out" in each for each in run["notes"])
        assert is_cut == (metrics * runs > 600)


def test_events_without_number_become_few_marks(path):
    def lines():
        for step in range(1, 20_001):
            yield {**line_of(step), "event": "skip"}
            value = {1: "NaN", 3: 99.0, 500: 99.0}.get(step, step % 50)
            saved = {"path": f"/none/{step}", "metric": "a", "metric_value": value}
            saved["metric_mode"] = "max"
            yield {**line_of(step), "event": "checkpoint", "checkpoint": saved}
        yield {**line_of(20_000), "event": "stop", "reason": "SIGTERM"}

    run = run_of(written(path, START, *lines()))
    for kind, name in (("skip", "skipped steps"), ("checkpoint", "checkpoints")):
        marks = [each for each in run["marks"] if each["kind"] == kind]
        assert 150 <= len(marks) <= 300
        assert sum(each["count"] for each in marks) == 20_000
        assert marks[-1]["at"]["step"] == 20_000
        assert f" {name}, the last: " in marks[0]["text"]
    assert run["marks"][-1]["kind"] == "stop"
    assert len(run["checkpoints"]) == 101
    (best,) = [each for each in run["checkpoints"] if each["is_best"]]
    assert (best["at"]["step"], best["value"], best["is_there"]) == (500, 99.0, False)


def test_options_of_the_command_line_are_compared(tmp_path):
    commands = [
        ["python", "a.py", "--width", "64", "--shift", "-1", "--fast", "--out", "a", "k.v=1", "-x"],
        ["python", "b.py", "--width=32", "--shift", "-2", "--out=b", "--same", "1", "k.v=2"],
    ]
    for name, command in zip("ab", commands, strict=True):
        header = {**START, "command": command, "machine": {"host": name, "process": 1, "cpus": 2}}
        header["handlers"] = [{"type": "A", "keys": [*"xy"[:: 1 if name == "a" else -1]], "n": 1}]
        header["handlers"] += [{"type": "ResumeCheckpoint", "source": "c"}] * (name == "b")
        written(tmp_path / f"{name}.jsonl", header)
    differences = page_of(tmp_path / "a.jsonl", tmp_path / "b.jsonl")["differences"]
    assert {each["name"]: each["values"] for each in differences} == {
        "command/--width": ["64", "32"],
        "command/--shift": ["-1", "-2"],
        "command/--fast": ["given", None],
        "command/--same": [None, "1"],
        "command/k.v": ["1", "2"],
    }


def test_best_checkpoint_is_one_that_is_there(path, tmp_path):
    (tmp_path / "there").mkdir()
    saved = [("gone", 0.1, "min"), ("there", 0.2, "min"), ("gone too", 0.3, "min")]
    lines = [
        {
            **line_of(step),
            "event": "checkpoint",
            "checkpoint": {
                "path": str(tmp_path / name),
                "metric": "a",
                "metric_value": value,
                "metric_mode": mode,
            },
        }
        for step, (name, value, mode) in enumerate(saved, 1)
    ]
    run = run_of(written(path, START, *lines))
    assert [each["is_best"] for each in run["checkpoints"]] == [False, True, False]


LIMITS = {"limits": {"epoch_length": 4}}
RESUME = {**START, "event": "resume"}


@pytest.mark.parametrize(
    ("lines", "epochs"),
    [
        ([START, line_of(1), line_of(2)], [0, 0]),  # no length is known
        ([{**START, **LIMITS}, line_of(1), line_of(2)], [0.25, 0.5]),
        ([START, line_of(1), line_of(5, "epoch")], [0.2, 1.0]),
        ([START, line_of(5, "epoch"), line_of(6, epoch=2), line_of(12, epoch=2)], [1, 1.2, 2.0]),
        ([START, line_of(4, "epoch"), line_of(5, epoch=2), line_of(9, "epoch", 2)], [1, 1.2, 2]),
        # The second epoch has ended without a line.
        ([START, line_of(4, "epoch"), line_of(6, epoch=2), line_of(8, epoch=3)], [1, 2, 3]),
        # A record that begins with a resume.
        (
            [{**START, **LIMITS, "event": "resume", "epoch": 3, "iteration": 10}, line_of(11)],
            [2.75],
        ),
        ([START, line_of(3, "epoch", 0), line_of(4, epoch=True), line_of(5, epoch="2")], [0, 0, 0]),
    ],
)
def test_epochs_have_fractions_as_far_as_lengths_are_known(path, lines, epochs):
    reports = [{**line, "metrics": {"a": 1.0}} if "metrics" in line else line for line in lines]
    assert curve_of(run_of(written(path, *reports)), "a")["epoch"] == epochs


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("max_steps", "finished"),
        (None, "finished"),
        ("EarlyStopping on rank 1", "finished"),
        ("SIGTERM on rank 1", "stopped"),
        ("TerminateOnNan", "stopped"),
        ("exception", "failed"),
    ],
)
def test_state_is_that_of_the_reason(path, reason, state):
    stop = {**line_of(2), "event": "stop", "reason": reason}
    assert run_of(written(path, START, line_of(1, a=1.0), stop))["status"]["state"] == state


@pytest.mark.parametrize(
    ("limits", "done", "left"),
    [
        ({}, None, None),
        ({"max_steps": 40}, 0.25, 15.0),
        ({"max_iters": 20}, 0.5, 5.0),
        ({"max_epochs": 2}, 0.0, None),
        ({"max_epochs": 2, "epoch_length": 10, "max_steps": 10**6}, 0.5, 5.0),
        ({"max_steps": 0}, None, None),
        ({"max_steps": 5}, None, None),  # a handler has raised the limit
        ({"max_steps": 5, "max_iters": 20}, 0.5, 5.0),
        ({"max_steps": "40", "max_epochs": True}, None, None),
    ],
)
def test_time_left_is_that_until_the_first_limit(path, limits, done, left):
    lines = [line_of(step, a=1.0) for step in range(1, 11)]
    status = run_of(written(path, {**START, "limits": limits}, *lines))["status"]
    assert (status["done"], status["seconds_left"]) == (done, left)


def test_time_left_is_that_of_the_speed_since_the_resume(path):
    slow = [{**line_of(step, a=1.0), "seconds": 100.0 * step} for step in range(1, 11)]
    fast = [{**line_of(step, a=1.0), "seconds": 990.0 + step} for step in range(11, 21)]
    resume = {**slow[-1], "event": "resume", "limits": {"max_steps": 30}}
    run = run_of(written(path, START, *slow, resume, *fast))
    assert run["status"]["seconds_left"] == 10.0


def test_findings_and_inexact_parts_are_those_of_the_last_resume(path):
    found = {"TimeLedger": {"seconds": {"data": 1.0, "gc": 3.0}, "advice": "Wait."}}
    found["GrowthWatch"] = {"growing": [{"class": "list"}]}
    lines = [START, line_of(1, a=1.0), {**line_of(1), "event": "findings", "findings": found}]
    run = run_of(written(path, *lines))
    assert run["growth"] == [{"class": "list"}]
    assert run["times"] == {
        "parts": [{"name": "gc", "share": 0.75}, {"name": "data", "share": 0.25}],
        "advice": "Wait.",
        "background": {},
    }
    parts = {"model": {"level": "exact"}, "data": {"level": "unknown", "reason": "no state"}}
    resume = {**line_of(1), **RESUME, "parts": parts, "exact": False, "cut": {"lines": 2}}
    run = run_of(written(path, *lines, resume))
    assert (run["growth"], run["times"]) == ([], None)
    assert [each["name"] for each in run["resumes"][0]["parts"]] == ["data", "model"]
    assert (run["resumes"][0]["exact"], run["resumes"][0]["cut_lines"]) == (False, 2)


BEST = {
    **dict.fromkeys(["loss", "val_loss", "error", "loss/ce", "val_perplexity"], "lowest"),
    **dict.fromkeys(["accuracy", "val_f1", "AUC", "recall@5"], "highest"),
    **dict.fromkeys(["lr", "glossary", "grad_norm", "growth/ram_mib", "recall_error", "x"], None),
    "chosen": "highest",
}


def test_best_is_known_by_handlers_or_by_names(path):
    handlers = [{"type": "Console", "metric": "chosen", "mode": "max"}]
    line = line_of(1, **dict.fromkeys(BEST, 1.0))
    run = run_of(written(path, {**START, "handlers": handlers}, line))
    assert {each["metric"]: each["best"] for each in run["summaries"]} == BEST


def test_sections_follow_the_handlers(path):
    handlers = [
        {"type": "TimeLedger", "prefix": "t_"},
        {"type": "GrowthWatch", "prefix": "g/"},
        {"type": "EpochMaxRAM", "name": "my_peak"},
    ]
    names = ["t_data", "t_handlers/A", "t_own", "g/ram_mib", "g/objects", "my_peak", "size_mib"]
    names += ["gc_collected", "gc_seconds"]
    data = page_of(
        written(path, {**START, "handlers": handlers}, line_of(1, **dict.fromkeys(names, 0.5)))
    )
    assert [(each["title"], each["section"], each["unit"]) for each in data["panels"]] == [
        ("t_own", "metrics", None),
        ("size_mib", "metrics", "MiB"),
        ("gc_collected", "speed", None),
        ("gc_seconds", "speed", "s"),
        ("my_peak", "memory", "MiB"),
        ("g/ram_mib", "growth", "MiB"),
        ("g/objects", "growth", None),
    ]
    shown = [each["metrics"][0] for each in data["panels"]]
    assert [each["metric"] for each in data["runs"][0]["summaries"]] == shown
    parts = data["runs"][0]["times"]["parts"]
    assert parts == [{"name": "data", "share": 0.5}, {"name": "handlers/A", "share": 0.5}]


def test_all_parts_of_a_time_ledger_are_left_out_of_the_panels(path):
    names = TimeLedger().names()
    assert run_of(written(path, START, line_of(1, **dict.fromkeys(names, 0.1))))["curves"] == []


def test_memory_does_not_grow_with_the_length_of_a_record(path):
    def peak(reports):
        lines = (line_of(step, a=1.0 / (step + 1), b=2.0) for step in range(reports))
        written(path, START, *lines)
        tracemalloc.start()
        collect([path])
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return found

    assert peak(30_000) < 1.3 * peak(6_000)


def test_collecting_imports_neither_torch_nor_ignite(path):
    written(path, START, line_of(1, loss=1.0))
    program = (
        "import sys; from pathlib import Path\n"
        "from ignite_hooks.observe.report.collect import collect\n"
        "assert collect([Path(sys.argv[1])])['runs'][0]['curves']\n"
        "assert not {'torch', 'ignite', 'numpy', 'accelerate'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
