"""Scopes that all close, innermost first, whatever fails on the way."""

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

__all__ = ["ScopeStack"]


class ScopeStack(AbstractContextManager["ScopeStack", None]):
    """Opens scopes one by one and closes all of them, the last opened first.

    ``contextlib.ExitStack`` lets the last failure win and lets a scope swallow the failure of the
    body. Here the first failure is the one that leaves: a failure while closing keeps no other
    scope from closing, has the first one as its ``__context__``, and is noted on it.
    """

    def __init__(self) -> None:
        self._open: list[AbstractContextManager[Any, Any]] = []

    def enter(self, scope: AbstractContextManager[Any, Any]) -> None:
        """Opens ``scope``. One that fails to open is not closed."""
        scope.__enter__()
        self._open.append(scope)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        body_failure = error
        while self._open:
            error = _close(self._open.pop(), error)
        if error is not None and error is not body_failure:
            raise error


def _close(
    scope: AbstractContextManager[Any, Any], error: BaseException | None
) -> BaseException | None:
    """Closes one scope and returns the failure that counts so far, or None."""
    try:
        scope.__exit__(
            type(error) if error else None, error, error.__traceback__ if error else None
        )
    except BaseException as later:
        if error is None:
            return later
        if later is not error:
            _note(error, later)
    return error


def _note(error: BaseException, later: BaseException) -> None:
    if later.__context__ is None:
        later.__context__ = error
    if sys.version_info >= (3, 11):
        error.add_note(f"While it was handled, closing a scope failed too: {later!r}")
