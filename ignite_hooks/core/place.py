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
    """The counters that control a run. The engine's state shows copies, for handlers to read.

    Args:
        iteration: the number of batches given to the engine in all.
        epochs: the number of complete epochs.
        batches: the number of batches given in the current epoch; 0 before it begins.
        is_full: whether the current epoch has had all its batches, and only its end is missing.
    """

    iteration: int = 0
    epochs: int = 0
    batches: int = 0
    is_full: bool = False

    def with_epoch(self) -> "Progress":
        """Returns the counters after one more complete epoch."""
        return Progress(self.iteration, self.epochs + 1)

    def at_epoch_start(self) -> "Progress":
        """Returns the counters as if the current epoch had no batch yet."""
        return Progress(self.iteration, self.epochs)

    def epochs_for(self, steps: int, window: int, epoch_length: int) -> int:
        """Returns the number of epochs, those done included, at the end of ``steps`` more steps.

        Args:
            steps: the optimizer steps still to be made.
            window: the number of batches in a full window.
            epoch_length: the number of batches in an epoch.
        """
        # Rounded up within each epoch: the end of an epoch closes its last window early.
        in_this_epoch = ceil((epoch_length - self.batches) / window)
        per_epoch = ceil(epoch_length / window)
        return self.epochs + 1 + ceil(max(0, steps - in_this_epoch) / per_epoch)

    def steps_in(self, batches: int, window: int, epoch_length: int | None) -> int:
        """Returns the number of optimizer steps that ``batches`` more batches make at least.

        Args:
            batches: the number of batches still to come.
            window: the number of batches in a full window; the last window of an epoch may have
                fewer.
            epoch_length: the number of batches in an epoch; None if that is not known.
        """
        if epoch_length is None:
            return ceil(batches / window)
        in_this_epoch = max(0, min(batches, epoch_length - self.batches))
        epochs, rest = divmod(batches - in_this_epoch, epoch_length)
        per_epoch = ceil(epoch_length / window)
        return ceil(in_this_epoch / window) + epochs * per_epoch + ceil(rest / window)


class Place(NamedTuple):
    """The place of a run: its counters and its position in the data, as one value.

    One assignment replaces all of it, so that Ctrl-C at any line never leaves half of a change.

    Args:
        progress: the counters.
        position: the position in the data.
        taken: the number of batches that windows must have taken in all for this place to be a step
            boundary.
    """

    progress: Progress = Progress()
    position: FeedPosition = FeedPosition(0, 0)
    taken: int = 0
