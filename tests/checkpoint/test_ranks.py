"""With one process; tests/distributed/test_checkpoints.py has two."""

import pytest

from ignite_hooks.checkpoint.ranks import Ranks
from tests.ids import stable_id


@pytest.fixture
def ranks():
    return Ranks()


def test_one_process_is_the_first_of_one(ranks):
    assert (ranks.rank, ranks.size, ranks.is_first) == (0, 1, True)


def test_what_one_process_gives_comes_back_as_it_is(ranks):
    own = object()  # which could not be sent anywhere
    (gathered,) = ranks.gather(own)
    (agreed,) = ranks.agree(lambda: own)
    assert gathered is agreed is ranks.first_alone(lambda: own) is own


def test_its_flags_are_what_it_says(ranks):
    assert ranks.any_of(True, False) == [True, False]
    assert ranks.any_of() == []


@pytest.mark.parametrize("method", ["agree", "first_alone"])
@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt()], ids=stable_id)
def test_a_failure_is_raised_as_it_is(ranks, method, error):
    def fail():
        raise error

    with pytest.raises(type(error)) as raised:
        getattr(ranks, method)(fail)
    assert raised.value is error
