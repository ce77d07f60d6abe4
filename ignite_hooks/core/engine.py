"""An engine that fires events quickly, and all that is known here of Ignite's private members.

=============================  ====================================================================
``_event_handlers``            the table of handlers: lists of (function, arguments, keywords)
``_allowed_events``            the registered events
``_fire_event``                calls the handlers of an event
``_handler_wrapper``           the wrapper of a handler of a filtered event
``_parent``                    the reference by which such a wrapper names the handler within
``_name_``                     the name of an event
``_internal_run_generator``    the run that an engine is in, or was interrupted in
``_process_function``          the function that is called with each batch
``_init_timers``               clears ``state.times``
=============================  ====================================================================

Nothing outside this module uses one of them. ``tests/core/test_engine.py`` fails when one changes
its meaning.
"""

import functools
import itertools
import weakref
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Sequence
from difflib import get_close_matches
from enum import Enum
from inspect import GEN_RUNNING
from inspect import GEN_SUSPENDED
from inspect import getgeneratorstate
from operator import itemgetter
from typing import Any

from ignite.engine import Engine
from ignite.engine import Events
from ignite.engine import State
from ignite.engine.events import CallableEventWithFilter
from ignite.engine.events import EventsList
from ignite.handlers import BasicTimeProfiler
from ignite.metrics import Metric

from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import Turn

__all__ = [
    "EventCheckingEngine",
    "QuickEngine",
    "attached_calls",
    "belongings",
    "calls_of",
    "fire_within",
    "forget_run",
    "handlers_of",
    "has_handlers",
    "is_interrupted",
    "is_running",
    "move_to_front",
    "owner_of",
    "process_function_of",
    "set_turn",
]


def belongings(engine: AnyEngine) -> dict[str, Any]:
    """What this package keeps for an engine, kept on the engine.

    Much of it refers back to the engine, a handler's closure for instance. The engine and all that
    then go together; a global dictionary with weak keys would keep them for ever.
    """
    # Not by vars(engine): once its dictionary is asked for, Python 3.11 reads the attributes of an
    # object more slowly, which made an iteration of an empty engine a fifth longer.
    owner: Any = engine
    if not hasattr(owner, "_ignite_hooks"):
        owner._ignite_hooks = {}
    kept: dict[str, Any] = owner._ignite_hooks
    return kept


def has_handlers(engine: Engine, event: Any) -> bool:
    """Whether anything is attached to ``event``."""
    return bool(engine._event_handlers.get(event))


def handlers_of(engine: AnyEngine) -> list[Callable[..., Any]]:
    """Returns all that is attached, as it was given: without the wrappers of filters.

    The order is that of the names of the events, whichever of them had a handler first.
    """
    return [handler for handler, _ in calls_of(engine)]


def _shown_event(event: Enum) -> str:
    return f"`{type(event).__name__}.{event.name}`"


def calls_of(engine: AnyEngine) -> list[tuple[Callable[..., Any], list[Any]]]:
    """Returns each handler as it was given, and what else its calls involve, in the same order.

    That is the wrapper of a filter, which holds the filter, and the arguments; not the engine.
    """
    calls: list[tuple[Callable[..., Any], list[Any]]] = []
    for function, args, kwargs in attached_calls(engine):
        wrapped = getattr(function, "_parent", None)
        given = [] if wrapped is None else [function]
        for each in (*args, *kwargs.values()):
            if not (isinstance(each, weakref.ref) and each() is engine):
                given.append(each)
        calls.append((function if wrapped is None else wrapped(), given))
    return calls


def attached_calls(engine: AnyEngine) -> list[tuple[Any, Any, Any]]:
    """Returns what is called at events: (function, arguments, keywords), in the same order.

    The function of a filtered event is the wrapper, which holds the filter too.
    """
    owner: Any = engine
    calls: list[tuple[Any, Any, Any]] = []
    for _, of_event in sorted(_handlers_by_name(owner._event_handlers), key=itemgetter(0)):
        calls += of_event
    return calls


def _handlers_by_name(table: Any) -> list[tuple[str, Any]]:
    return [
        (str(event._name_ if isinstance(event, CallableEventWithFilter) else event), handlers)
        for event, handlers in table.items()
    ]


