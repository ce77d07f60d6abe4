import errno
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
import torch
from ignite.engine import Events
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.checkpoint import writer as writer_module
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.checkpoint.store import find_problems
from ignite_hooks.checkpoint.writer import BackgroundWriter
from ignite_hooks.checkpoint.writer import CheckpointWriter
from tests.benchmarks.calls import SaveProfile
from tests.ids import stable_id
from tests.reference import augmented
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import weights


class Failure(Exception):
    pass


class Disk:
    """A disk that can be slow or full for the thread that writes, or full for the main thread."""

    def __init__(self):
        self.is_full_for = None
        self.callback = None
        self.may_write = threading.Event()
        self.may_write.set()

    def fsync(self, descriptor):
        here = "thread" if is_writer(threading.current_thread()) else "main"
        if here == "thread":
            assert self.may_write.wait(60)
            callback, self.callback = self.callback, None
            if callback is not None:
                callback()
        if self.is_full_for == here:
            raise OSError(errno.ENOSPC, "No space left on device")

    def stall(self):
        self.may_write.clear()

    def finish(self):
        """Waits until nothing is being written any more."""
        self.may_write.set()
        for thread in writing():
            thread.join()


@pytest.fixture(autouse=True)
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    yield disk
    disk.finish()


def is_writer(thread):
    return thread.name == "ignite_hooks.checkpoint"


def writing():
    return [thread for thread in threading.enumerate() if is_writer(thread)]


def trainer_of(checkpoint=None, **options):
    """Returns a trainer with dropout, shuffling and augmentation; five batches make three steps."""
    seed()
    return make_trainer(
        augmented(),
        accumulation=2,
        dropout=0.5,
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.5),
        checkpoint=checkpoint,
        **options,
    )


def in_background(directory, **schedule):
    schedule = {"keep_last": "all", "at_end": False, **schedule}
    return SaveCheckpoint(directory, background=True, **schedule)


def steps(directory):
    """Returns the steps of the checkpoints in the order of their commits; all must be whole."""
    checkpoints = CheckpointStore(directory).checkpoints()
    assert not any(find_problems(checkpoint) for checkpoint in checkpoints)
    return [checkpoint.manifest.step for checkpoint in reversed(checkpoints)]


def at_iteration(trainer, number, callback, event=Events.ITERATION_COMPLETED):
    trainer.add_event_handler(event(once=number), lambda: callback())


def announced(trainer):
    """Returns a list that gets the iteration and the folder of each CHECKPOINT_SAVED."""
    seen = []
    (handler,) = [a.handler for a in trainer._ignite_hooks["attachments"] if is_saving(a.handler)]
    trainer.add_event_handler(
        TrainEvents.CHECKPOINT_SAVED,
        lambda: seen.append((trainer.state.iteration, handler.last_checkpoint.name)),
    )
    return seen


def is_saving(handler):
    return isinstance(handler, SaveCheckpoint)


# What a checkpoint says of itself


def test_manifest_has_the_position_in_the_run(tmp_path):
    validation = Validation(lambda: {"steps": torch.tensor(0.5)}, every_steps=1)
    handler = SaveCheckpoint(tmp_path, every_steps=2, at_end=False, metric="val_steps")
    trainer_of(handler, validation=validation).run(max_epochs=2)
    checkpoints = reversed(CheckpointStore(tmp_path).checkpoints())
    two, four, six = [checkpoint.manifest for checkpoint in checkpoints]
    for manifest, step, epoch, iteration, batches in (
        (two, 2, 0, 4, 4),
        (four, 4, 1, 7, 2),
        (six, 6, 2, 10, 0),
    ):
        found = (manifest.step, manifest.epoch, manifest.iteration, manifest.batches)
        assert found == (step, epoch, iteration, batches)
        assert manifest.data_pass == epoch
        assert (manifest.metric, manifest.metric_value) == ("val_steps", 0.5)
        assert manifest.world_size == 1
        assert manifest.saved_at.tzinfo is not None
    assert [each.number for each in (two, four, six)] == [1, 2, 3]
    assert {"python", "torch", "accelerate", "pytorch-ignite", "ignite-hooks"} <= set(two.versions)


