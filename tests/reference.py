"""The reference: plain PyTorch loops that anyone can check by eye, and small things to train."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset


class Noisy(Dataset):
    """Samples with augmentation from the three global generators."""

    def __init__(self, size=10, noise=0.1):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(size, 4, generator=generator)
        self.y = torch.randn(size, 2, generator=generator)
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        jitter = torch.randn(4) + random.random() + float(np.random.rand())
        return self.x[index] + self.noise * jitter, self.y[index]


def make_model(dropout=0.5):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(8, 2)
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def seed(number=1):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def train_by_hand(
    model,
    optimizer,
    loader,
    *,
    accumulation=1,
    epochs=1,
    clip=None,
    after_step=None,
    after_epoch=None,
):
    """The loop that people write. A window of k batches steps with the mean of its k losses."""
    for _ in range(epochs):
        batches = len(loader)
        for index, (x, y) in enumerate(loader):
            first = index - index % accumulation
            size = min(accumulation, batches - first)
            (F.mse_loss(model(x), y) / size).backward()
            if index + 1 == first + size:
                if clip is not None:
                    clip(model.parameters())
                optimizer.step()
                if after_step is not None:
                    after_step()
                optimizer.zero_grad()
        if after_epoch is not None:
            after_epoch()


def train_on_windows(model, optimizer, batches, windows, *, clip=None, after_step=None):
    """Steps once for each window, given as the numbers of its batches."""
    for window in windows:
        for number in window:
            x, y = batches[number]
            (F.mse_loss(model(x), y) / len(window)).backward()
        if clip is not None:
            clip(model.parameters())
        optimizer.step()
        if after_step is not None:
            after_step()
        optimizer.zero_grad()