def is_called_at(engine: AnyEngine, event: Any, function: Callable[..., Any]) -> bool:
    """Returns whether a function is a handler of an event, at each of them or at some."""
    owner: Any = engine
    for name, of_event in _handlers_by_name(owner._event_handlers):
        for attached_one, *_ in of_event if name == event.name else ():
            wrapped = getattr(attached_one, "_parent", None)
            if (attached_one if wrapped is None else wrapped()) == function:
                return True
    return False


def process_function_of(engine: AnyEngine) -> Any:
    """Returns the function that is called with each batch."""
    owner: Any = engine
    return owner._process_function


def move_to_front(engine: Engine, event: Any) -> None:
    """Has the handler that was just attached to ``event`` called first, from the next time on."""
    several = [*event] if isinstance(event, EventsList) else [event]
    for each in several:
        handlers = engine._event_handlers[each]  # which may be being called just now
        engine._event_handlers[each] = [handlers.pop(), *handlers]
    if isinstance(engine, QuickEngine):
        if engine._firing is not None:
            del engine._added_while_firing[-len(several) :]
        engine._update_handlers()


def fire_within(engine: AnyEngine, event: Any) -> None:
    """Fires ``event`` from a handler of another event, which stays the engine's last event.

    Ignite's ``global_step_from_engine`` and ``Checkpoint`` ask for ``last_event_name``, and would
    count steps in a handler of ITERATION_COMPLETED otherwise.
    """
    if isinstance(engine, QuickEngine):
        engine.fire_event(event)  # which puts it back itself
        return
    outer = engine.last_event_name
    try:
        engine.fire_event(event)
    finally:
        if is_running(engine):
            engine.last_event_name = outer


def is_interrupted(engine: AnyEngine) -> bool:
    """Whether the next ``engine.run`` goes on with a run that was interrupted."""
    owner: Any = engine
    run = owner._internal_run_generator
    return run is not None and getgeneratorstate(run) == GEN_SUSPENDED


def is_running(engine: AnyEngine) -> bool:
    """Whether this is called within ``engine.run``."""
    owner: Any = engine
    run = owner._internal_run_generator
    return run is not None and getgeneratorstate(run) == GEN_RUNNING


def forget_run(engine: Engine) -> None:
    """Has the next ``engine.run`` begin anew. After a failure Ignite's would do nothing at all."""
    engine._internal_run_generator = None
    state = engine.state
    state.max_epochs = state.max_iters = state.epoch_length = None


class EventCheckingEngine(Engine):
    """An Ignite engine that says which event was probably meant by one that it does not have."""

    def _assert_allowed_event(self, event_name: Any) -> None:
        """Raises a ValueError, as Ignite's method does; Ignite calls it wherever it takes one."""
        if event_name in self._allowed_events:
            return
        known = {each.name: each for each in self._allowed_events if isinstance(each, Enum)}
        name = str(event_name).rpartition(".")[2].upper()
        close = get_close_matches(name, known, n=2, cutoff=0.75)
        if isinstance(event_name, Enum):
            remedy = "attach to the engine that fires it, a trainer for TrainEvents"
        elif close:
            remedy = f"did you mean {' or '.join(_shown_event(known[name]) for name in close)}?"
        else:
            remedy = f"there are {', '.join(map(_shown_event, known.values()))}"
        raise ValueError(
            f"Event {event_name} is not a valid event for this {type(self).__name__}: {remedy}"
        )


