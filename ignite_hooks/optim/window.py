"""Counts the batches of a window, and decides when the window closes.

A *window* is the batches whose gradients are accumulated for one optimizer step.
"""

from accelerate.state import GradientState
from ignite.engine import Engine

from ignite_hooks.data.feed import DataFeed

__all__ = ["RemainingData", "Window"]


class Window:
    """Counts the batches of the present window. The last window of the data may be shorter.

    Attributes:
        size: the number of batches that the window will have. If the end of the data is not known
            when the window opens, this is the size of a full window.
        count: the number of batches that the present window has had so far; 0 if none is open.
        taken: the number of batches of all windows so far, the present one included.
        is_closing: whether the present batch is the last batch of the window.
    """

    def __init__(self) -> None:
        self.size = 1
        self.count = 0
        self.taken = 0
        self.is_closing = False

    def take(self, full_size: int, batches_left: int | None) -> None:
        """Adds a batch; opens a new window if none is open.

        Args:
            full_size: the number of batches of a full window.
            batches_left: the number of batches from this batch to the end of the data, this batch
                included; None if the end is not known.
        """
        if self.count == 0:
            self.size = full_size if batches_left is None else min(full_size, batches_left)
        self.count += 1
        self.taken += 1
        self.is_closing = self.count >= self.size or batches_left == 1

    def close(self) -> None:
        """Empties the window; the next ``take`` opens a new one."""
        self.count = 0
        self.is_closing = False


class RemainingData:
    """Counts the batches until the data, the epoch or the run of a plain Ignite engine ends.

    A plain engine is one that is not a trainer. The batches of an epoch are counted from
    EPOCH_STARTED. The count may differ from ``iteration % epoch_length``, because
    ``terminate_epoch()`` may have ended an earlier epoch before its full length.

    Attributes:
        epoch_began_after: the number of iterations before the present epoch.
    """

    def __init__(self) -> None:
        self.epoch_began_after = 0
        self._may_be_resumed = True
        self._was_terminated = False

    def note_run_start(self, engine: Engine) -> None:
        """Notes, at STARTED, whether the run may start in the middle of an epoch.

        A run that resumes from a loaded state may do so. After TERMINATE, the next run starts at
        the beginning of an epoch.
        """
        self._may_be_resumed = not self._was_terminated
        self._was_terminated = False

    def note_run_termination(self, engine: Engine) -> None:
        """Notes that TERMINATE was fired, for the next ``note_run_start``."""
        self._was_terminated = True

    def note_epoch_start(self, engine: Engine) -> None:
        """Notes, at EPOCH_STARTED, the iteration at which the epoch began.

        If the run starts in the middle of the epoch, the epoch began at an earlier iteration.
        """
        done = engine.state.iteration
        within = done % (engine.state.epoch_length or 1) if self._may_be_resumed else 0
        self.epoch_began_after = done - within
        self._may_be_resumed = False

    def has_whole_epoch(self, engine: Engine) -> bool:
        """Returns whether the epoch that ends now had all its ``epoch_length`` iterations."""
        return engine.state.iteration - self.epoch_began_after == engine.state.epoch_length

    def batches_left(self, engine: Engine) -> int | None:
        """Returns the number of batches until the data, the epoch or the run ends.

        The present batch is included. If several of these ends are known, the nearest end counts.
        The result is None if no end is known.
        """
        state = engine.state
        max_iters = getattr(state, "max_iters", None)  # the state of Ignite 0.5.4 has no max_iters
        ends = [
            state.dataloader.batches_left if isinstance(state.dataloader, DataFeed) else None,
            1 if _is_last_batch_of_accelerate(state.dataloader) else None,
            state.epoch_length
            and self.epoch_began_after + state.epoch_length - state.iteration + 1,
            max_iters and max_iters - state.iteration + 1,
        ]
        return min((end for end in ends if end is not None), default=None)


def _is_last_batch_of_accelerate(loader: object) -> bool:
    """Returns whether Accelerate says that the present batch of ``loader`` is its last batch."""
    state = GradientState()
    return state.active_dataloader is loader and state.end_of_dataloader
