"""Functions and engines that use private members of Ignite.

These are the private members of Ignite's engines, events and handlers:

=====================================  ============================================================
``_event_handlers``                    the table of handlers: it maps an event to a list of entries
                                       (function, arguments, keywords)
``_allowed_events``                    the registered events
``_fire_event``                        calls the handlers of an event; replaced on a plain engine to
                                       measure its handlers
``_handler_wrapper``                   wraps a handler, to apply the filter of an event
``_parent``                            a weak reference from such a wrapper to the handler
``_name_``                             the name of an event
``_internal_run_generator``            the generator of the current or interrupted run
``_process_function``                  the function that is called with each batch
``_init_timers``                       clears ``state.times``
``_setup_output_metrics_state_attrs``  the values that a handler of a logger shows
=====================================  ============================================================

No other module uses these members. ``tests/core/test_engine.py`` fails when Ignite changes the
meaning of a member.

A handler can have a *turn*, which is its place among the handlers of an event (``Turn``). A
``QuickEngine``, such as a trainer, calls the handlers of an event in the order of their turns.
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
from types import ModuleType
from typing import Any
from typing import TypeVar

from ignite.engine import Engine
from ignite.engine import Events
from ignite.engine import State
from ignite.engine.events import CallableEventWithFilter
from ignite.engine.events import EventsList
from ignite.handlers import BasicTimeProfiler
from ignite.handlers.base_logger import BaseOutputHandler
from ignite.metrics import Metric

from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import Turn

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
WrapCall = Callable[[Callable[..., Any], Callable[..., Any]], Callable[..., Any]]

__all__ = [
    "EventCheckingEngine",
    "QuickEngine",
    "bound_object",
    "call_handlers_through",
    "engine_storage",
    "fire_within",
    "forget_run",
    "handler_entries",
    "handler_name",
    "handlers_of",
    "handlers_with_arguments",
    "has_handlers",
    "is_handler_of_event",
    "is_interrupted",
    "is_running",
    "move_to_front",
    "process_function_of",
    "set_turn",
    "values_to_log",
]


def engine_storage(engine: AnyEngine) -> dict[str, Any]:
    """Returns the dictionary in which this package keeps its data about an engine.

    The dictionary is an attribute of the engine, so it is freed together with the engine. A global
    dictionary with weak keys would never free the engine, because many of the values, such as the
    closures of handlers, refer to the engine.
    """
    # `vars(engine)` is avoided: after a call of `vars`, Python 3.11 reads the attributes of the
    # object more slowly. On an engine whose process function does nothing, each iteration took a
    # fifth longer.
    owner: Any = engine
    if not hasattr(owner, "_ignite_hooks"):
        owner._ignite_hooks = {}
    data: dict[str, Any] = owner._ignite_hooks
    return data


def has_handlers(engine: Engine, event: Any) -> bool:
    """Returns whether ``event`` has handlers."""
    return bool(engine._event_handlers.get(event))


def handlers_of(engine: AnyEngine) -> list[Callable[..., Any]]:
    """Returns all attached handlers as users gave them, without the wrappers that apply filters.

    The handlers are sorted by the names of their events. The handlers of one event are in the order
    in which Ignite's table of handlers lists them.
    """
    return [handler for handler, _ in handlers_with_arguments(engine)]


def handlers_with_arguments(engine: AnyEngine) -> list[tuple[Callable[..., Any], list[Any]]]:
    """Returns (handler, other objects) for each attached handler, in the order of ``handlers_of``.

    The handler is the function as the user gave it. The other objects are the wrapper that applies
    the filter of the event, if there is one, and the arguments of the handler except the engine.
    """
    calls: list[tuple[Callable[..., Any], list[Any]]] = []
    for function, args, kwargs in handler_entries(engine):
        wrapped_handler = getattr(function, "_parent", None)
        others = [] if wrapped_handler is None else [function]
        for argument in (*args, *kwargs.values()):
            # Ignite passes the engine to a handler as a weak reference in its arguments.
            if not (isinstance(argument, weakref.ref) and argument() is engine):
                others.append(argument)
        calls.append((function if wrapped_handler is None else wrapped_handler(), others))
    return calls


def handler_entries(engine: AnyEngine) -> list[tuple[Any, Any, Any]]:
    """Returns the entries (function, arguments, keywords) of the table of handlers.

    For an event with a filter, the function is the wrapper that applies the filter to the handler.
    The order is that of ``handlers_of``.
    """
    owner: Any = engine
    calls: list[tuple[Any, Any, Any]] = []
    # The events are sorted by name, because their order in the table depends on which event got a
    # handler first.
    for _, entries in sorted(_entries_by_name(owner._event_handlers), key=itemgetter(0)):
        calls += entries
    return calls


def _entries_by_name(table: Any) -> list[tuple[str, Any]]:
    return [
        (str(event._name_ if isinstance(event, CallableEventWithFilter) else event), entries)
        for event, entries in table.items()
    ]


def is_handler_of_event(engine: AnyEngine, event: Any, function: Callable[..., Any]) -> bool:
    """Returns whether a function is a handler of an event, with or without a filter."""
    owner: Any = engine
    for name, entries in _entries_by_name(owner._event_handlers):
        for handler, *_ in entries if name == event.name else ():
            wrapped_handler = getattr(handler, "_parent", None)
            if (handler if wrapped_handler is None else wrapped_handler()) == function:
                return True
    return False


def process_function_of(engine: AnyEngine) -> Any:
    """Returns the process function, which the engine calls with each batch."""
    owner: Any = engine
    return owner._process_function


def move_to_front(engine: Engine, event: Any) -> None:
    """Moves the handler that was attached last to the front of the handlers of ``event``.

    If ``event`` is being fired now, this firing does not call the handler.
    """
    events = [*event] if isinstance(event, EventsList) else [event]
    for each in events:
        # Ignite may be iterating over the old list to call its handlers, so the table gets a new
        # list. The `pop` removes the handler from the old list, so that this iteration does not
        # reach the handler.
        handlers = engine._event_handlers[each]
        engine._event_handlers[each] = [handlers.pop(), *handlers]
    if isinstance(engine, QuickEngine):
        if engine._firing is not None:
            # The handlers in `_added_while_firing` are called at the end of the present firing. The
            # last entries are those of the moved handler, one for each event.
            del engine._added_while_firing[-len(events) :]
        engine._update_handlers()


def fire_within(engine: AnyEngine, event: Any) -> None:
    """Fires ``event`` in a handler of another event, and then restores ``last_event_name``.

    Ignite's ``global_step_from_engine`` and ``Checkpoint`` read ``last_event_name`` to choose what
    they count. For example, a handler of ITERATION_COMPLETED fires STEP_COMPLETED. If the name were
    not restored, the next handlers of ITERATION_COMPLETED would count steps instead of iterations.
    """
    if isinstance(engine, QuickEngine):
        engine.fire_event(event)  # restores last_event_name itself
        return
    outer = engine.last_event_name
    try:
        engine.fire_event(event)
    finally:
        # Outside a run there is no outer event, so `last_event_name` stays `event`, as in Ignite.
        if is_running(engine):
            engine.last_event_name = outer


def is_interrupted(engine: AnyEngine) -> bool:
    """Returns whether the next ``engine.run`` continues a run that was interrupted."""
    owner: Any = engine
    run = owner._internal_run_generator
    return run is not None and getgeneratorstate(run) == GEN_SUSPENDED


def is_running(engine: AnyEngine) -> bool:
    """Returns whether the engine is within ``engine.run`` now."""
    owner: Any = engine
    run = owner._internal_run_generator
    return run is not None and getgeneratorstate(run) == GEN_RUNNING


def values_to_log(handler: BaseOutputHandler, engine: Engine) -> dict[str, Any]:
    """Returns the metrics, outputs and attributes that a handler of an Ignite logger shows.

    The keys are the names, without the tag of the handler. The names of nested values are joined by
    underscores. Tensors are read, so this function synchronizes with their device.
    """
    values = handler._setup_output_metrics_state_attrs(engine, log_text=True)
    return {"_".join(names[1:]): value for names, value in values.items()}


def forget_run(engine: Engine) -> None:
    """Makes the next ``engine.run`` start from scratch.

    Without this call, ``engine.run`` continues the old run, or does nothing if the old run failed.
    """
    engine._internal_run_generator = None
    # With the limits of the old run, Ignite's `run` would continue from the old counters.
    state = engine.state
    state.max_epochs = state.max_iters = state.epoch_length = None


class EventCheckingEngine(Engine):
    """An Ignite engine whose error for an unknown event suggests the event that was meant."""

    # Ignite's own method returns a plain Callable, so type checkers would lose the function's type.
    def on(self, event_name: Any, *args: Any, **kwargs: Any) -> Callable[[FunctionT], FunctionT]:
        """Returns a decorator that adds a handler, as Ignite does."""
        decorator: Callable[[FunctionT], FunctionT] = super().on(event_name, *args, **kwargs)
        return decorator

    def _assert_allowed_event(self, event_name: Any) -> None:
        """Raises a ValueError for an unknown event. Ignite calls this method with each event."""
        if event_name in self._allowed_events:
            return
        known = {each.name: each for each in self._allowed_events if isinstance(each, Enum)}
        name = str(event_name).rpartition(".")[2].upper()
        close = get_close_matches(name, known, n=1, cutoff=0.75)
        if isinstance(event_name, Enum):
            remedy = "attach to an engine that fires it (only a trainer fires TrainEvents)"
        elif isinstance(event_name, int):
            remedy = f"write an event, Events.ITERATION_COMPLETED(every={event_name}) for example"
        elif close:
            remedy = f"did you mean {_shown_event(known[close[0]])}?"
        else:
            remedy = f"there are {', '.join(map(_shown_event, known.values()))}"
        raise ValueError(
            f"Event {event_name} is not a valid event for this {type(self).__name__}: {remedy}"
        )


def _shown_event(event: Enum) -> str:
    return f"`{type(event).__name__}.{event.name}`"


class QuickEngine(EventCheckingEngine):
    """An Ignite engine on which an event without handlers costs next to nothing.

    Each time an event is fired, Ignite's own engine looks the event up in several tables, by
    ``__hash__`` and ``__eq__`` in Python. This engine looks up the handlers of all events in
    advance, each time a handler is attached or removed.
    """

    def __init__(self, process_function: Callable[[Engine, Any], Any]) -> None:
        self._callbacks: dict[Any, tuple[Callable[..., Any], ...]] = {}  # by the event's name
        self._firing: Any = None  # the innermost event whose handlers are being called
        self._added_while_firing: list[tuple[Any, Any]] = []  # (event, entry of the table)
        self._due_lists: dict[Any, list[Any]] = {}  # see `list_cleared_at`; by the event's name
        self._wrap_call: WrapCall = _unchanged  # see `call_handlers_through`
        # Called last, because Ignite's constructor calls `register_events`, which uses these
        # attributes.
        super().__init__(process_function)

    def register_events(self, *event_names: Any, event_to_attr: Any = None) -> None:
        """Registers events, as Ignite does."""
        super().register_events(*event_names, event_to_attr=event_to_attr)
        self._update_handlers()

    def add_event_handler(self, event_name: Any, handler: Any, *args: Any, **kwargs: Any) -> Any:
        """Adds a handler, as Ignite does."""
        handle = super().add_event_handler(event_name, handler, *args, **kwargs)
        # For a list of events, Ignite's method has called this method for each event of the list.
        if not isinstance(event_name, EventsList):
            if self._firing is not None:
                added = self._event_handlers[event_name][-1]
                self._added_while_firing.append((event_name, added))
            self._update_handlers()
        return handle

    def remove_event_handler(self, handler: Any, event_name: Any) -> None:
        """Removes a handler, as Ignite does."""
        super().remove_event_handler(handler, event_name)
        self._update_handlers()

    def fire_event(self, event_name: Any) -> None:
        """Calls the handlers of an event, as Ignite does. Events without handlers cost little."""
        is_event = isinstance(event_name, CallableEventWithFilter)
        handlers = self._callbacks.get(event_name._name_ if is_event else event_name)
        if handlers:
            self._fire(event_name)
        elif handlers is None:
            super().fire_event(event_name)  # raises: the event is not registered
        elif self._firing is None:
            self.last_event_name = event_name

    def _handler_wrapper(self, handler: Any, event_name: Any, event_filter: Any) -> Any:
        """Returns a wrapper that calls ``handler`` only if the event's filter allows it.

        The filter is called with the engine and the value of a counter of the state, such as
        ``iteration``. The name of the counter is looked up here, when the handler is attached.
        Ignite's own wrapper looks up the name twice each time the event is fired, by ``__hash__``
        and ``__eq__`` in Python.
        """
        wrapper = super()._handler_wrapper(handler, event_name, event_filter)
        counter = State.event_to_attr.get(event_name)
        if counter is None:
            return wrapper  # this wrapper raises an error when called: the event has no counter

        # `wraps` also copies the attribute `_parent`. When a user removes a handler, Ignite finds
        # the wrapper of the handler by this attribute.
        @functools.wraps(wrapper)
        def call_if_due(*args: Any, **kwargs: Any) -> Any:
            if event_filter(self, getattr(self.state, counter)):
                return handler(*args, **kwargs)
            return None

        return call_if_due

    def _update_handlers(self) -> None:
        """Fills ``_callbacks`` with the functions to call at each registered event.

        The keys of ``_callbacks`` are the names of the events. With an event as the key, a look-up
        would take 4 µs, because ``__eq__`` and ``__hash__`` of events are written in Python.
        """
        entries = {_key_of(event): listed for event, listed in self._event_handlers.items()}
        self._callbacks = {
            name: tuple(
                self._make_callback(name, *entry)
                for entry in _sorted_by_turn(name, entries.get(name, ()))
            )
            for name in map(_key_of, self._allowed_events)
        }
        for name, due in self._due_lists.items():
            self._callbacks[name] = _clearing_when_called(due, self._callbacks[name])
        if self._wrap_call is not _unchanged:
            for name, callbacks in self._callbacks.items():
                functions = [entry[0] for entry in _sorted_by_turn(name, entries.get(name, ()))]
                self._callbacks[name] = (*map(self._wrap_call, functions, callbacks),)

    def list_cleared_at(self, event: Any) -> list[Any]:
        """Returns a list that the engine clears when it calls the first handler of ``event``.

        The caller puts an entry into the list when ``event`` has to be fired. If the entry is still
        in the list after an exception has ended the run, the first handler was not called, and the
        next run fires ``event``.

        Handlers with ``Turn.NOTE`` do not count as the first handler: the engine calls them before
        it clears the list. After an exception, the next run may call them a second time, which does
        no harm, because such a handler only notes that work is due.
        """
        due: list[Any] = []
        self._due_lists[_key_of(event)] = due
        self._update_handlers()
        return due

    def _reset_firing(self) -> None:
        """Resets the engine to the state in which no event is being fired.

        Ctrl-C may break off the ``finally`` of ``_fire``, and ``_firing`` then stays set.
        """
        self._firing = None
        self._added_while_firing.clear()

    def _make_callback(
        self, name: Any, function: Any, args: Any, kwargs: Any
    ) -> Callable[..., Any]:
        """Returns the function to call at the event ``name`` for an entry of Ignite's table.

        The entry is (``function``, ``args``, ``kwargs``). A subclass may return a wrapper.
        """
        return self._with_engine(function, args, kwargs)

    def _with_engine(
        self, function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Callable[..., Any]:
        """Returns a function that calls a handler with the engine and the event's arguments.

        The function also passes ``args`` and ``kwargs``, the arguments from Ignite's table of
        handlers. Most handlers take the engine alone. Such a handler is returned unchanged.
        """
        # If the handler accepts the engine, its first argument in the table is a weak reference to
        # the engine.
        has_reference = bool(args) and isinstance(args[0], weakref.ref)
        if has_reference and args[0]() is self and len(args) == 1 and not kwargs:
            return function

        def call(engine: Engine, /, *event_args: Any, **event_kwargs: Any) -> Any:
            first, own_args = ((args[0](),), args[1:]) if has_reference else ((), args)
            return function(*first, *event_args, *own_args, **{**kwargs, **event_kwargs})

        return call

    def _fire(self, event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        """Calls the handlers of a registered event; ``fire_event`` checks that it is registered.

        If a handler adds or removes handlers, none is skipped or called twice. A handler that is
        added to the event being fired is called after the others, as on Ignite's engine. Ignite's
        profilers rely on this order. If a handler of an outer event fires this event,
        ``last_event_name`` is the outer event again at the end.
        """
        is_event = isinstance(event_name, CallableEventWithFilter)
        name = event_name._name_ if is_event else event_name
        handlers = self._callbacks.get(name, ())
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
            else:  # twice as fast as the call above with empty arguments
                for handler in handlers:
                    handler(self)
            if len(self._added_while_firing) > added_before:
                self._call_added_handlers(name, added_before, event_args, event_kwargs)
                if outer is None:
                    self._added_while_firing.clear()
        finally:
            self._firing = outer
            if outer is not None:
                self.last_event_name = outer

    _fire_event = _fire  # Ignite's own methods call `_fire_event`, the training loop calls `_fire`

    def _call_added_handlers(self, name: Any, begin: int, args: Any, kwargs: Any) -> None:
        """Calls the handlers that were added to an event while it was fired.

        Args:
            name: the name of the event.
            begin: the index in ``_added_while_firing`` of the first handler to call.
            args: the arguments of the event.
            kwargs: the keyword arguments of the event.
        """
        added = self._added_while_firing
        index = begin
        while index < len(added):  # the list may grow: a handler called here may add another
            event, entry = added[index]
            index += 1
            entries = self._event_handlers[event]
            # A handler that has been removed in the meantime is not called.
            if _key_of(event) == name and any(entry[0] is function for function, *_ in entries):
                self._wrap_call(entry[0], self._with_engine(*entry))(self, *args, **kwargs)

    def _fire_from_table(self, event: Any) -> None:
        """Fires an event from Ignite's own table of handlers, and then looks up all handlers again.

        At STARTED and COMPLETED, Ignite's profilers write into the table directly. They do not call
        ``add_event_handler``, so this engine does not notice the change.
        """
        outer, self._firing = self._firing, event
        _log_firing(self, event)
        self.last_event_name = event
        self._event_handlers[event] = _sorted_by_turn(_key_of(event), self._event_handlers[event])
        try:
            # As in Ignite, the loop reaches the handlers that are added to the list meanwhile.
            for entry in self._event_handlers[event]:
                self._wrap_call(entry[0], self._with_engine(*entry))(self)
        finally:
            self._firing = outer
            self._added_while_firing.clear()
            self._update_handlers()

    @property
    def _process(self) -> Callable[[Engine, Any], Any]:
        """The process function, which is called with the engine and each batch."""
        function: Callable[[Engine, Any], Any] = self._process_function
        return function

    def _clear_times(self) -> None:
        """Sets ``state.times`` to zero for a new run."""
        self._init_timers(self.state)

    def _advance_run(self, run: Generator[Any, None, State] | None = None) -> State:
        """Runs ``run``, or the interrupted run, until it ends or is interrupted.

        Args:
            run: the generator of a new run, or None to continue the interrupted run. The generator
                yields the state when the run is interrupted, and returns the state when it ends.
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
            # Ctrl-C may come before the generator has started. The generator is then still open.
            self._close_interrupted()
            raise

    def _close_interrupted(self) -> None:
        """Closes the interrupted run, if there is one, so that the next ``run`` is a new one."""
        run: Any = self._internal_run_generator
        self._internal_run_generator = None
        if run is not None:
            run.close()


