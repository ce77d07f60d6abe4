"""Compares a save of a small model during a run with other ways to save it. From the root:

python -m tests.benchmarks.small_saves

The model has ten layers with Adam, so the files hold three times its size. At each step of one run
each way saves once, in turns, and ratios are taken within a step. Each way keeps the former save
until the new one is on the disk. System calls are counted in a process under strace, in all its
threads, from the beginning of a save until everything is written.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.benchmarks.checkpoint import make_trainer
from tests.benchmarks.checkpoint import save_state
from tests.benchmarks.checkpoint import writer_into
from tests.benchmarks.machine import describe_machine

MODELS = {"100 kB": 50, "10 MB": 500}  # the width of the layers
LAYERS = 10
MARKS = "/a save begins", "/a save has ended"  # paths that are looked up, which strace shows


def torch_save(trainer, folder):
    """Saves only model and optimizer, in one file."""
    new = folder / "torch-new.pt"
    states = {"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    with new.open("wb") as file:
        torch.save(states, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / "torch.pt")
    # The folder has to be synchronized too, or the renaming may be lost.
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Ours:
    """A ``SaveCheckpoint`` that saves as during a run, which holds the lock."""

    def __init__(self, trainer, folder, **options):
        self.writer = writer_into(folder, trainer, **options)
        self.writer.lock.acquire()

    def __call__(self, trainer, folder):
        self.writer.save(trainer)
        return self.writer.wait


def ways_of(trainer, folder):
    return {
        "`save_state`, fsync": save_state,
        "`torch.save`, fsync": torch_save,
        "`SaveCheckpoint`": Ours(trainer, folder / "ours"),
        "`SaveCheckpoint(background=True)`": Ours(trainer, folder / "behind", background=True),
    }


def at_each_step(width, steps, callback):
    """Calls ``callback`` with a trainer, a folder and the ways to save after each step.

    The callback is not a handler: a save searches handlers for states, and would find the ways to
    save, which change each time.
    """
    trainer = make_trainer(LAYERS, steps=0, width=width)
    with tempfile.TemporaryDirectory() as folder:
        ways = ways_of(trainer, Path(folder))
        for step in range(1, steps + 1):
            trainer.run(max_steps=step)
            callback(trainer, Path(folder), ways)


def milliseconds(width, rounds):
    """Returns the milliseconds for which each way blocks, at each step."""
    found = []

    def measure(trainer, folder, ways):
        taken = {}
        for name in reversed(ways) if len(found) % 2 else ways:
            began = time.perf_counter()
            wait = ways[name](trainer, folder)
            taken[name] = 1000 * (time.perf_counter() - began)
            if wait is not None:
                wait()
        found.append(taken)

    at_each_step(width, rounds + 2, measure)
    return found[2:]  # the first saves create folders, and remove no older checkpoint


def save_between_marks(name, width):
    """Saves three times in one way, and marks the last save for strace."""

    def save(trainer, folder, ways):
        if trainer.state.optimizer_step == 3:
            os.path.exists(MARKS[0])
        wait = ways[name](trainer, folder)
        if wait is not None:
            wait()
        if trainer.state.optimizer_step == 3:
            os.path.exists(MARKS[1])

    at_each_step(width, 3, save)


def system_calls(name, width):
    """Returns the names of the system calls of a save, or None without strace."""
    if shutil.which("strace") is None:
        return None
    with tempfile.NamedTemporaryFile("r") as file:
        command = ["strace", "-f", "-o", file.name, sys.executable, "-m", __spec__.name]
        command += ["--save", name, "--width", str(width)]
        subprocess.run(command, check=True)
        lines = file.read().splitlines()
    first, last = (next(i for i, line in enumerate(lines) if mark in line) for mark in MARKS)
    found = (re.match(r"\d+ +(\w+)\(", line) for line in lines[first + 1 : last])
    return [call[1] for call in found if call is not None]


def table(rounds=25, models=tuple(MODELS)):
    yield "| model | | ms | ratio | quartiles | system calls | fsyncs |"
    yield "|---|---|---|---|---|---|---|"
    for model in models:
        found = milliseconds(MODELS[model], rounds)
        base, *_ = found[0]
        for name in found[0]:
            middle = statistics.median(each[name] for each in found)
            low, ratio, high = statistics.quantiles((r[name] / r[base] for r in found), n=4)
            calls = system_calls(name, MODELS[model])
            counts = " | " if calls is None else f"{len(calls)} | {calls.count('fsync')}"
            cells = f"{middle:.1f} | {ratio:.2f} | {low:.2f} to {high:.2f} | {counts}"
            yield f"| {model} | {name} | {cells} |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save:
        save_between_marks(options.save, options.width)
        return
    print(describe_machine(("accelerate",)))
    print()
    for line in table(options.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
