"""The value of the metric that says which checkpoint is best, if it is one of these weights."""

from typing import Any

import numpy as np
import torch
from ignite.engine import Events

from ignite_hooks.core.handler import attached
from ignite_hooks.core.measured import measured_at
from ignite_hooks.core.rules import close_to
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.evaluation.validation import Validation
from ignite_hooks.evaluation.validation import validations_to_come

__all__ = ["MetricValue"]


class MetricValue:
    """Tells the value in ``trainer.state.metrics``, and none that is left from earlier weights.

    A ``Validation`` notes at which iteration it has measured. Of other metrics a value is stale if
    it is the very object that was there when the iteration began, and nobody has written to it in
    place since. Values of users are looked at, never replaced. So an equal value that was computed
    again is a new one, and the same object stored again, ``1.0`` of a line of code or a small int,
    cannot be told from one that nobody has stored: it is taken for stale, because a checkpoint
    without a value does less harm than one with the value of other weights.

    Args:
        name: of the metric; None if no metric is asked for.
        trainer: the trainer.
    """

    def __init__(self, name: str | None, trainer: TrainingEngine) -> None:
        self._name = name
        self._seen: Any = None  # held, so that no other object can get its identity
        self._content: Any = None
        if name is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED, self._note)

    def of(self, trainer: TrainingEngine) -> float | None:
        """Returns the value now; None if there is none, or a stale one.

        Raises:
            TypeError: it is no number.
            ValueError: all validations have been run, and none has given it.
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
            _miss(name, trainer)
        if found is None or is_stale:
            return None
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"`metric` must name a number, state.metrics[{name!r}] is {found!r}: name another"
            ) from error

    def _note(self, trainer: TrainingEngine) -> None:
        self._seen = trainer.state.metrics.get(self._name)
        self._content = _content_of(self._seen)

    def _is_stale(self, found: Any) -> bool:
        return found is self._seen and bool(self._content == _content_of(found))


def _miss(name: str, trainer: TrainingEngine) -> None:
    """Raises, or warns once, that the metric is not there, unless a validation is still to come."""
    to_come = validations_to_come(trainer)
    metrics = trainer.state.metrics
    if to_come is None:
        warn_once(
            f"`metric` must be one of state.metrics to tell the best checkpoint, got {name!r}: "
            "attach the metric, or save when it has been computed"
        )
    elif not to_come and (trainer.place.progress.epochs or _is_of_validation(name, trainer)):
        raise ValueError(
            "`metric` must be one of state.metrics when the first checkpoint is saved, got "
            f"{name!r}: {close_to(name, metrics)} (If a handler of your own gives it later, set it "
            "to NaN at STARTED.)"
        )


def _is_of_validation(name: str, trainer: TrainingEngine) -> bool:
    """Returns whether nothing but a validation would give a metric of that name."""
    return any(
        each.prefix and name.startswith(each.prefix) for each in attached(trainer, Validation)
    )


def _content_of(value: Any) -> Any:
    """Returns what changes when a number is written to in place, without asking the device."""
    if isinstance(value, torch.Tensor) and not value.is_inference():
        return value._version
    # Nothing counts the writes to these; a copy of more than a number would cost time.
    if isinstance(value, torch.Tensor):
        return value.clone() if value.numel() == 1 else None
    return value.copy() if isinstance(value, np.ndarray) and value.size == 1 else None