def call_handlers_through(engine: AnyEngine, wrap: WrapCall) -> Callable[[], None]:
    """Makes an engine call its handlers through wrappers, for example to measure their time.

    Ignite's table of handlers stays as it is. So users and profilers can add, find and remove
    handlers as usual, also during a run.

    Args:
        engine: the engine, which must have no such wrappers yet.
        wrap: a function (function, call) -> wrapper. ``function`` is the entry of Ignite's table,
            for ``handler_name``. The engine calls the wrapper instead of ``call``.

    Returns:
        A function that makes the engine call its handlers directly again.
    """
    owner: Any = engine
    # A weak reference, so that the functions below do not keep the engine alive.
    engine_ref: Callable[[], Any] = weakref.ref(owner)
    if isinstance(owner, QuickEngine):

        def set_wrapper(wrap: WrapCall) -> None:
            if (engine := engine_ref()) is not None:
                engine._wrap_call = wrap
                engine._update_handlers()

        set_wrapper(wrap)
        return lambda: set_wrapper(_unchanged)

    # As `Engine._fire_event`, but for the wrapper.
    def fire_event(event_name: Any, *event_args: Any, **event_kwargs: Any) -> None:
        engine = engine_ref()
        _log_firing(engine, event_name)
        engine.last_event_name = event_name
        for function, args, kwargs in engine._event_handlers[event_name]:
            has_reference = bool(args) and isinstance(args[0], weakref.ref)
            first, others = ((args[0](),), args[1:]) if has_reference else ((), args)
            wrapper = wrap(function, function)
            wrapper(*first, *event_args, *others, **{**kwargs, **event_kwargs})

    owner._fire_event = fire_event

    def restore() -> None:
        engine = engine_ref()
        if engine is not None and engine._fire_event is fire_event:
            del engine._fire_event

    return restore


