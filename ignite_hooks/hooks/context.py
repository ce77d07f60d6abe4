"""The contexts of hooks: the forms in which a user may give them, and how they are entered.

A *context* is the user's code before and after a part of the training loop. A *channel* is the name
of such a part, and a *hook* is the registration of a context on a channel.
"""

import dis
import inspect
from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import GeneratorType
from types import TracebackType
from typing import Any
from typing import Literal

from ignite.engine import Engine

from ignite_hooks.core.scopes import add_note

__all__ = [
    "ChannelName",
    "Context",
    "Hook",
    "HookContext",
    "HookScope",
    "check_context",
    "name_of",
]

ChannelName = Literal[
    "on_loop",
    "on_epoch",
    "on_step",
    "on_batch",
    "on_model_forward",
    "on_model_backward",
    "on_optimizer_step",
    "on_validation",
]

Context = Callable[[Engine], Any]

_ENDED = object()  # the result of `next` for a generator that has ended
# Beginnings of the names of bytecode instructions that call or set something.
_OPCODES_WITH_EFFECT = ("CALL", "STORE_ATTR", "STORE_DEREF", "STORE_GLOBAL", "STORE_SUBSCR")


@dataclass(frozen=True, kw_only=True, eq=False)
class HookContext:
    """A context made of two functions, one for the way in and one for the way out.

    A generator function does the same, and can keep values from its first part for its second part.
    ``HookContext`` is for functions that exist already.

    Args:
        before: called with the engine on the way in.
        after: called with the engine on the way out, also after a failure.

    Raises:
        TypeError: ``before`` or ``after`` cannot be called with an engine.
        ValueError: ``before`` and ``after`` are both missing.
    """

    before: Callable[[Engine], Any] | None = None
    after: Callable[[Engine], Any] | None = None

    def __post_init__(self) -> None:
        if self.before is None and self.after is None:
            raise ValueError(
                "a HookContext must have `before` or `after` or both, got neither: "
                "HookContext(after=lambda engine: ...)"
            )
        for side, callback in (("before", self.before), ("after", self.after)):
            if callback is not None:
                function = _undecorated(callback)
                _check_takes_engine(f"`{side}`", function)
                _check_is_not_generator(f"`{side}`", function)

    def __call__(self, engine: Engine) -> Generator[None, None, None]:
        """Returns the context as a generator."""
        if self.before is not None:
            self.before(engine)
        try:
            yield
        finally:
            if self.after is not None:
                self.after(engine)

    def __repr__(self) -> str:
        sides = (("before", self.before), ("after", self.after))
        given = ", ".join(
            f"{side}={name_of(callback)}" for side, callback in sides if callback is not None
        )
        return f"HookContext({given})"


def check_context(context: Any) -> None:
    """Raises a TypeError if ``context`` is not a context, as far as this is visible before use."""
    if hasattr(context, "__enter__") and not isinstance(context, type):
        raise TypeError(
            f"`context` must be a function that makes a context manager, got the context manager "
            f"{context!r}, which may work only once: pass lambda engine: ... that makes a new "
            "one each time"
        )
    function = _undecorated(context)
    _check_takes_engine("`context`", function)
    _check_is_not_async("`context`", function)


class Hook:
    """A registration of a context on a channel. A context registered twice has two hooks.

    Attributes:
        channel: the channel.
        context: the context as the user gave it.
        make: the function to call with the engine. This is ``context``, without the decorator
            ``@contextmanager`` if it has one.
    """

    def __init__(self, channel: ChannelName, context: Context) -> None:
        self.channel = channel
        self.context = context
        self.make = _undecorated(context)


@contextmanager
def _decorated() -> Iterator[None]:
    yield


def _undecorated(context: Any) -> Context:
    """Returns the generator function inside ``@contextmanager``, or ``context`` unchanged.

    Skipping the decorator saves 1.5 µs per use. The rules that the decorator adds for a generator
    in a ``with`` are implemented in ``HookScope``.
    """
    # All functions that the decorator returns share their code object.
    is_decorated = getattr(context, "__code__", None) is _decorated.__code__
    undecorated: Context = context.__wrapped__ if is_decorated else context
    return undecorated


