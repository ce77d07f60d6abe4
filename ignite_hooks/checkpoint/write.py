"""Takes checkpoints of one trainer: a save is one path of four stages.

=======  =================================  =================================================
due      ``triggers.CheckpointTriggers``    a schedule, the clock, a signal or the end of the
                                            run asks for a save, which waits until all other
                                            handlers of the event have returned
capture  ``state.TrainingState``            the whole state becomes the contents of files,
                                            tensors and plain data; with ``background`` in a
                                            copy
write    ``contents.Content``,              the files, in a new folder; each is synchronized
         ``durable``                        with the disk and hashed
commit   ``store.CheckpointStore``          the renaming of the manifest makes the folder a
                                            checkpoint; older ones are removed, and
                                            CHECKPOINT_SAVED fires
=======  =================================  =================================================

``CheckpointWriter._save`` is the path from capture to commit. With ``background`` the thread of a
``BackgroundWriter`` writes and commits while training continues.
"""

import os
import warnings
from collections.abc import Callable
from collections.abc import Mapping
from datetime import datetime
from datetime import timezone
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any

from ignite_hooks.checkpoint.contents import Content
from ignite_hooks.checkpoint.description import description_of
from ignite_hooks.checkpoint.durable import give_mode_of
from ignite_hooks.checkpoint.durable import record_of
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
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["BackgroundWriter", "CheckpointWriter"]

_THREAD_NAME = "ignite_hooks.checkpoint"
_NOTHING: Mapping[str, str] = MappingProxyType({})


