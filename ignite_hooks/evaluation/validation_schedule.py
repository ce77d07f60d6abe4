"""When to validate, and what the results are called."""

from pydantic.dataclasses import dataclass

from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Prefix
from ignite_hooks.core.fields import handler_config

__all__ = ["ValidationSchedule"]


@dataclass(frozen=True, eq=False, kw_only=True, config=handler_config)
class ValidationSchedule:
    """What of a ``Validation`` is plain data; the evaluator and its data are not.

    Args:
        every_steps: validate each time so many steps were committed (on an engine without an
            OptimizerStep: so many iterations).
        every_epochs: validate each time so many epochs were completed.
        at_start: validate before the first epoch; not when training is gone on with.
        prefix: what the names in ``state.metrics`` begin with.

    Raises:
        ValueError: an argument is out of its range.
    """

    every_steps: Every | None = None
    every_epochs: Every | None = None
    at_start: Flag = False
    prefix: Prefix = "val_"
