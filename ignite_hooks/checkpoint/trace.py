"""What a training did, iteration by iteration, in sums that show any difference."""

from typing import Any

from ignite.engine import Events

from ignite_hooks.checkpoint.digest import sum_of
from ignite_hooks.checkpoint.members import handlers_with_state
from ignite_hooks.data.random_state import RandomState

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
            "the batch": sum_of(state.batch),
            "the random generators": sum_of(random),
        }

    def _after(self) -> None:
        trainer = self._trainer
        sums = self.iterations[trainer.state.iteration]
        sums["the loss"] = sum_of(trainer.state.loss)
        for module_name, module in trainer.modules.items():
            for name, value in module.state_dict().items():
                sums[f"{module_name}.{name} after the step"] = sum_of(value)
        sums["the optimizer's state"] = sum_of(trainer.optimizer.state_dict())
        if trainer.lr_scheduler is not None:
            sums["the scheduler's state"] = sum_of(trainer.lr_scheduler.state_dict())
        for name, handler in handlers_with_state(trainer).items():
            sums[f"the state of {name}"] = sum_of(handler.state_dict())
