"""The work of every contestant: the same model, data, optimizer and scheduler, and one clock."""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from tests.benchmarks.sizes import MODELS
from tests.benchmarks.sizes import STRETCH

DIFFERENT_BATCHES = 50
MAX_NORM = 1.0
DECAY = 0.9995


class Batches(Dataset):
    """Batches that are created before the run, and record the time at every ``STRETCH``-th of them.

    The set-up of a contestant comes before the first time, and its end after the last one. If a
    contestant fetches batches ahead, all times are early by the same amount.
    """

    def __init__(self, x, y, length, clock, as_dicts=False):
        self.clock = clock
        self.batches = list(zip(x, y, strict=True))
        if as_dicts:
            self.batches = [{"x": x, "labels": y} for x, y in self.batches]
        self.length = length
        self.given = 0
        self.times = []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not index % STRETCH:
            self.times.append(self.clock())
        self.given += 1
        return self.batches[index % DIFFERENT_BATCHES]


class Linear(torch.nn.Linear):
    shape = (8, 16)

    def __init__(self):
        super().__init__(16, 16)


class Convs(torch.nn.Sequential):
    """A model with as many parameter tensors as a ResNet-50, all of them tiny."""

    shape = (2, 4, 4, 4)

    def __init__(self):
        super().__init__()
        for _ in range(54):
            self.append(torch.nn.Conv2d(4, 4, 3, padding=1, bias=False))
            self.append(torch.nn.BatchNorm2d(4))


class Transformer(torch.nn.Sequential):
    shape = (2, 8, 64)

    def __init__(self):
        layer = torch.nn.TransformerEncoderLayer
        super().__init__(*(layer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(12)))


KINDS = dict(zip(MODELS, (Linear, Convs, Transformer), strict=True))


@dataclass
class Work:
    """The work of one contestant, which trains ``model`` in place for one epoch over ``loader``.

    Losses are averaged over ``accumulation`` batches, and the gradient of each step is clipped. The
    learning rate falls at every step, so the weights show if a contestant leaves out a step or a
    move of the scheduler.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    data: Batches
    loader: DataLoader
    accumulation: int

    @classmethod
    def of(cls, kind, accumulation, iterations, clock=time.perf_counter, as_dicts=False):
        torch.manual_seed(0)
        model = KINDS[kind]()
        x, y = torch.randn(2, DIFFERENT_BATCHES, *model.shape)
        data = Batches(x, y, iterations, clock, as_dicts)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return cls(model, optimizer, data, DataLoader(data, batch_size=None), accumulation)

    def scheduler(self, optimizer=None):
        return ExponentialLR(optimizer or self.optimizer, DECAY)

    loss_fn = staticmethod(F.mse_loss)

    @property
    def weights(self):
        return {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
