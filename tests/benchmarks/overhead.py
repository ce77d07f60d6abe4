"""Compares the trainer with a plain PyTorch loop and with other trainers. From the root:

python -m tests.benchmarks.overhead [--rounds 7] [--model linear] [--accumulation 1 4]
python -m tests.benchmarks.overhead --import-time | --scaling | --soak | --upstream

Each contestant runs in its own process, on one core with one thread. A round runs every contestant
once, in a random order. Ratios and differences are to the raw loop of the same round. The README
beside this file describes the method and the results.
"""

import argparse
import importlib
import os

from tests.benchmarks.entries import CONTESTANTS
from tests.benchmarks.machine import describe_machine
from tests.benchmarks.rounds import Rounds
from tests.benchmarks.sizes import CLOCKS
from tests.benchmarks.sizes import MODELS

PARTS = ("import_time", "scaling", "soak", "upstream")


def options(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["linear"])
    parser.add_argument("--accumulation", type=int, nargs="+", choices=(1, 4), default=[1])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS])
    parser.add_argument("--iterations", type=int, help="timed in each run; a multiple of 100")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    for part in PARTS:
        parser.add_argument(f"--{part.replace('_', '-')}", action="store_true")
    return parser.parse_args(arguments)


def main(arguments=None):
    given = options(arguments)
    print(describe_machine())
    parts = [part for part in PARTS if getattr(given, part)]
    for part in parts:
        importlib.import_module(f"tests.benchmarks.{part}").main(given)
    if parts:
        return
    names = [name for name in CONTESTANTS if name in {"raw", *given.contestants}]
    for model in given.model:
        for accumulation in given.accumulation:
            iterations = given.iterations or MODELS[model]
            rounds = Rounds(names, model, accumulation, iterations, given.core, given.clock)
            rounds.run(given.rounds)
            print(
                f"\n{model}, accumulation {accumulation}, {iterations:,} iterations timed, "
                f"{given.clock} clock\n"
            )
            print("\n".join(rounds.table()), flush=True)


if __name__ == "__main__":
    main()
