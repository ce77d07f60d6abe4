import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from ignite.handlers import Timer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from ignite_hooks import GradientClipping
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from ignite_hooks.core.handler import attached
from ignite_hooks.optim.optimizer_step import OptimizerStep
from tests.reference import Noisy
from tests.reference import make_model


def make_trainer(data=None, **options):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"loss_fn": F.mse_loss, "accelerator": Accelerator(cpu=True), **options}
    return create_supervised_trainer(model, optimizer, data=data, **options)


def no_metrics():
    return {}


class Noting:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def attach(self, engine):
        engine.add_event_handler(
            TrainEvents.OPTIMIZER_STEP_STARTED,
            lambda engine: self.log.append((self.name, "grad_norm" in engine.state.metrics)),
        )


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_gradients_are_clipped_first_and_handlers_follow_in_their_order(kind):
    log = []
    handlers = kind([Noting(log, "a"), Noting(log, "b")])
    trainer = make_trainer(
        DataLoader(Noisy(4), 2), grad_clip=GradientClipping(max_norm=1.0), handlers=handlers
    )
    trainer.run(max_steps=1)
    assert log == [("a", True), ("b", True)]


def test_handlers_of_this_package_are_known_to_the_trainer():
    clip, validation = GradientClipping(max_norm=1.0), Validation(no_metrics, every_epochs=1)
    trainer = make_trainer(grad_clip=clip, validation=validation, handlers=[Timer()])
    assert attached(trainer, GradientClipping) == [clip]
    assert attached(trainer, Validation) == [validation]
    assert len(attached(trainer, OptimizerStep)) == 1


def test_the_step_comes_before_every_handler_of_the_iteration():
    seen = []
    timer = Timer()
    trainer = make_trainer([(torch.ones(2, 4), torch.ones(2, 2))], handlers=[timer])
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.optimizer_step)
    )
    trainer.run()
    assert seen == [1]


def test_everything_is_prepared_once_and_what_is_prepared_is_used_as_it_is():
    accelerator = Accelerator(cpu=True)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1)
    loader = DataLoader(Noisy(4), 2)
    prepared = accelerator.prepare(model, optimizer, loader, scheduler)
    trainer = create_supervised_trainer(
        prepared[0],
        prepared[1],
        F.mse_loss,
        prepared[2],
        accelerator=accelerator,
        lr_scheduler=prepared[3],
    )
    trainer.run()
    assert trainer.model is prepared[0]
    assert trainer.optimizer is prepared[1]
    assert trainer.state.dataloader is prepared[2]
    assert trainer.lr_scheduler is prepared[3]
    for known in ("_models", "_optimizers", "_dataloaders", "_schedulers"):
        assert len(getattr(accelerator, known)) == 1


def test_a_loader_given_to_the_factory_and_again_to_run_is_prepared_once():
    loader = DataLoader(Noisy(4), 2)
    trainer = make_trainer(loader)
    for _ in range(2):
        trainer.run(loader)
    trainer.run(trainer.state.dataloader)
    assert len(trainer.accelerator._dataloaders) == 1
    assert trainer.feed.position.data_pass == 3


def test_a_user_made_scheduler_callable_sees_the_optimizer_of_the_trainer():
    given = []
    trainer = make_trainer(
        lr_scheduler=lambda optimizer: given.append(optimizer) or StepLR(optimizer, 1)
    )
    assert given == [trainer.optimizer]
    assert trainer.lr_scheduler.optimizer is trainer.optimizer
