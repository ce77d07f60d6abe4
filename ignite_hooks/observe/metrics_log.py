"""The record of a run: a file with its metrics and events, one line of JSON for each."""

import traceback
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY
from datetime import datetime
from datetime import timezone
from itertools import chain
from itertools import count
from logging import getLogger
from pathlib import Path
from time import monotonic
from typing import Any
from warnings import warn
from weakref import WeakKeyDictionary
from weakref import ref

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.checkpoint.plain_data import plain_text
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.checkpoint.state import training_id
from ignite_hooks.checkpoint.store import read_manifest
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import FilePath
from ignite_hooks.core.fields import Runtime
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.handler import check_not_attached
from ignite_hooks.core.handler import check_own_path
from ignite_hooks.core.handler import record_attachment
from ignite_hooks.core.rules import check_function
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.events import TrainEvents
from ignite_hooks.observe.plain_values import plain_values
from ignite_hooks.observe.program import describe_program
from ignite_hooks.observe.program import redacted
from ignite_hooks.observe.record_file import RecordFile
from ignite_hooks.observe.record_lines import VERSION
from ignite_hooks.observe.record_lines import Kept
from ignite_hooks.observe.record_lines import Line
from ignite_hooks.observe.record_lines import encoded
from ignite_hooks.observe.record_lines import keep_lines
from ignite_hooks.observe.record_lines import split_lines
from ignite_hooks.observe.reports import Report
from ignite_hooks.observe.reports import Reports
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.optim.optimizer_step import callbacks_after_skip
from ignite_hooks.processes.host_group import is_main_process

__all__ = ["MetricsLog", "callbacks_after_line"]

logger = getLogger(__name__)

MAX_ERROR_LENGTH = 20_000
"""The number of characters after which the message and the traceback of an error are cut."""

MAX_FINDINGS_BYTES = 64 * 1024
"""The size that the findings of one handler may have in a line."""


