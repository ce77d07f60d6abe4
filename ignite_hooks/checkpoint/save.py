"""Saves checkpoints on a schedule, at a signal and at the end of a run.

A crash, even during a save, damages no checkpoint.
"""

import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.checkpoint.handler_objects import has_state
from ignite_hooks.checkpoint.preflight import check_directory
from ignite_hooks.checkpoint.preflight import warn_if_full
from ignite_hooks.checkpoint.settings import record_settings
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.triggers import CheckpointTriggers
from ignite_hooks.checkpoint.unsaved import record_initial_values
from ignite_hooks.checkpoint.unsaved_attributes import record_initial_attributes
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.fields import Count
from ignite_hooks.core.fields import Directory
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import GraceSeconds
from ignite_hooks.core.fields import Kept
from ignite_hooks.core.fields import MetricName
from ignite_hooks.core.fields import Mode
from ignite_hooks.core.fields import OnBusy
from ignite_hooks.core.fields import Runtime
from ignite_hooks.core.fields import Seconds
from ignite_hooks.core.fields import SignalNames
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Scheduled
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.random_state import GENERATOR_CLASSES
from ignite_hooks.events import TrainEvents

__all__ = ["SaveCheckpoint"]

# The end of the messages which say that nothing can be saved at EXCEPTION_RAISED.
_WHY_NOT_SAVED = (
    "after a failure a step may be half done: resume from the last checkpoint; to save a run that "
    'Ctrl-C stops, set on_signals=("SIGINT", "SIGTERM")'
)


