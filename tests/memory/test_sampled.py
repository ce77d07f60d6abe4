import os

import psutil
import pytest

from ignite_hooks.memory.sampled import SampledMark
from ignite_hooks.memory.sampled import resident
from ignite_hooks.memory.sampled import uss_of_children
from tests.memory.spikes import MIB
from tests.memory.spikes import Child
from tests.memory.spikes import bear
from tests.memory.spikes import bury
from tests.memory.spikes import forked
from tests.memory.spikes import give_back
from tests.memory.spikes import keep
from tests.memory.spikes import let_child_do
from tests.memory.spikes import taken

FEW = 8 * MIB  # what a child takes for itself when it does something


def mark_of(*looks):
    looks = list(looks)
    return SampledMark(lambda: looks.pop(0))


def test_every_reading_looks_and_tells_the_highest():
    mark = mark_of(5, 3, 9, 2)
    mark.open()
    assert [mark.read() for _ in range(4)] == [5, 5, 9, 9]


def test_a_reset_looks_and_forgets_what_was_before():
    mark = mark_of(9, 4, 3, 5)
    mark.open()
    assert mark.read() == 9
    mark.reset()
    assert [mark.read(), mark.read()] == [4, 5]


def test_opening_again_forgets_too():
    mark = mark_of(9, 4, 3)
    mark.open()
    assert mark.read() == 9
    mark.close()
    mark.open()
    assert mark.read() == 4


def test_what_is_resident_is_what_the_process_has_taken():
    before = resident()
    with taken(60):
        assert resident() - before == pytest.approx(60 * MIB, rel=0.01)
    assert abs(resident() - before) < MIB


def test_a_forked_child_looks_at_itself():
    def in_child():
        before = resident()
        with taken(60):
            return resident() - before

    before = resident()
    assert forked(in_child) == pytest.approx(60 * MIB, rel=0.02)
    assert resident() - before < MIB


def test_no_children_have_nothing():
    assert uss_of_children() == 0


def test_children_have_what_they_share_with_nobody():
    with taken(100), Child() as one, Child() as other:
        for child in (one, other):
            child.do(keep, 1)
        before = uss_of_children()
        assert 2 * MIB <= before < 2 * MIB + 2 * FEW
        one.do(keep, 30)
        other.do(keep, 20)
        assert uss_of_children() - before == pytest.approx(50 * MIB, abs=MIB)
        one.do(give_back)
        assert uss_of_children() - before == pytest.approx(20 * MIB, abs=MIB)


def test_grandchildren_are_children():
    with Child() as child:
        child.do(bear)
        child.do(let_child_do, keep, 1)
        before = uss_of_children()
        child.do(let_child_do, keep, 30)
        assert uss_of_children() - before == pytest.approx(30 * MIB, abs=MIB)
        child.do(bury)


def test_a_zombie_has_nothing():
    with Child() as child:
        child.do(keep, 30)
        child.end()
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert uss_of_children() < MIB
        os.waitpid(child.pid, 0)


def test_a_child_that_has_ended_since_it_was_listed_has_nothing(monkeypatch):
    with Child() as child:
        listed = psutil.Process().children()
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: listed)
    assert [process.pid for process in listed] == [child.pid]
    assert uss_of_children() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_child_of_another_user_has_nothing_that_could_be_seen():
    def in_child():
        with Child() as of_root:
            of_root.do(keep, 30)
            assert uss_of_children() >= 30 * MIB
            os.setresuid(65534, 65534, 0)
            try:
                return uss_of_children()
            finally:
                os.setresuid(0, 0, 0)

    assert forked(in_child) == 0
