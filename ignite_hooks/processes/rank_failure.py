"""A failure of one rank, in the form in which it is reported to the other ranks."""

import json
import sys
import sysconfig
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_stack
from traceback import walk_tb
from types import FrameType
from typing import NamedTuple

from torch.distributed import DistError

from ignite_hooks.processes.shared_failure import shared_text
from ignite_hooks.processes.watched_run import RunPlace

__all__ = ["RankFailure", "is_collective_failure", "user_line_of_thread"]

MAX_CHARACTERS = 2000
"""The length to which a message is cut.

The message of an error in a loader worker is long, because it contains the worker's traceback.
"""

_PACKAGE = str(Path(__file__).parents[1])
# A source file whose path begins with one of these is not the user's code.
_LIBRARY_PATHS = (
    _PACKAGE,
    "<frozen",  # modules that are built into the interpreter, for example the import system
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)
# A collective may raise a plain RuntimeError. It is recognized by one of these words in its text.
# For example, an error of gloo begins with the path of one of gloo's source files.
_COLLECTIVE_ERRORS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


class RankFailure(NamedTuple):
    """A failure of a rank, with the place in the run where the rank failed.

    ``encode`` and ``decode`` convert a failure to text and back, for the store of a process group.

    Args:
        rank: the rank that failed.
        error_class: the name of the class of the exception.
        message: the text of the exception.
        place: the place of the rank in its run.
        line: the last line of the user's code in the traceback.
        run_number: the number of runs that the rank had begun. A run that is started within
            another run is not counted.
        is_own: whether the rank failed by itself, and not because of a failure of another rank.
        shared: if all ranks raise the error together (see ``mark_shared``), the text that is equal
            on all ranks; otherwise an empty text.
    """

    rank: int
    error_class: str
    message: str
    place: RunPlace
    line: str
    run_number: int
    is_own: bool = True
    shared: str = ""

    @classmethod
    def of(
        cls, error: BaseException, rank: int, place: RunPlace, *, run_number: int, is_own: bool
    ) -> "RankFailure":
        """Returns the failure of a rank that raised an exception.

        Args:
            error: the exception.
            rank: the rank that raised the exception.
            place: the place of this rank in its run.
            run_number: as in the class.
            is_own: as in the class.
        """
        frames = [(frame.f_code, number) for frame, number in walk_tb(error.__traceback__)]
        files = [(code.co_filename, number, code.co_name) for code, number in frames]
        message = _text_of(error)[:MAX_CHARACTERS]
        line, shared = _last_line(files), shared_text(error)[:MAX_CHARACTERS]
        error_class = type(error).__name__
        return cls(rank, error_class, message, place, line, run_number, is_own, shared)

    @classmethod
    def decode(cls, text: str) -> "RankFailure":
        """Reads a failure from the text that ``encode`` has written."""
        rank, error_class, message, place, *others = json.loads(text)
        return cls(rank, error_class, message, RunPlace(*place), *others)

    def encode(self) -> str:
        """Writes the failure as JSON."""
        return json.dumps(self)

    def is_like(self, other: "RankFailure") -> bool:
        """Returns whether two ranks failed with the same error at the same place.

        The result is False if a rank failed only because of a failure of another rank. Errors that
        all ranks raise together are compared by their shared text and place only. Their classes may
        differ: the rank with the problem raises the original exception, the others a RuntimeError.
        """
        if self.shared or other.shared:
            return (self.shared, self.place) == (other.shared, other.place)
        own = (self.error_class, self.place, self.line)
        is_same = own == (other.error_class, other.place, other.line)
        return self.is_own and other.is_own and is_same

    def __str__(self) -> str:
        error = f"{self.error_class}: {self.message}" if self.message else self.error_class
        return f"rank {self.rank} failed: {error} ({self.place}; {self.line})"


def is_collective_failure(error: BaseException) -> bool:
    """Returns whether an error, or one of its causes, was raised by a collective.

    A collective raises an error if another process has ended or is too late.
    """
    return any(_is_collective_error(each) for each in _with_causes(error))


def user_line_of_thread(thread: int | None) -> str:
    """Returns the innermost line of the user's code that a thread is executing now.

    Args:
        thread: the identifier of the thread, as from ``threading.get_ident()``.
    """
    frame = sys._current_frames().get(thread or 0)
    found = list(walk_stack(frame)) if isinstance(frame, FrameType) else []
    files = [(each.f_code.co_filename, number, each.f_code.co_name) for each, number in found]
    return _last_line(reversed(files))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and all errors in its chain of causes and contexts, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_collective_error(error: BaseException) -> bool:
    """Returns whether an error itself, without its causes, was raised by a collective."""
    if isinstance(error, DistError):
        return True
    text = _text_of(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _COLLECTIVE_ERRORS)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a user's exception may have a `__str__` that fails
        return ""


def _last_line(files: Iterable[tuple[str, int, str]]) -> str:
    """Returns the last line of the user's code in a stack.

    If the stack has no line of the user's code, returns the last line of the stack.

    Args:
        files: (path, line number, name of the function) for each line of the stack. The outermost
            call comes first.
    """
    found = "no line is known"
    is_users_found = False
    for name, number, function in files:
        is_users = not name.startswith(_LIBRARY_PATHS)
        if is_users or not is_users_found:
            found = f"{Path(name).name}, line {number}, in {function}"
        is_users_found = is_users_found or is_users
    return found