class CheckpointWriter:
    """Saves what a trainer is, if it has moved since the last time.

    Args:
        options: where, and what is kept.
        trainer: of whom; it must outlive this.
        announce: is called with the folder when a checkpoint is complete.
    """

    def __init__(
        self, options: SaveOptions, trainer: TrainingEngine, announce: Callable[[Path], None]
    ) -> None:
        self.ranks = Ranks(trainer.accelerator)
        self._saved_at: tuple[Progress, int, bool] | None = None
        self._last_saved: Checkpoint | None = None  # of this run
        self._saving_at: tuple[Progress, int, bool] | None = None
        self._options = options
        self._store = CheckpointStore(Path(options.directory))
        self._lineage = lineage_of(trainer)
        self._real_directory = os.path.realpath(options.directory)
        self._lineage.directories.add(self._real_directory)
        self.lock = DirectoryLock(
            Path(options.directory), self.ranks, options.on_busy, options.wait_seconds
        )
        self._announce = announce
        self._writer = BackgroundWriter()
        self._writing_ranks = Ranks(trainer.accelerator) if options.background else self.ranks
        self._written: Path | None = None
        self._newest: int | None = None  # the number of the newest checkpoint known of
        self._value = MetricValue(options.metric, trainer)

    def save(self, trainer: TrainingEngine, uncertain: Mapping[str, str] = _NOTHING) -> None:
        """Takes a checkpoint now. The trainer must be at a step boundary.

        A run holds the lock; a save between two runs takes it for itself.

        Args:
            trainer: the trainer.
            uncertain: as in ``TrainingState``.

        Raises:
            OSError: it could not be written; the older ones are all there.
            RuntimeError: another run writes to the directory.
            TypeError: a state cannot be saved without pickle.
        """
        is_between_runs = not (self.lock.is_taken or is_running(trainer))
        self.lock.take()
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
                self._tell()  # unless a failure just after the commit kept it from being told
            return
        self._saving_at = _place(trainer)
        self.wait()
        state = self._state(trainer, uncertain)
        files = self._capture(state)
        draft = self.ranks.first_alone(lambda: self._draft(trainer, files))
        folder = None
        if state.is_sharded:  # Accelerate writes, so that training has to wait
            folder = self._begin(draft, self.ranks)
            state.write_sharded(folder)
        if is_background:
            copied = {name: content.copied() for name, content in files.items()}
            ranks = self._writing_ranks
            self._writer.start(lambda: self._write_and_commit(copied, draft, ranks, folder))
        else:
            self._write_and_commit(files, draft, self.ranks, folder)
        self._saved_at = _place(trainer)
        if not is_background:
            self._tell()

    def _state(
        self, trainer: TrainingEngine, uncertain: Mapping[str, str] = _NOTHING
    ) -> TrainingState:
        options = self._options
        return TrainingState(
            trainer, options.also or {}, options.safe_serialization, options.trust_pickle, uncertain
        )

    def _capture(self, state: TrainingState) -> dict[str, Content]:
        files: dict[str, Content] = {}
        objects: dict[str, Any] = {}
        rank, is_alone = self.ranks.rank, self.ranks.size == 1

        def look() -> tuple[Any, dict[str, Any], dict[str, str]]:
            state.check()
            objects.update(state.objects())
            if is_alone:
                return None, {}, {}
            digest = state.trainer.parameter_digest()
            unknown = {**state.trainer.unknown_parts(), **state.unknown_parts()}
            return (digest, {}, unknown) if rank else (digest, digests_of(objects), {})

        looks = self.ranks.agree(look)
        if not is_alone:
            state.trainer.compare_parameters([digest for digest, _, _ in looks])
        of_first, unknown = looks[0][1], [of_rank for _, _, of_rank in looks]
        self.ranks.agree(lambda: files.update(state.files(rank, objects, of_first, unknown)))
        return files

    def _draft(self, trainer: TrainingEngine, files: Mapping[str, Content]) -> Manifest:
        """The manifest but for its number and its files."""
        feed = trainer.feed
        assert feed is not None  # its state has been captured
        position = feed.position
        if not is_running(trainer):  # another trainer may have continued the run meanwhile
            self._lineage.settle(trainer)
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
            metric_value=self._value.of(trainer),
            metric_mode=None if self._options.metric is None else self._options.mode,
            ended_by=trainer.ended_by,
            files={},
            **description_of(trainer, files, self.ranks.size),
        )

    def _begin(self, draft: Manifest, ranks: Ranks) -> Path:
        def begin() -> Path:
            self.lock.check()
            return self._store.begin(draft.step)

        return ranks.first_alone(begin)

    def _write_and_commit(
        self, files: dict[str, Content], draft: Manifest, ranks: Ranks, folder: Path | None
    ) -> None:
        if folder is None:
            folder = self._begin(draft, ranks)
        try:
            records = ranks.agree(lambda: _write_files(folder, files))
            ranks.first_alone(lambda: self._commit(folder, records, draft))
        except Exception:
            if ranks.is_first and self.lock.is_taken:
                self._store.discard(folder)
            raise
        self._written = folder

    def _commit(self, folder: Path, records: list[dict[str, FileRecord]], draft: Manifest) -> None:
        files = {name: record for of_rank in records for name, record in of_rank.items()}
        if (folder / SHARDED).is_dir():
            paths = sorted(path for path in (folder / SHARDED).rglob("*") if path.is_file())
            give_mode_of(folder / INCOMPLETE, paths)
            sync_tree(folder / SHARDED)
            files |= {path.relative_to(folder).as_posix(): record_of(path) for path in paths}
        self.lock.check()
        number = self._store.next_number()
        manifest = draft.model_copy(update={"files": files, "number": number})
        self._lineage.known[self._real_directory] = number
        self._store.commit(folder, manifest)
        self._last_saved, self._newest = Checkpoint(folder, manifest), number
        if self.ranks.size == 1:  # whatever fails from here on, it need not be saved again
            self._saved_at, self._written = self._saving_at, folder
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

    def _tell(self) -> None:
        folder, self._written = self._written, None
        if folder is not None:
            self._announce(folder)

    def has_saved(self, trainer: TrainingEngine) -> bool:
        """Returns whether the trainer stands where it was saved last, or where its run began."""
        return _place(trainer) == self._saved_at

    def note_end(self, trainer: TrainingEngine) -> None:
        """Notes in the checkpoint of this place who has finished the run after it was saved."""
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

        self.ranks.first_alone(amend)

    def rehearse(self, trainer: TrainingEngine) -> None:
        """Raises what would keep the state from being saved later, as far as it shows by now."""
        self._capture(self._state(trainer))

    def begin(self, trainer: TrainingEngine) -> None:
        """Says that there is nothing to save yet: a run begins."""
        self._saved_at = _place(trainer)
        self._last_saved = None

    def warn_of_others(self, trainer: TrainingEngine) -> None:
        """Warns if the directory has checkpoints of other runs of training, and none of this one.

        Which run this one is, is decided first.
        """
        if not self.ranks.is_first:
            return
        self._lineage.settle(trainer)
        found = [each.manifest for each in self._store.checkpoints()]
        if found and training_id(trainer) not in [each.training for each in found]:
            directory = str(self._store.directory)
            warnings.warn(
                f"{directory} has {len(found)} checkpoints of other runs, the newest of step "
                f"{found[0].step}: they stay, and a resume from the directory takes the newest of "
                f"all; continue that run with resume_from=ResumeCheckpoint({directory!r}), or give "
                "this run a directory of its own",
                stacklevel=2,
            )

    def note_newest(self) -> None:
        """Notes what the directory has, before a resume."""
        if self.ranks.is_first:
            self._newest = self._newest_number()

    def check_newest(self) -> None:
        """Refuses to train on from behind what another run has saved meanwhile. All ranks call it.

        Raises:
            RuntimeError: there are newer checkpoints than those that a resume could find.
        """

        def check() -> None:
            directory, lineage = self._store.directory, self._lineage
            # After a run of its own, or from a named checkpoint, a trainer begins a branch instead.
            is_behind = self.lock.has_waited or lineage.is_to_continue(self._real_directory)
            is_known = self._newest is None or self._newest_number() <= self._newest
            if is_behind and not is_known:
                raise RuntimeError(
                    f"{directory} has checkpoints that another run saved after this trainer was "
                    "made, and this run would start before them: make the trainer again, so that "
                    "it resumes from the newest"
                )

        self.ranks.first_alone(check)

    def _newest_number(self) -> int:
        return max((each.manifest.number for each in self._store.checkpoints()), default=0)

    @property
    def is_writing(self) -> bool:
        """Returns whether a thread is writing now."""
        return self._writer.is_busy

    def wait(self) -> None:
        """Returns when nothing is being written any more; raises what became of it."""
        if self.lock.is_of_parent:
            return  # the thread is not in this process, nor are its checkpoints this one's
        if self._writer.wait():
            self._tell()

    def tell_if_done(self) -> None:
        """Announces the checkpoint that is being written, if it is complete by now."""
        if not self._writer.is_busy:
            self.wait()


