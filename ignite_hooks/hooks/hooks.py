"""Sets of contexts: context managers that are entered and left around parts of the loop.

A handler of an event is called at one point in time. A *context* runs code before a part of the
loop and after it, even if the part fails. Examples are a profiler's range, a timer, a temporary
setting, a lock and a span of a trace. A *channel* is a part of the loop that has a name. The
drawing in ``events.py`` shows where each of the eight channels opens and closes.

=====================  ============================================================================
``on_loop``            one run; if ``interrupt()`` pauses the run, the channel stays open until the
                       continued run ends
``on_epoch``           one epoch, with the validation and the save at its end
``on_step``            one iteration, after its batch has been fetched; includes the optimizer
                       step, if one is made, and the validation and the save due after this step
``on_batch``           the process function: forward and backward
``on_model_forward``   the model and the loss
``on_model_backward``  the backward pass
``on_optimizer_step``  one optimizer step: clipping, ``optimizer.step()`` and the scheduler; opens
                       after the gradients of all batches of the step have been accumulated
``on_validation``      one validation with its events; for example, a context can put averaged
                       weights into the model during the validation; after a failure the channel
                       closes at once, before EXCEPTION_RAISED
=====================  ============================================================================

A context is called with the engine. If the engine is a trainer, the engine always has these
attributes:

========================  ========================  ================================================
attribute                 type                      meaning
========================  ========================  ================================================
``accelerator``           Accelerator               owns device and processes
``model``                 Module                    as Accelerate prepared it
``optimizer``             AcceleratedOptimizer      wraps the user's optimizer, and has the same
                                                    ``param_groups``
``lr_scheduler``          LRScheduler | None        the trainer calls its ``step()``
``state.epoch``           int                       the present epoch, from 1; 0 before the first
``state.iteration``       int                       batches so far, with the present one
``state.optimizer_step``  int                       steps committed so far: optimizer steps without
                                                    those that the loss scaler skipped
``state.step_committed``  bool                      whether this iteration has committed a step; if
                                                    False when ``on_optimizer_step`` closes, the
                                                    loss scaler has skipped the step
``state.max_epochs``      int | None                limit of this run; if only ``max_steps`` is
                                                    given, the number of epochs for these steps
``state.max_steps``       int | None                limit of this run
``state.start_epoch``     int                       epochs that were complete when the run began
``state.start_step``      int                       steps that were committed when the run began
``state.dataloader``      iterable | None           the prepared data that the trainer runs on
``state.batch``           what the data gives       the batch of this iteration; None until it is
                                                    fetched
``state.model_outputs``   what the model gives      set by the forward pass; None before
``state.loss``            Tensor, a scalar | None   set by the forward pass, None before; detached
                                                    from its graph by the backward pass
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
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.rules import did_you_mean
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
    """A registration of contexts in a set, ended by ``remove()`` or by the end of a ``with``."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """Removes this registration and no other. A second call does nothing."""
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

    A *channel* is a part of the loop that has a name, here the optimizer step. A *context* is
    called with the engine. It is a generator function with one ``yield``, a function that makes a
    context manager (``lambda engine: record_function("step")``), or a ``HookContext``.

    Contexts are entered in order of registration and left in reverse order. If the part of the loop
    fails, its contexts are left too, and the exception is raised at their ``yield``. A context can
    end the failure in one way only: it catches the exception and calls ``trainer.terminate()``
    before the generator returns. Then the run stops cleanly. If leaving one context fails, the
    other contexts are left nonetheless. If several exceptions are raised, for example by the loop
    and by a context, the first one propagates. Its notes (``__notes__``) show the later ones.

    A trainer has one set already, ``trainer.hooks``. Further sets can be attached to the trainer,
    or given to ``create_supervised_trainer`` in ``handlers``. Contexts can be registered and
    removed during a run. The change takes effect when the channel opens next: a removed context
    that is open stays open until its channel closes.

    On a plain Ignite engine, one that is not a trainer, most channels open and close at events.
    Both ``on_step`` and ``on_batch`` open at ITERATION_STARTED and close at ITERATION_COMPLETED.
    ``on_model_forward`` and ``on_model_backward`` open and close only if the process function fires
    the events of ``TrainEvents`` whose names begin with MODEL. A process function that fires no
    events can use ``begin``. ``on_optimizer_step`` opens if the engine has an ``OptimizerStep``,
    and ``on_validation`` opens if the engine has a ``Validation``.

    On a plain engine, contexts are entered before all handlers of the event that opens the channel.
    At the event that closes the channel, handlers that were attached earlier than the set run
    inside the contexts, and later handlers run outside. So first attach the OptimizerStep and the
    handlers that belong inside, and then the set. The exception is ``on_batch``: its contexts are
    left before all handlers.
    If the engine had no set when a run began, a set that is attached within this run takes effect
    with the next run.

    If a failure ends an epoch or the loop, a plain engine does not fire the event that would close
    the channel. Contexts on ``on_loop`` then stay open until ``run`` is left. Contexts on
    ``on_epoch`` stay open until ``run`` is left or the next epoch starts. The next epoch can start
    only if a handler of EXCEPTION_RAISED has swallowed the failure. These contexts do not see a
    failure that was swallowed.
    """

    def __init__(self) -> None:
        self._hooks: tuple[Hook, ...] = ()
        self._attached_channels: WeakSet[Channels] = WeakSet()

    @classmethod
    def from_hooks(cls, hooks: "Hooks | Iterable[Hooks] | None") -> "Hooks":
        """Returns a new set with the contexts of ``hooks``, which is None or one or more sets."""
        new = cls()
        several = () if hooks is None else [hooks] if isinstance(hooks, Hooks) else hooks
        if not isinstance(several, Iterable):
            raise TypeError(
                f"`hooks` must be None, a Hooks or an iterable of them, got {hooks!r}: "
                "to add a context, call register(channel, context) of a Hooks"
            )
        for each in several:
            new += each
        return new

    def register(self, channel: ChannelName, context: Context) -> Registration:
        """Registers ``context``, which is entered when ``channel`` opens and left when it closes.

        Returns:
            A registration, whose ``remove()`` removes the context.

        Raises:
            TypeError: ``context`` is not a context.
            ValueError: there is no such channel.
        """
        _check_channel(channel)
        check_context(context)
        return self._add_hooks([Hook(channel, context)])

    def on(self, channel: ChannelName) -> Callable[[ContextT], ContextT]:
        """Returns a decorator that registers a context on ``channel``."""
        _check_channel(channel)

        def register(context: ContextT) -> ContextT:
            check_context(context)
            # `Hooks.register` is not called: the `stacklevel` of the warning in `EventChannels`
            # counts the calls from the user's line, and `Hooks.register` would be one more call.
            self._add_hooks([Hook(channel, context)])
            return context

        return register

    def register_all(self, hooks: "Hooks") -> Registration:
        """Registers all contexts that ``hooks`` has now.

        Returns:
            A registration, whose ``remove()`` removes these contexts and no others.
        """
        return self._add_hooks(_copies_of(hooks))

    def __iadd__(self, hooks: "Hooks") -> "Hooks":
        self._add_hooks(_copies_of(hooks))
        return self

    def unregister_all(self) -> None:
        """Removes all contexts of this set. Other sets on the same engines stay."""
        self._drop_hooks(self._hooks)

    def begin(self, channel: ChannelName, engine: Engine) -> AbstractContextManager[None]:
        """Returns a scope in which this set's contexts on ``channel`` are open.

        Use the scope in a loop or process function that you write yourself. Contexts cannot end a
        failure in this scope: if its body fails, the ``with`` always raises the exception.
        """
        _check_channel(channel)
        return self._entered_contexts(channel, engine)

    @contextmanager
    def _entered_contexts(self, channel: ChannelName, engine: Engine) -> Iterator[None]:
        with ScopeStack() as scopes:
            for hook in self._hooks:
                if hook.channel == channel:
                    scopes.enter(HookScope(hook, engine))
            yield

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that no event is given, and that this set is not yet attached to ``engine``."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: a context is entered and left with its "
                "channel"
            )
        if any(each is self for each in attached_handlers(engine, Hooks)):
            raise ValueError(
                f"`engine` must not have the same Hooks twice, and {self!r} is attached already: "
                "attach another Hooks, or remove() the attachment first"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Adds the contexts of the set to the engine's channels.

        If more contexts are registered on the set later, ``_add_hooks`` adds them.
        """
        channels = channels_of(attachment.engine)
        channels.attach_set(self._hooks)
        self._attached_channels.add(channels)

        def detach() -> None:
            self._attached_channels.discard(channels)
            channels.detach_set(self._hooks)

        attachment.on_removal(detach)

    def _add_hooks(self, hooks: Sequence[Hook]) -> Registration:
        for channels in self._attached_channels:
            channels.add(hooks)
        self._hooks = (*self._hooks, *hooks)
        return Registration(lambda: self._drop_hooks(hooks))

    def _drop_hooks(self, hooks: Sequence[Hook]) -> None:
        dropped = set(hooks)
        self._hooks = tuple(each for each in self._hooks if each not in dropped)
        for channels in self._attached_channels:
            channels.drop(hooks)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own registrations and is attached to no engine.
        return {**vars(self), "_hooks": tuple(_copies_of(self)), "_attached_channels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _attached_channels=WeakSet())

    def __len__(self) -> int:
        return len(self._hooks)

    def __repr__(self) -> str:
        by_channel = {
            channel: [name_of(hook.context) for hook in self._hooks if hook.channel == channel]
            for channel in CHANNELS
        }
        shown = (f"{name}: {', '.join(names)}" for name, names in by_channel.items() if names)
        return f"<{type(self).__name__} {'; '.join(shown) or 'without contexts'}>"


def _copies_of(hooks: Hooks) -> list[Hook]:
    """Returns a copy of each hook of a set. A copy can be removed without the original."""
    if not isinstance(hooks, Hooks):
        raise TypeError(
            f"`hooks` must be a Hooks, got {hooks!r}: register() takes a channel and a context"
        )
    return [Hook(each.channel, each.context) for each in hooks._hooks]


def _check_channel(channel: Any) -> None:
    if not isinstance(channel, str) or channel not in CHANNELS:
        remedy = did_you_mean(f"on_{str(channel).removeprefix('on_')}", CHANNELS)
        raise ValueError(
            f"`channel` must be one of {', '.join(CHANNELS)}, got {channel!r}: {remedy}"
        )
