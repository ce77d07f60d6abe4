"""Handlers that show a run, on two processes."""

import fcntl
import json
import os
import sys
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from accelerate.tracking import GeneralTracker
from ignite.engine import Engine
from ignite.engine import Events
from torch.utils.data import DataLoader

from ignite_hooks import Console
from ignite_hooks import GrowthWatch
from ignite_hooks import MeanLoss
from ignite_hooks import MetricsLog
from ignite_hooks import ProgressBar
from ignite_hooks import SaveCheckpoint
from ignite_hooks import SendMetrics
from ignite_hooks import Throughput
from ignite_hooks import TimeLedger
from ignite_hooks import TrainEvents
from ignite_hooks import TrainingReport
from ignite_hooks import Validation
from ignite_hooks.handlers import Handler
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import counting_collectives
from tests.distributed.programs.checks import run
from tests.reference import make_trainer
from tests.reference import samples


def trainer_of(log_with=None, **options):
    torch.manual_seed(0)
    loader = DataLoader(samples(28), batch_size=2)
    return make_trainer(loader, accelerator=accelerator(2, log_with=log_with), **options)


def noted(trainer):
    """Returns the losses of this rank, and the reports by step."""
    losses, reports = [], []

    @trainer.on(TrainEvents.MODEL_BACKWARD_COMPLETED)
    def note_loss(engine):
        losses.append(engine.state.loss.item())

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def note_report(engine):
        reports.append(engine.state.metrics.get("loss"))

    return losses, reports


def mean_loss():
    trainer = trainer_of(handlers=[MeanLoss(every_steps=2)])
    losses, reports = noted(trainer)
    with counting_collectives() as counts:
        trainer.run()
    bare = trainer_of()
    with counting_collectives() as others:
        bare.run()
    return {"losses": losses, "reports": reports, "exchanges": (counts - others).total()}


def resumed_mean_loss():
    save = SaveCheckpoint(Path(sys.argv[1]) / "resumed")
    trainer = trainer_of(handlers=[MeanLoss(every_steps=2)], checkpoint=save)
    trainer.run(max_steps=3)
    trainer = trainer_of(handlers=[MeanLoss(every_steps=2)], resume_from=save.directory)
    _, reports = noted(trainer)
    trainer.run(max_epochs=1)
    return {"reports": reports}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def throughput():
    """One process has more items in a batch than the other, and takes longer."""
    rank, clock = accelerator().process_index, Clock()

    def count(batch):
        clock.now += 1.0 + rank
        return 10 + rank

    trainer = trainer_of(handlers=[Throughput(every_steps=4, items=count, clock=clock)])
    trainer.run(max_epochs=3)
    names = ("steps_per_second", "samples_per_second", "items_per_second", "remaining_seconds")
    return {name: trainer.state.metrics[name] for name in names}


def time_ledger():
    """One process takes twice as long for a forward pass, and for a validation, as the other."""
    rank, clock = accelerator().process_index, Clock()

    def take_time(*args):
        clock.now += 1.0 + rank

    def trained(name, handlers):
        save = SaveCheckpoint(Path(sys.argv[1]) / name, every_steps=2, background=True)
        validation = Validation(take_time, every_steps=2)
        trainer = trainer_of(handlers=handlers, checkpoint=save, validation=validation)
        trainer.model.register_forward_hook(take_time)
        with counting_collectives() as counts:
            trainer.run()
        return trainer, counts

    ledger = TimeLedger(every_steps=2, clock=clock)
    trainer, counts = trained("timed", [ledger])
    seconds, shares = ledger.seconds(trainer), dict(trainer.state.metrics)
    _, others = trained("untimed", [])
    return {
        "seconds": {part: each for part, each in seconds.items() if each},
        "shares": sum(share for name, share in shares.items() if name.startswith("time/")),
        "collectives": (counts - others).total(),
    }


def mean_output():
    rank = accelerator().process_index
    engine = Engine(lambda engine, batch: float(batch + rank))
    MeanLoss(every_steps=2).attach(engine)
    engine.run([1, 2, 3])
    return {"loss": engine.state.metrics["loss"]}


def progress_bar():
    trainer, screen = trainer_of(), StringIO()
    ProgressBar(file=screen, mininterval=0, persist=True).attach(
        trainer, event_name=TrainEvents.STEP_COMPLETED, closing_event_name=Events.COMPLETED
    )
    trainer.run()
    return {"shown": screen.getvalue()}


def console():
    save = SaveCheckpoint(Path(sys.argv[1]) / "shown")
    with redirect_stdout(StringIO()) as shown:
        trainer_of(handlers=[Console(metric="loss", mode="min")], checkpoint=save).run(max_steps=6)
    with redirect_stdout(StringIO()) as resumed:
        trainer = trainer_of(handlers=[Console()], resume_from=save.directory)
        trainer.run(max_epochs=2)
    return {"shown": shown.getvalue(), "resumed": resumed.getvalue()}


