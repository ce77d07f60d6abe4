"""Channels that open and close at the events of an Ignite engine other than a trainer.

A *channel* is a part of the training loop that has a name, such as ``on_step``. When a channel
opens, the contexts that users have registered on it are entered, and when it closes, they are left.
A set of hooks (a ``Hooks``) is a set of such registrations.
"""

import warnings
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.scopes import NULL_CONTEXT
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.channels import CHANNELS
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.hooks.context import Hook

__all__ = ["EventChannels", "channels_of"]


class EventChannels(Channels):
    """Channels that open and close at the events of an engine.

    Two channels have no events: ``OptimizerStep`` opens and closes ``on_optimizer_step``, and
    ``Validation`` opens and closes ``on_validation``.

    If a part of the loop fails, Ignite does not fire the event that would close its channel. The
    channel is then closed later: before it opens again, when a channel around it closes, or at the
    latest in ``run_scope``, when ``engine.run`` is left.

    If the first set of hooks is attached during a run that ``run_scope`` does not surround, the
    channels open from the next run on.

    If contexts are open when the last set is detached, they stay open until their channels close,
    and the handlers that open and close the channels are removed at the end of the run.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        # Maps each open channel to the number of contexts that were open before it.
        self._depths: dict[str, int] = {}
        self._number_of_sets = 0
        self._is_in_run = False
        self._has_warned = False
        self._attachment: Attachment | None = None

    def attach_set(self, hooks: Sequence[Hook]) -> None:
        """Adds a set of hooks; the first set also attaches the handlers that open the channels."""
        self._warn_once(hooks)
        engine = self._engine()
        if self._attachment is None and engine is not None:
            self._attachment = HookChannels().attach(engine)
        self._number_of_sets += 1
        # Calls `add` of the base class, because `self.add` would call `_warn_once` a second time.
        super().add(hooks)

    def detach_set(self, hooks: Sequence[Hook]) -> None:
        """Removes a set of hooks.

        If no set is left, the handlers that open and close the channels are removed too, unless a
        context is open.
        """
        super().detach_set(hooks)
        self._number_of_sets -= 1
        self._detach_if_idle()

    def add(self, hooks: Sequence[Hook]) -> None:
        """Adds hooks to a set that is attached already."""
        self._warn_once(hooks)
        super().add(hooks)

    def _warn_once(self, hooks: Sequence[Hook]) -> None:
        """Warns, once for each engine, that on_loop and on_epoch may be left late.

        If a user has turned warnings into errors, the warning is raised as an exception. So callers
        call this method first, before they change anything.
        """
        if not self._has_warned and any(each.channel in ("on_loop", "on_epoch") for each in hooks):
            self._has_warned = True
            warnings.warn(
                "on_loop and on_epoch may be left late after a failure on an engine that is not a "
                "Trainer: such an engine fires no event after a failure, so on_loop and on_epoch "
                "are left only when run() is left or the next epoch starts",
                # The warning shows the user's line that called a method of Hooks, for example
                # `register` or `attach`. The number of calls in between is the same for all.
                stacklevel=5,
            )

    def open(self, channel: str) -> None:
        """Opens a channel; closes it first if a failure has left it open."""
        self.close(channel)
        scope = getattr(self, channel)
        # Without `run_scope` around the run, nothing would close the channel after a failure.
        if scope is not NULL_CONTEXT and self._is_in_run:
            self._depths[channel] = len(self.scopes.open)
            scope.__enter__()

    def close(self, channel: str) -> None:
        """Closes a channel and the channels within it, if they are open."""
        if self._depths:
            # CHANNELS lists each channel after the channels around it.
            within = CHANNELS[CHANNELS.index(channel) :]
            depths = [self._depths.pop(name) for name in within if name in self._depths]
            if depths:
                self.scopes.leave(min(depths))

    @contextmanager
    def run_scope(self, engine: Engine) -> Iterator[None]:
        """Closes all channels at the end of the body, which is ``engine.run``.

        If ``interrupt()`` has paused the run, the channels stay open until the next call of
        ``engine.run`` continues it.
        """
        self._is_in_run = True
        try:
            yield
            if not is_interrupted(engine):
                self._leave_all()
        except BaseException:
            # If run() has refused its arguments, a paused run stays paused, and its channels stay
            # open.
            if not is_interrupted(engine):
                self._depths = {}
                with self.scopes:  # each context gets the failure as the exception of its body
                    raise
            raise
        finally:
            self._is_in_run = False
            self._detach_if_idle()

    def _leave_all(self) -> None:
        self._depths = {}
        self.scopes.leave(0)

    def _detach_if_idle(self) -> None:
        if not self._number_of_sets and not self.scopes.open and self._attachment is not None:
            attachment, self._attachment = self._attachment, None
            attachment.remove()


class HookChannels(Handler):
    """The handlers that open and close the channels of an engine at its events."""

    def attach_to(self, attachment: Attachment) -> None:
        TrainEvents.register(attachment.engine)
        attachment.during_run(lambda engine: _event_channels(engine).run_scope(engine))

        def opens(name: str, event: Any) -> None:
            attachment.on(event, lambda engine: _event_channels(engine).open(name), first=True)

        def closes(name: str, event: Any, *, first: bool = False) -> None:
            attachment.on(event, lambda engine: _event_channels(engine).close(name), first=first)

        opens("on_loop", Events.STARTED)
        opens("on_epoch", Events.EPOCH_STARTED)
        # `opens` attaches each handler as the first one of its event. So on_step opens before
        # on_batch, although it is attached later.
        opens("on_batch", Events.ITERATION_STARTED)
        opens("on_step", Events.ITERATION_STARTED)
        opens("on_model_forward", TrainEvents.MODEL_FORWARD_STARTED)
        closes("on_model_forward", TrainEvents.MODEL_FORWARD_COMPLETED)
        opens("on_model_backward", TrainEvents.MODEL_BACKWARD_STARTED)
        closes("on_model_backward", TrainEvents.MODEL_BACKWARD_COMPLETED)
        # At ITERATION_COMPLETED, on_batch closes first. Then the engine calls the handlers that are
        # attached already, and then on_step closes.
        closes("on_batch", Events.ITERATION_COMPLETED, first=True)
        closes("on_step", Events.ITERATION_COMPLETED)
        # If the epoch is terminated within an iteration, TERMINATE_SINGLE_EPOCH is fired instead of
        # ITERATION_COMPLETED. If the run is terminated, TERMINATE is fired instead of
        # EPOCH_COMPLETED.
        closes("on_step", Events.TERMINATE_SINGLE_EPOCH, first=True)
        closes("on_epoch", Events.EPOCH_COMPLETED)
        closes("on_epoch", Events.TERMINATE, first=True)
        closes("on_loop", Events.COMPLETED)


def channels_of(engine: AnyEngine) -> Channels:
    """Returns the channels of ``engine``. For a plain engine, the first call makes them."""
    owner: Any = engine  # Ignite's Engine does not declare this attribute
    if not hasattr(owner, "hook_channels"):
        owner.hook_channels = EventChannels(owner)
    channels: Channels = owner.hook_channels
    return channels


def _event_channels(engine: Engine) -> EventChannels:
    """Returns the channels that ``channels_of`` has made for a plain engine."""
    owner: Any = engine
    channels: EventChannels = owner.hook_channels
    return channels
