"""Tests of the pages that a run makes, and of the processes that make them."""

import gc
import os
import shutil
import signal
import sys
import weakref
from pathlib import Path

import psutil
import pytest
from ignite.engine import Engine
from ignite.engine import Events
from torch.utils.data import DataLoader

import ignite_hooks
from ignite_hooks import GrowthWatch
from ignite_hooks import MeanLoss
from ignite_hooks import MetricsLog
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TimeLedger
from ignite_hooks import TrainEvents
from ignite_hooks import TrainingReport
from ignite_hooks.observe import read_metrics
from ignite_hooks.observe.report import training_report
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import samples
from tests.reference import seed
from tests.reference import shuffled

BATCHES = 6


@pytest.fixture
def page(tmp_path):
    return tmp_path / "run" / "report.html"


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def trainer_with(page, *more, clock=None, every_seconds=60, data=None, **options):
    """Returns a trainer with a line in its record for each step, and its TrainingReport."""
    report = TrainingReport(page, every_seconds=every_seconds, clock=clock)
    seed()
    log = MetricsLog(page.with_name("metrics.jsonl"), every_steps=1)
    handlers = [log, MeanLoss(every_steps=1), report, *more]
    return make_trainer(data or batches_of(BATCHES), handlers=handlers, **options)


def at_step(trainer, step):
    """Calls the decorated function after the line of a step is written."""

    def decorate(function):
        # Reports come before other handlers of the event.
        trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=step + 1), function)
        return function

    return decorate


def is_page_process(process):
    try:
        words = process.cmdline()
        # Just after the start, Linux does not know the words yet.
        return not words or "ignite_hooks.observe" in words
    except psutil.ZombieProcess:  # it has ended, and the handler has not noticed this yet
        return True


def page_processes():
    """Returns the processes that make pages."""
    return [each for each in psutil.Process().children() if is_page_process(each)]


