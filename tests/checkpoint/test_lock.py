"""Tests of the lock: another run that writes to a directory is refused or waits."""

import errno
import gc
import json
import multiprocessing
import os
import shutil
import signal
import warnings
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from ignite.engine import Events
from torch.utils.data import DataLoader

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint import lock
from ignite_hooks.checkpoint.lock import LOCK_NAME
from ignite_hooks.checkpoint.lock import DirectoryLock
from ignite_hooks.checkpoint.lock import Owner
from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.events import TrainEvents
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import samples

BUSY = "`directory` must be written to by one run at a time"


class Failure(Exception):
    pass


def trainer_of(directory, *, data=None, resumes=False, **options):
    save = SaveCheckpoint(directory, **{"every_steps": 1, "keep_last": "all", **options})
    resume = ResumeCheckpoint(directory, on_missing="start") if resumes else None
    return make_trainer(data or batches_of(4), checkpoint=save, resume_from=resume)


def steps(directory):
    checkpoints = CheckpointStore(Path(directory)).checkpoints()
    assert all(find_problems(each) == [] for each in checkpoints)
    return [each.manifest.step for each in reversed(checkpoints)]


def is_free(directory):
    taken = DirectoryLock(Path(directory), Ranks())
    with suppress(RuntimeError):
        taken.acquire()
    is_held = taken.is_held
    taken.release()
    return is_held


class Job:
    """A forked process that reports to its test, and pauses until the test lets it proceed."""

    def __init__(self, program):
        reports, self._output = os.pipe()
        self._input, self._command = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from Python 3.12 on
            self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                program(self)
                status = 0
            except BaseException as error:
                self.send(f"{type(error).__name__}: {error}")
            finally:
                os._exit(status)
        os.close(self._output)
        os.close(self._input)
        self._reports = os.fdopen(reports)
        self._is_over = False

    def send(self, what):
        os.write(self._output, json.dumps(what).encode() + b"\n")

    def pause(self, what):
        self.send(what)
        os.read(self._input, 1)

    def receive(self):
        return json.loads(self._reports.readline())

    def proceed(self):
        os.write(self._command, b"\n")

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.end()

    def end(self):
        if not self._is_over:
            self._is_over = True
            self._reports.close()
            os.close(self._command)
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return None


@contextmanager
def job(program):
    started = Job(program)
    try:
        yield started
    finally:
        if not started._is_over:
            started.kill()


@contextmanager
def owner_of(directory):
    """Runs another process that holds the lock of a directory until it is killed."""

    def program(job):
        taken = DirectoryLock(Path(directory), Ranks())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without flock
            taken.acquire()
        job.pause("taken")

    with job(program) as owner:
        assert owner.receive() == "taken"
        yield owner


