"""A process that runs one contestant once; ``overhead.py`` starts it.

Every contestant has the same modules imported, because imports alone have changed a ratio by 3 %:
each additional object is one more for the garbage collector to visit. Other libraries are imported
only in the processes of their own contestants, as in a script that uses them.
"""

import argparse
import importlib
import os
import warnings
from itertools import pairwise

import torch

import tests.benchmarks.contestants.by_hand
import tests.benchmarks.contestants.ours  # noqa: F401
from tests.benchmarks.entries import CONTESTANTS
from tests.benchmarks.sizes import CLOCKS
from tests.benchmarks.sizes import STRETCH
from tests.benchmarks.sizes import WARM_UP
from tests.benchmarks.work import Work


def run(name, model, accumulation, iterations, clock):
    """Returns the times of the stretches, in µs per iteration, and the weights."""
    entry = CONTESTANTS[name]
    train = getattr(importlib.import_module(f"tests.benchmarks.contestants.{entry.file}"), name)
    # The last stretch is not timed, because the end of the run falls into it.
    length = WARM_UP + iterations + STRETCH
    work = Work.of(model, accumulation, length, CLOCKS[clock], entry.as_dicts)
    train(work)
    if work.data.given != length:
        raise RuntimeError(f"{name} took {work.data.given} batches instead of {length}")
    times = work.data.times[WARM_UP // STRETCH :]
    stretches = [(b - a) / STRETCH * 1e6 for a, b in pairwise(times)]
    return {"stretches": stretches, "weights": work.weights}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("accumulation", type=int)
    parser.add_argument("iterations", type=int)
    parser.add_argument("core", type=int)
    parser.add_argument("clock")
    parser.add_argument("file")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = run(
        options.name, options.model, options.accumulation, options.iterations, options.clock
    )
    torch.save(found, options.file)


if __name__ == "__main__":
    main()
