"""``Ranks`` with one process; tests/distributed/test_checkpoints.py has two."""

import pytest

from ignite_hooks.checkpoint.ranks import Ranks
from tests.ids import stable_id


@pytest.fixture
def ranks():
    return Ranks()


def test_single_process_is_rank_0_of_1(ranks):
    assert (ranks.rank, ranks.size, ranks.is_rank_0) == (0, 1, True)


def test_single_process_gets_its_own_objects_back(ranks):
    own = object()  # which could not be sent anywhere
    (gathered,) = ranks.gather(own)
    (agreed,) = ranks.call_on_all_ranks(lambda: own)
    assert gathered is agreed is ranks.call_on_rank_0(lambda: own) is own


def test_single_process_gets_its_own_flags_back(ranks):
    assert ranks.any_of(True, False) == [True, False]
    assert ranks.any_of() == []


@pytest.mark.parametrize("method", ["call_on_all_ranks", "call_on_rank_0"])
@pytest.mark.parametrize("error", [OSError("gone"), KeyboardInterrupt()], ids=stable_id)
def test_failure_on_a_single_process_is_raised_unchanged(ranks, method, error):
    def fail():
        raise error

    with pytest.raises(type(error)) as raised:
        getattr(ranks, method)(fail)
    assert raised.value is error
