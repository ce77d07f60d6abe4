"""A script of a user, in which type checkers must find no error."""

from collections.abc import Generator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import Accuracy
from torch import Tensor
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

import ignite_hooks as ih
from ignite_hooks.checkpoint import assert_resumable
from ignite_hooks.checkpoint import checkpoints
from ignite_hooks.checkpoint import export_weights
from ignite_hooks.checkpoint import load_weights
from ignite_hooks.config import ConfigError
from ignite_hooks.config import RunSettings
from ignite_hooks.config import equal
from ignite_hooks.config import from_dict
from ignite_hooks.config import load
from ignite_hooks.config import loads
from ignite_hooks.config import register
from ignite_hooks.config import replace
from ignite_hooks.config import save
from ignite_hooks.config import to_dict
from ignite_hooks.handlers import Attachment
from ignite_hooks.handlers import Every
from ignite_hooks.handlers import Handler
from ignite_hooks.handlers import Scheduled
from ignite_hooks.handlers import checked_dataclass
from ignite_hooks.observe import make_report
from ignite_hooks.observe import read_metrics

Batch = tuple[Tensor, Tensor]


@register("print_loss")
@checked_dataclass
class PrintLoss(Scheduled):
    """A handler with the usual schedules."""

    every_steps: Every | None = 10
    every_epochs: Every | None = None
    label: str = "loss"

    def __call__(self, engine: Engine) -> None:
        print(self.label, engine.state.iteration, engine.state.output)


@checked_dataclass
class PrintSteps(Handler):
    """A handler for trainers, with events of its own and a state."""

    name: str

    def __call__(self, engine: ih.Trainer) -> None:
        print(self.name, engine.state.optimizer_step)

    def attach_to(self, attachment: Attachment) -> None:
        attachment.on(Events.STARTED, self.start)
        attachment.on(ih.TrainEvents.STEP_COMPLETED(every=2), self)
        attachment.on_steps(5, self)
        attachment.during_run(self.scope)
        attachment.on_removal(lambda: None)

    def start(self, engine: Engine) -> None:
        print(self.name, engine.state.epoch)

    @contextmanager
    def scope(self, trainer: ih.Trainer) -> Generator[None, None, None]:
        print(trainer.stop_reason)
        yield

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        print(state)


@register("my_run")
@checked_dataclass
class MySettings(RunSettings):
    """Settings with a field of their own."""

    learning_rate: float = 0.1


def loader(samples: int) -> DataLoader[tuple[Tensor, ...]]:
    data = TensorDataset(torch.randn(samples, 2), torch.zeros(samples, dtype=torch.long))
    return DataLoader(data, batch_size=8, shuffle=True)


