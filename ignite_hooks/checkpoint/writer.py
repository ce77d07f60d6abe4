"""Takes checkpoints of one trainer, each in four stages.

=======  =================================  =================================================
due      ``triggers.CheckpointTriggers``    a schedule, the clock, a signal or the end of the
                                            run asks for a save; the save waits until all
                                            other handlers of the event have returned
capture  ``state.TrainingState``            the whole state is turned into tensors and plain
                                            data, which are the contents of the files; with
                                            ``background`` they are copied
write    ``contents.Content``,              the files are written to a new folder, synced to
         ``durable``                        the disk and hashed
commit   ``store.CheckpointStore``          the manifest, which lists all other files, gets
                                            its final name: now the folder is a checkpoint;
                                            older checkpoints are removed, and
                                            CHECKPOINT_SAVED fires
=======  =================================  =================================================

``CheckpointWriter._save`` performs the last three stages. With ``background``, it only performs the
capture: a thread (``BackgroundWriter``) writes and commits while training continues.
"""

import os
import warnings
from collections.abc import Callable
from collections.abc import Mapping
from datetime import datetime
from datetime import timezone
from pathlib import Path
from threading import Thread
from threading import main_thread
from types import MappingProxyType
from typing import Any

from ignite_hooks.checkpoint.contents import Content
from ignite_hooks.checkpoint.description import description_of
from ignite_hooks.checkpoint.durable import copy_file_mode
from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.durable import sync
from ignite_hooks.checkpoint.durable import sync_tree
from ignite_hooks.checkpoint.layout import INCOMPLETE
from ignite_hooks.checkpoint.layout import SHARDED
from ignite_hooks.checkpoint.lineage import lineage_of
from ignite_hooks.checkpoint.lock import DirectoryLock
from ignite_hooks.checkpoint.manifest import FileRecord
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.metric_value import MetricValue
from ignite_hooks.checkpoint.options import SaveOptions
from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.state import digests_of
from ignite_hooks.checkpoint.state import training_id
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.place import Progress
from ignite_hooks.core.time_accounts import charged_in_background
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["BackgroundWriter", "CheckpointWriter"]

_THREAD_NAME = "ignite_hooks.checkpoint"
_NO_REASONS: Mapping[str, str] = MappingProxyType({})


