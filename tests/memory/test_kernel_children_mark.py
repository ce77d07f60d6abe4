import os
from pathlib import Path

import psutil
import pytest

from ignite_hooks.memory.kernel_children_mark import KernelChildrenMark
from tests.memory.spikes import MIB
from tests.memory.spikes import Child
from tests.memory.spikes import bear
from tests.memory.spikes import bury
from tests.memory.spikes import descriptors
from tests.memory.spikes import give_back
from tests.memory.spikes import keep
from tests.memory.spikes import keep_mapped
from tests.memory.spikes import let_child_do
from tests.memory.spikes import spike
from tests.memory.spikes import taken

NEAR = 2 * MIB


@pytest.fixture(autouse=True)
def _as_found():
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def mark():
    return KernelChildrenMark()


def test_without_children_there_is_nothing(mark):
    mark.reset()
    assert mark.read() == 0


def test_a_spike_of_a_child_is_seen_however_short_it_was(mark):
    with Child() as child:
        child.do(spike, 1)
        mark.reset()
        before = mark.read()
        child.do(spike, 60)
        assert mark.read() - before == pytest.approx(60 * MIB, abs=NEAR)
        assert mark.read() - before == pytest.approx(60 * MIB, abs=NEAR)


def test_a_spike_before_the_reset_is_forgotten(mark):
    with Child() as child:
        child.do(spike, 1)
        mark.reset()
        before = mark.read()
        child.do(spike, 60)
        mark.reset()
        assert mark.read() - before < NEAR


def test_a_child_counts_from_its_birth(mark):
    mark.reset()
    with Child() as child:
        child.do(spike, 60)
        assert 60 * MIB - NEAR < mark.read() < 75 * MIB


def test_what_children_share_with_this_process_is_not_theirs(mark):
    with taken(200), Child() as one, Child() as other:
        for child in (one, other):
            child.do(spike, 1)
        assert mark.read() < 40 * MIB
        one.do(spike, 60)
        other.do(keep, 30)
        assert 90 * MIB - NEAR < mark.read() < 130 * MIB


def test_what_a_child_writes_to_is_its_own(mark):
    with taken(60) as block, Child() as child:
        child.do(spike, 1)
        before = mark.read()
        assert before < 20 * MIB
        child.do(keep, 40)
        assert mark.read() - before == pytest.approx(40 * MIB, abs=NEAR)
        child.do(give_back)
        assert mark.read() - before == pytest.approx(40 * MIB, abs=NEAR)
        assert block[0] == 1


def test_a_file_that_only_a_child_has_mapped_is_its_own(mark, tmp_path):
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.write(bytes(30 * MIB))
        os.fsync(file.fileno())
    with Child() as child:
        child.do(spike, 1)
        before = mark.read()
        child.do(keep_mapped, str(path))
        assert mark.read() - before == pytest.approx(30 * MIB, abs=NEAR)


def test_grandchildren_are_seen_and_reset(mark):
    with Child() as child:
        child.do(bear)
        child.do(let_child_do, spike, 1)
        mark.reset()
        before = mark.read()
        child.do(let_child_do, spike, 60)
        assert mark.read() - before == pytest.approx(60 * MIB, abs=NEAR)
        mark.reset()
        assert mark.read() - before < NEAR
        child.do(bury)


def test_a_child_that_has_ended_is_not_counted(mark):
    with Child() as child:
        child.do(spike, 60)
    assert mark.read() == 0


def test_a_zombie_has_no_mark_and_disturbs_nobody(mark):
    with Child() as child, Child() as other:
        other.do(spike, 60)
        child.end()
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert mark.read() >= 60 * MIB - NEAR
        mark.reset()
        assert mark.read() < 20 * MIB
        os.waitpid(child.pid, 0)


def test_a_child_that_has_ended_since_it_was_listed_disturbs_nobody(mark, monkeypatch):
    with Child() as other:
        with Child() as gone:
            listed = [psutil.Process(gone.pid), psutil.Process(other.pid)]
        monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: listed)
        other.do(spike, 60)
        assert mark.read() >= 60 * MIB - NEAR
        mark.reset()
        assert mark.read() < 20 * MIB


def test_a_child_that_ends_while_it_is_looked_at_has_nothing(mark, monkeypatch):
    read = Path.read_bytes
    with Child() as child:

        def ending(path):
            if path.name == "status":
                child.end()
            return read(path)

        child.do(spike, 60)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", ending)
            assert mark.read() == 0
        os.waitpid(child.pid, 0)


def test_a_child_of_another_user_is_counted_with_all_that_it_has(mark, monkeypatch):
    read = Path.read_bytes

    def refuse(path):
        if path.name == "smaps_rollup":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    with taken(60), Child() as child:
        child.do(spike, 60)
        assert mark.read() < 90 * MIB
        monkeypatch.setattr(Path, "read_bytes", refuse)
        assert mark.read() > 150 * MIB


def test_a_child_whose_mark_can_not_be_reset_disturbs_nobody(mark, monkeypatch):
    write = Path.write_bytes
    with Child() as locked, Child() as other:

        def refuse(path, text):
            if str(locked.pid) in path.parts:
                raise PermissionError(13, "Permission denied", str(path))
            return write(path, text)

        monkeypatch.setattr(Path, "write_bytes", refuse)
        for child in (locked, other):
            child.do(spike, 60)
        mark.reset()
        assert 60 * MIB - NEAR < mark.read() < 90 * MIB


def test_the_order_of_the_children_does_not_matter_to_a_refusal(mark, monkeypatch):
    write = Path.write_bytes
    with Child() as other, Child() as locked:

        def refuse(path, text):
            if str(locked.pid) in path.parts:
                raise ProcessLookupError(3, "No such process", str(path))
            return write(path, text)

        monkeypatch.setattr(Path, "write_bytes", refuse)
        for child in (locked, other):
            child.do(spike, 60)
        mark.reset()
        assert 60 * MIB - NEAR < mark.read() < 90 * MIB


def test_this_process_is_not_its_own_child(mark):
    with taken(60), Child() as child:
        child.do(spike, 1)
        mark.reset()
        before = mark.read()
        spike(60)
        assert mark.read() - before < NEAR
