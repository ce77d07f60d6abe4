import inspect
import subprocess
import sys
import threading

import pytest

from ignite_hooks.checkpoint.writer import Writer
from tests.ids import stable_id


class Failure(Exception):
    pass


def test_it_acts_in_a_thread_that_is_gone_when_it_was_waited_for():
    writer, threads = Writer(), []
    writer.start(lambda: threads.append(threading.current_thread()))
    assert writer.wait()
    assert threads[0] is not threading.main_thread()
    assert not threads[0].is_alive()
    assert not writer.is_busy


def test_it_is_busy_until_the_act_is_done():
    writer, gate = Writer(), threading.Event()
    assert not writer.is_busy
    writer.start(lambda: gate.wait(60))
    assert writer.is_busy
    gate.set()
    writer.wait()
    assert not writer.is_busy


def test_there_is_something_to_wait_for_once_for_each_act():
    writer, done = Writer(), []
    assert not writer.wait()
    for number in range(2):
        writer.start(lambda number=number: done.append(number))
        assert writer.wait()
        assert not writer.wait()
    assert done == [0, 1]


@pytest.mark.parametrize("failure", [Failure("full"), SystemExit(3)], ids=stable_id)
def test_a_failure_is_raised_once_and_the_next_act_can_begin(failure):
    def fail():
        raise failure

    writer, done = Writer(), []
    writer.start(fail)
    with pytest.raises(type(failure)) as caught:
        writer.wait()
    assert caught.value is failure
    assert not writer.wait()
    writer.start(lambda: done.append(1))
    assert writer.wait()
    assert done == [1]


def test_the_interpreter_ends_when_the_act_is_done(tmp_path):
    program = """
import runpy, sys, threading
from pathlib import Path

Writer = runpy.run_path(sys.argv[1])["Writer"]

def act():
    threading.main_thread().join()  # the script is at its end
    Path(sys.argv[2]).write_text("whole")

Writer().start(act)
"""
    arguments = [inspect.getfile(Writer), tmp_path / "file"]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)
    assert (tmp_path / "file").read_text() == "whole"
