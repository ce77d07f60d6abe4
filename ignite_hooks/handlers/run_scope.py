"""Scopes around ``engine.run``: entered with it, left with it, however it ends."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from functools import partial
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary
from weakref import ref

from ignite.engine import Engine

from ignite_hooks.scopes import ScopeStack

__all__ = ["Scope", "enter_at_each_run"]

Scope = AbstractContextManager[Any, Any]


def enter_at_each_run(engine: Engine, scope: Callable[[Engine], Scope]) -> Callable[[], None]:
    """Has ``scope(engine)`` entered around each ``engine.run``, and around what is left of this.

    No event of Ignite is sure to come at the end of a run that fails, and STARTED does not come
    when an interrupted one goes on; so ``run`` itself is wrapped, on this one engine.

    Returns:
        What undoes it. Within a run it leaves the scope at once.
    """
    run_scope = _RunScope(scope, engine)
    scopes = _scopes_of_engines.setdefault(engine, _RunScopes())
    scopes.add(run_scope, engine)

    def remove() -> None:
        running_engine = run_scope.engine()
        if running_engine is not None:
            scopes.drop(run_scope, running_engine)
        run_scope.__exit__(None, None, None)

    return remove


class _RunScope(AbstractContextManager[None, None]):
    """A scope that can be left early; leaving it a second time does nothing."""

    def __init__(self, scope: Callable[[Engine], Scope], engine: Engine) -> None:
        self._scope = scope
        self._entered: Scope | None = None
        self.engine = ref(engine)

    def __enter__(self) -> None:
        engine = self.engine()
        if engine is not None:
            scope = self._scope(engine)
            scope.__enter__()
            self._entered = scope

    def __exit__(self, *failure: Any) -> None:
        scope, self._entered = self._entered, None
        if scope is not None:
            scope.__exit__(*failure)


class _RunScopes:
    """All scopes of one engine, and the wrapper of its ``run`` while there are any."""

    def __init__(self) -> None:
        self._scopes: list[_RunScope] = []
        self._running: ScopeStack | None = None
        self._wrapper: Callable[..., Any] | None = None
        self._wrapped: Callable[..., Any] | None = None

    def add(self, scope: _RunScope, engine: Engine) -> None:
        if not self._scopes:
            self._wrap(engine)
        self._scopes = [*self._scopes, scope]
        if self._running is not None:
            self._running.enter(scope)

    def drop(self, scope: _RunScope, engine: Any) -> None:
        self._scopes = [each for each in self._scopes if each is not scope]
        if not self._scopes and vars(engine).get("run") is self._wrapper:
            del engine.run
            if self._wrapped is not None:
                engine.run = self._wrapped

    def _wrap(self, engine: Any) -> None:
        this = ref(engine)
        self._wrapped = wrapped = vars(engine).get("run")

        @wraps(type(engine).run)
        def run_in_scopes(*args: Any, **kwargs: Any) -> Any:
            engine: Any = this()
            run = wrapped or partial(type(engine).run, engine)
            with self._entered():
                return run(*args, **kwargs)

        engine.run = self._wrapper = run_in_scopes

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with ScopeStack() as stack:
            self._running = stack
            try:
                for scope in self._scopes:
                    stack.enter(scope)
                yield
            finally:
                self._running = None


_scopes_of_engines: "WeakKeyDictionary[Engine, _RunScopes]" = WeakKeyDictionary()