def test_every_file_of_the_folder_is_in_the_manifest(tmp_path):
    trainer_of(SaveCheckpoint(tmp_path)).run()
    (checkpoint,) = CheckpointStore(tmp_path).checkpoints()
    names = {path.name for path in checkpoint.folder.iterdir()}
    assert names == {*checkpoint.manifest.files, "manifest.json"}
    assert {"model.safetensors", "optimizer.bin", "scheduler.bin", "rank_00000.pt"} <= names


def test_same_position_is_saved_once(tmp_path):
    trainer, folders = trainer_of(), []
    writer = CheckpointWriter(SaveCheckpoint(tmp_path), trainer, folders.append)
    writer.note_start(trainer)
    writer.save(trainer)
    assert folders == []  # nothing has moved
    trainer.run()
    writer.save(trainer)
    writer.save(trainer)
    assert [folder.name for folder in folders] == ["step_00000003"]
    writer.note_start(trainer)
    writer.save(trainer)
    assert len(folders) == 1


def test_save_of_a_small_model_makes_few_calls(tmp_path):
    """A save makes about 1,070 calls in the package and 4,500 in all, half in torch.save."""
    profile = SaveProfile(tmp_path)
    assert profile.of_package.total() < 1080
    assert profile.of_all.total() < 5500
    # The new folder and its directory, four files, their folder, the manifest, its renaming; then
    # the former folder once it is no checkpoint, its files, and the directory again.
    assert profile.fsyncs == 12


# Saves that fail


@pytest.mark.parametrize("background", [False, True])
def test_failed_save_keeps_the_older_one_and_leaves_no_files(tmp_path, disk, background):
    schedule = {"keep_last": 1, "every_steps": 1, "background": background}
    trainer = trainer_of(SaveCheckpoint(tmp_path, **schedule))
    seen = announced(trainer)

    def fill():
        disk.finish()
        disk.is_full_for = "thread" if background else "main"

    at_iteration(trainer, 4, fill, Events.ITERATION_STARTED)
    with pytest.raises(OSError, match="No space left"):
        trainer.run(max_epochs=1)
    assert trainer.stop_reason == "exception"
    assert [name for _, name in seen] == ["step_00000001"]
    assert steps(tmp_path) == [1]
    if background:  # where the folder itself could be made, it is taken away at once
        assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000001"]

    disk.is_full_for = None
    trainer.run(max_epochs=2)
    assert steps(tmp_path) == [6]
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000006"]


# In the background


def test_background_save_holds_the_state_of_its_step_boundary(tmp_path, disk):
    unbroken = trainer_of()
    unbroken.run(max_epochs=2)

    trainer = trainer_of(in_background(tmp_path, every_steps=100))
    handler = in_background(tmp_path / "one")
    handler.attach(trainer, TrainEvents.STEP_COMPLETED(once=2))
    disk.stall()
    at_iteration(trainer, 8, disk.finish)
    trainer.run(max_epochs=2)
    assert steps(tmp_path / "one") == [2]
    assert torch.equal(weights(trainer.model), weights(unbroken.model))

    seed(2)
    resumed = trainer_of(resume_from=tmp_path / "one")
    resumed.run(max_epochs=2)
    assert resumed.state.iteration == 10
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


def test_background_and_foreground_saves_write_equal_files(tmp_path, disk):
    for background in (False, True):
        directory = tmp_path / str(background)
        options = {"every_steps": 2, "at_end": False, "background": background}
        trainer = trainer_of(SaveCheckpoint(directory, **options))
        disk.stall()
        at_iteration(trainer, 5, disk.finish)
        trainer.run(max_epochs=1)
    one, other = (tmp_path / name / "step_00000002" for name in ("False", "True"))
    for path in one.iterdir():
        if path.name != "manifest.json":
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


class Growing:
    """An object whose state holds the very containers that it keeps changing."""

    def __init__(self):
        self.of_set, self.of_list, self.of_dict = set(), [], {}

    def add(self, number):
        self.of_set.add(number)
        self.of_list.append([number])
        self.of_dict[number] = torch.tensor(number)

    def state_dict(self):
        return {"set": self.of_set, "list": self.of_list, "dict": self.of_dict}

    def load_state_dict(self, state_dict):
        self.of_set, self.of_list = state_dict["set"], state_dict["list"]
        self.of_dict = state_dict["dict"]


