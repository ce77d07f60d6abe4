"""Data with a state on two processes, each with its own state."""

import torch
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import Sampler

from ignite_hooks import DataFeed
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run


class Stream:
    """A random walk over all passes, with a different length on each process."""

    def __init__(self, length, seed):
        self.length, self.index, self.drawn = length, 0, 0
        self.rng = torch.Generator().manual_seed(seed)

    def __iter__(self):
        self.index = 0 if self.index == self.length else self.index
        while self.index < self.length:
            self.index += 1
            self.drawn += 1
            yield torch.rand(1, generator=self.rng) + torch.rand(1)

    def state_dict(self):
        return {"index": self.index, "generator": self.rng.get_state()}

    def load_state_dict(self, state):
        self.index = state["index"]
        self.rng.set_state(state["generator"])


class Samples(Stream, IterableDataset):
    pass


def take(feed, count):
    taken, batches = [], iter(feed)
    while len(taken) < count:
        for batch in batches:
            taken.append(batch.flatten().tolist() + torch.rand(1).tolist())
            if len(taken) == count:
                break
        else:
            batches = iter(feed)
    if feed.is_last:
        feed.finish()
    feed.close()
    return taken


def resumed(make, ours, count):
    """Returns the positions between two steps from which a resumed feed gives other batches."""
    steps = ours.gradient_accumulation_steps
    torch.manual_seed(ours.process_index)
    whole = take(DataFeed(make(), ours), count)
    wrong, said, drawn = [], set(), []
    for given in range(0, count, steps):
        torch.manual_seed(ours.process_index)
        first = DataFeed(make(), ours)
        take(first, given)
        state, random = first.state_dict(), torch.get_rng_state()
        if take(first, count - given) != whole[given:]:
            wrong.append(("in the same process", given))
        data = make()
        feed = DataFeed(data, ours)
        said |= {*feed.differences(state)}
        feed.load_state_dict(state)
        torch.set_rng_state(random)
        if take(feed, count - given) != whole[given:]:
            wrong.append(given)
        drawn.append(getattr(data, "dataset", data).drawn)
    return {"wrong": wrong, "said": sorted(said), "drawn": drawn}


def streams():
    found = {}
    for accumulation in (1, 3):
        ours = accelerator(accumulation)
        rank = ours.process_index
        found[str(accumulation)] = resumed(lambda: Stream(50, rank), ours, 10)  # noqa: B023
    return found


def of_equal_length():
    ours = accelerator(2)
    return resumed(lambda: Stream(4, ours.process_index), ours, 10)


def of_unequal_length():
    ours = accelerator(1)
    return resumed(lambda: Stream(4 + ours.process_index, ours.process_index), ours, 8)


def shared():
    """Resumes streams of which each process reads all samples and uses its part."""
    config = DataLoaderConfiguration(dispatch_batches=False)
    ours = accelerator(1, dataloader_config=config)
    return {
        str(drop_last): resumed(
            lambda: DataLoader(Samples(15, 5), 2, drop_last=drop_last),  # noqa: B023
            ours,
            8,
        )
        for drop_last in (False, True)
    }


class Carried(Sampler):
    """A sampler that draws each index when requested, from one generator over all passes."""

    def __init__(self, length, size=1):
        self.length, self.index, self.drawn = length, 0, 0
        self.batch_size = size
        self.rng = torch.Generator().manual_seed(1)

    def __len__(self):
        return -(-self.length // self.batch_size)

    def __iter__(self):
        while self.index < self.length:
            size = min(self.batch_size, self.length - self.index)
            self.index += size
            self.drawn += 1
            drawn = torch.randint(self.length, (size,), generator=self.rng).tolist()
            yield drawn if self.batch_size > 1 else drawn[0]
        self.index = 0

    def state_dict(self):
        return {"index": self.index, "generator": self.rng.get_state()}

    def load_state_dict(self, state):
        self.index = state["index"]
        self.rng.set_state(state["generator"])


class Numbers(Dataset):
    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        return torch.tensor([float(index)]) + torch.rand(1)


LENGTH = 17  # the last batches are filled, or left out


def sampled(*, is_batched, drop_last, **options):
    if is_batched:
        return DataLoader(Numbers(), batch_sampler=Carried(LENGTH, 2), **options)
    return DataLoader(Numbers(), 2, sampler=Carried(LENGTH), drop_last=drop_last, **options)


def holder_of(loader):
    found = loader.batch_sampler
    while not isinstance(found, Carried):
        found = getattr(found, "batch_sampler", getattr(found, "sampler", None))
    return found


SAMPLED = {
    "a sampler": {"is_batched": False, "drop_last": False},
    "a sampler, the last batch dropped": {"is_batched": False, "drop_last": True},
    "a batch sampler": {"is_batched": True, "drop_last": False},
}


def samplers():
    """Returns the positions from which a resumed feed differs, or draws a number twice."""
    found = {}
    for name, options in SAMPLED.items():
        for split in (False, True):
            config = DataLoaderConfiguration(split_batches=split)
            ours = accelerator(1, dataloader_config=config)
            found[f"{name}, split" if split else name] = of_sampler(
                lambda: sampled(num_workers=2, prefetch_factor=1, **options),  # noqa: B023
                ours,
            )
    stays = {"num_workers": 1, "persistent_workers": True}
    found["workers that stay"] = of_sampler(
        lambda: sampled(is_batched=False, drop_last=False, **stays), accelerator(1)
    )
    return found


def of_sampler(make, ours):
    torch.manual_seed(ours.process_index)
    whole_feed = DataFeed(make(), ours)
    count = len(whole_feed) + 2
    whole, places = [], []
    batches = iter(whole_feed)
    while len(whole) < count:
        places.append((whole_feed.state_dict(), torch.get_rng_state(), drawn_by(whole_feed)))
        if (batch := next(batches, None)) is None:
            batches = iter(whole_feed)
            batch = next(batches)
        whole.append(batch.flatten().tolist() + torch.rand(1).tolist())
    whole_feed.close()
    total, wrong, said = drawn_by(whole_feed), [], set()
    for given, (state, random, drawn) in enumerate(places):
        feed = DataFeed(make(), ours)
        said |= {*feed.differences(state), *feed.replay_notes(state)}
        feed.load_state_dict(state)
        torch.set_rng_state(random)
        if take(feed, count - given) != whole[given:] or drawn_by(feed) != total - drawn:
            wrong.append(given)
    return {"wrong": wrong, "said": sorted(said), "places": len(places)}


def drawn_by(feed):
    return holder_of(feed.loader).drawn


if __name__ == "__main__":
    run(streams, of_equal_length, of_unequal_length, shared, samplers)
