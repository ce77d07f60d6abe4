"""Saves on schedule, at the end and when told to stop; a crash costs what came after the last."""

import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.checkpoint.members import has_state
from ignite_hooks.checkpoint.preflight import check_directory
from ignite_hooks.checkpoint.preflight import warn_if_full
from ignite_hooks.checkpoint.settings import keep_record
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.triggers import CheckpointTriggers
from ignite_hooks.checkpoint.unsaved import note_beginning
from ignite_hooks.checkpoint.unsaved_attributes import note_attributes
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import belongings
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
from ignite_hooks.core.handler import attached
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.random_state import GENERATOR_KINDS
from ignite_hooks.events import TrainEvents

__all__ = ["SaveCheckpoint"]

_NO_SAVE = (
    "after a failure a step may be half done, and the last checkpoint is what there is; "
    'on_signals=("SIGINT", "SIGTERM") saves a run that Ctrl-C stops'
)


@checked_dataclass(kw_only=False)
class SaveCheckpoint(Scheduled):
    """Saves all that it takes to go on as if nothing had happened, and keeps what is worth keeping.

    A checkpoint is a folder, ``directory/step_00000500``. It is taken between two steps, when every
    other handler of the moment is done, validation too, and once however many schedules are due.
    Its files are on the disk before ``manifest.json`` makes it a checkpoint, and only then older
    ones go: a crash, a full disk or a kill at any moment costs what came after the last one.
    CHECKPOINT_SAVED fires when it is complete, and ``last_checkpoint`` names it.

    It holds the model (and a loss function's own parameters), optimizer, scheduler, scaler, random
    generators, the place in the data, counters, metrics, the state of every handler that has one,
    and what ``also`` names. ``ResumeCheckpoint`` goes on from it.

    One of ``on_signals`` has the state saved at the next step boundary, and the run end there;
    ``trainer.stop_reason`` is the signal's name ("SIGTERM on rank 1" if not all processes have
    received it). More signals within ``grace_seconds`` are the same
    request; a later one, or one that comes when the save is complete, does what it did before.
    Workers of a ``DataLoader`` ignore the signals meanwhile, so that one to all processes of a job
    harms nothing. A ``Validation`` in progress is broken off, and made up when the run is resumed.
    If the run fails before that save, and there is one process, the last step boundary is saved on
    the way out where it is known; the error has a note that says so.

    One run at a time writes to a directory: a run holds a lock on it until it ends, and is refused,
    or waits, while another holds it. An interrupted run keeps the lock.

    With several processes all of them save, and the directory must be one that all of them see.
    Each gets its own states of handlers and of ``also`` back; of a model's buffers, which
    ``DistributedDataParallel`` sends to all anyway, the first one's are saved. Where the model is
    split over processes (FSDP, DeepSpeed) model and optimizer are written by
    ``accelerator.save_state``; that was not tested on such machines, and resuming from it needs
    ``trust_pickle``, because Accelerate unpickles there.

    Args:
        directory: where the checkpoints are; it is made if it is not there. A relative path is made
            absolute now, with ``~`` expanded: the working directory may change later.
        every_steps: save each time so many steps were committed.
        every_epochs: save each time so many epochs were completed.
        every_seconds: save at the first step after so many seconds.
        at_end: save where a run ends, unless it fails.
        keep_last: how many of the newest of this run of training stay, or "all". Of a checkpoint
            that is a symbolic link the link is removed, and what it leads to stays.
        keep_best: how many of the best by ``metric`` stay besides. A NaN is never among them.
        metric: the name in ``state.metrics`` of what says which is best. Of a metric that is not a
            validation's the value counts for the iteration in which it was stored; the very object
            of an earlier iteration stored again counts as the old value.
        mode: whether "max" or "min" is best.
        on_signals: names of the signals that ask for a save and the end of the run.
        safe_serialization: whether the model is written with safetensors; else with ``torch.save``.
        background: have a thread write, from a copy in the host's memory, while training goes on.
            What goes wrong is raised at the next save or the end of the run. With a model that is
            split over processes, its part is written at once all the same.
        also: further objects with ``state_dict`` and ``load_state_dict``, by name, whose states
            must be made of tensors and plain data; or random generators of torch, numpy or Python.
        trust_pickle: save what was registered with ``accelerator.register_for_checkpointing`` too,
            which has to be unpickled.
        grace_seconds: how long after a signal further ones are taken for the same request: job
            schedulers signal all processes, and launchers pass their own signal on.
        on_busy: what to do while another run writes to the directory. "error" refuses before the
            first batch; "wait" is for a requeued job whose predecessor is about to end: the handler
            waits for it when it is attached, before a resume, and when the run begins.
        wait_seconds: the longest wait, with "wait"; None for no limit.

    Raises:
        ValueError: an argument is out of its range. When attached: the engine is no trainer; the
            directory cannot be written to; objects are registered with the accelerator.
            When the first checkpoint is saved: all validations have been run, and none has given
            ``metric``.
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
        """Checks what goes together."""
        if self.keep_best and self.metric is None:
            raise ValueError(
                f"`metric` must be given with `keep_best`, which is {self.keep_best}, got None: "
                'name one of state.metrics, "val_accuracy" for instance'
            )
        if self.wait_seconds is not None and self.on_busy != "wait":
            raise ValueError(
                f'`wait_seconds` must be given with on_busy="wait" alone, got {self.wait_seconds} '
                f"with on_busy={self.on_busy!r}: leave it out, or wait"
            )
        objects = self.also if isinstance(self.also, Mapping) else {"also": self.also}
        for name, each in objects.items() if self.also is not None else ():
            is_generator = isinstance(each, GENERATOR_KINDS)
            if not isinstance(self.also, Mapping) or not (is_generator or has_state(each)):
                raise TypeError(
                    "`also` must be a dict of objects with state_dict() and load_state_dict(), or "
                    f"of random generators, got {type(each).__name__} for {name!r}: give the "
                    "objects by name"
                )

    @property
    def last_checkpoint(self) -> Path | None:
        """The folder of the last one that was completed; None if there was none yet."""
        return _last.get(self)

    @property
    def summary(self) -> str:
        """The folder of the checkpoints, for ``repr(trainer)``."""
        return f"checkpoints in {self.directory}"

    def check(self, engine: Engine, event: Any) -> None:
        """It needs a trainer, a directory, and something to save by."""
        if not is_trainer(engine):
            raise ValueError(
                f"`engine` must be a trainer, whose place in the data is known, got "
                f"{type(engine).__name__}: make it with create_supervised_trainer, or use Ignite's "
                "Checkpoint"
            )
        if event == Events.EXCEPTION_RAISED:
            raise ValueError(
                f"`event` must be one of a run that goes on or ends well, got {event}: {_NO_SAVE}"
            )
        check_directory(Path(self.directory))
        TrainingState(engine, trust_pickle=self.trust_pickle).check()
        others = [each for each in attached(engine, SaveCheckpoint) if each is not self]
        if any(Path(each.directory).resolve() == Path(self.directory).resolve() for each in others):
            raise ValueError(
                f"`directory` must be another for each SaveCheckpoint of a trainer, got "
                f"{self.directory} twice: each would remove what the other is writing"
            )

    def attach(self, engine: Engine, event: Any = None) -> Attachment:
        """As any handler; at an ``event`` too it saves at the end and on signals, as it is told."""
        saves_by_itself = self.every_seconds or self.at_end or self.on_signals
        if not (event or self.every_steps or self.every_epochs or saves_by_itself):
            raise ValueError(
                "a SaveCheckpoint must have something to save by, `every_steps`, `every_epochs`, "
                "`every_seconds`, `at_end` and `on_signals` are all off: every_epochs=1 is the "
                "usual choice"
            )
        attachment = super().attach(engine, event)
        trainer = attachment.engine
        assert is_trainer(trainer)  # check() has refused all others
        warn_if_full(Path(self.directory), trainer)
        triggers = _triggers_of(self, engine)
        triggers.wait_for_others()
        attachment.on_removal(triggers.release)
        attachment.on_removal(lambda: trainer.cancel(triggers.save))
        attachment.on_removal(triggers.break_off(trainer))
        keep_record(attachment)
        attachment.during_run(triggers.watching)
        attachment.on(Events.STARTED, triggers.start)
        attachment.on(Events.STARTED, note_beginning, turn=Turn.DUE_BY_STEP)
        attachment.on(Events.STARTED, note_attributes, turn=Turn.DUE_BY_STEP)
        attachment.on_removal(triggers.end_runs_without_workers(trainer))
        if trainer.accelerator.num_processes > 1:
            attachment.on_removal(triggers.watch(trainer))
        elif self.every_seconds or self.on_signals or self.background:
            attachment.on(TrainEvents.STEP_COMPLETED, triggers.look)
        if self.at_end:
            attachment.on_removal(trainer.call_at_end(triggers.save))
        return attachment

    def attach_to(self, attachment: Attachment) -> None:
        """Saves on its schedules; that one is due at the end of an epoch is noted first of all."""
        self.on_schedule(attachment, self, turn_by_epoch=Turn.NOTE)

    def __call__(self, engine: Engine) -> None:
        """Saves when all other handlers of the moment are done; after a run at once.

        Raises:
            RuntimeError: the run was interrupted, and not between two steps.
        """
        triggers = _triggers_of(self, engine)
        assert is_trainer(engine)  # check() has refused all others
        if is_running(engine) and engine.last_event_name == Events.EXCEPTION_RAISED:
            warnings.warn(f"nothing is saved at EXCEPTION_RAISED: {_NO_SAVE}", stacklevel=2)
        elif is_running(engine) and engine.last_event_name != Events.INTERRUPT:
            triggers.schedule(engine)
        else:
            triggers.save()


def _triggers_of(handler: SaveCheckpoint, engine: Engine) -> CheckpointTriggers:
    """What the handler does on this engine, kept with the engine."""
    found: dict[SaveCheckpoint, CheckpointTriggers] = belongings(engine).setdefault(
        "checkpoint_triggers", {}
    )
    if handler not in found:
        handler.check(engine, None)
        assert is_trainer(engine)  # check() has refused all others

        def announce(folder: Path) -> None:
            _last[handler] = folder

        found[handler] = CheckpointTriggers(handler, engine, announce)
    return found[handler]


_last: WeakKeyDictionary[SaveCheckpoint, Path] = WeakKeyDictionary()