class HookScope(AbstractContextManager[None, bool]):
    """One use of a context, from its entry to its exit, as a scope for a ``ScopeStack``.

    A scope runs one generator. After a failure, ``__exit__`` throws the failure into the generator.
    If the generator then returns, ``__exit__`` returns True, which means that the failure is
    handled.
    """

    __slots__ = ("_engine", "_generator", "_hook")

    def __init__(self, hook: Hook, engine: Engine) -> None:
        self._hook = hook
        self._engine = engine
        self._generator: Generator[Any, None, Any] | None = None

    @property
    def channel(self) -> ChannelName:
        """The channel of the context."""
        return self._hook.channel

    @property
    def context(self) -> Context:
        """The context as the user gave it."""
        return self._hook.context

    @property
    def has_effect_on_exit(self) -> bool:
        """True if the open context calls or sets something after its ``yield``.

        The bytecode of the generator shows this. For a plain context manager, the answer is always
        True.
        """
        if isinstance(self.context, HookContext):
            return self.context.after is not None
        frame = getattr(self._generator, "gi_frame", None)
        if frame is None:
            return False
        code = dis.get_instructions(frame.f_code)
        remaining = (each.opname for each in code if each.offset > frame.f_lasti)
        # Python 3.12 ends every generator with CALL_INTRINSIC_1, which calls no code of the user.
        return any(
            each.startswith(_OPCODES_WITH_EFFECT) and "INTRINSIC" not in each for each in remaining
        )

    def __enter__(self) -> None:
        try:
            returned = self._hook.make(self._engine)
        except Exception as error:
            add_note(error, f"The error was raised by {self}, when it was called with the engine.")
            raise
        generator = returned if isinstance(returned, GeneratorType) else self._entered(returned)
        self._generator = generator
        if next(generator, _ENDED) is _ENDED:
            raise RuntimeError(
                f"{self} must yield once, it did not: let every path reach a `yield`"
            )

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        # The same rules as in the `__exit__` of contextlib's `_GeneratorContextManager`.
        generator = self._generator
        if generator is None:  # the context failed before there was a generator
            return False
        if error is None:
            if next(generator, _ENDED) is _ENDED:
                return False
        else:
            try:
                generator.throw(error)
            except StopIteration as end:
                return end is not error  # if `end` is a new exception, the generator has returned
            except BaseException as raised:
                if raised is error or _is_wrapped_stop_iteration(error, raised):
                    return False
                raise
            finally:
                # `throw` has added the generator's frames to the traceback of the failure. This
                # restores the traceback.
                error.with_traceback(traceback)
        generator.close()
        raise RuntimeError(f"{self} must yield once, it yielded twice: let it end after the first")

    def _entered(self, manager: Any) -> Generator[None, None, None]:
        """Returns a generator that enters a context manager before its ``yield``, and leaves it."""
        manager_type = type(manager)  # `with` looks the two methods up on the type
        if not (hasattr(manager_type, "__enter__") and hasattr(manager_type, "__exit__")):
            raise TypeError(
                f"{self} must be a generator function with one `yield` or return a context "
                f"manager, it returned {manager!r}: check that it has a `yield`, and that its "
                "argument is the engine, lambda engine: ..."
            )
        with manager:
            yield

    def __str__(self) -> str:
        return f"the context {describe(self._hook.context)} on channel {self._hook.channel}"


def _is_wrapped_stop_iteration(error: BaseException, raised: BaseException) -> bool:
    """Returns whether ``raised`` is the RuntimeError into which Python turned a StopIteration.

    A StopIteration cannot leave a generator. Python raises a RuntimeError instead, whose cause is
    the StopIteration.
    """
    return (
        isinstance(error, StopIteration)
        and isinstance(raised, RuntimeError)
        and raised.__cause__ is error
    )


def _check_takes_engine(argument: str, function: Any) -> None:
    if not callable(function):
        raise TypeError(
            f"{argument} must be a function of the engine, got {function!r}: def f(engine): ..."
        )
    # For a decorated function, the signature of the wrapper counts, not the signature of the
    # function inside: the wrapper may pass on more arguments than it takes.
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(
            f"{argument} must take the engine as its one argument, got {describe(function)}, "
            f"which takes {signature}: lambda engine: ..."
        ) from None


def _check_is_not_async(argument: str, context: Any) -> None:
    function = _underlying_function(context)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{argument} must not be async, got {describe(context)}: an engine awaits nothing, "
            "write it with def"
        )


def _check_is_not_generator(argument: str, callback: Any) -> None:
    _check_is_not_async(argument, callback)
    if inspect.isgeneratorfunction(_underlying_function(callback)):
        raise TypeError(
            f"{argument} must be a function without `yield`, got {describe(callback)}: a generator "
            "is a context by itself, register it without a HookContext"
        )


def name_of(context: Any) -> str:
    """Returns the name of a context as it is written in the user's code."""
    if isinstance(context, HookContext):
        return repr(context)
    while isinstance(context, partial):
        context = context.func
    return str(getattr(context, "__qualname__", type(context).__qualname__))


def describe(context: Any) -> str:
    """Returns the name of a context, with its file and line if it has any, for messages."""
    # The function is unwrapped, so that the line of a decorated function is that of its definition,
    # not that of the decorator's wrapper.
    code = getattr(inspect.unwrap(_underlying_function(context)), "__code__", None)
    where = f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None else ""
    return f"`{name_of(context)}`{where}"


def _underlying_function(context: Any) -> Any:
    """Returns the function that runs when ``context`` is called."""
    while isinstance(context, partial):
        context = context.func
    if isinstance(context, HookContext):
        return _underlying_function(context.before or context.after)
    if isinstance(context, type):
        return context.__init__  # type: ignore[misc]
    return context if inspect.isroutine(context) else type(context).__call__
