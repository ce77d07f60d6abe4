"""The value of the metric that ranks checkpoints, unless it was measured with earlier weights."""

from typing import Any

import numpy as np
import torch
from ignite.engine import Events

from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.stale_metrics import measured_at
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.evaluation.validation import Validation
from ignite_hooks.evaluation.validation import validations_without_result

__all__ = ["MetricValue"]


class MetricValue:
    """A reader of one value in ``trainer.state.metrics`` that leaves out stale values.

    A stale value was measured with earlier weights. A ``Validation`` notes the iteration at which
    it has measured. The value of any other metric is stale if it is the same object as when the
    iteration began, and was not written to in place since. Values are only looked at, never copied
    back or replaced.

    So an equal value that was computed again is a new value. The same object stored again, for
    example a literal ``1.0`` in a loop or a small int, looks like a value that nobody has stored,
    and counts as stale: a checkpoint without a value does less harm than one with the value of
    other weights.

    Args:
        name: the name of the metric; None if checkpoints are not ranked.
        trainer: the trainer.
    """

    def __init__(self, name: str | None, trainer: TrainingEngine) -> None:
        self._name = name
        # The reference keeps the object alive, so that no new object can get the same ``id``.
        self._value_before: Any = None
        self._version_before: Any = None
        if name is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED, self._note_value)

    def current(self, trainer: TrainingEngine) -> float | None:
        """Returns the present value; None if there is no value, or a stale one.

        Raises:
            TypeError: the value is not a number.
            ValueError: all validations have been run, and none of them has given the metric.
        """
        name = self._name
        if name is None:
            return None
        found = trainer.state.metrics.get(name)
        measured = measured_at(trainer).get(name)
        is_stale = (
            self._is_stale(found) if measured is None else measured != trainer.state.iteration
        )
        if found is None and measured is None:
            _report_missing(name, trainer)
        if found is None or is_stale:
            return None
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"`metric` must name a number, state.metrics[{name!r}] is {found!r}: name another"
            ) from error

    def _note_value(self, trainer: TrainingEngine) -> None:
        self._value_before = trainer.state.metrics.get(self._name)
        self._version_before = _version_of(self._value_before)

    def _is_stale(self, value: Any) -> bool:
        is_same_object = value is self._value_before
        return is_same_object and bool(self._version_before == _version_of(value))


def _report_missing(name: str, trainer: TrainingEngine) -> None:
    """Raises, or warns once, that the metric is missing, unless a validation is still to come."""
    to_come = validations_without_result(trainer)
    metrics = trainer.state.metrics
    if to_come is None:
        warn_once(
            f"`metric` must be one of state.metrics to tell the best checkpoint, got {name!r}: "
            "attach the metric, or save when it has been computed"
        )
    # Within the first epoch a metric that is computed at EPOCH_COMPLETED may still appear.
    elif not to_come and (trainer.place.progress.epochs or _has_prefix(name, trainer)):
        raise ValueError(
            "`metric` must be one of state.metrics when the first checkpoint is saved, got "
            f"{name!r}: {did_you_mean(name, metrics)} (If a handler of your own gives it later, "
            "set it to NaN at STARTED.)"
        )


def _has_prefix(name: str, trainer: TrainingEngine) -> bool:
    """Returns whether the name has the prefix of a validation, which alone gives such metrics."""
    return any(
        each.prefix and name.startswith(each.prefix)
        for each in attached_handlers(trainer, Validation)
    )


def _version_of(value: Any) -> Any:
    """Returns something that changes whenever a number is written to in place.

    Reading the version of a tensor does not synchronize with the device.
    """
    if isinstance(value, torch.Tensor) and not value.is_inference():
        return value._version  # torch counts the writes in place, for autograd
    # Nothing counts the writes to inference tensors and arrays, so a copy is compared. A copy of
    # more than one number would cost time.
    if isinstance(value, torch.Tensor):
        return value.clone() if value.numel() == 1 else None
    return value.copy() if isinstance(value, np.ndarray) and value.size == 1 else None
