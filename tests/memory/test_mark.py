import pytest

from ignite_hooks.memory.kernel import KernelChildrenMark
from ignite_hooks.memory.kernel import KernelMark
from ignite_hooks.memory.mark import ByteMark
from ignite_hooks.memory.mark import Mark
from ignite_hooks.memory.sampled import SampledMark


@pytest.mark.parametrize(
    ("one", "other", "highest"), [(1, 2, 2), (2, 1, 2), (0, 0, 0), (2**40, 2**40 - 1, 2**40)]
)
def test_the_larger_number_of_bytes_is_higher(one, other, highest):
    assert ByteMark.higher(one, other) == highest


@pytest.mark.parametrize("reading", [0, 1, 2**50])
def test_the_zero_reading_is_the_lowest(reading):
    assert ByteMark.higher(ByteMark.zero, reading) == reading
    assert ByteMark.higher(reading, ByteMark.zero) == reading


def test_a_mark_must_implement_reset_and_read():
    for kind in (Mark, ByteMark):
        with pytest.raises(TypeError, match="abstract"):
            kind()


class Constant(ByteMark):
    def reset(self):
        pass

    def read(self):
        return 3


def test_mark_without_resources_has_nothing_to_open_or_close():
    mark = Constant()
    mark.close()
    assert mark.open() is None
    assert mark.close() is None
    assert mark.read() == 3


def test_the_marks_of_resident_memory_are_marks_of_bytes():
    assert isinstance(KernelMark(), ByteMark)
    assert isinstance(KernelChildrenMark(), ByteMark)
    assert isinstance(SampledMark(int), ByteMark)
