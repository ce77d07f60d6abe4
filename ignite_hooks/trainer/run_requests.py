"""Requests to end a run, to end an epoch, or to interrupt a run: Ignite's three flags.

Ignite's ``terminate()``, ``terminate_epoch()`` and ``interrupt()`` set a flag on the engine, and
the loop looks at it. A trainer needs more: which handler asked, whether the run is finished by it,
and with several processes what the other ranks asked for.
"""

from collections.abc import Sequence
from types import FrameType
from typing import Any
from typing import NamedTuple

from ignite.engine import Engine
from ignite.handlers import FastaiLRFinder
from ignite.handlers import TimeLimit

from ignite_hooks.processes.decisions import name_ranks

__all__ = [
    "AT_LIMIT",
    "INTERRUPT_RUN",
    "TERMINATE_EPOCH",
    "TERMINATE_RUN",
    "EpochTerminated",
    "RequestFlag",
    "RunRequests",
    "RunTerminated",
    "StopRequest",
]

TERMINATE_RUN, TERMINATE_EPOCH, INTERRUPT_RUN = (
    "should_terminate",
    "should_terminate_single_epoch",
    "should_interrupt",
)
"""The names of Ignite's three flags."""

AT_LIMIT = "limit"
"""The value of ``should_terminate`` at a limit, which a handler can still raise."""

_FLAG_CALLER = "a handler that set `should_terminate`"
_FUNCTION_PREFIX = "terminate() in "
_RANK_SEPARATOR = " on rank "


class RunTerminated(Exception):
    """Raised within the loop where a run is terminated; never seen by users."""


class EpochTerminated(Exception):
    """Raised within the loop where an epoch is terminated; never seen by users."""


class StopRequest(NamedTuple):
    """A request to end the run.

    Args:
        caller: the class of the handler that made the request, or a description of the function.
        is_final: whether the run is finished by the request; if not, a process that resumes from a
            checkpoint continues the run.
    """

    caller: str = _FLAG_CALLER
    is_final: bool = True

    @property
    def reason(self) -> str:
        """The ``stop_reason`` of a run that this request ends.

        The reason is the class of a handler, or "terminate" for a function. With several processes
        it names the rank, unless all ranks made the request.
        """
        caller, on_rank, rank = self.caller.partition(_RANK_SEPARATOR)
        is_function = caller == _FLAG_CALLER or caller.startswith(_FUNCTION_PREFIX)
        return f"{'terminate' if is_function else caller}{on_rank}{rank}"

    def with_rank(self, ranks: str) -> "StopRequest":
        """Returns the same request with the rank that made it, as in " on rank 1"."""
        return self._replace(caller=f"{self.caller}{ranks}")

    @classmethod
    def from_frame(cls, frame: FrameType, *, resumable: bool) -> "StopRequest":
        """Returns the request that the code of ``frame`` makes by calling ``terminate()``.

        Ignite's handlers pass no reason to ``terminate()``. The calling frame is the only way to
        tell an ``EarlyStopping``, after which a run is finished, from a ``TimeLimit``, after which
        the next job continues the run.
        """
        code = frame.f_code
        is_method = code.co_argcount > 0 and code.co_varnames[0] == "self"
        owner = frame.f_locals["self"] if is_method and "self" in frame.f_locals else None
        if owner is None or isinstance(owner, Engine):
            return cls(f"{_FUNCTION_PREFIX}{code.co_name}", not resumable)
        # FastaiLRFinder ends a search for a learning rate: the run itself is still to come.
        resumable = resumable or isinstance(owner, TimeLimit | FastaiLRFinder)
        return cls(type(owner).__name__, not resumable)


