"""Measures the cost of entering a pass over the data in the middle or near its end. From the root:

python -m tests.benchmarks.data --rounds 11

A feed iterates a loader of bare indices until its first batch: at the beginning of a pass, in its
middle, and before its last batch. Each case runs in its own process, forked from one that has
everything imported and has begun another pass. The figures are CPU seconds, the growth of the peak
of resident memory, and the number of random numbers drawn (a permutation of n counts n). The cases
take turns within a round, and ratios are to the beginning in the same round. The table shows the
median of the seconds and of the ratios, the quartiles of the ratios, and the largest growth.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import DistributedSampler
from torch.utils.data import RandomSampler
from torch.utils.data import Sampler
from torch.utils.data import SequentialSampler
from torch.utils.data import SubsetRandomSampler
from torch.utils.data import WeightedRandomSampler

from ignite_hooks.data.feed import DataFeed
from tests.benchmarks.machine import describe_machine

SIZES = (10**3, 10**5, 10**7)
BATCH = 50
PLACES = {"beginning": 0.0, "middle": 0.5, "last batch": 1.0}


class Indices(Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index


class IndexSampler(Sampler):
    """A sampler of a user's class, which can only be iterated from its beginning."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __iter__(self):
        yield from range(self.size)


SAMPLERS = {
    "SequentialSampler": SequentialSampler,
    "RandomSampler": RandomSampler,
    "RandomSampler(replacement=True)": lambda data: RandomSampler(data, replacement=True),
    "SubsetRandomSampler": lambda data: SubsetRandomSampler(range(len(data))),
    "SeedableRandomSampler": SeedableRandomSampler,
    "DistributedSampler": lambda data: DistributedSampler(data, 1, 0),
    "of a user's class": lambda data: IndexSampler(len(data)),
}
# A size must stay below 2**24, the largest number of categories of torch.multinomial.
SAMPLERS["WeightedRandomSampler"] = lambda data: WeightedRandomSampler(
    torch.ones(len(data)), len(data)
)


def peak():
    """Returns the peak of resident memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


class Draws:
    """Counts the numbers that samplers draw."""

    def __init__(self):
        self.count = 0
        for name in ("randperm", "randint", "multinomial"):
            setattr(torch, name, self.counting(getattr(torch, name)))

    def counting(self, draw):
        def drawing(*args, **options):
            drawn = draw(*args, **options)
            self.count += drawn.numel()
            return drawn

        return drawing


def enter(name, size, share):
    """Measures the first batch at a position of the pass."""
    torch.manual_seed(1)
    data = Indices(size)
    loader = DataLoader(data, BATCH, sampler=SAMPLERS[name](data))
    feed = DataFeed(loader)
    place = None
    begun = DataFeed(DataLoader(Indices(BATCH), BATCH, shuffle=True))
    next(iter(begun))
    if share:
        batches = min(int(share * size / BATCH), size // BATCH - 1)
        state = feed.state_dict()
        state["source"]["begun"] = begun.state_dict()["source"]["begun"]
        place = {**state, "position": [0, batches], "samples": batches * BATCH}
    draws = Draws()
    Path("/proc/self/clear_refs").write_text("5")
    before, start = peak(), time.process_time()
    if place is not None:
        feed.load_state_dict(place)
    next(iter(feed))
    return {
        "seconds": time.process_time() - start,
        "mib": peak() - before,
        "drawn": draws.count,
    }


def in_a_process(*arguments):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, json.dumps(enter(*arguments)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = json.load(pipe)
    os.waitpid(child, 0)
    return found


def quartiles(values):
    if len(values) < 2:
        return values * 2
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def row(name, size, rounds):
    """Returns the row of one sampler and one size."""
    found = {place: [] for place in PLACES}
    for number in range(rounds):
        places = [*PLACES.items()]
        for place, share in places[number % 3 :] + places[: number % 3]:
            found[place].append(in_a_process(name, size, share))
    cells = []
    for place, each in found.items():
        cells.append(f"{1000 * statistics.median(one['seconds'] for one in each):.1f}")
        if place != "beginning":
            pairs = zip(each, found["beginning"], strict=True)
            ratios = [one["seconds"] / other["seconds"] for one, other in pairs]
            low, high = quartiles(ratios)
            cells.append(f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")
    mib = max(statistics.median(one["mib"] for one in each) for each in found.values())
    drawn = max(each[0]["drawn"] for each in found.values())
    return f"| {name} | {size:,} | {' | '.join(cells)} | {mib:.0f} | {drawn:,} |"


def table(rounds=11, sizes=SIZES, samplers=tuple(SAMPLERS)):
    torch.set_num_threads(1)
    yield (
        "| sampler | samples | beginning, ms | middle, ms | ratio | last batch, ms | ratio "
        "| MiB | numbers drawn |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in samplers:
        for size in sizes:
            yield row(name, size, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--samplers", nargs="+", default=[*SAMPLERS], choices=[*SAMPLERS])
    options = parser.parse_args()
    print(describe_machine())
    print()
    for line in table(options.rounds, options.sizes, options.samplers):
        print(line, flush=True)


if __name__ == "__main__":
    main()
