"""The base classes of handlers, and the attachment of a handler to an engine."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from typing import TypeAlias
from typing import TypeVar
from weakref import WeakKeyDictionary
from weakref import ref

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import move_to_front
from ignite_hooks.core.engine import set_turn
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.run_scope import Scope
from ignite_hooks.core.run_scope import enter_at_each_run
from ignite_hooks.core.time_accounts import account_of
from ignite_hooks.core.time_accounts import charged_to
from ignite_hooks.core.timetable import Timetable
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.undo_stack import undo_on_exit

__all__ = [
    "Attachment",
    "Handler",
    "Scheduled",
    "attached_handlers",
    "check_not_attached",
    "check_own_path",
    "record_attachment",
]

HandlerT = TypeVar("HandlerT", bound="Handler")
# The engine is typed as Any, because a callback may need a trainer or another subclass of Engine.
Callback: TypeAlias = Callable[[Any], Any]
RunScope: TypeAlias = Callable[[Any], Scope]


class Handler:
    """A callable that acts at events of an engine. It can be attached in three ways.

    ::

        engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), handler)   # as a callable
        attachment = handler.attach(engine)                                  # on its own schedule
        handler.attach(engine, Events.ITERATION_COMPLETED(every=10))         # at any event

    A subclass defines its action in ``__call__``. A subclass whose handlers can be attached without
    an event also defines their schedule in ``attach_to``. A handler keeps no reference to an
    engine, so that one handler can serve several engines.
    """

    def __call__(self, engine: Any) -> None:  # Any, so that a subclass may require a trainer
        """Performs the action of the handler now."""
        raise TypeError(f"{type(self).__name__} acts on its own schedule: use attach(engine)")

    def attach(self, engine: Engine, event: Any = None) -> "Attachment":
        """Attaches the handler to ``event``, or on its own schedule if ``event`` is None.

        Args:
            engine: the engine.
            event: the event, with or without a filter; None for the handler's own schedule.

        Returns:
            The attachment. Its ``remove()`` removes this attachment and no other. The attachment is
            also a context manager, which calls ``remove()`` when the ``with`` ends.
        """
        if not isinstance(engine, Engine):
            raise TypeError(
                f"`engine` must be an Ignite Engine, got {shown_type(engine)}: attach the handler "
                "to the trainer"
            )
        self.check(engine, event)
        attachment = Attachment(self, engine)
        try:
            if event is None:
                self.attach_to(attachment)
            else:
                attachment.on(event, self)
        except BaseException:
            attachment.remove()  # what was added before the failure must not stay on the engine
            raise
        _attachments(engine).append(attachment)
        return attachment

    @property
    def timetable(self) -> Timetable | None:
        """The table in which other handlers register callbacks by step, or None.

        ``OptimizerStep`` has such a table, because it counts the steps.
        """
        return None

    @property
    def summary(self) -> str:
        """The text about this handler in ``repr(trainer)``; an empty text adds nothing."""
        return ""

    def findings(self, engine: Engine) -> dict[str, Any]:
        """Returns what a record should keep of a run beside its metrics; empty by default.

        ``MetricsLog`` writes the findings to its record after validations, at the end of epochs,
        after checkpoints, and when a run stops or fails, if they have changed since. Only rank 0
        calls this method, so it must not be collective.

        Args:
            engine: an engine to which this handler is attached.

        Returns:
            Data that JSON can hold.
        """
        return {}

    def check(self, engine: Engine, event: Any) -> None:
        """Raises an error if this handler cannot be attached to ``engine``."""

    def attach_to(self, attachment: "Attachment") -> None:
        """Adds the handler's own schedule to a new attachment.

        A handler that needs a context manager around each run adds it here too, with
        ``attachment.during_run``.
        """
        raise ValueError(
            f"{type(self).__name__} has no schedule of its own: give attach() an `event`, "
            "Events.EPOCH_COMPLETED for instance"
        )


class Attachment:
    """The attachment of one handler to one engine.

    The attachment is also a context manager: it is removed at the end of the ``with``.
    """

    def __init__(self, handler: Handler, engine: Engine) -> None:
        self.handler = handler
        # A weak reference: a user may keep the attachment to remove it later, and the attachment
        # must not keep the engine alive meanwhile.
        self._engine = ref(engine)
        self._removal_callbacks: list[Callable[[], None]] = []

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            ReferenceError: the engine has been garbage-collected.
        """
        engine = self._engine()
        if engine is None:
            raise ReferenceError(f"the engine of this attachment of {self.handler!r} is gone")
        return engine

    @property
    def is_attached(self) -> bool:
        """True until the attachment is removed."""
        return bool(self._removal_callbacks)

    def on(
        self, event: Any, callback: Callback, *, first: bool = False, turn: Turn = Turn.OTHERS
    ) -> None:
        """Calls ``callback(engine)`` at each ``event``.

        Args:
            event: the event, with or without a filter.
            callback: is called with the engine.
            first: whether ``callback`` is called before the handlers that are attached already. On
                a trainer, ``turn`` takes precedence over ``first``.
            turn: the place of ``callback`` among the handlers that a trainer calls at the event. A
                plain Ignite engine ignores it.
        """

        # Each attachment gets a new function, because Ignite removes all handlers that are equal to
        # the removed one. Ignite passes further arguments at TERMINATE_SINGLE_EPOCH and
        # EXCEPTION_RAISED.
        def handler(engine: Engine, *args: Any, **kwargs: Any) -> None:
            # An earlier handler of the same event may have removed this attachment.
            if self._removal_callbacks:
                callback(engine)

        handler.__qualname__ = type(self.handler).__name__  # the name that profilers show
        set_turn(handler, turn)
        self.add(event, handler)
        if first:
            move_to_front(self.engine, event)

    def add(self, event: Any, handler: Callable[..., Any]) -> None:
        """Adds a handler without the wrapper that ``on`` makes, for handlers on the hot path.

        The handler must fulfill what the wrapper ensures. It must not be equal to another handler
        of the event, because Ignite removes equal handlers together. It must do nothing after this
        attachment was removed. A handler whose only parameter is the engine is called fastest.
        """
        self.on_removal(self.engine.add_event_handler(event, handler).remove)

    def on_steps(
        self,
        every: int,
        callback: Callback,
        *,
        is_note: bool = False,
        is_last: bool = False,
    ) -> None:
        """Calls ``callback(engine)`` at each multiple of ``every`` steps.

        On an engine without an ``OptimizerStep``, iterations are counted instead.

        Args:
            every: the number of steps.
            callback: is called with the engine.
            is_note: whether ``callback`` does no work, and only notes that work is due. If an
                exception breaks off such a callback, the OptimizerStep later calls the callback
                again. Any other callback is not called again, because it may have done a part of
                its work.
            is_last: whether ``callback`` is called after the other callbacks of the same step.
                Without an ``OptimizerStep``, this argument has no effect.
        """
        name = type(self.handler).__name__

        def call_if_attached(engine: Engine) -> None:
            if self.is_attached:
                with charged_to(engine, account_of(name)):
                    callback(engine)

        self.during_run(
            lambda engine: _called_every_steps(
                engine, every, call_if_attached, name, is_note=is_note, is_last=is_last
            )
        )

    def during_run(self, scope: RunScope, *, outermost: bool = False) -> None:
        """Enters ``scope(engine)`` at each entry into ``engine.run`` and leaves it at each exit.

        Use a scope to change the process while a run lasts, for example to install a signal
        handler. A handler of an event could not undo the change reliably, because no event is
        certain to be fired at the end of a run that fails.

        Args:
            scope: returns the scope of a run.
            outermost: whether the scope surrounds those of earlier attachments.
        """
        self.on_removal(enter_at_each_run(self.engine, scope, outermost=outermost))

    def on_removal(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` when this attachment is removed.

        If there are several callbacks, the one that was added last is called first.
        """
        self._removal_callbacks.append(callback)

    def remove(self) -> None:
        """Removes this attachment, also within a run. A second call does nothing."""
        # The list is replaced first, so that the callbacks find `is_attached` False.
        engine, callbacks, self._removal_callbacks = self._engine(), self._removal_callbacks, []
        if engine is not None:
            engine_storage(engine)["attachments"] = [
                a for a in _attachments(engine) if a is not self
            ]
        with ExitStack() as stack:  # calls all callbacks, also if one of them fails
            for callback in callbacks:
                stack.callback(callback)

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "attached" if self.is_attached else "removed"
        return f"<Attachment of {self.handler!r}, {state}>"


def attached_handlers(engine: AnyEngine, handler_type: type[HandlerT]) -> list[HandlerT]:
    """Returns the attached handlers of a class, in order of attachment."""
    return [a.handler for a in _attachments(engine) if isinstance(a.handler, handler_type)]


def check_not_attached(handler: Handler, reason: str) -> None:
    """Raises a ValueError if ``handler``, which serves one engine only, is attached already.

    Args:
        handler: a handler that calls ``record_attachment`` when it is attached.
        reason: why the handler serves one engine only, for the message.
    """
    attachment = _recorded[handler]() if handler in _recorded else None
    if attachment is not None and attachment.is_attached:
        name = type(handler).__name__
        raise ValueError(
            f"a {name} must be attached to one engine only, because {reason}, and it is attached "
            f"already: make another {name}"
        )


def check_own_path(handler: Handler, path: str | Path, engine: Engine) -> None:
    """Raises a ValueError if another attached handler of the same class has the same ``path``.

    Args:
        handler: a handler with a field ``path``.
        path: the value of this field.
        engine: the engine to which the handler is to be attached.
    """
    name = type(handler).__name__
    others: list[Any] = attached_handlers(engine, type(handler))
    if Path(path).resolve() in [Path(each.path).resolve() for each in others]:
        raise ValueError(
            f"`path` must be different for each {name} of an engine, got {path} twice: remove() "
            "the other attachment, or give another path"
        )


def record_attachment(attachment: Attachment) -> None:
    """Records the attachment of a handler for ``check_not_attached``."""
    _recorded[attachment.handler] = ref(attachment)


# Weak references, because an attachment refers to its handler.
_recorded: WeakKeyDictionary[Handler, ref[Attachment]] = WeakKeyDictionary()


def _attachments(engine: AnyEngine) -> list[Attachment]:
    attachments: list[Attachment] = engine_storage(engine).setdefault("attachments", [])
    return attachments


class Scheduled(Handler):
    """A handler with the schedules ``every_steps`` and ``every_epochs``.

    On an engine with the handler ``OptimizerStep``, which every trainer has, ``every_steps`` counts
    committed optimizer steps: those that the loss scaler has not skipped. On any other engine,
    ``every_steps`` counts iterations. When a run starts, the handler looks for an
    ``OptimizerStep`` on the engine. A class may leave out the field of a schedule that its handlers
    should not have.
    """

    every_steps: int | None
    every_epochs: int | None

    def attach_to(self, attachment: Attachment) -> None:
        """Calls the handler on its schedules.

        Raises:
            ValueError: no schedule is given, so that the handler would never act.
        """
        if self._interval("every_steps") is None and self._interval("every_epochs") is None:
            raise ValueError(
                f"a {type(self).__name__} must have a schedule, got neither `every_steps` nor "
                "`every_epochs`: give it one, or give attach an event"
            )
        self.on_schedule(attachment, self)

    def on_schedule(
        self,
        attachment: Attachment,
        callback: Callback,
        *,
        turn_by_epoch: Turn = Turn.OTHERS,
    ) -> None:
        """Calls ``callback(engine)`` whenever one of the schedules is due.

        Args:
            attachment: the attachment.
            callback: is called with the engine.
            turn_by_epoch: the turn of ``callback``, by which a trainer sorts the handlers of
                EPOCH_COMPLETED. With ``Turn.NOTE``, ``callback`` must only note that work is due
                (see ``is_note`` of ``on_steps``).
        """
        every_epochs = self._interval("every_epochs")
        if every_epochs is not None:
            event = Events.EPOCH_COMPLETED(every=every_epochs)
            attachment.on(event, callback, turn=turn_by_epoch)
        self.on_steps(attachment, callback, is_note=turn_by_epoch is Turn.NOTE)

    def on_steps(
        self, attachment: Attachment, callback: Callback, *, is_note: bool = False
    ) -> None:
        """Calls ``callback(engine)`` whenever ``every_steps`` is due.

        Args:
            attachment: the attachment.
            callback: is called with the engine.
            is_note: as in ``Attachment.on_steps``.
        """
        every_steps = self._interval("every_steps")
        if every_steps is not None:
            attachment.on_steps(every_steps, callback, is_note=is_note)

    def _interval(self, name: str) -> int | None:
        """Returns the value of a schedule; None if the class has no field for it."""
        return getattr(self, name, None)


@contextmanager
def _called_every_steps(
    engine: Engine,
    every: int,
    callback: Callback,
    name: str,
    *,
    is_note: bool,
    is_last: bool,
) -> Iterator[None]:
    """Calls ``callback(engine)`` at each multiple of ``every`` steps, as long as the body runs.

    Args:
        engine: the engine.
        every: the number of steps, or of iterations on an engine without an ``OptimizerStep``.
        callback: is called with the engine.
        name: the name that profilers show for the handler.
        is_note: as in ``Attachment.on_steps``.
        is_last: as in ``Attachment.on_steps``.
    """
    timetables = (handler.timetable for handler in attached_handlers(engine, Handler))
    timetable = next((each for each in timetables if each is not None), None)
    if timetable is not None:

        def call_with_engine() -> None:
            callback(engine)

        # With `out_of_order=True`, removing the attachment in a run does not undo the changes of
        # scopes that were entered later and are still open.
        with undo_on_exit(lambda: timetable.drop(call_with_engine), out_of_order=True):
            timetable.add(every, call_with_engine, is_note=is_note, is_last=is_last)
            yield
        return

    # A new function, because Ignite removes all handlers that are equal to the removed one.
    def handler(engine: Engine) -> None:
        callback(engine)

    handler.__qualname__ = name  # the name that profilers show
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(every=every), handler)
    with undo_on_exit(handle.remove, out_of_order=True):
        yield
