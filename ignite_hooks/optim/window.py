"""The window of an optimizer step: its batches, and when it closes."""

from accelerate.state import GradientState
from ignite.engine import Engine

from ignite_hooks.data.feed import DataFeed

__all__ = ["RemainingData", "Window"]


class Window:
    """The batches of one optimizer step: a full number, or fewer where the data ends.

    Args:
        size: the number of batches that the window will have, as far as known when it opens.
        count: the number of batches that it has.
        taken: the number of batches that all windows have had.
        is_closing: whether the present batch is the last one of the window.
    """

    def __init__(self) -> None:
        self.size = 1
        self.count = 0
        self.taken = 0
        self.is_closing = False

    def take(self, full_size: int, left: int | None) -> None:
        """Adds a batch; opens a new window if none is open.

        Args:
            full_size: the number of batches of a window that the data does not end.
            left: the number of batches that the data has left, this one included; None if not
                known.
        """
        if self.count == 0:
            self.size = full_size if left is None else min(full_size, left)
        self.count += 1
        self.taken += 1
        self.is_closing = self.count >= self.size or left == 1

    def close(self) -> None:
        """Empties the window; the next ``take`` opens a new one."""
        self.count = 0
        self.is_closing = False


class RemainingData:
    """Counts the batches that a plain Ignite engine has left, from everything that is known.

    The batches of an epoch are counted here: after ``terminate_epoch()`` the remainder of
    ``iteration`` divided by ``epoch_length`` is no longer the place in the epoch.

    Attributes:
        epoch_began_after: the number of iterations before the present epoch.
    """

    def __init__(self) -> None:
        self.epoch_began_after = 0
        self._may_be_resumed = True
        self._was_terminated = False

    def begin_run(self, engine: Engine) -> None:
        """Notes, at STARTED, that a state may have been loaded."""
        self._may_be_resumed = not self._was_terminated
        self._was_terminated = False

    def terminate_run(self, engine: Engine) -> None:
        """Notes, at TERMINATE, that the next run starts with a whole epoch, as in Ignite."""
        self._was_terminated = True

    def begin_epoch(self, engine: Engine) -> None:
        """Notes, at EPOCH_STARTED, where the epoch began; the first may be resumed half-way."""
        done = engine.state.iteration
        within = done % (engine.state.epoch_length or 1) if self._may_be_resumed else 0
        self.epoch_began_after = done - within
        self._may_be_resumed = False

    def has_whole_epoch(self, engine: Engine) -> bool:
        """Returns whether the epoch that ends now had all its batches, as Ignite counts them."""
        return engine.state.iteration - self.epoch_began_after == engine.state.epoch_length

    def batches_left(self, engine: Engine) -> int | None:
        """Returns the batches from the present one to the end of data, epoch or run, or None."""
        state = engine.state
        max_iters = getattr(state, "max_iters", None)  # Ignite 0.5.4 has none
        ends = [
            state.dataloader.batches_left if isinstance(state.dataloader, DataFeed) else None,
            1 if _is_last_batch_of_accelerate(state.dataloader) else None,
            state.epoch_length
            and self.epoch_began_after + state.epoch_length - state.iteration + 1,
            max_iters and max_iters - state.iteration + 1,
        ]
        return min((end for end in ends if end is not None), default=None)


def _is_last_batch_of_accelerate(loader: object) -> bool:
    """Returns whether Accelerate has marked the present batch of ``loader`` as its last."""
    state = GradientState()
    return state.active_dataloader is loader and state.end_of_dataloader
