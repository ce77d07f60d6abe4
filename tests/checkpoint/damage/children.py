"""What a child of the nursery can do."""

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
from ignite_hooks.core.handler import attached
from tests.checkpoint.damage.nursery import pause
from tests.checkpoint.damage.nursery import serve
from tests.checkpoint.damage.nursery import tell
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
"""Functions in C that a save is made of. The moment before each counts, and the one after it."""


def train(directory, killed_at=None, counted_from=None, limits=None, **saving):
    """Goes on with what is there until it ends. All that warns is an error."""
    if killed_at is not None and counted_from is None:
        kill_at(killed_at)
    trainer = trainer_of(directory, **saving)
    tell(resumed=trainer.state.optimizer_step)
    tell_of_saves(trainer)
    if counted_from is not None:
        event = Events.ITERATION_STARTED(once=counted_from)
        trainer.add_event_handler(event, lambda: kill_at(killed_at))
    trainer.run(**(limits or {"max_epochs": EPOCHS}))
    tell(weights=weights(trainer.model).tolist())


def kill_at(number):
    """Has this process killed at the ``number``-th of those moments, in whichever thread."""
    left = [number]

    def count(frame, event, function):
        if event in ("c_call", "c_return") and function.__name__ in CALLS:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(count)
    sys.setprofile(count)


def tell_of_saves(trainer):
    (saver,) = attached(trainer, SaveCheckpoint)

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def tell_step():
        tell(saved=int(saver.last_checkpoint.name.removeprefix("step_").split("-")[0]))


def train_with_pauses(directory, pauses, has_own=False, epochs=EPOCHS, **saving):
    """Pauses at each of ``pauses``, "iteration", "validation" or "save" with its number."""
    seen = []
    if has_own:
        signal.signal(signal.SIGTERM, lambda *_: seen.append("own"))
    before = signal.getsignal(signal.SIGTERM)
    trainer = trainer_of(directory, on_signals=("SIGTERM",), **saving)
    tell_of_saves(trainer)
    for where, number in pauses:
        PAUSES[where](trainer, number)
    trainer.run(max_epochs=epochs)
    tell(
        weights=weights(trainer.model).tolist(),
        stop_reason=trainer.stop_reason,
        step=trainer.state.optimizer_step,
        is_restored=signal.getsignal(signal.SIGTERM) is before,
        own=len(seen),
    )


def train_with_workers(directory, pauses=(), signals=(), method="fork", dies=False, **loading):
    """Trains in a process group of its own, with workers, and pauses at some iterations."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    data = LoaderProcesses(augmented=augmented().dataset, dies=dies)
    workers = 2 if method == "fork" else 1  # others import for seconds
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
        tell(stop_reason=trainer.stop_reason, step=trainer.state.optimizer_step)


class LoaderProcesses(Dataset):
    """Samples without noise. A worker that ``dies`` ignores no signal."""

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
    """In the first fsync of the save of that step, in whichever thread."""
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
    """In the save of ``step`` the file ``name`` cannot grow beyond 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer = trainer_of(directory, **saving)
    patched = pytest.MonkeyPatch()
    limit_when_written(patched, name, step)
    try:
        trainer.run(max_epochs=EPOCHS)
    except Exception as error:
        tell(error=[type(error).__name__, str(error)])
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    patched.undo()
    tell(then=whole_steps(directory), folders=len(folders(directory)))
    trainer.run(max_epochs=EPOCHS)
    tell(step=trainer.state.optimizer_step)


def limit_when_written(patched, name, step):
    """Sets the limit when that file is about to be written."""

    def limit(written_name, written_step):
        if (written_name, written_step) == (name, step):
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))

    for kind in (Tensors, Objects):

        def write(content, path, write=kind.write):
            limit(path.name, int(path.parent.name.removeprefix("step_")))
            write(content, path)

        patched.setattr(kind, "write", write)

    def dumps(manifest, dumps=Manifest.dumps):
        limit("incomplete.json", manifest.step)
        return dumps(manifest)

    patched.setattr(Manifest, "dumps", dumps)


def save_and_prune(directory):
    """Saves after each step, and keeps the newest only, until it is killed."""
    trainer = trainer_of(directory, keep_last=1)
    trainer.add_event_handler(Events.STARTED, lambda: tell(started=True))
    trainer.run(max_steps=10**9)


def warm_up():
    """Imports what is imported at first use, which takes two seconds."""
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