class Clock:
    """A clock that advances only by ``sleep``."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.while_asleep = lambda: None
        monkeypatch.setattr(lock, "monotonic", lambda: self.now)
        monkeypatch.setattr(lock, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds
        self.while_asleep()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


# Two jobs


def test_second_job_is_refused_and_the_first_is_unaffected(tmp_path):
    def program(job):
        trainer = trainer_of(tmp_path)
        trainer.add_event_handler(Events.STARTED, lambda: job.pause("runs"))
        job.pause("ready")
        try:
            trainer.run()
        except RuntimeError as error:
            job.send([str(error), trainer.state.iteration])

    with job(program) as one, job(program) as two:
        assert [each.receive() for each in (one, two)] == ["ready", "ready"]
        one.proceed(), two.proceed()
        heard = {each: each.receive() for each in (one, two)}
        (winner,) = (each for each, what in heard.items() if what == "runs")
        (loser,) = (each for each in heard if each is not winner)
        message, iteration = heard[loser]
        assert BUSY in message
        assert f"got {tmp_path}, which is written to by process {winner.pid} on " in message
        assert 'on_busy="wait"' in message
        assert iteration == 0
        winner.proceed()
        assert (winner.end(), loser.end()) == (0, 0)
    assert steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:resumed from")  # of random numbers that workers draw
def test_requeued_job_waits_and_resumes_the_last_save(tmp_path, monkeypatch, caplog):
    # A surviving worker of the killed job must not keep its lock.
    data = DataLoader(samples(8), 2, num_workers=1, multiprocessing_context="fork")

    def program(job):
        trainer = trainer_of(tmp_path, data=data)

        def pause():
            (worker,) = multiprocessing.active_children()
            job.pause(worker.pid)

        trainer.add_event_handler(Events.ITERATION_STARTED(once=3), pause)
        trainer.run()

    with job(program) as dying:
        worker = dying.receive()
        monkeypatch.setattr(lock, "sleep", lambda seconds: dying.kill())
        trainer = trainer_of(tmp_path, data=data, resumes=True, on_busy="wait")
        os.kill(worker, 0)
        assert trainer.state.optimizer_step == 2
        trainer.run(max_epochs=1)
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    assert steps(tmp_path) == [1, 2, 3, 4]
    (message,) = caplog.messages
    assert f"is written to by process {dying.pid}" in message
    assert "waits without a time limit" in message


def test_wait_ends_at_its_limit_with_an_error(tmp_path, clock, caplog):
    refusal = pytest.raises(RuntimeError, match=rf"{BUSY}.*is still written to by .* after 30 s")
    with owner_of(tmp_path), refusal:
        trainer_of(tmp_path, on_busy="wait", wait_seconds=30)
    assert clock.now == 30
    assert len(caplog.messages) == 1


@pytest.fixture
def ctrl_c():
    """Sets the default handler of SIGINT, which a process started in the background ignores."""
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, found)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_ends_the_wait_of_a_run(tmp_path, clock, name, ctrl_c):
    trainer = trainer_of(tmp_path, on_busy="wait", on_signals=("SIGTERM",))
    batches = []
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: batches.append(1))
    clock.while_asleep = lambda: os.kill(os.getpid(), signal.Signals[name])
    with owner_of(tmp_path):
        if name == "SIGINT":
            with pytest.raises(KeyboardInterrupt):
                trainer.run()
        else:
            trainer.run()
            assert trainer.stop_reason == "SIGTERM"
    assert (batches, steps(tmp_path)) == ([], [])
    assert is_free(tmp_path)


def test_wait_seconds_needs_on_busy_wait(tmp_path):
    with pytest.raises(ValueError, match=r"`wait_seconds` must be given with on_busy=\"wait\""):
        SaveCheckpoint(tmp_path, wait_seconds=5)


@pytest.mark.parametrize("on_busy", ["error", "wait"])
def test_resume_that_is_outdated_by_another_save_is_refused(tmp_path, on_busy):
    trainer_of(tmp_path).run(max_steps=1)
    late = trainer_of(tmp_path, resumes=True, on_busy=on_busy)
    trainer_of(tmp_path, resumes=True).run(max_steps=2)
    with pytest.raises(RuntimeError, match="another run saved after this trainer was made"):
        late.run(max_steps=3)
    trainer_of(tmp_path, resumes=True).run(max_steps=3)
    assert steps(tmp_path) == [1, 2, 3]


# In one process


@pytest.mark.parametrize("spelling", ["plain", "relative", "link"])
@pytest.mark.parametrize("on_busy", ["error", "wait"])
def test_error_names_another_trainer_of_the_same_process(tmp_path, monkeypatch, on_busy, spelling):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("saved")
    name = {"plain": tmp_path / "saved", "relative": "saved", "link": tmp_path / "link"}[spelling]
    first, second = trainer_of(tmp_path / "saved"), trainer_of(name, on_busy=on_busy)
    seen = []

    def nested():
        with pytest.raises(RuntimeError, match=rf"{BUSY}.*another trainer .* in this process"):
            second.run()
        seen.append(second.state.iteration)

    first.add_event_handler(Events.ITERATION_COMPLETED(once=2), nested)
    first.run()
    assert seen == [0]
    assert steps(tmp_path / "saved") == [1, 2, 3, 4]


def test_sequential_runs_of_one_process_share_a_directory(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.run(max_epochs=1)
    trainer_of(tmp_path, resumes=True).run(max_epochs=2)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_trainer_with_two_directories_holds_both(tmp_path):
    trainer = trainer_of(tmp_path / "one")
    SaveCheckpoint(tmp_path / "two", every_steps=2).attach(trainer)
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=3),
        lambda: seen.extend(is_free(tmp_path / name) for name in ("one", "two")),
    )
    trainer.run()
    assert seen == [False, False]
    assert is_free(tmp_path / "one")
    assert is_free(tmp_path / "two")


def test_interrupted_run_keeps_its_directory(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run()
    assert not is_free(tmp_path)
    trainer.run()
    assert is_free(tmp_path)
    assert steps(tmp_path) == [1, 2, 3, 4]


def fail(trainer):
    raise Failure


def press_ctrl_c(trainer):
    raise KeyboardInterrupt


def exit_program(trainer):
    raise SystemExit


def terminate(trainer):
    trainer.terminate()


def send_sigterm(trainer):
    os.kill(os.getpid(), signal.SIGTERM)


def end_normally(trainer):
    pass


MANUAL_SAVE = "manual save"
WAYS_OUT = [end_normally, terminate, send_sigterm, fail, press_ctrl_c, exit_program]


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("way_out", WAYS_OUT)
def test_every_end_of_a_run_releases_the_lock(tmp_path, way_out, background):
    trainer = trainer_of(tmp_path, background=background)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), way_out, trainer)
    with suppress(Failure, KeyboardInterrupt, SystemExit):
        trainer.run()
    assert trainer.state.iteration >= 1
    assert is_free(tmp_path)


def test_ctrl_c_during_the_release_still_releases_the_lock(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    write, left = lock._LockFile._write, [1]

    def broken_off(file, owner):
        if owner.is_released and left:
            left.pop()
            raise KeyboardInterrupt
        write(file, owner)

    monkeypatch.setattr(lock._LockFile, "_write", broken_off)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert (left, is_free(tmp_path)) == ([], True)
    trainer.run(max_epochs=2)
    assert steps(tmp_path)[-1] == 8


@pytest.mark.parametrize("way", ["garbage", "removal"])
def test_deleted_interrupted_trainer_releases_the_lock(tmp_path, way):
    trainer = make_trainer(batches_of(4))
    attachment = SaveCheckpoint(tmp_path, every_steps=1).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run()
    if way == "removal":
        attachment.remove()
    else:
        del trainer, attachment
        gc.collect()
    assert is_free(tmp_path)


@pytest.mark.filterwarnings("ignore:.*checkpoints of other runs")
def test_recreated_trainer_takes_over_from_an_interrupted_one(tmp_path):
    """Running the cell of a notebook twice creates a trainer twice."""
    gc.disable()
    try:
        for once in (2, 3):
            trainer = trainer_of(tmp_path)
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=once), trainer.interrupt)
            trainer.run()
    finally:
        gc.enable()
    assert trainer.state.iteration == 3
    other = trainer_of(tmp_path)
    with pytest.raises(
        RuntimeError, match=r"if it is interrupted, call terminate\(\) and then run"
    ):
        other.run()
    trainer.terminate()
    trainer.run()
    other.run()


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_save_between_runs_takes_and_releases_the_lock(tmp_path, background):
    trainer = make_trainer(batches_of(4))
    save = SaveCheckpoint(tmp_path, background=background)
    trainer.run(max_steps=2)
    with owner_of(tmp_path), pytest.raises(RuntimeError, match=BUSY):
        save(trainer)
    assert steps(tmp_path) == []
    save(trainer)
    assert steps(tmp_path) == [2]
    assert is_free(tmp_path)


# A forked process


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("action", [end_normally, fail, terminate, MANUAL_SAVE])
def test_forked_process_neither_writes_nor_releases_the_lock(tmp_path, action, background):
    """A handler or a data set may fork, and the child may return from the run."""

    def program(job):
        trainer = make_trainer(batches_of(4))
        save = SaveCheckpoint(tmp_path, every_steps=1, keep_last=1, background=background)
        save.attach(trainer)

        def fork():
            while steps(tmp_path) != [1]:  # a thread may be writing it still
                pass
            before = contents(tmp_path)
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                job.send([contents(tmp_path) == before, is_free(tmp_path)])
            elif action == MANUAL_SAVE:
                trainer.interrupt()
            else:
                action(trainer)

        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), fork)
        parent = os.getpid()
        trainer.run()
        if os.getpid() != parent:
            save(trainer)
        job.send("ended")

    def contents(directory):
        """Returns all files except the lock, whose heartbeat may change."""
        paths = [path for path in directory.rglob("*") if path.name != LOCK_NAME]
        return sorted((str(path), path.read_bytes()) for path in paths if path.is_file())

    with job(program) as started:
        refusal = started.receive()
        if action is fail:
            assert refusal == "Failure: "
        else:
            assert "must be saved by the process that began the run" in refusal
        assert started.receive() == [True, False]
        assert started.receive() == "ended"
        assert started.end() == 0
    assert steps(tmp_path) == [4]


# Other machines, and file systems without flock


def write_record_of_other_machine(directory, **changes):
    """Writes the record of an owner on another machine to the lock file."""
    # The time is fixed: a record that changes with the clock would be taken for a heartbeat.
    owner = replace(
        Owner.of_this_process(),
        token="other",
        host="node7",
        boot="b",
        pid=77,
        since="2026-01-02 03:04:05+00:00",
    )
    Path(directory, LOCK_NAME).write_bytes(replace(owner, **changes).dumps())


@pytest.mark.parametrize("on_busy", ["error", "wait"])
def test_owner_on_another_machine_with_heartbeat_is_alive(tmp_path, clock, on_busy):
    trainer = trainer_of(tmp_path, on_busy=on_busy, wait_seconds=90 if on_busy == "wait" else None)
    write_record_of_other_machine(tmp_path)
    clock.while_asleep = lambda: write_record_of_other_machine(tmp_path, beat=int(clock.now) // 10)
    with pytest.raises(RuntimeError, match=rf"{BUSY}.*process 77 on node7 .owner since"):
        trainer.run()
    assert trainer.state.iteration == 0
    assert clock.now == (10 if on_busy == "error" else 90)


@pytest.mark.parametrize("dies_at", [0, 45])
@pytest.mark.parametrize(
    "changes",
    [{}, {"host": Owner.of_this_process().host}, {"boot": Owner.of_this_process().boot}],
    ids=["other machine", "same name", "same kernel"],
)
def test_owner_on_another_machine_is_stale_after_a_minute(tmp_path, clock, changes, dies_at):
    trainer = trainer_of(tmp_path, on_busy="wait")
    write_record_of_other_machine(tmp_path, **changes)

    def beat():
        if clock.now <= dies_at:
            write_record_of_other_machine(tmp_path, **changes, beat=int(clock.now) // 10)

    clock.while_asleep = beat
    trainer.run()
    assert 60 <= clock.now - dies_at // 10 * 10 < 62
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_restart_on_another_machine_waits_a_minute_by_default(tmp_path, clock, caplog):
    write_record_of_other_machine(tmp_path)
    trainer_of(tmp_path).run()
    assert 60 <= clock.now < 62
    assert "was not released by process 77 on node7" in caplog.text


@pytest.mark.parametrize("content", ["released", "empty", "zeros"])
def test_released_lock_is_free_at_once(tmp_path, clock, content):
    write_record_of_other_machine(tmp_path, is_released=True)
    if content != "released":
        (tmp_path / LOCK_NAME).write_bytes(b"\0" * 512 if content == "zeros" else b"")
    trainer_of(tmp_path).run()
    assert clock.now == 0


@pytest.fixture(params=[errno.ENOLCK, errno.ENOTSUP, None])
def no_flock(request, monkeypatch):
    if request.param is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:

        def flock(descriptor, operation):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(lock.fcntl, "flock", flock)


def test_without_flock_the_record_decides(tmp_path, clock, no_flock):
    with owner_of(tmp_path) as owner:
        trainer = trainer_of(tmp_path)
        refusal = pytest.raises(RuntimeError, match=rf"{BUSY}.*process {owner.pid} ")
        with pytest.warns(UserWarning, match="has no flock"), refusal:
            trainer.run()
        owner.kill()
        trainer.run()  # the owner is dead; the warning is not repeated
    assert clock.now < 2
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_without_flock_the_later_of_two_simultaneous_owners_wins(tmp_path, clock, no_flock):
    trainer = trainer_of(tmp_path)
    clock.while_asleep = lambda: write_record_of_other_machine(tmp_path)
    refusal = pytest.raises(RuntimeError, match=rf"{BUSY}.*process 77 on node7.*same time")
    with pytest.warns(UserWarning, match="has no flock"), refusal:
        trainer.run()
    assert json.loads((tmp_path / LOCK_NAME).read_bytes())["host"] == "node7"


# A lock that is lost


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
@pytest.mark.parametrize("where", ["in the file", "in a new directory"])
def test_run_that_lost_its_lock_stops_writing(tmp_path, where, background):
    """A run that was suspended for long may lose its lock to another machine."""
    directory = tmp_path / "saved"
    trainer = trainer_of(directory, every_steps=2, at_end=False, background=background)

    def lose_lock():
        while steps(directory) != [2]:  # a thread may be writing it still
            pass
        if where == "in a new directory":
            shutil.rmtree(directory)
            (directory / "step_00000009").mkdir(parents=True)
            (directory / "step_00000009" / "incomplete.json").touch()
        write_record_of_other_machine(directory)

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lose_lock)
    with pytest.raises(RuntimeError, match=r"no longer this run's: process 77 on node7"):
        trainer.run()
    left = sorted(path.name for path in directory.glob("step_*"))
    assert left == (["step_00000002"] if where == "in the file" else ["step_00000009"])
    assert json.loads((directory / LOCK_NAME).read_bytes())["host"] == "node7"


def test_save_during_which_the_lock_is_lost_is_not_committed(tmp_path, monkeypatch):
    begin = CheckpointStore.begin

    def lose_lock(store, step):
        folder = begin(store, step)
        write_record_of_other_machine(tmp_path)
        return folder

    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(CheckpointStore, "begin", lose_lock)
    with pytest.raises(RuntimeError, match=r"no longer this run's: process 77 on node7"):
        trainer.run()
    assert steps(tmp_path) == []


def test_run_that_lost_its_lock_does_not_amend_manifests(tmp_path):
    trainer = trainer_of(tmp_path, every_steps=2)

    def lose_lock():
        write_record_of_other_machine(tmp_path)
        trainer.terminate()

    trainer.add_event_handler(TrainEvents.CHECKPOINT_SAVED, lose_lock)
    with pytest.raises(RuntimeError, match=r"no longer this run's: process 77 on node7"):
        trainer.run()
    (saved,) = CheckpointStore(tmp_path).checkpoints()
    assert saved.manifest.ended_by is None


def test_manual_save_recreates_a_removed_directory(tmp_path):
    trainer = make_trainer(batches_of(4))
    save = SaveCheckpoint(tmp_path / "saved")
    save.attach(trainer)
    (tmp_path / "saved").rmdir()
    save(trainer)
    assert steps(tmp_path / "saved") == [0]


def test_unwritable_lock_file_is_an_error_that_names_it(tmp_path):
    # A folder takes the place of a file of another user, which root could write to.
    (tmp_path / LOCK_NAME).mkdir()
    trainer = trainer_of(tmp_path)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=rf"must have a file {LOCK_NAME} .* the right to write"
        ):
            trainer.run()
    assert steps(tmp_path) == []


def test_removed_lock_file_is_recreated(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=2), lambda: (tmp_path / LOCK_NAME).unlink()
    )
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=4), lambda: seen.append(is_free(tmp_path))
    )
    trainer.run()
    assert (seen, steps(tmp_path)) == ([False], [1, 2, 3, 4])


def test_owner_writes_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_HEARTBEAT_SECONDS", 0.001)
    with owner_of(tmp_path):
        beats = set()
        while len(beats) < 3:
            beats.add(json.loads((tmp_path / LOCK_NAME).read_bytes())["beat"])
