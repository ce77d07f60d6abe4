"""What every handler can do: be called, be attached in three ways, and be taken off again."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from typing import TypeAlias
from typing import TypeVar
from weakref import ref

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.engine import belongings
from ignite_hooks.core.engine import move_to_front
from ignite_hooks.core.engine import set_turn
from ignite_hooks.core.restoring import restored
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.run_scope import Scope
from ignite_hooks.core.run_scope import enter_at_each_run
from ignite_hooks.core.timetable import Timetable
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import Turn

__all__ = ["Attachment", "Handler", "Scheduled", "attached"]

HandlerT = TypeVar("HandlerT", bound="Handler")
Callback: TypeAlias = Callable[[Engine], Any] | Callable[[TrainingEngine], Any]
RunScope: TypeAlias = Callable[[Engine], Scope] | Callable[[TrainingEngine], Scope]


class Handler:
    """Something that acts at moments of an engine's run, used in one of three ways.

    ::

        engine.add_event_handler(Events.EPOCH_COMPLETED(every=2), handler)   # a callable
        attachment = handler.attach(engine)                                  # its own schedule
        handler.attach(engine, Events.ITERATION_COMPLETED(every=10))         # any event

    A subclass says what it does in ``__call__`` and, if it can be attached without an event, when
    it does so in ``attach_to``. It keeps no reference to an engine: one handler serves several.
    """

    def __call__(self, engine: Engine) -> None:
        """Acts now."""
        raise TypeError(f"{type(self).__name__} acts on its own schedule: use attach(engine)")

    def attach(self, engine: Engine, event: Any = None) -> "Attachment":
        """Has the handler act on its own schedule, or at each ``event`` if one is given.

        Returns:
            The attachment: its ``remove()`` takes off this one and no other, and it is a context
            manager that does so at its end.
        """
        if not isinstance(engine, Engine):
            raise TypeError(
                f"`engine` must be an Ignite Engine, got {shown_type(engine)}: attach it to the "
                "trainer"
            )
        self.check(engine, event)
        attachment = Attachment(self, engine)
        if event is None:
            self.attach_to(attachment)
        else:
            attachment.on(event, self)
        _attachments(engine).append(attachment)
        return attachment

    @property
    def timetable(self) -> Timetable | None:
        """The timetable of steps that this handler keeps for all others on its engine, if any."""
        return None

    @property
    def summary(self) -> str:
        """The part of ``repr(trainer)`` that is about this handler; "" for none."""
        return ""

    def check(self, engine: Engine, event: Any) -> None:
        """Raises what keeps this handler from being attached to ``engine``."""

    def attach_to(self, attachment: "Attachment") -> None:
        """Adds the handler's own schedule and scopes to a new attachment."""
        raise ValueError(
            f"{type(self).__name__} has no schedule of its own: give attach() an `event`, "
            "Events.EPOCH_COMPLETED for instance"
        )


class Attachment:
    """One handler on one engine, until ``remove()``. A context manager that removes at its end."""

    def __init__(self, handler: Handler, engine: Engine) -> None:
        self.handler = handler
        self._engine = ref(engine)
        self._undo: list[Callable[[], None]] = []

    @property
    def engine(self) -> Engine:
        """The engine; a ReferenceError when it is gone."""
        engine = self._engine()
        if engine is None:
            raise ReferenceError(f"the engine of this attachment of {self.handler!r} is gone")
        return engine

    @property
    def is_attached(self) -> bool:
        """Whether it was not removed yet."""
        return bool(self._undo)

    def on(
        self, event: Any, act: Callback, *, first: bool = False, turn: Turn = Turn.OTHERS
    ) -> None:
        """Calls ``act(engine)`` at each ``event``.

        Args:
            event: the event, with or without a filter.
            act: is called with the engine.
            first: call it before the handlers that are attached by now.
            turn: its turn among the handlers of the event, on a trainer.
        """
        callback: Callable[[Any], Any] = act

        # Ignite removes handlers by equality: a function of its own is equal to no other.
        # It passes further arguments for some events, TERMINATE_SINGLE_EPOCH for instance.
        # One that an earlier handler of the same event removes is called all the same.
        def handler(engine: Engine, *args: Any, **kwargs: Any) -> None:
            if self._undo:
                callback(engine)

        handler.__qualname__ = type(self.handler).__name__  # what profilers show
        set_turn(handler, turn)
        self.add(event, handler)
        if first:
            move_to_front(self.engine, event)

    def add(self, event: Any, handler: Callable[..., Any]) -> None:
        """Adds a handler as it is, the fastest way; quicker still if it takes just the engine.

        It must be equal to no other handler of the event, and do nothing once this is removed.
        """
        self.on_removal(self.engine.add_event_handler(event, handler).remove)

    def during_run(self, scope: RunScope) -> None:
        """Enters ``scope(engine)`` at each entry into ``engine.run`` and leaves it at each exit.

        This is the one place to change the process for the time of a run: no event of Ignite is
        sure to come at the end of one that fails.
        """
        of_any_engine: Callable[[Any], Scope] = scope
        self.on_removal(enter_at_each_run(self.engine, of_any_engine))

    def on_removal(self, act: Callable[[], None]) -> None:
        """Calls ``act`` when this is removed; what is added later is called earlier."""
        self._undo.append(act)

    def remove(self) -> None:
        """Undoes this attachment, within a run too. A second time does nothing."""
        engine, undo, self._undo = self._engine(), self._undo, []
        if engine is not None:
            belongings(engine)["attachments"] = [a for a in _attachments(engine) if a is not self]
        for step in reversed(undo):
            step()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "attached" if self.is_attached else "removed"
        return f"<Attachment of {self.handler!r}, {state}>"