@checked_dataclass(kw_only=False)
class SaveCheckpoint(Scheduled):
    """Saves the whole state of a run, and keeps the newest and the best checkpoints.

    A checkpoint is a folder, ``directory/step_00000500``. Checkpoints are taken at step boundaries,
    that is between two optimizer steps. If a save is due at an event, for example EPOCH_COMPLETED,
    it comes after the validation and all other handlers of this event. If several schedules are due
    at the same boundary, one checkpoint is taken. First all files are written to the disk, then
    ``manifest.json`` makes the folder a checkpoint, and then older checkpoints are removed. So a
    crash, a full disk or a kill costs at most the steps since the last checkpoint. When a
    checkpoint is complete, ``last_checkpoint`` becomes its folder, and CHECKPOINT_SAVED fires.

    A checkpoint holds the model (and the parameters of a loss function), the optimizer, the
    scheduler, the scaler, the random generators, the position in the data, the counters, the
    metrics, the state of every handler that has a state, and the states of the objects in ``also``.
    ``ResumeCheckpoint`` resumes from a checkpoint.

    When the process receives a signal in ``on_signals``, the run saves at the next step boundary
    and ends. ``trainer.stop_reason`` is then the name of the signal ("SIGTERM on rank 1" if not all
    processes have received the signal). Further signals within ``grace_seconds`` are part of the
    same request. A signal that comes later, or after the save, calls the signal handler that was
    set before the run. Workers of a ``DataLoader`` ignore these signals during the run, so that a
    signal to all processes of a job does not end the workers. A signal breaks off a ``Validation``
    in progress, and the resumed run repeats this validation.

    The run may fail after the signal and before the save. In this case the state of the last step
    boundary is saved, if the trainer can still return to this boundary. It cannot return, for
    example, if the failure came while the optimizer was changing the parameters. A note on the
    error says whether the state was saved. With several processes, no state is saved after a
    failure.

    Only one run at a time writes to a directory. A run holds a lock on the directory until the run
    ends. Until then another run raises an error or waits, see ``on_busy``. A run that was stopped
    with ``interrupt()`` keeps the lock, because the next ``run()`` continues it.

    With several processes, all processes save to one directory, which all of them must see. The
    states of handlers and of ``also`` are saved and restored for each rank separately. The buffers
    of a model are saved from rank 0 only, since ``DistributedDataParallel`` sends the buffers of
    rank 0 to all ranks anyway.

    A model that is split over processes (FSDP, DeepSpeed) is written with its optimizer by
    ``accelerator.save_state``. Its resume needs ``trust_pickle``, because Accelerate unpickles the
    files. Neither the save nor the resume has been tested with FSDP or DeepSpeed.

    Args:
        directory: the folder of the checkpoints; it is created if missing. ``~`` is expanded. A
            relative path is made absolute when the handler is created, because the working
            directory may change later.
        every_steps: save whenever the number of committed optimizer steps is a multiple of this
            number. A step is committed if it has changed the parameters.
        every_epochs: save whenever the number of completed epochs is a multiple of this number.
        every_seconds: save at the first step boundary at which this many seconds have passed since
            the last save. If the run has not saved yet, the seconds count from its start.
        at_end: save when a run ends, unless the run fails.
        keep_last: how many of the newest checkpoints of this run to keep, or "all". If an old
            checkpoint is a symbolic link, the link is removed, and its target is kept.
        keep_best: how many of the best checkpoints by ``metric`` to keep in addition. A checkpoint
            whose value is NaN is never among the best.
        metric: the name in ``state.metrics`` of the value that ranks checkpoints. A value from an
            earlier iteration is ignored, because it was measured with earlier weights. Values are
            compared by identity (``is``): if your handler stores the very same Python object again,
            for example a constant, the value counts as the earlier one.
        mode: "max" if the largest value is best, "min" if the smallest value is best.
        on_signals: names of the signals that ask for a save and the end of the run.
        safe_serialization: whether the model is written with safetensors. If False, the model is
            written with ``torch.save``.
        background: write in a thread, from a copy in the host's memory, while training continues.
            An error in the thread is raised at the next save or at the end of the run. A model that
            is split over processes is always written before training continues.
        also: a dict that maps names to further objects to save. An object must either have
            ``state_dict`` and ``load_state_dict``, with a state of tensors and plain data, or be a
            random generator of torch, numpy or Python.
        trust_pickle: also save objects registered with ``accelerator.register_for_checkpointing``.
            A resume has to unpickle these objects, which can run code.
        grace_seconds: the time after a signal in which further signals are part of the same
            request. A process may get several signals for one request, because a job scheduler
            signals every process of the job, and a launcher passes its own signal on.
        on_busy: what to do if another run writes to the directory. "error" raises an error before
            the first batch. "wait" waits until the other run ends; use it, for example, for a
            requeued job whose predecessor is about to end. The handler waits when it is attached,
            so that a ``ResumeCheckpoint`` then finds the last checkpoint of the other run, and
            again when the run begins.
        wait_seconds: the longest time to wait with ``on_busy="wait"``; None for no limit.

    Raises:
        ValueError: an argument is out of its range. When attached: the engine is not a trainer; or
            the directory cannot be written to; or objects are registered with the accelerator, and
            ``trust_pickle`` is False. When the first checkpoint is saved: every ``Validation`` of
            the trainer has been run, and ``state.metrics`` still has no ``metric``.
        RuntimeError: when a run begins: another run writes to the directory.
        TypeError: an object in ``also`` has no state.
    """

    directory: Directory
    _: KW_ONLY
    every_steps: Every | None = None
    every_epochs: Every | None = None
    every_seconds: Seconds | None = None
    at_end: Flag = True
    keep_last: Kept = 3
    keep_best: Count = 0
    metric: MetricName | None = None
    mode: Mode = "max"
    on_signals: SignalNames = ("SIGTERM",)
    safe_serialization: Flag = True
    background: Flag = False
    also: Runtime = None
    trust_pickle: Flag = False
    grace_seconds: GraceSeconds = 5.0
    on_busy: OnBusy = "error"
    wait_seconds: Seconds | None = None

    def __post_init__(self) -> None:
        """Checks the options that depend on each other."""
        if self.keep_best and self.metric is None:
            raise ValueError(
                f"`metric` must be given with keep_best={self.keep_best}, got None: name one of "
                'state.metrics, metric="val_accuracy" for example'
            )
        if self.wait_seconds is not None and self.on_busy != "wait":
            raise ValueError(
                f'`wait_seconds` must be given with on_busy="wait" only, got {self.wait_seconds} '
                f'with on_busy={self.on_busy!r}: leave it out, or set on_busy="wait"'
            )
        objects = self.also if isinstance(self.also, Mapping) else {"also": self.also}
        for name, each in objects.items() if self.also is not None else ():
            is_generator = isinstance(each, GENERATOR_CLASSES)
            if not isinstance(self.also, Mapping) or not (is_generator or has_state(each)):
                of_name = f" for {name!r}" if isinstance(self.also, Mapping) else ""
                raise TypeError(
                    "`also` must be a dict of objects with state_dict() and load_state_dict(), or "
                    f"of random generators, got {shown_type(each)}{of_name}: give such objects by "
                    'name, also={"ema": ema} for example'
                )

    @property
    def last_checkpoint(self) -> Path | None:
        """The folder of the last complete checkpoint; None before the first one."""
        return _last_checkpoints.get(self)

    @property
    def summary(self) -> str:
        """The folder of the checkpoints, for ``repr(trainer)``."""
        return f"checkpoints in {self.directory}"

    def check(self, engine: Engine, event: Any) -> None:
        """Checks the engine and the event; creates the directory and tests if it is writable."""
        if not is_trainer(engine):
            raise ValueError(
                f"`engine` must be a trainer, whose position in the data can be saved, got "
                f"{type(engine).__name__}: make it with create_supervised_trainer, or use Ignite's "
                "Checkpoint"
            )
        if event == Events.EXCEPTION_RAISED:
            raise ValueError(
                f"`event` must be an event of a run that has not failed, got {event}: "
                f"{_WHY_NOT_SAVED}"
            )
        check_directory(Path(self.directory))
        TrainingState(engine, trust_pickle=self.trust_pickle).check()
        others = [each for each in attached_handlers(engine, SaveCheckpoint) if each is not self]
        if any(Path(each.directory).resolve() == Path(self.directory).resolve() for each in others):
            raise ValueError(
                f"`directory` must be different for each SaveCheckpoint of a trainer, got "
                f"{self.directory} twice: each handler would remove what the other is writing"
            )

    def attach(self, engine: Engine, event: Any = None) -> Attachment:
        """Attaches the handler. With ``event``, it also saves each time this event is fired."""
        has_other_trigger = self.every_seconds or self.at_end or self.on_signals
        if not (event or self.every_steps or self.every_epochs or has_other_trigger):
            raise ValueError(
                "a SaveCheckpoint must have a trigger, got none (`every_steps`, `every_epochs`, "
                "`every_seconds`, `at_end` and `on_signals` are all off): every_epochs=1 is the "
                "usual choice"
            )
        attachment = super().attach(engine, event)
        trainer = attachment.engine
        assert is_trainer(trainer)  # check() has refused all others
        warn_if_full(Path(self.directory), trainer)
        triggers = _triggers_of(self, engine)
        # A trainer attaches a ResumeCheckpoint after this handler, so the resume finds the last
        # checkpoint of a run that this handler waits for.
        triggers.wait_for_others()
        attachment.on_removal(triggers.release)
        attachment.on_removal(lambda: trainer.cancel(triggers.save))
        attachment.on_removal(triggers.break_off_validations(trainer))
        record_settings(attachment)
        attachment.during_run(triggers.around_run)
        attachment.on(Events.STARTED, triggers.check_state)
        # The handlers of an event are called in the order of their turns. DUE_BY_STEP is a late
        # turn: the values are recorded after the other handlers of STARTED, which may create or
        # reset state.
        attachment.on(Events.STARTED, record_initial_values, turn=Turn.DUE_BY_STEP)
        attachment.on(Events.STARTED, record_initial_attributes, turn=Turn.DUE_BY_STEP)
        attachment.on_removal(triggers.end_runs_without_workers(trainer))
        if trainer.accelerator.num_processes > 1:
            attachment.on_removal(triggers.request_on_all_ranks(trainer))
        elif self.every_seconds or self.on_signals or self.background:
            attachment.on(TrainEvents.STEP_COMPLETED, triggers.after_step)
        if self.at_end:
            attachment.on_removal(trainer.call_at_end(triggers.save))
        return attachment

    def attach_to(self, attachment: Attachment) -> None:
        """Saves on the schedules ``every_steps`` and ``every_epochs``.

        At the end of an epoch, this handler is called first (turn ``NOTE``), and only notes that a
        save is due. So the save stays due if another handler fails.
        """
        self.on_schedule(attachment, self, turn_by_epoch=Turn.NOTE)

    def __call__(self, engine: Engine) -> None:
        """Saves when all other handlers of the present event have returned.

        Between two runs, and at INTERRUPT, the method saves at once.

        Raises:
            RuntimeError: the run was interrupted within a step.
        """
        triggers = _triggers_of(self, engine)
        assert is_trainer(engine)  # check() has refused all others
        if is_running(engine) and engine.last_event_name == Events.EXCEPTION_RAISED:
            warnings.warn(f"nothing is saved at EXCEPTION_RAISED: {_WHY_NOT_SAVED}", stacklevel=2)
        elif is_running(engine) and engine.last_event_name != Events.INTERRUPT:
            triggers.schedule(engine)
        else:
            triggers.save()


def _triggers_of(handler: SaveCheckpoint, engine: Engine) -> CheckpointTriggers:
    """Returns the triggers of a handler on an engine; creates them on the first call.

    The triggers decide when the handler saves the state of this engine. They are kept with the
    engine, because one handler may be attached to several trainers.
    """
    found: dict[SaveCheckpoint, CheckpointTriggers] = engine_storage(engine).setdefault(
        "checkpoint_triggers", {}
    )
    if handler not in found:
        handler.check(engine, None)
        assert is_trainer(engine)  # check() has refused all others

        def announce(folder: Path) -> None:
            _last_checkpoints[handler] = folder

        found[handler] = CheckpointTriggers(handler, engine, announce)
    return found[handler]


# Maps each handler to the folder of its last complete checkpoint. The folders are not attributes of
# the handlers, because a handler is a frozen dataclass.
_last_checkpoints: WeakKeyDictionary[SaveCheckpoint, Path] = WeakKeyDictionary()
