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

    A ``Validation`` notes at which iteration it has measured. Of other metrics a value is an old
    one if nobody has written it since the last iteration began: it is replaced there by an equal
    object, which a writer does not have. Of a tensor that is written to in place the version tells.
    An int can not be told from one that was written again, and is taken for new.

    Args:
        name: of the metric; None if no metric is asked for.
        trainer: the trainer.
    """

    def __init__(self, name: str | None, trainer: TrainingEngine) -> None:
        self._name = name
        self._old: Any = None
        self._version: int | None = None
        if name is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED, self._note)

    def of(self, trainer: TrainingEngine) -> float | None:
        """The value now; None if there is none, or an old one.

        Raises:
            TypeError: it is no number.
            ValueError: all validations have been run, and none has given it.
        """
        name = self._name
        if name is None:
            return None
        found = trainer.state.metrics.get(name)
        measured = measured_at(trainer).get(name)
        is_old = self._is_old(found) if measured is None else measured != trainer.state.iteration
        if found is None and measured is None:
            _miss(name, trainer)
        if found is None or is_old:
            return None
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"`metric` must name a number, state.metrics[{name!r}] is {found!r}: name another"
            ) from error

    def _note(self, trainer: TrainingEngine) -> None:
        metrics, name = trainer.state.metrics, self._name
        found = metrics.get(name)
        if found is not None and found is not self._old:
            self._old = metrics[name] = _replaced(found)
        self._version = _version(found)

    def _is_old(self, found: Any) -> bool:
        if isinstance(found, torch.Tensor):
            return found is self._old and self._version == _version(found) is not None
        return found is self._old and not isinstance(found, int)


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


def _replaced(value: Any) -> Any:
    """An equal object that nobody else has, where there can be one."""
    if type(value) is float:
        return value * 1.0
    if isinstance(value, torch.Tensor):
        return value.detach()  # of the same memory
    return value.copy() if isinstance(value, np.generic) else value


def _version(value: Any) -> int | None:
    """How often a tensor was written to in place; None where that is not counted."""
    if isinstance(value, torch.Tensor) and not value.is_inference():
        return value._version
    return None
