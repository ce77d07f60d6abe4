"""The seam between handlers and the trainer: all that a handler may ask of one.

A handler of this package works on any Ignite engine. On a trainer it can do better, and asks for
that here: ``is_trainer`` tells the two apart, and the rest of the package below the trainer knows
no more of it than these protocols.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from enum import IntEnum
from typing import Any
from typing import Protocol
from typing import TypeAlias
from typing import TypeGuard

import torch
from ignite.engine import Engine

from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.place import Place

__all__ = ["AnyEngine", "Feed", "TrainingEngine", "Turn", "is_trainer"]


class Turn(IntEnum):
    """The order in which a trainer calls the handlers of one event.

    Handlers of the same turn are called in the order in which they were attached. Handlers that
    only note what is due come first, so that a later failure cannot hide it. At EPOCH_COMPLETED
    Ignite's metrics come before the validation, and the validation before all other handlers, which
    see both. At STEP_COMPLETED callbacks by step come after all other handlers, and the validation
    comes last; at STARTED it comes last too. Deferred callbacks (``TrainingEngine.defer``) are
    called in the order of their turns.
    """

    NOTE = 0
    METRICS = 1
    VALIDATION = 2
    SCHEDULER = 3
    OTHERS = 4
    DUE_BY_STEP = 5
    LATE_VALIDATION = 6
    CHECKPOINT = 7


class Feed(Protocol):
    """The position in the data, as checkpoints see it; ``DataFeed`` is the one there is."""

    position: FeedPosition

    @property
    def loader(self) -> Any:
        """What the batches come from."""

    @property
    def facts(self) -> dict[str, int | str | None]:
        """What must be the same for another process to be given the same batches."""

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns what keeps the batches from being those that ``state_dict`` was taken before."""

    def remarks(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns what it takes to go to the place of ``state_dict``, where that may take long."""

    def changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns what is not as it was when ``state_dict`` was taken, with its consequence."""


class TrainingEngine(Protocol):
    """A trainer, as handlers see it: an Ignite engine with a model, a position and deferred calls.

    Attributes:
        accelerator: owns device, mixed precision and processes.
        optimizer: the optimizer as Accelerate prepared it.
        lr_scheduler: the scheduler that the trainer moves, or None.
        state: Ignite's state.
        last_event_name: the event that is being fired.
        stop_reason: why the last run ended, or None while one goes on.
        resume_report: what was resumed, and how exactly; None if nothing was.
    """

    accelerator: Any  # an Accelerator, whose package has no types
    optimizer: Any  # an AcceleratedOptimizer
    lr_scheduler: Any  # a torch scheduler, or Accelerate's around one
    state: Any  # handlers of all kinds keep attributes there
    last_event_name: Any
    stop_reason: str | None
    resume_report: Any  # a ResumeReport, of a floor above

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules by name, without wrappers: the model, and a loss with a state."""

    @property
    def generators(self) -> Mapping[str, Any]:
        """The random generators that model, functions and handlers have for themselves, by name."""

    @property
    def searched(self) -> Mapping[str, Callable[[], Any]]:
        """The objects in which ``generators`` were searched last, each behind a function."""

    def parameter_digest(self) -> tuple[int, int] | None:
        """Returns what tells the parameters of this rank from those of others; None if alone."""

    def compare_parameters(self, digests: Sequence[tuple[int, int] | None]) -> None:
        """Raises or warns if ranks have other parameters. Collective if the digests differ."""

    def unknown_parts(self) -> dict[str, str]:
        """Returns why parts of a ``ResumeReport`` may not be restored, by their names."""

    @property
    def feed(self) -> Feed | None:
        """The source of the batches, with its position; None as long as there is no data."""

    @property
    def place(self) -> Place:
        """The counters and the position in the data."""

    @property
    def batches_left(self) -> int | None:
        """Batches from the present one on before data, epoch or run ends; None if not known."""

    @property
    def is_between_steps(self) -> bool:
        """True if no window is open and no batch is on its way: the place is a step boundary."""

    @property
    def is_leaving_epoch(self) -> bool:
        """True if ``terminate_epoch()`` was called in an epoch that has begun."""

    @property
    def is_broken_off(self) -> bool:
        """True if a stop broke off what is due at this step boundary: it is made up later."""

    @property
    def state_dict_user_keys(self) -> list[str]:
        """The attributes of ``state`` that ``state_dict`` includes."""

    def run(self, *, max_steps: int | None = None) -> Any:
        """Trains until a limit is reached."""

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls ``handler`` at each event of that name."""

    def fire_event(self, event_name: Any) -> None:
        """Calls the handlers of an event."""

    @property
    def ended_by(self) -> str | None:
        """Names what finished the run before its limit; None for a limit or a resumable end."""

    def terminate(self, *, resumable: bool = False) -> None:
        """Ends the run after the present event; an open window is dropped.

        With several processes one of them can call it: all end at the same step boundary.

        Args:
            resumable: whether a process that resumes from a checkpoint continues the run.
        """

    def stop_on_all_ranks(self, reason: str) -> None:
        """Ends the run after the present event, resumably. All ranks call it at the same place."""

    def ask_ranks(
        self, asked: Callable[[], Any], obey: Callable[[Sequence[Any]], None]
    ) -> Callable[[], None]:
        """Has ``obey`` called on all ranks, at the same step boundary, if one of them asks for it.

        Returns:
            What undoes this.
        """

    @property
    def is_ending(self) -> bool:
        """True if all ranks know that the run ends at the next chance."""

    def finish_resumed_run(self, ended_by: str) -> None:
        """Leaves the next run nothing to do: ``ended_by`` has finished the one it resumes."""

    def defer(self, callback: Callable[[], None], turn: Turn = Turn.OTHERS) -> None:
        """Calls ``callback`` once, when all handlers of the present event have returned.

        Args:
            callback: is called without arguments.
            turn: an earlier turn is called earlier.
        """

    def cancel(self, callback: Callable[[], None]) -> None:
        """Takes off a deferred callback, if it is still to be called."""

    def call_at_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` at the last step boundary of each run; returns what undoes this."""

    def call_on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` when the next run resumes; returns what undoes this."""

    def position_state_dict(self) -> dict[str, Any]:
        """Returns counters, limits, the position in the data and the random generators."""

    def load_position_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue at the position of ``state_dict``."""


AnyEngine: TypeAlias = Engine | TrainingEngine


def is_trainer(engine: AnyEngine) -> TypeGuard[TrainingEngine]:
    """Returns whether ``engine`` is a trainer, and not a plain Ignite engine."""
    # Asked of the class: a stand-in that has every attribute is no trainer.
    return hasattr(type(engine), "position_state_dict")