def process(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    outputs = model(batch[0])
    return outputs, nn.functional.cross_entropy(outputs, batch[1])


def count_items(batch: Batch) -> int:
    return len(batch[0])


def build(folder: Path) -> ih.Trainer:
    model = nn.Linear(2, 2)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    metrics = {"accuracy": Accuracy()}
    evaluator = ih.create_supervised_evaluator(model, metrics, accelerator=accelerator)
    evaluator.run(loader(8), max_batches=2)
    optimizer = torch.optim.AdamW(model.parameters())
    ledger = ih.TimeLedger()
    trainer = ih.create_supervised_trainer(
        model,
        optimizer,
        nn.CrossEntropyLoss(),
        loader(64),
        accelerator=accelerator,
        lr_scheduler=lambda inner: CosineAnnealingLR(inner, T_max=10),
        scheduler_at="epoch",
        grad_clip=ih.GradientClipping(max_norm=1.0),
        validation=ih.Validation(evaluator, loader(16), every_epochs=1),
        checkpoint=ih.SaveCheckpoint(
            folder / "saved", every_steps=5, keep_best=1, metric="val_accuracy", mode="max"
        ),
        resume_from=ih.ResumeCheckpoint(folder / "saved", on_missing="start", override=("lr",)),
        handlers=[
            PrintLoss(every_steps=2),
            PrintSteps(name="steps"),
            ih.Console(metric="val_accuracy"),
            ih.MeanLoss(every_steps=5),
            ih.MetricsLog(folder / "metrics.jsonl", every_steps=5),
            ih.Throughput(items=count_items),
            ih.Throughput(items=lambda batch: len(batch[0])),
            ih.TrainingReport(folder / "report.html"),
            ih.GrowthWatch(),
            ih.ClearCache(every_epochs=1),
            ih.GarbageCollector(every_steps=100, disable_automatic=True),
            ih.EpochMaxRAM(),
            ih.MaxDeviceMemory(),
            ih.ProgressBar(),
            *ih.ram_usage_metrics(epoch=True),
            ledger,
        ],
    )

    @trainer.on(ih.TrainEvents.STEP_COMPLETED(every=5))
    def report(trainer: ih.Trainer) -> float:
        return float(trainer.state.metrics["loss"])

    @trainer.hooks.on("on_optimizer_step")
    def timed(trainer: ih.Trainer) -> Iterator[None]:
        print(trainer.model)
        yield

    trainer.hooks.register("on_step", lambda trainer: torch.profiler.record_function("step"))
    trainer.hooks.register("on_epoch", ih.HookContext(after=lambda trainer: print(trainer)))
    print(timed(trainer), report(trainer) + 1.0)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), ih.ClearCache())
    with ih.ClearCache(every_steps=2).attach(trainer) as attachment:
        state = trainer.run(max_steps=20)
        print(state.epoch, attachment.is_attached, trainer.stop_reason, trainer.resume_report)
    PrintSteps(name="steps").attach(trainer, Events.ITERATION_COMPLETED(every=10)).remove()
    print(ledger.table(trainer), ledger.seconds(trainer)["forward"] + 1.0)
    trainer.run(loader(8), max_epochs=2)
    trainer.interrupt()
    trainer.terminate(resumable=True)
    print(trainer.load_best().step)
    return trainer


def schedulers(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[ih.Trainer]:
    plateau = ih.create_supervised_trainer(
        model,
        optimizer,
        nn.functional.mse_loss,
        lr_scheduler=ReduceLROnPlateau(optimizer),
        scheduler_at="validation",
        scheduler_metric="val_loss",
        resume_from="saved",
    )
    cosine = ih.create_supervised_trainer(
        model,
        optimizer,
        batch_processor=process,
        lr_scheduler=partial(CosineAnnealingLR, T_max=10),
    )
    return [plateau, cosine]


def plain_engine(model: nn.Module) -> Engine:
    engine = Engine(lambda engine, batch: batch)
    step = ih.OptimizerStep(Accelerator(), torch.optim.SGD(model.parameters(), 0.1))
    step.attach(engine)
    ih.MeanLoss(every_steps=2).attach(engine)
    with ih.Hooks().attach(engine) as attachment:
        print(attachment)
    return engine


def settings(folder: Path, model: nn.Module) -> MySettings:
    try:
        print(load(folder / "run.yaml"), from_dict({"type": "clear_cache"}))
    except ConfigError as error:
        print(error)
    clip = loads("{type: gradient_clipping, max_norm: 1.0}", "yaml", ih.GradientClipping)
    save(clip, folder / "clip.json")
    print(to_dict(ih.GradientClipping(max_norm=2.0))["type"], equal(clip, clip))
    longer = replace(MySettings(max_epochs=2), max_epochs=10, learning_rate=0.2)
    trainer = longer.build(
        model,
        torch.optim.SGD(model.parameters(), longer.learning_rate),
        nn.MSELoss(),
        loader(8),
        accelerator=longer.set_up(),
    )
    trainer.run()
    return longer


def weights(folder: Path, model: nn.Module) -> list[int]:
    load_weights(model, folder / "saved", which="best")
    export_weights(folder / "saved", folder / "model.safetensors", which=20)
    assert_resumable(lambda: build(folder), max_steps=30)
    return [each.step for each in checkpoints(folder / "saved")]


def record(folder: Path) -> float:
    found = read_metrics(folder / "metrics.jsonl")
    steps, losses = found.points("loss")
    print(steps[-1], found.metrics, found.events, make_report(folder / "metrics.jsonl"))
    return losses[-1]
