"""The protocols by which handlers use a trainer, and the order of handlers at an event.

A handler of this package works on any Ignite engine. On a trainer, which ``is_trainer`` tells from
a plain Ignite engine, it can do more: defer a callback to the end of an event, for example. The
packages below ``trainer`` know the trainer by these protocols alone.
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
    only note what is due come first, so that the failure of another handler cannot prevent it. At
    EPOCH_COMPLETED Ignite's metrics come before the validation, and the validation before all other
    handlers, which see both. At STEP_COMPLETED callbacks by step come after all other handlers, and
    the validation comes last; at STARTED it comes last too. Deferred callbacks
    (``TrainingEngine.defer``) are called in the order of their turns.
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
    """The source of a trainer's batches, as checkpoints see it. ``DataFeed`` implements it."""

    position: FeedPosition

    @property
    def loader(self) -> Any:
        """The loader that gives the batches."""

    @property
    def facts(self) -> dict[str, int | str | None]:
        """The properties that must be the same for another process to get the same batches."""

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns reasons why the next batches are not those that followed ``state_dict``."""

    def remarks(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns what has to be iterated again to resume at ``state_dict``, and may take long."""

    def changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns what has changed since ``state_dict`` was taken, with the consequences."""


class TrainingEngine(Protocol):
    """A trainer, as handlers see it: an Ignite engine with a model, a position and deferred calls.

    Attributes:
        accelerator: owns device, mixed precision and processes.
        optimizer: the optimizer as Accelerate prepared it.
        lr_scheduler: the scheduler that the trainer moves, or None.
        state: Ignite's state.
        last_event_name: the event that is being fired.
        stop_reason: why the last run ended; None during a run.
        resume_report: what was resumed, and how exactly; None if nothing was.
    """

    accelerator: Any  # an Accelerator, whose package has no types
    optimizer: Any  # an AcceleratedOptimizer
    lr_scheduler: Any  # a torch scheduler, or Accelerate's around one
    state: Any  # handlers of all kinds keep attributes there
    last_event_name: Any
    stop_reason: str | None
    resume_report: Any  # a ResumeReport, whose package may not be imported here

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules by name, without wrappers: the model, and a loss that has a state."""

    @property
    def generators(self) -> Mapping[str, Any]:
        """The random generators that the model, functions and handlers hold, by name."""

    @property
    def searched_objects(self) -> Mapping[str, Callable[[], Any]]:
        """The objects in which ``generators`` were searched last, by name.

        Each is given as a function that returns the object, or None if it is gone.
        """

    def parameter_digest(self) -> tuple[int, int] | None:
        """Returns a digest of this rank's parameters; None if no other rank has the same ones."""

    def compare_parameters(self, digests: Sequence[tuple[int, int] | None]) -> None:
        """Raises an error or warns if parameters of ranks differ. Collective if digests differ."""

    def unknown_parts(self) -> dict[str, str]:
        """Returns the reasons why parts of a ``ResumeReport`` may not be restored, by part."""

    @property
    def feed(self) -> Feed | None:
        """The source of the batches, with its position; None while there is no data."""

    @property
    def place(self) -> Place:
        """The counters and the position in the data."""

    @property
    def batches_left(self) -> int | None:
        """The number of batches left, the present one included; None if that is not known.

        It ends where the data, the epoch or the run ends, whichever comes first.
        """

    @property
    def is_between_steps(self) -> bool:
        """True at a step boundary: no window is open, and no batch is being processed."""

    @property
    def is_leaving_epoch(self) -> bool:
        """True if ``terminate_epoch()`` was called in an epoch that has begun."""

    @property
    def is_broken_off(self) -> bool:
        """True if a stop broke off work that is due at this step boundary, to be done later."""

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
        """The name of what finished the run before its limit.

        None if the run ended at a limit, or in a way that lets it be resumed.
        """

    def terminate(self, *, resumable: bool = False) -> None:
        """Ends the run after the present event; an open window is dropped.

        With several processes a call on one of them is enough: all end at the same step boundary.

        Args:
            resumable: whether a process that resumes from a checkpoint continues the run.
        """

    def stop_on_all_ranks(self, reason: str) -> None:
        """Ends the run, resumably, after the present event. All ranks must call it there."""

    def request_on_all_ranks(
        self, asked: Callable[[], Any], obey: Callable[[Sequence[Any]], None]
    ) -> Callable[[], None]:
        """Calls ``obey`` on all ranks, at the same step boundary, if one of them asks for it.

        Args:
            asked: returns what this rank asks for, an object that can be pickled, or None.
            obey: is called with what each rank asks for.

        Returns:
            A function that undoes this.
        """

    @property
    def is_ending(self) -> bool:
        """True if all ranks know that the run ends at the next opportunity."""

    def finish_resumed_run(self, ended_by: str) -> None:
        """Makes the next run do nothing: ``ended_by`` has finished the run that it resumes."""

    def defer(self, callback: Callable[[], None], turn: Turn = Turn.OTHERS) -> None:
        """Calls ``callback`` once, when all handlers of the present event have returned.

        Args:
            callback: is called without arguments.
            turn: the order among deferred callbacks; an earlier turn is called earlier.
        """

    def cancel(self, callback: Callable[[], None]) -> None:
        """Removes a deferred callback, if it was not called yet."""

    def call_at_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` at the last step boundary of each run.

        Returns:
            A function that undoes this.
        """

    def call_on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` when the next run resumes.

        Returns:
            A function that undoes this.
        """

    def position_state_dict(self) -> dict[str, Any]:
        """Returns counters, limits, the position in the data, and states of random generators."""

    def load_position_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue at the position of ``state_dict``."""


AnyEngine: TypeAlias = Engine | TrainingEngine


def is_trainer(engine: AnyEngine) -> TypeGuard[TrainingEngine]:
    """Returns whether ``engine`` is a trainer rather than a plain Ignite engine."""
    # The class is asked, because a mock object has every attribute.
    return hasattr(type(engine), "position_state_dict")
