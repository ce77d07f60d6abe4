"""Resuming in another trainer, from any step, gives the bits of an unbroken run."""

import copy
import io

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from ignite.engine import Events
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from ignite_hooks import GradientClipping
from ignite_hooks import create_supervised_trainer
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import seed
from tests.reference import weights

EPOCHS = 3


def shuffled(**options):
    return DataLoader(Noisy(10), 2, shuffle=True, **options)


class WithoutLength:
    """Batches in a random order, without a length."""

    def __iter__(self):
        return iter([batches_of(5)[i] for i in torch.randperm(5)])


KINDS = {
    "plain": {},
    "accumulation": {"accumulation": 2},
    "a window that ends with the data": {"accumulation": 4},
    "scheduler by epoch": {"scheduler_at": "epoch"},
    "a seedable sampler": {"seedable": True, "accumulation": 2},
    "workers": {"data": lambda: DataLoader(Noisy(10, 0), 2, shuffle=True, num_workers=2)},
    "no length": {"data": WithoutLength, "accumulation": 2},
    "epochs of 3 batches": {"run": {"epoch_length": 3}, "accumulation": 2},
    "epochs of 7 batches": {"run": {"epoch_length": 7}},
    "an epoch that is broken off": {"break_off": 7, "accumulation": 2},
    "handlers that draw": {"drawing": True, "accumulation": 2},
}


def trainer_of(kind, *, number):
    """A trainer as a script makes it, from another seed each time."""
    options = {"data": shuffled, "accumulation": 1, "scheduler_at": "step", **KINDS[kind]}
    seed(number)
    model = make_model(dropout=0.5)
    seed(number)
    loaders = DataLoaderConfiguration(use_seedable_sampler=options.get("seedable", False))
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        torch.nn.functional.mse_loss,
        options["data"](),
        accelerator=Accelerator(
            cpu=True,
            gradient_accumulation_steps=options["accumulation"],
            dataloader_config=loaders,
        ),
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
        scheduler_at=options["scheduler_at"],
        grad_clip=GradientClipping(max_norm=1.0),
    )
    if "drawing" in options:
        for event in (Events.STARTED, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED):
            trainer.add_event_handler(event, lambda: (torch.rand(3), np.random.rand()))
    if "break_off" in options:
        event = Events.ITERATION_COMPLETED(once=options["break_off"])
        trainer.add_event_handler(event, trainer.terminate_epoch)
    return trainer, options.get("run", {})


def states(trainer):
    """Returns the state that a checkpoint holds, after a round trip through a safe file."""
    file = io.BytesIO()
    torch.save(
        {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
            "place": trainer.position_state_dict(),
        },
        file,
    )
    file.seek(0)
    return torch.load(file, weights_only=True)


def load(trainer, state_dicts):
    trainer.model.load_state_dict(state_dicts["model"])
    trainer.optimizer.load_state_dict(state_dicts["optimizer"])
    trainer.lr_scheduler.load_state_dict(state_dicts["scheduler"])
    trainer.load_position_state_dict(copy.deepcopy(state_dicts["place"]))


def history(trainer):
    """Returns a log of epoch, iteration, step, rate and loss of each iteration."""
    seen = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(trainer):
        state = trainer.state
        (rate,) = trainer.lr_scheduler.get_last_lr()
        seen.append((state.epoch, state.iteration, state.optimizer_step, rate, float(state.output)))

    return seen


def saving(trainer):
    """Returns the states after each step, taken last, as a handler that saves does."""
    saved = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def save():
        if trainer.state.step_committed:
            trainer.defer(lambda: saved.append((trainer.state.iteration, states(trainer))), 1)

    return saved


def whole_run(kind):
    trainer, run = trainer_of(kind, number=1)
    seen, saved = history(trainer), saving(trainer)
    trainer.run(max_epochs=EPOCHS, **run)
    return seen, saved, weights(trainer.model)


@pytest.mark.grid(4)
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_from_every_step_ends_in_the_same_bits(kind):
    seen, saved, final = whole_run(kind)
    assert len(saved) == seen[-1][2] >= 6
    for iteration, state_dicts in saved:
        trainer, run = trainer_of(kind, number=2)
        load(trainer, state_dicts)
        resumed = history(trainer)
        trainer.run(max_epochs=EPOCHS, **run)
        assert resumed == [each for each in seen if each[1] > iteration]
        assert torch.equal(weights(trainer.model), final)


def test_resumes_of_resumes_end_in_the_same_bits_too():
    _, saved, final = whole_run("accumulation")
    state_dicts = saved[0][1]
    for _ in range(len(saved) - 1):
        trainer, _ = trainer_of("accumulation", number=3)
        load(trainer, state_dicts)
        again = saving(trainer)
        trainer.run(max_epochs=EPOCHS)
        state_dicts = again[0][1]
    assert torch.equal(weights(trainer.model), final)


def test_finished_run_fires_no_event_and_continues_if_extended():
    _, saved, final = whole_run("plain")
    trainer, _ = trainer_of("plain", number=2)
    load(trainer, saved[-1][1])
    fired = record(trainer, [Events.STARTED, Events.EPOCH_STARTED, Events.COMPLETED])
    for run in ({"max_epochs": EPOCHS}, {}, {"max_steps": 15}):
        state = trainer.run(**run)
        assert fired == []
        assert torch.equal(weights(trainer.model), final)
        assert (state.epoch, state.iteration, state.optimizer_step) == (EPOCHS, 15, 15)

    longer, _ = trainer_of("plain", number=1)
    longer.run(max_epochs=EPOCHS + 2)
    trainer.run(max_epochs=EPOCHS + 2)
    assert torch.equal(weights(trainer.model), weights(longer.model))
    assert trainer.state.epoch == EPOCHS + 2


def test_saved_limits_hold_only_where_none_is_given():
    trainer = make_trainer(batches_of(4))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.terminate)
    trainer.run(max_steps=6, max_epochs=9)
    place = trainer.position_state_dict()
    for given, steps in (({}, 6), ({"max_epochs": 3}, 12), ({"max_steps": 7}, 7)):
        other = make_trainer(batches_of(4))
        other.load_position_state_dict(place)
        other.run(**given)
        assert other.state.optimizer_step == steps


def test_run_after_a_continued_run_starts_from_scratch():
    trainer = make_trainer(batches_of(4))
    trainer.run(max_epochs=1)
    other = make_trainer(batches_of(4))
    other.load_position_state_dict(trainer.position_state_dict())
    other.run(max_epochs=2)
    other.run()  # as in Ignite, a finished run starts from scratch
    assert (other.state.epoch, other.state.iteration) == (1, 4)


def test_removing_the_limit_restarts_a_resumed_trainer():
    trainer = make_trainer(batches_of(4))
    trainer.run(max_epochs=2)
    other = make_trainer(batches_of(4))
    other.load_position_state_dict(trainer.position_state_dict())
    other.state.max_epochs = None
    torch.rand(1)
    before = torch.get_rng_state()
    other.run(max_epochs=1)
    assert (other.state.epoch, other.state.iteration) == (1, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_deferred_callback_waits_for_the_end_of_a_broken_epoch():
    trainer, acted = make_trainer(batches_of(4)), []

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def break_off():
        trainer.defer(lambda: acted.append((trainer.last_event_name, trainer.state.epoch)))
        trainer.terminate_epoch()

    trainer.run(max_epochs=2)
    assert acted == [(Events.EPOCH_COMPLETED, 1)]
