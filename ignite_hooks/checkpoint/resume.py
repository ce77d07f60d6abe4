"""Goes on from a checkpoint as if the training had never been interrupted, or says what differs."""

import warnings
from contextlib import closing
from dataclasses import KW_ONLY
from logging import getLogger
from typing import Any
from weakref import ref

from accelerate import PartialState
from ignite.engine import Engine

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.candidates import Source
from ignite_hooks.checkpoint.candidates import SourceError
from ignite_hooks.checkpoint.changed_settings import check_override
from ignite_hooks.checkpoint.lineage import lineage_of
from ignite_hooks.checkpoint.loading import LoadedState
from ignite_hooks.checkpoint.manifest import SCHEMA
from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.checkpoint.report import ResumeReport
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import is_still_there
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.fields import AfterTerminate
from ignite_hooks.core.fields import Directory
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import OnMissing
from ignite_hooks.core.fields import SettingNames
from ignite_hooks.core.fields import SourcePath
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import is_trainer

__all__ = ["ResumeCheckpoint"]

logger = getLogger(__name__)


@checked_dataclass(kw_only=False)
class ResumeCheckpoint(Handler):
    """Takes up a training where a checkpoint has it, on a trainer that is built as it was then.

    The next ``run`` goes on with the next batch, in the same order, with the same random numbers:
    the result is that of a training that was never interrupted, bit by bit. What cannot be so is
    said in ``trainer.resume_report``, and as a warning when the run starts. A training that was
    finished runs nothing, unless more is asked for. One that a handler ended for good runs nothing
    either, and a warning names the handler; see ``after_terminate``.

    Every file is verified before anything is loaded. A checkpoint that is damaged is skipped for
    the next older one, with a warning. One of another model, optimizer or number of processes is an
    error that lists the differences, with the trainer as it was. No code from a checkpoint is run.

    A checkpoint that is pruned while it is read, by a run that saves there, is not damaged: the
    newest that is there then is read. A source that cannot be read, a server that cannot be reached
    for instance, is an error, and is never taken for an empty one.

    Model, optimizer, scheduler and counters are loaded when this is attached (the factory does that
    last). Random generators and the states of handlers, of those that are attached later too, are
    put back when the handlers of STARTED, and in mid-epoch of EPOCH_STARTED, have reset what they
    reset. The user's own objects are those of ``SaveCheckpoint(also=…)``.

    With a directory as source the run of training there is continued, and a ``SaveCheckpoint`` into
    that directory removes its old checkpoints. From a checkpoint that is given by its own name, or
    from elsewhere, a branch begins: a run of its own, which removes its own checkpoints only.

    Args:
        source: a checkpoint; a directory of them, for the newest that is whole; or a URL of either,
            read with fsspec. A relative path is made absolute now, with ``~`` expanded.
        cache_dir: the folder that a URL is downloaded to.
        on_missing: "error", or "start" to begin from scratch when there is no checkpoint yet: what
            a job needs that is started again each time it was stopped.
        verify: read every file and compare its checksum first.
        trust_pickle: load what was registered with ``accelerator.register_for_checkpointing`` too,
            and models that are split over processes, which can run code from the checkpoint.
        after_terminate: what becomes of a run that a handler ended before its limit,
            ``EarlyStopping`` for instance: "finish" trains nothing more, so that a job that is
            started again does not train another epoch each time; "continue" trains on. Signals,
            ``TimeLimit`` and ``trainer.terminate(resumable=True)`` end no run for good.
        replay: whether data that tell no place are gone through again, up to the place in their
            pass, as an iterable without ``state_dict`` must be. If not, the run goes on with their
            next pass, and the epoch begins anew with it; what is entered without loading the
            batches before, or has a state, goes on at its place as ever.
        override: the names of settings that the script decides, where it gives another value than
            the run had, and not the checkpoint: settings of the optimizer's groups ("lr",
            "weight_decay", "betas", "momentum", …), "scheduler", and "requires_grad" for which
            parameters are frozen. "lr" sets the rate that a schedule starts from; the present one
            becomes the script's times what the schedule has made of the checkpoint's so far.
            "scheduler" moves the script's schedule from its beginning to the step of the
            checkpoint; a ``ReduceLROnPlateau`` begins with no history.

    Raises:
        FileNotFoundError: when attached: there is no checkpoint, or it was removed meanwhile.
        ImportError: when attached: the package for the protocol of a URL is not installed.
        OSError: when attached: the source cannot be read, or ``cache_dir`` cannot be written.
        ValueError: an argument is out of its range; when attached: the engine is no trainer; all
            checkpoints are damaged; the checkpoint does not fit the trainer.
    """

    source: SourcePath
    _: KW_ONLY
    cache_dir: Directory | None = None
    on_missing: OnMissing = "error"
    verify: Flag = True
    trust_pickle: Flag = False
    after_terminate: AfterTerminate = "finish"
    replay: Flag = True
    override: SettingNames = ()

    def check(self, engine: Engine, event: Any) -> None:
        """It needs a trainer, and no event."""
        if not is_trainer(engine):
            raise ValueError(
                f"`engine` must be a trainer, got {type(engine).__name__}: make it with "
                "create_supervised_trainer"
            )
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: a ResumeCheckpoint acts when attached"
            )
        check_override(engine, self.override)
        if is_running(engine):
            raise RuntimeError(
                "a ResumeCheckpoint must not be attached while the trainer runs: call terminate(), "
                "and attach it after run()"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Loads now, and what was not there yet when the run begins."""
        trainer = attachment.engine
        assert is_trainer(trainer)  # check() has refused all others
        ranks = Ranks(trainer.accelerator)
        found = self._search(ranks, trainer)
        if found is None:
            logger.info("no checkpoint at %s yet: training begins from scratch", self.source)
            return
        loaded, newest = found
        with closing(loaded):
            ranks.agree(lambda: _check(loaded))
            reports = ranks.agree(loaded.apply)
        trainer.resume_report = reports[ranks.rank].with_others(reports)
        ended_by = loaded.manifest.ended_by
        if ended_by is not None and self.after_terminate == "finish":
            trainer.finish_resumed_run(ended_by)
        if ranks.is_first:
            checkpoint = Checkpoint(loaded.folder, loaded.manifest)
            lineage_of(trainer).note_resumed(self.source, checkpoint, newest)
        logger.info("training is taken up from %s", loaded.folder)
        engine = ref(trainer)
        told: ResumeReport | None = None

        def complete() -> None:
            nonlocal told
            reports = ranks.agree(loaded.complete)
            report = reports[ranks.rank].with_others(reports)
            engine().resume_report = report  # type: ignore[union-attr]
            if report != told:  # handlers of EPOCH_STARTED may change it once more
                told = report
                _tell(report)

        attachment.on_removal(trainer.call_on_resume(complete))

    def _search(self, ranks: Ranks, trainer: TrainingEngine) -> tuple[LoadedState, int] | None:
        """Finds the newest checkpoint that can be read; all processes read the same.

        Its state is returned, and the number of the newest, which may be damaged. A checkpoint may
        be pruned by the run that saves there while it is read here. That is no damage: there is a
        newer one then, and the search begins again.
        """
        made: list[Source] = []
        ranks.agree(lambda: made.append(source_at(self.source, self.cache_dir)))
        (source,) = made
        damaged: dict[str, str] = {}
        tried: set[tuple[str, bytes]] = set()
        removed = ""
        while True:
            look = ranks.first_alone(source.find)
            for name, why in look.damaged.items():
                if name not in damaged:
                    _warn_of_skipped(f"{name}: {why}")
            damaged |= look.damaged
            candidates = [each for each in look.candidates if each.key not in tried]
            for candidate in candidates:
                _check_fit(candidate, ranks)
                try:
                    loaded = self._read(source, candidate, ranks, trainer)
                except (OSError, ValueError, RuntimeError) as error:
                    if any(ranks.gather(isinstance(error, SourceError))):
                        raise
                    tried.add(candidate.key)
                    damaged[candidate.name] = str(error)
                    _warn_of_skipped(f"{candidate.name}: {error}")
                    continue
                if loaded is not None:
                    return loaded, max(each.manifest.number for each in look.candidates)
                removed = candidate.name
                logger.info("%s was removed while it was read: the search begins again", removed)
                break
            else:
                break
        if damaged:
            problems = "; ".join(f"{name}: {why}" for name, why in damaged.items())
            raise ValueError(
                f"`source` must have a checkpoint that is whole, got {self.source}, where all are "
                f"damaged: {problems}"
            )
        if removed:
            raise FileNotFoundError(
                f"`source` must keep its checkpoint while it is read, got {self.source}, where "
                f"{removed} was removed meanwhile: give the directory, for the newest one, or a "
                "checkpoint that stays"
            )
        if self.on_missing == "start":
            return None
        raise FileNotFoundError(
            f"`source` must be a checkpoint or a directory of them, got {self.source}, where there "
            'is none: mend the path, or say on_missing="start" to begin from scratch'
        )

    def _read(
        self, source: Source, candidate: Candidate, ranks: Ranks, trainer: TrainingEngine
    ) -> LoadedState | None:
        """Reads a checkpoint; returns None if it has been removed meanwhile.

        If it is still there, what fails in one process raises in all.
        """
        read: list[LoadedState] = []
        state = self._state(trainer)
        try:
            checkpoint = self._fetch(source, candidate, ranks)
            ranks.agree(
                lambda: read.append(
                    LoadedState(checkpoint, state, ranks.rank, self.override, self.replay)
                )
            )
            # All files are open now. Were they all of this checkpoint?
            if ranks.first_alone(lambda: is_still_there(checkpoint)):
                return read.pop()
        except (OSError, ValueError, RuntimeError):
            if ranks.first_alone(lambda: source.still_has(candidate)):
                raise
        finally:
            for each in read:
                each.close()
        return None

    def _fetch(self, source: Source, candidate: Candidate, ranks: Ranks) -> Checkpoint:
        checkpoint = ranks.first_alone(lambda: source.fetch(candidate, verify=self.verify))
        # Another machine has downloads of its own, to be made or verified by one process there.
        is_elsewhere = not ranks.is_first and PartialState().local_process_index == 0
        verify = self.verify and source.makes_copies
        ranks.agree(lambda: source.fetch(candidate, verify=verify) if is_elsewhere else None)
        return checkpoint

    def _state(self, trainer: TrainingEngine) -> TrainingState:
        also: dict[str, Any] = {}
        for handler in attached(trainer, SaveCheckpoint):
            also |= handler.also or {}
        return TrainingState(trainer, also, trust_pickle=self.trust_pickle)


def _warn_of_skipped(problem: str) -> None:
    warnings.warn(f"a checkpoint is skipped, {problem}", stacklevel=2)


def _check_fit(candidate: Candidate, ranks: Ranks) -> None:
    manifest = candidate.manifest
    if manifest.version != SCHEMA:
        raise ValueError(
            f"{candidate.name} has the layout {manifest.version}, and this version of ignite_hooks "
            f"resumes from layout {SCHEMA} alone: install the one that wrote it, ignite-hooks "
            f"{manifest.versions.get('ignite-hooks', '?')}; its weights can be loaded with "
            "ignite_hooks.checkpoint.load_weights"
        )
    if manifest.world_size != ranks.size:
        raise ValueError(
            f"{candidate.name} is of {manifest.world_size} processes, and there are {ranks.size} "
            "now: start as many, each has a place in the data and random generators of its own"
        )


def _check(loaded: LoadedState) -> None:
    _refuse(loaded, loaded.problems or [*loaded.problems_of_members()])
    differences = loaded.differences()
    if differences:
        raise ValueError(
            f"{loaded.folder} does not fit this trainer, which is as it was: "
            f"{'; '.join(differences)}: build the trainer as it was built for the checkpoint, or "
            "take the weights alone, by ignite_hooks.checkpoint.load_weights"
        )
    _refuse(loaded, [*loaded.problems_of_states()])


def _refuse(loaded: LoadedState, problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{loaded.folder} holds what no checkpoint of layout {SCHEMA} does, although its "
            f"hashes are right: {'; '.join(problems[:3])}{more}; was it edited, or written by "
            "another version of ignite_hooks? The trainer is as it was"
        )


def _tell(report: ResumeReport) -> None:
    if report.is_exact:
        logger.info("%s", report)
    else:
        warnings.warn(str(report), stacklevel=2)
