"""Contexts: the forms in which a user may write them, and how a context is entered and left.

A *context* is a user's function that is called with the engine and runs code before and after a
part of the training loop. An example is a generator function with one ``yield``. A *channel* is a
part of the loop that has a name, such as ``on_step``. A *hook* is the registration of a context on
a channel.
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

# The engine is typed as Any, because a context may need a trainer.
Context = Callable[[Any], Any]

_ENDED = object()  # the result of `next` for a generator that has ended
# Beginnings of the names of bytecode instructions that call, set or delete something. Up to Python
# 3.10, operators such as ``*=`` have instructions of their own.
_OPCODES_WITH_EFFECT = ("CALL", "STORE_", "DELETE_", "INPLACE_")


@dataclass(frozen=True, kw_only=True, eq=False)
class HookContext:
    """A context made of two functions, which are called before and after a part of the loop.

    A generator function with one ``yield`` does the same, and the code after its ``yield`` can use
    variables from the code before. ``HookContext`` is for two functions that exist already.

    Args:
        before: called with the engine before the part of the loop.
        after: called with the engine after the part of the loop, also if that part fails.

    Raises:
        TypeError: ``before`` or ``after`` cannot be called with an engine.
        ValueError: ``before`` and ``after`` are both missing.
    """

    before: Context | None = None
    after: Context | None = None

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
        """Calls ``before``, yields once, and calls ``after``."""
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


def _has_effect(instruction: dis.Instruction) -> bool:
    """Returns whether a bytecode instruction may change anything but a local variable."""
    name = instruction.opname
    if name == "BINARY_OP":  # since Python 3.11
        return instruction.argrepr.endswith("=")  # `tensor *= 2` changes the tensor in place
    # Python 3.12 ends every generator with CALL_INTRINSIC_1, which calls no code of the user.
    return name.startswith(_OPCODES_WITH_EFFECT) and "FAST" not in name and "INTRINSIC" not in name


def check_context(context: Any) -> None:
    """Raises a TypeError if ``context`` cannot be a context.

    Some errors, such as a missing ``yield``, show only when the context is entered.
    """
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
        channel: the name of the channel.
        context: the context as the user gave it.
        make: the function to call with the engine. If the user has decorated the context with
            ``@contextmanager``, this is the function inside the decorator.
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

    Skipping the decorator saves 1.5 µs each time the context is entered. ``HookScope`` makes a
    context manager of the generator by the same rules as the decorator.
    """
    # All functions that ``@contextmanager`` returns have the same code object.
    is_decorated = getattr(context, "__code__", None) is _decorated.__code__
    undecorated: Context = context.__wrapped__ if is_decorated else context
    return undecorated


class HookScope(AbstractContextManager[None, bool]):
    """A context manager for one entry and one exit of a context; an item of a ``ScopeStack``.

    It runs the generator of the context. If the part of the loop fails, ``__exit__`` throws the
    exception into the generator. If the generator then returns, ``__exit__`` returns True, which
    means that the failure is handled.
    """

    __slots__ = ("_engine", "_generator", "_hook")

    def __init__(self, hook: Hook, engine: Engine) -> None:
        self._hook = hook
        self._engine = engine
        self._generator: Generator[Any, None, Any] | None = None

    @property
    def channel(self) -> ChannelName:
        """The name of the channel."""
        return self._hook.channel

    @property
    def context(self) -> Context:
        """The context as the user gave it."""
        return self._hook.context

    @property
    def has_effect_on_exit(self) -> bool:
        """True if the open context may change more than local variables when it is left.

        The bytecode of the generator shows what follows the ``yield``. The value is always True for
        a function that returns a context manager, because leaving it calls ``__exit__``.
        """
        if isinstance(self.context, HookContext):
            return self.context.after is not None
        frame = getattr(self._generator, "gi_frame", None)
        if frame is None:
            return False
        code = dis.get_instructions(frame.f_code)
        return any(_has_effect(each) for each in code if each.offset > frame.f_lasti)

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
        # This method follows the rules of contextlib's `_GeneratorContextManager.__exit__`.
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
                return end is not error  # a new StopIteration means that the generator has returned
            except BaseException as raised:
                if raised is error or _is_wrapped_stop_iteration(error, raised):
                    return False
                raise
            finally:
                # `throw` has added the generator's frames to the traceback of the failure. The next
                # line removes these frames.
                error.with_traceback(traceback)
        generator.close()
        raise RuntimeError(
            f"{self} must yield once, it yielded twice: let it end after the first `yield`"
        )

    def _entered(self, manager: Any) -> Generator[None, None, None]:
        """Returns a generator that enters ``manager``, yields once, and leaves ``manager``."""
        manager_type = type(manager)  # `with` looks up `__enter__` and `__exit__` on the type
        if not (hasattr(manager_type, "__enter__") and hasattr(manager_type, "__exit__")):
            raise TypeError(
                f"{self} must be a generator function with one `yield`, or a function that returns "
                f"a context manager, it returned {manager!r}: check that it has a `yield`, and "
                "that its argument is the engine, lambda engine: ..."
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
    # If the function is decorated, the signature of the wrapper is checked, because the wrapper is
    # what is called. The function inside may take more arguments, which the wrapper adds.
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
    """Returns the name of a context for a message, with its file and line if they are known."""
    # A decorated function is unwrapped: the message must show the line of the user's function, not
    # a line within the decorator.
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
