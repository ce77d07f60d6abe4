"""What handlers ask of the loop: Ignite's three flags, which are all clear in most iterations."""

from typing import Any

__all__ = ["Request"]


class Request:
    """One of the flags, as an attribute of an engine, which keeps those set in ``_requests``.

    Ignite's methods and any handler set it as before. The loop asks for all three at once, four
    times in an iteration: whether ``_requests`` is empty.
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
