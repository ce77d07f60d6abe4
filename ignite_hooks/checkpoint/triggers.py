"""The first stage of a save, due: a schedule, the clock, a signal or the end of a run asks for it.

The stages that follow are drawn in ``write.py``.
"""

import warnings
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from weakref import ref

from ignite_hooks.checkpoint.failure import uncertain_parts
from ignite_hooks.checkpoint.failure import why_not_saved
from ignite_hooks.checkpoint.options import SaveOptions
from ignite_hooks.checkpoint.preflight import check_directory
from ignite_hooks.checkpoint.preflight import warn_if_full
from ignite_hooks.checkpoint.signals import StopSignals
from ignite_hooks.checkpoint.signals import is_death_of_worker
from ignite_hooks.checkpoint.write import CheckpointWriter
from ignite_hooks.core.due_on_resume import add_due
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.run_scope import enter_at_each_run
from ignite_hooks.core.scopes import note
from ignite_hooks.core.stop_requests import StopWatch
from ignite_hooks.core.stop_requests import add_stop_watch
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.event_channels import channels_of
from ignite_hooks.processes.decisions import name_ranks

__all__ = ["CheckpointTriggers"]

_BY_CLOCK = "clock"


class CheckpointTriggers:
    """What one ``SaveCheckpoint`` does on one trainer.

    Args:
        options: the options of the handler.
        trainer: the trainer; no strong reference is kept.
        announce: is called with each folder that has become a checkpoint, before CHECKPOINT_SAVED.
    """

    def __init__(
        self, options: SaveOptions, trainer: TrainingEngine, announce: Callable[[Path], None]
    ) -> None:
        self._options = options
        self._directory = Path(options.directory)
        self._signals = StopSignals(options.on_signals, options.grace_seconds)
        self._is_stopping = False  # for a signal, once all processes know of it
        self._is_saving = False
        self._uncertain: dict[str, str] = {}  # what a failure leaves unknown of the last boundary
        self._newest: Path | None = None
        self._last_time = monotonic()
        self._is_after_failure = self.is_in_run = False
        self._scheduled_at = -1  # the iteration at which a schedule asked for a save last
        engine = ref(trainer)

        def tell(folder: Path) -> None:
            self._newest = folder
            announce(folder)
            engine().fire_event(TrainEvents.CHECKPOINT_SAVED)  # type: ignore[union-attr]

        def save() -> None:
            self._save(engine())  # type: ignore[arg-type]

        self._writer = CheckpointWriter(options, trainer, tell)
        is_alone = self._writer.ranks.size == 1
        self._waits_for_signals_only = (
            is_alone and options.every_seconds is None and not options.background
        )
        self.save = save
        enter_at_each_run(trainer, lambda trainer: _Owning(self, trainer))
        enter_at_each_run(trainer, self._finishing)

    def defer(self, trainer: TrainingEngine) -> None:
        """Saves when the handlers of the present event have returned, after a validation."""
        trainer.defer(self.save, Turn.CHECKPOINT)

    def schedule(self, trainer: TrainingEngine) -> None:
        """Saves as above, also once more if a validation of that moment is broken off."""
        self._scheduled_at = trainer.place.progress.iteration
        self.defer(trainer)

    def break_off(self, trainer: TrainingEngine) -> Callable[[], None]:
        """Has a signal break off validations; returns what undoes it."""
        ranks = self._writer.ranks

        def is_due() -> bool:
            return self._scheduled_at == trainer.place.progress.iteration

        def obey() -> None:
            if not is_due():  # the save below is then the only one
                trainer.cancel(self.save)
            self._obey(trainer, ranks.gather(self._asked()))

        watch = StopWatch(
            lambda: self._signals.received is not None,
            None if ranks.size == 1 else ranks.any_of,
            obey,
        )
        undo = [add_due(trainer, "saves", is_due, lambda: self.schedule(trainer))]
        if self._options.on_signals:
            undo.append(add_stop_watch(trainer, watch))

        def remove() -> None:
            for each in undo:
                each()

        return remove

    def start(self, trainer: TrainingEngine) -> None:
        """Before the first batch: a state that cannot be saved is an error, none is new yet."""
        if not self._writer.lock.is_taken:  # a signal ended the wait for it
            trainer.terminate(resumable=True)
            return
        self._begin(trainer)
        self._writer.rehearse(trainer)

    def watch(self, trainer: TrainingEngine) -> Callable[[], None]:
        """Obeys signals and the clock of any rank, with several processes.

        Returns:
            What undoes this.
        """
        return trainer.ask_ranks(self._asked, lambda asked: self._obey(trainer, asked))

    def look(self, trainer: TrainingEngine) -> None:
        """After a step of one process: obeys a signal and the clock, tells of what is written."""
        if self._waits_for_signals_only and self._signals.received is None:
            return
        if self._options.background:
            self._writer.tell_if_done()
        asked = self._asked()
        if asked is not None:
            self._obey(trainer, [asked])

    def _asked(self) -> str | None:
        """Returns what this rank asks for: to stop for a signal, by its name, or to save now."""
        every = self._options.every_seconds
        is_due = every is not None and monotonic() - self._last_time >= every
        return self._signals.received or (_BY_CLOCK if is_due else None)

    def _obey(self, trainer: TrainingEngine, asked: Sequence[str | None]) -> None:
        """Saves, and for a signal stops, as any rank asks."""
        if any(asked) and self._writer.lock.is_taken:  # else a signal has ended the wait for it
            self.defer(trainer)
        reason = _signal_of(asked)
        if reason is not None:
            self._is_stopping = True
            trainer.stop_on_all_ranks(reason)

    @contextmanager
    def watching(self, trainer: TrainingEngine) -> Iterator[None]:
        """Around a run: signals are noted, and its last state is saved."""
        check_directory(self._directory)
        warn_if_full(self._directory, trainer)
        if not is_interrupted(trainer):
            self._signals.forget()
            self._is_stopping = self._is_saving = False
            self._uncertain = {}
            self._begin(trainer)
        with self._signals.noted():
            self._take(trainer)
            self._writer.warn_of_others(trainer)
            self._last_time = monotonic()
            with self._finishing(trainer):
                try:
                    yield
                except BaseException as error:
                    self._save_after_failure(trainer, error)
                    raise
                if trainer.stop_reason == "exception" and not is_interrupted(trainer):
                    self._save_after_failure(trainer, None)
                if _has_ended(trainer) and self._writer.lock.is_taken:
                    if self._is_signalled(trainer) or self._options.at_end:
                        self._save_now(trainer)
                    self._writer.note_end(trainer)
            if _has_ended(trainer):
                self._is_signalled(trainer)

    def wait_for_others(self) -> None:
        """Waits, if it is to, for a run that is about to end: what it saves last is resumed."""
        lock = self._writer.lock
        if self._options.on_busy == "wait" and not lock.is_taken:
            lock.take()
            lock.release()
        self._writer.note_newest()

    def _take(self, trainer: TrainingEngine) -> None:
        """Takes the directory for a run, unless it was interrupted, or a signal ends the wait."""
        lock = self._writer.lock
        is_taken_anew = not lock.is_taken
        if lock.take(lambda: self._signals.received is not None) and is_taken_anew:
            self._writer.check_newest()

    def release(self) -> None:
        """Gives the directory back, unless a run goes on: then its end does so."""
        if not (self.is_in_run or self._writer.is_writing):  # where Ctrl-C broke off the wait
            self._writer.lock.release()

    def _begin(self, trainer: TrainingEngine) -> None:
        """Notes that there is nothing to save yet, unless a failure left a save undone."""
        if not self._is_after_failure:
            self._writer.begin(trainer)

    def _is_signalled(self, trainer: TrainingEngine) -> bool:
        """Whether a signal has come; if so, that is why the run ends."""
        reason = _signal_of(self._writer.ranks.gather(self._signals.received))
        if reason is not None and not self._is_stopping:
            trainer.stop_reason = reason
        return reason is not None

    @contextmanager
    def _finishing(self, trainer: TrainingEngine) -> Iterator[None]:
        """Around a run: what a thread writes is complete, or its failure told, when it ends."""
        if not is_interrupted(trainer):
            self._is_after_failure = trainer.stop_reason == "exception"
        try:
            yield
        except BaseException as error:
            try:
                self._writer.wait()
            except Exception as failure:
                note(error, f"A checkpoint could not be written either: {failure!r}")
            raise
        self._writer.wait()

    def _save(self, trainer: TrainingEngine) -> None:
        # Ended by a validation, the epoch is to be completed first; and a window may be open.
        if is_running(trainer) and (trainer.is_leaving_epoch or not trainer.is_between_steps):
            self.defer(trainer)
        elif is_interrupted(trainer) and not trainer.is_between_steps:
            raise RuntimeError(
                "a checkpoint must be taken between two steps, and this run was interrupted within "
                "one: save at Events.INTERRUPT, which waits for the end of the step, or interrupt "
                "at TrainEvents.STEP_COMPLETED"
            )
        else:
            self._save_now(trainer)
            self._last_time = monotonic()
            if self._is_stopping and not self._options.background:
                self._signals.complete()

    def _save_now(self, trainer: TrainingEngine) -> None:
        self._is_saving = True
        self._writer.save(trainer, self._uncertain)
        self._is_saving = False

    def end_runs_without_workers(self, trainer: TrainingEngine) -> Callable[[], None]:
        """Ends a run after a signal where a worker of its loader is found dead: it has served.

        Returns:
            What undoes this.
        """

        def ending(engine: Any) -> Iterator[None]:  # it is the trainer
            try:
                yield
            except (RuntimeError, OSError, EOFError) as error:
                is_alone = self._writer.ranks.size == 1
                if not (is_alone and self._signals.received and is_death_of_worker(error)):
                    raise
                self._uncertain = uncertain_parts(engine, error)
                engine.stop_reason = self._signals.received
                engine.terminate(resumable=True)

        channels, hooks = channels_of(trainer), [Hook("on_loop", ending)]
        channels.add(hooks)
        return lambda: channels.drop(hooks)

    def _save_after_failure(self, trainer: TrainingEngine, error: BaseException | None) -> None:
        """Saves the last step boundary if a signal had asked for it, and says what became of it."""
        name = self._signals.received
        if name is None or isinstance(error, GeneratorExit) or is_interrupted(trainer):
            return
        if self._writer.has_saved(trainer) or not self._writer.lock.is_taken:
            return
        before, step = self._newest, trainer.state.optimizer_step
        reason = why_not_saved(trainer, error, self._writer.ranks.size)
        if self._is_saving:
            reason = "it was the save that failed"
        if reason is None:
            self._uncertain = uncertain_parts(trainer, error)
            try:
                self._save_now(trainer)
                self._writer.wait()
            except Exception as failure:
                reason = f"that failed too: {failure!r}"
        if self._newest is not before:
            text = f"{name} had come before: the state of step {step} was saved at {self._newest}"
        else:
            text = f"{name} had come before, but the state of step {step} was not saved: {reason}"
        if error is not None:
            note(error, text)
        else:
            warnings.warn(text, stacklevel=2)


class _Owning(AbstractContextManager[None, None]):
    """Around all else of a run: gives the directory back at its end, unless it is interrupted.

    Not a generator, whose end could not be repeated if Ctrl-C broke it off.
    """

    def __init__(self, triggers: CheckpointTriggers, trainer: TrainingEngine) -> None:
        self._triggers = triggers
        self._trainer = trainer

    def __enter__(self) -> None:
        self._triggers.is_in_run = True

    def __exit__(self, *failure: object) -> None:
        self._triggers.is_in_run = False
        if not is_interrupted(self._trainer):
            self._triggers.release()


def _signal_of(asked: Sequence[str | None]) -> str | None:
    """Returns the signal that the first rank has received, and which rank that is; else None."""
    signals = [None if each == _BY_CLOCK else each for each in asked]
    first = next((each for each in signals if each is not None), None)
    return None if first is None else first + name_ranks([each == first for each in signals])


def _has_ended(trainer: TrainingEngine) -> bool:
    """Whether a run is over that has not failed: neither interrupted nor still going on."""
    is_over = not (is_interrupted(trainer) or is_running(trainer))
    return is_over and trainer.stop_reason != "exception"
