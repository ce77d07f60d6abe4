"""Each row of the table in docs/concepts/kinds_of_data.md: how exact each kind of data resumes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler
from torch.utils.data import Sampler
from torch.utils.data import get_worker_info

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import weights

BATCHES = 4  # in a pass


class Still(Dataset):
    """A data set that draws no random number."""

    def __init__(self, size=2 * BATCHES):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.full((4,), index / 10)


class Drawing(Still):
    def __getitem__(self, index):
        return super().__getitem__(index) + torch.rand(4)


class Stream(IterableDataset):
    """A stream of the samples of a data set, divided over the workers."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (self.data[index] for index in range(first, len(self.data), step))


class StatefulStream(Stream):
    """A stream whose state holds the position."""

    def __init__(self, data):
        super().__init__(data)
        self.given = 0

    def __iter__(self):
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while first + self.given * step < len(self.data):
            self.given += 1
            yield self.data[first + (self.given - 1) * step]
        self.given = 0

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state_dict):
        self.given = state_dict["given"]


class Shuffled(Sampler):
    """A sampler that draws the order of a pass at its start."""

    def __iter__(self):
        return iter(torch.randperm(2 * BATCHES).tolist())

    def __len__(self):
        return 2 * BATCHES


class DrawingEach(Shuffled):
    """A sampler that draws each index when it is needed."""

    def __iter__(self):
        return (int(torch.randint(2 * BATCHES, ())) for _ in range(2 * BATCHES))


class StatefulDrawing(DrawingEach):
    """A sampler that draws each index, and whose state holds the position."""

    def __init__(self):
        self.given = 0

    def __iter__(self):
        while self.given < 2 * BATCHES:
            self.given += 1
            yield int(torch.randint(2 * BATCHES, ()))
        self.given = 0

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state_dict):
        self.given = state_dict["given"]


class Varying(Sampler):
    """A batch sampler with batches of one to three samples."""

    def __iter__(self):
        order = torch.randperm(2 * BATCHES).tolist()
        return iter([order[:1], order[1:3], order[3:6], order[6:]])

    def __len__(self):
        return BATCHES


class CustomLoader(DataLoader):
    def __iter__(self):
        return (batch / 2 for batch in super().__iter__())