def test_mutable_states_are_saved_as_they_were_at_the_boundary(tmp_path, disk):
    growing, again = Growing(), Growing()
    trainer = trainer_of(in_background(tmp_path, every_steps=2, also={"it": growing}))
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: growing.add(trainer.state.iteration)
    )
    disk.stall()
    at_iteration(trainer, 5, disk.finish)
    trainer.run(max_epochs=1)
    trainer_of(SaveCheckpoint(tmp_path, also={"it": again}), resume_from=tmp_path)
    assert again.of_list == [[1], [2], [3], [4]]
    assert {number: int(tensor) for number, tensor in again.of_dict.items()} == {
        number: number for number in range(1, 5)
    }
    assert again.of_set == {1, 2, 3, 4}


def test_background_save_leaves_the_disk_to_its_thread(tmp_path, disk):
    trainer = trainer_of(in_background(tmp_path, every_steps=1))
    at_iteration(trainer, 1, lambda: setattr(disk, "is_full_for", "main"))
    trainer.run(max_epochs=1)
    assert steps(tmp_path) == [1, 2, 3]


def test_background_save_is_announced_when_complete(tmp_path, disk):
    handler = in_background(tmp_path, every_steps=1)
    trainer = trainer_of(handler)
    seen, during = announced(trainer), []
    disk.stall()
    at_iteration(trainer, 3, lambda: during.append((steps(tmp_path), handler.last_checkpoint)))
    at_iteration(trainer, 4, disk.finish, Events.ITERATION_STARTED)
    at_iteration(trainer, 5, disk.finish, Events.ITERATION_STARTED)
    trainer.run(max_epochs=1)
    assert during == [([], None)]
    assert seen == [(4, "step_00000001"), (5, "step_00000002"), (5, "step_00000003")]
    assert handler.last_checkpoint == tmp_path / "step_00000003"


def test_end_of_a_run_waits_for_the_background_save(tmp_path, disk):
    trainer = trainer_of(in_background(tmp_path, at_end=True))
    seen = announced(trainer)
    disk.stall()
    trainer.add_event_handler(Events.COMPLETED, lambda: disk.may_write.set())
    trainer.run(max_epochs=1)
    assert seen == [(5, "step_00000003")]
    assert (steps(tmp_path), writing()) == ([3], [])


class Witness:
    """An object that notes at each save how many others are being written."""

    def __init__(self):
        self.seen = []

    def state_dict(self):
        self.seen.append(len(writing()))
        return {}

    def load_state_dict(self, state_dict):
        pass


def test_background_saves_are_written_one_at_a_time(tmp_path, disk):
    witness = Witness()
    trainer = trainer_of(in_background(tmp_path, every_steps=1, also={"witness": witness}))
    trainer.add_event_handler(Events.ITERATION_STARTED, disk.stall)
    # The writing continues just before the next save.
    trainer.add_event_handler(Events.ITERATION_COMPLETED, disk.may_write.set)
    trainer.run(max_epochs=1)
    assert steps(tmp_path) == [1, 2, 3]
    assert set(witness.seen) == {0}


def test_a_background_error_is_raised_at_a_later_step(tmp_path, disk):
    trainer = trainer_of(in_background(tmp_path, every_steps=2))
    disk.is_full_for = "thread"
    at_iteration(trainer, 5, disk.finish, Events.ITERATION_STARTED)
    with pytest.raises(OSError, match="No space left"):
        trainer.run(max_epochs=1)
    assert (trainer.state.iteration, trainer.state.epoch) == (5, 1)
    assert (steps(tmp_path), writing()) == ([], [])


def test_a_background_error_is_raised_at_the_next_save(tmp_path, disk):
    trainer, folders = trainer_of(), []
    writer = CheckpointWriter(in_background(tmp_path), trainer, folders.append)
    writer.lock.acquire()  # as a run does; else each save waits for its thread, and gives it back
    disk.is_full_for = "thread"
    trainer.run(max_steps=2)
    writer.save(trainer)
    trainer.run(max_steps=3)
    with pytest.raises(OSError, match="No space left"):
        writer.save(trainer)
    disk.is_full_for = None
    writer.save(trainer)
    writer.wait()
    assert (steps(tmp_path), [folder.name for folder in folders]) == ([3], ["step_00000003"])


