"""The eight channels of one engine, each a scope around a part of its loop."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any
from typing import get_args
from weakref import ref

from ignite.engine import Engine

from ignite_hooks.core.scopes import NOTHING
from ignite_hooks.core.scopes import ScopeStack
from ignite_hooks.hooks.context import ChannelName
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.context import HookScope

__all__ = ["CHANNELS", "Channels"]

CHANNELS: tuple[ChannelName, ...] = get_args(ChannelName)


class Channels:
    """What is on the channels of one engine, and what of it the engine is in.

    ``with channels.on_step:`` enters the contexts of that channel in order of their registration
    and leaves them in reverse; while there are none it costs next to nothing.

    After a failure they stay open, for the handlers of EXCEPTION_RAISED to be called inside, and
    whoever runs the engine closes them all with ``scopes``. ``on_validation`` alone closes at once:
    someone may catch the failure of a validation and train on.
    """

    def __init__(self, engine: Engine) -> None:
        self.on_loop = NOTHING
        self.on_epoch = NOTHING
        self.on_step = NOTHING
        self.on_batch = NOTHING
        self.on_model_forward = NOTHING
        self.on_model_backward = NOTHING
        self.on_optimizer_step = NOTHING
        self.on_validation = NOTHING
        self.scopes = ScopeStack()
        self._engine = ref(engine)
        self._hooks: tuple[Hook, ...] = ()

    def join(self, hooks: Sequence[Hook]) -> None:
        """A set comes, with these."""
        self.add(hooks)

    def part(self, hooks: Sequence[Hook]) -> None:
        """A set goes, with these."""
        self.drop(hooks)

    def add(self, hooks: Sequence[Hook]) -> None:
        """Has the contexts entered after those there are, when their channels open next."""
        self._arrange((*self._hooks, *hooks))

    def drop(self, hooks: Sequence[Hook]) -> None:
        """Has the contexts entered no more when their channels open next; open ones are left."""
        dropped = set(hooks)
        self._arrange(tuple(each for each in self._hooks if each not in dropped))

    def _arrange(self, hooks: tuple[Hook, ...]) -> None:
        self._hooks = hooks
        for name in CHANNELS:
            own = tuple(hook for hook in hooks if hook.channel == name)
            kind = _ChannelOfValidation if name == "on_validation" else _Channel
            setattr(self, name, kind(own, self.scopes, self._engine) if own else NOTHING)


class _Channel(AbstractContextManager[None, Any]):
    def __init__(self, hooks: tuple[Hook, ...], scopes: ScopeStack, engine: "ref[Engine]") -> None:
        self._hooks = hooks
        self._scopes = scopes
        self._engine = engine
        self._depth = 0

    def __enter__(self) -> None:
        engine = self._engine()
        assert engine is not None
        scopes = self._scopes
        self._depth = len(scopes.open)
        for hook in self._hooks:
            scopes.enter(HookScope(hook, engine))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if error is None:
            self._scopes.leave(self._depth)
        return None


class _ChannelOfValidation(_Channel):
    """Closes after a failure too, and ends that if one of its contexts calls ``terminate()``."""

    def __init__(self, hooks: tuple[Hook, ...], scopes: ScopeStack, engine: "ref[Engine]") -> None:
        super().__init__(hooks, scopes, engine)
        self._depths: list[int] = []  # a handler may validate within a validation

    def __enter__(self) -> None:
        depth = len(self._scopes.open)
        try:
            super().__enter__()
        except BaseException as error:  # nothing can keep the validation from failing
            self._close(error, depth)
            raise
        self._depths.append(depth)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return self._close(error, self._depths.pop())

    def _close(self, error: BaseException | None, depth: int) -> bool:
        """Closes all, and returns whether a context has made a clean stop of a failure."""
        if error is not None and not self._is_stopped_by_context(error, depth):
            return False
        try:
            self._scopes.leave(depth)
        except BaseException as first:
            if not self._close(first, depth):
                raise
        return error is not None

    def _is_stopped_by_context(self, error: BaseException, depth: int) -> bool:
        """Closes open contexts until one calls ``terminate()`` to end the failure cleanly."""
        engine: Any = self._engine()
        scopes = self._scopes
        later, scopes.later_failure = scopes.later_failure, None
        requested, engine.should_terminate = engine.should_terminate, False
        stop = False
        for is_caught in scopes.unwind(error, depth):
            stop, engine.should_terminate = engine.should_terminate, False
            if is_caught and stop and scopes.later_failure is None:
                break
            stop = False
        scopes.later_failure = later
        engine.should_terminate = requested or stop
        return bool(stop)
