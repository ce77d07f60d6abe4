"""Measures the steps of a run and the pauses between them, on the host's clock."""

from collections import deque
from collections.abc import Callable
from math import nan
from numbers import Real
from typing import Any

import torch
from accelerate.utils import find_batch_size
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.data.batch import describe_value
from ignite_hooks.events import TrainEvents

__all__ = ["StepTimer"]

# The first steps of a run are not measured: caches are cold, loader workers start, and torch
# compiles and tries out kernels.
_WARM_UP_STEPS = 3


class Mean:
    """The mean of the values that were added."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """Adds a value."""
        self._total += value
        self._count += 1

    @property
    def value(self) -> float:
        """The mean; 0.0 if no value was added."""
        return self._total / self._count if self._count else 0.0


class StepTimer:
    """Measures the last steps, and the pauses between steps.

    A step begins with the request of its first batch, and ends when STEP_COMPLETED is fired. What
    comes between two steps is a pause: handlers, a validation, a save, the end of an epoch. The
    batches of a step that the loss scaler skips count for the next step.

    Args:
        clock: returns seconds.
        window: the number of the last steps that are kept.
        items: returns the number of items in a batch; None if items are not counted.

    Attributes:
        last: (seconds, waiting, samples, items) of each of the last measured steps: the time from
            the request of its first batch until the step is complete, the seconds of this time in
            which the process waited for batches, the number of samples, and the number of items.
            The number of samples is NaN if the first entry of a batch is no tensor.
        has_news: whether a step was measured since ``has_news`` was last set to False.
        pause: the mean pause, without the time of validations, and without pauses with a save.
        validation: the mean duration of a validation.
        save: the mean pause with the save of a checkpoint, without the time of a validation.
    """

    def __init__(
        self, clock: Callable[[], float], window: int, items: Callable[[Any], Any] | None
    ) -> None:
        self._clock, self._items = clock, items
        # Plain tuples, because a NamedTuple takes 0.5 µs longer to make.
        self.last: deque[tuple[float, float, float, float]] = deque(maxlen=window)
        self.has_news = False
        self.pause, self.validation, self.save = Mean(), Mean(), Mean()
        self._restart()

    def _restart(self) -> None:
        """Forgets the present step and the present pause, at the start of a run."""
        self._steps = 0  # the number of steps in this run
        self._begin: float | None = None  # when the present step began
        self._end: float | None = None  # when the last step ended; None within a step
        self._requested = 0.0  # when the last batch was requested
        self._waiting = self._samples = self._items_so_far = 0.0  # of the present step
        self._validation_began = self._validating = 0.0  # within the present step or pause
        self._has_saved = False  # whether a checkpoint was saved in the present pause

    def attach_to(self, attachment: Attachment) -> None:
        """Attaches the handlers that read the clock. ``end_step`` is to be called after a step."""
        attachment.on(Events.STARTED, self._start)
        attachment.on(Events.INTERRUPT, self._start)  # the user may wait before the next ``run``
        # A window that is open at the end of an epoch makes no step.
        attachment.on(Events.EPOCH_COMPLETED, self._drop_step, turn=Turn.METRICS)
        attachment.add(Events.GET_BATCH_STARTED, self._request_batch)
        attachment.add(Events.GET_BATCH_COMPLETED, self._take_batch)
        attachment.on(TrainEvents.VALIDATION_STARTED, self._begin_validation)
        attachment.on(TrainEvents.VALIDATION_COMPLETED, self._end_validation)
        attachment.on(TrainEvents.CHECKPOINT_SAVED, self._note_save)

    def _start(self, engine: Engine) -> None:
        """Forgets the measured steps: the next run may have another speed."""
        self.last.clear()
        self.has_news = False
        self._restart()

    def _drop_step(self, engine: Engine) -> None:
        """Forgets the step that has begun, and starts a pause."""
        if self._begin is not None:
            self._begin, self._end, self._validating = None, self._clock(), 0.0
            self._waiting = self._samples = self._items_so_far = 0.0

    def _request_batch(self, engine: Engine) -> None:
        now = self._requested = self._clock()
        if self._begin is None:
            self._begin = now
            # The pause that ends now counts if the steps before it do.
            if self._end is not None and self._steps > _WARM_UP_STEPS:
                pause = now - self._end - self._validating
                (self.save if self._has_saved else self.pause).add(pause)
            self._end, self._validating, self._has_saved = None, 0.0, False

    def _take_batch(self, engine: Engine) -> None:
        state: Any = engine.state
        self._waiting += self._clock() - self._requested
        self._samples += _count_samples(state.batch)
        if self._items is not None:
            self._items_so_far += _as_number(self._items(state.batch))

    def end_step(self, engine: Engine) -> None:
        """Measures the step that has ended."""
        now = self._clock()
        self._steps += 1
        # Without data no batch is requested, and a step begins when the last one has ended.
        begin = self._end if self._begin is None else self._begin
        if begin is not None and self._steps > _WARM_UP_STEPS:
            seconds = now - begin - self._validating
            self.last.append((seconds, self._waiting, self._samples, self._items_so_far))
            self.has_news = True
        self._begin, self._end, self._validating = None, now, 0.0
        self._waiting = self._samples = self._items_so_far = 0.0

    def _begin_validation(self, engine: Engine) -> None:
        self._validation_began = self._clock()

    def _end_validation(self, engine: Engine) -> None:
        seconds = self._clock() - self._validation_began
        self._validating += seconds
        self.validation.add(seconds)

    def _note_save(self, engine: Engine) -> None:
        self._has_saved = True


def _count_samples(batch: Any) -> float:
    """Returns the first size of the first entry of a batch; NaN if this is no such tensor."""
    # Accelerate's function takes 1 µs for the usual batch, a tuple or list of tensors.
    first = batch[0] if type(batch) in (tuple, list) and batch else batch
    if type(first) is torch.Tensor and first.ndim:
        return first.shape[0]
    try:
        return float(find_batch_size(batch))
    except (TypeError, ValueError, IndexError):  # no tensor, an empty batch, a tensor without sizes
        return nan


def _as_number(count: Any) -> float:
    """Returns the result of ``items`` as a number.

    Raises:
        TypeError: the result is not a number. A tensor on a device is refused, because reading it
            would wait for the device in each iteration.
    """
    is_on_host = isinstance(count, torch.Tensor) and count.device.type == "cpu"
    if is_on_host and count.numel() == 1:
        return float(count)
    if isinstance(count, Real):
        return float(count)
    is_on_device = isinstance(count, torch.Tensor) and not is_on_host
    shown = f"a tensor on {count.device}" if is_on_device else ""
    raise TypeError(
        f"`items` must return a number, got {shown or describe_value(count)}: count on the host, "
        "from the shapes of the batch for example"
    )
