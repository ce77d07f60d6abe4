"""The options of ``SaveCheckpoint`` as a protocol, for the modules that ``save.py`` imports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import Literal
from typing import Protocol

__all__ = ["SaveOptions"]


class SaveOptions(Protocol):
    """The options of a save: where, when and how checkpoints are written.

    ``SaveCheckpoint`` is the only implementation; it documents and checks the options. The modules
    that ``save.py`` imports use this protocol, because importing ``save.py`` would be circular.
    """

    @property
    def directory(self) -> str | Path:
        """The directory of the checkpoints."""

    @property
    def every_seconds(self) -> float | None:
        """The time between two saves, in seconds; None if time does not cause saves."""

    @property
    def at_end(self) -> bool:
        """Returns whether a checkpoint is saved at the end of a run."""

    @property
    def on_signals(self) -> tuple[str, ...]:
        """The names of the signals after which the run saves a checkpoint and ends."""

    @property
    def keep_last(self) -> int | Literal["all"]:
        """The number of the newest checkpoints that are kept, or "all"."""

    @property
    def keep_best(self) -> int:
        """The number of the best checkpoints that are kept besides the newest."""

    @property
    def metric(self) -> str | None:
        """The name in ``state.metrics`` of the value that ranks checkpoints."""

    @property
    def mode(self) -> Literal["max", "min"]:
        """The direction of ``metric``: whether its largest or its smallest value is best."""

    @property
    def safe_serialization(self) -> bool:
        """Returns whether the model is written with safetensors."""

    @property
    def background(self) -> bool:
        """Returns whether a thread writes the files while training continues."""

    @property
    def on_busy(self) -> Literal["error", "wait"]:
        """The reaction if another run writes to the directory: an error, or waiting for its end."""

    @property
    def wait_seconds(self) -> float | None:
        """The longest time to wait for another run, in seconds; None for no limit."""

    @property
    def also(self) -> Mapping[str, Any] | None:
        """The user's own objects with a state, by name."""

    @property
    def trust_pickle(self) -> bool:
        """Returns whether objects registered with the accelerator are saved."""

    @property
    def grace_seconds(self) -> float:
        """The time after a signal in which further signals count as the same one, in seconds."""
