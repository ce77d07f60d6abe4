"""Requests to end a run, to end an epoch, or to interrupt a run: Ignite's three flags.

Ignite's ``terminate()``, ``terminate_epoch()`` and ``interrupt()`` set a flag on the engine, which
the loop reads. A trainer needs to know more: which handler made the request, whether the request
finishes the run (a process that resumes a finished run trains nothing), and, with several
processes, which requests the other ranks have made.
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
"""The value of ``should_terminate`` when a limit is reached.

A handler may still write a higher limit to the state. The run then continues.
"""

# The ``caller`` of a StopRequest if the flag was set without a call of ``terminate()``.
_FLAG_CALLER = "a handler that set `should_terminate`"
# The beginning of ``caller`` if a function called ``terminate()``. The function's name follows.
_FUNCTION_PREFIX = "terminate() in "
_CALLERS_OF_HANDLERS = ("ignite.engine.engine", "ignite_hooks.core.engine")
# The part of ``caller`` before the number of the rank that made the request. If all ranks made the
# request, ``caller`` has neither this part nor the number.
_RANK_SEPARATOR = " on rank "


class RunTerminated(Exception):
    """Raised within the loop to end a run; never reaches users."""


class EpochTerminated(Exception):
    """Raised within the loop to end an epoch; never reaches users."""


class StopRequest(NamedTuple):
    """A request to end the run.

    Args:
        caller: the code that made the request: the name of the handler's class, or a description
            of the function.
        is_final: whether the request finishes the run. If not, a process that resumes from a
            checkpoint continues the run.
    """

    caller: str = _FLAG_CALLER
    is_final: bool = True

    @property
    def reason(self) -> str:
        """The ``stop_reason`` of a run that this request ends.

        The reason is the class of the handler that made the request, or "terminate" if a function
        made the request. With several processes the reason also names the rank, unless all ranks
        made the request.
        """
        caller, on_rank, rank = self.caller.partition(_RANK_SEPARATOR)
        is_function = caller == _FLAG_CALLER or caller.startswith(_FUNCTION_PREFIX)
        return f"{'terminate' if is_function else caller}{on_rank}{rank}"

    def with_rank(self, ranks: str) -> "StopRequest":
        """Returns the request with the text ``ranks``, such as " on rank 1", after the caller."""
        return self._replace(caller=f"{self.caller}{ranks}")

    @classmethod
    def from_frame(cls, frame: FrameType, *, resumable: bool) -> "StopRequest":
        """Returns the request that the code of ``frame`` makes by calling ``terminate()``.

        Ignite's handlers pass no reason to ``terminate()``, so the handler is found as the ``self``
        of the frame. The request of an ``EarlyStopping`` is final. The request of a ``TimeLimit``
        is not final: a process that resumes from a checkpoint continues the run.

        Args:
            frame: the frame of the code that calls ``terminate()``.
            resumable: the argument of ``terminate()``.
        """
        code = frame.f_code
        is_method = code.co_argcount > 0 and code.co_varnames[0] == "self"
        owner = frame.f_locals["self"] if is_method and "self" in frame.f_locals else None
        if owner is None or isinstance(owner, Engine):
            # If `terminate` itself is the handler, the caller is the code that fires the event.
            is_handler = frame.f_globals.get("__name__") in _CALLERS_OF_HANDLERS
            name = "a handler" if is_handler else code.co_name
            return cls(f"{_FUNCTION_PREFIX}{name}", not resumable)
        # A FastaiLRFinder calls `terminate()` when its search for a learning rate has ended. The
        # training is not finished.
        resumable = resumable or isinstance(owner, TimeLimit | FastaiLRFinder)
        return cls(type(owner).__name__, not resumable)


class RunRequests:
    """The requests of this rank, and the active requests, which are those that the loop obeys.

    With one process each request is active immediately. With several processes a request becomes
    active when all ranks know of it (``processes/decisions.py``). The loop obeys an active request
    when it next looks for requests.

    Args:
        is_single_process: whether there is one process only.

    Attributes:
        requested_flags: maps the name of each flag that is set on this rank to its value.
        active_flags: maps the name of each flag that the loop obeys to its value.
        requested_stops: the requests to end the run that were made on this rank, the oldest first.
            Each of them tells which code made the request, and whether the request finishes the
            run.
        active_stops: the requests to end the run that the loop obeys.
    """

    def __init__(self, *, is_single_process: bool) -> None:
        self.requested_flags: dict[str, Any] = {}
        self.requested_stops: list[StopRequest] = []
        # With one process, requested and active are the same objects.
        self.active_flags: dict[str, Any] = self.requested_flags if is_single_process else {}
        self.active_stops: list[StopRequest] = self.requested_stops if is_single_process else []

    @property
    def terminate_flag(self) -> Any:
        """The active value of ``should_terminate``: ``AT_LIMIT`` at a limit; False if not set."""
        return self.active_flags.get(TERMINATE_RUN, False)

    @property
    def stop(self) -> StopRequest:
        """The request that ends the run: the first final request, or the first if none is final."""
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
        """Sets a flag as requested and active. All ranks must call this at the same place."""
        self.requested_flags[flag] = self.active_flags[flag] = value

    def withdraw_flag(self, flag: str) -> None:
        """Clears a requested and active flag. All ranks must call this at the same place."""
        self.requested_flags.pop(flag, None)
        self.active_flags.pop(flag, None)

    def stop_on_all_ranks_with(self, stop: StopRequest) -> None:
        """Requests the end of the run. All ranks must call this at the same place.

        Args:
            stop: the request. If there are several requests, the first final request gives the
                reason.
        """
        if self.terminate_flag in (False, AT_LIMIT):
            # No request of a handler is active now. If `active_stops` has requests, they were
            # withdrawn, for example because a handler has set `should_terminate` to False.
            self.active_stops.clear()
            self.set_flag(TERMINATE_RUN, True)
        self.active_stops.append(stop)

    def activate_own(self) -> None:
        """Makes the requests of this rank active without asking the other ranks."""
        self.active_flags.update(self.requested_flags)
        self.active_stops[:] = self.requested_stops

    def unshared_requests(self) -> tuple[dict[str, Any], StopRequest] | None:
        """Returns the requests that only this rank knows of; None if there are none.

        Returns:
            A pair. The first part maps the names of flags to their values. The second part is the
            request to end the run, or a default ``StopRequest()`` if there is none.
        """
        # ``AT_LIMIT`` and active flags are not shared, because all ranks know of them. But if this
        # rank has replaced an active ``AT_LIMIT`` by another value, only this rank knows of the
        # other value.
        flags = {
            flag: value
            for flag, value in self.requested_flags.items()
            if value != AT_LIMIT and self.active_flags.get(flag, AT_LIMIT) == AT_LIMIT
        }
        return (flags, _first_final(self.requested_stops)) if flags else None

    def activate(self, by_rank: Sequence[tuple[dict[str, Any], StopRequest] | None]) -> None:
        """Makes the requests of all ranks active.

        If ranks have set a flag to different values, every rank uses the value of the lowest rank.

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
    """Returns the first final request, else the first request, else a default request."""
    final = [each for each in stops if each.is_final]
    return (final or [*stops] or [StopRequest()])[0]


class RequestFlag:
    """A descriptor for one of Ignite's three flags, which keeps the flag in ``_requests``.

    Ignite's methods and handlers set the flag as on any engine. All three flags are kept in one
    dictionary, so that the loop can test all flags at once: ``_requests.active_flags`` is empty if
    no flag is active. The loop makes this test four times in each iteration.
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
