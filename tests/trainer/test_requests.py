from unittest import mock

import pytest
from ignite.engine import Events

from ignite_hooks.trainer.requests import Request
from tests.reference import batches_of
from tests.reference import make_trainer

FLAGS = ("should_terminate", "should_terminate_single_epoch", "should_interrupt")


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_clear_until_it_is_set_and_after_it_is_cleared(flag):
    trainer = make_trainer(batches_of(2))
    assert getattr(trainer, flag) is False
    setattr(trainer, flag, "a word")
    assert getattr(trainer, flag) == "a word"
    assert trainer._requests == {flag: "a word"}
    for _ in range(2):
        setattr(trainer, flag, False)
        assert getattr(trainer, flag) is False
        assert not trainer._requests


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_can_be_patched_and_is_put_back(flag):
    trainer = make_trainer(batches_of(2))
    with mock.patch.object(trainer, flag, True):
        assert trainer._requests == {flag: True}
    assert getattr(trainer, flag) is False
    assert isinstance(getattr(type(trainer), flag), Request)


def test_the_flags_are_apart_from_each_other_and_from_those_of_other_engines():
    trainer, other = make_trainer(batches_of(2)), make_trainer(batches_of(2))
    trainer.terminate(skip_completed=True)
    trainer.interrupt()
    assert [getattr(trainer, flag) for flag in FLAGS] == ["skip_completed", False, True]
    assert [getattr(other, flag) for flag in FLAGS] == [False] * 3


@pytest.mark.parametrize(
    ("event", "steps"),
    [  # before the first batch is taken, `iteration` is still that of the batch before
        (Events.GET_BATCH_STARTED(once=3), 3),
        (Events.GET_BATCH_COMPLETED(once=3), 3),
        (Events.ITERATION_STARTED(once=3), 2),
        (Events.ITERATION_COMPLETED(once=3), 3),
    ],
)
def test_a_flag_that_a_handler_sets_by_hand_ends_the_run_there(event, steps):
    trainer = make_trainer(batches_of(5))

    @trainer.on(event)
    def stop(engine):
        engine.should_terminate = True

    trainer.run()
    assert trainer.stop_reason == "terminate"
    assert (trainer.state.iteration, trainer.state.optimizer_step) == (steps, steps)
