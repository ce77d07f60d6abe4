"""Resumes a run from a checkpoint as if it had never stopped, and reports each difference."""

import warnings
from contextlib import closing
from dataclasses import KW_ONLY
from logging import getLogger
from pathlib import Path
from typing import Any
from weakref import ref

from accelerate import PartialState
from ignite.engine import Engine

from ignite_hooks.checkpoint.changed_settings import check_override
from ignite_hooks.checkpoint.lineage import lineage_of
from ignite_hooks.checkpoint.loading import LoadedState
from ignite_hooks.checkpoint.manifest import SCHEMA
from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.checkpoint.report import ResumeReport
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.checkpoint.source import source_at
from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.source_interface import Source
from ignite_hooks.checkpoint.source_interface import SourceError
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import is_still_there
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.fields import AfterTerminate
from ignite_hooks.core.fields import Directory
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import FlagInCode
from ignite_hooks.core.fields import OnMissing
from ignite_hooks.core.fields import SettingNames
from ignite_hooks.core.fields import SourcePath
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import is_trainer

__all__ = ["ResumeCheckpoint"]

logger = getLogger(__name__)


@checked_dataclass(kw_only=False)
class ResumeCheckpoint(Handler):
    """Resumes a run from a checkpoint.

    The trainer must be built in the same way as the trainer of the saved run, that is the run that
    wrote the checkpoint. The next ``run`` continues with the next batch, in the same order, with
    the same random numbers. The result is the same, bit by bit, as without an interruption. If an
    exact resume is not possible, ``trainer.resume_report`` and a warning at the start of the run
    name the parts that differ. If the saved run had reached its limit, for example ``max_epochs``,
    nothing is trained until the limit is raised. If a handler ended the saved run for good, nothing
    is trained either, and a warning names the handler; see ``after_terminate``.

    Every file is verified before anything is loaded. A damaged checkpoint is skipped with a
    warning, and the next older checkpoint is used. If a checkpoint has another model, another
    optimizer or another number of processes, an error lists the differences, and the trainer stays
    unchanged. Code from a checkpoint is run only if ``trust_pickle`` is True.

    While this handler reads a checkpoint, a run that saves to the same directory may remove the
    checkpoint. A removed checkpoint does not count as damaged: the search begins again, and finds a
    newer checkpoint. If the source cannot be read, for example because its server is down, an error
    is raised. Such a source is never treated as empty.

    The model, the optimizer, the scheduler and the counters are loaded when this handler is
    attached. The trainer factory attaches it after all other handlers that the factory gets.
    Random generators, the states of handlers, and the objects in ``also`` of each attached
    ``SaveCheckpoint`` are restored when the run starts, after the handlers of STARTED have
    returned. So you can attach further handlers to the finished trainer, and their states are
    restored too. If the run resumes in the middle of an epoch, these generators, states and objects
    are restored a second time after the handlers of EPOCH_STARTED, because handlers of this event
    often reset a state.

    If ``source`` is a directory, and the trainer saves to the same directory, the trainer continues
    the run of the checkpoint: its ``SaveCheckpoint`` also removes old checkpoints that were saved
    before the resume. If ``source`` is a single checkpoint, or the trainer saves to another
    directory, the trainer begins a new run, called a branch. A branch removes only its own
    checkpoints.

    Args:
        source: the folder of a checkpoint; a directory of checkpoints, of which the newest
            undamaged one is used; or a URL of such a folder or directory, read with fsspec. A
            relative path is made absolute when the handler is created, and ``~`` is expanded.
        cache_dir: the folder that a URL is downloaded to.
        on_missing: what to do if the source has no checkpoint. "error" raises an error; "start"
            trains from scratch. Use "start" for a job that is always restarted with the same
            command.
        verify: whether to read every file and compare its checksum before anything is loaded.
        trust_pickle: also load objects registered with ``accelerator.register_for_checkpointing``,
            and models that are split over processes. Their files are unpickled, which can run code
            from the checkpoint. So a settings file cannot set this argument to True.
        after_terminate: what to do with a run that a handler, for example ``EarlyStopping``, ended
            before its limit. "finish" trains nothing more, so that a job which is restarted does
            not train another epoch each time. "continue" trains until the limit. A run always
            continues if it was ended by a signal, by ``TimeLimit`` or by
            ``trainer.terminate(resumable=True)``.
        replay: what to do with data that cannot report or restore their position, such as an
            iterable without ``state_dict``. If True, the pass through such data is iterated from
            its beginning up to the position of the checkpoint. If False, the run skips the rest of
            this pass and continues with the next pass. If an epoch is one pass over the data, the
            interrupted epoch begins again, with the batches of the next pass. Data that have a
            state, or whose reading can begin at any batch, always continue at the position of the
            checkpoint.
        override: the names of settings that the script may change. If the script and the checkpoint
            differ in a named setting, the value of the script is used. The possible names are the
            settings of the optimizer's groups ("lr", "weight_decay", "betas", "momentum", …),
            "scheduler", and "requires_grad" for the choice of frozen parameters. "lr" is the rate
            that the schedule starts from. The rate that the schedule has reached changes by the
            same factor as "lr": if the script changes "lr" from 0.1 to 0.02, a reached rate of 0.01
            becomes 0.002. For "scheduler", the schedule of the script is moved from its beginning
            to the step of the checkpoint; a ``ReduceLROnPlateau`` begins with no history.

    Raises:
        FileNotFoundError: when attached: there is no checkpoint, and ``on_missing`` is "error"; or
            the only checkpoint was removed before all of its files were read.
        ImportError: when attached: the package for the protocol of a URL is not installed.
        OSError: when attached: the source cannot be read, or ``cache_dir`` cannot be written.
        RuntimeError: when attached: the trainer is running.
        ValueError: an argument is out of its range. When attached: the engine is not a trainer; all
            checkpoints are damaged; or the checkpoint does not fit the trainer.
    """

    source: SourcePath
    _: KW_ONLY
    cache_dir: Directory | None = None
    on_missing: OnMissing = "error"
    verify: Flag = True
    trust_pickle: FlagInCode = False
    after_terminate: AfterTerminate = "finish"
    replay: Flag = True
    override: SettingNames = ()

    def check(self, engine: Engine, event: Any) -> None:
        """Checks the engine, which must be a trainer that is not running, and the arguments."""
        if not is_trainer(engine):
            raise ValueError(
                f"`engine` must be a trainer, got {type(engine).__name__}: make it with "
                "create_supervised_trainer"
            )
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: a ResumeCheckpoint loads the checkpoint "
                "when it is attached"
            )
        check_override(engine, self.override)
        if is_running(engine):
            raise RuntimeError(
                "a ResumeCheckpoint must not be attached while the trainer runs: call terminate(), "
                "and attach it after run()"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Loads the checkpoint; adds a callback that restores the handlers when the run begins."""
        trainer = attachment.engine
        assert is_trainer(trainer)  # check() has refused all others
        ranks = Ranks(trainer.accelerator)
        found = self._find_checkpoint(ranks, trainer)
        if found is None:
            logger.info("no checkpoint at %s yet: training begins from scratch", self.source)
            return
        loaded, newest = found
        with closing(loaded):
            # All ranks check that the checkpoint fits before any rank loads anything.
            ranks.call_on_all_ranks(lambda: _check_contents(loaded))
            reports = ranks.call_on_all_ranks(loaded.apply)
        trainer.resume_report = reports[ranks.rank].with_others(reports)
        ended_by = loaded.manifest.ended_by
        if ended_by is not None and self.after_terminate == "finish":
            trainer.finish_resumed_run(ended_by)
        if ranks.is_rank_0:
            checkpoint = Checkpoint(loaded.folder, loaded.manifest)
            lineage_of(trainer).note_resumed(self.source, checkpoint, newest)
        logger.info("the run resumes from %s", loaded.folder)
        engine = ref(trainer)  # a strong reference in a callback of the trainer would be a cycle
        last_report: ResumeReport | None = None

        def complete() -> None:
            nonlocal last_report
            reports = ranks.call_on_all_ranks(loaded.complete)
            report = reports[ranks.rank].with_others(reports)
            engine().resume_report = report  # type: ignore[union-attr]
            # If the run resumes in the middle of an epoch, complete() is called twice: after
            # STARTED and after EPOCH_STARTED. A second report is announced only if it differs.
            if report != last_report:
                last_report = report
                _announce(report)

        attachment.on_removal(trainer.call_on_resume(complete))

    def _find_checkpoint(
        self, ranks: Ranks, trainer: TrainingEngine
    ) -> tuple[LoadedState, int] | None:
        """Reads the newest undamaged checkpoint, the same one on all ranks.

        Returns:
            The state that was read, and the number of the newest checkpoint in the source, even if
            the files of this checkpoint are damaged. None if there is no checkpoint and
            ``on_missing`` is "start".
        """
        sources: list[Source] = []
        # Each rank makes its own source. The function must not return the source, because
        # call_on_all_ranks() pickles what a function returns and sends it to the other ranks.
        ranks.call_on_all_ranks(lambda: sources.append(source_at(self.source, self.cache_dir)))
        (source,) = sources
        damaged: dict[str, str] = {}
        tried: set[tuple[str, bytes]] = set()
        removed = ""
        while True:
            found = ranks.call_on_rank_0(source.find)
            for name, why in found.damaged.items():
                if name not in damaged:
                    _warn_of_skipped(f"{name}: {why}")
            damaged |= found.damaged
            candidates = [each for each in found.candidates if each.key not in tried]
            for candidate in candidates:
                _check_compatibility(candidate, ranks)
                try:
                    loaded = self._read_checkpoint(source, candidate, ranks, trainer)
                except (OSError, ValueError, RuntimeError) as error:
                    # If the source itself cannot be read, no older checkpoint can be read either.
                    if any(ranks.gather(isinstance(error, SourceError))):
                        raise
                    tried.add(candidate.key)
                    damaged[candidate.name] = str(error)
                    _warn_of_skipped(f"{candidate.name}: {error}")
                    continue
                if loaded is not None:
                    return loaded, max(each.manifest.number for each in found.candidates)
                removed = candidate.name
                logger.info("%s was removed while it was read: the search begins again", removed)
                break
            else:
                break
        if damaged:
            problems = "; ".join(f"{name}: {why}" for name, why in damaged.items())
            raise ValueError(
                f"`source` must have an undamaged checkpoint, got {self.source}, where all "
                f"checkpoints are damaged: {problems}"
            )
        if removed:
            raise FileNotFoundError(
                f"`source` must keep its checkpoint while it is read, got {self.source}, where "
                f"{removed} was removed meanwhile: give the directory, or a checkpoint that no run "
                "removes"
            )
        if self.on_missing == "start":
            return None
        is_missing = not (is_url(self.source) or Path(self.source).exists())
        reason = "which does not exist" if is_missing else "where there is no checkpoint"
        raise FileNotFoundError(
            f"`source` must be a checkpoint or a directory of them, got {self.source}, {reason}: "
            'fix the path, or write ResumeCheckpoint(path, on_missing="start") to begin from '
            "scratch"
        )

    def _read_checkpoint(
        self, source: Source, candidate: CheckpointCandidate, ranks: Ranks, trainer: TrainingEngine
    ) -> LoadedState | None:
        """Reads a checkpoint. Returns None if the checkpoint was removed in the meantime.

        If reading fails on any rank although the checkpoint still exists, all ranks raise an error.
        """
        states: list[LoadedState] = []
        training_state = self._training_state(trainer)
        try:
            checkpoint = self._fetch(source, candidate, ranks)
            ranks.call_on_all_ranks(
                lambda: states.append(
                    LoadedState(checkpoint, training_state, ranks.rank, self.override, self.replay)
                )
            )
            # All files are open now, and an open file stays readable even if it is deleted. A
            # removal renames the manifest before it deletes a file. So if the manifest still has
            # its name and content now, all files were complete when they were opened.
            if ranks.call_on_rank_0(lambda: is_still_there(checkpoint)):
                return states.pop()
        except (OSError, ValueError, RuntimeError):
            if ranks.call_on_rank_0(lambda: source.still_has(candidate)):
                raise
        finally:
            for each in states:
                each.close()
        return None

    def _fetch(self, source: Source, candidate: CheckpointCandidate, ranks: Ranks) -> Checkpoint:
        """Fetches a checkpoint, and verifies its files unless ``verify`` is False.

        A remote checkpoint is downloaded once on each machine.
        """
        checkpoint = ranks.call_on_rank_0(lambda: source.fetch(candidate, verify=self.verify))
        # Rank 0 has downloaded the files for its own machine. On each other machine a single rank
        # downloads the files and verifies the downloaded copies. If the source makes no copies, all
        # machines share a directory, which rank 0 has verified already.
        is_elsewhere = not ranks.is_rank_0 and PartialState().local_process_index == 0
        verify = self.verify and source.makes_copies
        ranks.call_on_all_ranks(
            lambda: source.fetch(candidate, verify=verify) if is_elsewhere else None
        )
        return checkpoint

    def _training_state(self, trainer: TrainingEngine) -> TrainingState:
        also: dict[str, Any] = {}
        for handler in attached_handlers(trainer, SaveCheckpoint):
            also |= handler.also or {}
        return TrainingState(trainer, also, trust_pickle=self.trust_pickle)


def _warn_of_skipped(problem: str) -> None:
    warnings.warn(f"a checkpoint is skipped, {problem}", stacklevel=2)


def _check_compatibility(candidate: CheckpointCandidate, ranks: Ranks) -> None:
    """Raises if a checkpoint has another layout, or was saved by another number of processes."""
    manifest = candidate.manifest
    if manifest.version != SCHEMA:
        raise ValueError(
            f"{candidate.name} has the layout {manifest.version}, but this version of ignite_hooks "
            f"resumes only from layout {SCHEMA}: install the version that wrote the checkpoint, "
            f"ignite-hooks {manifest.versions.get('ignite-hooks', '?')}, or load its weights alone "
            "with ignite_hooks.checkpoint.load_weights"
        )
    if manifest.world_size != ranks.size:
        raise ValueError(
            f"{candidate.name} was saved by {manifest.world_size} processes, and this run has "
            f"{ranks.size}: start {manifest.world_size} processes, because the checkpoint has a "
            "position in the data and random generators for each process"
        )


def _check_contents(loaded: LoadedState) -> None:
    """Raises if the files have invalid contents, or do not fit the trainer.

    ``state_problems`` is called last, because it uses the trainer's model, optimizer, scheduler and
    scaler, and relies on the checks before it.
    """
    _raise_for_problems(loaded, loaded.problems or [*loaded.object_problems()])
    differences = loaded.differences()
    if differences:
        raise ValueError(
            f"{loaded.folder} does not fit this trainer, which was left unchanged: "
            f"{'; '.join(differences)}: build the trainer as it was built for the checkpoint, or "
            "load the weights alone with ignite_hooks.checkpoint.load_weights"
        )
    _raise_for_problems(loaded, [*loaded.state_problems()])


def _raise_for_problems(loaded: LoadedState, problems: list[str]) -> None:
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{loaded.folder} has contents that are invalid in layout {SCHEMA}, although its "
            f"hashes are right: {'; '.join(problems[:3])}{more}; was it edited, or written by "
            "another version of ignite_hooks? The trainer was left unchanged"
        )


def _announce(report: ResumeReport) -> None:
    if report.is_exact:
        logger.info("%s", report)
    else:
        warnings.warn(str(report), stacklevel=2)