class Repeatable:
    """Batches that can be iterated again, with a length that is only a promise."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return (torch.stack([self.data[i], self.data[i + 1]]) for i in range(0, 2 * BATCHES, 2))

    def __len__(self):
        return BATCHES


class StatefulRepeatable(Repeatable):
    """Repeatable batches whose state holds the position."""

    def __init__(self, data):
        super().__init__(data)
        self.given = 0

    def __iter__(self):
        while self.given < BATCHES:
            self.given += 1
            yield torch.stack([self.data[2 * self.given - 2], self.data[2 * self.given - 1]])
        self.given = 0

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state_dict):
        self.given = state_dict["given"]


def collate_with_empty_batches(samples):
    """Returns None for the batch of sample 0, and an empty tensor for that of sample 1."""
    found = {round(10 * float(each[0])) for each in samples}
    if 0 in found:
        return None
    return torch.empty(0, 4) if 1 in found else torch.stack(samples)


def loader(data=None, **options):
    return DataLoader(data or Still(), **{"batch_size": 2, "shuffle": True, **options})


def unshuffled(data, **options):
    return DataLoader(data, batch_size=2, **options)


@dataclass
class Kind:
    """A row of the table.

    Args:
        name: what the table calls the data.
        make: makes them.
        between: the level of the report on a resume between two passes, and whether the weights
            are then those of the unbroken run, bit by bit.
        within: the same of a resume in the middle of a pass.
        why: of the reason that the report has.
        epoch_length: what the run is given.
    """

    name: str
    make: Callable[[], Any]
    between: tuple[str, bool] = ("exact", True)
    within: tuple[str, bool] = ("exact", True)
    why: str = ""
    epoch_length: int | None = None

    @property
    def row(self) -> str:
        """The row as in docs/concepts/kinds_of_data.md."""
        between, within = expected_level(*self.between), expected_level(*self.within)
        return f"| {self.name} | {between} | {within} | {self.why} |"


def expected_level(level: str, same: bool) -> str:
    """Returns the text of a cell."""
    return (
        level if (level == "exact") == same else f"{level}, {'the same' if same else 'other'} bits"
    )


def trainer_for(kind, **options):
    """Returns a trainer for the data of a row, whatever its batches are."""
    return make_trainer(kind.make(), dropout=0.5, batch_processor=batch_loss, **options)


def batch_loss(model, batch):
    """Returns the loss of a batch; without samples, a loss of the weights alone."""
    if batch is None or not len(batch):
        return None, sum(p.pow(2).sum() for p in model.parameters())
    return None, model(batch).pow(2).mean()


EXACT, SAME, OTHER = ("exact", True), ("approximate", True), ("approximate", False)
AGAIN = "earlier batches of this pass are iterated again"
MOVED = (
    "an iterator cannot be moved to the saved position: the run takes the next batches of the "
    "iterator"
)

KINDS = [
    Kind("`DataLoader(shuffle=True)`", lambda: loader(Drawing())),
    Kind("… the last batch smaller", lambda: loader(Drawing(2 * BATCHES - 1))),
    Kind("… `drop_last=True`", lambda: loader(Drawing(2 * BATCHES + 1), drop_last=True)),
    Kind("… `pin_memory=True`", lambda: loader(Drawing(), pin_memory=True)),
    Kind("… `batch_size=None`", lambda: loader(Drawing(BATCHES), batch_size=None)),
    Kind("… batches that are None or empty", lambda: loader(collate_fn=collate_with_empty_batches)),
    Kind(
        "… `sampler=RandomSampler(…, replacement=True)`",
        lambda: unshuffled(Drawing(), sampler=RandomSampler(Still(), replacement=True)),
    ),
    Kind(
        "… a sampler of your own class, which draws the order as a pass begins",
        lambda: unshuffled(Drawing(), sampler=Shuffled()),
    ),
    Kind(
        "… a sampler of your own class that draws each index from a global generator when the "
        "index is requested",
        lambda: unshuffled(Drawing(), sampler=DrawingEach()),
        why="a warning: other code draws from that generator between two indices, so values that "
        "the sampler keeps, such as a buffer, may differ",
    ),
    Kind(
        "… that sampler, with `state_dict` and `load_state_dict`",
        lambda: unshuffled(Drawing(), sampler=StatefulDrawing()),
    ),
    Kind(
        "… that sampler with both methods, and `num_workers=2`",
        lambda: unshuffled(Drawing(), sampler=StatefulDrawing(), num_workers=2),
    ),
    Kind(
        "… that sampler with both methods, and `persistent_workers=True`",
        lambda: unshuffled(
            Drawing(), sampler=StatefulDrawing(), num_workers=2, persistent_workers=True
        ),
    ),
    Kind(
        "… a batch sampler of your own class",
        lambda: DataLoader(Drawing(), batch_sampler=Varying()),
    ),
    Kind(
        "… `num_workers=2`, and the data set draws random numbers",
        lambda: loader(Drawing(), num_workers=2),
    ),
    Kind(
        "… `persistent_workers=True`, and the data set draws random numbers",
        lambda: loader(Drawing(), num_workers=2, persistent_workers=True),
    ),
    Kind(
        "`DataLoader` of an `IterableDataset`",
        lambda: unshuffled(Stream(Still())),
        within=SAME,
        why=AGAIN,
    ),
    Kind(
        "… and it draws random numbers",
        lambda: unshuffled(Stream(Drawing())),
        within=OTHER,
        why=AGAIN,
    ),
    Kind(
        "… `num_workers=2`, and it draws random numbers",
        lambda: unshuffled(Stream(Drawing()), num_workers=2),
        within=SAME,
        why=AGAIN,
    ),
    Kind(
        "… with `state_dict` and `load_state_dict`, and it draws random numbers",
        lambda: unshuffled(StatefulStream(Drawing())),
    ),
    Kind(
        "… with these, `num_workers=2`, and torchdata installed",
        lambda: unshuffled(StatefulStream(Drawing()), num_workers=2),
    ),
    Kind(
        "a `DataLoader` of your own class, with its own `__iter__`",
        lambda: CustomLoader(Still(), 2, shuffle=True),
        within=SAME,
        why=AGAIN,
    ),
    Kind(
        "… and the data set draws random numbers",
        lambda: CustomLoader(Drawing(), 2, shuffle=True),
        within=OTHER,
        why=AGAIN,
    ),
    Kind("a list of batches", lambda: [*Repeatable(Still())]),
    Kind(
        "an iterable of your own class",
        lambda: Repeatable(Still()),
        within=SAME,
        why=AGAIN,
    ),
    Kind(
        "… and it draws random numbers",
        lambda: Repeatable(Drawing()),
        within=OTHER,
        why=AGAIN,
    ),
    Kind(
        "… with `state_dict` and `load_state_dict`, and it draws random numbers",
        lambda: StatefulRepeatable(Drawing()),
    ),
    Kind(
        "a generator that the new process creates again",
        lambda: (torch.full((2, 4), number / 10) for number in range(2 * BATCHES)),
        between=OTHER,
        within=OTHER,
        why=MOVED,
        epoch_length=BATCHES,
    ),
]

ERRORS = [
    ("data that are empty", list, "it must give at least one batch"),
    (
        "a generator that has no more batches before the run is finished",
        lambda: iter([*Repeatable(Still())]),
        "an iterator is used up after one pass",
    ),
]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.filterwarnings("ignore:resumed from")
@pytest.mark.filterwarnings("ignore:DrawingEach draws from the global random generators")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # of torchdata
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_resume_is_as_exact_as_the_table_says(kind, tmp_path):
    seed()
    whole = trainer_for(kind, checkpoint=SaveCheckpoint(tmp_path, every_steps=1, keep_last=99))
    whole.run(max_epochs=2, epoch_length=kind.epoch_length)
    assert whole.state.optimizer_step == 2 * BATCHES
    found = {"between": set(), "within": set()}
    for step in range(1, 2 * BATCHES):
        seed(5)  # what was not restored shows
        checkpoint = tmp_path / f"step_{step:08d}"
        resumed = trainer_for(kind, resume_from=ResumeCheckpoint(checkpoint))
        resumed.run(max_epochs=2)
        part = resumed.resume_report.parts["data"]
        assert part.level == "exact" or kind.why in part.reason
        same = torch.equal(weights(resumed.model), weights(whole.model))
        found["within" if step % BATCHES else "between"].add((part.level, same))
    assert found == {"between": {kind.between}, "within": {kind.within}}


@pytest.mark.parametrize(("make", "message"), [each[1:] for each in ERRORS])
def test_unusable_data_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(make(), batch_processor=batch_loss).run(max_epochs=2)


def test_the_docs_have_the_table():
    rows = [kind.row for kind in KINDS]
    rows += [f"| {name} | error | error | {message} |" for name, _, message in ERRORS]
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "kinds_of_data.md").read_text()
    assert "\n".join(rows) in page
