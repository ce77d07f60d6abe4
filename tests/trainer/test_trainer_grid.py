import math
import random
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import Loss
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import TensorDataset

from ignite_hooks import GradientClipping
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from tests.reference import Noisy
from tests.reference import make_model
from tests.reference import seed
from tests.reference import train_by_hand
from tests.reference import weights

EPOCHS = 2
WINDOWS = [(1, 5), (1, 7), (2, 6), (2, 7), (4, 8), (4, 7), (7, 7), (7, 10)]
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.2, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
}
CLIPPING = {
    "off": (None, None),
    "norm": (
        lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, 0.4),
        GradientClipping(max_norm=0.4),
    ),
    "value": (
        lambda parameters: torch.nn.utils.clip_grad_value_(parameters, 0.05),
        GradientClipping(clip_value=0.05),
    ),
}
VALIDATING = {
    "off": {},
    "every step": {"every_steps": 1},
    "every 3 steps": {"every_steps": 3},
    "every epoch": {"every_epochs": 1},
}


class WithoutLength:
    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return (self.samples[index] for index in range(len(self.samples)))


def make_loader(batches, augmented, shuffle=True):
    samples = Noisy(2 * batches)
    if not augmented:
        samples = TensorDataset(samples.x, samples.y)
    return DataLoader(samples, batch_size=2, shuffle=shuffle)


def random_states():
    python, numpy = random.getstate(), np.random.get_state()
    return python, numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()


@cache
def plain_loop(accumulation, batches, clip, optimizer, scheduler_at, augmented, shuffle=True):
    model = make_model()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    scheduler = ExponentialLR(optimizer, 0.8)
    seed()
    train_by_hand(
        model,
        optimizer,
        make_loader(batches, augmented, shuffle),
        accumulation=accumulation,
        epochs=EPOCHS,
        clip=CLIPPING[clip][0],
        after_step=scheduler.step if scheduler_at == "step" else None,
        after_epoch=scheduler.step if scheduler_at == "epoch" else None,
    )
    return weights(model), optimizer.param_groups[0]["lr"], random_states()


def held_out_validation(model, accelerator, schedule):
    """Draws from all generators: its loader is shuffled and augmented."""
    held_out = accelerator.prepare(DataLoader(Noisy(5), batch_size=2, shuffle=True))
    evaluator = create_supervised_evaluator(
        model, {"loss": Loss(F.mse_loss)}, accelerator=accelerator
    )
    return Validation(evaluator, held_out, **schedule)


def make_trainer(accumulation, data, clip, optimizer, scheduler_at, schedule):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = make_model()
    return create_supervised_trainer(
        model,
        OPTIMIZERS[optimizer](model.parameters()),
        F.mse_loss,
        data,
        accelerator=accelerator,
        lr_scheduler=lambda optimizer: ExponentialLR(optimizer, 0.8),
        scheduler_at=scheduler_at,
        grad_clip=CLIPPING[clip][1],
        validation=held_out_validation(model, accelerator, schedule) if schedule else None,
    )


def run(trainer):
    seed()
    trainer.run(max_epochs=EPOCHS)
    return weights(trainer.model), trainer.optimizer.param_groups[0]["lr"], random_states()


def assert_same(result, expected, is_exact=True):
    assert result[1:] == expected[1:]
    if is_exact:
        assert torch.equal(result[0], expected[0])
    else:
        torch.testing.assert_close(result[0], expected[0], rtol=1e-5, atol=1e-6)


def is_exact(accumulation, batches, length):
    """A short window whose size was not known is scaled by N / k at its end.

    That rounds once more than dividing each loss by k, unless both are powers of two.
    """
    short = batches % accumulation
    powers_of_two = {1, 2, 4, 8}
    return length == "known" or not short or {short, accumulation} <= powers_of_two


def count(trainer, event):
    fired = []
    trainer.add_event_handler(event, lambda engine: fired.append(engine.state.iteration))
    return fired


