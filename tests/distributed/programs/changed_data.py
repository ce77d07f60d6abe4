"""Loaders that Accelerate divides over two processes, resumed with other batches and workers."""

import random

import torch
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import DataFeed
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run

SIZE = 25
BATCHES = 3, 4  # that are given, of 3 samples for each process


class Drawing(Dataset):
    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return index + self.noise * (float(torch.rand(())) + random.random())


def feed_of(batch_size, noise=0.0, *, split=False, **options):
    ours = accelerator(dataloader_config=DataLoaderConfiguration(split_batches=split))
    data = DataLoader(
        Drawing(noise), batch_size * (1 + split), shuffle=True, drop_last=False, **options
    )
    return DataFeed(data, ours)


def taken(feed, count=None):
    """Returns ``count`` batches, or the rest of the pass, as lists."""
    found, batches = [], iter(feed)
    for batch in batches:
        found.append(batch.tolist())
        if len(found) == count or feed.is_last:
            break
    feed.finish()
    feed.close()
    return found


def other_batches(split):
    found = {}
    for batches in BATCHES:
        for size in (2, 5, 20):
            torch.manual_seed(1)
            feed = feed_of(3, split=split)
            before = taken(feed, batches)
            state = feed.state_dict()
            torch.manual_seed(9)
            feed = feed_of(size, split=split)
            said = feed.data_changes(state)
            feed.load_state_dict(state)
            left = feed.length - batches
            rest = taken(feed)
            found[f"{batches} {size}"] = {
                "before": before,
                "rest": rest,
                "left": left,
                "said": said,
                "next": len(taken(feed)),
            }
    return found


def in_batches():
    return other_batches(split=False)


def in_parts_of_batches():
    return other_batches(split=True)


def workers():
    """Returns the positions from which resumed workers give or draw something else."""
    wrong = []
    for persistent in (False, True):
        options = {"num_workers": 2, "persistent_workers": persistent}
        torch.manual_seed(1)
        feed = feed_of(3, 0.1, **options)
        whole = [taken(feed) for _ in range(2)]
        for batches in range(1, len(whole[0])):
            torch.manual_seed(1)
            feed = feed_of(3, 0.1, **options)
            taken(feed, batches)
            state, random_state = feed.state_dict(), torch.get_rng_state()
            torch.manual_seed(9)
            feed = feed_of(3, 0.1, **options)
            feed.load_state_dict(state)
            torch.set_rng_state(random_state)
            if [taken(feed), taken(feed)] != [whole[0][batches:], whole[1]]:
                wrong.append([persistent, batches])
    return {"wrong": wrong, "differences": feed.differences(state)}


if __name__ == "__main__":
    run(in_batches, in_parts_of_batches, workers)
