"""The seven channels of one engine, each a scope around a part of its loop."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from weakref import ref

from ignite.engine import Engine

from ignite_hooks.core.scopes import NOTHING
from ignite_hooks.core.scopes import ScopeStack
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.context import HookScope

__all__ = ["CHANNELS", "Channels"]

CHANNELS = (
    "on_loop",
    "on_epoch",
    "on_step",
    "on_batch",
    "on_model_forward",
    "on_model_backward",
    "on_optimizer_step",
)


class Channels:
    """What is on the channels of one engine, and what of it the engine is in.

    ``with channels.on_step:`` enters the contexts of that channel in order of their registration
    and leaves them in reverse; while there are none it costs next to nothing.

    After a failure they stay open, for the handlers of EXCEPTION_RAISED to be called inside, and
    whoever runs the engine closes them all with ``scopes``.
    """

    def __init__(self, engine: Engine) -> None:
        self.on_loop = NOTHING
        self.on_epoch = NOTHING
        self.on_step = NOTHING
        self.on_batch = NOTHING
        self.on_model_forward = NOTHING
        self.on_model_backward = NOTHING
        self.on_optimizer_step = NOTHING
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
            setattr(self, name, _Channel(own, self.scopes, self._engine) if own else NOTHING)


class _Channel(AbstractContextManager[None, None]):
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
    ) -> None:
        if error is None:
            self._scopes.leave(self._depth)
