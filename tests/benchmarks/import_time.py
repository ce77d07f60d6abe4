"""Times ``import ignite_hooks``, after Ignite and Accelerate, which it imports anyway."""

import os
import statistics
import subprocess
import sys

from tests.benchmarks.sizes import CLOCKS

BASE = "import ignite.engine, accelerate"
OURS = (
    "import ignite_hooks",
    "from ignite_hooks import create_supervised_trainer",
    "from ignite_hooks import *",
)
TIMED = "{base}; from time import {clock} as t; a = t(); {ours}; print(t() - a)"


def milliseconds(clock, ours):
    """Returns the time of an import in a fresh interpreter that has imported ``BASE``."""
    code = TIMED.format(clock=clock, base=BASE, ours=ours)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout) * 1000


def main(given):
    os.sched_setaffinity(0, {given.core})
    clock = CLOCKS[given.clock].__name__
    milliseconds(clock, OURS[-1])  # so that Python has written its compiled files
    took = {ours: [] for ours in OURS}
    for number in range(given.rounds):
        turn = number % len(OURS)
        for ours in (*OURS[turn:], *OURS[:turn]):
            took[ours].append(milliseconds(clock, ours))
    print(f"\n| after `{BASE}` | median, ms | quartiles |\n|---|---|---|")
    for ours, figures in took.items():
        # Each value twice, because quantiles() needs two values.
        low, middle, high = statistics.quantiles(figures * 2, n=4, method="inclusive")
        print(f"| `{ours}` | {middle:.1f} | {low:.1f} to {high:.1f} |")