def wait_until_ended(process):
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # leaves the status to the handler


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Makes the processes stop when they begin, as long as the returned file exists."""
    file = tmp_path / "held"
    file.touch()
    folder = tmp_path / "modules"
    folder.mkdir()
    folder.joinpath("sitecustomize.py").write_text(
        "import os, signal\n"
        f"if os.path.exists({str(file)!r}):\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    monkeypatch.syspath_prepend(folder)
    yield file
    for each in page_processes():  # after a failure of the test
        each.kill()


def release(held, process):
    """Lets a held process continue, and the later ones run."""
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    held.unlink()
    process.resume()


def files_in(folder):
    return sorted(each.name for each in folder.iterdir())


def test_page_is_replaced_during_the_run_and_at_its_end(page):
    clock = Clock()
    trainer = trainer_with(page, clock=clock)
    seen = {}

    @at_step(trainer, 1)
    def before_it_is_due(engine):
        assert not page_processes()
        clock.now += 61

    @at_step(trainer, 3)
    def when_the_first_page_is_ready(engine):
        (process,) = page_processes()
        wait_until_ended(process)
        seen["inode"], seen["file"] = page.stat().st_ino, page.open()
        clock.now += 30

    @at_step(trainer, 4)
    def before_the_next_is_due(engine):
        assert not page_processes()

    trainer.run()
    assert not psutil.Process().children()
    assert page.stat().st_ino != seen["inode"]
    with seen["file"] as first:  # a reader of the first page is not disturbed by the second
        former = first.read()
    assert former.rstrip().endswith("</html>")
    assert former != page.read_text()
    assert files_in(page.parent) == ["metrics.jsonl", "report.html"]


def test_only_one_process_of_low_priority_makes_a_page(page, held):
    clock = Clock()
    trainer = trainer_with(page, clock=clock)
    processes = []

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def note(engine):
        clock.now += 1000.0
        processes.append(page_processes())

    @trainer.on(Events.EPOCH_COMPLETED)
    def look(engine):
        (process,) = page_processes()
        assert process.nice() == 19
        assert os.getsid(process.pid) != os.getsid(0)
        files = Path(f"/proc/{process.pid}")
        assert files.joinpath("oom_score_adj").read_text() == "1000\n"
        if files.joinpath("autogroup").exists():  # not every kernel has it
            assert files.joinpath("autogroup").read_text().endswith("nice 19\n")
        held.unlink()
        (page.parent / f".report.html.{process.pid}.part.tmp").touch()

    trainer.run()  # its end does not wait for the process that is held
    assert [len(each) for each in processes] == [0, *[1] * (BATCHES - 1)]
    assert len({each for found in processes for each in found}) == 1
    assert files_in(page.parent) == ["metrics.jsonl", "report.html"]


def test_process_is_no_worker_to_a_growth_watch(page, held):
    clock, watch = Clock(), GrowthWatch(every_steps=1)
    trainer = trainer_with(page, clock=clock)
    seen = []

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def look(engine):
        clock.now += 61
        seen.append((len(page_processes()), engine.state.metrics.get("growth/worker_processes")))

    @trainer.on(Events.EPOCH_COMPLETED)
    def end(engine):
        held.unlink()

    with watch.attach(trainer):
        trainer.run()
    assert seen[-1] == (1, 0)
    assert trainer.state.metrics["growth/worker_ram_mib"] == 0


def test_pause_is_twenty_times_the_work_of_a_page(page):
    clock, processes = Clock(), []
    trainer = trainer_with(page, clock=clock, every_seconds=0.001)

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def note(engine):
        processes.append(page_processes())
        for each in processes[-1]:
            wait_until_ended(each)
        # Python alone needs more than 10 ms to start, and 20 times 1,000 s are out of reach.
        clock.now += {1: 0.01, 5: 20_000.0}.get(len(processes), 0.03)

    trainer.run()
    assert [len(each) for each in processes] == [0, 1, 0, 0, 0, 1]


class Crash(Exception):
    pass


@pytest.mark.parametrize("error", [Crash("it failed"), KeyboardInterrupt("it failed")], ids=repr)
def test_page_shows_the_error_of_a_run(page, error):
    trainer = trainer_with(page)

    @at_step(trainer, 2)
    def crash(engine):
        raise error

    with pytest.raises(type(error)) as caught:
        trainer.run()
    assert caught.value is error
    assert "it failed" in page.read_text()
    # Ctrl-C is a stop, of which nobody needs the traceback.
    assert ("in crash" in page.read_text()) == isinstance(error, Crash)
    trainer.run()
    assert read_metrics(page.with_name("metrics.jsonl")).events[-1]["event"] == "stop"


@pytest.fixture
def interrupt_soon():
    """Returns a function that raises KeyboardInterrupt in half a second, as Ctrl-C does."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.5)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [None, Crash("it failed")], ids=repr)
def test_ctrl_c_ends_the_wait_for_the_last_page(page, held, interrupt_soon, error):
    clock = Clock()
    trainer = trainer_with(page, clock=clock)

    @at_step(trainer, 1)
    def make_due(engine):
        clock.now += 61

    @at_step(trainer, 3)
    def interrupt(engine):
        interrupt_soon()
        if error is not None:
            raise error

    with pytest.raises(KeyboardInterrupt if error is None else Crash):
        trainer.run()
    assert not page.exists()
    (process,) = page_processes()
    if error is None:
        del trainer
        gc.collect()  # gives no warning about the process, which continues
    release(held, process)
    wait_until_ended(process)
    assert page.exists()
    if error is None:
        os.waitpid(process.pid, 0)
    else:
        trainer.run(max_epochs=2)  # the handler notices that the process has ended
    assert not page_processes()


def test_page_that_is_late_is_one_warning_with_the_command(page, held, monkeypatch):
    trainer = trainer_with(page)
    with monkeypatch.context() as patch:
        patch.setattr(training_report, "WAIT_SECONDS", 0.01)
        with pytest.warns(
            UserWarning, match=r"is not ready.*python -m ignite_hooks.observe report"
        ):
            trainer.run()
    release(held, page_processes()[0])
    trainer.run(max_epochs=2)
    assert page.exists()