def _log_firing(engine: Engine, event: Any) -> None:
    """Logs that an event is fired, with Ignite's words."""
    state = engine.state
    engine.logger.debug(f"{state.epoch} | {state.iteration}, Firing handlers for event {event}")


def _unchanged(function: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    return call


def handler_name(function: Any) -> str:
    """Returns the name of a handler: of its class if it is a method or an object, or its own.

    ``function`` is the handler, or a wrapper of the handler such as the one that applies a filter.
    """
    while True:
        owner = getattr(function, "__self__", None)
        if owner is not None and not isinstance(owner, ModuleType):
            return (owner if isinstance(owner, type) else type(owner)).__name__
        if isinstance(function, functools.partial):
            function = function.func
        elif (wrapped := getattr(function, "__wrapped__", None)) is not None:
            function = wrapped
        else:
            break
    name = getattr(function, "__qualname__", type(function).__name__)
    return str(name).rpartition("<locals>.")[2]


def _key_of(event: Any) -> Any:
    """Returns the name of an Ignite event, and any other event unchanged.

    Other events are strings and members of other enums. A member of a string enum equals its
    string, so both find the same entry of a dictionary.
    """
    return event._name_ if isinstance(event, CallableEventWithFilter) else event


def _clearing_when_called(
    due: list[Any], handlers: tuple[Callable[..., Any], ...]
) -> tuple[Callable[..., Any], ...]:
    """Returns ``handlers``, with one handler replaced by a wrapper that clears ``due`` first.

    The replaced handler is the first that does not have ``Turn.NOTE``. Handlers with ``Turn.NOTE``
    come before all others.
    """
    count = sum(1 for each in handlers if getattr(each, _TURN_ATTRIBUTE, None) is Turn.NOTE)
    if count == len(handlers):
        return handlers
    first = handlers[count]

    def call_first(engine: Engine) -> None:
        # One line clears the list and calls the handler, so that an exception of a signal handler
        # is unlikely to come between the two.
        due.clear(), first(engine)  # type: ignore[func-returns-value]

    return (*handlers[:count], call_first, *handlers[count + 1 :])


def set_turn(handler: Callable[..., Any], turn: Turn) -> None:
    """Sets the turn of ``handler``, by which a trainer sorts the handlers of an event."""
    # The turn is an attribute, because `functools.wraps` copies attributes to the wrappers that
    # apply filters.
    setattr(handler, _TURN_ATTRIBUTE, turn)


_TURN_ATTRIBUTE = "_ignite_hooks_turn"


def _sorted_by_turn(event_name: Any, entries: Sequence[Any]) -> list[Any]:
    """Returns the entries of an event sorted by turn. Entries of the same turn keep their order.

    Timers that Ignite's ``BasicTimeProfiler`` has put first stay first, so that they measure the
    other handlers.
    """
    is_epoch_end = event_name == Events.EPOCH_COMPLETED.name

    def turn_of(entry: Any) -> Turn:
        if is_epoch_end and bound_object(entry[0], Metric) is not None:
            return Turn.METRICS
        turn = getattr(entry[0], _TURN_ATTRIBUTE, None)
        # The type is checked, because a mock has every attribute.
        return turn if isinstance(turn, Turn) else Turn.OTHERS

    timers = [*itertools.takewhile(lambda each: bound_object(each[0], BasicTimeProfiler), entries)]
    return timers + sorted(entries[len(timers) :], key=turn_of)


def bound_object(function: Any, owner_type: type) -> Any:
    """Returns the instance of ``owner_type`` to which a method is bound; None if there is none.

    ``function`` is the method or a wrapper of the method. Not only the innermost function is
    checked: ``Metric.iteration_completed``, for example, is decorated in its class, so its
    innermost function is bound to no object.
    """
    while function is not None:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, owner_type):
            return owner
        function = getattr(function, "__wrapped__", None)
    return None