class BackgroundWriter:
    """Makes one call at a time in a thread; ``wait`` raises what the call has raised.

    The interpreter waits for a call in progress before it ends. The thread is a plain one because
    an executor accepts no call once the main thread has ended, while a run in another thread still
    goes on.
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """True while the last call is in progress."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, call: Callable[[], None]) -> None:
        """Begins ``call``; the one before must have been waited for."""
        thread = Thread(target=self._run, args=[call], name=_THREAD_NAME, daemon=False)
        self._thread = thread  # before it starts: Ctrl-C may come right after
        try:
            thread.start()
        except BaseException:
            if thread.ident is None:  # it never ran: there is nothing to wait for
                self._thread = None
            raise

    def wait(self) -> bool:
        """Returns whether there was a call, when it is done; raises what it has raised."""
        thread = self._thread
        if thread is None:
            return False
        thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            self._error = error


def _place(trainer: TrainingEngine) -> tuple[Progress, int, bool]:
    """Counters alone begin anew with a new training; the batches taken in this process do not.

    A validation that was broken off is new when it has been made up.
    """
    return trainer.place.progress, trainer.place.taken, trainer.is_broken_off


def _write_files(folder: Path, files: dict[str, Content]) -> dict[str, FileRecord]:
    paths = {name: folder / name for name in files}
    for name, content in files.items():
        content.write(paths[name])
    give_mode_of(folder / INCOMPLETE, paths.values())
    for path in paths.values():
        sync(path)
    sync(folder)
    return {name: record_of(path) for name, path in paths.items()}
