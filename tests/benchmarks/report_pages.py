"""Measures what it takes to make the page of a report from a long record. From the root:

python -m tests.benchmarks.report_pages

The record has the lines of a short run, and a line with seven metrics after every ten steps. The
page is made by the command that a ``TrainingReport`` starts. The figures are the processor time and
the peak of resident memory of its process, and the sizes of the two files.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ignite_hooks import MetricsLog
from ignite_hooks.checkpoint.terminal import size_text
from tests.benchmarks.machine import describe_machine
from tests.reference import batches_of
from tests.reference import make_trainer

STEPS = (10**3, 10**5, 10**7)
EVERY = 10
METRICS = ("loss", "lr", "samples_per_second", "val_accuracy", "val_loss", "grad_norm", "ram_mib")
# The process measures itself: the kernel counts the memory of a parent as that of its child.
MAKE = """
import sys, time
from ignite_hooks.observe.__main__ import main

if main(["report", sys.argv[1], "-o", sys.argv[2]]):
    sys.exit("no page")
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(time.process_time(), int(peak.split()[1]) / 1024)
"""


def write_record(path, steps):
    """Writes the first line of a real record, and the lines of metrics of a run of ``steps``."""
    make_trainer(batches_of(1), handlers=[MetricsLog(path, every_steps=1)]).run(max_epochs=1)
    first, *others = path.read_text().splitlines()
    line = next(each for each in map(json.loads, others) if each["event"] == "step")
    with path.open("w") as file:
        print(first, file=file)
        for step in range(EVERY, steps + 1, EVERY):
            values = {name: (step * 7 + number) % 1013 / 7 for number, name in enumerate(METRICS)}
            line |= {"step": step, "iteration": step, "seconds": step / 100, "metrics": values}
            print(json.dumps(line, separators=(",", ":")), file=file)


def make_page(record, page):
    """Makes the page, and returns its process's seconds of processor time and MiB of memory."""
    command = [sys.executable, "-c", MAKE, str(record), str(page)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return map(float, done.stdout.splitlines()[-1].split())


def table(numbers=STEPS):
    yield "| steps | record | processor time, s | peak memory, MiB | page |"
    yield "|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        record, page = Path(folder, "metrics.jsonl"), Path(folder, "report.html")
        for number, steps in enumerate((numbers[0], *numbers)):
            write_record(record, steps)
            seconds, mib = make_page(record, page)
            if number:  # the first page of a machine takes longer
                sizes = [size_text(os.path.getsize(each)) for each in (record, page)]
                yield f"| {steps:,} | {sizes[0]} | {seconds:.2f} | {mib:.0f} | {sizes[1]} |"
            record.unlink()


def main():
    print(describe_machine(()))
    print()
    for line in table():
        print(line, flush=True)


if __name__ == "__main__":
    main()
