from types import SimpleNamespace

import pytest

from ignite_hooks.core.place import Progress
from ignite_hooks.trainer.progress import Limits


def test_limits_that_are_reached_are_left_out():
    limits = Limits(max_epochs=2, max_steps=7)
    assert limits.without_reached(Progress(epochs=2), 6) == Limits(max_steps=7)
    assert limits.without_reached(Progress(epochs=2), 7) == Limits()


def test_limits_are_filled_up_with_those_of_before():
    assert Limits(max_epochs=3) | Limits(max_epochs=2, max_steps=7) == Limits(
        max_epochs=3, max_steps=7
    )


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        (Limits(), None),
        (Limits(max_epochs=2), "max_epochs"),
        (Limits(max_epochs=3), None),
        (Limits(max_iters=10), "max_iters"),
        (Limits(max_iters=11), None),
        (Limits(max_steps=5), "max_steps"),
        (Limits(max_steps=6), None),
        (Limits(max_epochs=3, max_steps=5), "max_steps"),
        (Limits(max_epochs=2, max_steps=6), "max_epochs"),
    ],
)
def test_whichever_limit_comes_first_is_reached(limits, reached):
    assert limits.reached(Progress(iteration=10, epochs=2), 5) == reached


@pytest.mark.parametrize("name", ["max_epochs", "max_iters", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1"])
def test_a_limit_is_an_integer_of_at_least_one(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be an integer >= 1, got .*: leave it"):
        Limits(**{name: value}).check(Progress(), 0)


@pytest.mark.parametrize(
    ("limits", "done"),
    [(Limits(max_epochs=1), 2), (Limits(max_iters=9), 10), (Limits(max_steps=4), 5)],
)
def test_a_limit_in_the_past_names_what_is_done(limits, done):
    with pytest.raises(ValueError, match=rf"at least what is done already, {done}, got"):
        limits.check(Progress(iteration=10, epochs=2), 5)


def test_epochs_and_iterations_exclude_each_other():
    with pytest.raises(ValueError, match="only one of `max_epochs` and `max_iters`"):
        Limits(max_epochs=1, max_iters=1).check(Progress(), 0)
    Limits(max_iters=1, max_steps=1).check(Progress(), 0)


def test_what_was_edited_on_the_state_counts():
    limits = Limits(max_steps=8)
    shown = Limits(max_epochs=2, max_steps=8)
    state = SimpleNamespace(max_epochs=2, max_iters=None, max_steps=8)
    assert limits.edited(shown, Limits.of(state)) == limits
    state.max_epochs = 5
    assert limits.edited(shown, Limits.of(state)) == Limits(max_epochs=5, max_steps=8)
    state.max_epochs = None
    assert limits.edited(shown, Limits.of(state)) == Limits()