def test_page_that_cannot_be_made_is_one_warning(page, tmp_path):
    clock = Clock()
    report = TrainingReport(page, every_seconds=1, clock=clock)
    log = MetricsLog(tmp_path / "metrics.jsonl", every_steps=1)
    trainer = make_trainer(batches_of(BATCHES), handlers=[log, report])
    processes = []

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def block(engine):
        shutil.rmtree(page.parent, ignore_errors=True)
        page.parent.write_text("a file in place of the folder")
        for each in page_processes():
            processes.append(each)
            wait_until_ended(each)
        clock.now += 1000.0 if len(processes) < 2 else 0.0

    @trainer.on(Events.COMPLETED)
    def unblock(engine):
        page.parent.unlink()

    with pytest.warns(UserWarning, match=r"could not be made \(`path` must be a file") as caught:
        trainer.run()
    assert len(caught) == 1
    assert len(processes) == 2
    assert page.exists()


@pytest.mark.parametrize("python", ["/no/python", None])  # None: Python does not know its path
def test_process_that_cannot_be_started_is_one_warning(page, monkeypatch, python):
    monkeypatch.setattr(sys, "executable", python)
    with pytest.warns(UserWarning, match=r"could not be made.*(/no/python|NoneType)") as caught:
        trainer_with(page).run()
    assert len(caught) == 1


def test_killed_processes_are_one_warning_in_each_run(page, held):
    clock = Clock()
    trainer = trainer_with(page, clock=clock)

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def kill(engine):
        clock.now += 61
        for each in page_processes():
            each.kill()
            wait_until_ended(each)
            (page.parent / f".report.html.{each.pid}.part.tmp").touch()

    @trainer.on(Events.EPOCH_COMPLETED)
    def end(engine):
        held.unlink()

    for _ in range(2):
        held.touch()
        with pytest.warns(UserWarning, match="could not be made.*SIGKILL") as caught:
            trainer.run(max_epochs=1)
        assert len(caught) == 1
        assert [each for each in files_in(page.parent) if each.endswith(".tmp")] == []
        assert page.exists()


def test_package_of_the_working_directory_is_found_from_another(page, tmp_path, monkeypatch):
    source = str(Path(ignite_hooks.__file__).parents[1])
    monkeypatch.setattr(sys, "path", ["", *(each for each in sys.path if each not in ("", source))])
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("ignite_hooks").mkdir()
    tmp_path.joinpath("ignite_hooks", "__init__.py").touch()  # another version of the package
    trainer_with(page).run()
    assert page.exists()


def test_record_of_a_resumed_run_stays_one_record(page, tmp_path):
    def run(**limits):
        # The TrainingReport attaches the MetricsLog, whose state the checkpoint has.
        seed()
        trainer = make_trainer(
            shuffled(BATCHES),
            handlers=[TrainingReport(page), MeanLoss(every_steps=1)],
            checkpoint=SaveCheckpoint(tmp_path / "checkpoints"),
            resume_from=ResumeCheckpoint(tmp_path / "checkpoints", on_missing="start"),
        )
        trainer.run(**limits)
        return trainer

    run(max_steps=2)
    resumed = run(max_epochs=2)
    assert resumed.resume_report.is_exact
    assert files_in(page.parent) == ["metrics.jsonl", "report.html"]
    events = read_metrics(page.with_name("metrics.jsonl")).events
    assert [each["event"] for each in events if each["event"] in ("start", "resume", "stop")] == [
        "start",
        "stop",
        "resume",
        "stop",
    ]
    before = page.stat().st_ino
    run(max_epochs=2)  # trains nothing, because the saved run was finished
    assert page.stat().st_ino == before


@pytest.mark.parametrize("is_first", [True, False])
def test_log_of_the_user_is_used_in_any_order(page, tmp_path, is_first):
    report = TrainingReport(page, every_seconds=0.001)
    log = MetricsLog(tmp_path / "other.jsonl")
    trainer = make_trainer(batches_of(BATCHES))
    handlers = [report, log] if is_first else [log, report]
    attachments = {each: each.attach(trainer) for each in handlers}
    trainer.run()
    assert files_in(page.parent) == ["report.html"]
    assert "max_epochs" in page.read_text()  # the reason of the stop, which is the last line
    attachments[report].remove()
    page.unlink()
    trainer.run(max_epochs=2)
    assert not page_processes()
    assert not page.exists()


