"""Makes the page of a run while the run is in progress, and at its end."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import KW_ONLY
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Annotated
from typing import Any
from warnings import warn

from ignite.engine import Engine
from pydantic import WithJsonSchema

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import FilePath
from ignite_hooks.core.fields import Runtime
from ignite_hooks.core.fields import Seconds
from ignite_hooks.core.fields import must_be
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.handler import check_not_attached
from ignite_hooks.core.handler import check_own_path
from ignite_hooks.core.handler import record_attachment
from ignite_hooks.core.rules import check_function
from ignite_hooks.core.time_accounts import account_of
from ignite_hooks.core.time_accounts import charged_to
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.observe.metrics_log import MetricsLog
from ignite_hooks.observe.metrics_log import callbacks_after_line
from ignite_hooks.observe.report.make import check_page
from ignite_hooks.observe.report.make import is_page_name
from ignite_hooks.observe.report.page_process import PageProcess
from ignite_hooks.observe.report.page_process import page_command
from ignite_hooks.processes.host_group import is_main_process

__all__ = ["TrainingReport"]

RECORD_NAME = "metrics.jsonl"
"""The name of the record, in the folder of the page, if the engine has no ``MetricsLog``."""

WAIT_SECONDS = 60.0
"""The longest time that the end of a run waits for its last page."""

PAUSE_FACTOR = 20
"""The shortest time from one page to the next, in multiples of the processor time of a page.

So the pages of a long run, which take longer, use at most 5 % of one processor.
"""

PagePath = Annotated[
    FilePath,
    must_be(
        'a path that ends in ".html"',
        is_page_name,
        'for example "runs/a/report.html"',
        may_be_none=False,
    ),
    WithJsonSchema({"type": "string", "pattern": r"\.[hH][tT][mM][lL]?$"}),
]
"""The file of a page, on this machine: a ``FilePath`` that ends in ".html" or ".htm"."""


@checked_dataclass(kw_only=False)
class TrainingReport(Handler):
    """Makes a page that shows a run in a browser, while the run is in progress and at its end.

    The page has the curves of all metrics, the time ledger, the checkpoints, the settings, and the
    error if the run failed. It is a single file and needs no network.

    The page is made from the record of the run. If the engine has no ``MetricsLog`` when a run
    begins, the handler attaches one, which writes "metrics.jsonl" in the folder of the page and
    stays attached as long as the handler. If there are several, the first one is used. Only values
    in ``state.metrics`` are recorded: attach a ``MeanLoss``, a ``Throughput`` and a ``TimeLedger``
    to see loss, speed and time.

    Another process makes the page, so the page takes no memory and no time of the training. During
    the run, this process has the lowest priority. It is started when the record has a new line, the
    last process has ended, and ``every_seconds`` have passed since the start of the last process,
    or of the run. The pause is at least 20 times the processor time of a page.

    ``run()`` returns, or raises its error, when the last page is ready, which is made with the
    usual priority. This takes about a second, or ten seconds after 10 million steps, and at most a
    minute. Ctrl-C ends the waiting; the page then appears a little later.

    If a page cannot be made, for example because the disk is full, one warning in each run says
    why. The training continues, and later pages are tried.

    With several processes rank 0 makes the page, and all ranks may attach the handler, which makes
    no collective call.

    Args:
        path: the page, whose name ends in ".html". Missing folders are created. A relative path is
            made absolute when the handler is created, and ``~`` is expanded.
        every_seconds: the shortest time from one page to the next.
        clock: a function that returns seconds, for tests. Default: ``time.monotonic``.

    Raises:
        ModuleNotFoundError: the packages of the extra ``report`` are not installed.
        ValueError: an argument is out of its range. When attached: an event is given; the page
            cannot be written; the handler is attached already; or another handler of the engine
            makes the same page. When a run begins: the record cannot be written.
        TypeError: ``clock`` is not a function.
    """

    path: PagePath
    _: KW_ONLY
    every_seconds: Seconds = 60.0
    clock: Runtime = None

    def __post_init__(self) -> None:
        """Checks ``clock``, and that the packages are installed."""
        check_function("clock", self.clock, "clock=time.monotonic")
        if any(find_spec(name) is None for name in ("jinja2", "vl_convert")):
            raise ModuleNotFoundError(
                "a TrainingReport needs jinja2 and vl-convert-python, which are not installed: "
                "pip install 'ignite-hooks[report]'"
            )

    def check(self, engine: Engine, event: Any) -> None:
        """Checks the event, and on rank 0 that the page can be written."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: a TrainingReport makes its page every "
                "`every_seconds` seconds, and at the end of a run"
            )
        check_not_attached(self, "its page shows the run of that engine")
        check_own_path(self, self.path, engine)
        if _is_rank_0(engine):
            check_page(Path(self.path))

    def attach_to(self, attachment: Attachment) -> None:
        """Makes the pages of each run."""
        record_attachment(attachment)
        pages = _Pages(self)
        # In this order, because a removal calls the last callback first: the record is complete
        # when the last page is made, and its handler is removed after that.
        attachment.on_removal(pages.remove_log)
        # The outermost scope, so that the MetricsLog has written its last line when it is left.
        attachment.during_run(pages.made_during_run, outermost=True)


