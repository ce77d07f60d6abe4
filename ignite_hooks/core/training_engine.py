"""The interface by which handlers use a trainer.

A handler of this package works on any Ignite engine. If the engine is a trainer, the handler can do
more, for example defer a callback to the end of an event. ``is_trainer`` distinguishes a trainer
from a plain Ignite engine. The package ``trainer`` imports the packages of the handlers. To avoid
circular imports, the packages of the handlers do not import ``trainer``, and use the protocols of
this module instead.

A *window* is the batches whose gradients are accumulated for one optimizer step. At a *step
boundary* no window is open, and no batch is being processed. A *validation* is a run of an
evaluator that the handler ``Validation`` starts. The *saved run* is the run that wrote the
checkpoint from which a trainer resumes.
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

    A turn with a smaller number comes earlier. Handlers of the same turn are called in the order in
    which they were attached. Deferred callbacks (``TrainingEngine.defer``) are called in the order
    of their turns, too.
    """

    # Handlers that only note that work is due. They come first, so that the failure of another
    # handler cannot prevent the note.
    NOTE = 0
    # Ignite's metrics at EPOCH_COMPLETED. All handlers that follow can read their values.
    METRICS = 1
    # The validation at EPOCH_COMPLETED, and a deferred validation. The handlers and callbacks that
    # follow can read its results.
    VALIDATION = 2
    # A learning rate scheduler whose ``step()`` is called once per epoch. If the scheduler takes a
    # metric, the call is deferred until all handlers have returned, because one of them may write
    # the metric.
    SCHEDULER = 3
    # All handlers without a turn of their own.
    OTHERS = 4
    # At STEP_COMPLETED, the callbacks of handlers that have a schedule in steps (``every_steps``).
    DUE_BY_STEP = 5
    # Handlers that show or record ``state.metrics``, after all handlers that write values.
    REPORTS = 6
    # The validation at STARTED and at STEP_COMPLETED.
    LATE_VALIDATION = 7
    # The save of a checkpoint, after all other work.
    CHECKPOINT = 8


