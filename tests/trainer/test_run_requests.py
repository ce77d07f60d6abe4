import pytest
from ignite.engine import Engine

from tests.reference import batches_of
from tests.reference import make_trainer

FLAGS = {
    "should_terminate": Engine.terminate,
    "should_terminate_single_epoch": Engine.terminate_epoch,
    "should_interrupt": Engine.interrupt,
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_set_and_cleared_as_on_any_engine(name):
    trainer, other = make_trainer(batches_of(2)), make_trainer(batches_of(2))
    assert getattr(trainer, name) is False
    FLAGS[name](trainer)
    assert getattr(trainer, name)
    assert not getattr(other, name)
    setattr(trainer, name, False)
    assert getattr(trainer, name) is False
    setattr(trainer, name, "a reason")
    assert getattr(trainer, name) == "a reason"
    delattr(trainer, name)
    assert getattr(trainer, name) is False