def attached(engine: AnyEngine, kind: type[HandlerT]) -> list[HandlerT]:
    """The handlers of one kind that are attached to ``engine``, in order of attachment."""
    return [e.handler for e in _attachments(engine) if isinstance(e.handler, kind)]


def _attachments(engine: AnyEngine) -> list[Attachment]:
    attachments: list[Attachment] = belongings(engine).setdefault("attachments", [])
    return attachments


class Scheduled(Handler):
    """A handler with the schedules ``every_steps`` and ``every_epochs``.

    ``every_steps`` counts committed optimizer steps on an engine that has an ``OptimizerStep`` (a
    trainer has one) and iterations on one that has none; which it is, is seen when a run starts.
    """

    every_steps: int | None
    every_epochs: int | None

    def attach_to(self, attachment: Attachment) -> None:
        """Acts on the schedules."""
        self.on_schedule(attachment, self)

    def on_schedule(
        self,
        attachment: Attachment,
        act: Callable[[Engine], Any],
        *,
        turn_by_epoch: Turn = Turn.OTHERS,
    ) -> None:
        """Has ``act(engine)`` called whenever one of the schedules is due.

        Args:
            attachment: the attachment.
            act: is called with the engine.
            turn_by_epoch: its turn at EPOCH_COMPLETED, on a trainer.
        """
        if self.every_epochs is not None:
            event = Events.EPOCH_COMPLETED(every=self.every_epochs)
            attachment.on(event, act, turn=turn_by_epoch)
        self.on_steps(attachment, act, is_note=turn_by_epoch is Turn.NOTE)

    def on_steps(
        self, attachment: Attachment, act: Callable[[Engine], Any], *, is_note: bool = False
    ) -> None:
        """Has ``act(engine)`` called whenever the schedule by step is due.

        Args:
            attachment: the attachment.
            act: is called with the engine.
            is_note: whether it only notes what is due; then it is called again if it broke off.
        """
        if self.every_steps is not None:
            every = self.every_steps

            def act_if_attached(engine: Engine) -> None:
                if attachment.is_attached:
                    act(engine)

            name = type(self).__name__
            attachment.during_run(
                lambda engine: _every_steps(engine, every, act_if_attached, name, is_note)
            )


@contextmanager
def _every_steps(
    engine: Engine, every: int, act: Callable[[Engine], Any], name: str, is_note: bool
) -> Iterator[None]:
    timetables = (handler.timetable for handler in attached(engine, Handler))
    timetable = next((each for each in timetables if each is not None), None)
    if timetable is not None:

        def callback() -> None:
            act(engine)

        with restored(lambda: timetable.drop(callback), alone=True):
            timetable.add(every, callback, is_note=is_note)
            yield
        return

    def handler(engine: Engine) -> None:
        act(engine)

    handler.__qualname__ = name  # what profilers show
    handle = engine.add_event_handler(Events.ITERATION_COMPLETED(every=every), handler)
    with restored(handle.remove, alone=True):
        yield
