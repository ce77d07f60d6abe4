"""The eight channels of one engine, each a scope around a part of its loop.

A *context* is a user's code before and after a part of the loop. A *hook* is the registration of a
context on a channel.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any
from typing import get_args
from weakref import ref

from ignite.engine import Engine

from ignite_hooks.core.scopes import NULL_CONTEXT
from ignite_hooks.core.scopes import ScopeStack
from ignite_hooks.hooks.context import ChannelName
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.context import HookScope

__all__ = ["CHANNELS", "Channels"]

CHANNELS: tuple[ChannelName, ...] = get_args(ChannelName)


class Channels:
    """The contexts on the channels of one engine, and the stack of open contexts.

    ``with channels.on_step:`` enters the contexts of the channel in order of their registration,
    and leaves them in reverse order. A channel without contexts costs next to nothing.

    After a failure, contexts stay open until the handlers of EXCEPTION_RAISED have been called.
    Then the code that runs the engine closes all contexts through ``scopes``. Only
    ``on_validation`` closes at once, because a user may catch the failure of a validation and
    continue to train.

    Attributes:
        scopes: the open contexts of all channels.
    """

    def __init__(self, engine: Engine) -> None:
        self.on_loop = NULL_CONTEXT
        self.on_epoch = NULL_CONTEXT
        self.on_step = NULL_CONTEXT
        self.on_batch = NULL_CONTEXT
        self.on_model_forward = NULL_CONTEXT
        self.on_model_backward = NULL_CONTEXT
        self.on_optimizer_step = NULL_CONTEXT
        self.on_validation = NULL_CONTEXT
        self.scopes = ScopeStack()
        self._engine = ref(engine)
        self._hooks: tuple[Hook, ...] = ()

    def attach_set(self, hooks: Sequence[Hook]) -> None:
        """Adds the hooks of a ``Hooks``, a set that is being attached to the engine."""
        self.add(hooks)

    def detach_set(self, hooks: Sequence[Hook]) -> None:
        """Removes the hooks of a ``Hooks``, a set that is being detached from the engine."""
        self.drop(hooks)

    def add(self, hooks: Sequence[Hook]) -> None:
        """Adds hooks after the present hooks, for example to a set that is attached already.

        The hooks take effect when their channels open next.
        """
        self._set_hooks((*self._hooks, *hooks))

    def drop(self, hooks: Sequence[Hook]) -> None:
        """Removes hooks, for example from a set that stays attached.

        Contexts that are open stay open until their channels close.
        """
        dropped = set(hooks)
        self._set_hooks(tuple(each for each in self._hooks if each not in dropped))

    def _set_hooks(self, hooks: tuple[Hook, ...]) -> None:
        # Channels are replaced, not changed, so that the `with` of an open channel still leaves the
        # contexts that it has entered.
        self._hooks = hooks
        for name in CHANNELS:
            own = tuple(hook for hook in hooks if hook.channel == name)
            channel_type = _ValidationChannel if name == "on_validation" else _Channel
            setattr(
                self, name, channel_type(own, self.scopes, self._engine) if own else NULL_CONTEXT
            )


class _Channel(AbstractContextManager[None, Any]):
    """A channel that has contexts. After a failure, the code that runs the engine closes them."""

    def __init__(self, hooks: tuple[Hook, ...], scopes: ScopeStack, engine: "ref[Engine]") -> None:
        self._hooks = hooks
        self._scopes = scopes
        self._engine = engine
        self._depth = 0

    def __enter__(self) -> None:
        engine = self._engine()
        assert engine is not None
        scopes = self._scopes
        self._depth = len(scopes.open)  # contexts of outer channels are below this depth
        for hook in self._hooks:
            scopes.enter(HookScope(hook, engine))

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if error is None:
            self._scopes.leave(self._depth)
        return None


class _ValidationChannel(_Channel):
    """The channel ``on_validation``, which closes its contexts after a failure too.

    A context can end the failure: it catches the failure and calls ``terminate()``. Then the run
    stops cleanly.
    """

    def __init__(self, hooks: tuple[Hook, ...], scopes: ScopeStack, engine: "ref[Engine]") -> None:
        super().__init__(hooks, scopes, engine)
        # One depth for each open scope; several if a handler validates within a validation.
        self._depths: list[int] = []

    def __enter__(self) -> None:
        depth = len(self._scopes.open)
        try:
            super().__enter__()
        except BaseException as error:
            # The error is raised even if a context ends the failure. Otherwise the body would run.
            self._leave(error, depth)
            raise
        self._depths.append(depth)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return self._leave(error, self._depths.pop())

    def _leave(self, error: BaseException | None, depth: int) -> bool:
        """Closes the channel; returns whether a context has turned a failure into a clean stop.

        Args:
            error: the failure, if there was one.
            depth: the number of contexts that were open before the channel opened.
        """
        if error is not None and not self._is_stopped_by_context(error, depth):
            return False
        try:
            self._scopes.leave(depth)
        except BaseException as first:
            if not self._leave(first, depth):
                raise
        return error is not None

    def _is_stopped_by_context(self, error: BaseException, depth: int) -> bool:
        """Closes open contexts until one of them ends the failure; returns whether one has done so.

        A context ends the failure if it catches the failure, calls ``terminate()`` and does not
        fail itself.
        """
        engine: Any = self._engine()
        scopes = self._scopes
        # `later_failure` and `should_terminate` are set aside until the loop ends, so that they
        # show only what the contexts do. A failure of an outer scope must not be taken for a
        # failure of a context. A stop that was requested before must not be taken for a request of
        # a context.
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
