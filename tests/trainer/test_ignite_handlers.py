"""Ignite's loggers of gradients on a trainer, and the warning where they log nothing."""

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers.tensorboard_logger import GradsHistHandler
from ignite.handlers.tensorboard_logger import GradsScalarHandler
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.handlers.tensorboard_logger import WeightsScalarHandler

from ignite_hooks import TrainEvents
from tests.reference import batches_of
from tests.reference import make_trainer


class Writer:
    """Records the values that a logger would write."""

    def __init__(self):
        self.rows = []

    def add_scalar(self, tag, value, step=None, **more):
        self.rows.append((tag, float(value), step))

    def add_histogram(self, tag, values, step=None, **more):
        self.rows.append((tag, float(abs(values).sum()), step))

    def close(self):
        pass


class Logger(TensorboardLogger):
    def __init__(self):
        self.writer = Writer()


def by_ignite(model):
    """Ignite's own supervised trainer, written out: it steps, and zeroes in the next iteration."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(engine, batch):
        optimizer.zero_grad()
        loss = F.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return Engine(step)


@pytest.mark.parametrize("kind", [GradsScalarHandler, GradsHistHandler])
@pytest.mark.parametrize(
    "event",
    [
        Events.ITERATION_COMPLETED,
        Events.ITERATION_COMPLETED(every=2),
        TrainEvents.OPTIMIZER_STEP_STARTED,
        TrainEvents.OPTIMIZER_STEP_COMPLETED,
    ],
)
def test_gradient_loggers_log_the_same_as_on_ignites_engine(event, kind):
    trainer = make_trainer()
    reference = make_trainer().model
    logged = []
    for engine, model in ((trainer, trainer.model), (by_ignite(reference), reference)):
        logger = Logger()
        is_of_ignite = engine.has_registered_events(event)
        logger.attach(engine, kind(model), event if is_of_ignite else Events.ITERATION_COMPLETED)
        engine.run(batches_of(4))
        logged.append([(tag, value) for tag, value, _ in logger.writer.rows])
    assert logged[0] == logged[1]
    assert all(value for _, value in logged[0])


@pytest.mark.parametrize("kind", [GradsScalarHandler, GradsHistHandler])
@pytest.mark.parametrize(
    "event",
    [
        TrainEvents.STEP_COMPLETED,
        Events.EPOCH_COMPLETED,
        Events.EPOCH_COMPLETED(every=2),
        Events.ITERATION_STARTED | Events.ITERATION_COMPLETED,
    ],
)
def test_a_gradient_logger_without_gradients_warns_once(event, kind):
    trainer, logger = make_trainer(batches_of(4)), Logger()
    message = f"{kind.__name__} at .* finds no gradients.*OPTIMIZER_STEP_COMPLETED"
    with pytest.warns(UserWarning, match=message):
        logger.attach(trainer, kind(trainer.model), event)
    trainer.run(max_epochs=2)  # where another warning would be an error


def test_a_logger_of_weights_does_not_warn():
    trainer, logger = make_trainer(batches_of(2)), Logger()
    logger.attach(trainer, WeightsScalarHandler(trainer.model), Events.EPOCH_COMPLETED)
    trainer.run()
    assert logger.writer.rows
