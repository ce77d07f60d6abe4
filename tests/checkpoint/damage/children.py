"""The programs that a child of the nursery can run."""

import os
import resource
import signal
import sys
import tempfile
import threading
import warnings

import pytest
import torch
from accelerate import PartialState
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.contents import Tensors
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.core.handler import attached_handlers
from tests.checkpoint.damage.nursery import pause
from tests.checkpoint.damage.nursery import report
from tests.checkpoint.damage.nursery import serve
from tests.checkpoint.damage.training import EPOCHS
from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import trainer_of
from tests.checkpoint.damage.training import whole_steps
from tests.reference import augmented
from tests.reference import make_trainer
from tests.reference import weights

CALLS = {
    *("open", "touch", "write", "write_bytes", "fsync", "close", "serialize_file"),
    *("mkdir", "replace", "unlink", "rmdir", "utime"),
}
"""The C functions that a save calls. A kill can come right before or after each call."""


def train(directory, killed_at=None, counted_from=None, limits=None, **saving):
    """Resumes the training in ``directory`` and trains to the end. Each warning is an error."""
    if killed_at is not None and counted_from is None:
        kill_at(killed_at)
    trainer = trainer_of(directory, **saving)
    report(resumed=trainer.state.optimizer_step)
    report_saves(trainer)
    if counted_from is not None:
        event = Events.ITERATION_STARTED(once=counted_from)
        trainer.add_event_handler(event, lambda: kill_at(killed_at))
    trainer.run(**(limits or {"max_epochs": EPOCHS}))
    report(weights=weights(trainer.model).tolist())


def kill_at(number):
    """Kills this process at the ``number``-th beginning or end of a call, in any thread."""
    left = [number]

    def count(frame, event, function):
        if event in ("c_call", "c_return") and function.__name__ in CALLS:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)


def report_saves(trainer):
    (saver,) = attached_handlers(trainer, SaveCheckpoint)

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def report_step():
        report(saved=int(saver.last_checkpoint.name.removeprefix("step_").split("-")[0]))


def train_with_pauses(directory, pauses, has_user_handler=False, epochs=EPOCHS, **saving):
    """Trains with pauses: each is "iteration", "validation" or "save", and a number."""
    seen = []
    if has_user_handler:
        signal.signal(signal.SIGTERM, lambda *_: seen.append("own"))
    before = signal.getsignal(signal.SIGTERM)
    trainer = trainer_of(directory, on_signals=("SIGTERM",), **saving)
    report_saves(trainer)
    for where, number in pauses:
        PAUSES[where](trainer, number)
    trainer.run(max_epochs=epochs)
    report(
        weights=weights(trainer.model).tolist(),
        stop_reason=trainer.stop_reason,
        step=trainer.state.optimizer_step,
        is_restored=signal.getsignal(signal.SIGTERM) is before,
        own=len(seen),
    )


def train_with_workers(directory, pauses=(), signals=(), method="fork", dies=False, **loading):
    """Trains with workers in a new process group, and pauses at some iterations."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    data = LoaderProcesses(augmented=augmented().dataset, dies=dies)
    workers = 2 if method == "fork" else 1  # a worker that is not forked imports for seconds
    loader = DataLoader(data, 2, num_workers=workers, multiprocessing_context=method, **loading)
    trainer = make_trainer(
        loader,
        accumulation=2,
        checkpoint=SaveCheckpoint(directory, at_end=False, on_signals=signals),
    )
    for number in pauses:
        pause_at_iteration(trainer, number)
    try:
        trainer.run(max_epochs=EPOCHS)
    finally:
        report(stop_reason=trainer.stop_reason, step=trainer.state.optimizer_step)


class LoaderProcesses(Dataset):
    """Samples without noise. With ``dies``, SIGTERM kills the workers."""

    def __init__(self, augmented, dies):
        self.x, self.y, self.dies = augmented.x, augmented.y, dies

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        if self.dies:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return self.x[index], self.y[index]


def pause_at_iteration(trainer, number):
    event = Events.ITERATION_STARTED(once=number)
    trainer.add_event_handler(event, pause, f"iteration {number}")


def pause_in_validation(trainer, step):
    Validation(lambda: pause(f"validation {step}"), every_steps=step).attach(trainer)


def pause_in_save(trainer, step):
    """Pauses in the first fsync of the save of a step, in any thread."""
    fsync = os.fsync

    def paused(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"/step_{step:08d}"):
            os.fsync = fsync
            pause(f"save {step}")
        fsync(descriptor)

    os.fsync = paused


PAUSES = {
    "iteration": pause_at_iteration,
    "validation": pause_in_validation,
    "save": pause_in_save,
}


def train_limited(directory, name, step, **saving):
    """Trains with a limit of 100 bytes for the file ``name`` in the save of ``step``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = trainer_of(directory, **saving)
    patched = pytest.MonkeyPatch()
    limit_file_size(patched, name, step)
    try:
        trainer.run(max_epochs=EPOCHS)
    except Exception as error:
        report(error=[type(error).__name__, str(error)])
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    patched.undo()
    report(then=whole_steps(directory), folders=len(folders(directory)))
    trainer.run(max_epochs=EPOCHS)
    report(step=trainer.state.optimizer_step)


def limit_file_size(patched, name, step):
    """Sets the limit right before the file is written."""

    def limit(written_name, written_step):
        if (written_name, written_step) == (name, step):
            _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard_limit))

    for content_class in (Tensors, Objects):

        def write(content, path, write=content_class.write):
            limit(path.name, int(path.parent.name.removeprefix("step_")))
            write(content, path)

        patched.setattr(content_class, "write", write)

    def dumps(manifest, dumps=Manifest.dumps):
        limit("incomplete.json", manifest.step)
        return dumps(manifest)

    patched.setattr(Manifest, "dumps", dumps)


def save_and_prune(directory):
    """Trains until it is killed; saves each step and keeps only the newest checkpoint."""
    trainer = trainer_of(directory, keep_last=1)
    trainer.add_event_handler(Events.STARTED, lambda: report(started=True))
    trainer.run(max_steps=10**9)


def warm_up():
    """Trains once, for the imports on first use, which take two seconds."""
    with tempfile.TemporaryDirectory() as directory:
        for epochs in (1, 2):
            trainer_of(directory).run(max_epochs=epochs)


PROGRAMS = (train, train_with_pauses, train_with_workers, train_limited, save_and_prune)

if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    PartialState(cpu=True)
    warm_up()
    serve({each.__name__: each for each in PROGRAMS})