class QuickEngine(EventCheckingEngine):
    """An engine on which an event that nobody listens to costs next to nothing."""

    def __init__(self, process_function: Callable[[Engine, Any], Any]) -> None:
        self._heard: dict[Any, tuple[Callable[..., Any], ...]] = {}
        self._firing: Any = None  # the innermost event whose handlers are being called
        self._added_while_firing: list[tuple[Any, Any]] = []
        self._due_events: dict[Any, list[Any]] = {}
        super().__init__(process_function)

    def register_events(self, *event_names: Any, event_to_attr: Any = None) -> None:
        """As in Ignite."""
        super().register_events(*event_names, event_to_attr=event_to_attr)
        self._update_handlers()

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Ignite."""
        handle = super().add_event_handler(event_name, handler, *args, **kwargs)
        if not isinstance(event_name, EventsList):  # Ignite adds to each event by this method
            if self._firing is not None:
                added = self._event_handlers[event_name][-1]
                self._added_while_firing.append((event_name, added))
            self._update_handlers()
        return handle

    def remove_event_handler(self, handler: Any, event_name: Any) -> None:
        """As in Ignite."""
        super().remove_event_handler(handler, event_name)
        self._update_handlers()

    def fire_event(self, event_name: Any) -> None:
        """As in Ignite, for next to nothing when nobody listens."""
        is_event = isinstance(event_name, CallableEventWithFilter)
        handlers = self._heard.get(event_name._name_ if is_event else event_name)
        if handlers:
            self._fire(event_name)
        elif handlers is None:
            super().fire_event(event_name)  # which says that it is none of this engine
        elif self._firing is None:
            self.last_event_name = event_name

    def _handler_wrapper(self, handler: Any, event_name: Any, event_filter: Any) -> Any:
        """Ignite's around a handler of a filtered event, with the counter's name looked up once.

        That is now, when the handler is attached. Ignite looks for it twice at each event, by
        ``__hash__`` and ``__eq__`` in Python.
        """
        wrapper = super()._handler_wrapper(handler, event_name, event_filter)
        counter = State.event_to_attr.get(event_name)
        if counter is None:
            return wrapper  # which says that there is none

        @functools.wraps(wrapper)
        def call_if_due(*args: Any, **kwargs: Any) -> Any:
            if event_filter(self, getattr(self.state, counter)):
                return handler(*args, **kwargs)
            return None

        return call_if_due

    def _update_handlers(self) -> None:
        """Looks up which of the known events have handlers, and how those are called.

        The table is by name: events compare and hash in Python, which takes 4 µs for one look-up.
        """
        attached = {_name(event): handlers for event, handlers in self._event_handlers.items()}
        self._heard = {
            name: tuple(
                self._heard_as(name, *each) for each in _in_turn(name, attached.get(name, ()))
            )
            for name in map(_name, self._allowed_events)
        }
        for name, due in self._due_events.items():
            self._heard[name] = _emptying(due, self._heard[name])

    def due_until_fired(self, event: Any) -> list[Any]:
        """Returns a list that is emptied when the first handler of ``event`` is called.

        Both are one line, so that an exception at any line leaves the event either due or begun.
        Handlers that only note what is due come before: they may be called twice.
        """
        due: list[Any] = []
        self._due_events[_name(event)] = due
        self._update_handlers()
        return due

    def _forget_firing(self) -> None:
        """Takes no event for one that is being fired, whatever broke off."""
        self._firing = None
        self._added_while_firing.clear()

    def _heard_as(self, name: Any, function: Any, args: Any, kwargs: Any) -> Callable[..., Any]:
        """What is called at the event ``name`` for a handler in the table."""
        return self._called_with_engine(function, args, kwargs)

    def _called_with_engine(
        self, function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Callable[..., Any]:
        """A handler as a function of the engine, and of what the event brings; most are one."""
        has_reference = bool(args) and isinstance(args[0], weakref.ref)
        if has_reference and args[0]() is self and len(args) == 1 and not kwargs:
            return function

        def call(engine: Engine, /, *event_args: Any, **event_kwargs: Any) -> Any:
            first, own = ((args[0](),), args[1:]) if has_reference else ((), args)
            return function(*first, *event_args, *own, **{**kwargs, **event_kwargs})

        return call

    def _fire(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        """Calls the handlers of an event that is registered, which ``fire_event`` checks.

        A handler that removes itself, or adds another, changes no one's turn; one that is added to
        this event is called at its end, as on Ignite's engine, whose profilers rely on it.
        ``last_event_name`` is put back when the event was fired by a handler of another.
        """
        is_event = isinstance(event_name, CallableEventWithFilter)
        name = event_name._name_ if is_event else event_name
        handlers = self._heard.get(name, ())
        outer = self._firing
        if not handlers:
            if outer is None:
                self.last_event_name = event_name
            return
        self._firing = self.last_event_name = event_name
        added_before = len(self._added_while_firing)
        try:
            if event_args or event_kwargs:
                for handler in handlers:
                    handler(self, *event_args, **event_kwargs)
            else:  # twice as quick
                for handler in handlers:
                    handler(self)
            if len(self._added_while_firing) > added_before:
                self._call_added(name, added_before, event_args, event_kwargs)
                if outer is None:
                    self._added_while_firing.clear()
        finally:
            self._firing = outer
            if outer is not None:
                self.last_event_name = outer

    _fire_event = _fire  # the name that Ignite's own methods call; the loop calls the other

    def _call_added(self, name: Any, begin: int, args: Any, kwargs: Any) -> None:
        """Calls the handlers that were added to an event while it was fired, if they are left."""
        added = self._added_while_firing
        index = begin
        while index < len(added):  # it may grow
            event, entry = added[index]
            index += 1
            attached = self._event_handlers[event]
            if _name(event) == name and any(entry[0] is function for function, *_ in attached):
                self._called_with_engine(*entry)(self, *args, **kwargs)

    def _fire_to_profilers(self, event: Any) -> None:
        """Fires an event in Ignite's own way, by its table, and looks at that again.

        At STARTED and COMPLETED its profilers write to the table of handlers, past any method.
        """
        outer, self._firing = self._firing, event
        self._event_handlers[event] = _in_turn(_name(event), self._event_handlers[event])
        try:
            Engine._fire_event(self, event)
        finally:
            self._firing = outer
            self._added_while_firing.clear()
            self._update_handlers()

    @property
    def _process(self) -> Callable[[Engine, Any], Any]:
        """The function that is called with the engine and each batch."""
        function: Callable[[Engine, Any], Any] = self._process_function
        return function

    def _clear_times(self) -> None:
        """Sets ``state.times`` to zero for a new run."""
        self._init_timers(self.state)

    def _drive(self, run: Generator[Any, None, State] | None = None) -> State:
        """Runs ``run``, or the interrupted run, until it ends or is interrupted.

        Args:
            run: yields the state where it is interrupted, and returns it at its end.
        """
        if run is not None:
            self._internal_run_generator = run
        current: Any = self._internal_run_generator
        try:
            state: State = next(current)
            return state
        except StopIteration as end:
            self._internal_run_generator = None
            return end.value  # type: ignore[no-any-return]
        except BaseException:
            self._close_interrupted()  # Ctrl-C may have come before it went on
            raise

    def _close_interrupted(self) -> None:
        """Closes the run that was interrupted, if there is one: nothing will continue it."""
        run: Any = self._internal_run_generator
        self._internal_run_generator = None
        if run is not None:
            run.close()


def _name(event: Any) -> Any:
    """What events are compared by. A text is its own, also one that is a member of an enum."""
    return event._name_ if isinstance(event, CallableEventWithFilter) else event


def _emptying(
    due: list[Any], handlers: tuple[Callable[..., Any], ...]
) -> tuple[Callable[..., Any], ...]:
    """Has the first handler that does not only note what is due empty a list when it is called."""
    notes = sum(1 for each in handlers if getattr(each, _TURN, None) is Turn.NOTE)
    if notes == len(handlers):
        return handlers
    first = handlers[notes]

    def call_first(*args: Any, **kwargs: Any) -> None:
        due.clear(), first(*args, **kwargs)  # type: ignore[func-returns-value]  # as one line

    return (*handlers[:notes], call_first, *handlers[notes + 1 :])


def set_turn(handler: Callable[..., Any], turn: Turn) -> None:
    """Has ``handler`` called in its turn among the handlers of an event of a trainer."""
    setattr(handler, _TURN, turn)  # wrappers around it get this attribute too


_TURN = "_ignite_hooks_turn"


def _in_turn(event_name: Any, entries: Sequence[Any]) -> list[Any]:
    """Sorts the handlers of an event by their turns; those of one turn keep their order.

    A timer that one of Ignite's profilers has put in front stays there, to measure the others.
    """
    is_epoch_end = event_name == Events.EPOCH_COMPLETED.name

    def turn_of(entry: Any) -> Turn:
        if is_epoch_end and owner_of(entry[0], Metric) is not None:
            return Turn.METRICS
        turn = getattr(entry[0], _TURN, None)
        return turn if isinstance(turn, Turn) else Turn.OTHERS  # a mock has any attribute

    head = [*itertools.takewhile(lambda each: owner_of(each[0], BasicTimeProfiler), entries)]
    return head + sorted(entries[len(head) :], key=turn_of)


def owner_of(function: Any, kind: type) -> Any:
    """Returns the object of this kind whose method a handler, wrapped or not, is; else None.

    The method may be decorated in its class, as ``Metric.iteration_completed`` is: what it wraps is
    bound to nothing.
    """
    while function is not None:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, kind):
            return owner
        function = getattr(function, "__wrapped__", None)
    return None
