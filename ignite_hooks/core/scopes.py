"""A stack of context managers ("scopes") that closes all of them, even if closing one fails."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any

__all__ = ["NULL_CONTEXT", "ScopeStack", "add_note"]

Scope = AbstractContextManager[Any, Any]


class _NullContext(AbstractContextManager[Any, Any]):
    """A context manager that does nothing, faster than ``contextlib.nullcontext``.

    A ``with`` statement takes 0.1 µs, instead of 0.3 µs with ``nullcontext``.
    """

    # `"".format` is written in C, and accepts any arguments. It returns "", a false value, so that
    # `__exit__` swallows no exception.
    __enter__ = __exit__ = "".format


NULL_CONTEXT: Scope = _NullContext()


class ScopeStack(AbstractContextManager["ScopeStack", None]):
    """A stack that opens scopes one by one and closes all of them, the last opened first.

    ``contextlib.ExitStack`` raises the last exception, and a scope in it may swallow the exception
    of the body. This stack always raises the first exception. If closing a scope fails too, the
    other scopes are still closed. The later exception gets the first one as its ``__context__``,
    and the first one gets a note about the later one.

    A scope is on the stack from before it opens until after it has closed, so that it is closed
    wherever Ctrl-C arrives. So the stack can also close a scope twice, or close a scope that failed
    to open. Scopes must allow this, as those of ``contextlib.contextmanager`` do.

    Attributes:
        open: the scopes on the stack.
        later_failure: the first exception that the ``__exit__`` of a scope raised while another
            exception was already closing the stack. None if there was no such exception.
    """

    def __init__(self) -> None:
        self.open: list[Scope] = []
        self.later_failure: BaseException | None = None

    def enter(self, scope: Scope) -> None:
        """Puts ``scope`` on the stack and opens it."""
        self.open.append(scope)
        scope.__enter__()

    def leave(self, depth: int) -> None:
        """Closes the scopes above the given depth, so that ``depth`` scopes stay open.

        If closing a scope fails, this method raises the error and closes no further scope. The
        other scopes stay open until the caller closes them with ``unwind``.
        """
        while len(self.open) > depth:
            self.open[-1].__exit__(None, None, None)
            # The scope is removed only after it has closed, so that an interrupted call of `leave`
            # can be repeated.
            self.open.pop()

    def unwind(self, error: BaseException, depth: int) -> Iterator[bool]:
        """Closes the scopes above the given depth after a failure, and yields after each scope.

        If the ``__exit__`` of a scope raises another exception, ``error`` gets a note about it. The
        first such exception becomes ``later_failure``.

        Yields:
            For each scope, whether its ``__exit__`` reported ``error`` as handled, by returning a
            true value.
        """
        while len(self.open) > depth:
            scope, is_handled = self.open[-1], False
            try:
                is_handled = bool(scope.__exit__(type(error), error, error.__traceback__))
            except BaseException as later:
                if later is not error:
                    self.later_failure = self.later_failure or later
                    _note_later(error, later, scope)
                # The exception may be a Ctrl-C that came before `__exit__` did anything. So the
                # scope is closed once more. If it is closed already, this does nothing.
                with suppress(BaseException):
                    scope.__exit__(type(error), error, error.__traceback__)
            self.open.pop()
            yield is_handled

    def __enter__(self) -> "ScopeStack":
        self.later_failure = None
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            try:
                self.leave(0)
            except BaseException as first:
                self._unwind_all(first)
                raise
        else:
            try:
                self._unwind_all(error)
            except BaseException:  # Ctrl-C between two scopes: the remaining ones are closed too
                self._unwind_all(error)
                raise
            if isinstance(error, GeneratorExit) and self.later_failure is not None:
                # Python swallows the GeneratorExit that closes a generator, and its notes. So the
                # later failure is raised instead.
                raise self.later_failure

    def abandon(self) -> None:
        """Closes the scopes that an interrupted unwinding has left open."""
        self._unwind_all(GeneratorExit())

    def _unwind_all(self, error: BaseException) -> None:
        for _ in self.unwind(error, 0):
            pass


def add_note(error: BaseException, text: str) -> None:
    """Adds ``text`` to ``error`` as a note; logs it on Python 3.10, which has no notes."""
    if sys.version_info >= (3, 11):
        with suppress(Exception):  # an exception of a user may refuse to be changed
            error.add_note(text)
    else:
        getLogger(__name__).error(text)


def _note_later(error: BaseException, later: BaseException, scope: Scope) -> None:
    """Notes on ``error`` that closing ``scope`` has raised ``later``, and chains the two."""
    with suppress(Exception):  # an exception may refuse to be printed, or to be changed
        _append_context(later, error)
        # By default, the text of an object contains its address in memory. So the note shows the
        # scope only if its class defines `__str__`.
        name = scope if "__str__" in vars(type(scope)) else "a scope"
        where = extract_tb(later.__traceback__)[-1]
        text = (
            f"After this exception, closing {name} failed too: {later!r}, in {where.name} "
            f"({Path(where.filename).name}, line {where.lineno})"
        )
        add_note(error, text)


def _append_context(later: BaseException, first: BaseException) -> None:
    """Adds ``first`` to the chain of ``__context__`` exceptions of ``later``.

    The two chains may end in the same exceptions. To avoid a cycle, which would make printing
    endless, the new chain has the exceptions that are only in the chain of ``later``, followed by
    the chain of ``first``.
    """
    contexts_of_first = _context_chain(first)
    only_of_later = [
        each
        for each in _context_chain(later)
        if not any(each is known for known in contexts_of_first)
    ]
    if only_of_later and only_of_later[0] is later and only_of_later[-1].__context__ is not first:
        only_of_later[-1].__context__ = first


def _context_chain(error: BaseException | None) -> list[BaseException]:
    """Returns the exception, followed by the chain of its ``__context__`` exceptions."""
    chain: list[BaseException] = []
    while error is not None and not any(error is each for each in chain):
        chain.append(error)
        error = error.__context__
    return chain
