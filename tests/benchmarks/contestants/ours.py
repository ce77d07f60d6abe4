"""The trainer of this package: bare, wired, with everything, and with a listener everywhere."""

import tempfile

from accelerate import Accelerator
from ignite.metrics import RunningAverage

from ignite_hooks import ClearCache
from ignite_hooks import EpochMaxRAM
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import MinibatchMaxRAM
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from ignite_hooks.hooks.channels import CHANNELS
from tests.benchmarks.work import MAX_NORM

__all__ = [
    "make_bare",
    "make_everything",
    "make_wired",
    "ours_bare",
    "ours_everything",
    "ours_listened",
    "ours_wired",
]

NEVER = 10**9


def nothing(engine):
    """An empty context."""
    yield


def make_bare(work, **wired):
    """Returns a trainer that does the work of the raw loop: optimizer, scheduler and clipping."""
    return create_supervised_trainer(
        work.model,
        work.optimizer,
        work.loss_fn,
        work.loader,
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=work.accumulation),
        lr_scheduler=work.scheduler(),
        grad_clip=GradientClipping(max_norm=MAX_NORM),
        **wired,
    )


def make_wired(work, folder):
    """Adds handlers on schedules; only ``ClearCache`` is due, and has no cache on a CPU."""
    return make_bare(
        work,
        validation=Validation(lambda: None, every_steps=NEVER),
        checkpoint=SaveCheckpoint(folder, every_steps=NEVER, at_end=False),
        handlers=[ClearCache(every_steps=1000), GarbageCollector(every_steps=NEVER)],
    )


def make_everything(work, folder):
    """Adds memory peaks, an empty context on each channel, and a running average."""
    trainer = make_wired(work, folder)
    add_contexts(trainer)
    MinibatchMaxRAM(every_iterations=100).attach(trainer)
    EpochMaxRAM().attach(trainer)
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    return trainer


def make_listened(work, folder):
    """Adds an empty listener to each event and an empty context to each channel."""
    trainer = make_wired(work, folder)
    add_contexts(trainer)
    for event in TrainEvents:
        trainer.add_event_handler(event, lambda: None)
    return trainer


def add_contexts(trainer):
    for channel in CHANNELS:
        trainer.hooks.register(channel, nothing)


def run_in_folder(make, work):
    with tempfile.TemporaryDirectory() as folder:
        make(work, folder).run()


def ours_bare(work):
    make_bare(work).run()


def ours_wired(work):
    run_in_folder(make_wired, work)


def ours_everything(work):
    run_in_folder(make_everything, work)


def ours_listened(work):
    run_in_folder(make_listened, work)
