"""All handlers that work without a trainer, together on one plain Ignite engine."""

import gc

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import Loss

from ignite_hooks import ClearCache
from ignite_hooks import CudaGarbageCollector
from ignite_hooks import DataFeed
from ignite_hooks import EpochMaxRAM
from ignite_hooks import ExperienceMaxRAM
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import Hooks
from ignite_hooks import MaxDeviceMemory
from ignite_hooks import MinibatchMaxRAM
from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.hooks.channels import CHANNELS
from tests.memory.frozen import is_frozen
from tests.reference import Log
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import noting
from tests.reference import record
from tests.reference import train_on_windows
from tests.reference import weights


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def clip(parameters):
    torch.nn.utils.clip_grad_norm_(parameters, 0.5)


@pytest.mark.filterwarnings("ignore:CudaGarbageCollector finds no device")
@pytest.mark.filterwarnings("ignore:MaxDeviceMemory")
@pytest.mark.parametrize("wrap", [lambda data, accelerator: data, DataFeed])
def test_all_handlers_together_on_a_plain_engine(wrap):
    model, accelerator = make_model(0), Accelerator(cpu=True, gradient_accumulation_steps=2)

    def process(engine, batch):
        engine.fire_event(TrainEvents.MODEL_FORWARD_STARTED)
        loss = F.mse_loss(model(batch[0]), batch[1])
        engine.fire_event(TrainEvents.MODEL_FORWARD_COMPLETED)
        engine.fire_event(TrainEvents.MODEL_BACKWARD_STARTED)
        accelerator.backward(loss)
        engine.fire_event(TrainEvents.MODEL_BACKWARD_COMPLETED)
        return loss.detach()

    engine = Engine(process)
    OptimizerStep(accelerator, sgd(model)).attach(engine)
    GradientClipping(max_norm=0.5).attach(engine)
    evaluator = create_supervised_evaluator(
        model, {"loss": Loss(F.mse_loss)}, accelerator=accelerator
    )
    Validation(evaluator, batches_of(2), every_steps=2, every_epochs=1).attach(engine)
    for handler in (
        ClearCache(every_steps=1),
        GarbageCollector(every_steps=2, disable_automatic=True, freeze_after=2),
        CudaGarbageCollector(every_epochs=1),
        MinibatchMaxRAM(),
        EpochMaxRAM(),
        ExperienceMaxRAM(),
        MaxDeviceMemory(),
    ):
        handler.attach(engine)
    hooks, log = Hooks(), Log()
    for channel in CHANNELS:
        hooks.register(channel, noting(log, channel))
    with pytest.warns(UserWarning, match="on_loop and on_epoch may be left late"):
        hooks.attach(engine)
    seen = record(
        engine, [Events.ITERATION_COMPLETED, TrainEvents.STEP_COMPLETED, Events.EPOCH_COMPLETED]
    )
    validated = record(engine, [TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED])
    engine.run(wrap(batches_of(5), accelerator), max_epochs=2)

    reference = make_model(0)
    epoch = [[0, 1], [2, 3], [4]]
    train_on_windows(reference, sgd(reference), batches_of(5), [*epoch, *epoch], clip=clip)
    assert torch.equal(weights(model), weights(reference))
    assert all(parameter.grad is None for parameter in model.parameters())
    steps = [iteration for name, _, iteration in seen if name == "STEP_COMPLETED"]
    assert steps == [2, 4, 5, 7, 9, 10]
    assert [iteration for _, _, iteration in validated] == [4, 4, 5, 5, 7, 7, 10, 10]
    assert engine.state.validation == 4
    assert engine.state.metrics["val_loss"] == evaluator.run(batches_of(2)).metrics["loss"]
    assert {"grad_norm", "minibatch_max_ram_mib", "epoch_max_ram_mib"} <= set(engine.state.metrics)
    assert engine.last_event_name == Events.COMPLETED
    assert log.open == []
    assert {each[1:] for each in log} == set(CHANNELS)
    assert log.failed == []
    assert (gc.isenabled(), is_frozen()) == (True, False)


def test_last_event_name_is_the_handlers_event_on_a_plain_engine():
    model, accelerator = make_model(0), Accelerator(cpu=True)
    engine = Engine(lambda e, batch: accelerator.backward(F.mse_loss(model(batch[0]), batch[1])))
    OptimizerStep(accelerator, sgd(model)).attach(engine)
    Validation(lambda: None, every_steps=1, every_epochs=1).attach(engine)
    events = [*Events, TrainEvents.STEP_COMPLETED, TrainEvents.VALIDATION_COMPLETED]
    seen = []
    for event in events:
        engine.add_event_handler(
            event, lambda *args, event=event, **more: seen.append((event, engine.last_event_name))
        )
    engine.run(batches_of(2))
    assert len(seen) > 12
    assert all(mine == last for mine, last in seen)
