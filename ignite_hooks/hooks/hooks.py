"""Contexts that are entered before a part of the loop and surely left after it.

Events are moments. A context on a *channel* is a scope: a profiler's range, a timer, a temporary
setting, a lock, a span of a trace. ``events.py`` draws where each of the eight begins and ends.

=====================  ============================================================================
``on_loop``            one run; an ``interrupt()`` leaves it open until the run goes on and ends
``on_epoch``           one epoch, with the validation and the save at its end
``on_step``            one iteration without the wait for its batch, with the step that it may make
                       and what is due after that
``on_batch``           the process function: forward and backward
``on_model_forward``   the model and the loss
``on_model_backward``  the backward pass
``on_optimizer_step``  the step of a full window: clipping, step, scheduler
``on_validation``      one validation with its events: the place for temporary weights; after a
                       failure it is left at once, before EXCEPTION_RAISED
=====================  ============================================================================

A context is given the engine. On a trainer it finds there, at any time:

========================  ========================  ================================================
on the engine             type                      what
========================  ========================  ================================================
``accelerator``           Accelerator               owns device and processes
``model``                 Module                    as Accelerate prepared it
``optimizer``             AcceleratedOptimizer      its ``param_groups`` are live
``lr_scheduler``          LRScheduler | None        the one that the trainer moves
``state.epoch``           int                       the present one, from 1; 0 before
``state.iteration``       int                       batches so far, this one included
``state.optimizer_step``  int                       steps committed so far
``state.step_committed``  bool                      whether this iteration made a step; False on the
                                                    way out of ``on_optimizer_step``: it was skipped
``state.max_epochs``      int | None                of this run, or what ``max_steps`` alone takes
``state.max_steps``       int | None                of this run
``state.start_epoch``     int                       epochs that were complete when it began
``state.start_step``      int                       steps that were committed when it began
``state.dataloader``      iterable | None           what it trains on, as prepared
``state.batch``           what the data gives       that of this iteration, or None
``state.model_outputs``   what the model gives      from the end of the forward on; None before
``state.loss``            Tensor, a scalar | None   likewise; without its graph after the backward
========================  ========================  ================================================
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import contextmanager
from typing import Any
from typing import TypeVar
from weakref import WeakSet

from ignite.engine import Engine

from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached
from ignite_hooks.core.rules import close_to
from ignite_hooks.core.scopes import ScopeStack
from ignite_hooks.hooks.channels import CHANNELS
from ignite_hooks.hooks.channels import Channels
from ignite_hooks.hooks.context import ChannelName
from ignite_hooks.hooks.context import Context
from ignite_hooks.hooks.context import Hook
from ignite_hooks.hooks.context import HookContext
from ignite_hooks.hooks.context import HookScope
from ignite_hooks.hooks.context import check_context
from ignite_hooks.hooks.context import name_of
from ignite_hooks.hooks.event_channels import channels_of

__all__ = ["HookContext", "Hooks", "Registration"]

ContextT = TypeVar("ContextT", bound=Context)


class Registration(AbstractContextManager["Registration", None]):
    """One or several contexts in a set, until ``remove()``. In a ``with``, until its end."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """Takes off this registration and no other. A second time does nothing."""
        self._remove()

    def __exit__(self, *failure: object) -> None:
        self.remove()


class Hooks(Handler):
    """A set of contexts, each on a channel of the loop.

    ::

        @trainer.hooks.on("on_optimizer_step")
        def timed(engine):
            start = time.perf_counter()
            try:
                yield
            finally:
                engine.state.metrics["optimizer_step_seconds"] = time.perf_counter() - start

    A context is a generator function with one ``yield``, a function that makes a context manager
    (``lambda engine: record_function("step")``), or a ``HookContext``. It receives the engine.
    Contexts are entered in order of registration and left in reverse, whatever happens in between:
    a failure arrives as the exception at the ``yield``. It cannot be swallowed there, unless by
    ``trainer.terminate()`` before the generator returns, which makes a clean stop of it. A failure
    on the way out does not keep the others from being left; if there was one before, the later one
    is noted on it.

    A trainer has a set, ``trainer.hooks``; others are attached to it, or given to the factory's
    ``handlers``. What is registered or removed meanwhile counts when its channel opens next; what
    is open is left in its turn.

    On an engine that is not a trainer the channels open and close at its events: ``on_batch`` as
    ``on_step``, the model's two if the process function fires ``TrainEvents`` (or uses ``begin``),
    ``on_optimizer_step`` if the engine has an ``OptimizerStep``, ``on_validation`` if it has a
    ``Validation``. Contexts are entered before the
    handlers of the first event and left in order of attachment with those of the last, so attach
    the set after them, and after the OptimizerStep; a first set attached within a run counts from
    the next run on. Such an engine does not tell when a failure has ended an epoch or the loop:
    ``on_loop`` and ``on_epoch`` are left when ``run`` is left or the next epoch starts, and see
    nothing of a failure that a handler of EXCEPTION_RAISED has swallowed.
    """

    def __init__(self) -> None:
        self._hooks: tuple[Hook, ...] = ()
        self._followers: WeakSet[Channels] = WeakSet()

    @classmethod
    def from_hooks(cls, hooks: "Hooks | Iterable[Hooks] | None") -> "Hooks":
        """A new set of all that is in ``hooks``: none, one set, or several."""
        new = cls()
        several = () if hooks is None else [hooks] if isinstance(hooks, Hooks) else hooks
        if not isinstance(several, Iterable):
            raise TypeError(
                f"`hooks` must be None, a Hooks or an iterable of them, got {hooks!r}: "
                "Hooks().register(channel, context) makes one of a context"
            )
        for each in several:
            new += each
        return new

    def register(self, channel: ChannelName, context: Context) -> Registration:
        """Has ``context`` entered and left with ``channel``.

        Returns:
            What takes off this registration and no other.

        Raises:
            TypeError: ``context`` is no context.
            ValueError: there is no such channel.
        """
        _check_channel(channel)
        check_context(context)
        return self._add([Hook(channel, context)])

    def on(self, channel: ChannelName) -> Callable[[ContextT], ContextT]:
        """``register`` as a decorator."""
        _check_channel(channel)

        def register(context: ContextT) -> ContextT:
            check_context(context)
            self._add([Hook(channel, context)])  # not by register(): see `_warn_once`
            return context

        return register

    def register_all(self, hooks: "Hooks") -> Registration:
        """Registers all that is in ``hooks`` now.

        Returns:
            What takes off these registrations and no others.
        """
        return self._add(_copied(hooks))

    def __iadd__(self, hooks: "Hooks") -> "Hooks":
        self._add(_copied(hooks))
        return self

    def unregister_all(self) -> None:
        """Takes off all that is in this set. Other sets on the same engines stay."""
        self._drop(self._hooks)

    def begin(self, channel: ChannelName, engine: Engine) -> AbstractContextManager[None]:
        """The contexts of this set on ``channel``, around a part of one's own loop.

        A failure of the body passes, whatever they do to it.
        """
        _check_channel(channel)
        return self._begun(channel, engine)

    @contextmanager
    def _begun(self, channel: ChannelName, engine: Engine) -> Iterator[None]:
        with ScopeStack() as scopes:
            for hook in self._hooks:
                if hook.channel == channel:
                    scopes.enter(HookScope(hook, engine))
            yield

    def check(self, engine: Engine, event: Any) -> None:
        """A set has moments of its own, and is on an engine once."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: a context is entered and left with its "
                "channel"
            )
        if any(each is self for each in attached(engine, Hooks)):
            raise ValueError(
                f"`engine` must not have the same Hooks twice, and {self!r} is attached already: "
                "attach another, or remove() the attachment first"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Adds what is in the set, now and later, to the channels of the engine."""
        channels = channels_of(attachment.engine)
        channels.join(self._hooks)
        self._followers.add(channels)

        def leave() -> None:
            self._followers.discard(channels)
            channels.part(self._hooks)

        attachment.on_removal(leave)

    def _add(self, hooks: Sequence[Hook]) -> Registration:
        for channels in self._followers:
            channels.add(hooks)
        self._hooks = (*self._hooks, *hooks)
        return Registration(lambda: self._drop(hooks))

    def _drop(self, hooks: Sequence[Hook]) -> None:
        dropped = set(hooks)
        self._hooks = tuple(each for each in self._hooks if each not in dropped)
        for channels in self._followers:
            channels.drop(hooks)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has registrations of its own and is attached to nothing.
        return {**vars(self), "_hooks": tuple(_copied(self)), "_followers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _followers=WeakSet())

    def __len__(self) -> int:
        return len(self._hooks)

    def __repr__(self) -> str:
        by_channel = {
            channel: [name_of(hook.context) for hook in self._hooks if hook.channel == channel]
            for channel in CHANNELS
        }
        shown = (f"{name}: {', '.join(names)}" for name, names in by_channel.items() if names)
        return f"<{type(self).__name__} {'; '.join(shown) or 'without contexts'}>"


def _copied(hooks: Hooks) -> list[Hook]:
    if not isinstance(hooks, Hooks):
        raise TypeError(
            f"`hooks` must be a Hooks, got {hooks!r}: register() takes a channel and a context"
        )
    return [Hook(each.channel, each.context) for each in hooks._hooks]


def _check_channel(channel: Any) -> None:
    if not isinstance(channel, str) or channel not in CHANNELS:
        remedy = close_to(f"on_{str(channel).removeprefix('on_')}", CHANNELS)
        raise ValueError(
            f"`channel` must be one of {', '.join(CHANNELS)}, got {channel!r}: {remedy}"
        )
