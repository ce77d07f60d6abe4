"""What ``import ignite_hooks`` takes more than Ignite and Accelerate, which it needs anyway."""

import os
import statistics
import subprocess
import sys
from functools import partial

from tests.benchmarks.sizes import CLOCKS

BASE = "import ignite.engine, accelerate"
OURS = "import ignite_hooks"
TIMED = (
    "from time import {clock} as t; a = t(); {first}; b = t(); {then}; c = t(); print(b - a, c - b)"
)


def milliseconds(clock, first, then="pass"):
    """Of two statements, one after the other in a fresh interpreter."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        TIMED.format(clock=clock, first=first, then=then),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(seconds) * 1000 for seconds in done.stdout.split()]


def main(given):
    os.sched_setaffinity(0, {given.core})
    timed = partial(milliseconds, CLOCKS[given.clock].__name__)
    timed(BASE, OURS)  # writes what Python compiles
    base, ours, after = [], [], []
    for number in range(given.rounds):
        turns = [
            lambda: base.append(timed(BASE)[0]),
            lambda: ours.append(timed(OURS)[0]),
            lambda: after.append(timed(BASE, OURS)[1]),
        ]
        for turn in (*turns[number % 3 :], *turns[: number % 3]):
            turn()
    more = [one - other for one, other in zip(ours, base, strict=True)]
    print("\n| import | median, ms | quartiles |\n|---|---|---|")
    for what, figures in {
        f"`{BASE}`": base,
        f"`{OURS}`": ours,
        "the difference, paired": more,
        f"`{OURS}` after the other, in one interpreter": after,
    }.items():
        low, middle, high = statistics.quantiles(figures * 2, n=4, method="inclusive")
        print(f"| {what} | {middle:.0f} | {low:.0f} to {high:.0f} |")
