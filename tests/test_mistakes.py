"""Typical mistakes of users, each with the message that it meets: one table, read as a whole."""

import re
import subprocess
import sys

import ignite.engine
import pytest
import torch
from accelerate import Accelerator
from ignite.metrics import Accuracy
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

import ignite_hooks
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import MaxRAM
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks import ram_usage_metrics
from ignite_hooks.config import RunSettings
from ignite_hooks.config import load
from ignite_hooks.config import loads


class Script:
    """The parts of a usual script, made when they are asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.accelerator = Accelerator(cpu=True)
        self.model = torch.nn.Linear(4, 2)
        self.optimizer = SGD(self.model.parameters(), lr=0.1)
        self.loss_fn = torch.nn.functional.cross_entropy
        self.loader = DataLoader(
            TensorDataset(torch.zeros(12, 4), torch.zeros(12).long()), batch_size=4
        )

    def trainer(self, *arguments, **options):
        """Returns a trainer; arguments that are given take the place of the right ones."""
        given = (self.model, self.optimizer, self.loss_fn, self.loader)
        arguments = (*arguments, *given[len(arguments) :])
        return create_supervised_trainer(*arguments, accelerator=self.accelerator, **options)

    def evaluator(self, metrics=None, model=None):
        metrics = {"accuracy": Accuracy()} if metrics is None else metrics
        model = self.model if model is None else model
        return create_supervised_evaluator(model, metrics, accelerator=self.accelerator)

    def clipping(self):
        return GradientClipping(max_norm=1.0)


class NeedsMore:
    """A handler as Ignite's loggers are, with further arguments of attach()."""

    def attach(self, engine, log_handler):
        raise AssertionError("not to be called")


def from_import(name, package="ignite_hooks"):
    exec(f"from {package} import {name}")


def wrong_decorator(s):
    @s.trainer().on("EPOCH_COMPLETE")
    def report(engine):
        pass


def wrong_channel(s):
    @s.trainer().hooks.on("backward")
    def profile(engine):
        yield


def save_into_a_file(s):
    (s.folder / "a.txt").write_text("x")
    s.trainer(checkpoint=SaveCheckpoint(s.folder / "a.txt", every_steps=1))


def resume_from_a_file(s):
    (s.folder / "a.txt").write_text("x")
    s.trainer(resume_from=s.folder / "a.txt")


def metric_that_is_missing(s):
    checkpoint = SaveCheckpoint(s.folder, every_epochs=1, keep_best=1, metric="val_acuracy")
    validation = Validation(s.evaluator(), s.loader, every_epochs=1)
    s.trainer(checkpoint=checkpoint, validation=validation).run(max_epochs=1)


def optimizer_of_another_accelerator(s):
    other = Accelerator(cpu=True)
    other.scaler = torch.amp.GradScaler("cpu")  # as mixed_precision="fp16" makes it on a GPU
    s.trainer(s.model, other.prepare(s.optimizer))


def of_three(s):
    tensors = torch.zeros(8, 4), torch.zeros(8).long(), torch.zeros(8)
    return DataLoader(TensorDataset(*tensors), batch_size=4)


