"""Checkpoints of two processes: saved and resumed at every step, and failures of one of them."""

import errno
import fcntl
import os
import random
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from ignite.engine import Events
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import lock
from ignite_hooks.checkpoint import resume
from ignite_hooks.checkpoint import triggers
from ignite_hooks.checkpoint.lock import LOCK_NAME
from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.checkpoint.remote import RemoteSource
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.checkpoint.damage.training import folders
from tests.checkpoint.damage.training import whole_steps
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.reference import augmented
from tests.reference import make_model
from tests.reference import seed
from tests.reference import weights

EPOCHS = 2
STEPS = 6
"""10 batches in all, 5 for each process, and 2 of them to a window."""


def rank():
    return PartialState().process_index


def directory_of(name):
    """Returns a directory that both processes see."""
    return Path(sys.argv[1]) / f"{name} checkpoints"


def trainer_of(directory=None, resume_from=None, number=1, verify=True, **options):
    """A trainer of a script that seeds its two processes differently."""
    options = {"every_steps": 1, "keep_last": "all", "on_signals": (), **options}
    model = make_model(dropout=0.5)
    seed(10 * number + rank())
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.nn.functional.mse_loss,
        augmented(10),
        accelerator=accelerator(2),
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
        checkpoint=None if directory is None else SaveCheckpoint(directory, **options),
        resume_from=resume_from and ResumeCheckpoint(resume_from, verify=verify),
    )


@cache
def unbroken():
    trainer = trainer_of()
    trainer.run(max_epochs=EPOCHS)
    return weights(trainer.model)


def resuming_exactly(name, **options):
    directory, final, exact = directory_of(name), unbroken(), []
    trainer = trainer_of(directory, **options)
    trainer.run(max_epochs=EPOCHS)
    exact.append(torch.equal(weights(trainer.model), final))
    for step in whole_steps(directory):
        trainer = trainer_of(resume_from=directory / f"step_{step:08d}", number=2)
        exact.append(trainer.resume_report.is_exact and trainer.state.optimizer_step == step)
        trainer.run(max_epochs=EPOCHS)
        exact.append(torch.equal(weights(trainer.model), final))
    return {"exact": exact, "steps": whole_steps(directory)}


def resume_at_every_step():
    return resuming_exactly("every step")


class Seen:
    """An object whose state differs between the processes."""

    def __init__(self):
        self.sum, self.shared = 0.0, 0

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        self.shared += 1
        self.sum += float(engine.state.batch[0].sum())
        engine.state.metrics["seen"] = self.sum

    def state_dict(self):
        return {"sum": self.sum, "shared": self.shared}

    def load_state_dict(self, state_dict):
        self.sum, self.shared = state_dict["sum"], state_dict["shared"]


def each_process_gets_its_own_states_back():
    directory, also, handler = directory_of("own states"), Seen(), Seen()
    trainer = trainer_of(directory, also={"also": also})
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: also(trainer))
    handler.attach(trainer)
    trainer.run(max_epochs=EPOCHS)
    expected = [also.sum, handler.sum, trainer.state.metrics["seen"]]
    also, handler = Seen(), Seen()
    trainer = trainer_of(directory, number=2, also={"also": also})
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: also(trainer))
    handler.attach(trainer)
    ResumeCheckpoint(directory / "step_00000004").attach(trainer)
    restored = trainer.state.metrics["seen"]
    trainer.run(max_epochs=EPOCHS)
    return {
        "sums": [also.sum, handler.sum, trainer.state.metrics["seen"]],
        "expected": expected,
        "restored": restored,
        "shared": also.shared,
    }


def resume_at_every_step_in_the_background():
    return resuming_exactly("background", background=True)


