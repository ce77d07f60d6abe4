"""Compares the trainer with a plain PyTorch loop and with other trainers. From the root:

python -m tests.benchmarks.overhead [--rounds 7] [--model linear] [--accumulation 1 4]
python -m tests.benchmarks.overhead --import-time | --scaling | --soak | --upstream

Each contestant runs in its own process, on one core with one thread. A round runs every contestant
once, in a random order. Ratios and differences are to the raw loop of the same round. The README
beside this file describes the method and the results.
"""

import argparse
import importlib

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
    parser.add_argument("--core", type=int, help="by default the last one")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    for part in PARTS:
        parser.add_argument(f"--{part.replace('_', '-')}", action="store_true")
    return parser.parse_args(arguments)


def measured(model, accumulation, rounds, contestants=CONTESTANTS, iterations=None, **options):
    """Returns the ``Rounds`` of some contestants and the raw loop.

    Args:
        model: a key of ``MODELS``.
        accumulation: the number of batches per step.
        rounds: the number of rounds.
        contestants: the names of the contestants.
        iterations: the number of iterations that are timed; None for the number in ``MODELS``.
        options: the core and the clock.

    Raises:
        ValueError: there is no contestant of this name.
    """
    if unknown := {*contestants} - {*CONTESTANTS}:
        raise ValueError(f"there are no contestants {', '.join(sorted(unknown))}")
    names = [name for name in CONTESTANTS if name in {"raw", *contestants}]
    found = Rounds(names, model, accumulation, iterations or MODELS[model], **options)
    found.run(rounds)
    return found


def table(model, accumulation, rounds, contestants=CONTESTANTS, iterations=None):
    """Returns the lines of a table in which no contestant is missing.

    The arguments are those of ``measured``.

    Raises:
        RuntimeError: a contestant is missing, with the reason.
    """
    found = measured(model, accumulation, rounds, contestants, iterations)
    if found.missing:
        raise RuntimeError("; ".join(f"{name}: {why}" for name, why in found.missing.items()))
    return found.table()


def main(arguments=None):
    given = options(arguments)
    print(describe_machine())
    parts = [part for part in PARTS if getattr(given, part)]
    for part in parts:
        for lines in importlib.import_module(f"tests.benchmarks.{part}").tables(given):
            print()
            for line in lines:
                print(line, flush=True)
    if parts:
        return
    for model in given.model:
        for accumulation in given.accumulation:
            iterations = given.iterations or MODELS[model]
            found = measured(
                model,
                accumulation,
                given.rounds,
                given.contestants,
                iterations,
                core=given.core,
                clock=given.clock,
            )
            print(
                f"\n{model}, accumulation {accumulation}, {iterations:,} iterations timed, "
                f"{given.clock} clock\n"
            )
            print("\n".join(found.table()), flush=True)


if __name__ == "__main__":
    main()