def test_removal_in_a_run_makes_the_last_page(page):
    trainer = make_trainer(batches_of(BATCHES))
    attachment = TrainingReport(page, every_seconds=0.001).attach(trainer)
    pages = []

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def remove(engine):
        attachment.remove()
        pages.append(page.read_text())

    trainer.run()
    assert pages == [page.read_text()]  # the removal has made it
    size = page.with_name("metrics.jsonl").stat().st_size
    trainer.run(max_epochs=2)
    assert page.with_name("metrics.jsonl").stat().st_size == size  # its MetricsLog is removed, too
    with TrainingReport(page).attach(trainer):
        trainer.run(max_epochs=3)
    assert pages != [page.read_text()]


def test_each_run_of_a_loop_has_its_page(page):
    trainer = make_trainer(batches_of(BATCHES), handlers=[TrainingReport(page)])
    pages = []
    for _ in range(2):
        trainer.run(max_epochs=1)
        pages.append(page.read_text())
    assert pages[0] != pages[1]
    assert files_in(page.parent) == ["metrics.1.jsonl", "metrics.jsonl", "report.html"]


def test_page_of_a_plain_engine_shows_its_metrics(page):
    engine = Engine(lambda engine, batch: batch)
    TrainingReport(page).attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)  # attached later, and before the values are recorded
    def write(engine):
        engine.state.metrics["a number"] = float(engine.state.output)

    engine.run([1, 2, 3], max_epochs=1)
    assert read_metrics(page.with_name("metrics.jsonl")).columns["a number"][-1] == 3.0
    assert "a number" in page.read_text()


def test_workers_that_are_forked_meanwhile_do_not_wait(page, held):
    clock = Clock()
    data = DataLoader(samples(12), batch_size=2, num_workers=1)
    trainer = trainer_with(page, clock=clock, data=data)

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def make_due(engine):
        clock.now += 61

    @trainer.on(Events.EPOCH_COMPLETED(every=2))
    def let_the_last_page_be_made(engine):
        held.unlink()

    trainer.run(max_epochs=2)  # the second epoch forks a worker while the process is held
    assert trainer.state.optimizer_step == 12
    assert page.exists()


def test_wait_is_charged_to_the_handler(page):
    ledger = TimeLedger()
    report = TrainingReport(page)
    trainer = make_trainer(batches_of(BATCHES), handlers=[report, ledger])
    trainer.run()
    assert ledger.seconds(trainer)["handlers/TrainingReport"] > 0.01


def test_handler_keeps_no_engine_alive(page):
    report = TrainingReport(page)
    engine = Engine(lambda engine, batch: None)
    attachment = report.attach(engine)
    engine.run([1])
    reference = weakref.ref(engine)
    del engine
    gc.collect()
    assert reference() is None
    attachment.remove()


def test_missing_packages_are_an_error_that_says_what_to_install(page, monkeypatch):
    find_spec = training_report.find_spec
    monkeypatch.setattr(
        training_report, "find_spec", lambda name: None if name == "jinja2" else find_spec(name)
    )
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ignite-hooks\[report\]'"):
        TrainingReport(page)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "runs/a"}, ValueError, r'ends in ".html", got .runs/a.; .*report.html'),
        ({"path": ""}, ValueError, r'`path` must be a path that ends in ".html"'),
        ({"every_seconds": 0}, ValueError, "`every_seconds` must be a finite number"),
        ({"clock": 1.0}, TypeError, "`clock` must be a function"),
    ],
)
def test_wrong_arguments_are_errors(page, arguments, error, message):
    with pytest.raises(error, match=message):
        TrainingReport(**{"path": page, **arguments})


def test_wrong_attachments_are_errors(page, tmp_path):
    engine, other = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    report = TrainingReport(page)
    with pytest.raises(ValueError, match="`event` must be left out"):
        report.attach(engine, Events.EPOCH_COMPLETED)
    with report.attach(engine):
        with pytest.raises(ValueError, match="attached to one engine only"):
            report.attach(other)
        with pytest.raises(ValueError, match="`path` must be different"):
            TrainingReport(Path(page)).attach(engine)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`path` must be a file that can be written"):
        TrainingReport(tmp_path / "file" / "report.html").attach(engine)
    (tmp_path / "metrics.jsonl").write_text("of another program")
    with (
        TrainingReport(tmp_path / "report.html").attach(engine),
        pytest.raises(ValueError, match="attach a MetricsLog yourself"),
    ):
        engine.run([1])
