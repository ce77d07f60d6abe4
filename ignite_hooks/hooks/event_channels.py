"""The channels of an engine that knows nothing of them: they open and close at its events."""

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
from ignite_hooks.core.scopes import NOTHING
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.channels import CHANNELS
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.hooks.context import Hook

__all__ = ["EventChannels", "channels_of"]


class EventChannels(Channels):
    """Channels that open and close at events; ``OptimizerStep`` and ``Validation`` open theirs.

    After a failure an event that would close a channel does not come. Then it is closed when the
    channel opens again, when one around it closes, or when ``engine.run`` is left. So nothing is
    opened in a run that was not entered here, that in which the first set was attached. What is
    open when the last set goes is left in its turn; at the end of the run nothing listens any more.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._depths: dict[str, int] = {}
        self._sets = 0
        self._is_in_run = False
        self._has_warned = False
        self._attachment: Attachment | None = None

    def join(self, hooks: Sequence[Hook]) -> None:
        """As always; listens to the events from now on."""
        self._warn_once(hooks)
        engine = self._engine()
        if self._attachment is None and engine is not None:
            self._attachment = HookChannels().attach(engine)
        self._sets += 1
        super().add(hooks)

    def part(self, hooks: Sequence[Hook]) -> None:
        """As always; listens no more if it was the last."""
        super().part(hooks)
        self._sets -= 1
        self._detach_if_idle()

    def add(self, hooks: Sequence[Hook]) -> None:
        """As always."""
        self._warn_once(hooks)
        super().add(hooks)

    def _warn_once(self, hooks: Sequence[Hook]) -> None:
        """Before anything is changed: a warning may be an error."""
        if not self._has_warned and any(each.channel in ("on_loop", "on_epoch") for each in hooks):
            self._has_warned = True
            warnings.warn(
                "on_loop and on_epoch may be left late after a failure on an engine that is not a "
                "Trainer: its events do not tell, so they are left when run() is left or the next "
                "epoch starts",
                stacklevel=5,  # who called a public method of Hooks: each is as far from here
            )

    def open(self, channel: str) -> None:
        """Opens a channel, and closes it first where a failure left it open."""
        self.close(channel)
        scope = getattr(self, channel)
        if scope is not NOTHING and self._is_in_run:
            self._depths[channel] = len(self.scopes.open)
            scope.__enter__()

    def close(self, channel: str) -> None:
        """Closes a channel and those within it, as far as they are open."""
        if self._depths:
            within = CHANNELS[CHANNELS.index(channel) :]
            depths = [self._depths.pop(name) for name in within if name in self._depths]
            if depths:
                self.scopes.leave(min(depths))

    @contextmanager
    def in_run(self, engine: Engine) -> Iterator[None]:
        """Around ``engine.run``: closes what is open at its end."""
        self._is_in_run = True
        try:
            yield
            if not is_interrupted(engine):
                self._close_all()
        except BaseException:
            if not is_interrupted(engine):  # it may be so still, if run() refused its arguments
                self._depths = {}
                with self.scopes:
                    raise
            raise
        finally:
            self._is_in_run = False
            self._detach_if_idle()

    def _close_all(self) -> None:
        self._depths = {}
        self.scopes.leave(0)

    def _detach_if_idle(self) -> None:
        if not self._sets and not self.scopes.open and self._attachment is not None:
            attachment, self._attachment = self._attachment, None
            attachment.remove()


class HookChannels(Handler):
    """Opens and closes the channels of an engine."""

    def attach_to(self, attachment: Attachment) -> None:
        TrainEvents.register(attachment.engine)
        attachment.during_run(lambda engine: _channels(engine).in_run(engine))

        def opens(name: str, at: Any) -> None:
            attachment.on(at, lambda engine: _channels(engine).open(name), first=True)

        def closes(name: str, at: Any, *, first: bool = False) -> None:
            attachment.on(at, lambda engine: _channels(engine).close(name), first=first)

        opens("on_loop", at=Events.STARTED)
        opens("on_epoch", at=Events.EPOCH_STARTED)
        opens("on_batch", at=Events.ITERATION_STARTED)
        opens("on_step", at=Events.ITERATION_STARTED)  # the last that is put first comes first
        opens("on_model_forward", at=TrainEvents.MODEL_FORWARD_STARTED)
        closes("on_model_forward", at=TrainEvents.MODEL_FORWARD_COMPLETED)
        opens("on_model_backward", at=TrainEvents.MODEL_BACKWARD_STARTED)
        closes("on_model_backward", at=TrainEvents.MODEL_BACKWARD_COMPLETED)
        closes("on_batch", at=Events.ITERATION_COMPLETED, first=True)
        closes("on_step", at=Events.ITERATION_COMPLETED)
        closes("on_step", at=Events.TERMINATE_SINGLE_EPOCH, first=True)
        closes("on_epoch", at=Events.EPOCH_COMPLETED)
        closes("on_epoch", at=Events.TERMINATE, first=True)
        closes("on_loop", at=Events.COMPLETED)


def channels_of(engine: AnyEngine) -> Channels:
    """Returns the channels of ``engine``: a trainer has some, a plain engine is given some."""
    owner: Any = engine  # of a plain engine nobody knows this attribute
    if not hasattr(owner, "hook_channels"):
        owner.hook_channels = EventChannels(owner)
    channels: Channels = owner.hook_channels
    return channels


def _channels(engine: Engine) -> EventChannels:
    owner: Any = engine  # it was given the channels when it was attached to
    channels: EventChannels = owner.hook_channels
    return channels
