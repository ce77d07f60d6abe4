"""The place of a run: its counters and its position in the data, as immutable values."""

from math import ceil
from typing import NamedTuple

__all__ = ["FeedPosition", "Place", "Progress"]


class FeedPosition(NamedTuple):
    """A position in the data.

    Attributes:
        data_pass: the number of passes over the data before the current pass.
        batches: the number of batches of the current pass that have been given to the engine.
    """

    data_pass: int
    batches: int


class Progress(NamedTuple):
    """The counters that control a run. ``engine.state`` has copies, which handlers read.

    Attributes:
        iteration: the total number of batches given to the engine.
        epochs: the number of complete epochs.
        batches: the number of batches given in the current epoch; 0 before the epoch begins.
        is_full: whether all batches of the current epoch have been given to the engine. If so, the
            epoch gets no further batch, even if it has not ended yet.
    """

    iteration: int = 0
    epochs: int = 0
    batches: int = 0
    is_full: bool = False

    def with_epoch(self) -> "Progress":
        """Returns the counters after one more complete epoch."""
        return Progress(self.iteration, self.epochs + 1)

    def at_epoch_start(self) -> "Progress":
        """Returns the counters for a new start of the current epoch. ``iteration`` stays."""
        return Progress(self.iteration, self.epochs)

    def epochs_for(self, steps: int, window_size: int, epoch_length: int) -> int:
        """Returns the total number of epochs that a run needs for its remaining optimizer steps.

        The total includes the complete epochs and the current epoch.

        Args:
            steps: the number of optimizer steps still to be made.
            window_size: the number of batches in a full window, whose gradients are accumulated for
                one step.
            epoch_length: the number of batches in an epoch.
        """
        # The steps of each epoch are rounded up, because the end of an epoch closes its last window
        # early.
        in_this_epoch = ceil((epoch_length - self.batches) / window_size)
        per_epoch = ceil(epoch_length / window_size)
        return self.epochs + 1 + ceil(max(0, steps - in_this_epoch) / per_epoch)

    def steps_in(self, batches: int, window_size: int, epoch_length: int | None) -> int:
        """Returns the smallest possible number of optimizer steps in the next batches.

        The last window of an epoch may have fewer batches than the others. If ``epoch_length`` is
        None, the ends of epochs are not known, and all windows count as full.

        Args:
            batches: the number of batches still to come.
            window_size: the number of batches in a full window.
            epoch_length: the number of batches in an epoch; None if that is not known.
        """
        if epoch_length is None:
            return ceil(batches / window_size)
        in_this_epoch = max(0, min(batches, epoch_length - self.batches))
        epochs, rest = divmod(batches - in_this_epoch, epoch_length)
        per_epoch = ceil(epoch_length / window_size)
        return ceil(in_this_epoch / window_size) + epochs * per_epoch + ceil(rest / window_size)


class Place(NamedTuple):
    """The place of a run: its counters and its position in the data, as one value.

    One assignment replaces the whole value, so that Ctrl-C at any line leaves no half-made change.

    Attributes:
        progress: the counters.
        position: the position in the data.
        taken: the total number of batches given to the engine for accumulation windows. As long as
            ``Window.taken`` is smaller, the last batch has not entered its window yet. Then the run
            is not at a step boundary (a point between two optimizer steps), even if no window is
            open.
    """

    progress: Progress = Progress()
    position: FeedPosition = FeedPosition(0, 0)
    taken: int = 0