class CheckpointWriter:
    """Writes the checkpoints of one trainer to one directory.

    The writer saves only if the trainer has advanced since the last save.

    Args:
        options: the options of ``SaveCheckpoint``.
        trainer: the trainer, which must outlive the writer.
        announce: is called with the folder when a checkpoint is complete.

    Attributes:
        ranks: the rank of this process, and the collectives that the training thread uses.
        lock: the lock of the directory. It allows only one run at a time to write there.
    """

    def __init__(
        self, options: SaveOptions, trainer: TrainingEngine, announce: Callable[[Path], None]
    ) -> None:
        self.ranks = Ranks(trainer.accelerator)
        # The position of the last save, and the position of the save in progress; see _position().
        self._saved_at: tuple[Progress, int, bool] | None = None
        self._saving_at: tuple[Progress, int, bool] | None = None
        self._last_saved: Checkpoint | None = None  # the last checkpoint that this run has saved
        self._options = options
        self._store = CheckpointStore(Path(options.directory))
        # Decides whether the next checkpoints belong to the same run as the checkpoint that the
        # trainer has resumed from, or to a new run.
        self._lineage = lineage_of(trainer)
        self._real_directory = os.path.realpath(options.directory)
        self._lineage.directories.add(self._real_directory)
        self.lock = DirectoryLock(
            Path(options.directory), self.ranks, options.on_busy, options.wait_seconds
        )
        self._announce = announce
        self._writer = BackgroundWriter()
        # The background thread uses its own process group, so that its collectives do not mix with
        # those of the training thread.
        self._writing_ranks = Ranks(trainer.accelerator) if options.background else self.ranks
        # A complete checkpoint for which CHECKPOINT_SAVED has not fired yet.
        self._unannounced: Path | None = None
        # The number of the newest checkpoint in the directory, as far as this writer knows.
        self._newest_known: int | None = None
        self._metric_value = MetricValue(options.metric, trainer)

    def save(self, trainer: TrainingEngine, uncertain: Mapping[str, str] = _NO_REASONS) -> None:
        """Takes a checkpoint now.

        The trainer must be at a step boundary, that is between two optimizer steps. During a run
        the lock is held already. Between two runs the lock is taken for this save.

        Args:
            trainer: the trainer.
            uncertain: the parts of the state that a failure of the run may have changed since the
                step that is saved. The dict maps the name of each part in the ``ResumeReport``, for
                example "handlers", to the reason.

        Raises:
            OSError: the checkpoint could not be written; all older ones are still there.
            RuntimeError: another run writes to the directory.
            TypeError: a state cannot be saved without pickle.
        """
        is_between_runs = not (self.lock.is_held or is_running(trainer))
        self.lock.acquire()
        try:
            self._save(trainer, uncertain)
            if is_between_runs:
                self.wait()
        finally:
            if is_between_runs and not self.is_writing:
                self.lock.release()

    def _save(self, trainer: TrainingEngine, uncertain: Mapping[str, str]) -> None:
        is_background = self._options.background
        if self.has_saved(trainer):
            if not is_background:
                # The last checkpoint is complete. But if an error came just after its commit, the
                # checkpoint was not announced yet.
                self._announce_once()
            return
        self._saving_at = _position(trainer)
        self.wait()
        state = self._training_state(trainer, uncertain)
        files = self._capture(state)
        draft = self.ranks.call_on_rank_0(lambda: self._draft_manifest(trainer, files))
        folder = None
        if state.is_sharded:
            # A model that is split over processes is written by functions of Accelerate, which
            # cannot run in the background. So the folder is created and the model is written here.
            folder = self._begin(draft, self.ranks)
            state.write_sharded(folder)
        if is_background:
            copied = {name: content.copied() for name, content in files.items()}
            ranks = self._writing_ranks
            charged = charged_in_background(trainer, "checkpoint")

            def write() -> None:
                with charged:
                    self._write_and_commit(copied, draft, ranks, folder)

            self._writer.start(write)
        else:
            self._write_and_commit(files, draft, self.ranks, folder)
        self._saved_at = _position(trainer)
        if not is_background:
            self._announce_once()

    def _training_state(
        self, trainer: TrainingEngine, uncertain: Mapping[str, str] = _NO_REASONS
    ) -> TrainingState:
        options = self._options
        return TrainingState(
            trainer, options.also or {}, options.safe_serialization, options.trust_pickle, uncertain
        )

    def _capture(self, state: TrainingState) -> dict[str, Content]:
        """Returns the contents of the files that this rank writes, by the names of the files.

        With several ranks, digests show whether the parameters are the same on all ranks, and which
        states of handlers and other objects differ from those of rank 0. Rank 0 writes all of its
        states, each other rank only those that differ.
        """
        files: dict[str, Content] = {}
        objects: dict[str, Any] = {}
        rank, is_single_process = self.ranks.rank, self.ranks.size == 1

        def inspect() -> tuple[Any, dict[str, Any], dict[str, str]]:
            state.check()
            objects.update(state.objects())
            if is_single_process:
                return None, {}, {}
            digest = state.trainer.parameter_digest()
            unknown = {**state.trainer.unknown_parts(), **state.unknown_parts()}
            return (digest, {}, unknown) if rank else (digest, digests_of(objects), {})

        # With several ranks, inspect() returns three values on each rank:
        # - the digest of the parameters;
        # - the digests of the states of rank 0, with which the other ranks compare their states (an
        #   empty dict on the other ranks);
        # - the parts of the state of this rank that may be unsaved, with the reasons (an empty dict
        #   on rank 0, because state.files() computes the parts of rank 0).
        findings = self.ranks.call_on_all_ranks(inspect)
        if not is_single_process:
            state.trainer.compare_parameters([digest for digest, _, _ in findings])
        rank_0_digests, unknown = findings[0][1], [parts for _, _, parts in findings]
        self.ranks.call_on_all_ranks(
            lambda: files.update(state.files(rank, objects, rank_0_digests, unknown))
        )
        return files

    def _draft_manifest(self, trainer: TrainingEngine, files: Mapping[str, Content]) -> Manifest:
        """Returns the manifest, except its number and its list of files, which the commit sets."""
        feed = trainer.feed
        assert feed is not None  # the capture, which comes before, has read the state of the feed
        position = feed.position
        if not is_running(trainer):
            # After the last `run()` of this trainer, another trainer may have resumed from a
            # checkpoint and continued the training. In this case the new checkpoint begins a
            # branch, a new run with its own identifier.
            self._lineage.decide_run(trainer)
        return Manifest(
            number=1,
            training=training_id(trainer),
            saved_at=datetime.now(timezone.utc),
            step=trainer.state.optimizer_step,
            epoch=trainer.place.progress.epochs,
            iteration=trainer.place.progress.iteration,
            data_pass=position.data_pass,
            batches=position.batches,
            world_size=self.ranks.size,
            metric=self._options.metric,
            metric_value=self._metric_value.current(trainer),
            metric_mode=None if self._options.metric is None else self._options.mode,
            ended_by=trainer.ended_by,
            files={},
            **description_of(trainer, files, self.ranks.size),
        )

    def _begin(self, draft: Manifest, ranks: Ranks) -> Path:
        """Creates the folder of a new checkpoint on rank 0, and returns its path on all ranks."""

        def create_folder() -> Path:
            self.lock.check()
            return self._store.begin(draft.step)

        return ranks.call_on_rank_0(create_folder)

    def _write_and_commit(
        self, files: dict[str, Content], draft: Manifest, ranks: Ranks, folder: Path | None
    ) -> None:
        """Writes the files of this rank; then rank 0 makes the folder a checkpoint.

        With ``background`` this method runs in the background thread.

        Args:
            files: the contents of the files of this rank, by name.
            draft: the manifest without its number and its files.
            ranks: the collectives of the thread that calls the method.
            folder: the folder of the checkpoint; None if it is not created yet.
        """
        if folder is None:
            folder = self._begin(draft, ranks)
        try:
            records = ranks.call_on_all_ranks(lambda: _write_files(folder, files))
            ranks.call_on_rank_0(lambda: self._commit(folder, records, draft))
        except Exception:
            if ranks.is_rank_0 and self.lock.is_held:
                self._store.discard(folder)
            raise
        self._unannounced = folder

    def _commit(self, folder: Path, records: list[dict[str, FileRecord]], draft: Manifest) -> None:
        """Commits a checkpoint with its manifest, and removes older checkpoints, on rank 0."""
        files = {name: record for rank_files in records for name, record in rank_files.items()}
        if (folder / SHARDED).is_dir():
            paths = sorted(path for path in (folder / SHARDED).rglob("*") if path.is_file())
            copy_file_mode(folder / INCOMPLETE, paths)
            sync_tree(folder / SHARDED)
            files |= {path.relative_to(folder).as_posix(): file_record(path) for path in paths}
        # While the files were written, another run may have taken the lock, because the lock seemed
        # to be abandoned. In that case check() raises an error.
        self.lock.check()
        number = self._store.next_number()
        manifest = draft.model_copy(update={"files": files, "number": number})
        # The number is noted before the commit, because the new checkpoint must count as saved by
        # this trainer even if Ctrl-C comes just after the commit.
        self._lineage.known_numbers[self._real_directory] = number
        self._store.commit(folder, manifest)
        self._last_saved, self._newest_known = Checkpoint(folder, manifest), number
        if self.ranks.size == 1:
            # The attributes are set now, because the complete checkpoint must not be saved again if
            # anything below fails. With several ranks, this method runs on rank 0 alone, and all
            # ranks must repeat a save together. So _write_and_commit() and _save() set the
            # attributes later, on all ranks.
            self._saved_at, self._unannounced = self._saving_at, folder
        options = self._options
        try:
            self._store.retain(
                manifest.training,
                None if options.keep_last == "all" else options.keep_last,
                options.keep_best,
                options.metric,
                options.mode,
            )
        except OSError as error:
            warnings.warn(f"an old checkpoint could not be removed: {error}", stacklevel=2)

    def _announce_once(self) -> None:
        """Announces the last complete checkpoint, unless it was announced already."""
        folder, self._unannounced = self._unannounced, None
        if folder is not None:
            self._announce(folder)

    def has_saved(self, trainer: TrainingEngine) -> bool:
        """Returns whether the present position of the trainer is saved already.

        The position at which a run begins counts as saved too.
        """
        return _position(trainer) == self._saved_at

    def note_end(self, trainer: TrainingEngine) -> None:
        """Notes in the last checkpoint which handler has ended the run for good.

        For example, an ``EarlyStopping`` may have ended the run after the save of the same step.
        Without the name of the handler in the manifest, a resume would train on. If no handler has
        ended the run, or if the trainer has advanced since the save, nothing is done.
        """
        ended_by = trainer.ended_by
        if ended_by is None or not self.has_saved(trainer):
            return
        self.wait()

        def amend() -> None:
            if self._last_saved is not None and self._last_saved.manifest.ended_by is None:
                folder, manifest = self._last_saved
                manifest = manifest.model_copy(update={"ended_by": ended_by})
                self.lock.check()
                self._store.amend(folder, manifest)
                self._last_saved = Checkpoint(folder, manifest)

        self.ranks.call_on_rank_0(amend)

    def rehearse(self, trainer: TrainingEngine) -> None:
        """Captures the state and discards the result.

        If a state cannot be saved, the error comes now, and not only at the first save.
        """
        self._capture(self._training_state(trainer))

    def note_start(self, trainer: TrainingEngine) -> None:
        """Counts the present position as saved: nothing is saved until the trainer advances."""
        self._saved_at = _position(trainer)
        self._last_saved = None  # note_end() must not change a checkpoint from an earlier run

    def warn_of_other_runs(self, trainer: TrainingEngine) -> None:
        """Warns if the directory has checkpoints of other runs, and none of this run.

        The method first decides whether the trainer continues its run or begins a branch. A branch
        is a new run, which has no checkpoints yet.
        """
        if not self.ranks.is_rank_0:
            return
        self._lineage.decide_run(trainer)
        found = [each.manifest for each in self._store.checkpoints()]
        if found and training_id(trainer) not in [each.training for each in found]:
            directory = str(self._store.directory)
            warnings.warn(
                f"{directory} has {len(found)} checkpoints of other runs, the newest of step "
                f"{found[0].step}: they stay in the directory, and a resume from it loads the "
                "newest checkpoint of all runs; continue the newest of the other runs with "
                f"resume_from=ResumeCheckpoint({directory!r}), or give this run its own directory",
                stacklevel=2,
            )

    def note_newest(self) -> None:
        """Notes which checkpoint of the directory is the newest, for ``check_newest``.

        Call this method before a resume.
        """
        if self.ranks.is_rank_0:
            self._newest_known = self._newest_number()

    def check_newest(self) -> None:
        """Raises an error if another run has saved checkpoints since ``note_newest``.

        The trainer has not resumed from these checkpoints, so it would train again the steps that
        the other run has trained. All ranks must call this method together.

        Raises:
            RuntimeError: there are such checkpoints, and the trainer must start at the newest one.
        """

        def check() -> None:
            directory, lineage = self._store.directory, self._lineage
            # The trainer must start at the newest checkpoint in two cases: it has waited for
            # another run, or it has resumed from this directory and has not trained after the
            # resume. Otherwise its run is a new one, which may start from scratch or at an older
            # checkpoint, for example one that the user has given by its name.
            must_be_newest = self.lock.has_waited or lineage.has_resumed_from(self._real_directory)
            known = self._newest_known
            is_newest = known is None or self._newest_number() <= known
            if must_be_newest and not is_newest:
                raise RuntimeError(
                    f"{directory} has checkpoints that another run saved after this trainer was "
                    "made, and this run would start before them: make the trainer again, so that "
                    "it resumes from the newest checkpoint"
                )

        self.ranks.call_on_rank_0(check)

    def _newest_number(self) -> int:
        return max((each.manifest.number for each in self._store.checkpoints()), default=0)

    @property
    def is_writing(self) -> bool:
        """Returns whether the background thread is writing now."""
        return self._writer.is_busy

    def wait(self) -> None:
        """Waits until the background thread is done; raises the error of the thread, if any."""
        if self.lock.is_held_by_parent:
            # This process was forked from the process that saves. A fork does not copy the thread,
            # so there is nothing to wait for.
            return
        if self._writer.wait():
            self._announce_once()

    def announce_if_done(self) -> None:
        """Announces the checkpoint of the background thread, if it is complete by now."""
        if not self._writer.is_busy:
            self.wait()


