"""The state of an engine as data, as in Ignite: what it holds, and the run after it is loaded."""

import pytest
import torch
from ignite.engine import Events

from tests.as_in_ignite.sides import Side
from tests.as_in_ignite.sides import counters
from tests.as_in_ignite.sides import listen
from tests.as_in_ignite.sides import outputs
from tests.as_in_ignite.sides import short_id
from tests.versions import needs


def state_of(side, engine, steps):
    """Returns the state dict, without the steps that only the trainer's has."""
    state_dict = dict(engine.state_dict())
    if side.departs("the state counts steps", ignite=False, ours=True):
        assert state_dict.pop("optimizer_step") == steps
    return state_dict


SAVED = [
    ({"max_epochs": 3}, {"epoch_length": 4, "max_epochs": 3, "iteration": 12}),
    ({"max_iters": 6}, {"epoch_length": 4, "max_iters": 6, "iteration": 6}),
    ({"max_epochs": 2, "epoch_length": 3}, {"epoch_length": 3, "max_epochs": 2, "iteration": 6}),
]


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize(("limits", "expected"), SAVED, ids=short_id)
def test_the_state_after_a_run(side, limits, expected):
    engine = side.engine()
    engine.run(range(4), **limits)
    assert state_of(side, engine, expected["iteration"]) == expected


def test_the_state_before_a_run_can_be_loaded(side):
    engine = side.engine()
    state_dict = engine.state_dict()
    empty = {"epoch_length": None, "max_epochs": None, "iteration": 0}
    assert state_of(side, engine, 0) == empty
    engine.load_state_dict(state_dict)
    engine.run(range(4))
    assert counters(engine) == (1, 4)


def test_the_users_own_keys(side, tmp_path):
    engine = side.engine()
    engine.state_dict_user_keys.extend(["alpha", "beta"])
    engine.state.alpha, engine.state.beta = 0.1, "b"
    engine.run(range(4))
    torch.save(engine.state_dict(), tmp_path / "engine.pt")
    other = side.engine()
    other.state_dict_user_keys.extend(["alpha", "beta"])
    other.load_state_dict(torch.load(tmp_path / "engine.pt"))
    assert (other.state.alpha, other.state.beta) == (0.1, "b")
    assert counters(other) == (1, 4)


LOADED = [
    # the state, then the epoch and the iteration that it means, and those at the run's end
    ({"iteration": 8, "epoch_length": 4, "max_epochs": 5}, (2, 8), (5, 20)),
    ({"epoch": 2, "epoch_length": 4, "max_epochs": 5}, (2, 8), (5, 20)),
    ({"iteration": 6, "epoch_length": 4, "max_epochs": 3}, (1, 6), (3, 12)),
    ({"iteration": 6, "epoch_length": 4, "max_iters": 11}, (1, 6), (3, 11)),
    ({"epoch": 1, "epoch_length": 4, "max_iters": 11}, (1, 4), (3, 11)),
]


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize(("state_dict", "place", "end"), LOADED, ids=short_id)
def test_a_loaded_state_is_continued(side, state_dict, place, end):
    engine = side.engine()
    engine.load_state_dict(state_dict)
    assert counters(engine) == place
    assert engine.state.epoch_length == 4
    seen, given = listen(engine, Events.STARTED, Events.EPOCH_STARTED), outputs(engine)
    engine.run(range(4))
    assert seen[:2] == [("STARTED", *place), ("EPOCH_STARTED", place[0] + 1, place[1])]
    assert counters(engine) == end
    assert len(given) == end[1] - place[1]


@pytest.mark.parametrize("stop", [5, 6, 7])
def test_the_batches_after_a_state_within_an_epoch(side, stop):
    engine = side.engine()
    engine.load_state_dict({"iteration": stop, "epoch_length": 4, "max_epochs": 3})
    given = outputs(engine)
    engine.run(range(4))
    assert given == side.departs(
        "a resumed epoch skips the batches it has had",
        ignite=[number % 4 for number in range(12 - stop)],
        ours=[number % 4 for number in range(stop, 12)],
    )


def test_the_batches_after_a_state_between_epochs(side):
    engine = side.engine()
    engine.load_state_dict({"epoch": 2, "epoch_length": 4, "max_epochs": 3})
    given = outputs(engine)
    engine.run(range(4))
    assert given == [0, 1, 2, 3]


def test_limits_of_run_take_the_place_of_those_loaded(side):
    engine, data = side.engine(), range(4)
    engine.load_state_dict({"epoch": 2, "epoch_length": 4, "max_epochs": 5})
    engine.run(data, max_epochs=3)
    assert (counters(engine), engine.state.max_epochs) == ((3, 12), 3)


def test_after_a_finished_state_a_new_run_begins(side):
    engine = side.engine()
    engine.load_state_dict({"epoch": 2, "epoch_length": 4, "max_epochs": 2})
    seen = listen(engine, Events.STARTED)
    engine.run(range(4))
    assert seen == [("STARTED", 0, 0)]
    assert counters(engine) == (1, 4)


def test_each_side_loads_the_state_of_the_other(side):
    engine, other = side.engine(), Side("ignite" if side.is_ours else "trainer").engine()
    other.add_event_handler(Events.EPOCH_COMPLETED(once=2), other.terminate)
    other.run(range(4), max_epochs=3)
    engine.load_state_dict(other.state_dict())
    given = outputs(engine)
    engine.run(range(4))
    assert (counters(engine), given) == ((3, 12), [0, 1, 2, 3])


@pytest.mark.parametrize("arguments", [{"max_epochs": 1}, {"epoch_length": 3}], ids=short_id)
def test_arguments_that_contradict_a_loaded_state(side, arguments):
    engine = side.engine()
    engine.load_state_dict({"epoch": 2, "epoch_length": 4, "max_epochs": 5})
    with pytest.raises(ValueError, match=next(iter(arguments))):
        engine.run(range(4), **arguments)


INVALID = [
    ("text", TypeError),
    ({}, ValueError),
    ({"max_epochs": 5, "epoch_length": 4}, ValueError),
    ({"max_epochs": 5, "iteration": 3}, ValueError),
    ({"max_epochs": 5, "epoch_length": 4, "iteration": 3, "epoch": 1}, ValueError),
    ({"max_epochs": 5, "epoch_length": None, "epoch": 2}, ValueError),
    ({"max_epochs": 5, "epoch_length": 0, "iteration": 2}, ValueError),
    ({"epoch_length": 4, "iteration": 2}, ValueError),
]


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize(("state_dict", "error"), INVALID, ids=short_id)
def test_a_state_that_lacks_something_changes_nothing(side, state_dict, error):
    engine = side.engine()
    with pytest.raises(error):
        engine.load_state_dict(state_dict)
    engine.run(range(4), max_epochs=2)
    assert counters(engine) == (2, 8)


def test_a_key_of_the_user_that_is_missing_is_an_error(side):
    engine = side.engine()
    engine.state_dict_user_keys.append("alpha")
    with pytest.raises(ValueError, match="alpha"):
        engine.load_state_dict({"epoch": 2, "epoch_length": 4, "max_epochs": 5})


def test_users_attributes_stay_when_a_state_is_loaded(side):
    engine = side.engine()
    engine.state.alpha = 0.5
    engine.load_state_dict({"iteration": 3, "epoch_length": 4, "max_epochs": 2})
    engine.run(range(4))
    assert engine.state.alpha == 0.5