def failing_on(failing_rank, name, *, background):
    """The save of step 2 fails on one process, in the fsync of a file of it."""
    directory = directory_of(name)
    trainer = trainer_of(directory, background=background)
    fsync, errors = os.fsync, []

    def failing(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if rank() == failing_rank and path.endswith(f"/step_00000002/rank_0000{rank()}.pt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        try:
            trainer.run(max_steps=2)
        except (OSError, RuntimeError) as error:
            errors.append([type(error).__name__, str(error)])
    torch.distributed.barrier()
    there = folders(directory)
    torch.distributed.barrier()
    trainer.run(max_epochs=EPOCHS)
    resumed = trainer_of(resume_from=directory, number=2)
    resumed.run(max_epochs=EPOCHS)
    return {
        "errors": errors,
        "there": there,
        "steps": whole_steps(directory),
        "folders": len(folders(directory)),
        "same": torch.equal(weights(resumed.model), weights(trainer.model)),
    }


def failure_on_the_first():
    return failing_on(0, "first fails", background=False)


def failure_on_the_second():
    return failing_on(1, "second fails", background=False)


def failure_on_the_second_in_the_background():
    return failing_on(1, "second fails in the background", background=True)


def signalled(name, **options):
    directory, final = directory_of(name), unbroken()
    before = signal.getsignal(signal.SIGTERM)
    options = {"every_steps": None, "at_end": False, **options}
    trainer = trainer_of(directory, on_signals=("SIGTERM",), **options)
    if rank() == 1:
        event = Events.ITERATION_STARTED(once=3)
        trainer.add_event_handler(event, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer.run(max_epochs=EPOCHS)
    steps = whole_steps(directory)
    resumed = trainer_of(resume_from=directory, number=2)
    resumed.run(max_epochs=EPOCHS)
    return {
        "reason": trainer.stop_reason,
        "stopped": [trainer.state.optimizer_step, trainer.state.iteration],
        "steps": steps,
        "restored": signal.getsignal(signal.SIGTERM) is before,
        "exact": torch.equal(weights(resumed.model), final),
    }


def signal_to_one():
    return signalled("signal")


def signal_to_one_in_the_background():
    return signalled("signal in the background", background=True)


@contextmanager
def taken_by_another(directory):
    """Holds the lock of a directory as another run on the machine of rank 0 would."""
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    if rank() == 0:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        Ranks().gather(None)
        yield
    finally:
        os.close(descriptor)
        Ranks().gather(None)


def busy_directory():
    """Saves to a directory that only rank 0 sees to be busy; only rank 1 gets a signal to stop."""
    directory, found = directory_of("busy_directory"), {}
    trainer = trainer_of(directory)
    with taken_by_another(directory):
        with pytest.raises(RuntimeError) as caught:
            trainer.run()
        found["refused"] = [str(caught.value), trainer.state.iteration]
    with pytest.MonkeyPatch.context() as patched:
        waiting = trainer_of(directory, on_busy="wait", on_signals=("SIGTERM",))
        stop = (lambda seconds: os.kill(os.getpid(), signal.SIGTERM)) if rank() else time.sleep
        patched.setattr(lock, "sleep", stop)
        with taken_by_another(directory):
            waiting.run()
    found["stopped"] = [waiting.stop_reason, waiting.state.iteration]
    trainer.run(max_steps=2)
    return {**found, "steps": whole_steps(directory)}


def clock_of_one():
    """Hours pass at step 2 and at step 5, on one process only."""
    directory, now = directory_of("clock"), [0.0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(triggers, "monotonic", lambda: now[0])
        trainer = trainer_of(directory, every_steps=None, every_seconds=3600, at_end=False)

        @trainer.on(Events.ITERATION_STARTED)
        def pass_time():
            if rank() == 1 and trainer.state.iteration in (3, 8):
                now[0] += 4000

        trainer.run(max_epochs=EPOCHS)
    return {"steps": whole_steps(directory)}


def other_number_of_processes():
    trainer = trainer_of()
    before = weights(trainer.model)
    text = None
    try:
        ResumeCheckpoint(Path(sys.argv[1]) / "of one").attach(trainer)
    except ValueError as error:
        text = str(error)
    return {"text": text, "same": torch.equal(weights(trainer.model), before)}


def falling_back(name, file, *, verify=True):
    """Resumes where the newest checkpoint has a damaged file."""
    directory, final = directory_of(name), unbroken()
    trainer_of(directory).run(max_epochs=EPOCHS)
    if rank() == 0:
        path = directory / f"step_{STEPS:08d}" / file
        path.write_bytes(path.read_bytes()[:-700])
    torch.distributed.barrier()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer = trainer_of(resume_from=directory, number=2, verify=verify)
    trainer.run(max_epochs=EPOCHS)
    return {
        "from": trainer.resume_report.step,
        "warned": [str(each.message) for each in warned],
        "exact": torch.equal(weights(trainer.model), final),
    }


def damage_to_the_model():
    return falling_back("damaged model", "model.safetensors")


def damage_to_the_second():
    return falling_back("damaged second", "rank_00001.pt")


def damage_to_the_second_unverified():
    return falling_back("unverified second", "rank_00001.pt", verify=False)


def pruned_while_it_is_read(name, *, after):
    """The run that saves there is a step further when one process has read, or not yet."""
    directory, final = directory_of(name), unbroken()
    trainer_of(directory).run(max_epochs=EPOCHS)
    newest, later = directory / f"step_{STEPS:08d}", directory / "later"
    if rank() == 0:
        newest.rename(later)
    torch.distributed.barrier()
    real = resume.LoadedState

    def read(*arguments):
        if later.exists() and rank() == 1:
            loaded = real(*arguments) if after else None
            later.rename(newest)
            CheckpointStore(directory).remove(directory / f"step_{STEPS - 1:08d}")
            return loaded or real(*arguments)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        patched.setattr(resume, "LoadedState", read)
        trainer = trainer_of(resume_from=directory, number=2)
    trainer.run(max_epochs=EPOCHS)
    return {
        "from": trainer.resume_report.step,
        "warned": [str(each.message) for each in warned],
        "exact": torch.equal(weights(trainer.model), final),
    }


def pruned_before_the_second_has_read():
    return pruned_while_it_is_read("pruned before", after=False)


def pruned_after_the_second_has_read():
    return pruned_while_it_is_read("pruned after", after=True)


def network_that_fails():
    """Fails the network on rank 0, in the middle of a download."""
    directory = directory_of("network")
    trainer_of(directory).run(max_steps=2)

    def fail(*_):
        raise SourceError("the network is gone")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RemoteSource, "_download", fail)
        trainer = trainer_of()
        before = weights(trainer.model)
        source = ResumeCheckpoint(
            directory.as_uri(), cache_dir=Path(sys.argv[1]) / "cache", on_missing="start"
        )
        failure = failed(lambda: str(source.attach(trainer)))
    return {"told": failure, "same": torch.equal(weights(trainer.model), before)}


def downloads_of_two_machines():
    """Returns how each process downloads, on one machine, and as if on two machines."""
    directory = directory_of("machines")
    trainer_of(directory).run(max_steps=1)
    cache, fetched, real = Path(sys.argv[1]) / "machines cache", [], RemoteSource.fetch

    def fetch(source, candidate, *, verify):
        fetched.append(verify)
        return real(source, candidate, verify=verify)

    def resumed():
        del fetched[:]
        ResumeCheckpoint(directory.as_uri(), cache_dir=cache).attach(trainer_of())
        return list(fetched)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RemoteSource, "fetch", fetch)
        together = resumed()
        patched.setattr(resume, "PartialState", lambda: SimpleNamespace(local_process_index=0))
        return {"together": together, "apart": resumed()}


class Masked(torch.nn.Module):
    """Drops features with a generator that is seeded differently on each process."""

    def __init__(self, number):
        super().__init__()
        self.inner = make_model(dropout=0.0)
        self.rng = torch.Generator().manual_seed(100 * number + rank())

    def forward(self, x):
        return self.inner(x * (torch.rand(4, generator=self.rng) > 0.3))


def averaging(directory, resume_from=None, number=1):
    """A trainer with an average of the weights in a closure, moved by random amounts."""
    model = Masked(number)
    average = torch.optim.swa_utils.AveragedModel(model.inner)
    rng = random.Random(10 * number + rank())
    also = {"rng": rng}
    seed(10 * number + rank())
    save = SaveCheckpoint(directory, every_steps=1, keep_last="all", on_signals=(), also=also)
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.nn.functional.mse_loss,
        augmented(10),
        accelerator=accelerator(2),
        checkpoint=save,
    )

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def move():
        average.update_parameters(trainer.accelerator.unwrap_model(trainer.model).inner)
        with torch.no_grad():
            for each in average.parameters():
                each.add_(rng.random())

    if resume_from:
        ResumeCheckpoint(resume_from).attach(trainer)
    return trainer, average, rng


def generators_and_averages_of_each_process():
    directory = directory_of("generators")
    trainer, average, rng = averaging(directory)
    trainer.run(max_epochs=EPOCHS)
    expected = [weights(trainer.model).tolist(), weights(average).tolist(), rng.random()]
    exact, told = [], []
    for step in whole_steps(directory)[:-1]:
        trainer, average, rng = averaging(
            directory_of(f"from {step}"), directory / f"step_{step:08d}", number=2
        )
        trainer.run(max_epochs=EPOCHS)
        found = [weights(trainer.model).tolist(), weights(average).tolist(), rng.random()]
        exact.append(found == expected)
        told.append(trainer.resume_report.is_exact)
    return {"exact": exact, "told": told, "average": expected[1]}


def unknown_on_the_second_alone():
    """A handler counts on one process, and a part differs there when it is resumed."""
    directory, parts = directory_of("unknown on one"), []

    def make(resume_from=None):
        trainer, seen = trainer_of(None if resume_from else directory), []
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: rank() and seen.append(1))
        if resume_from:
            if rank():
                trainer.add_event_handler(Events.EPOCH_COMPLETED, random.Random().random)
            ResumeCheckpoint(resume_from).attach(trainer)
        return trainer

    make().run(max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make(directory)
        parts.append(trainer.resume_report.parts)
        trainer.run(max_steps=2)
        parts.append(trainer.resume_report.parts)
    names = ("handlers", "random generators")
    return {"parts": [{name: str(of[name]) for name in names} for of in parts]}


def a_check_fails_on_one_process():
    """Refuses a checkpoint on one process, which must leave the trainers of both unchanged."""
    directory, found = directory_of("refused on one"), []
    trainer_of(directory).run(max_steps=1)
    for failing in (0, 1):
        trainer = trainer_of(number=2)
        before = weights(trainer.model)
        with pytest.MonkeyPatch.context() as patched:
            if rank() == failing:
                patched.setattr(
                    resume.LoadedState, "state_problems", lambda self: iter(["x: is odd"])
                )
            told = failed(lambda t=trainer: ResumeCheckpoint(directory).attach(t))
        found.append([*told, torch.equal(weights(trainer.model), before)])
    return {"found": found}


def failed(act):
    try:
        return ["returned", act()]
    except Exception as error:
        return [type(error).__name__, str(error)]


def agreement():
    """Calls the methods of ``Ranks`` with a failure on one process, and on the other."""
    ranks = Ranks()

    def fail_on(number):
        if rank() == number:
            raise OSError(errno.EIO, "gone")
        return f"well {rank()}"

    return {
        "size": ranks.size,
        "gathered": ranks.gather({"rank": rank()}),
        "agreed": failed(lambda: ranks.call_on_all_ranks(lambda: fail_on(None))),
        "fails on 1": failed(lambda: ranks.call_on_all_ranks(lambda: fail_on(1))),
        "first alone": failed(lambda: ranks.call_on_rank_0(lambda: f"by {rank()}")),
        "first fails": failed(lambda: ranks.call_on_rank_0(lambda: fail_on(0))),
        "flags": ranks.any_of(rank() == 1, False, rank() == 0),
        "afterwards": ranks.gather(rank()),
    }


def best_weights():
    """Both processes load the best of their run; then the file of the model is damaged."""
    directory = directory_of("best")
    saving = {"every_steps": 2, "keep_last": 1, "keep_best": 1, "metric": "score"}
    trainer, found = trainer_of(directory, **saving), {}

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def note(engine):
        step = engine.state.optimizer_step
        engine.state.metrics["score"] = float(step == 4)
        found[step] = weights(engine.model)

    trainer.run(max_epochs=EPOCHS)
    entry = trainer.load_best()
    best = weights(trainer.model)
    PartialState().wait_for_everyone()
    if rank() == 0:
        (entry.path / "model.safetensors").write_bytes(b"damaged")
    PartialState().wait_for_everyone()
    return {
        "step": entry.step,
        "same": torch.equal(best, found[4]),
        "others": not torch.equal(best, found[STEPS]),
        "damaged": failed(trainer.load_best),
        "kept": torch.equal(weights(trainer.model), best),
    }


CHECKS = [
    best_weights,
    resume_at_every_step,
    resume_at_every_step_in_the_background,
    each_process_gets_its_own_states_back,
    failure_on_the_first,
    failure_on_the_second,
    failure_on_the_second_in_the_background,
    signal_to_one,
    signal_to_one_in_the_background,
    busy_directory,
    clock_of_one,
    other_number_of_processes,
    damage_to_the_model,
    damage_to_the_second,
    damage_to_the_second_unverified,
    pruned_before_the_second_has_read,
    pruned_after_the_second_has_read,
    network_that_fails,
    downloads_of_two_machines,
    generators_and_averages_of_each_process,
    unknown_on_the_second_alone,
    a_check_fails_on_one_process,
    agreement,
]

if __name__ == "__main__":
    run(*CHECKS)