MISTAKES = {
    # Misspelt or misplaced arguments
    "misspelt field": (
        lambda s: GradientClipping(max_nrom=1.0),
        TypeError,
        "`GradientClipping` has no argument `max_nrom`: did you mean `max_norm`?",
    ),
    "value by position": (
        lambda s: GradientClipping(1.0),
        TypeError,
        "`GradientClipping` takes no argument by position, got 1.0: write max_norm=1.0",
    ),
    "singular for plural": (
        lambda s: Validation(s.evaluator(), s.loader, every_epoch=1),
        TypeError,
        "`Validation` has no argument `every_epoch`: did you mean `every_epochs`",
    ),
    "required argument forgotten": (
        lambda s: SaveCheckpoint(every_epochs=1),
        TypeError,
        "`SaveCheckpoint` needs the argument `directory`: write SaveCheckpoint(directory=…)",
    ),
    "misspelt argument of the factory": (
        lambda s: s.trainer(gradient_clip=s.clipping()),
        TypeError,
        "create_supervised_trainer() has no argument `gradient_clip`, got GradientClipping("
        "max_norm=1.0, clip_value=None, norm_type=2.0): did you mean `grad_clip`?",
    ),
    "misspelt argument of run": (
        lambda s: s.trainer().run(max_epoch=3),
        TypeError,
        "run() has no argument `max_epoch`, got 3: did you mean `max_epochs` or `max_steps`?",
    ),
    "epochs by position": (
        lambda s: s.trainer().run(3),
        TypeError,
        "`data` must be an iterable of batches, got 3: for 3 epochs write run(max_epochs=3)",
    ),
    "misspelt argument of an evaluator's run": (
        lambda s: s.evaluator().run(s.loader, max_batch=3),
        TypeError,
        "run() has no argument `max_batch`, got 3: did you mean `max_batches`",
    ),
    "misspelt argument of a function": (
        lambda s: ram_usage_metrics(minibatches=True),
        TypeError,
        "`ram_usage_metrics` has no argument `minibatches`: did you mean `minibatch`?",
    ),
    "setting that does not exist": (
        lambda s: RunSettings(max_epoch=3),
        TypeError,
        "`RunSettings` has no argument `max_epoch`: did you mean `max_epochs` or `max_steps`?",
    ),
    "setting that does not exist, in a file": (
        lambda s: loads("{type: run, max_epoch: 3}", "yaml"),
        ValueError,
        "max_epoch: `run` has no field 'max_epoch'; did you mean `max_epochs` or `max_steps`?",
    ),
    # Values
    "zero epochs": (
        lambda s: s.trainer().run(max_epochs=0),
        ValueError,
        "`max_epochs` must be an integer >= 1, got 0: leave it out for no such limit",
    ),
    "float for a count": (
        lambda s: SaveCheckpoint(s.folder, every_steps=1e3),
        ValueError,
        "`every_steps` must be an integer >= 1, got 1000.0, a float (write 1000); leave it out",
    ),
    "string for a count": (
        lambda s: GarbageCollector(freeze_after="1"),
        ValueError,
        "`freeze_after` must be an integer >= 1, got '1', a string (write 1, without quotes); it",
    ),
    "misspelt choice": (
        lambda s: MaxRAM(backend="kernal"),
        ValueError,
        '`backend` must be one of "auto", "kernel" and "sampler", got \'kernal\'; "auto" takes',
    ),
    "choice of another library": (
        lambda s: SaveCheckpoint(s.folder, keep_best=1, metric="accuracy", mode="maximum"),
        ValueError,
        '`mode` must be "max" or "min", got \'maximum\'; it says which value of the metric is',
    ),
    "event for a schedule": (
        lambda s: s.trainer(lr_scheduler=StepLR(s.optimizer, 1), scheduler_at="epochs"),
        ValueError,
        '`scheduler_at` must be "step", "epoch" or "validation", got \'epochs\': it says when',
    ),
    "one signal without a tuple": (
        lambda s: SaveCheckpoint(s.folder, on_signals="SIGTERM"),
        ValueError,
        "`on_signals` must be a tuple of names of signals that can be handled, got 'SIGTERM'; "
        "write ('SIGTERM',)",
    ),
    "misspelt signal": (
        lambda s: SaveCheckpoint(s.folder, on_signals=("SIGTREM",)),
        ValueError,
        "got ('SIGTREM',); did you mean `SIGTERM`",
    ),
    "best of no metric": (
        lambda s: SaveCheckpoint(s.folder, keep_best=1),
        ValueError,
        "`metric` must be given with keep_best=1, got None: name one of state.metrics, metric=",
    ),
    "misspelt metric": (
        metric_that_is_missing,
        ValueError,
        "got 'val_acuracy': did you mean `val_accuracy`?",
    ),
    # Events and channels
    "lower case event": (
        lambda s: s.trainer().add_event_handler("epoch_completed", print),
        ValueError,
        "Event epoch_completed is not a valid event for this Trainer: did you mean "
        "`Events.EPOCH_COMPLETED`",
    ),
    "misspelt event in a decorator": (
        wrong_decorator,
        ValueError,
        "Event EPOCH_COMPLETE is not a valid event for this Trainer: did you mean "
        "`Events.EPOCH_COMPLETED`",
    ),
    "misspelt event in attach": (
        lambda s: GarbageCollector().attach(s.trainer(), "iteration_complete"),
        ValueError,
        "is not a valid event for this Trainer: did you mean `Events.ITERATION_COMPLETED`",
    ),
    "misspelt event of a trainer": (
        lambda s: TrainEvents.STEP_COMPLETE,
        AttributeError,
        "TrainEvents has no event STEP_COMPLETE: did you mean STEP_COMPLETED?",
    ),
    "event of Ignite looked for in ours": (
        lambda s: TrainEvents.EPOCH_COMPLETED,
        AttributeError,
        "TrainEvents has no event EPOCH_COMPLETED, Ignite has it: write Events.EPOCH_COMPLETED",
    ),
    "event of a trainer on an evaluator": (
        lambda s: s.evaluator().add_event_handler(TrainEvents.STEP_COMPLETED, print),
        ValueError,
        "Event TrainEvents.STEP_COMPLETED is not a valid event for this Evaluator: attach to an "
        "engine that fires it (only a trainer fires TrainEvents)",
    ),
    "number for an event": (
        lambda s: s.trainer().add_event_handler(5, print),
        ValueError,
        "Event 5 is not a valid event for this Trainer: write an event, "
        "Events.ITERATION_COMPLETED(every=5) for example",
    ),
    "short name of a channel": (
        wrong_channel,
        ValueError,
        "on_validation, got 'backward': did you mean `on_model_backward`",
    ),
    # Names to import
    "handler of Ignite": (
        lambda s: from_import("EarlyStopping"),
        ImportError,
        "module 'ignite_hooks' has no attribute 'EarlyStopping': write from ignite.handlers import "
        "EarlyStopping",
    ),
    "events of Ignite": (
        lambda s: from_import("Events"),
        ImportError,
        "module 'ignite_hooks' has no attribute 'Events': write from ignite.engine import Events",
    ),
    "name of a subpackage": (
        lambda s: from_import("RunSettings"),
        ImportError,
        "has no attribute 'RunSettings': write from ignite_hooks.config import RunSettings",
    ),
    "misspelt name": (
        lambda s: from_import("GradientCliping"),
        ImportError,
        "has no attribute 'GradientCliping': did you mean `GradientClipping`?",
    ),
    "misspelt name of a subpackage": (
        lambda s: from_import("export_weight", "ignite_hooks.checkpoint"),
        ImportError,
        "module 'ignite_hooks.checkpoint' has no attribute 'export_weight': did you mean "
        "`export_weights`",
    ),
    "attribute of the package": (
        lambda s: ignite_hooks.EarlyStopping,
        AttributeError,
        "has no attribute 'EarlyStopping': write from ignite.handlers import EarlyStopping",
    ),
    # Things in each other's place
    "model and optimizer swapped": (
        lambda s: s.trainer(s.optimizer, s.model),
        TypeError,
        "`model` must be a torch.nn.Module, got SGD: `model` and `optimizer` are swapped, write "
        "create_supervised_trainer(model, optimizer, loss_fn, data)",
    ),
    "loader in the place of the loss": (
        lambda s: s.trainer(s.model, s.optimizer, s.loader),
        TypeError,
        "`loss_fn` must be a function or a module, got DataLoader: the order is "
        "create_supervised_trainer(model, optimizer, loss_fn, data)",
    ),
    "scheduler in the place of the optimizer": (
        lambda s: s.trainer(s.model, StepLR(s.optimizer, 1)),
        TypeError,
        "`optimizer` must be a torch.optim.Optimizer, got StepLR: pass the optimizer here, and "
        "the scheduler as `lr_scheduler`",
    ),
    "parameters for the optimizer": (
        lambda s: s.trainer(s.model, s.model.parameters()),
        TypeError,
        "got generator: pass torch.optim.SGD(model.parameters(), lr=0.1), for example",
    ),
    "metrics and model swapped": (
        lambda s: create_supervised_evaluator({"accuracy": Accuracy()}, s.model),
        TypeError,
        "`model` must be a torch.nn.Module, got dict: the order is "
        "create_supervised_evaluator(model, metrics)",
    ),
    "loader and evaluator swapped": (
        lambda s: Validation(s.loader, s.evaluator(), every_epochs=1),
        TypeError,
        "`evaluate` must be an engine or a callable, got DataLoader: the order is "
        "Validation(evaluator, loader)",
    ),
    "data set for a loader": (
        lambda s: s.trainer(s.model, s.optimizer, s.loss_fn, s.loader.dataset),
        TypeError,
        "`data` must be an iterable of batches, got TensorDataset: pass DataLoader(dataset, "
        "batch_size=32), or another size",
    ),
    "one handler for a list": (
        lambda s: s.trainer(handlers=s.clipping()),
        TypeError,
        "`handlers` must be a list of handlers, got GradientClipping: put it into a list",
    ),
    "list of metrics": (
        lambda s: s.evaluator([Accuracy()]),
        TypeError,
        "`metrics` must map names to Ignite metrics, got list: "
        'write metrics={"accuracy": Accuracy()}',
    ),
    "metric among the handlers": (
        lambda s: s.trainer(handlers=[Accuracy()]),
        TypeError,
        "`handlers` must hold handlers, handlers[0] is the metric Accuracy: to compute it on "
        "held-out data, write validation=Validation(create_supervised_evaluator(model, ",
    ),
    "logger among the handlers": (
        lambda s: s.trainer(handlers=[NeedsMore()]),
        TypeError,
        "handlers[0] is a NeedsMore, whose attach() takes other arguments (missing a required "
        "argument: 'log_handler'): take it out of the list, and write handler.attach(trainer, …)",
    ),
    "function among the handlers": (
        lambda s: s.trainer(handlers=[lambda engine: None]),
        TypeError,
        "handlers[0] is a function without this method: add a function with",
    ),
    "model for an engine": (
        lambda s: GarbageCollector(every_steps=1).attach(s.model),
        TypeError,
        "`engine` must be an Ignite Engine, got Linear: attach the handler to the trainer",
    ),
    "number for a handler": (
        lambda s: s.trainer(grad_clip=1.0),
        TypeError,
        "`grad_clip` must be a GradientClipping, got float: pass GradientClipping(max_norm=1.0)",
    ),
    "number for a handler in settings": (
        lambda s: RunSettings(grad_clip=1.0),
        ValueError,
        "`grad_clip` must be an instance of GradientClipping, got 1.0: write GradientClipping(…)",
    ),
    "folder for a handler": (
        lambda s: s.trainer(checkpoint="runs/a"),
        TypeError,
        "`checkpoint` must be a SaveCheckpoint, got str: pass SaveCheckpoint('runs/a', "
        "every_epochs=1)",
    ),
    "name for a handler": (
        lambda s: RunSettings(handlers=["gc"]),
        ValueError,
        "`handlers[0]` must be an instance of Handler, got 'gc': write an object, Garbage",
    ),
    "list for objects by name": (
        lambda s: SaveCheckpoint(s.folder, also=[s.model]),
        TypeError,
        "`also` must be a dict of objects with state_dict() and load_state_dict()",
    ),
    # Classes for instances
    "class of a model": (
        lambda s: s.trainer(torch.nn.Linear),
        TypeError,
        "`model` must be a torch.nn.Module, got the class Linear: make one, Linear(…)",
    ),
    "class of an optimizer": (
        lambda s: s.trainer(s.model, SGD),
        TypeError,
        "got the class SGD: make one, SGD(model.parameters(), …)",
    ),
    "class of a loss": (
        lambda s: s.trainer(s.model, s.optimizer, torch.nn.CrossEntropyLoss),
        TypeError,
        "got the class CrossEntropyLoss: make one, CrossEntropyLoss()",
    ),
    "class of a loader": (
        lambda s: s.trainer(s.model, s.optimizer, s.loss_fn, DataLoader),
        TypeError,
        "`data` must be an iterable of batches, got the class DataLoader: pass an object of this "
        "class, DataLoader(…)",
    ),
    "class of a scheduler": (
        lambda s: s.trainer(lr_scheduler=StepLR),
        TypeError,
        "`lr_scheduler` must be a scheduler, or a callable that takes the optimizer alone, got the "
        "class StepLR, which takes more (",
    ),
    "class of a handler": (
        lambda s: s.trainer(handlers=[GarbageCollector]),
        TypeError,
        "handlers[0] is the class GarbageCollector: make one, GarbageCollector(…)",
    ),
    "class of a handler of the factory": (
        lambda s: s.trainer(grad_clip=GradientClipping),
        TypeError,
        "`grad_clip` must be a GradientClipping, got the class GradientClipping: pass "
        "GradientClipping(max_norm=1.0)",
    ),
    "class of a handler in settings": (
        lambda s: RunSettings(grad_clip=GradientClipping),
        ValueError,
        "got the class GradientClipping itself: write GradientClipping(…)",
    ),
    "class of a metric": (
        lambda s: s.evaluator({"accuracy": Accuracy}),
        TypeError,
        "got the class Accuracy for 'accuracy': make one, ignite.metrics.Accuracy() for example",
    ),
    "class of an accelerator": (
        lambda s: create_supervised_trainer(
            s.model, s.optimizer, s.loss_fn, accelerator=Accelerator
        ),
        TypeError,
        "`accelerator` must be an accelerate.Accelerator, got the class Accelerator: pass",
    ),
    # Things that do not go together
    "optimizer of another model": (
        lambda s: s.trainer(torch.nn.Linear(4, 2)),
        ValueError,
        "`optimizer` must hold only parameters of `model`",
    ),
    "scheduler of another optimizer": (
        lambda s: s.trainer(lr_scheduler=StepLR(SGD(s.model.parameters(), lr=0.1), 1)),
        ValueError,
        "`lr_scheduler` must be built on `optimizer`, got a scheduler of another",
    ),
    "device for the factory": (
        lambda s: s.trainer(device="cuda"),
        TypeError,
        "create_supervised_trainer() has no argument `device`, got 'cuda': the accelerator has",
    ),
    "accumulation for the factory": (
        lambda s: s.trainer(gradient_accumulation_steps=4),
        TypeError,
        "pass accelerator=Accelerator(gradient_accumulation_steps=4)",
    ),
    "optimizer of another accelerator": (
        optimizer_of_another_accelerator,
        ValueError,
        "`accelerator` must be the accelerator that prepared `optimizer`, got an accelerator",
    ),
    "two clippings": (
        lambda s: s.trainer(grad_clip=s.clipping(), handlers=[s.clipping()]),
        ValueError,
        "`engine` must have at most one GradientClipping, got a second one: give only one, as ",
    ),
    "clipping without a step": (
        lambda s: s.clipping().attach(ignite.engine.Engine(lambda engine, batch: None)),
        ValueError,
        "`engine` must have an OptimizerStep before a GradientClipping, got none: write create_",
    ),
    "no data": (
        lambda s: s.trainer(s.model, s.optimizer, s.loss_fn, None).run(max_epochs=1),
        ValueError,
        "`data` must be given to the factory or to run(), got None: pass a DataLoader",
    ),
    "loss of the output alone": (
        lambda s: s.trainer(s.model, s.optimizer, lambda output: output.sum()),
        TypeError,
        "`loss_fn` must take y_pred and y by position, got <lambda>(output) (too many positional "
        "arguments): write loss_fn=lambda y_pred, y: …",
    ),
    "layer as the loss": (
        lambda s: s.trainer(s.model, s.optimizer, torch.nn.Softmax(dim=1)),
        TypeError,
        "got the module Softmax, whose forward takes (input) (too many positional arguments): pass "
        "a loss, torch.nn.CrossEntropyLoss() for example",
    ),
    "batch processor without the model": (
        lambda s: create_supervised_trainer(
            s.model, s.optimizer, batch_processor=lambda batch: None, accelerator=s.accelerator
        ),
        TypeError,
        "`batch_processor` must take model and batch by position, got <lambda>(batch)",
    ),
    "loss that is not reduced": (
        lambda s: s.trainer(
            s.model, s.optimizer, torch.nn.CrossEntropyLoss(reduction="none")
        ).run(),
        ValueError,
        "must be a scalar, got a tensor of shape (4,): reduce it, with .mean()",
    ),
    "batches of three parts": (
        lambda s: s.trainer(s.model, s.optimizer, s.loss_fn, of_three(s)).run(),
        ValueError,
        "a batch must be a pair (x, y), got list of length 3: choose two parts with prepare_batch=",
    ),
    "best weights of nothing": (
        lambda s: s.trainer().load_best(),
        ValueError,
        "load_best() needs one SaveCheckpoint that keeps the best by a metric, got none: give",
    ),
    # Paths
    "resume from nowhere": (
        lambda s: s.trainer(resume_from=s.folder / "nowhere"),
        FileNotFoundError,
        "nowhere, which does not exist: fix the path, or write ResumeCheckpoint(",
    ),
    "resume from a folder without checkpoints": (
        lambda s: s.trainer(resume_from=ResumeCheckpoint(s.folder)),
        FileNotFoundError,
        'or write ResumeCheckpoint(path, on_missing="start")',
    ),
    "resume from a file": (
        resume_from_a_file,
        ValueError,
        "give the directory of a SaveCheckpoint, or one of the folders in it",
    ),
    "save into a file": (
        save_into_a_file,
        ValueError,
        "`directory` must be a folder that can be written to, got the file ",
    ),
    "save to a URL": (
        lambda s: SaveCheckpoint("s3://bucket/runs", every_steps=1),
        ValueError,
        "`directory` must be a folder on this machine, got 's3://bucket/runs'; writing to URLs",
    ),
    "settings of no known format": (
        lambda s: load(s.folder / "run.ini"),
        ValueError,
        "`path` must end in one of .json, .toml, .yaml, .yml, got ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_meets_its_message(mistake, tmp_path):
    make, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=re.escape(message)) as raised:
        make(Script(tmp_path))
    shown = f"{raised.value} {raised.value.__cause__} "
    assert "pydantic" not in shown
    assert "validation error" not in shown


def test_submodules_are_imported_by_name():
    # In a process of its own: here they are attributes of the package already.
    program = "from ignite_hooks import config, factory, handlers, memory"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_package_without_the_name_can_be_asked():
    assert not hasattr(ignite_hooks, "EarlyStopping")
    assert getattr(ignite_hooks, "Missing", None) is None
    with pytest.raises(AttributeError, match=r"has no attribute '__wrapped__'$"):
        _ = ignite_hooks.__wrapped__
