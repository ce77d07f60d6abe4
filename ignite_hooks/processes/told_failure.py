"""A failure of one rank, as the other ranks are told of it."""

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
from ignite_hooks.processes.watched_run import Place

__all__ = ["ToldFailure", "is_of_collective", "line_of_thread"]

MAX_CHARACTERS = 2000
"""The length of a message that is told; a loader worker sends its whole traceback in one."""

_PACKAGE = str(Path(__file__).parents[1])
_NOT_OF_USERS = (
    _PACKAGE,
    "<frozen",
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)
# Errors of gloo have no type of their own. Their text begins with the file of gloo that raised it.
_SIGNS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")


class ToldFailure(NamedTuple):
    """A failure with its place, as text that a store of torch can keep.

    Args:
        rank: the rank that failed.
        kind: the class of the exception.
        message: its text.
        place: where the run was.
        line: the last line of the traceback that is the user's.
        run_number: the number of outermost runs that the rank had begun.
        is_own: whether the rank failed by itself; a rank that another one pulls along does not.
        shared: what all ranks raise here together, or an empty text.
    """

    rank: int
    kind: str
    message: str
    place: Place
    line: str
    run_number: int
    is_own: bool = True
    shared: str = ""

    @classmethod
    def of(
        cls, error: BaseException, rank: int, place: Place, *, run_number: int, is_own: bool
    ) -> "ToldFailure":
        """Describes ``error``, which ``rank`` has raised at ``place`` in its run of that number."""
        frames = [(frame.f_code, number) for frame, number in walk_tb(error.__traceback__)]
        files = [(code.co_filename, number, code.co_name) for code, number in frames]
        message = _text_of(error)[:MAX_CHARACTERS]
        line, shared = _last_line(files), shared_text(error)[:MAX_CHARACTERS]
        kind = type(error).__name__
        return cls(rank, kind, message, place, line, run_number, is_own, shared)

    @classmethod
    def decode(cls, text: str) -> "ToldFailure":
        """Reads what ``encode`` has written."""
        rank, kind, message, place, *others = json.loads(text)
        return cls(rank, kind, message, Place(*place), *others)

    def encode(self) -> str:
        """Writes the failure as JSON."""
        return json.dumps(self)

    def is_like(self, other: "ToldFailure") -> bool:
        """Returns whether two ranks failed by themselves, by the same error at the same place.

        One that all ranks raise together may be of another class on the rank that it comes from.
        """
        if self.shared or other.shared:
            return (self.shared, self.place) == (other.shared, other.place)
        is_same = (self.kind, self.place, self.line) == (other.kind, other.place, other.line)
        return self.is_own and other.is_own and is_same

    def __str__(self) -> str:
        what = f"{self.kind}: {self.message}" if self.message else self.kind
        return f"rank {self.rank} failed: {what} ({self.place}; {self.line})"


def is_of_collective(error: BaseException) -> bool:
    """Returns whether a collective failed: another process has gone, or did not come in time."""
    return any(_is_sign(each) for each in _chain(error))


def line_of_thread(thread: int | None) -> str:
    """Returns the innermost line of the user's code in which a thread stands now."""
    frame = sys._current_frames().get(thread or 0)
    found = list(walk_stack(frame)) if isinstance(frame, FrameType) else []
    files = [(each.f_code.co_filename, number, each.f_code.co_name) for each, number in found]
    return _last_line(reversed(files))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_sign(error: BaseException) -> bool:
    if isinstance(error, DistError):
        return True
    text = _text_of(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception of the user's may refuse to be printed
        return ""


def _last_line(files: Iterable[tuple[str, int, str]]) -> str:
    """Returns the last line of the user's, or the last of all if none is."""
    found = "no line is known"
    is_users_found = False
    for name, number, function in files:
        is_users = not name.startswith(_NOT_OF_USERS)
        if is_users or not is_users_found:
            found = f"{Path(name).name}, line {number}, in {function}"
        is_users_found = is_users_found or is_users
    return found