class _Pages:
    """Makes the pages of one attachment.

    Args:
        report: the handler.
    """

    def __init__(self, report: TrainingReport) -> None:
        self._page, self._every_seconds = Path(report.path), report.every_seconds
        self._clock = monotonic if report.clock is None else report.clock
        self._own_log: Attachment | None = None
        self._record = self._page.with_name(RECORD_NAME)  # until a run shows which one it is
        self._process: PageProcess | None = None
        self._began = 0.0  # when the last process was started
        self._due = 0.0  # the earliest time of the next start
        self._has_lines = False  # whether a line was written in the present run
        self._has_warned = False

    def remove_log(self) -> None:
        """Removes the MetricsLog that this object has attached."""
        if self._own_log is not None:
            self._own_log.remove()

    @contextmanager
    def made_during_run(self, engine: Engine) -> Iterator[None]:
        """Makes the pages of the body, which is a run of ``engine``."""
        log = self._log_of(engine)
        if not _is_rank_0(engine):
            yield
            return
        self._record = Path(log.path)
        self._due = self._clock() + self._every_seconds
        self._has_lines = self._has_warned = False
        callbacks, note_line = callbacks_after_line(log), self._note_line

        def stop() -> None:
            with suppress(ValueError):
                callbacks.remove(note_line)

        with undo_on_exit(stop, out_of_order=True):
            callbacks.append(note_line)
            try:
                yield
            except GeneratorExit:  # Ctrl-C broke off the end of the run, and the next run begins
                raise
            except BaseException:
                self._make_last(engine)
                raise
            self._make_last(engine)

    def _log_of(self, engine: Engine) -> MetricsLog:
        """Returns the first MetricsLog of ``engine``. Attaches one if there is none."""
        logs = attached_handlers(engine, MetricsLog)
        if logs:
            return logs[0]
        log = MetricsLog(self._page.with_name(RECORD_NAME))
        try:
            self._own_log = log.attach(engine)
        except ValueError as error:
            raise ValueError(
                "a TrainingReport attaches a MetricsLog if the engine has none, and this failed: "
                f"{error}; to give another path, attach a MetricsLog yourself"
            ) from error
        return log

    def _note_line(self, engine: Engine) -> None:
        """Starts a process if one is due. Is called after each line of the record."""
        self._has_lines = True
        # In this order, because the end of a process may move the due time.
        if self._has_ended() and self._clock() >= self._due:
            self._start(has_low_priority=True)

    def _make_last(self, engine: Engine) -> None:
        """Makes the page of the whole record, and waits for it."""
        until = monotonic() + WAIT_SECONDS
        with charged_to(engine, account_of(TrainingReport.__name__)):
            try:
                # On a busy machine, a process of the lowest priority may take very long.
                if not self._has_ended():
                    self._kill()
            finally:  # Ctrl-C ends the waiting, and the page is made nevertheless
                if self._has_lines:
                    self._start(has_low_priority=False)
            if not self._has_ended(until - monotonic()):
                command = shlex.join(["python", *page_command(self._record, self._page)])
                self._warn(
                    f"the page {self._page} is not ready {WAIT_SECONDS:.0f} seconds after the end "
                    "of the run: the process that makes it continues; if the page stays out of "
                    f"date, run: {command}"
                )

    def _kill(self) -> None:
        """Ends the present process, which has not made its page."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()

    def _start(self, *, has_low_priority: bool) -> None:
        self._began = self._clock()
        self._due = self._began + self._every_seconds
        try:
            self._process = PageProcess(self._record, self._page, has_low_priority=has_low_priority)
        except Exception as error:  # whatever it is, it is no reason to stop the training
            self._warn_of_failure(f"{type(error).__name__}: {error}")

    def _has_ended(self, seconds: float = 0.0) -> bool:
        """Waits for the present process, and returns whether no process runs any more.

        Args:
            seconds: the longest time to wait.
        """
        if self._process is None:
            return True
        if not self._process.wait(seconds):
            return False
        process, self._process = self._process, None
        self._due = max(self._due, self._began + PAUSE_FACTOR * process.cpu_seconds)
        reason = process.close()
        if reason is not None:
            self._warn_of_failure(reason)
        return True

    def _warn_of_failure(self, reason: str) -> None:
        self._warn(
            f"the page {self._page} could not be made ({reason}): the run is not affected, the "
            "page is missing or shows an earlier state, and later pages are tried without further "
            "warnings"
        )

    def _warn(self, message: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(message, stacklevel=2)


def _is_rank_0(engine: Engine) -> bool:
    """Returns whether this process makes the page."""
    return is_main_process(engine.accelerator if is_trainer(engine) else None)
