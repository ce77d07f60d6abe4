"""A process that makes the page of a report, beside the process that trains."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL
from subprocess import Popen
from subprocess import TimeoutExpired
from tempfile import TemporaryFile

from ignite_hooks.observe.report.make import remove_temporary_files

__all__ = ["PageProcess", "page_command", "page_processes"]

page_processes: set[int] = set()
"""The numbers of the running processes that make pages: they are no loader workers."""

# What the process tells Linux about itself. If memory runs out, the kernel ends this process before
# the process that trains. Where sessions share the processors ("autogroup"), the priority of a
# process counts only within its session, so the session gets the lowest priority too.
_OUT_OF_MEMORY = ("oom_score_adj", "1000")
_SESSION_PRIORITY = ("autogroup", "19")
_LOWEST_PRIORITY = 19
_KILL_SECONDS = 5.0


def page_command(record: Path, page: Path) -> list[str]:
    """Returns the arguments of ``python`` that make the page of a record."""
    return ["-m", "ignite_hooks.observe", "report", str(record), "-o", str(page)]


class PageProcess:
    """A running command that makes a page.

    Nothing of the page is made in this process, so the page takes none of its memory and time. The
    start takes a few milliseconds, however much memory this process has: Python uses ``vfork``,
    which copies no page tables. The command does not import torch.

    Args:
        record: the absolute path of the record.
        page: the absolute path of the page.
        has_low_priority: whether the command leaves processors to all other processes.

    Attributes:
        cpu_seconds: the time that the command has used a processor; 0.0 until it has ended.

    Raises:
        OSError: the command cannot be started.
    """

    def __init__(self, record: Path, page: Path, *, has_low_priority: bool) -> None:
        self.cpu_seconds = 0.0
        self._page = page
        # A file and not a pipe, because nobody reads it before the command has ended. The file has
        # no name, so the kernel removes it in any case.
        self._errors = TemporaryFile()  # noqa: SIM115, `close` closes it
        try:
            self._process = Popen(
                [sys.executable, *page_command(record, page)],
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=self._errors,
                env=_environment(),
                cwd=os.sep,  # before Python 3.11, `-m` imports modules of the working directory
                start_new_session=True,  # Ctrl-C signals the processes of one session only
            )
        except BaseException:
            self._errors.close()
            raise
        page_processes.add(self._process.pid)
        _tell_kernel(self._process.pid, *_OUT_OF_MEMORY)
        if has_low_priority:
            _tell_kernel(self._process.pid, *_SESSION_PRIORITY)
            if hasattr(os, "setpriority"):
                with suppress(OSError):  # the command has ended already
                    os.setpriority(os.PRIO_PROCESS, self._process.pid, _LOWEST_PRIORITY)

    def wait(self, seconds: float = 0.0) -> bool:
        """Waits for the end of the command, and returns whether it has ended.

        Args:
            seconds: the longest time to wait. If the time is over, the command continues.
        """
        before = _cpu_seconds_of_children()
        try:
            self._process.wait(max(0.0, seconds))
        except TimeoutExpired:
            return False
        page_processes.discard(self._process.pid)
        self.cpu_seconds += _cpu_seconds_of_children() - before
        return True

    def kill(self) -> None:
        """Ends the command without a page."""
        self._process.kill()
        # The kernel ends a process at once, except if it waits for a disk that does not answer.
        if self.wait(_KILL_SECONDS):
            self.close()

    def close(self) -> str | None:
        """Returns why the ended command has failed; None after success."""
        status = self._process.returncode
        with self._errors:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").splitlines()
        if status == 0:
            return None
        if status < 0:
            remove_temporary_files(self._page, self._process.pid)
            return f"it was ended by {_signal_name(-status)}"
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return last.removeprefix("error: ") or f"its exit status was {status}"

    def __del__(self) -> None:
        """Lets the command continue if nobody waits for its end, for example after Ctrl-C."""
        if hasattr(self, "_process"):  # the start has not failed
            self._errors.close()
            page_processes.discard(self._process.pid)
            if self._process.poll() is None:
                self._process.returncode = 0  # or else Python warns that the command still runs


def _environment() -> dict[str, str]:
    """Returns the variables with which the command imports the modules that this process has."""
    folders = [os.path.abspath(each) for each in sys.path if isinstance(each, str)]
    # In a notebook in the source folder, this package comes from the working directory, which may
    # be another one now.
    source = str(Path(__file__).parents[3])
    if source not in folders:
        folders.insert(0, source)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "PYTHONSAFEPATH": "1"}


def _tell_kernel(process: int, name: str, value: str) -> None:
    # Other systems than Linux have no such file, and containers may refuse the change.
    with suppress(OSError):
        Path(f"/proc/{process}/{name}").write_text(value)


def _cpu_seconds_of_children() -> float:
    """Returns the time that the ended child processes of this process have used a processor.

    The time of a child is added when this process learns that the child has ended.
    """
    times = os.times()
    return times.children_user + times.children_system


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
