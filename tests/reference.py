"""Plain PyTorch loops as references, and small models and data to train with."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import GradientState
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import TensorDataset

from ignite_hooks import create_supervised_trainer


class Noisy(Dataset):
    """A data set whose augmentation draws from the three global generators."""

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


def samples(number):
    noisy = Noisy(number)
    return TensorDataset(noisy.x, noisy.y)


def shuffled(batches=5):
    """Returns a loader that torch's global generator shuffles; nothing else draws from it."""
    return DataLoader(samples(2 * batches), batch_size=2, shuffle=True)


def augmented(batches=5):
    return DataLoader(Noisy(2 * batches), batch_size=2, shuffle=True)


class Repeatable:
    """An iterable of batches without a known length, which can be iterated again."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Epochs:
    """Batches, or their indices, that record the arguments of ``set_epoch``."""

    def __init__(self, *batches):
        self.batches = batches
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


class FakeScaler:
    """Skips the steps with the given numbers as torch's scaler does: by not calling ``step``."""

    def __init__(self, *skipped):
        self.skipped = skipped
        self.calls = 0

    def scale(self, loss):
        return loss

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer, closure=None):
        self.calls += 1
        if self.calls not in self.skipped:
            optimizer.step()

    def update(self, new_scale=None):
        pass

    def get_scale(self):
        return 1.0


class Notes(list):
    """A list in which a test records a run; checkpoints skip it, and do not report it."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        """Keeps the recorded items."""


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
    """Trains with the usual loop. A window of k batches steps with the mean of its k losses."""
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


def batches_of(number, size=2):
    """Returns a list of batches for the models of ``make_model``."""
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(size, 4, generator=generator), torch.randn(size, 2, generator=generator))
        for _ in range(number)
    ]


def position(batches, batch):
    """Returns the index of ``batch`` in a list, by identity."""
    return next(i for i, each in enumerate(batches) if each is batch)


def given(source, data_pass, skip):
    """Returns the batches of one pass of a loader, without the first ``skip``."""
    with source.active(data_pass):
        return list(source.batches(data_pass, skip))


def draw_each():
    """Draws a number from each of the three global generators."""
    random.random(), np.random.rand(), torch.rand(1)


def make_trainer(
    data=None,
    *,
    accumulation=1,
    dropout=0.0,
    model=None,
    optimizer=None,
    accelerator=None,
    **options,
):
    """Returns a trainer of ``make_model``, with SGD with momentum and the mean squared error."""
    model = make_model(dropout) if model is None else model
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    accelerator = accelerator or Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    if "batch_processor" not in options:
        options.setdefault("loss_fn", F.mse_loss)
    return create_supervised_trainer(
        model, optimizer, data=data, accelerator=accelerator, **options
    )


NO_DATA = {
    "batch_processor": lambda model, batch: (None, model(torch.ones(1, 4)).pow(2).mean()),
}
"""What a trainer is made with that is run without data."""


def trained(make_data, epochs=2, **options):
    """Returns the weights of an unbroken run, and its trainer."""
    seed()
    trainer = make_trainer(make_data(), **options)
    trainer.run(max_epochs=epochs)
    return weights(trainer.model), trainer


def assert_clean(trainer):
    """Checks that no loader is Accelerate's active one, and that no gradient is left."""
    assert GradientState().dataloader_references == [None]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


WITHIN_THE_DATA = [event for event in Events if event is not Events.DATALOADER_STOP_ITERATION]
"""All events of Ignite but that of the end of the data."""


def record(engine, events):
    """Returns a list that grows by (name, epoch, iteration) at each of the events."""
    seen = []
    for event in events:

        def note(engine, *args, event=event, **kwargs):
            seen.append((event.name, engine.state.epoch, engine.state.iteration))

        engine.add_event_handler(event, note)
    return seen


class Log(list):
    """A log of contexts entered and left, in order. ``open``: the contexts open now."""

    def __init__(self):
        self.open = []

    def enter(self, name):
        self.append(f"+{name}")
        self.open.append(name)

    def leave(self, name, error=None):
        assert self.open.pop() == name, "another is the innermost"
        self.append(f"-{name}" if error is None else (f"-{name}", error))

    @property
    def failed(self):
        """Returns the exits by a failure."""
        return [entry for entry in self if not isinstance(entry, str)]


def noting(log, name):
    """Returns a context that records in ``log`` when it is entered and how it is left."""

    def context(engine):
        log.enter(name)
        try:
            yield
        except BaseException as error:
            log.leave(name, error)
            raise
        log.leave(name)

    return context