class Finder(Handler):
    """Finds the rank of its process."""

    def attach_to(self, attachment):
        pass

    def findings(self, engine):
        return {"rank": engine.accelerator.process_index}


def metrics_log():
    """All ranks attach a log of one path, and each rank has a file that only it would write."""
    folder = Path(sys.argv[1]) / "log"
    save = SaveCheckpoint(folder / "checkpoints")
    options = {"checkpoint": save}
    with counting_collectives() as counts:
        for limits in ({"max_steps": 3}, {"max_epochs": 1}):
            log = MetricsLog(folder / "metrics.jsonl", every_steps=2)
            trainer = trainer_of(handlers=[MeanLoss(every_steps=2), log, Finder()], **options)
            trainer.run(**limits)
            options["resume_from"] = save.directory
    bare = {"checkpoint": SaveCheckpoint(folder / "bare")}
    with counting_collectives() as others:
        for limits in ({"max_steps": 3}, {"max_epochs": 1}):
            trainer_of(handlers=[MeanLoss(every_steps=2)], **bare).run(**limits)
            bare["resume_from"] = folder / "bare"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "lines": [json.loads(line) for line in lines],
        "collectives": (counts - others).total(),
        "exact": trainer.resume_report is None or trainer.resume_report.is_exact,
    }


def busy_log():
    """Another run holds the lock of the file, so rank 0 cannot begin."""
    path = Path(sys.argv[1]) / "busy.jsonl"
    trainer = trainer_of(handlers=[MetricsLog(path)], on_peer_failure="wait")
    holder = os.open(path, os.O_RDWR | os.O_CREAT)
    if trainer.accelerator.is_main_process:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    torch.distributed.barrier()
    try:
        trainer.run()
    except RuntimeError as error:
        return {"error": str(error)}
    return {"error": None}


def training_report():
    """Each rank has a page of its own, which only this rank would make. The run is resumed."""
    folder = Path(sys.argv[1]) / "pages"
    page = folder / os.environ["RANK"] / "report.html"
    options = {"checkpoint": SaveCheckpoint(folder / "checkpoints")}
    with counting_collectives() as counts:
        for limits in ({"max_steps": 3}, {"max_epochs": 1}):
            trainer = trainer_of(handlers=[TrainingReport(page)], **options)
            trainer.run(**limits)
            options["resume_from"] = folder / "checkpoints"
    bare = {"checkpoint": SaveCheckpoint(folder / "bare")}
    with counting_collectives() as others:
        for limits in ({"max_steps": 3}, {"max_epochs": 1}):
            trainer_of(**bare).run(**limits)
            bare["resume_from"] = folder / "bare"
    return {
        "files": sorted(each.name for each in page.parent.glob("*")),
        "collectives": (counts - others).total(),
        "exact": trainer.resume_report.is_exact,
    }


class Tracker(GeneralTracker):
    name = "points"
    requires_logging_directory = False
    tracker = None
    main_process_only = False  # so that a call on another rank would be noted
    run_id = "one"

    def __init__(self):
        super().__init__()
        self.points, self.settings = [], []

    def store_init_configuration(self, values):
        self.settings.append(values)

    def log(self, values, step=None, **kwargs):
        self.points.append((step, values["loss"]))


def sent():
    """Returns the points that this rank has sent, in a run and in a run that resumes it."""
    save = SaveCheckpoint(Path(sys.argv[1]) / "sent")
    handlers = [MeanLoss(every_steps=2), SendMetrics(every_steps=2)]
    trackers = Tracker(), Tracker()
    first = trainer_of([trackers[0]], handlers=handlers, checkpoint=save)
    first.run(max_epochs=1)
    handlers = [MeanLoss(every_steps=2), SendMetrics(every_steps=2)]
    second = trainer_of([trackers[1]], handlers=handlers, resume_from=save.directory)
    second.run(max_epochs=2)
    return {
        "points": [each.points for each in trackers],
        "settings": [len(each.settings) for each in trackers],
        "loss": second.state.metrics["loss"],
    }


def growth():
    """One process keeps its losses, the other does not."""
    trainer, kept = trainer_of(), []
    if torch.distributed.get_rank() == 1:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: kept.append(engine.state.loss)
        )
    GrowthWatch(every_steps=4).attach(trainer)
    with warnings.catch_warnings(record=True) as caught, counting_collectives() as counts:
        warnings.simplefilter("always")
        trainer.run(max_epochs=16)
    with counting_collectives() as others:
        trainer_of().run(max_epochs=16)
    return {
        "warnings": [str(each.message) for each in caught],
        "collectives": (counts - others).total(),
    }


if __name__ == "__main__":
    run(
        mean_loss,
        resumed_mean_loss,
        throughput,
        time_ledger,
        mean_output,
        progress_bar,
        console,
        metrics_log,
        training_report,
        sent,
        growth,
        busy_log,
    )
