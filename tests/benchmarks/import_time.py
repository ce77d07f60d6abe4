"""Times ``import ignite_hooks``, after Ignite and Accelerate, which it imports anyway."""

import random
import statistics
import subprocess
import sys

from tests.benchmarks.machine import use_core
from tests.benchmarks.sizes import CLOCKS

BASE = "import ignite.engine, accelerate"
OURS = (
    "import ignite_hooks",
    "from ignite_hooks import create_supervised_trainer",
    "from ignite_hooks import *",
)
TIMED = "{first}; from time import {clock} as t; a = t(); {then}; print(t() - a)"


def milliseconds(clock, then):
    """Returns the time of an import in a fresh interpreter, which has imported ``BASE`` before."""
    code = TIMED.format(clock=clock, first="pass" if then == BASE else BASE, then=then)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout) * 1000


def table(rounds, core=None, clock="wall"):
    use_core(core)
    clock = CLOCKS[clock].__name__
    milliseconds(clock, OURS[-1])  # so that Python has written its compiled files
    took = {each: [] for each in (BASE, *OURS)}
    for number in range(rounds):
        for each in random.Random(number).sample([*took], len(took)):
            took[each].append(milliseconds(clock, each))
    yield "| | median, ms | quartiles |"
    yield "|---|---|---|"
    for each, figures in took.items():
        # Each value twice, because quantiles() needs two values.
        low, middle, high = statistics.quantiles(figures * 2, n=4, method="inclusive")
        after = "" if each == BASE else "after that, "
        yield f"| {after}`{each}` | {middle:.1f} | {low:.1f} to {high:.1f} |"


def tables(given):
    yield table(given.rounds, given.core, given.clock)
