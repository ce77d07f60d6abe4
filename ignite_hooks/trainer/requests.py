"""Requests to end a run or an epoch, or to interrupt a run: Ignite's three flags."""

from types import FrameType
from typing import Any
from typing import NamedTuple

from ignite.engine import Engine
from ignite.handlers import FastaiLRFinder
from ignite.handlers import TimeLimit

__all__ = ["Request", "Stop", "Terminate", "TerminateEpoch"]

_FLAG = "a handler that set `should_terminate`"
_FUNCTION = "terminate() in "


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
        """The ``stop_reason`` of a run that it ends: the class of a handler, else "terminate"."""
        is_function = self.caller == _FLAG or self.caller.startswith(_FUNCTION)
        return "terminate" if is_function else self.caller

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


class Request:
    """An attribute for one of Ignite's three flags.

    Ignite's methods and any handler set it as on any engine; the engine keeps those that are set in
    ``_requests``. So the loop, four times in an iteration, asks for all three at once: whether
    ``_requests`` is empty.
    """

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, engine: Any, owner: type[Any] | None = None) -> Any:
        return self if engine is None else engine._requests.get(self._name, False)

    def __set__(self, engine: Any, value: Any) -> None:
        if value:
            engine._requests[self._name] = value
        else:
            self.__delete__(engine)

    def __delete__(self, engine: Any) -> None:
        engine._requests.pop(self._name, None)
