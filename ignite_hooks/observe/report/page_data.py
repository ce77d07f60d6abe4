"""The data that a page shows, as ``collect.py`` reads it from records. JSON can hold all of it.

Numbers are finite: a value that is NaN or infinite is None, and ``Curve`` says where it was.
"""

from typing import Any
from typing import Literal
from typing import TypeAlias
from typing import TypedDict

__all__ = [
    "Checkpoint",
    "Curve",
    "Difference",
    "Extreme",
    "Failure",
    "Mark",
    "MarkKind",
    "PageData",
    "Panel",
    "Position",
    "Resume",
    "Run",
    "Section",
    "Status",
    "Summary",
    "TimePart",
    "Times",
]


class Position(TypedDict):
    """The position of a run at which a line of its record was written."""

    step: int
    epoch: float
    """Complete epochs, with a fraction: 1.5 is the middle of the second epoch.

    There is no fraction while the length of the epoch is not known.
    """
    iteration: int
    seconds: float
    """Training time, over all resumes, without the time in between."""
    time: str | None
    """Time of day, in UTC, in ISO format."""


class Extreme(TypedDict):
    """The lowest or highest value of a metric, and where it was reported."""

    value: float
    at: Position


class Summary(TypedDict):
    """A row of the table of metrics."""

    metric: str
    last: float | None
    lowest: Extreme | None
    highest: Extreme | None
    best: Literal["lowest", "highest"] | None
    """None if it is not known which of the two is better."""
    reports: int
    not_finite: int


class Curve(TypedDict):
    """The values of a metric, thinned to a number of points that a page can hold.

    The lists have one item for each point. A point stands for ``count`` reports in a row: its
    position is that of the last of them.
    """

    metric: str
    is_validation: bool
    step: list[int]
    epoch: list[float]
    seconds: list[float]
    mean: list[float | None]
    """None if all values of the point are not finite."""
    low: list[float | None] | None
    """The lowest value of each point. None if each point is one report."""
    high: list[float | None] | None
    count: list[int] | None
    """None if each point is one report."""
    lost: list[int]
    """The indices of the points with a value that is NaN or infinite."""


Section: TypeAlias = Literal["metrics", "optimization", "speed", "memory", "growth"]


class Panel(TypedDict):
    """A chart: a metric, and its counterpart from validations."""

    title: str
    section: Section
    unit: str | None
    """For example "MiB" or "1/s"; None for a number without a unit."""
    metrics: list[str]
    """The names of its curves, in each run that has them."""


MarkKind: TypeAlias = Literal["validation", "checkpoint", "skip", "resume", "stop", "error"]


class Mark(TypedDict):
    """An event on the time axis."""

    kind: MarkKind
    text: str
    at: Position
    count: int
    """The number of events in a row that this mark stands for; 1 in records of usual length."""


class TimePart(TypedDict):
    """A part of the time of a run, as measured by ``TimeLedger``."""

    name: str
    share: float


class Times(TypedDict):
    """The parts of the time of a run. The shares sum to 1, the largest first."""

    parts: list[TimePart]
    advice: str | None
    background: dict[str, float]
    """The seconds of what ran beside training, by name."""


class Checkpoint(TypedDict):
    """A checkpoint that was saved."""

    path: str
    at: Position
    metric: str | None
    value: float | None
    is_best: bool
    is_there: bool
    """Whether the folder exists: older checkpoints are removed, and a record may be a copy."""


class Resume(TypedDict):
    """A resume, and how exactly it restored the parts of the run."""

    at: Position
    checkpoint: str | None
    """The path; None if the run continued in the same process."""
    exact: bool | None
    parts: list[dict[str, Any]]
    """"name", "level" and "reason" of each part, those that are not exact first."""
    cut_lines: int
    cut_end: str | None
    """How the part that was cut had ended: the text of its error or its stop reason."""


class Failure(TypedDict):
    """The error that ended the run."""

    type: str
    message: str
    traceback: str
    at: Position


class Status(TypedDict):
    """The status of a run, as far as the record says."""

    state: Literal["empty", "running", "finished", "stopped", "failed"]
    text: str
    """One line for people, for example "stopped at step 500: SIGTERM"."""
    done: float | None
    """The share of the work that is done, from 0 to 1; None if the limits do not say."""
    seconds_left: float | None
    """The training time until the end, while the run is in progress and if it is known."""


class Run(TypedDict):
    """A run."""

    label: str
    path: str
    """The record."""
    problem: str | None
    """Why there is nothing to show, for example that the record is missing or too new."""
    notes: list[str]
    """What readers should know, for example that damaged lines were left out."""
    status: Status
    started: str | None
    at: Position | None
    """The position of the last line."""
    summaries: list[Summary]
    curves: list[Curve]
    marks: list[Mark]
    times: Times | None
    growth: list[dict[str, Any]]
    """The findings of ``GrowthWatch``, as in its ``result()["growing"]``."""
    checkpoints: list[Checkpoint]
    resumes: list[Resume]
    failure: Failure | None
    settings: dict[str, Any]
    """Settings of the trainer, limits, and handlers, by names such as "optimizer/lr"."""
    versions: dict[str, Any]
    machine: dict[str, Any]
    command: list[str]
    folder: str | None


class Difference(TypedDict):
    """A setting that is not the same in all runs."""

    name: str
    values: list[Any]
    """One value for each run; None where a run does not have the setting."""


class PageData(TypedDict):
    """All that a page shows."""

    made_at: str
    """Time of day, in UTC, in ISO format."""
    runs: list[Run]
    panels: list[Panel]
    differences: list[Difference]
