import math
from itertools import chain
from itertools import repeat

import pytest

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.candidates import Look
from ignite_hooks.checkpoint.candidates import settled
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.checkpoint.stored import save


@pytest.fixture
def candidate(tmp_path):
    """Returns a candidate of a step, read again at each call."""
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        save(store, step, metric="loss", metric_value=math.nan)

    def of(step):
        found = {each.manifest.step: each for each in store.checkpoints()}
        return Candidate(str(found[step].folder), found[step].manifest)

    return of


def looks_of(*looks):
    """Returns a look that has these results, the last for ever, and how often it was called."""
    calls, results = [], chain(looks, repeat(looks[-1]))

    def look():
        calls.append(1)
        return next(results)

    return look, calls


def test_a_look_at_nothing_but_checkpoints_is_trusted_at_once(candidate):
    found = Look([candidate(2), candidate(1)], {}, {})
    look, calls = looks_of(found)
    assert settled(look) is found
    assert len(calls) == 1


@pytest.mark.parametrize("empty", [Look([], {}, {}), Look([], {"a": "no manifest"}, {})])
def test_an_empty_look_is_trusted_when_it_was_the_same_twice(candidate, empty):
    look, calls = looks_of(empty)
    assert settled(look) == empty
    assert len(calls) == 2
    look, calls = looks_of(empty, Look([candidate(2)], {}, {}))
    assert [each.manifest.step for each in settled(look).candidates] == [2]
    assert len(calls) == 2


def test_manifests_are_compared_as_text_because_a_metric_may_be_nan(candidate):
    looks = [Look([candidate(1)], {}, {"b": "unfinished"}) for _ in range(2)]
    look, calls = looks_of(*looks)
    assert [each.manifest.step for each in settled(look).candidates] == [1]
    assert len(calls) == 2


def test_where_a_process_saves_all_the_time_lasting_damage_alone_is_told(candidate):
    one = Look([candidate(1)], {"lasts": "damaged", "passes": "no manifest"}, {})
    other = Look([candidate(2)], {"lasts": "damaged"}, {})
    look, calls = looks_of(*[one, other] * 50)
    assert settled(look).damaged == {"lasts": "damaged"}
    assert len(calls) == 20
