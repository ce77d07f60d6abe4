"""Requests to end a run or an epoch, or to interrupt a run: Ignite's three flags."""

from typing import Any

__all__ = ["Request", "Terminate", "TerminateEpoch"]


class Terminate(Exception):
    """Ends the run."""


class TerminateEpoch(Exception):
    """Ends the epoch."""


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
