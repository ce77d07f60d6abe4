"""The options of ``SaveCheckpoint``, as the parts below it read them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import Literal
from typing import Protocol

__all__ = ["SaveOptions"]


class SaveOptions(Protocol):
    """The options of a save: where, when and how checkpoints are written.

    ``SaveCheckpoint`` is the one that there is, and describes and checks them.
    """

    @property
    def directory(self) -> str | Path:
        """The directory of the checkpoints."""

    @property
    def every_seconds(self) -> float | None:
        """The time between two saves, in seconds."""

    @property
    def at_end(self) -> bool:
        """Returns whether the end of a run is saved."""

    @property
    def on_signals(self) -> tuple[str, ...]:
        """The names of the signals that ask for a save and the end of the run."""

    @property
    def keep_last(self) -> int | Literal["all"]:
        """The number of the newest checkpoints that stay."""

    @property
    def keep_best(self) -> int:
        """The number of the best checkpoints that stay besides."""

    @property
    def metric(self) -> str | None:
        """The name in ``state.metrics`` of what tells the best."""

    @property
    def mode(self) -> Literal["max", "min"]:
        """The end of the scale that is best."""

    @property
    def safe_serialization(self) -> bool:
        """Returns whether the model is written with safetensors."""

    @property
    def background(self) -> bool:
        """Returns whether a thread writes while training continues."""

    @property
    def on_busy(self) -> Literal["error", "wait"]:
        """What to do while another run writes to the directory."""

    @property
    def wait_seconds(self) -> float | None:
        """The longest wait for another run, in seconds; None for no limit."""

    @property
    def also(self) -> Mapping[str, Any] | None:
        """The user's own objects with a state, by name."""

    @property
    def trust_pickle(self) -> bool:
        """Returns whether objects registered with the accelerator are saved."""

    @property
    def grace_seconds(self) -> float:
        """The time in which further signals are part of the first, in seconds."""
