import pytest

from ignite_hooks.memory.proc_field import proc_field

STATUS = (
    b"Name:\tVmHWM\nVmPeak:\t   20000 kB\nVmHWM:\t    1234 kB\nVmRSS:\t     900 kB\nThreads:\t1\n"
)
ROLLUP = (
    b"0-1 ---p 0 00:00 0    [rollup]\nRss:        48 kB\nPss:        40 kB\nPss_Dirty:   8 kB\n"
)


def test_a_field_is_told_in_bytes():
    assert proc_field(STATUS, b"VmHWM") == 1234 * 1024
    assert proc_field(STATUS, b"VmRSS") == 900 * 1024
    assert proc_field(STATUS, b"VmPeak") == 20000 * 1024


def test_the_first_of_the_fields_is_told_and_none_that_only_begins_so():
    assert proc_field(ROLLUP, b"Pss") == 40 * 1024
    assert proc_field(ROLLUP, b"Pss_Dirty") == 8 * 1024
    assert proc_field(ROLLUP + b"Rss:  7 kB\n", b"Rss") == 48 * 1024


@pytest.mark.parametrize("text", [b"", STATUS, b"VmSwap", b"VmSwap:\n"])
def test_a_field_that_is_not_there_is_an_error(text):
    with pytest.raises(ValueError, match=r"not found"):
        proc_field(text, b"VmSwap")


def test_a_real_status_is_read():
    with open("/proc/self/status", "rb") as status:
        text = status.read()
    assert 0 < proc_field(text, b"VmRSS") <= proc_field(text, b"VmSize")