@checked_dataclass(kw_only=False)
class MetricsLog(Handler):
    """Records the metrics and the events of a run in a file, one line of JSON for each.

    ``ignite_hooks.observe`` has ``read_metrics`` to read the record, and ``plot_metrics`` to draw
    its curves. docs/concepts/record.md describes the lines.

    A line with metrics has the values that are new in ``state.metrics``. It is written after every
    ``every_steps`` steps, after each validation, at the end of each epoch, and at the end of the
    run. Other lines record the start, a resume, checkpoints, steps that the loss scaler skips, what
    handlers have found (``Handler.findings``), an error with its traceback, and why the run has
    stopped.

    The record contains each value once, whatever happens to the run:

    - A line is written at once and as a whole, so a kill of the process loses no line and leaves no
      part of a line. After each checkpoint the lines are also synced to the disk, for the case of a
      power loss.
    - A resumed run cuts the record back to the state that it resumes from, and continues there. So
      its metrics are those of a run that was never stopped. The line of the resume says what was
      cut. The checkpoint has the number of reports in the record. If this number does not fit the
      record, because lines were removed for example, the record is cut back by iteration, with a
      warning. If the record belongs to another run, a new one is begun, with a warning.
    - The next ``run()`` after a failure in the same process continues the record, too.
    - A new run never changes the record of an earlier run: ``metrics.jsonl`` is renamed to
      ``metrics.1.jsonl``, or to the next free number.
    - If the file cannot be written during the run, for example because the disk is full, one
      warning says so, and training continues. The lines stay in memory until they can be written.

    Only one run at a time can write a record. With several processes rank 0 writes, and all ranks
    may attach the handler, which makes no collective call. Reading a metric that is a tensor on a
    device synchronizes with the device, at a report only. On a plain Ignite engine, attach the
    handler after the handlers that write metrics. If the engine has no ``OptimizerStep``, each
    iteration counts as a step.

    Args:
        path: the file. Missing folders are created. A relative path is made absolute when the
            handler is created, and ``~`` is expanded.
        every_steps: the number of committed steps from one report to the next.
        clock: a function that returns seconds, for tests. Default: ``time.monotonic``.

    Raises:
        ValueError: an argument is out of its range. When attached: an event is given; the file
            cannot be written, or is not a record; or the handler is attached already.
        TypeError: ``clock`` is not a function.
        RuntimeError: when a run begins: another run writes to the file.
    """

    path: FilePath
    _: KW_ONLY
    every_steps: Every = 10
    clock: Runtime = None

    def __post_init__(self) -> None:
        """Checks that ``clock`` is a function."""
        check_function("clock", self.clock, "clock=time.monotonic")

    def check(self, engine: Engine, event: Any) -> None:
        """Checks the event, and on rank 0 that the file can be written."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: MetricsLog writes every `every_steps` "
                "steps, after validations, and at the end of epochs"
            )
        check_not_attached(self, "its file is the record of one run")
        check_own_path(self, self.path, engine)
        if _is_rank_0(engine):
            RecordFile(Path(self.path)).check()

    def attach_to(self, attachment: Attachment) -> None:
        """Writes the lines at the events of each run."""
        record_attachment(attachment)
        recorder = _Recorder(self, attachment)
        _recorders[self] = ref(recorder)

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of reports in the record, and the values that are not yet in it."""
        recorder = _recorder_of(self)
        return {} if recorder is None else recorder.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run cut the record back to the saved number of reports."""
        recorder = _recorder_of(self)
        if recorder is not None and state_dict:
            recorder.load_state_dict(state_dict)


class _Recorder:
    """Writes the record of one attachment.

    Each ``run()`` begins a new record, or continues the present one. Which of the two is decided by
    ``_begin``, before the first line of the run is written. A resumed run loads the states of the
    handlers after STARTED, so ``_begin`` is called at EPOCH_STARTED, or with the first line if that
    comes earlier.

    Args:
        log: the handler.
        attachment: its attachment.
    """

    def __init__(self, log: MetricsLog, attachment: Attachment) -> None:
        self.attachment = attachment
        engine = attachment.engine
        # None on the ranks above 0, which write nothing.
        self._file = RecordFile(Path(log.path)) if _is_rank_0(engine) else None
        self._after_line = callbacks_after_line(log)
        self._clock = monotonic if log.clock is None else log.clock
        self._seconds = 0.0  # of training up to the present run
        self._entered: float | None = None  # when the present run began; None between two runs
        self._count: int | None = None  # the number of reports in the record, on rank 0
        self._has_steps = False  # whether the engine has an OptimizerStep
        self._is_started = False  # whether STARTED was fired in this run
        self._is_begun = False  # whether ``_begin`` was called in this run
        self._is_new = False  # whether the run began with its first iteration
        self._is_resumed = False  # whether the run continues from a checkpoint
        self._loaded: dict[str, Any] | None = None  # a state that ``_begin`` has to use
        self._used: dict[str, Any] | None = None  # the state that ``_begin`` has used in this run
        self._checkpoints: WeakKeyDictionary[SaveCheckpoint, Path | None] = WeakKeyDictionary()
        # The names of the handlers in lines of findings, and the findings that were written last.
        self._names: list[tuple[ref[Handler], str]] = []
        self._findings: dict[str, bytes] = {}
        self._warned_of: set[str] = set()  # names of handlers whose findings cannot be recorded
        self._reports = Reports(
            attachment,
            log.every_steps,
            self._write_report,
            prepare=self._make_report_lines,
            queue=None if self._file is None else self._file.waiting,
        )
        on = attachment.on
        attachment.during_run(self._in_run)
        on(Events.STARTED, self._start, turn=Turn.NOTE)
        on(Events.EPOCH_STARTED, self._begin)
        on(TrainEvents.CHECKPOINT_SAVED, self._write_checkpoints, turn=Turn.REPORTS)
        skips = callbacks_after_skip(engine)
        skips.append(self._write_skip)
        attachment.on_removal(lambda: skips.remove(self._write_skip))
        if is_trainer(engine):
            attachment.on_removal(engine.call_on_resume(self._note_resume))
        self._note_checkpoints(engine)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of a checkpoint that is saved now."""
        return {"reports": self._count, **self._reports.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keeps the state for ``_begin``."""
        self._reports.load_state_dict(state_dict)
        state = dict(state_dict)
        # A run that resumes in the middle of an epoch loads the same state twice.
        if not (self._is_begun and state == self._used):
            self._loaded, self._is_begun, self._is_new = state, False, False

    @contextmanager
    def _in_run(self, engine: Engine) -> Iterator[None]:
        """Surrounds a run: locks the file, and writes how the run has ended."""
        continues = is_interrupted(engine)
        if self._file is not None:
            self._file.open()
            # While the run was interrupted, another run may have written the record.
            continues = continues and self._file.has_lines_of_this_run
        self._is_begun = self._is_started = continues
        self._is_new = self._is_resumed = False
        self._used, self._entered = None, self._clock()
        self._has_steps = bool(attached_handlers(engine, OptimizerStep))
        try:
            yield
        except GeneratorExit:  # an interrupted run is closed, and will not continue
            raise
        except BaseException as error:
            if self._is_started:
                self._write_error(engine, error)
            raise
        else:
            has_ended = not (is_running(engine) or is_interrupted(engine))
            if has_ended and self._is_started:
                self._write_end(engine, "stop", reason=getattr(engine, "stop_reason", None))
        finally:
            self._seconds, self._entered = self._present_seconds(), None
            if self._file is not None:
                self._file.sync()
                self._file.close()

    def _start(self, engine: Engine) -> None:
        """Begins a new record at once, because its state is known. Other runs wait."""
        self._is_started = True
        self._is_new = engine.state.iteration == 0
        self._note_checkpoints(engine)
        if self._is_new:
            self._begin(engine)

    def _note_resume(self) -> None:
        """Notes that the run continues from a checkpoint, also if that has no state for the log."""
        self._is_resumed = True

    def _begin(self, engine: Engine) -> None:
        """Begins a record, or cuts the present one back and continues it; once in each run."""
        if self._is_begun:
            return
        self._is_begun = self._is_started = True
        loaded, self._loaded = self._loaded, None
        self._used = loaded
        file, iteration = self._file, engine.state.iteration
        if file is None:
            return
        file.open()
        is_complete = file.write_waiting()
        if self._is_new:
            self._begin_new(engine, file, "start")
        elif loaded is not None or self._is_resumed:
            self._continue(engine, file, None if loaded is None else loaded.get("reports"))
        elif file.has_lines_of_this_run:
            # The run continues in the same process: a value that was reported before the stop will
            # not be reported again.
            if is_complete:
                self._cut(engine, file, keep_lines(split_lines(file.read()), iteration))
            else:  # lines of the last run are still in memory
                self._write_header(engine, "resume", {"cut": {"lines": 0}})
        elif self._count is None:  # the handler was attached after the first iteration
            self._begin_new(engine, file, "start")
        else:
            warn(
                f"the record {file.path} was removed or replaced since the last run: the new one "
                f"begins at step {self._step_of(engine)}",
                stacklevel=2,
            )
            self._begin_new(engine, file, "resume")

    def _begin_new(self, engine: Engine, file: RecordFile, event: str) -> None:
        """Begins a new record. An earlier one is renamed."""
        previous = None
        if file.read():
            previous = file.move_away()
            logger.info("the record of an earlier run is now %s", previous)
        file.cut(0)
        self._count = 0
        if event == "start":
            self._seconds, self._entered = 0.0, self._clock()
        name = None if previous is None else previous.name
        self._write_header(engine, event, {"previous_record": name})

    def _continue(self, engine: Engine, file: RecordFile, reports: int | None) -> None:
        """Cuts the record of a resumed run back to its checkpoint.

        Args:
            engine: the engine.
            file: the open file.
            reports: the number of reports in the record at the save; None if it is not known.
        """
        iteration = engine.state.iteration
        lines = list(split_lines(file.read()))
        kept = keep_lines(lines, iteration, reports)
        step = self._step_of(engine)
        problem = ""
        if not lines:
            if reports:
                problem = f"the record {file.path} is missing or empty"
                problem += f": the new one begins at step {step}"
        elif not _may_be_continued(engine, kept):
            problem = f"the record {file.path} belongs to another run, and was renamed"
            problem += f": the new one begins at step {step}"
            kept = Kept([], [], 0, set())
        elif reports is not None and kept.reports < reports:
            problem = (
                f"the record {file.path} has {kept.reports} reports up to step {step}, and had "
                f"{reports} when the checkpoint was saved: lines are missing"
            )
        if problem:
            warn(problem, stacklevel=2)
        if kept.lines:
            self._seconds = max(_seconds_of(line, iteration) for line in kept.lines)
            self._cut(engine, file, kept)
        else:
            self._begin_new(engine, file, "resume")

    def _cut(self, engine: Engine, file: RecordFile, kept: Kept) -> None:
        """Cuts the file back, and writes the line of the resume."""
        # If all lines before some position are kept, the file is shortened there. Lines that are
        # kept behind this position, such as those of checkpoints, are written again.
        length, number = 0, 0
        for number, line in enumerate(kept.lines, 1):
            if line.number != number:
                number -= 1
                break
            length += len(line.raw)
        file.cut(length)
        for line in kept.lines[number:]:
            file.append(line.raw)
        self._count = kept.reports
        cut: dict[str, Any] = {"lines": len(kept.cut)}
        contents = [line.content for line in kept.cut if line.content is not None]
        if contents:
            ends = [each for each in contents if each.get("event") in ("error", "stop")]
            cut |= {"last_step": contents[-1].get("step"), "end": ends[-1] if ends else None}
        self._write_header(engine, "resume", {"cut": cut})

    def _write_header(self, engine: Engine, event: str, more: dict[str, Any]) -> None:
        report = engine.resume_report if is_trainer(engine) and self._is_resumed else None
        if event == "resume":
            more["checkpoint"] = None if report is None else str(report.checkpoint)
            if report is not None:
                more["exact"] = report.is_exact
                more["parts"] = {
                    name: {"level": part.level, "reason": part.reason}
                    for name, part in report.parts.items()
                }
        run = training_id(engine) if is_trainer(engine) else None
        # The record may have been cut back, or may be new, so all findings are written again.
        self._names.clear()
        self._findings.clear()
        self._write(engine, event, run=run, **more, **describe_program(engine))

    def _make_report_lines(self, engine: Engine, report: Report) -> list[bytes]:
        """Returns the line of a report; no line on the ranks above 0."""
        if self._file is None:
            return []
        return [self._make_line(engine, report.reason, metrics=plain_values(report.metrics))]

    def _write_report(self, engine: Engine, report: Report) -> None:
        """Writes the line of a report, which is in ``RecordFile.waiting``."""
        if self._file is not None:
            assert self._count is not None
            self._count += 1
            self._file.write_waiting()
            self._call_after_line(engine)
            if report.reason in ("validation", "epoch"):
                self._write_findings(engine)

    def _write_findings(self, engine: Engine) -> None:
        """Writes the findings of the handlers that have changed since they were last written."""
        if self._file is None:
            return
        self._begin(engine)  # may cut off findings
        changed: dict[str, Any] = {}
        texts: dict[str, bytes] = {}
        for handler in attached_handlers(engine, Handler):
            name = self._name_of(handler)
            try:
                found = redacted(name, handler.findings(engine))
                text = _checked_findings(found)
            except Exception as error:
                self._warn_of_findings(name, error)
                continue
            if text != self._findings.get(name, encoded({})):
                changed[name], texts[name] = found, text
        if changed:
            self._write(engine, "findings", findings=changed)
            self._findings |= texts

    def _name_of(self, handler: Handler) -> str:
        """Returns the class of a handler; "GrowthWatch_2" for the second one of a class."""
        for known, name in self._names:
            if known() is handler:
                return name
        kind, taken = type(handler).__name__, {each for _, each in self._names}
        numbers = (f"{kind}_{number}" for number in count(2))
        name = next(each for each in chain([kind], numbers) if each not in taken)
        self._names.append((ref(handler), name))
        return name

    def _warn_of_findings(self, name: str, error: Exception) -> None:
        if name not in self._warned_of:
            self._warned_of.add(name)
            warn(
                f"the findings of {name} are left out of the record, because findings() has failed "
                f"or has not returned a dict that JSON can hold ({type(error).__name__}: {error}): "
                "training continues",
                stacklevel=2,
            )

    def _write_error(self, engine: Engine, error: BaseException) -> None:
        lines = traceback.format_exception(error)
        self._write_end(
            engine,
            "error",
            type=type(error).__qualname__,
            message=plain_text(error, MAX_ERROR_LENGTH),
            traceback=plain_text("".join(lines), MAX_ERROR_LENGTH),
        )

    def _write_end(self, engine: Engine, event: str, **more: Any) -> None:
        """Writes the findings, and how the run has ended."""
        try:
            self._write_findings(engine)
        finally:  # Ctrl-C in a slow findings() must not leave out how the run has ended
            self._write(engine, event, **more)

    def _write_skip(self, engine: Engine) -> None:
        self._write(engine, "skip")

    def _write_checkpoints(self, engine: Engine) -> None:
        """Writes a line for each checkpoint that is complete since the last call."""
        if self._file is None:
            return
        for handler in self._note_checkpoints(engine):
            described = _describe_checkpoint(handler.last_checkpoint)
            self._write(engine, "checkpoint", checkpoint=described)
        self._write_findings(engine)
        self._file.sync()

    def _note_checkpoints(self, engine: Engine) -> list[SaveCheckpoint]:
        """Returns the SaveCheckpoints that have another last checkpoint than at the last call."""
        handlers = attached_handlers(engine, SaveCheckpoint)
        new = [each for each in handlers if self._checkpoints.get(each) != each.last_checkpoint]
        self._checkpoints.update({each: each.last_checkpoint for each in handlers})
        return new

    def _write(self, engine: Engine, event: str, **more: Any) -> None:
        """Writes a line. On the ranks above 0, does nothing."""
        if self._file is not None:
            self._file.append(self._make_line(engine, event, **more))
            self._call_after_line(engine)

    def _call_after_line(self, engine: Engine) -> None:
        for callback in self._after_line:
            callback(engine)

    def _make_line(self, engine: Engine, event: str, **more: Any) -> bytes:
        self._begin(engine)
        # The version comes first, because a reader recognizes a record by its first bytes.
        head = {"format": VERSION} if event in ("start", "resume") else {}
        line = {
            **head,
            "event": event,
            "step": self._step_of(engine),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "seconds": round(float(self._present_seconds()), 3),
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            **more,
        }
        return encoded(line)

    def _step_of(self, engine: Engine) -> int:
        """Returns the number of committed steps; without an OptimizerStep, of iterations."""
        state: Any = engine.state
        return int(state.optimizer_step if self._has_steps else state.iteration)

    def _present_seconds(self) -> float:
        since = 0.0 if self._entered is None else self._clock() - self._entered
        return self._seconds + since


def callbacks_after_line(log: MetricsLog) -> list[Callable[[Engine], None]]:
    """Returns the callbacks that are called with the engine after each line of the record.

    Ranks above 0 write no lines, so the callbacks are not called there.
    """
    return _callbacks.setdefault(log, [])


def _may_be_continued(engine: Engine, kept: Kept) -> bool:
    """Returns whether the checkpoint of a resumed run may belong to the record.

    Returns True if this is not known: on an engine that is not a trainer, or if the checkpoint is
    gone.
    """
    report = engine.resume_report if is_trainer(engine) else None
    if report is None:
        return True
    try:
        return read_manifest(Path(report.checkpoint)).training in kept.writers
    except (OSError, ValueError):
        return True


def _describe_checkpoint(folder: Path | None) -> dict[str, Any]:
    """Returns the path of a checkpoint, with the position and the metric in its manifest."""
    described: dict[str, Any] = {"path": str(folder)}
    try:
        manifest = read_manifest(Path(str(folder)))
    except (OSError, ValueError):  # the checkpoint was removed in the meantime
        return described
    names = ("step", "epoch", "iteration", "metric", "metric_value", "metric_mode")
    return described | {name: getattr(manifest, name) for name in names}


def _checked_findings(found: Any) -> bytes:
    """Returns the findings of a handler as they are in a line.

    Raises:
        TypeError: the findings are not a dict, or JSON cannot hold them.
        ValueError: the findings are too large, or contain themselves.
    """
    if not isinstance(found, dict):
        raise TypeError(f"got {shown_type(found)}")
    text = encoded(found)
    if len(text) > MAX_FINDINGS_BYTES:
        raise ValueError(f"{len(text):,} bytes, and {MAX_FINDINGS_BYTES:,} are allowed")
    return text


def _seconds_of(line: Line, iteration: int) -> float:
    """Returns the seconds of training up to a line.

    Returns 0.0 if the line is damaged, or was written after ``iteration``: that of a checkpoint
    which was saved in the background comes later than the saved state.
    """
    content = line.content or {}
    seconds = content.get("seconds") if content.get("iteration", 0) <= iteration else None
    return seconds if isinstance(seconds, float) else 0.0


def _is_rank_0(engine: Engine) -> bool:
    """Returns whether this process writes the record."""
    return is_main_process(engine.accelerator if is_trainer(engine) else None)


def _recorder_of(log: MetricsLog) -> _Recorder | None:
    """Returns the recorder of the last attachment; None if it is gone."""
    return _recorders[log]() if log in _recorders else None


# The recorders are not attributes of the handlers, because a handler is a frozen dataclass. The
# engine keeps a recorder alive. A recorder refers to its handler.
_recorders: "WeakKeyDictionary[MetricsLog, ref[_Recorder]]" = WeakKeyDictionary()
_callbacks: WeakKeyDictionary[MetricsLog, list[Callable[[Engine], None]]] = WeakKeyDictionary()
