"""The place of a run: its counters and its position in the data, as immutable values."""

from math import ceil
from typing import NamedTuple

__all__ = ["FeedPosition", "Place", "Progress"]


class FeedPosition(NamedTuple):
    """A position in the data.

    Args:
        data_pass: the number of passes over the data before this one.
        batches: the number of batches of this pass that have been given.
    """

    data_pass: int
    batches: int


class Progress(NamedTuple):
    """The counters that steer a run. The engine's state shows copies, for handlers to read.

    Args:
        iteration: batches given to the engine in all.
        epochs: complete epochs.
        batches: batches of the epoch that is not complete; 0 when none has begun.
        is_full: whether that epoch has all its batches.
    """

    iteration: int = 0
    epochs: int = 0
    batches: int = 0
    is_full: bool = False

    def with_epoch(self) -> "Progress":
        """Returns the counters after one more complete epoch."""
        return Progress(self.iteration, self.epochs + 1)

    def at_epoch_start(self) -> "Progress":
        """Returns the counters as if this epoch had no batch yet."""
        return Progress(self.iteration, self.epochs)

    def epochs_for(self, steps: int, window: int, epoch_length: int) -> int:
        """Returns the number of epochs in all that ``steps`` more steps take.

        Args:
            steps: optimizer steps still to be made.
            window: batches in a full window.
            epoch_length: batches in an epoch.
        """
        in_this_epoch = ceil((epoch_length - self.batches) / window)
        in_each = ceil(epoch_length / window)
        return self.epochs + 1 + ceil(max(0, steps - in_this_epoch) / in_each)

    def steps_in(self, batches: int, window: int, epoch_length: int | None) -> int:
        """Returns the number of optimizer steps that ``batches`` more batches make, at least.

        Args:
            batches: batches still to come.
            window: batches in a full window; one that an epoch ends has fewer.
            epoch_length: batches in an epoch; None if that is not known.
        """
        if epoch_length is None:
            return ceil(batches / window)
        in_this_epoch = max(0, min(batches, epoch_length - self.batches))
        epochs, rest = divmod(batches - in_this_epoch, epoch_length)
        in_each = ceil(epoch_length / window)
        return ceil(in_this_epoch / window) + epochs * in_each + ceil(rest / window)


class Place(NamedTuple):
    """The place of a run: one value, so that Ctrl-C at any line never leaves half of a change.

    Args:
        progress: the counters.
        position: the position in the data.
        taken: batches that all windows must have taken for this place to be a step boundary.
    """

    progress: Progress = Progress()
    position: FeedPosition = FeedPosition(0, 0)
    taken: int = 0
