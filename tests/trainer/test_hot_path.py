from collections import Counter
from types import FunctionType

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import DataFeed
from ignite_hooks import GradientClipping
from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from tests.reference import Noisy
from tests.reference import make_model

ITERATIONS = 100
WAITING = (
    "item",
    "cpu",
    "tolist",
    "numpy",
    "nonzero",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "__array__",
    "__contains__",
)
KINDS = ("all_", "broadcast", "barrier", "gather", "monitored", "reduce", "scatter", "send", "recv")
COLLECTIVES = [
    name
    for name, function in vars(torch.distributed).items()
    if name.startswith(KINDS) and type(function) is FunctionType
]
OF_ACCELERATE = ("gather", "gather_for_metrics", "reduce", "wait_for_everyone", "set_trigger")


@pytest.fixture
def waits(monkeypatch):
    """Counts the calls between first and last iteration that wait for a device or a process."""
    counted = Counter()
    is_counting = []

    def patch(owner, name):
        function = getattr(owner, name)

        def counting(*args, **kwargs):
            if is_counting:
                counted[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for name in WAITING:
        patch(torch.Tensor, name)
    for name in COLLECTIVES:
        patch(torch.distributed, name)
    for name in OF_ACCELERATE:
        patch(Accelerator, name)

    def watch(engine):
        engine.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: is_counting.append(1))
        engine.add_event_handler(
            Events.ITERATION_COMPLETED(once=ITERATIONS + 1), lambda: is_counting.clear()
        )
        return counted

    return watch


def make_data(kind):
    noisy = Noisy(ITERATIONS + 1)
    loader = DataLoader(TensorDataset(noisy.x, noisy.y), batch_size=1, shuffle=True)
    if kind == "loader":
        return loader
    batches = list(loader)
    return batches if kind == "list" else iter(batches)


def make_trainer(data, **arguments):
    model = make_model()
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        F.mse_loss,
        data,
        lr_scheduler=lambda optimizer: ExponentialLR(optimizer, 0.999),
        **arguments,
    )


@pytest.mark.grid(5)
@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("kind", ["loader", "list", "iterator"])
@pytest.mark.parametrize("clip", [{"max_norm": 0.1}, {"clip_value": 0.1}])
@pytest.mark.parametrize("accumulation", [1, 2, 7])
def test_iteration_does_not_synchronize_with_the_device(accumulation, clip, kind, is_plain, waits):
    trainer = make_trainer(
        make_data(kind),
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=accumulation),
        grad_clip=GradientClipping(**clip),
    )
    trainer._optimizer_step.prepared.calls_torch_directly = is_plain
    for event in TrainEvents:
        trainer.add_event_handler(event, lambda engine: None)
    trainer._optimizer_step.timetable.add(3, lambda: None)
    counted = waits(trainer)
    trainer.run()
    assert trainer.state.iteration == ITERATIONS + 1
    assert trainer.state.optimizer_step == -(-(ITERATIONS + 1) // accumulation)
    assert counted == {}


def test_validation_metrics_do_not_synchronize_with_the_device(waits):
    trainer = make_trainer(
        make_data("list"),
        accelerator=Accelerator(cpu=True),
        validation=Validation(lambda: {"loss": torch.ones(())}, every_steps=10),
    )
    counted = waits(trainer)
    trainer.run()
    assert trainer.state.metrics["val_loss"] == 1
    assert counted == {}


@pytest.mark.parametrize("accumulate", [False, True])
def test_plain_engine_does_not_synchronize_with_the_device(accumulate, waits):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = accelerator.prepare(make_model())

    def train(engine, batch):
        if accumulate:
            with accelerator.accumulate(model):
                accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))
        else:
            accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))

    engine = Engine(train)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    OptimizerStep(accelerator, optimizer).attach(engine)
    GradientClipping(max_norm=0.1).attach(engine)
    counted = waits(engine)
    feed = DataFeed(make_data("loader"), accelerator)
    engine.run(feed)
    feed.close()
    assert engine.state.optimizer_step == 51
    assert counted == {}


def reduce_without_a_group(loss):
    with pytest.raises(ValueError, match="process group"):
        torch.distributed.all_reduce(loss)


@pytest.mark.parametrize(
    ("name", "wait"),
    [
        ("item", lambda loss: loss.item()),
        ("cpu", lambda loss: loss.cpu()),
        ("tolist", lambda loss: loss.tolist()),
        ("numpy", lambda loss: loss.numpy()),
        ("__bool__", lambda loss: bool(loss)),
        ("__float__", lambda loss: float(loss)),
        ("__int__", lambda loss: int(loss)),
        ("gather", lambda loss: Accelerator(cpu=True).gather(loss)),
        ("all_reduce", reduce_without_a_group),
    ],
)
def test_counter_detects_device_synchronization(name, wait, waits):
    trainer = make_trainer(make_data("list"), accelerator=Accelerator(cpu=True))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: wait(engine.state.output))
    counted = waits(trainer)
    trainer.run()
    assert counted[name] >= ITERATIONS
