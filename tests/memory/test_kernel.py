import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ignite_hooks.memory import kernel as kernel_mark
from ignite_hooks.memory import sampled as sampled_mark
from ignite_hooks.memory.kernel import KernelChildrenMark
from ignite_hooks.memory.kernel import KernelMark
from ignite_hooks.memory.kernel import _reset_trial
from ignite_hooks.memory.kernel import proc_field
from ignite_hooks.memory.kernel import why_no_kernel_mark
from tests.memory.spikes import LEAN
from tests.memory.spikes import MIB
from tests.memory.spikes import Child
from tests.memory.spikes import bear
from tests.memory.spikes import bury
from tests.memory.spikes import descriptors
from tests.memory.spikes import forked
from tests.memory.spikes import give_back
from tests.memory.spikes import keep
from tests.memory.spikes import keep_mapped
from tests.memory.spikes import let_child_do
from tests.memory.spikes import of_marks
from tests.memory.spikes import program
from tests.memory.spikes import spike
from tests.memory.spikes import taken

BATCHES = MIB  # the kernel counts pages in batches


@pytest.fixture(autouse=True)
def _as_found():
    _reset_trial.has_succeeded = False
    before = descriptors()
    yield
    assert descriptors() == before
    _reset_trial.has_succeeded = False


@pytest.fixture
def mark():
    mark = KernelMark()
    mark.open()
    yield mark
    mark.close()


@pytest.mark.parametrize("mib", [20, 60, 300])
def test_a_spike_is_seen_however_short_it_was(mark, mib):
    mark.reset()
    before = mark.read()
    spike(mib)
    assert mark.read() - before == pytest.approx(mib * MIB, abs=BATCHES)
    assert mark.from_status() - before == pytest.approx(mib * MIB, abs=BATCHES)


def test_reset_lowers_the_mark_to_resident_memory(mark):
    mark.reset()
    before = mark.read()
    spike(60)
    mark.reset()
    assert mark.read() - before < BATCHES
    with taken(60):
        mark.reset()
        assert mark.read() - before == pytest.approx(60 * MIB, abs=BATCHES)


def test_reading_does_not_change_the_mark(mark):
    mark.reset()
    spike(60)
    assert mark.read() == mark.read() == mark.read()


def test_open_mark_has_its_own_descriptors():
    mark = KernelMark()
    assert of_marks() == []
    mark.open()
    own = f"/proc/{os.getpid()}"
    assert of_marks() == [f"{own}/clear_refs", f"{own}/statm", f"{own}/status"]
    mark.close()
    assert of_marks() == []
    mark.close()


def test_descriptors_are_not_inherited_by_other_programs(mark):
    for number, link in descriptors().items():
        if link in of_marks():
            assert not os.get_inheritable(number)


def test_partly_opened_mark_is_closed(monkeypatch):
    mark, really = KernelMark(), os.open

    def open_one(path, flags):
        if "statm" in path:
            raise OSError(errno.EMFILE, "Too many open files")
        return really(path, flags)

    monkeypatch.setattr(os, "open", open_one)
    with pytest.raises(OSError, match="Too many"):
        mark.open()
    mark.close()
    assert of_marks() == []


HUGE = 2**40  # more than can be resident


