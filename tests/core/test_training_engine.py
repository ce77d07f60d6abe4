import inspect
from unittest import mock

import pytest
from ignite.engine import Engine

from ignite_hooks import Trainer
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import is_trainer
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer

METHODS = {name for name, value in vars(TrainingEngine).items() if inspect.isfunction(value)}
PROPERTIES = {name for name, value in vars(TrainingEngine).items() if isinstance(value, property)}
ATTRIBUTES = set(TrainingEngine.__annotations__)


def test_is_trainer_is_true_for_trainers_only():
    assert is_trainer(make_trainer())
    assert not is_trainer(Engine(lambda engine, batch: None))
    assert not is_trainer(QuickEngine(lambda engine, batch: None))
    assert not is_trainer(create_supervised_evaluator(make_model()))


@pytest.mark.parametrize("name", sorted(METHODS - {"__init__"} - set(dir(object))))
def test_a_trainer_has_each_method_with_these_arguments(name):
    expected = inspect.signature(getattr(TrainingEngine, name)).parameters
    offered = inspect.signature(getattr(Trainer, name)).parameters
    assert set(expected) <= set(offered)
    others = [offered[each] for each in offered if each not in expected]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    assert all(each.default is not each.empty or each.kind in variable for each in others)


@pytest.mark.parametrize("name", sorted(PROPERTIES | ATTRIBUTES))
def test_a_trainer_has_each_attribute(name):
    trainer = make_trainer(batches_of(2))
    trainer.run()
    assert hasattr(trainer, name)


def test_a_mock_is_not_a_trainer():
    assert not is_trainer(mock.MagicMock())


def test_a_trainer_without_data_is_at_no_step_boundary():
    trainer = make_trainer()
    assert trainer.feed is None
    assert trainer.batches_left is None
    assert not trainer.is_between_steps
