"""What a training did, iteration by iteration, in sums that show any difference."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from xxhash import xxh3_128

from ignite_hooks.checkpoint.members import handlers_with_state
from ignite_hooks.rng import RandomState

__all__ = ["Trace"]

Sums = dict[str, str]


class Trace:
    """Notes, for each iteration of a trainer's run, a sum of each thing that must not differ.

    Args:
        trainer: notes are made after all handlers that are attached by now.
    """

    def __init__(self, trainer: Any) -> None:
        self.iterations: dict[int, Sums] = {}
        self._trainer = trainer
        trainer.add_event_handler(Events.ITERATION_STARTED, self._before)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after)

    def first_difference(self, other: "Trace") -> str | None:
        """The first thing that is not as in ``other``, where both have been; None if all is."""
        for iteration in sorted(self.iterations.keys() & other.iterations.keys()):
            mine, theirs = self.iterations[iteration], other.iterations[iteration]
            for what, value in theirs.items():
                if mine.get(what) != value:
                    return f"{what} of iteration {iteration}"
        return None

    def _before(self) -> None:
        state = self._trainer.state
        random = RandomState.capture(self._trainer.accelerator.device).state_dict()
        self.iterations[state.iteration] = {
            "the place (epoch, step)": str((state.epoch, state.optimizer_step)),
            "the batch": _sum(state.batch),
            "the random generators": _sum(random),
        }

    def _after(self) -> None:
        trainer = self._trainer
        sums = self.iterations[trainer.state.iteration]
        sums["the loss"] = _sum(trainer.state.loss)
        for module_name, module in trainer.modules.items():
            for name, value in module.state_dict().items():
                sums[f"{module_name}.{name} after the step"] = _sum(value)
        sums["the optimizer's state"] = _sum(trainer.optimizer.state_dict())
        if trainer.lr_scheduler is not None:
            sums["the scheduler's state"] = _sum(trainer.lr_scheduler.state_dict())
        for name, handler in handlers_with_state(trainer).items():
            sums[f"the state of {name}"] = _sum(handler.state_dict())


def _sum(value: Any) -> str:
    total = xxh3_128()
    _add(value, total)
    return total.hexdigest()


def _add(value: Any, total: Any) -> None:
    """What kind of object it is does not matter, but for its content."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        total.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        total.update(plain.flatten().view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray):
        total.update(f"{value.dtype}{value.shape}".encode())
        total.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        total.update(f"{{{len(value)}:".encode())
        for key, each in value.items():
            total.update(f"{key!r}:".encode())
            _add(each, total)
    elif isinstance(value, list | tuple):
        total.update(f"[{len(value)}:".encode())
        for each in value:
            _add(each, total)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        total.update(f"{value!r};".encode())
    else:
        total.update(type(value).__name__.encode())
        _add(getattr(value, "__dict__", {}), total)
