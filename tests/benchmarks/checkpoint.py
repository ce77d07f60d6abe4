"""Compares saving and resuming with Accelerate's own functions. From the root:

python -m tests.benchmarks.checkpoint

The model has 100 M parameters with Adam, 1.2 GB. Each round saves and loads once in each way, and
ratios are taken within a round. ``save_state`` gets an fsync of its files: without one, nothing is
saved if the machine stops. Memory is the peak of resident memory, above the memory before.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator

from ignite_hooks import MaxRAM
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.durable import sync_tree
from ignite_hooks.checkpoint.writer import CheckpointWriter
from tests.benchmarks.machine import describe_machine


def make_trainer(layers, steps=1, width=2048):
    """Returns a trainer of layers with 4.2 M parameters each, for the default width."""
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
    trainer = create_supervised_trainer(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-6),
        torch.nn.functional.mse_loss,
        [(torch.randn(1, width), torch.randn(1, width))],
        accelerator=Accelerator(cpu=True),
    )
    if steps:
        trainer.run(max_steps=steps)
    return trainer


def save_state(trainer, folder):
    """Saves into a new folder and then removes the former one, so that one is always whole."""
    former, new = folder / "theirs", folder / "theirs-new"
    trainer.accelerator.save_state(str(new))
    sync_tree(new)
    shutil.rmtree(former, ignore_errors=True)
    new.rename(former)


def writer_into(folder, trainer, **options):
    writer = CheckpointWriter(
        SaveCheckpoint(folder, keep_last=1, **options), trainer, lambda folder: None
    )
    writer._saved_at = None  # else the writer skips a second save of the same step
    return writer


def save(trainer, folder):
    writer_into(folder / "ours", trainer).save(trainer)


def save_in_background(trainer, folder):
    """Saves as during a run, which holds the lock; a save between runs does not return early."""
    writer = writer_into(folder / "behind", trainer, background=True)
    writer.lock.acquire()
    writer.save(trainer)

    def wait():
        writer.wait()
        writer.lock.release()

    return wait


def load_state(trainer, folder):
    trainer.accelerator.load_state(str(folder / "theirs"))


def resume(trainer, folder):
    ResumeCheckpoint(folder / "ours").attach(trainer).remove()


def resume_unverified(trainer, folder):
    ResumeCheckpoint(folder / "ours", verify=False).attach(trainer).remove()


SAVES = {
    "`save_state`, fsync": save_state,
    "`SaveCheckpoint`": save,
    "`SaveCheckpoint(background=True)`": save_in_background,
}
LOADS = {
    "`load_state`": load_state,
    "`ResumeCheckpoint`": resume,
    "`ResumeCheckpoint(verify=False)`": resume_unverified,
}


def seconds_of(ways, trainer, folder, *, is_reversed=False):
    """Returns the seconds for which each way blocks, one after the other."""
    taken = {}
    for name in reversed(ways) if is_reversed else ways:
        save_or_load = ways[name]
        os.sync()  # or this way would also wait for the writes of the one before
        began = time.perf_counter()
        wait = save_or_load(trainer, folder)
        taken[name] = time.perf_counter() - began
        if wait is not None:
            wait()
    return taken


def peak_of(name, layers, folder):
    """Prints the peak of resident memory of one way, in MiB, above what was resident before."""
    trainer = make_trainer(layers, steps=int(name in SAVES))
    with MaxRAM() as before:
        pass
    with MaxRAM() as ram:
        wait = {**SAVES, **LOADS}[name](trainer, folder)
        if wait is not None:
            wait()
    print(f"{ram.result() - before.result():,.0f}")


def lines_of(ways, trainer, folder, rounds, layers):
    """Yields the lines of the table; the first way is the base of the ratios.

    The peak of each way is measured in a process of its own.
    """
    seconds_of(ways, trainer, folder)  # warms up: files and memory exist from now on
    taken = [
        seconds_of(ways, trainer, folder, is_reversed=number % 2 == 1) for number in range(rounds)
    ]
    base, *_ = ways
    yield "| | seconds | ratio | quartiles | peak of memory, MiB |"
    yield "|---|---|---|---|---|"
    for name in ways:
        seconds = statistics.median(each[name] for each in taken)
        low, middle, high = statistics.quantiles((each[name] / each[base] for each in taken), n=4)
        command = [sys.executable, "-m", __spec__.name, "--peak-of", name]
        command += ["--layers", str(layers), "--directory", str(folder)]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        yield f"| {name} | {seconds:.2f} | {middle:.2f} | {low:.2f} to {high:.2f} | {peak} |"


def saves(rounds=11, layers=24, directory=None):
    """Yields the lines of the table of saves."""
    with TemporaryDirectory(dir=directory) as folder:
        yield from lines_of(SAVES, make_trainer(layers), Path(folder), rounds, layers)


def resumes(rounds=11, layers=24, directory=None):
    """Yields the lines of the table of resumes."""
    with TemporaryDirectory(dir=directory) as folder:
        trainer = make_trainer(layers)
        seconds_of(SAVES, trainer, Path(folder))
        yield from lines_of(LOADS, trainer, Path(folder), rounds, layers)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--directory", type=Path, help="on the disk that is to be measured")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        peak_of(options.peak_of, options.layers, options.directory)
        return
    print(describe_machine(("accelerate",)))
    for table in (saves, resumes):
        print()
        for line in table(options.rounds, options.layers, options.directory):
            print(line, flush=True)


if __name__ == "__main__":
    main()
