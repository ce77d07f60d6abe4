"""The value of the metric that says which checkpoint is best, if it is one of these weights."""

from typing import Any
from weakref import ref

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.measured import measured_at
from ignite_hooks.warn_once import warn_once

__all__ = ["MetricValue"]


class MetricValue:
    """Tells the value in ``trainer.state.metrics``, and none that is left from earlier weights.

    A ``Validation`` notes at which iteration it has measured. Of other metrics a value is an old
    one if it is still the same object that was there before the last iteration.

    Args:
        name: of the metric; None if no metric is asked for.
        trainer: the trainer.
    """

    def __init__(self, name: str | None, trainer: Engine) -> None:
        self._name = name
        self._old: Any = None
        if name is not None:
            engine = ref(trainer)

            def note() -> None:
                self._old = engine().state.metrics.get(name)  # type: ignore[union-attr]

            trainer.add_event_handler(Events.ITERATION_STARTED, note)

    def of(self, trainer: Any) -> float | None:
        """The value now; None if there is none, or an old one.

        Raises:
            TypeError: it is no number.
        """
        name = self._name
        if name is None:
            return None
        found = trainer.state.metrics.get(name)
        measured = measured_at(trainer).get(name)
        is_old = found is self._old if measured is None else measured != trainer.state.iteration
        if found is None:
            warn_once(
                f"`metric` must be one of state.metrics to tell the best checkpoint, got "
                f"{name!r}: attach the metric, or save when it has been computed"
            )
        if found is None or is_old:
            return None
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"`metric` must name a number, state.metrics[{name!r}] is {found!r}: name another"
            ) from error
