"""Rounds that run the contestants in turns, and the table of their times."""

import os
import random
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

from tests.benchmarks.entries import CONTESTANTS

__all__ = ["Rounds", "difference"]

HEADER = (
    "| | ratio | quartiles | µs an iteration | µs more, fastest stretches | weights |",
    "|---|---|---|---|---|---|",
)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",  # no contestant needs the network
    "PYTHONHASHSEED": "0",
}


def difference(weights, reference):
    """Returns the largest difference of two sets of weights; 0.0 if they are equal bit by bit."""
    if weights.keys() != reference.keys():
        return float("inf")
    if all(torch.equal(weights[name], reference[name]) for name in reference):
        return 0.0
    gaps = ((weights[name] - reference[name]).abs().max().item() for name in reference)
    return max(*gaps, sys.float_info.min)


class Rounds:
    """Runs contestants at the same work, each once per round.

    Args:
        names: the contestants; the first is "raw".
        model: a key of ``MODELS``.
        accumulation: the number of batches per step.
        iterations: the number of iterations that are timed.
        core: the core that all contestants run on; None for the last one.
        clock: a key of ``CLOCKS``.
    """

    def __init__(self, names, model, accumulation, iterations, core=None, clock="wall"):
        if core is None:
            core = max(os.sched_getaffinity(0))
        self.names = names
        self.work = [model, str(accumulation), str(iterations), str(core), clock]
        self.found = {name: [] for name in names}  # the stretches of each round
        self.missing = {}
        self.weights = {}

    def run(self, rounds):
        for number in range(rounds):
            for name in random.Random(number).sample(self.names, len(self.names)):
                if name not in self.missing:
                    self._run_once(name)

    def _run_once(self, name):
        for package in CONTESTANTS[name].packages:
            if find_spec(package) is None:
                self.missing[name] = f"{package} is not installed"
                return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "found.pt")
            command = [sys.executable, "-m", "tests.benchmarks.one_run", name, *self.work, file]
            environment = {**os.environ, **ENVIRONMENT}
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                # The last line of a traceback is the message of the exception.
                self.missing[name] = (done.stderr.strip().splitlines() or ["no message"])[-1]
                return
            found = torch.load(file)
        self.found[name].append(found["stretches"])
        self.weights[name] = found["weights"]

    def table(self):
        """Returns the table: first the contestants with equal weights, by time, then the others."""
        if "raw" in self.missing:
            raise RuntimeError(f"the raw loop failed: {self.missing['raw']}")
        present = [name for name in self.names if name not in self.missing]
        gaps = {name: difference(self.weights[name], self.weights["raw"]) for name in present}
        ranked = sorted((n for n in present if not gaps[n]), key=lambda n: self._ratios(n)[1])
        rows = [self._row(name, "equal") for name in ranked]
        for name in present:
            if gaps[name]:
                rows.append(self._row(name, f"differ by {gaps[name]:.1e}: not ranked"))
        for name, why in self.missing.items():
            rows.append(f"| {CONTESTANTS[name].label} | | | | | left out: {why} |")
        return [*HEADER, *rows]

    def _row(self, name, verdict):
        low, middle, high = self._ratios(name)
        took = statistics.median(map(statistics.mean, self.found[name]))
        quickest = [min(stretches) for stretches in self.found[name]]
        of_raw = [min(stretches) for stretches in self.found["raw"]]
        more = statistics.median(a - b for a, b in zip(quickest, of_raw, strict=True))
        cells = f"{middle:.3f} | {low:.3f} to {high:.3f} | {took:.0f} | {more:+.0f}"
        return f"| {CONTESTANTS[name].label} | {cells} | {verdict} |"

    def _ratios(self, name):
        """Returns the quartiles and the median of the ratios: lower, median, upper."""
        runs = zip(self.found[name], self.found["raw"], strict=True)
        ratios = [statistics.mean(mine) / statistics.mean(raw) for mine, raw in runs]
        # quantiles() needs two values.
        return statistics.quantiles(ratios * (2 if len(ratios) == 1 else 1), method="inclusive")