@pytest.fixture
def telling(mark, monkeypatch):
    """Returns a function that makes getrusage report these values, and status -1."""

    def tell(*told):
        told = list(told)
        monkeypatch.setattr(KernelMark, "_lowest_reported", float("inf"))
        monkeypatch.setattr(
            kernel_mark, "getrusage", lambda who: SimpleNamespace(ru_maxrss=told.pop(0) // 1024)
        )
        monkeypatch.setattr(mark, "from_status", lambda: -1)
        return [mark.read() for _ in range(len(told))]

    return tell


def test_a_value_of_getrusage_above_the_lowest_is_the_mark(telling):
    one = 1024
    readings = telling(HUGE, HUGE + one, HUGE + 3 * one, HUGE + 2 * one, HUGE)
    assert readings == [-1, HUGE + one, HUGE + 3 * one, HUGE + 2 * one, -1]


def test_the_first_value_of_getrusage_may_be_a_floor(telling):
    one = 1024
    assert telling(HUGE + 5 * one, HUGE, HUGE, HUGE + one) == [-1, -1, -1, HUGE + one]


def test_resident_memory_is_the_mark_if_no_more_is_reported(telling):
    readings = telling(1024, 1024)
    assert readings == pytest.approx([sampled_mark.resident_bytes()] * 2, abs=BATCHES)


def test_resident_memory_is_not_the_mark_if_more_is_reported(telling):
    told = sampled_mark.resident_bytes() + 4 * MIB
    assert telling(told, told) == [-1, -1]


@pytest.fixture
def read_files(monkeypatch):
    """Records the files of marks that are read."""
    read, really = [], os.pread

    def pread(descriptor, *arguments):
        read.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])
        return really(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", pread)
    return read


def test_no_file_is_read_if_memory_stays_constant(mark, read_files):
    mark.close()
    KernelMark._lowest_reported = float("inf")
    mark.open()
    for _ in range(20):
        mark.reset()
        mark.read()
    assert read_files == []


def test_equal_low_peaks_read_status_only_once(mark, read_files):
    with taken(60):
        KernelMark._lowest_reported = float("inf")
        mark.read()
        # If memory was freed meanwhile, this reading is above the resident memory, and the next
        # reset updates the lowest value: here, above the peaks that follow.
        mark.reset()
    read_files.clear()
    for _ in range(20):
        mark.reset()
        spike(20)
        mark.read()
    assert read_files == ["statm", "status"]


def test_all_marks_share_the_lowest_value_which_only_falls(mark):
    lowest = KernelMark._lowest_reported
    with taken(60):
        other = KernelMark()
        other.open()
        other.reset()
        other.close()
    assert KernelMark._lowest_reported <= lowest < float("inf")


def test_ballast_of_the_mark_is_freed():
    mark = KernelMark()
    before = sampled_mark.resident_bytes()
    for _ in range(100):
        mark.open()
        mark.close()
    assert sampled_mark.resident_bytes() - before < 100 * kernel_mark._BALLAST_BYTES / 4


def test_getrusage_and_status_agree(mark, monkeypatch):
    mark.reset()
    mark.read()
    spike(60)
    monkeypatch.setattr(KernelMark, "_lowest_reported", 0)
    told = mark.read()
    monkeypatch.setattr(KernelMark, "_lowest_reported", float("inf"))
    assert mark.read() == mark.from_status() == pytest.approx(told, abs=BATCHES)


A_LARGE_PROGRAM = """
import os
import sys
block = bytearray(b"1") * (500 * 2**20)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""

AFTER_IT = """
import json
from resource import RUSAGE_SELF, getrusage
from ignite_hooks.memory.max_ram import MaxRAM
from tests.memory.spikes import spike
results = []
with MaxRAM(backend="kernel") as outer:
    for mib in (1, 60, 2, 90):
        with MaxRAM() as ram:
            spike(mib)
        with MaxRAM() as base:
            pass
        results.append(ram.result() - base.result())
peaks = outer.result(), base.result()
print(json.dumps([getrusage(RUSAGE_SELF).ru_maxrss / 1024, results, peaks]))
"""


def test_the_peak_of_a_replaced_program_does_not_count():
    told = program("-c", A_LARGE_PROGRAM, LEAN + AFTER_IT)
    floor, results, (outer, base) = json.loads(told)
    assert floor > 500
    assert base < 200
    assert results == pytest.approx([1, 60, 2, 90], abs=1)
    assert outer - base == pytest.approx(90, abs=2)


# Reasons why the mark cannot be used


def test_kernel_mark_works_here_and_leaves_nothing_open():
    assert why_no_kernel_mark() is None


def test_kernel_mark_is_tried_only_once(monkeypatch):
    assert why_no_kernel_mark() is None
    monkeypatch.setattr(KernelMark, "open", lambda mark: pytest.fail("tried again"))
    assert why_no_kernel_mark() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_mark_is_refused_after_changing_the_user():
    def in_child():
        os.setuid(65534)
        return why_no_kernel_mark(), of_marks()

    reason, left = forked(in_child)
    assert reason.startswith("PermissionError: ")
    assert "/proc/self/clear_refs" in reason
    assert left == []


@pytest.mark.parametrize("refused", ["clear_refs", "status", "statm"])
@pytest.mark.parametrize("kind", [PermissionError, FileNotFoundError])
def test_reason_names_the_file_that_cannot_be_opened(monkeypatch, refused, kind):
    really = os.open

    def refuse(path, flags):
        if path.endswith(refused):
            raise kind(1, "not here", path)
        return really(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    assert why_no_kernel_mark() == f"{kind.__name__}: [Errno 1] not here: '/proc/self/{refused}'"


def test_reason_is_the_failed_write(monkeypatch):
    def refuse(descriptor, text):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "write", refuse)
    assert why_no_kernel_mark() == "OSError: [Errno 22] Invalid argument"


def test_a_status_without_the_mark_is_the_reason(monkeypatch):
    monkeypatch.setattr(os, "pread", lambda *arguments: b"Name:\tpython\n")
    assert why_no_kernel_mark().startswith("ValueError: ")


def test_a_mark_that_does_not_fall_is_the_reason(monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, text: len(text))
    assert why_no_kernel_mark() == "a write to /proc/self/clear_refs does not lower VmHWM"


def test_a_mark_that_never_rises_is_the_reason(monkeypatch):
    monkeypatch.setattr(KernelMark, "from_status", lambda mark: 10**9)
    assert "does not lower" in why_no_kernel_mark()


def test_mark_is_seen_to_fall_without_earlier_allocations(mark):
    mark.reset()
    assert why_no_kernel_mark() is None


def test_concurrent_first_queries_do_not_disturb_each_other():
    for _ in range(5):
        _reset_trial.has_succeeded = False
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda number: why_no_kernel_mark(), range(4))) == [None] * 4


def test_temporary_refusal_is_not_remembered(monkeypatch):
    real = os.open
    _reset_trial.has_succeeded = False

    def out_of_descriptors(*arguments):
        monkeypatch.setattr(os, "open", real)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", out_of_descriptors)
    assert "Too many open files" in why_no_kernel_mark()
    assert why_no_kernel_mark() is None


def test_reopening_failure_is_an_error_with_a_remedy(monkeypatch):
    assert why_no_kernel_mark() is None
    monkeypatch.setattr(os, "open", lambda *arguments: (_ for _ in ()).throw(PermissionError(13)))
    with pytest.raises(PermissionError) as raised:
        KernelMark().open()
    notes = getattr(raised.value, "__notes__", ['backend="sampler"'])
    assert 'backend="sampler"' in notes[0]


# Marks of children.


NEARLY = 2 * MIB


@pytest.fixture
def children_mark():
    return KernelChildrenMark()


def test_without_children_the_mark_is_zero(children_mark):
    children_mark.reset()
    assert children_mark.read() == 0


def test_a_spike_of_a_child_is_seen_however_short_it_was(children_mark):
    with Child() as child:
        child.do(spike, 1)
        children_mark.reset()
        before = children_mark.read()
        child.do(spike, 60)
        assert children_mark.read() - before == pytest.approx(60 * MIB, abs=NEARLY)
        assert children_mark.read() - before == pytest.approx(60 * MIB, abs=NEARLY)


def test_a_spike_before_the_reset_is_forgotten(children_mark):
    with Child() as child:
        child.do(spike, 1)
        children_mark.reset()
        before = children_mark.read()
        child.do(spike, 60)
        children_mark.reset()
        assert children_mark.read() - before < NEARLY


def test_a_child_counts_from_its_start(children_mark):
    children_mark.reset()
    with Child() as child:
        child.do(spike, 60)
        assert 60 * MIB - NEARLY < children_mark.read() < 75 * MIB


def test_memory_that_children_share_with_the_parent_is_subtracted(children_mark):
    with taken(200), Child() as one, Child() as other:
        for child in (one, other):
            child.do(spike, 1)
        assert children_mark.read() < 40 * MIB
        one.do(spike, 60)
        other.do(keep, 30)
        assert 90 * MIB - NEARLY < children_mark.read() < 130 * MIB


def test_memory_that_a_child_writes_to_is_its_own(children_mark):
    with taken(60) as block, Child() as child:
        child.do(spike, 1)
        before = children_mark.read()
        assert before < 20 * MIB
        child.do(keep, 40)
        assert children_mark.read() - before == pytest.approx(40 * MIB, abs=NEARLY)
        child.do(give_back)
        assert children_mark.read() - before == pytest.approx(40 * MIB, abs=NEARLY)
        assert block[0] == 1


def test_a_file_that_only_a_child_has_mapped_is_its_own(children_mark, tmp_path):
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.write(bytes(30 * MIB))
        os.fsync(file.fileno())
    with Child() as child:
        child.do(spike, 1)
        before = children_mark.read()
        child.do(keep_mapped, str(path))
        assert children_mark.read() - before == pytest.approx(30 * MIB, abs=NEARLY)


def test_grandchildren_are_seen_and_reset(children_mark):
    with Child() as child:
        child.do(bear)
        child.do(let_child_do, spike, 1)
        children_mark.reset()
        before = children_mark.read()
        child.do(let_child_do, spike, 60)
        assert children_mark.read() - before == pytest.approx(60 * MIB, abs=NEARLY)
        children_mark.reset()
        assert children_mark.read() - before < NEARLY
        child.do(bury)


def test_a_child_that_has_ended_is_not_counted(children_mark):
    with Child() as child:
        child.do(spike, 60)
    assert children_mark.read() == 0


def test_a_zombie_counts_zero(children_mark):
    with Child() as child, Child() as other:
        other.do(spike, 60)
        child.end()
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert children_mark.read() >= 60 * MIB - NEARLY
        children_mark.reset()
        assert children_mark.read() < 20 * MIB
        os.waitpid(child.pid, 0)


def test_child_that_ended_since_listing_is_ignored(children_mark, monkeypatch):
    with Child() as other:
        with Child() as gone:
            listed = [psutil.Process(gone.pid), psutil.Process(other.pid)]
        monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: listed)
        other.do(spike, 60)
        assert children_mark.read() >= 60 * MIB - NEARLY
        children_mark.reset()
        assert children_mark.read() < 20 * MIB


def test_a_child_that_ends_while_it_is_read_counts_zero(children_mark, monkeypatch):
    read = Path.read_bytes
    with Child() as child:

        def ending(path):
            if path.name == "status":
                child.end()
            return read(path)

        child.do(spike, 60)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", ending)
            assert children_mark.read() == 0
        os.waitpid(child.pid, 0)


def test_a_child_of_another_user_counts_with_its_whole_mark(children_mark, monkeypatch):
    read = Path.read_bytes

    def refuse(path):
        if path.name == "smaps_rollup":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    with taken(60), Child() as child:
        child.do(spike, 60)
        assert children_mark.read() < 90 * MIB
        monkeypatch.setattr(Path, "read_bytes", refuse)
        assert children_mark.read() > 150 * MIB


def test_a_child_whose_mark_cannot_be_reset_is_ignored(children_mark, monkeypatch):
    write = Path.write_bytes
    with Child() as locked, Child() as other:

        def refuse(path, text):
            if str(locked.pid) in path.parts:
                raise PermissionError(13, "Permission denied", str(path))
            return write(path, text)

        monkeypatch.setattr(Path, "write_bytes", refuse)
        for child in (locked, other):
            child.do(spike, 60)
        children_mark.reset()
        assert 60 * MIB - NEARLY < children_mark.read() < 90 * MIB


def test_a_refusal_by_one_child_does_not_affect_the_others(children_mark, monkeypatch):
    write = Path.write_bytes
    with Child() as other, Child() as locked:

        def refuse(path, text):
            if str(locked.pid) in path.parts:
                raise ProcessLookupError(3, "No such process", str(path))
            return write(path, text)

        monkeypatch.setattr(Path, "write_bytes", refuse)
        for child in (locked, other):
            child.do(spike, 60)
        children_mark.reset()
        assert 60 * MIB - NEARLY < children_mark.read() < 90 * MIB


def test_this_process_is_not_its_own_child(children_mark):
    with taken(60), Child() as child:
        child.do(spike, 1)
        children_mark.reset()
        before = children_mark.read()
        spike(60)
        assert children_mark.read() - before < NEARLY


# Fields of the files of /proc.


STATUS = (
    b"Name:\tVmHWM\nVmPeak:\t   20000 kB\nVmHWM:\t    1234 kB\nVmRSS:\t     900 kB\nThreads:\t1\n"
)
ROLLUP = (
    b"0-1 ---p 0 00:00 0    [rollup]\nRss:        48 kB\nPss:        40 kB\nPss_Dirty:   8 kB\n"
)


def test_proc_field_is_returned_in_bytes():
    assert proc_field(STATUS, b"VmHWM") == 1234 * 1024
    assert proc_field(STATUS, b"VmRSS") == 900 * 1024
    assert proc_field(STATUS, b"VmPeak") == 20000 * 1024


def test_first_field_with_the_exact_name_is_read():
    assert proc_field(ROLLUP, b"Pss") == 40 * 1024
    assert proc_field(ROLLUP, b"Pss_Dirty") == 8 * 1024
    assert proc_field(ROLLUP + b"Rss:  7 kB\n", b"Rss") == 48 * 1024


@pytest.mark.parametrize("text", [b"", STATUS, b"VmSwap", b"VmSwap:\n"])
def test_a_missing_field_is_an_error(text):
    with pytest.raises(ValueError, match=r"not found"):
        proc_field(text, b"VmSwap")


def test_a_real_status_is_read():
    with open("/proc/self/status", "rb") as status:
        text = status.read()
    assert 0 < proc_field(text, b"VmRSS") <= proc_field(text, b"VmSize")
