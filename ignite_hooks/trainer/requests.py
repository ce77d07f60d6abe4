"""Requests to end a run or an epoch, or to interrupt a run: Ignite's three flags."""

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
    "EPOCH",
    "INTERRUPT",
    "RUN",
    "Request",
    "Requests",
    "Stop",
    "Terminate",
    "TerminateEpoch",
]

RUN, EPOCH, INTERRUPT = "should_terminate", "should_terminate_single_epoch", "should_interrupt"
"""Ignite's flags."""

AT_LIMIT = "limit"
"""What ``should_terminate`` is at a limit: a handler can still write a further one."""

_FLAG = "a handler that set `should_terminate`"
_FUNCTION = "terminate() in "
_RANK = " on rank "


class Terminate(Exception):
    """Ends the run."""


class TerminateEpoch(Exception):
    """Ends the epoch."""


class Stop(NamedTuple):
    """A request to end the run.

    Args:
        caller: the class of the handler that made it, or a function in words.
        is_final: whether the run is finished by it; if not, another process continues the run.
    """

    caller: str = _FLAG
    is_final: bool = True

    @property
    def reason(self) -> str:
        """The ``stop_reason`` of a run that it ends: the class of a handler, else "terminate".

        With several processes it names the rank, unless all ranks have asked.
        """
        caller, on_rank, rank = self.caller.partition(_RANK)
        is_function = caller == _FLAG or caller.startswith(_FUNCTION)
        return f"{'terminate' if is_function else caller}{on_rank}{rank}"

    def on(self, ranks: str) -> "Stop":
        """Returns the same request, with the rank that made it: " on rank 1"."""
        return self._replace(caller=f"{self.caller}{ranks}")

    @classmethod
    def called_from(cls, frame: FrameType, *, resumable: bool) -> "Stop":
        """Returns the request that the code of ``frame`` makes by calling ``terminate()``.

        Handlers of Ignite do not say who they are, and nothing else tells an early stopping, after
        which a run is over, from a time limit, after which the next job continues the run.
        """
        code = frame.f_code
        is_method = code.co_argcount > 0 and code.co_varnames[0] == "self"
        owner = frame.f_locals["self"] if is_method and "self" in frame.f_locals else None
        if owner is None or isinstance(owner, Engine):
            return cls(f"{_FUNCTION}{code.co_name}", not resumable)
        # After a search for a learning rate the training is still to come.
        resumable = resumable or isinstance(owner, TimeLimit | FastaiLRFinder)
        return cls(type(owner).__name__, not resumable)


class Requests:
    """The requests of a run: what this rank asks for, and what of it all ranks obey.

    With one process both are the same: a request is obeyed at the loop's next look. With several a
    request is obeyed when all ranks know of it (``processes/decisions.py``).

    Args:
        is_alone: whether there is one process.

    Attributes:
        asked: those of Ignite's three flags that are set on this rank, with their values.
        obeyed: those that the loop obeys.
        asked_stops: who has asked on this rank for the end of the run, the first one first.
        stops: those that the loop obeys.
    """

    def __init__(self, *, is_alone: bool) -> None:
        self.asked: dict[str, Any] = {}
        self.asked_stops: list[Stop] = []
        self.obeyed: dict[str, Any] = self.asked if is_alone else {}
        self.stops: list[Stop] = self.asked_stops if is_alone else []

    @property
    def of_run(self) -> Any:
        """The request to end the run that is obeyed, or ``AT_LIMIT``; False if there is none."""
        return self.obeyed.get(RUN, False)

    @property
    def stop(self) -> Stop:
        """The request that ends the run: the first final one, or else the first."""
        return _first_final(self.stops)

    def clear(self) -> None:
        """Forgets all of them."""
        for each in (self.asked, self.asked_stops, self.obeyed, self.stops):
            each.clear()

    def set(self, flag: str, value: Any) -> None:
        """Sets a flag that all ranks set at this place."""
        self.asked[flag] = self.obeyed[flag] = value

    def withdraw(self, flag: str) -> None:
        """Takes back a flag that all ranks take back at this place."""
        self.asked.pop(flag, None)
        self.obeyed.pop(flag, None)

    def end_with(self, stop: Stop) -> None:
        """Ends the run as all ranks do at this place, for the first final of the reasons."""
        if self.of_run in (False, AT_LIMIT):
            self.stops.clear()  # a request was withdrawn
            self.set(RUN, True)
        self.stops.append(stop)

    def obey_own(self) -> None:
        """Obeys what this rank asks for, whatever the others do."""
        self.obeyed.update(self.asked)
        self.stops[:] = self.asked_stops

    def to_tell(self) -> tuple[dict[str, Any], Stop] | None:
        """Returns what this rank asks for and other ranks do not know of; None if nothing."""
        flags = {
            flag: value
            for flag, value in self.asked.items()
            if value != AT_LIMIT and self.obeyed.get(flag, AT_LIMIT) == AT_LIMIT
        }
        return (flags, _first_final(self.asked_stops)) if flags else None

    def obey(self, of_ranks: Sequence[tuple[dict[str, Any], Stop] | None]) -> None:
        """Obeys what the ranks ask for, in their order: of several values the first is taken.

        Args:
            of_ranks: what each rank has to tell.
        """
        for flag in (RUN, EPOCH, INTERRUPT):
            values = [each[0][flag] for each in of_ranks if each is not None and flag in each[0]]
            if values:
                self.set(flag, values[0])
        stops = [each[1] if each is not None and RUN in each[0] else None for each in of_ranks]
        asked = [each for each in stops if each is not None]
        if asked:
            stop = _first_final(asked)
            self.stops[:] = [stop.on(name_ranks([each == stop for each in stops]))]


def _first_final(stops: Sequence[Stop]) -> Stop:
    final = [each for each in stops if each.is_final]
    return (final or [*stops] or [Stop()])[0]


class Request:
    """An attribute for one of Ignite's three flags.

    Ignite's methods and any handler set it as on any engine; the engine keeps those that are set in
    ``_requests``. So the loop, four times in an iteration, asks for all three at once: whether
    ``_requests.obeyed`` is empty.
    """

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, engine: Any, owner: type[Any] | None = None) -> Any:
        return self if engine is None else engine._requests.asked.get(self._name, False)

    def __set__(self, engine: Any, value: Any) -> None:
        if value:
            engine._requests.asked[self._name] = value
        else:
            self.__delete__(engine)

    def __delete__(self, engine: Any) -> None:
        engine._requests.asked.pop(self._name, None)