class Feed(Protocol):
    """The source of a trainer's batches, as checkpoints see it. ``DataFeed`` implements it."""

    position: FeedPosition

    @property
    def loader(self) -> Any:
        """The loader that gives the batches."""

    @property
    def facts(self) -> dict[str, int | str | None]:
        """The properties of the data, by name.

        A resumed run gets the same batches only if these properties are those of the saved run.
        """

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns the reasons why the next batches may differ from those of the saved run.

        Args:
            state_dict: the state of the data in the checkpoint of the saved run.
        """

    def replay_notes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns a list with one note if a resume has to repeat the iteration of a sampler.

        The iteration goes from the start of the pass to the saved position, and may take long. If a
        resume repeats no iteration, the list is empty.
        """

    def data_changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns one sentence for each change of the data since the save.

        A sentence says what has changed, and what the change means for a resume.
        """


class TrainingEngine(Protocol):
    """A trainer, as handlers see it: an Ignite engine that has a model and a position in the data.

    Attributes:
        accelerator: owns device, mixed precision and processes.
        optimizer: the optimizer as Accelerate prepared it.
        lr_scheduler: the scheduler that the trainer moves, or None.
        state: Ignite's state.
        last_event_name: the event that is being fired.
        stop_reason: why the last run ended; None during a run.
        resume_report: a report that gives each part of the state a level, such as "exact",
            "approximate" or "missing"; None if nothing was resumed.
    """

    accelerator: Any  # an Accelerator, whose package has no types
    optimizer: Any  # an AcceleratedOptimizer
    lr_scheduler: Any  # a torch scheduler, with or without Accelerate's wrapper
    state: Any  # handlers of all kinds keep attributes on the state
    last_event_name: Any
    stop_reason: str | None
    resume_report: Any  # a ResumeReport, whose package must not be imported here

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules by name, without wrappers: the model, and a loss that has a state."""

    @property
    def generators(self) -> Mapping[str, Any]:
        """The random generators that the model, the user's functions and handlers hold, by name."""

    @property
    def searched_objects(self) -> Mapping[str, Callable[[], Any]]:
        """The objects that the last search for ``generators`` visited.

        The property maps the name of an object to a function. The function returns the object, or
        None if the object has been freed.
        """

    def parameter_digest(self) -> tuple[int, int] | None:
        """Returns a digest of the parameters on this rank, to be compared with other ranks.

        Returns None if there is only one rank, or if each rank has only a part of the model.
        """

    def compare_parameters(self, digests: Sequence[tuple[int, int] | None]) -> None:
        """Warns or raises an error if the ranks have different parameters.

        If the digests differ, this is a collective call, so all ranks must call this method.

        Args:
            digests: the results of ``parameter_digest`` on all ranks, in the order of the ranks.
        """

    def unknown_parts(self) -> dict[str, str]:
        """Returns a mapping from the name of a part to the reason why a resume may not restore it.

        The names of the parts are those of a ``ResumeReport``. Parts that are certainly restored
        are left out.
        """

    @property
    def feed(self) -> Feed | None:
        """The source of the batches, with its position; None while there is no data."""

    @property
    def place(self) -> Place:
        """The counters and the position in the data."""

    @property
    def batches_left(self) -> int | None:
        """The number of batches up to the next end, the present batch included.

        The next end is the end of the data, of the epoch or of the run, whichever comes first. None
        if no end is known.
        """

    @property
    def is_between_steps(self) -> bool:
        """True at a step boundary: no window is open, and no batch is being processed."""

    @property
    def is_leaving_epoch(self) -> bool:
        """True if a call of ``terminate_epoch()`` is about to end the current epoch.

        False before the first batch of the epoch.
        """

    @property
    def is_broken_off(self) -> bool:
        """True if the next run must call deferred callbacks, because a stop broke off a validation.

        The next run then repeats the validation.
        """

    @property
    def state_dict_user_keys(self) -> list[str]:
        """The attributes of ``state`` that ``state_dict`` includes."""

    def run(self, *, max_steps: int | None = None) -> Any:
        """Trains until a limit is reached."""

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """Attaches ``handler``, which is called each time the event is fired."""

    def fire_event(self, event_name: Any) -> None:
        """Calls the handlers of an event."""

    @property
    def ended_by(self) -> str | None:
        """The name of the handler or function that finished the run before its limit.

        None in all other cases, for example if the run ended at a limit, or if it ended by
        ``terminate(resumable=True)``.
        """

    def terminate(self, *, resumable: bool = False) -> None:
        """Ends the run.

        With one process, the run ends after the present event, and an open window is dropped. With
        several processes, a call on one process is enough. All processes then end the run at the
        same step boundary, or at the end of the epoch if this comes first.

        Args:
            resumable: whether a resume from a checkpoint continues the run. If False, the caller
                counts as the handler or function that finished the run (``ended_by``).
        """

    def stop_on_all_ranks(self, reason: str) -> None:
        """Ends the run after the present event. A resume continues the run.

        All ranks must call this method at the same event.

        Args:
            reason: the ``stop_reason`` of the run.
        """

    def request_on_all_ranks(
        self, asked: Callable[[], Any], obey: Callable[[Sequence[Any]], None]
    ) -> Callable[[], None]:
        """Registers two callbacks, by which a request of one rank is obeyed on all ranks.

        If ``asked`` returns a request on any rank, ``obey`` is called on all ranks at the same step
        boundary.

        Args:
            asked: returns the request of this rank, an object that can be pickled. None means that
                this rank has no request.
            obey: is called with the requests of all ranks, in the order of ranks. The request is
                None for a rank without a request.

        Returns:
            A function that removes the two callbacks.
        """

    @property
    def is_ending(self) -> bool:
        """True if the run is about to end, on all ranks, because a stop was requested."""

    def finish_resumed_run(self, ended_by: str) -> None:
        """Makes the next ``run()`` train nothing, because the saved run was finished.

        Args:
            ended_by: the name of the handler or function that finished the saved run.
        """

    def defer(self, callback: Callable[[], None], turn: Turn = Turn.OTHERS) -> None:
        """Calls ``callback`` once, when all handlers of the present event have returned.

        Args:
            callback: is called without arguments.
            turn: the turn of ``callback`` among the deferred callbacks.
        """

    def cancel(self, callback: Callable[[], None]) -> None:
        """Removes a deferred callback, if it was not called yet."""

    def call_at_end(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Registers ``callback``, which is called at the last step boundary of each run.

        A run that fails does not call the callback.

        Returns:
            A function that removes the callback.
        """

    def call_on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Registers ``callback``, which is called when a run continues from a loaded state.

        Returns:
            A function that removes the callback.
        """

    def position_state_dict(self) -> dict[str, Any]:
        """Returns counters, limits, the position in the data, and states of random generators."""

    def load_position_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue at the position that ``state_dict`` describes."""


AnyEngine: TypeAlias = Engine | TrainingEngine


def is_trainer(engine: AnyEngine) -> TypeGuard[TrainingEngine]:
    """Returns whether ``engine`` is a trainer rather than a plain Ignite engine."""
    # The class is checked, because a mock object itself has every attribute.
    return hasattr(type(engine), "position_state_dict")
