"""Reads the metric by which checkpoints are ranked, and ignores a stale value."""

from typing import Any

from ignite.engine import Events

from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.stale_metrics import measured_at
from ignite_hooks.core.stale_metrics import version_of
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.evaluation.validation import Validation
from ignite_hooks.evaluation.validation import validations_without_result

__all__ = ["MetricValue"]


class MetricValue:
    """Reads the value of one metric in ``trainer.state.metrics``, unless the value is stale.

    A value is stale if it was measured with earlier weights:

    - A ``Validation`` notes the iteration in which it has measured a metric. The value is stale in
      every later iteration.
    - A value that another handler has stored is stale if it is still the same object as at the
      beginning of the iteration, and was not changed in place since. A new object with an equal
      value is not stale.

    A handler may store the same object in each iteration, for example a literal ``1.0`` or a small
    int. Such a value counts as stale, although it is new: ``MetricValue`` cannot see that a handler
    has stored the object again. A missing value does less harm than a value of other weights.

    Args:
        name: the name of the metric; None if checkpoints are not ranked.
        trainer: the trainer.
    """

    def __init__(self, name: str | None, trainer: TrainingEngine) -> None:
        self._name = name
        # The value and its version at the beginning of the iteration. The value itself is kept, and
        # not its `id`, because a new object may get the `id` of an object that was freed.
        self._value_before: Any = None
        self._version_before: Any = None
        if name is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED, self._note_value)

    def current(self, trainer: TrainingEngine) -> float | None:
        """Returns the value of the metric; None if the value is missing or stale.

        Raises:
            TypeError: the value is not a number.
            ValueError: there is no value, all validations have run, and no handler can be expected
                to compute the metric later (``_report_missing``).
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
                f"`metric` must name a number, but state.metrics[{name!r}] is {found!r}: name "
                "another metric"
            ) from error

    def _note_value(self, trainer: TrainingEngine) -> None:
        self._value_before = trainer.state.metrics.get(self._name)
        self._version_before = version_of(self._value_before)

    def _is_stale(self, value: Any) -> bool:
        is_same_object = value is self._value_before
        return is_same_object and bool(self._version_before == version_of(value))


def _report_missing(name: str, trainer: TrainingEngine) -> None:
    """Reports that ``state.metrics`` has no value of the metric ``name``.

    Warns once if the trainer has no ``Validation``. Does nothing as long as some validation has not
    run yet, because it may still compute the metric.

    Raises:
        ValueError: all validations have run, and no handler can be expected to compute the metric.
    """
    to_come = validations_without_result(trainer)
    metrics = trainer.state.metrics
    if to_come is None:
        warn_once(
            f"`metric` must be one of state.metrics to rank checkpoints, got {name!r}: attach the "
            "metric, or save only after it has been computed"
        )
    # In the first epoch a missing metric is not an error, because a handler may still compute it at
    # EPOCH_COMPLETED. But a metric whose name has the prefix of a validation is an error even in
    # the first epoch: only a validation computes such a metric, and all validations have run.
    elif not to_come and (trainer.place.progress.epochs or _has_prefix(name, trainer)):
        raise ValueError(
            "`metric` must be one of state.metrics when the first checkpoint is saved, got "
            f"{name!r}: {did_you_mean(name, metrics)} (If a handler of your own computes the "
            "metric later, set state.metrics[…] to NaN at STARTED.)"
        )


def _has_prefix(name: str, trainer: TrainingEngine) -> bool:
    """Returns whether the name of a metric begins with the prefix of a validation."""
    return any(
        each.prefix and name.startswith(each.prefix)
        for each in attached_handlers(trainer, Validation)
    )
