"""The channels of an engine: eight parts of its loop around which users' contexts are entered.

A *channel* is a part of the training loop that has a name, for example ``on_step``. A *context* is
a user's function that makes a context manager. The context manager is entered when the channel
opens and left when the channel closes. A *hook* is the registration of a context on a channel.
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

    For each channel there is an attribute of the same name, which is a context manager.
    ``with channels.on_step:`` enters the contexts of the channel in order of their registration,
    and leaves them in reverse order. A channel without contexts costs next to nothing.

    If the body of such a ``with`` fails, the contexts stay open, so that handlers of
    EXCEPTION_RAISED see the state at the failure. When these handlers have returned, the trainer
    closes the contexts through ``scopes``. On a plain Ignite engine the subclass ``EventChannels``
    does so. Only ``on_validation`` closes its contexts itself after a failure, because a user may
    catch the failure of a validation and continue to train.

    Attributes:
        scopes: the stack of the open contexts of all channels, innermost last.
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
        """Adds the hooks of a set (a ``Hooks``) when the set is attached to the engine."""
        self.add(hooks)

    def detach_set(self, hooks: Sequence[Hook]) -> None:
        """Removes the hooks of a set (a ``Hooks``) when the set is detached from the engine."""
        self.drop(hooks)

    def add(self, hooks: Sequence[Hook]) -> None:
        """Adds hooks after the present hooks, for example when a user adds one to an attached set.

        The contexts of the hooks are entered when their channels open next.
        """
        self._set_hooks((*self._hooks, *hooks))

    def drop(self, hooks: Sequence[Hook]) -> None:
        """Removes hooks, for example when a user removes one context from an attached set.

        A removed context that is open stays open until its channel closes.
        """
        dropped = set(hooks)
        self._set_hooks(tuple(each for each in self._hooks if each not in dropped))

    def _set_hooks(self, hooks: tuple[Hook, ...]) -> None:
        # The channel objects are replaced, not changed. So if a channel is open now, its `with`
        # keeps the old object, and closes the contexts that were entered through this object.
        self._hooks = hooks
        for name in CHANNELS:
            own = tuple(hook for hook in hooks if hook.channel == name)
            channel_type = _ValidationChannel if name == "on_validation" else _Channel
            setattr(
                self, name, channel_type(own, self.scopes, self._engine) if own else NULL_CONTEXT
            )


class _Channel(AbstractContextManager[None, Any]):
    """A channel that has contexts. After a failure they stay open, as ``Channels`` explains."""

    def __init__(self, hooks: tuple[Hook, ...], scopes: ScopeStack, engine: "ref[Engine]") -> None:
        self._hooks = hooks
        self._scopes = scopes
        self._engine = engine
        self._depth = 0

    def __enter__(self) -> None:
        engine = self._engine()
        assert engine is not None
        scopes = self._scopes
        self._depth = len(scopes.open)  # the number of open contexts of outer channels
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
    """The channel ``on_validation``, which closes its contexts itself, also after a failure.

    A context can end the failure: it catches the exception at its ``yield`` and calls
    ``terminate()``. Then the exception goes no further, and the run stops cleanly.
    """

    def __init__(self, hooks: tuple[Hook, ...], scopes: ScopeStack, engine: "ref[Engine]") -> None:
        super().__init__(hooks, scopes, engine)
        # For each open `with` of this channel, the number of contexts that were open before it. The
        # list has several entries if a handler runs a validation within a validation.
        self._depths: list[int] = []

    def __enter__(self) -> None:
        depth = len(self._scopes.open)
        try:
            super().__enter__()
        except BaseException as error:
            # `_leave` returns True if a context has ended the failure. The error is raised in this
            # case, too. Otherwise the body of the `with`, which is the validation, would run.
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
            error: the failure of the validation or of a context, or None.
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
        """Closes contexts of the channel until one ends the failure; returns whether one did.

        A context ends the failure if it catches the failure, calls ``terminate()`` and raises no
        exception itself.
        """
        engine: Any = self._engine()
        scopes = self._scopes
        # Other code may have set `later_failure` and `should_terminate` already. Both are cleared
        # for the loop below, which must see only what the contexts of this channel set.
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
