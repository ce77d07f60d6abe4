"""Scopes around ``engine.run``: entered with it, left with it, however it ends."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from functools import wraps
from typing import Any
from typing import TypeVar
from weakref import ref

from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.scopes import ScopeStack
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["Scope", "enter_at_each_run", "run_in_scopes"]

Scope = AbstractContextManager[Any, Any]
ResultT = TypeVar("ResultT")
EngineT = TypeVar("EngineT", bound=AnyEngine)


def enter_at_each_run(engine: EngineT, scope: Callable[[EngineT], Scope]) -> Callable[[], None]:
    """Has ``scope(engine)`` entered around each ``engine.run``, and around what is left of this.

    No event of Ignite is sure to come at the end of a run that fails, and STARTED does not come
    when an interrupted one goes on. A trainer's ``run`` enters the scopes itself; that of another
    engine is wrapped, on this one engine. (A first scope that is added to such an engine within a
    run can only be entered with the next one.)

    Returns:
        What undoes it. Within a run it leaves the scope at once.
    """
    run_scope = _RunScope(scope, engine)
    scopes = _scopes_of(engine)
    scopes.add(run_scope, engine)

    def remove() -> None:
        running_engine = run_scope.engine()
        if running_engine is not None:
            scopes.drop(run_scope, running_engine)
        run_scope.__exit__(None, None, None)

    return remove


def run_in_scopes(engine: AnyEngine, run: Callable[[], ResultT]) -> ResultT:
    """Calls ``run`` within the scopes of an engine whose own ``run`` does so."""
    return _scopes_of(engine).call(run, engine)


def _scopes_of(engine: AnyEngine) -> "_RunScopes":
    scopes: _RunScopes = belongings(engine).setdefault("run_scopes", _RunScopes())
    return scopes


class _RunScope(AbstractContextManager[None, None]):
    """A scope that can be left early; leaving it a second time does nothing."""

    def __init__(self, scope: Callable[[Any], Scope], engine: AnyEngine) -> None:
        self._scope = scope
        self._entered: Scope | None = None
        self.engine = ref(engine)

    def __enter__(self) -> None:
        engine = self.engine()
        if engine is not None:
            self._entered = self._scope(engine)  # before it is entered, which may break off
            self._entered.__enter__()

    def __exit__(self, *failure: Any) -> None:
        scope = self._entered
        if scope is not None and not _is_executing(scope):  # it may remove itself
            scope.__exit__(*failure)
            self._entered = None  # last: a call that broke off may be repeated


class _RunScopes:
    """All scopes of one engine, and the wrapper of its ``run`` where there must be one."""

    def __init__(self) -> None:
        self._scopes: list[_RunScope] = []
        self._running: ScopeStack | None = None
        self._wrapper: Callable[[], Any] = _nothing

    def add(self, scope: _RunScope, engine: AnyEngine) -> None:
        if self._wrapper() is None and not isinstance(engine, QuickEngine):
            self._wrap(engine)
        self._scopes = [*self._scopes, scope]
        if self._running is not None:
            self._running.enter(scope)

    def drop(self, scope: _RunScope, engine: AnyEngine) -> None:
        owner: Any = engine  # whose method is replaced
        self._scopes = [each for each in self._scopes if each is not scope]
        wrapper = self._wrapper()
        is_outermost = wrapper is not None and owner.run is wrapper
        if not self._scopes and is_outermost:
            del owner.run
            if wrapper.had is not None:
                owner.run = wrapper.had
            self._wrapper = _nothing

    def _wrap(self, engine: AnyEngine) -> None:
        owner: Any = engine  # whose method is replaced
        run = owner.run
        is_own = getattr(run, "__func__", None) is type(owner).run
        had = None if is_own else run

        engine_of = ref(engine)

        @wraps(type(owner).run)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self.call(partial(run, *args, **kwargs), engine_of())

        wrapper.had = had  # type: ignore[attr-defined]
        owner.run = wrapper
        self._wrapper = ref(wrapper)

    def call(self, run: Callable[[], ResultT], engine: AnyEngine | None) -> ResultT:
        """Calls ``run`` within the scopes; first leaves what a broken-off unwinding left open."""
        outer = self._running
        if outer is not None and engine is not None and not is_running(engine):
            outer.abandon()
            outer = None
        stack = ScopeStack()
        try:
            with stack:
                self._running = stack
                for scope in self._scopes:
                    stack.enter(scope)
                return run()
        finally:
            if not stack.open:
                self._running = outer


def _is_executing(scope: Scope) -> bool:
    generator = getattr(scope, "gen", None)  # of ``contextlib.contextmanager``
    return generator is not None and generator.gi_running


def _nothing() -> None:
    return None