@pytest.mark.grid(17)
@pytest.mark.parametrize("scheduler_at", ["step", "epoch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("length", ["known", "unknown"])
@pytest.mark.parametrize("validating", VALIDATING)
@pytest.mark.parametrize("clip", CLIPPING)
@pytest.mark.parametrize(("accumulation", "batches"), WINDOWS)
def test_trainer_trains_like_the_plain_loop(
    accumulation, batches, clip, validating, length, optimizer, scheduler_at
):
    # Finding the end of data without a length takes a look ahead, which augmentation would feel.
    augmented = length == "known"
    data = make_loader(batches, augmented)
    schedule = VALIDATING[validating]
    trainer = make_trainer(
        accumulation,
        data if length == "known" else WithoutLength(data),
        clip,
        optimizer,
        scheduler_at,
        schedule,
    )
    validations = count(trainer, TrainEvents.VALIDATION_COMPLETED)
    result = run(trainer)
    expected = plain_loop(accumulation, batches, clip, optimizer, scheduler_at, augmented)
    assert_same(result, expected, is_exact(accumulation, batches, length))
    steps = math.ceil(batches / accumulation) * EPOCHS
    assert trainer.state.optimizer_step == steps
    due = {"off": 0, "every step": steps, "every 3 steps": steps // 3, "every epoch": EPOCHS}
    assert len(validations) == due[validating]


@pytest.mark.parametrize("length", ["known", "unknown"])
@pytest.mark.parametrize(("accumulation", "batches"), WINDOWS)
def test_validation_by_a_plain_ignite_engine_changes_nothing(accumulation, batches, length):
    augmented = length == "known"
    data = make_loader(batches, augmented)
    data = data if augmented else WithoutLength(data)
    trainer = make_trainer(accumulation, data, "norm", "SGD", "step", {})
    held_out = trainer.accelerator.prepare(DataLoader(Noisy(5), batch_size=2, shuffle=True))
    evaluator = Engine(lambda engine, batch: trainer.model(batch[0]))
    Validation(evaluator, held_out, every_steps=1).attach(trainer)
    expected = plain_loop(accumulation, batches, "norm", "SGD", "step", augmented)
    assert_same(run(trainer), expected, is_exact(accumulation, batches, length))


def test_every_axis_of_the_grid_makes_a_difference():
    results = {
        (*windows, clip, optimizer, scheduler_at, augmented): plain_loop(
            *windows, clip, optimizer, scheduler_at, augmented
        )[0]
        for windows in WINDOWS
        for clip in CLIPPING
        for optimizer in OPTIMIZERS
        for scheduler_at in ("step", "epoch")
        for augmented in (True, False)
    }
    # With a single step an epoch the two schedules are one.
    distinct = {tuple(w.tolist()) for case, w in results.items() if case[:2] != (7, 7)}
    assert len(distinct) == sum(case[:2] != (7, 7) for case in results)


@pytest.mark.parametrize("clip", CLIPPING)
@pytest.mark.parametrize(("accumulation", "batches"), WINDOWS)
def test_an_iterable_data_set_trains_as_the_plain_loop_does(accumulation, batches, clip):
    samples = make_loader(batches, augmented=False).dataset
    data = DataLoader(Stream(samples), batch_size=2)
    result = run(make_trainer(accumulation, data, clip, "SGD", "step", {"every_steps": 1}))
    expected = plain_loop(accumulation, batches, clip, "SGD", "step", False, shuffle=False)
    assert torch.equal(result[0], expected[0]) or not is_exact(accumulation, batches, "unknown")
    torch.testing.assert_close(result[0], expected[0], rtol=1e-5, atol=1e-6)


@pytest.mark.grid(7)
@pytest.mark.parametrize("scheduler_at", ["step", "epoch"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("length", ["known", "unknown"])
@pytest.mark.parametrize("clip", CLIPPING)
@pytest.mark.parametrize(("accumulation", "batches"), WINDOWS)
def test_accelerate_path_gives_the_bits_of_the_plain_path(
    accumulation, batches, clip, length, optimizer, scheduler_at
):
    results = []
    for is_plain in (True, False):
        data = make_loader(batches, augmented=length == "known")
        trainer = make_trainer(
            accumulation,
            data if length == "known" else WithoutLength(data),
            clip,
            optimizer,
            scheduler_at,
            {"every_steps": 2},
        )
        assert trainer._optimizer_step.prepared.calls_torch_directly
        trainer._optimizer_step.prepared.calls_torch_directly = is_plain
        results.append(run(trainer))
    assert_same(*results)


@pytest.mark.grid(7)
@pytest.mark.parametrize("clip", CLIPPING)
@pytest.mark.parametrize(("accumulation", "batches"), WINDOWS)
def test_with_a_listener_on_every_event_the_bits_are_the_same(accumulation, batches, clip):
    data = make_loader(batches, augmented=True)
    trainer = make_trainer(accumulation, data, clip, "SGD", "step", {"every_steps": 1})
    heard = set()

    def listen(engine, *args, **kwargs):
        heard.add(engine.last_event_name)

    for event in (*Events, *TrainEvents):
        trainer.add_event_handler(event, listen)
    assert_same(run(trainer), plain_loop(accumulation, batches, clip, "SGD", "step", True))
    assert set(TrainEvents) - heard == {TrainEvents.CHECKPOINT_SAVED}
