"""A run on two processes that is broken once, in the way named, and ends after a restart.

torchrun starts both processes again. Each then resumes, and compares how it ended with a run in the
same process that nothing happens to.
"""

import hashlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from ignite.engine import Events
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.reference import augmented
from tests.reference import make_model
from tests.reference import seed
from tests.reference import weights

EPOCHS = 2
STEPS = 6
"""10 batches in all, 5 for each process, and 2 of them to a window."""

BROKEN_AT = 4
"""In the middle of a window of the second epoch."""


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ArithmeticError("this rank has had it")


def kill_in_the_save(name):
    """Kills the process within the save of a step, at a call of a function of ``os``."""

    def prepare(trainer):
        @trainer.on(TrainEvents.STEP_COMPLETED(once=BROKEN_AT))
        def replace():
            setattr(os, name, lambda *arguments: kill())

    return prepare


def in_the_window(handler):
    def prepare(trainer):
        def handle():
            if trainer.state.optimizer_step == BROKEN_AT:
                handler()

        trainer.add_event_handler(TrainEvents.MODEL_FORWARD_COMPLETED, handle)

    return prepare


WAYS = {
    "killed": in_the_window(kill),
    "killed_as_it_writes_a_file": kill_in_the_save("fsync"),
    "killed_before_the_commit": kill_in_the_save("replace"),
    "raises": in_the_window(fail),
}


def trainer_of(number, **options):
    """A trainer of a script that seeds its processes differently, and each attempt too."""
    model = make_model(dropout=0.5)
    seed(10 * number + PartialState().process_index)
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.nn.functional.mse_loss,
        augmented(10),
        accelerator=accelerator(2),
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
        **options,
    )


def resumable(directory, number):
    return trainer_of(
        number,
        checkpoint=SaveCheckpoint(directory, every_steps=1),
        resume_from=ResumeCheckpoint(directory, on_missing="start"),
    )


def note_batches(trainer, note):
    """Notes the number of each iteration and a digest of its batch."""

    @trainer.on(Events.ITERATION_STARTED)
    def note_batch():
        content = b"".join(tensor.numpy().tobytes() for tensor in trainer.state.batch)
        note(f"{trainer.state.iteration} {hashlib.sha256(content).hexdigest()}")


def end_of(trainer):
    """Returns the state at the end of a run, to be compared bit by bit."""
    state, optimizer = trainer.state, trainer.optimizer.state_dict()["state"]
    momenta = [optimizer[key]["momentum_buffer"].flatten() for key in sorted(optimizer)]
    return {
        "weights": weights(trainer.model).tolist(),
        "momenta": torch.cat(momenta).tolist(),
        "rates": [group["lr"] for group in trainer.optimizer.param_groups],
        "counters": [state.epoch, state.iteration, state.optimizer_step],
        "generator": torch.get_rng_state().tolist(),
    }


def unbroken():
    trainer, batches = trainer_of(0), []
    note_batches(trainer, batches.append)
    trainer.run(max_epochs=EPOCHS)
    return end_of(trainer), batches


def main():
    folder, way, rank_to_break = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    rank = accelerator().process_index
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = resumable(folder / "checkpoints", attempt)
    first_step = trainer.state.optimizer_step
    if attempt == 0 and rank == rank_to_break:
        WAYS[way](trainer)
    with (folder / f"batches.{rank}.{attempt}").open("w") as file:
        note_batches(trainer, lambda line: print(line, file=file, flush=True))
        trainer.run(max_epochs=EPOCHS)
    end = end_of(trainer)
    expected, batches = unbroken()
    finding = {
        "attempt": attempt,
        "resumed": first_step,
        "parts": {name: part.level for name, part in trainer.resume_report.parts.items()},
        "warnings": [str(each.message) for each in caught],
        "differing": [name for name in expected if end[name] != expected[name]],
        "batches": batches,
    }
    (folder / f"found.{rank}.json").write_text(json.dumps(finding))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
