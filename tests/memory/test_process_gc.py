import gc
import warnings

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.memory import process_gc
from ignite_hooks.memory.process_gc import automatic_collection_off
from ignite_hooks.memory.process_gc import automatic_pauses
from ignite_hooks.memory.process_gc import frozen
from tests.memory.frozen import is_frozen
from tests.memory.spikes import forked


@pytest.fixture(autouse=True)
def _as_found():
    assert gc.isenabled()
    assert not is_frozen()
    callbacks = list(gc.callbacks)
    warn_once.cache_clear()
    yield
    assert gc.isenabled()
    assert not is_frozen()
    assert gc.callbacks == callbacks


def entered(scope):
    scope.__enter__()
    return scope


def left(scope):
    scope.__exit__(None, None, None)


@pytest.mark.parametrize("first_ends_first", [False, True])
def test_last_overlapping_scope_restores_automatic_collection(first_ends_first):
    scopes = [entered(automatic_collection_off()) for _ in range(2)]
    assert not gc.isenabled()
    left(scopes.pop(0 if first_ends_first else 1))
    assert not gc.isenabled()
    left(scopes.pop())
    assert gc.isenabled()


def test_collection_disabled_before_stays_disabled():
    gc.disable()
    try:
        with automatic_collection_off(), automatic_collection_off():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_scope_that_fails_restores_too():
    with pytest.raises(KeyError), automatic_collection_off():
        raise KeyError
    with pytest.raises(KeyError), frozen():
        raise KeyError
    with pytest.raises(KeyError), automatic_pauses(print):
        raise KeyError


@pytest.mark.parametrize("first_ends_first", [False, True])
def test_of_two_overlapping_scopes_the_last_thaws(first_ends_first):
    scopes = [entered(frozen()) for _ in range(2)]
    assert is_frozen()
    left(scopes.pop(0 if first_ends_first else 1))
    assert is_frozen()
    left(scopes.pop())
    assert not is_frozen()


class Node:
    pass


def old_cycle(freed):
    """Returns garbage that only a full collection finds."""
    node = Node()
    node.itself = node
    gc.collect()
    node.finalizer = Finalizer(freed)
    del node


class Finalizer:
    def __init__(self, freed):
        self.freed = freed

    def __del__(self):
        self.freed.append(True)


def test_garbage_is_collected_before_it_would_be_frozen():
    freed = []
    gc.disable()
    try:
        old_cycle(freed)
        with frozen():
            assert freed == [True]
    finally:
        gc.enable()


def test_objects_frozen_before_stay_frozen_with_one_warning():
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with pytest.warns(UserWarning, match="`freeze_after` needs a process without"), frozen():
            assert gc.get_freeze_count() <= before
        assert is_frozen()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with frozen():
                pass
    finally:
        gc.unfreeze()


def test_objects_that_python_never_frees_do_not_count_as_frozen(monkeypatch):
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 375)  # as Python 3.12 counts them
    with frozen():
        assert is_frozen()
    assert not is_frozen()


def objects_to_collect():
    """Returns enough objects for several automatic collections of the youngest generation."""
    return [Node() for _ in range(5 * gc.get_threshold()[0])]


def test_pauses_of_automatic_collections_are_reported():
    pauses = []
    with automatic_pauses(pauses.append):
        objects_to_collect()
    assert len(pauses) >= 2
    assert all(pause > 0 for pause in pauses)
    noted = len(pauses)
    objects_to_collect()
    assert len(pauses) == noted


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_an_explicit_collection_is_not_a_pause(generation):
    pauses = []
    objects = objects_to_collect()
    gc.collect()
    with automatic_pauses(pauses.append):
        objects += objects_to_collect()
        gc.collect()
        noted = len(pauses)
        for _ in range(5):
            gc.collect(generation)
        with automatic_collection_off():
            objects += objects_to_collect()  # above the threshold
            gc.collect(generation)
    assert len(pauses) == noted > 0


def test_with_a_threshold_of_zero_nothing_is_automatic():
    pauses, threshold = [], gc.get_threshold()
    try:
        with automatic_pauses(pauses.append):
            gc.set_threshold(0)
            objects = objects_to_collect()
            gc.collect()
            del objects
    finally:
        gc.set_threshold(*threshold)
    assert pauses == []


def of_a_forked_child():
    """Returns whether collection is automatic in a child, before, in and after its own scope."""
    found = gc.isenabled()
    with automatic_collection_off():
        within = gc.isenabled()
    return found, within, gc.isenabled()


def test_a_forked_child_collects_its_own_garbage():
    with automatic_collection_off(), frozen():
        assert forked(of_a_forked_child) == (True, False, True)
        assert not gc.isenabled()
        assert is_frozen()


def test_forked_child_leaving_parent_scopes_changes_nothing():
    scope = entered(automatic_collection_off())

    def leave():
        gc.disable()
        left(scope)
        return gc.isenabled(), process_gc._disabled._state.users

    assert forked(leave) == (False, [])
    left(scope)


def test_collection_disabled_before_stays_off_in_a_child():
    gc.disable()
    try:
        with automatic_collection_off():
            assert forked(gc.isenabled) is False
    finally:
        gc.enable()


def test_a_child_does_not_wait_for_a_lock_of_its_parent():
    with process_gc._disabled._state.lock:
        assert forked(of_a_forked_child) == (True, False, True)


class Collecting(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return int(gc.isenabled())


def test_loader_workers_collect_their_own_garbage():
    with automatic_collection_off():
        found = torch.cat(list(DataLoader(Collecting(), num_workers=1)))
    assert found.tolist() == [1, 1]