def test_a_background_error_is_raised_at_the_end_of_the_run(tmp_path, disk):
    trainer = trainer_of(in_background(tmp_path, at_end=True))
    seen = announced(trainer)
    disk.is_full_for = "thread"
    with pytest.raises(OSError, match="No space left"):
        trainer.run(max_epochs=1)
    assert (seen, steps(tmp_path), writing()) == ([], [], [])


def test_a_background_error_is_noted_on_an_error_of_the_run(tmp_path, disk, caplog):
    trainer = trainer_of(in_background(tmp_path, every_steps=2))
    disk.is_full_for = "thread"

    def fail():
        disk.may_write.set()
        raise Failure

    at_iteration(trainer, 5, fail, Events.ITERATION_STARTED)
    disk.stall()
    with pytest.raises(Failure) as caught:
        trainer.run(max_epochs=1)
    notes = getattr(caught.value, "__notes__", caplog.messages)  # Python 3.10 has no notes
    assert any("checkpoint could not be written" in text and "No space" in text for text in notes)
    assert writing() == []


@pytest.mark.parametrize("end", ["failure", "interruption", "terminate"])
def test_no_thread_is_left_however_a_run_ends(tmp_path, disk, end):
    def fail():
        raise Failure

    trainer = trainer_of(in_background(tmp_path, every_steps=1))
    acts = {"failure": fail, "interruption": trainer.interrupt, "terminate": trainer.terminate}
    disk.stall()
    at_iteration(trainer, 3, disk.may_write.set, Events.ITERATION_STARTED)
    at_iteration(trainer, 3, acts[end])
    try:
        trainer.run(max_epochs=1)
    except Failure:
        assert end == "failure"
    assert (writing(), steps(tmp_path)) == ([], [1])