class BackgroundWriter:
    """A thread that makes one call at a time. ``wait`` raises the exception of the call.

    The interpreter does not exit before a call in progress has returned. The class does not use a
    ``ThreadPoolExecutor``, because that accepts no calls after the main thread has ended. A run in
    another thread may still have checkpoints to write then.
    """

    def __init__(self) -> None:
        self._has_call = False
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Returns whether the last call is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, call: Callable[[], None]) -> None:
        """Starts ``call`` in a thread. If there was an earlier call, ``wait`` must come first."""
        thread = Thread(target=self._run, args=[call], name=_THREAD_NAME, daemon=False)
        # The thread is stored before it starts: if Ctrl-C comes just after the start, ``wait`` must
        # know the thread.
        self._thread, self._has_call = thread, True
        try:
            thread.start()
        except BaseException as error:
            if thread.ident is None:
                # The thread never ran, and join() raises for a thread that was not started.
                self._thread = None
                if isinstance(error, RuntimeError) and not main_thread().is_alive():
                    # Since Python 3.12, no thread can start after the main thread has ended. So the
                    # call is made here, and training waits for its end.
                    self._run(call)
                    return
                self._has_call = False
            raise

    def wait(self) -> bool:
        """Waits for the call in progress, and raises its exception.

        Returns:
            True if a call was started after the last ``wait``, even if the call has ended already.
        """
        if not self._has_call:
            return False
        if self._thread is not None:
            self._thread.join()
        self._thread, self._has_call = None, False
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            self._error = error


def _position(trainer: TrainingEngine) -> tuple[Progress, int, bool]:
    """Returns a value that changes whenever there is something new to save.

    The value has three parts:

    - the counters, which a new run resets;
    - the number of batches taken in this process, which is never reset;
    - True if a validation was broken off and has not been repeated yet. When it is repeated, there
      are new results to save, although no counter has changed.
    """
    return trainer.place.progress, trainer.place.taken, trainer.is_broken_off


def _write_files(folder: Path, files: dict[str, Content]) -> dict[str, FileRecord]:
    """Writes files to a folder, syncs them to the disk, and returns their sizes and hashes."""
    paths = {name: folder / name for name in files}
    for name, content in files.items():
        content.write(paths[name])
    copy_file_mode(folder / INCOMPLETE, paths.values())
    for path in paths.values():
        sync(path)
    sync(folder)
    return {name: file_record(path) for name, path in paths.items()}