class RunRequests:
    """The requests that are made in a run, and those that the loop obeys.

    With one process both are the same: the loop obeys a request at the next place where requests
    are handled. With several processes the loop obeys a request once all ranks know of it
    (``processes/decisions.py``).

    Args:
        is_single_process: whether there is one process only.

    Attributes:
        requested_flags: Ignite's flags that are set on this rank, with their values.
        active_flags: the flags that the loop obeys, with their values.
        requested_stops: the requests to end the run that were made on this rank, the oldest first.
        active_stops: the requests to end the run that the loop obeys.
    """

    def __init__(self, *, is_single_process: bool) -> None:
        self.requested_flags: dict[str, Any] = {}
        self.requested_stops: list[StopRequest] = []
        # The same objects with one process, so that each request is active at once.
        self.active_flags: dict[str, Any] = self.requested_flags if is_single_process else {}
        self.active_stops: list[StopRequest] = self.requested_stops if is_single_process else []

    @property
    def terminate_flag(self) -> Any:
        """The active value of ``should_terminate``: ``AT_LIMIT`` at a limit; False if not set."""
        return self.active_flags.get(TERMINATE_RUN, False)

    @property
    def stop(self) -> StopRequest:
        """The request that ends the run: the first final one, or else the first one."""
        return _first_final(self.active_stops)

    def clear(self) -> None:
        """Removes all requests."""
        for each in (
            self.requested_flags,
            self.requested_stops,
            self.active_flags,
            self.active_stops,
        ):
            each.clear()

    def set_flag(self, flag: str, value: Any) -> None:
        """Sets a flag on this rank and for the loop; all ranks do so at the same place."""
        self.requested_flags[flag] = self.active_flags[flag] = value

    def withdraw_flag(self, flag: str) -> None:
        """Clears a flag on this rank and for the loop; all ranks do so at the same place."""
        self.requested_flags.pop(flag, None)
        self.active_flags.pop(flag, None)

    def stop_on_all_ranks_with(self, stop: StopRequest) -> None:
        """Ends the run; all ranks call this at the same place.

        Args:
            stop: the request. Several may be made; the first final one gives the reason.
        """
        if self.terminate_flag in (False, AT_LIMIT):
            self.active_stops.clear()  # left by a request that was withdrawn
            self.set_flag(TERMINATE_RUN, True)
        self.active_stops.append(stop)

    def activate_own(self) -> None:
        """Has the loop obey the requests of this rank, whatever the other ranks request."""
        self.active_flags.update(self.requested_flags)
        self.active_stops[:] = self.requested_stops

    def unshared_requests(self) -> tuple[dict[str, Any], StopRequest] | None:
        """Returns the requests of this rank that other ranks do not know of; None without any."""
        flags = {
            flag: value
            for flag, value in self.requested_flags.items()
            if value != AT_LIMIT and self.active_flags.get(flag, AT_LIMIT) == AT_LIMIT
        }
        return (flags, _first_final(self.requested_stops)) if flags else None

    def activate(self, by_rank: Sequence[tuple[dict[str, Any], StopRequest] | None]) -> None:
        """Has the loop obey the requests of all ranks.

        Where ranks set a flag to different values, the value of the lowest rank holds, on every
        rank.

        Args:
            by_rank: the ``unshared_requests`` of each rank.
        """
        for flag in (TERMINATE_RUN, TERMINATE_EPOCH, INTERRUPT_RUN):
            values = [each[0][flag] for each in by_rank if each is not None and flag in each[0]]
            if values:
                self.set_flag(flag, values[0])
        stops = [
            each[1] if each is not None and TERMINATE_RUN in each[0] else None for each in by_rank
        ]
        asked = [each for each in stops if each is not None]
        if asked:
            stop = _first_final(asked)
            self.active_stops[:] = [stop.with_rank(name_ranks([each == stop for each in stops]))]


def _first_final(stops: Sequence[StopRequest]) -> StopRequest:
    """Returns the first final request, or else the first one, or else a default."""
    final = [each for each in stops if each.is_final]
    return (final or [*stops] or [StopRequest()])[0]


class RequestFlag:
    """A descriptor for one of Ignite's three flags, which keeps the flag in ``_requests``.

    Ignite's methods and any handler set the flag as on any engine. All flags that are set are in
    one dictionary, so the loop tests all three at once, four times in each iteration: whether
    ``_requests.active_flags`` is empty.
    """

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, engine: Any, owner: type[Any] | None = None) -> Any:
        return self if engine is None else engine._requests.requested_flags.get(self._name, False)

    def __set__(self, engine: Any, value: Any) -> None:
        if value:
            engine._requests.requested_flags[self._name] = value
        else:
            self.__delete__(engine)

    def __delete__(self, engine: Any) -> None:
        engine._requests.requested_flags.pop(self._name, None)
