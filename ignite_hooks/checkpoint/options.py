"""The options of ``SaveCheckpoint`` as a protocol, which avoids a circular import."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import Literal
from typing import Protocol

__all__ = ["SaveOptions"]


class SaveOptions(Protocol):
    """The options of ``SaveCheckpoint``: where, when and how checkpoints are written.

    ``SaveCheckpoint`` is the only implementation. It documents the options in full, and checks
    their values. The modules that ``save.py`` imports use this protocol.
    """

    @property
    def directory(self) -> str | Path:
        """The directory of the checkpoints."""

    @property
    def every_seconds(self) -> float | None:
        """The time between two saves, in seconds; None for no saves by time."""

    @property
    def at_end(self) -> bool:
        """Returns whether a checkpoint is saved at the end of a run."""

    @property
    def on_signals(self) -> tuple[str, ...]:
        """The names of the signals after which the run saves a checkpoint and ends."""

    @property
    def keep_last(self) -> int | Literal["all"]:
        """The number of newest checkpoints to keep, or "all"."""

    @property
    def keep_best(self) -> int:
        """The number of best checkpoints to keep besides the newest ones."""

    @property
    def metric(self) -> str | None:
        """The name of the metric in ``state.metrics`` that decides which checkpoints are best."""

    @property
    def mode(self) -> Literal["max", "min"]:
        """The direction of ``metric``: "max" if larger values are better, "min" if smaller ones."""

    @property
    def safe_serialization(self) -> bool:
        """Returns whether the model is written with safetensors."""

    @property
    def background(self) -> bool:
        """Returns whether a thread writes the files in the background while training continues."""

    @property
    def on_busy(self) -> Literal["error", "wait"]:
        """The reaction if another run writes to the directory: raise, or wait until it ends."""

    @property
    def wait_seconds(self) -> float | None:
        """The longest time to wait for another run, in seconds; None for no limit."""

    @property
    def also(self) -> Mapping[str, Any] | None:
        """The user's own objects with a state, by name."""

    @property
    def trust_pickle(self) -> bool:
        """Returns whether objects that were registered with the accelerator are saved.

        A resume has to unpickle these objects, which can run code.
        """

    @property
    def grace_seconds(self) -> float:
        """The grace period after the first signal, in seconds.

        Further signals in this period are part of the same request to stop.
        """
