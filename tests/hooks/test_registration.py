import pytest

from tests.reference import Log
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import noting


def test_a_registration_is_removed_alone_and_once():
    trainer, log = make_trainer(batches_of(1)), Log()
    context = noting(log, "twice")
    first, second = (trainer.hooks.register("on_step", context) for _ in range(2))
    first.remove()
    first.remove()
    assert len(trainer.hooks) == 1
    trainer.run()
    assert log == ["+twice", "-twice"]
    second.remove()
    trainer.run()
    assert len(log) == 2


def test_a_registration_lasts_until_the_end_of_its_with():
    trainer, log = make_trainer(batches_of(1)), Log()
    with trainer.hooks.register("on_step", noting(log, "a")):
        trainer.run()
    trainer.run()
    assert log == ["+a", "-a"]


def test_a_failure_passes_through_its_with_and_ends_it():
    trainer, log = make_trainer(batches_of(1)), Log()
    with pytest.raises(ZeroDivisionError), trainer.hooks.register("on_step", noting(log, "a")):
        raise ZeroDivisionError
    assert len(trainer.hooks) == 0


def test_the_with_gives_the_registration():
    trainer, log = make_trainer(batches_of(1)), Log()
    with trainer.hooks.register("on_step", noting(log, "a")) as registration:
        registration.remove()
        assert len(trainer.hooks) == 0
