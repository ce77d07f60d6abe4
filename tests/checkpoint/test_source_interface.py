import math
from itertools import chain
from itertools import repeat

import pytest

from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.source_interface import Listing
from ignite_hooks.checkpoint.source_interface import list_until_stable
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.checkpoint.stored import save


@pytest.fixture
def candidate(tmp_path):
    """A function that reads the candidate of a step again at each call."""
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step, metric="loss", metric_value=math.nan)

    def of(step):
        found = {each.manifest.step: each for each in store.checkpoints()}
        return CheckpointCandidate(str(found[step].folder), found[step].manifest)

    return of


def listings_of(*listings):
    """Returns a function with these results, the last one repeated, and the list of its calls."""
    calls, results = [], chain(listings, repeat(listings[-1]))

    def list_once():
        calls.append(1)
        return next(results)

    return list_once, calls


def test_listing_of_only_checkpoints_is_trusted_at_once(candidate):
    found = Listing([candidate(2), candidate(1)], {}, {})
    list_once, calls = listings_of(found)
    assert list_until_stable(list_once) is found
    assert len(calls) == 1


@pytest.mark.parametrize("empty", [Listing([], {}, {}), Listing([], {"a": "no manifest"}, {})])
def test_empty_listing_is_trusted_if_it_is_repeated(candidate, empty):
    list_once, calls = listings_of(empty)
    assert list_until_stable(list_once) == empty
    assert len(calls) == 2
    list_once, calls = listings_of(empty, Listing([candidate(2)], {}, {}))
    assert [each.manifest.step for each in list_until_stable(list_once).candidates] == [2]
    assert len(calls) == 2


def test_listings_with_a_nan_metric_can_be_equal(candidate):
    listings = [Listing([candidate(1)], {}, {"b": "unfinished"}) for _ in range(2)]
    list_once, calls = listings_of(*listings)
    assert [each.manifest.step for each in list_until_stable(list_once).candidates] == [1]
    assert len(calls) == 2


def test_only_lasting_damage_is_reported_beside_constant_saves(candidate):
    one = Listing([candidate(1)], {"lasts": "damaged", "passes": "no manifest"}, {})
    other = Listing([candidate(2)], {"lasts": "damaged"}, {})
    list_once, calls = listings_of(*[one, other] * 50)
    assert list_until_stable(list_once).damaged == {"lasts": "damaged"}
    assert len(calls) == 20
