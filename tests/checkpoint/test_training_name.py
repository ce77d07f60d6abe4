from ignite.engine import Engine

from ignite_hooks.checkpoint.training_name import name_training
from ignite_hooks.checkpoint.training_name import training_of


def test_a_trainer_has_a_name_of_its_own_and_keeps_it():
    one, other = (Engine(lambda engine, batch: None) for _ in range(2))
    assert training_of(one) == training_of(one)
    assert training_of(one) != training_of(other)


def test_one_that_goes_on_takes_the_name_over():
    one, other = (Engine(lambda engine, batch: None) for _ in range(2))
    name_training(other, training_of(one))
    assert training_of(other) == training_of(one)
