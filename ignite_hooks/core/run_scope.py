"""Context managers ("scopes") around ``engine.run``, which are left even if the run fails."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from functools import wraps
from typing import Any
from typing import TypeVar
from weakref import ref

from ignite_hooks.core.engine import QuickEngine
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.scopes import ScopeStack
from ignite_hooks.core.training_engine import AnyEngine

__all__ = ["Scope", "enter_at_each_run", "run_in_scopes"]

Scope = AbstractContextManager[Any, Any]
ResultT = TypeVar("ResultT")
EngineT = TypeVar("EngineT", bound=AnyEngine)


def enter_at_each_run(
    engine: EngineT, scope: Callable[[EngineT], Scope], *, outermost: bool = False
) -> Callable[[], None]:
    """Enters ``scope(engine)`` around each later run, and around the rest of a run in progress.

    A pair of event handlers cannot replace a scope. Ignite fires no event reliably at the end of a
    run that fails, and does not fire STARTED when an interrupted run continues.

    The method ``run`` of a trainer enters the scopes itself. For a plain Ignite engine, the first
    call of this function replaces the method ``run`` with a wrapper, which enters the scopes. So if
    this first call comes within a run, the scope is first entered at the next run.

    Args:
        engine: the engine.
        scope: returns the scope of a run.
        outermost: whether later runs enter the scope before the scopes that were added earlier, and
            leave it after them.

    Returns:
        A function that removes the scope. If the scope is open, the function leaves it at once.
    """
    run_scope = _RunScope(scope, engine)
    scopes = _scopes_of(engine)
    scopes.add(run_scope, engine, outermost=outermost)

    def remove() -> None:
        running_engine = run_scope.engine()
        if running_engine is not None:
            scopes.drop(run_scope, running_engine)
        run_scope.__exit__(None, None, None)

    return remove


def run_in_scopes(engine: AnyEngine, run: Callable[[], ResultT]) -> ResultT:
    """Calls ``run`` within the scopes of a trainer. The method ``run`` of trainers calls this."""
    return _scopes_of(engine).call(run, engine)


def _scopes_of(engine: AnyEngine) -> "_RunScopes":
    scopes: _RunScopes = engine_storage(engine).setdefault("run_scopes", _RunScopes())
    return scopes


class _RunScope(AbstractContextManager[None, None]):
    """A scope that can be left before the run ends; leaving it a second time does nothing."""

    def __init__(self, scope: Callable[[Any], Scope], engine: AnyEngine) -> None:
        self._scope = scope
        self._entered: Scope | None = None
        self.engine = ref(engine)

    def __enter__(self) -> None:
        engine = self.engine()
        if engine is not None:
            # Assigned before the scope is entered. If an exception, such as that of Ctrl-C, breaks
            # off the entry, the method `__exit__` below still leaves the scope.
            self._entered = self._scope(engine)
            self._entered.__enter__()

    def __exit__(self, *failure: Any) -> None:
        scope = self._entered
        # A generator with `@contextmanager` may remove its own scope. Python cannot resume a
        # generator that is running, so the scope is left later, at the end of the run.
        if scope is not None and not _is_executing(scope):
            scope.__exit__(*failure)
            self._entered = None  # reset last, so that an interrupted call can be repeated


class _RunScopes:
    """The scopes of one engine, and the wrapper of its ``run`` if it is a plain Ignite engine."""

    def __init__(self) -> None:
        self._scopes: list[_RunScope] = []
        self._running: ScopeStack | None = None  # the open scopes of the current run
        # A weak reference to the wrapper; a function that returns None if there is no wrapper yet.
        # If a user replaces `run` and drops the wrapper, the next scope wraps `run` again.
        self._wrapper_ref: Callable[[], Any] = _return_none

    def add(self, scope: _RunScope, engine: AnyEngine, *, outermost: bool) -> None:
        """Adds a scope, and enters it if a run is in progress."""
        if self._wrapper_ref() is None and not isinstance(engine, QuickEngine):
            self._wrap(engine)
        # A new list: `call` may be iterating over the present one.
        self._scopes = [scope, *self._scopes] if outermost else [*self._scopes, scope]
        if self._running is not None:
            self._running.enter(scope)

    def drop(self, scope: _RunScope, engine: AnyEngine) -> None:
        """Removes a scope. If no scope is left, the wrapper of ``run`` is removed too."""
        owner: Any = engine  # untyped, to replace its method
        self._scopes = [each for each in self._scopes if each is not scope]
        wrapper = self._wrapper_ref()
        # If other code has since wrapped this wrapper, the wrapper stays in place. Without scopes
        # the wrapper only calls the original `run`.
        is_outermost = wrapper is not None and owner.run is wrapper
        if not self._scopes and is_outermost:
            del owner.run
            if wrapper.replaced_run is not None:
                owner.run = wrapper.replaced_run
            self._wrapper_ref = _return_none

    def _wrap(self, engine: AnyEngine) -> None:
        """Replaces ``engine.run`` with a wrapper that calls the original within the scopes."""
        owner: Any = engine  # untyped, to replace its method
        run = owner.run
        # If other code has already replaced `run` on this object, `drop` restores that function.
        # If `run` is still the method of the class, `drop` only deletes the wrapper.
        is_method_of_class = getattr(run, "__func__", None) is type(owner).run
        replaced_run = None if is_method_of_class else run

        engine_ref = ref(engine)

        @wraps(type(owner).run)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self.call(partial(run, *args, **kwargs), engine_ref())

        wrapper.replaced_run = replaced_run  # type: ignore[attr-defined]
        owner.run = wrapper
        self._wrapper_ref = ref(wrapper)

    def call(self, run: Callable[[], ResultT], engine: AnyEngine | None) -> ResultT:
        """Calls ``run`` within the scopes.

        Ctrl-C may have broken off the end of an earlier run. The scopes that are still open since
        that run are closed first.
        """
        former = self._running
        if former is not None and engine is not None and not is_running(engine):
            former.abandon()
            former = None
        stack = ScopeStack()
        try:
            with stack:
                self._running = stack
                for scope in self._scopes:
                    stack.enter(scope)
                return run()
        finally:
            # If Ctrl-C has left scopes open, their stack is kept, so that the next call closes it.
            if not stack.open:
                self._running = former


def _is_executing(scope: Scope) -> bool:
    generator = getattr(scope, "gen", None)  # the attribute that ``contextlib.contextmanager`` sets
    return generator is not None and generator.gi_running


def _return_none() -> None:
    return None