def test_the_save_for_a_signal_is_complete_before_the_run_ends(tmp_path, disk):
    trainer = trainer_of(in_background(tmp_path))
    seen = announced(trainer)
    found = signal.getsignal(signal.SIGTERM)
    at_iteration(trainer, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer.run(max_epochs=1)
    assert trainer.stop_reason == "SIGTERM"
    assert (seen, writing()) == ([(2, "step_00000001")], [])
    assert signal.getsignal(signal.SIGTERM) == found


def test_a_signal_during_the_last_save_does_not_lose_it(tmp_path, disk, monkeypatch):
    noted, found, join = [], signal.getsignal(signal.SIGTERM), threading.Thread.join

    def join_later(thread):  # the main thread waits from now on
        disk.callback = lambda: os.kill(os.getpid(), signal.SIGTERM)
        disk.may_write.set()
        join(thread)

    signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    trainer = trainer_of(in_background(tmp_path, at_end=True))
    disk.stall()
    monkeypatch.setattr(threading.Thread, "join", join_later)
    try:
        trainer.run(max_epochs=1)
    finally:
        signal.signal(signal.SIGTERM, found)
    assert (steps(tmp_path), trainer.stop_reason, noted) == ([3], "SIGTERM", [])


# The thread


def test_the_thread_of_a_call_has_ended_after_wait():
    writer, threads = BackgroundWriter(), []
    writer.start(lambda: threads.append(threading.current_thread()))
    assert writer.wait()
    assert threads[0] is not threading.main_thread()
    assert not threads[0].is_alive()
    assert not writer.is_busy


def test_the_writer_is_busy_until_the_call_is_done():
    writer, gate = BackgroundWriter(), threading.Event()
    assert not writer.is_busy
    writer.start(lambda: gate.wait(60))
    assert writer.is_busy
    gate.set()
    writer.wait()
    assert not writer.is_busy


def test_writer_waits_once_for_each_call():
    writer, done = BackgroundWriter(), []
    assert not writer.wait()
    for number in range(2):
        writer.start(lambda number=number: done.append(number))
        assert writer.wait()
        assert not writer.wait()
    assert done == [0, 1]


@pytest.mark.parametrize("failure", [Failure("full"), SystemExit(3)], ids=stable_id)
def test_a_failure_is_raised_once_and_the_next_call_can_begin(failure):
    def fail():
        raise failure

    writer, done = BackgroundWriter(), []
    writer.start(fail)
    with pytest.raises(type(failure)) as caught:
        writer.wait()
    assert caught.value is failure
    assert not writer.wait()
    writer.start(lambda: done.append(1))
    assert writer.wait()
    assert done == [1]


AT_THE_END = """
import sys
import threading
from pathlib import Path

from ignite_hooks.checkpoint.writer import BackgroundWriter

def call():
    threading.main_thread().join()  # the script is at its end
    Path(sys.argv[1]).write_text("whole")

"""


def test_the_interpreter_exits_when_the_call_is_done(tmp_path):
    start = "threading.Thread(target=BackgroundWriter().start, args=[call], daemon=True)"
    program = f"{AT_THE_END}thread = {start}\nthread.start()\nthread.join()\n"
    subprocess.run([sys.executable, "-c", program, tmp_path / "file"], check=True, timeout=120)
    assert (tmp_path / "file").read_text() == "whole"


def test_a_run_in_a_thread_saves_after_the_end_of_the_main_thread(tmp_path):
    program = f"""{AT_THE_END}
def run():
    threading.main_thread().join()
    writer = BackgroundWriter()
    writer.start(call)
    assert writer.wait()

threading.Thread(target=run).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "file"],
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "file").read_text() == "whole", done.stderr


def test_call_is_made_at_once_if_no_thread_can_start_at_exit(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    ended = threading.Thread()
    calls, writer = [], BackgroundWriter()
    monkeypatch.setattr(threading.Thread, "start", refuse)  # as Python 3.12
    with pytest.raises(RuntimeError, match="can't create"):  # the main thread has not ended
        writer.start(lambda: calls.append("never"))
    monkeypatch.setattr(writer_module, "main_thread", lambda: ended)
    for _ in range(2):
        writer.start(lambda: calls.append("made"))
        assert not writer.is_busy
        assert writer.wait()
        assert not writer.wait()
    assert calls == ["made"] * 2
    writer.start(fail_with(KeyError))
    with pytest.raises(KeyError):
        writer.wait()


def test_a_thread_that_cannot_start_leaves_nothing_to_wait_for(monkeypatch):
    writer = BackgroundWriter()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail_with(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.start(lambda: None)
    assert not writer.wait()


def test_ctrl_c_after_the_thread_started_loses_no_failure(monkeypatch):
    writer, start = BackgroundWriter(), threading.Thread.start

    def start_and_interrupt(thread):
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            writer.start(fail_with(Failure))
    with pytest.raises(Failure):
        writer.wait()


def fail_with(failure):
    def fail(*args):
        raise failure

    return fail


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("umask", [0o022, 0o007, 0o077])
def test_all_files_of_a_checkpoint_follow_the_umask(tmp_path, umask, background):
    before = os.umask(umask)
    try:
        options = {"background": background, "safe_serialization": True}
        trainer_of(SaveCheckpoint(tmp_path / "runs", **options)).run()
    finally:
        os.umask(before)
    (checkpoint,) = CheckpointStore(tmp_path / "runs").checkpoints()
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in checkpoint.folder.iterdir()}
    assert files == dict.fromkeys(files, 0o666 & ~umask)
    for folder in (checkpoint.folder, checkpoint.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask


def test_checkpoints_are_saved_without_file_modes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chmod", refuse)
    trainer_of(SaveCheckpoint(tmp_path)).run()
    assert steps(tmp_path) == [3]


def refuse(*arguments, **options):
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("every", ["every_steps", "every_epochs"])
def test_failure_after_the_commit_saves_the_step_once(tmp_path, monkeypatch, every):
    trainer = trainer_of(SaveCheckpoint(tmp_path, keep_last="all", at_end=False, **{every: 1}))
    seen, retain = announced(trainer), CheckpointStore.retain

    def interrupted(*arguments):
        monkeypatch.setattr(CheckpointStore, "retain", retain)
        raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointStore, "retain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(max_epochs=2)
    trainer.run(max_epochs=2)
    names = [
        f"step_{step:08d}" for step in ((1, 2, 3, 4, 5, 6) if every == "every_steps" else (3, 6))
    ]
    assert sorted(path.name for path in tmp_path.glob("step_*")) == names
    assert [name for _, name in seen] == names
