"""The triggers of a save: a schedule, the clock, a signal, or the end of a run.

A trigger makes a save due: the save is made once all other handlers of the present event have
returned. ``writer.py`` has a table of all four stages of a save.

A step boundary is a point between two optimizer steps. A checkpoint can be saved only at a step
boundary.
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
from ignite_hooks.checkpoint.writer import CheckpointWriter
from ignite_hooks.core.due_on_resume import add_due_entry
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.run_scope import enter_at_each_run
from ignite_hooks.core.scopes import add_note
from ignite_hooks.core.stop_requests import StopMonitor
from ignite_hooks.core.stop_requests import add_stop_monitor
from ignite_hooks.core.time_accounts import charged_to
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.event_channels import channels_of
from ignite_hooks.processes.decisions import name_ranks

__all__ = ["CheckpointTriggers"]

# A rank requests a save by a text: the name of the signal that it has received, or the text below
# if `every_seconds` have passed.
_CLOCK = "clock"


class CheckpointTriggers:
    """The triggers of one ``SaveCheckpoint`` on one trainer, and the writer that they call.

    Args:
        options: the options of the handler.
        trainer: the trainer; no strong reference is kept.
        announce: is called with the folder of each complete checkpoint, before CHECKPOINT_SAVED is
            fired.
    """

    def __init__(
        self, options: SaveOptions, trainer: TrainingEngine, announce: Callable[[Path], None]
    ) -> None:
        self._options = options
        self._directory = Path(options.directory)
        self._signals = StopSignals(options.on_signals, options.grace_seconds)
        self._is_stopping = False  # True if all processes know of a signal that ends the run
        self._is_saving = False  # True during a save, and after a save that has failed
        # The parts of the state that a failure of the run may have changed since the last step
        # boundary. Maps the name of a part, for example "handlers", to the reason.
        self._uncertain: dict[str, str] = {}
        self._newest: Path | None = None  # the folder of the last complete checkpoint
        self._last_save_time = monotonic()
        # `_is_after_failure` is True if the run before the present one has failed, and `is_in_run`
        # is True while a run is in progress.
        self._is_after_failure = self.is_in_run = False
        self._scheduled_iteration = -1  # the last iteration at which a schedule asked for a save
        # The trainer keeps the two functions below. They refer to the trainer weakly: otherwise the
        # trainer and the functions would keep each other alive.
        trainer_ref = ref(trainer)

        def announce_saved(folder: Path) -> None:
            self._newest = folder
            announce(folder)
            trainer_ref().fire_event(TrainEvents.CHECKPOINT_SAVED)  # type: ignore[union-attr]

        def save() -> None:
            self._save(trainer_ref())  # type: ignore[arg-type]

        self._writer = CheckpointWriter(options, trainer, announce_saved)
        is_single_process = self._writer.ranks.size == 1
        # True if after_step() only has to check whether a signal has arrived.
        self._waits_for_signals_only = (
            is_single_process and options.every_seconds is None and not options.background
        )
        self.save = save
        # Each run enters a _LockScope, and within it the scope `_waiting_for_writer`. At the end of
        # the run, the inner scope waits until the last file is written. Then the _LockScope
        # releases the lock.
        enter_at_each_run(trainer, lambda trainer: _LockScope(self, trainer))
        enter_at_each_run(trainer, self._waiting_for_writer)

    def defer(self, trainer: TrainingEngine) -> None:
        """Defers a save until after the present event's handlers and a due validation."""
        trainer.defer(self.save, Turn.CHECKPOINT)

    def schedule(self, trainer: TrainingEngine) -> None:
        """Defers a save that a schedule has requested.

        If a signal breaks off the validation of this step, the state is saved at once, without the
        metrics of the validation. When the run continues or is resumed, it first repeats the
        validation, and then saves a second time, with the metrics.
        """
        self._scheduled_iteration = trainer.place.progress.iteration
        self.defer(trainer)

    def break_off_validations(self, trainer: TrainingEngine) -> Callable[[], None]:
        """Lets a signal break off a validation.

        Returns:
            A function that undoes this.
        """
        ranks = self._writer.ranks

        def is_due() -> bool:
            return self._scheduled_iteration == trainer.place.progress.iteration

        def save_and_stop() -> None:
            # The trainer has broken off a validation, and has set its deferred callbacks aside for
            # the next run, which repeats the validation first. A save that a schedule has requested
            # stays set aside, because it must contain the metrics of the validation. Any other save
            # is made in the present run instead: _handle_requests() defers it once more.
            if not is_due():
                trainer.cancel(self.save)
            self._handle_requests(trainer, ranks.gather(self._own_request()))

        monitor = StopMonitor(
            lambda: self._signals.received is not None,
            None if ranks.size == 1 else ranks.any_of,
            save_and_stop,
        )
        # With add_due_entry(), a checkpoint lists the scheduled save as due. So a run that resumes
        # from the checkpoint repeats the validation and then saves.
        undo = [add_due_entry(trainer, "saves", is_due, lambda: self.schedule(trainer))]
        if self._options.on_signals:
            undo.append(add_stop_monitor(trainer, monitor))

        def remove() -> None:
            for each in undo:
                each()

        return remove

    def check_state(self, trainer: TrainingEngine) -> None:
        """Raises an error, before the first batch, if the state cannot be saved.

        If the lock of the directory is not held, the method ends the run without a check.
        """
        if not self._writer.lock.is_held:
            # A signal has ended the wait for the lock, and without the lock nothing may be saved.
            trainer.terminate(resumable=True)
            return
        # around_run() has noted the position, but for a new run the trainer has since reset its
        # counters.
        self._note_start(trainer)
        self._writer.rehearse(trainer)

    def request_on_all_ranks(self, trainer: TrainingEngine) -> Callable[[], None]:
        """Makes all ranks handle the signals and the clocks of all ranks at the same step.

        Returns:
            A function that undoes this.
        """
        return trainer.request_on_all_ranks(
            self._own_request, lambda requests: self._handle_requests(trainer, requests)
        )

    def after_step(self, trainer: TrainingEngine) -> None:
        """Saves after a step if a signal or the clock has requested it.

        The method also announces a checkpoint that was completed in the background. With several
        processes, ``request_on_all_ranks`` is used instead of this method.
        """
        if self._waits_for_signals_only and self._signals.received is None:
            return
        if self._options.background:
            self._writer.announce_if_done()
        request = self._own_request()
        if request is not None:
            self._handle_requests(trainer, [request])

    def _own_request(self) -> str | None:
        """Returns the request of this rank; None if there is none.

        The name of a signal is a request to save and stop. ``_CLOCK`` is a request to save only.
        """
        every = self._options.every_seconds
        is_due = every is not None and monotonic() - self._last_save_time >= every
        return self._signals.received or (_CLOCK if is_due else None)

    def _handle_requests(self, trainer: TrainingEngine, requests: Sequence[str | None]) -> None:
        """Defers a save if any rank has a request, and stops the run if a request is a signal."""
        # If a signal has ended the wait for the lock, nothing may be written.
        if any(requests) and self._writer.lock.is_held:
            self.defer(trainer)
        reason = _first_signal(requests)
        if reason is not None:
            self._is_stopping = True
            trainer.stop_on_all_ranks(reason)

    @contextmanager
    def around_run(self, trainer: TrainingEngine) -> Iterator[None]:
        """A scope around a run, which notes signals, takes the lock, and saves at the end."""
        # The checks were made when the handler was attached, but the disk may have changed since.
        check_directory(self._directory)
        warn_if_full(self._directory, trainer)
        if not is_interrupted(trainer):
            self._signals.forget()
            self._is_stopping = self._is_saving = False
            self._uncertain = {}
            self._note_start(trainer)
        with self._signals.noted():
            self._take_lock(trainer)
            self._writer.warn_of_other_runs(trainer)
            self._last_save_time = monotonic()
            with self._waiting_for_writer(trainer):
                try:
                    yield
                except BaseException as error:
                    self._save_after_failure(trainer, error)
                    raise
                # A handler of EXCEPTION_RAISED can handle the exception of a failed run. In this
                # case no exception arrives at the `yield` above.
                if trainer.stop_reason == "exception" and not is_interrupted(trainer):
                    self._save_after_failure(trainer, None)
                if _has_ended_well(trainer) and self._writer.lock.is_held:
                    if self._has_signal(trainer) or self._options.at_end:
                        self._save_now(trainer)
                    with charged_to(trainer, "checkpoint"):
                        self._writer.note_end(trainer)
            if _has_ended_well(trainer):
                # Sets the stop reason if a signal has arrived during the last save.
                self._has_signal(trainer)

    def wait_for_others(self) -> None:
        """Waits for another run if ``on_busy="wait"``, and notes the newest checkpoint.

        The wait lets a resume find the last checkpoint that the other run saves to the directory.
        This method does not keep the lock: the trainer takes it when its own run begins.
        """
        lock = self._writer.lock
        if self._options.on_busy == "wait" and not lock.is_held:
            lock.acquire()
            lock.release()
        self._writer.note_newest()

    def _take_lock(self, trainer: TrainingEngine) -> None:
        """Takes the lock of the directory for a run. A signal ends the wait for the lock.

        If the run continues after an interruption, it still holds the lock, and nothing is done.
        """
        lock = self._writer.lock
        was_taken = lock.is_held
        if lock.acquire(lambda: self._signals.received is not None) and not was_taken:
            self._writer.check_newest()

    def release(self) -> None:
        """Releases the lock of the directory.

        During a run nothing is done, because the end of the run releases the lock.
        """
        # After a run, the background thread may still be writing, because Ctrl-C can break off the
        # wait for it.
        if not (self.is_in_run or self._writer.is_writing):
            self._writer.lock.release()

    def _note_start(self, trainer: TrainingEngine) -> None:
        """Counts the present position as saved already, so that it is not saved once more.

        After a failed run the method does nothing. The last steps of that run may be in no
        checkpoint, so they must not count as saved.
        """
        if not self._is_after_failure:
            self._writer.note_start(trainer)

    def _has_signal(self, trainer: TrainingEngine) -> bool:
        """Returns whether a rank has received a signal; if so, sets the trainer's stop reason."""
        reason = _first_signal(self._writer.ranks.gather(self._signals.received))
        # If `_is_stopping`, the signal has ended the run, and the stop reason is set already.
        if reason is not None and not self._is_stopping:
            trainer.stop_reason = reason
        return reason is not None

    @contextmanager
    def _waiting_for_writer(self, trainer: TrainingEngine) -> Iterator[None]:
        """A scope around a run, which waits at the end until the background thread has written.

        If the thread has failed, this scope raises the error of the thread. If the run has failed
        too, the error of the run is raised instead, with a note that describes the error of the
        thread.
        """
        if not is_interrupted(trainer):
            self._is_after_failure = trainer.stop_reason == "exception"
        try:
            yield
        except BaseException as error:
            try:
                self._wait_for_writer(trainer)
            except Exception as failure:
                add_note(error, f"A checkpoint could not be written either: {failure!r}")
            raise
        self._wait_for_writer(trainer)

    def _wait_for_writer(self, trainer: TrainingEngine) -> None:
        with charged_to(trainer, "checkpoint"):
            self._writer.wait()

    def _save(self, trainer: TrainingEngine) -> None:
        # The save is deferred again in two cases: terminate_epoch() was called, so the epoch has to
        # be completed first; or gradients are being accumulated, so the step has to be made first.
        if is_running(trainer) and (trainer.is_leaving_epoch or not trainer.is_between_steps):
            self.defer(trainer)
        elif is_interrupted(trainer) and not trainer.is_between_steps:
            raise RuntimeError(
                "a checkpoint must be taken between two steps, but this run was interrupted within "
                "a step: save at Events.INTERRUPT, which waits for the end of the step, or "
                "interrupt at TrainEvents.STEP_COMPLETED"
            )
        else:
            self._save_now(trainer)
            self._last_save_time = monotonic()
            # The save that the signal asked for is complete. From now on, a further signal does not
            # count as part of the same request: it calls the signal handler that was set before the
            # run. A save in the background is not complete yet.
            if self._is_stopping and not self._options.background:
                self._signals.mark_complete()

    def _save_now(self, trainer: TrainingEngine) -> None:
        # If the save fails, the flag stays True, which tells _save_after_failure() the cause of the
        # failure.
        self._is_saving = True
        with charged_to(trainer, "checkpoint"):
            self._writer.save(trainer, self._uncertain)
        self._is_saving = False

    def end_runs_without_workers(self, trainer: TrainingEngine) -> Callable[[], None]:
        """Makes a run end without an error if a loader worker dies after a signal has arrived.

        If a signal is sent to all processes of a job, the workers of a ``DataLoader`` die, unless
        they ignore the signal. A dead worker gives no more batches, but the state of the last step
        boundary can be saved.

        Returns:
            A function that undoes this.
        """

        def end_well(engine: Any) -> Iterator[None]:  # the engine is the trainer
            try:
                yield
            except (RuntimeError, OSError, EOFError) as error:
                is_single_process = self._writer.ranks.size == 1
                signal_name = is_single_process and self._signals.received
                if not (signal_name and is_death_of_worker(error)):
                    raise
                self._uncertain = uncertain_parts(engine, error)
                engine.stop_reason = self._signals.received
                engine.terminate(resumable=True)

        channels, hooks = channels_of(trainer), [Hook("on_loop", end_well)]
        channels.add(hooks)
        return lambda: channels.drop(hooks)

    def _save_after_failure(self, trainer: TrainingEngine, error: BaseException | None) -> None:
        """Saves the state of the last step boundary of a failed run, if a signal has requested it.

        Nothing is done without a signal, or if the state is saved already. A note on the error says
        whether the state was saved.

        Args:
            trainer: the trainer, whose run has failed.
            error: the exception that has ended the run. The note is added to this exception. None
                if a handler of EXCEPTION_RAISED has handled the exception. In this case a warning
                replaces the note.
        """
        name = self._signals.received
        # GeneratorExit is no failure: it closes an interrupted run that will not continue.
        if name is None or isinstance(error, GeneratorExit) or is_interrupted(trainer):
            return
        if self._writer.has_saved(trainer) or not self._writer.lock.is_held:
            return
        before, step = self._newest, trainer.state.optimizer_step
        reason = why_not_saved(trainer, error, self._writer.ranks.size)
        if self._is_saving:
            reason = "the save itself failed"
        if reason is None:
            self._uncertain = uncertain_parts(trainer, error)
            try:
                self._save_now(trainer)
                self._wait_for_writer(trainer)
            except Exception as failure:
                reason = f"the save failed too: {failure!r}"
        if self._newest is not before:
            text = (
                f"{name} had asked for a save before the failure: the state of step {step} was "
                f"saved at {self._newest}"
            )
        else:
            text = (
                f"{name} had asked for a save before the failure, but the state of step {step} was "
                f"not saved: {reason}"
            )
        if error is not None:
            add_note(error, text)
        else:
            warnings.warn(text, stacklevel=2)


class _LockScope(AbstractContextManager[None, None]):
    """A scope around a run, which releases the lock at the end, unless the run is interrupted.

    If Ctrl-C breaks off ``__exit__``, ``__exit__`` is called again later. So the scope is a class
    and not a generator: the code after the ``yield`` of a generator cannot be run a second time.
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


def _first_signal(requests: Sequence[str | None]) -> str | None:
    """Returns the name of the signal that a rank has received; None if no rank has received one.

    If several ranks have received signals, the signal of the lowest rank is taken. If some ranks
    have not received this signal, the text names the lowest rank that has: "SIGTERM on rank 1".
    """
    signals = [None if each == _CLOCK else each for each in requests]
    first = next((each for each in signals if each is not None), None)
    return None if first is None else first + name_ranks([each == first for each in signals])


def _has_ended_well(trainer: TrainingEngine) -> bool:
    """Returns whether the run is over, and has neither failed nor been interrupted."""
    is_over = not (is_interrupted(trainer) or is_running(trainer))
    return is_over and trainer.stop_reason != "exception"
