"""Several evaluators by name, and limits of their data."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import Loss
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset

from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer


def evaluator_of(model, accelerator):
    return create_supervised_evaluator(model, {"loss": Loss(F.mse_loss)}, accelerator=accelerator)


# Several evaluators, by name


def test_several_evaluators_have_their_names_in_the_results():
    trainer = make_trainer(batches_of(2))
    raw = evaluator_of(trainer.model, trainer.accelerator)
    averaged = evaluator_of(make_model(0), trainer.accelerator)
    data = {"a": batches_of(2), "b": batches_of(3)}
    evaluate = {"raw": raw, "ema": averaged, "own": lambda model: {"y": model.training}}
    Validation(evaluate, data, every_epochs=1).attach(trainer)
    metrics = trainer.run().metrics
    expected = {
        f"val_{name}_{loader}_loss": evaluator.run(data[loader]).metrics["loss"]
        for name, evaluator in (("raw", raw), ("ema", averaged))
        for loader in data
    }
    assert metrics == {**expected, "val_own_y": False}
    assert len(set(expected.values())) == 4


def test_several_evaluators_on_one_loader():
    trainer = make_trainer(batches_of(2))
    evaluate = {name: evaluator_of(trainer.model, trainer.accelerator) for name in ("p", "q")}
    Validation(evaluate, batches_of(2), every_epochs=1).attach(trainer)
    assert set(trainer.run().metrics) == {"val_p_loss", "val_q_loss"}


@pytest.mark.parametrize(
    ("evaluate", "data", "message"),
    [
        ({}, None, "`evaluate` must be an engine or a callable, or several by name, got {}"),
        ({"a": 5}, None, "`evaluate` of 'a' must be an engine or a callable, got int"),
        ({"a": lambda: None}, [1], "`data` must be left out with a callable"),
        ({"a": lambda x, y: None}, None, r"`evaluate` must take no argument or the model"),
        ({"a": Engine(lambda engine, batch: None)}, None, "`data` must be given"),
        (
            {name: Engine(lambda engine, batch: None) for name in "ab"},
            iter([1]),
            "`data` must be an iterable from which several evaluators get the same batches, got",
        ),
    ],
)
def test_unusable_evaluators_by_name_are_errors(evaluate, data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Validation(evaluate, data, every_epochs=1)


# How many batches


class Stream(IterableDataset):
    """A stream of samples: endless, or of a given length."""

    def __init__(self, samples=None):
        self.samples = samples

    def __iter__(self):
        numbers = itertools.count() if self.samples is None else range(self.samples)
        return ((torch.full((4,), float(n)), torch.zeros(2)) for n in numbers)


def counting(evaluator):
    batches = []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda e: batches.append(e.state.batch))
    return evaluator, batches


def ours(trainer):
    return evaluator_of(trainer.model, trainer.accelerator)


def ignites(trainer):
    return Engine(lambda engine, batch: None)


@pytest.mark.parametrize("make_evaluator", [ours, ignites])
@pytest.mark.parametrize(
    ("make_data", "expected"),
    [
        (lambda: DataLoader(Stream(), 2), 3),
        (lambda: DataLoader(Stream(10), 2), 3),
        (lambda: DataLoader(Stream(4), 2), 2),
        (lambda: DataLoader(Noisy(10), 2), 3),
        (lambda: DataLoader(Noisy(4), 2), 2),
        (lambda: batches_of(5), 3),
        (lambda: (each for each in batches_of(5)), 3),
    ],
)
def test_max_batches_limits_each_of_the_data(make_data, expected, make_evaluator):
    trainer = make_trainer(batches_of(1))
    evaluator, batches = counting(make_evaluator(trainer))
    data = {"a": make_data(), "b": make_data()}
    Validation(evaluator, data, every_epochs=1, max_batches=3).attach(trainer)
    trainer.run()
    assert len(batches) == 2 * expected


def test_limited_data_start_from_scratch_at_each_validation():
    trainer = make_trainer(batches_of(2))
    evaluator, batches = counting(ours(trainer))
    Validation(evaluator, DataLoader(Stream(), 1), every_steps=1, max_batches=2).attach(trainer)
    trainer.run()
    assert [batch[0][0, 0].item() for batch in batches] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "data", [DataLoader(Stream(), 2), itertools.repeat(1), (n for n in range(3))]
)
@pytest.mark.parametrize("by_name", [False, True])
def test_data_that_may_be_endless_need_a_limit(data, by_name):
    evaluator = Engine(lambda engine, batch: None)
    with pytest.raises(ValueError, match=r"`max_batches` must be given with `data`.* unknown len"):
        Validation(evaluator, {"a": data} if by_name else data, every_epochs=1)


def test_max_batches_with_a_callable_is_an_error():
    with pytest.raises(ValueError, match="`max_batches` must be left out with a callable, got 3"):
        Validation(lambda: None, every_epochs=1, max_batches=3)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_an_evaluator_takes_a_positive_number_of_batches(wrong):
    evaluator = evaluator_of(make_model(0), Accelerator(cpu=True))
    with pytest.raises(ValueError, match="`max_batches` must be an integer >= 1, got"):
        evaluator.run(batches_of(2), max_batches=wrong)
