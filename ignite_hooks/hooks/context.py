"""One context of a hook: what it may be given as, and how it is entered and left."""

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

from ignite_hooks.core.scopes import note

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

_ENDED = object()
_ACTING = ("CALL", "STORE_ATTR", "STORE_DEREF", "STORE_GLOBAL", "STORE_SUBSCR")


@dataclass(frozen=True, kw_only=True, eq=False)
class HookContext:
    """A context of two functions; the second is called on the way out, whatever happened.

    A generator does the same and can keep something from the one to the other. This one is for two
    functions that are there already.

    Args:
        before: called with the engine on the way in.
        after: called with the engine on the way out, after a failure too.

    Raises:
        TypeError: one of them cannot be called with an engine.
        ValueError: neither is given.
    """

    before: Callable[[Engine], Any] | None = None
    after: Callable[[Engine], Any] | None = None

    def __post_init__(self) -> None:
        if self.before is None and self.after is None:
            raise ValueError(
                "a HookContext must have `before` or `after` or both, got neither: "
                "HookContext(after=lambda engine: ...)"
            )
        for side, act in (("before", self.before), ("after", self.after)):
            if act is not None:
                function = _undecorated(act)
                _check_takes_engine(f"`{side}`", function)
                _check_runs_when_called(f"`{side}`", function)

    def __call__(self, engine: Engine) -> Generator[None, None, None]:
        """The context as a generator."""
        if self.before is not None:
            self.before(engine)
        try:
            yield
        finally:
            if self.after is not None:
                self.after(engine)

    def __repr__(self) -> str:
        sides = (("before", self.before), ("after", self.after))
        given = ", ".join(f"{side}={name_of(act)}" for side, act in sides if act is not None)
        return f"HookContext({given})"


def check_context(context: Any) -> None:
    """Raises a TypeError for what can be seen to be no context before it is used."""
    if hasattr(context, "__enter__") and not isinstance(context, type):
        raise TypeError(
            f"`context` must be a function that makes a context manager, got {context!r} itself, "
            "which may serve only once: pass lambda engine: ... that makes it anew"
        )
    function = _undecorated(context)
    _check_takes_engine("`context`", function)
    _check_is_not_async("`context`", function)


class Hook:
    """One context on one channel. The same context twice makes two of them."""

    def __init__(self, channel: ChannelName, context: Context) -> None:
        self.channel = channel
        self.context = context
        self.make = _undecorated(context)


@contextmanager
def _decorated() -> Iterator[None]:
    yield


def _undecorated(context: Any) -> Context:
    """The generator function under ``contextlib.contextmanager``, which costs 1.5 µs and no more.

    What it adds, the rules of a generator in a ``with``, ``HookScope`` has of its own.
    """
    is_decorated = getattr(context, "__code__", None) is _decorated.__code__
    undecorated: Context = context.__wrapped__ if is_decorated else context
    return undecorated


class HookScope(AbstractContextManager[None, bool]):
    """One passage through a context, for a ``ScopeStack``.

    It is one generator, and says of a failure that it has dealt with it when that was thrown in and
    the generator returned.
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
        """The context as it was given."""
        return self._hook.context

    @property
    def acts_on_way_out(self) -> bool:
        """True if the context, which is open, calls or sets something after its ``yield``."""
        if isinstance(self.context, HookContext):
            return self.context.after is not None
        frame = getattr(self._generator, "gi_frame", None)
        if frame is None:
            return False
        code = dis.get_instructions(frame.f_code)
        left = (each.opname for each in code if each.offset > frame.f_lasti)
        return any(each.startswith(_ACTING) and "INTRINSIC" not in each for each in left)

    def __enter__(self) -> None:
        try:
            made = self._hook.make(self._engine)
        except Exception as error:
            note(error, f"It is {self} that failed when it was called with the engine.")
            raise
        generator = made if isinstance(made, GeneratorType) else self._within(made)
        self._generator = generator
        if next(generator, _ENDED) is _ENDED:
            raise RuntimeError(
                f"{self} must yield once, it did not: let every path reach a `yield`"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        generator = self._generator
        if generator is None:  # making it failed
            return False
        if error is None:
            if next(generator, _ENDED) is _ENDED:
                return False
        else:
            try:
                generator.throw(error)
            except StopIteration as end:
                return end is not error
            except BaseException as raised:
                if raised is error or _is_in_disguise(error, raised):
                    return False
                raise
            finally:
                error.with_traceback(traceback)  # without the frames of the generator
        generator.close()
        raise RuntimeError(f"{self} must yield once, it yielded twice: let it end after the first")

    def _within(self, made: Any) -> Generator[None, None, None]:
        kind = type(made)
        if not (hasattr(kind, "__enter__") and hasattr(kind, "__exit__")):
            raise TypeError(
                f"{self} must be a generator function with one `yield` or return a context "
                f"manager, it returned {made!r}: is there a `yield`? Or was the engine taken for "
                "something else: lambda engine: ..."
            )
        with made:
            yield

    def __str__(self) -> str:
        return f"the context {described(self._hook.context)} on channel {self._hook.channel}"


def _is_in_disguise(error: BaseException, raised: BaseException) -> bool:
    """A StopIteration can leave a generator only as the cause of a RuntimeError."""
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
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:  # of some functions written in C nothing is known
        return
    try:
        signature.bind(None)
    except TypeError:
        raise TypeError(
            f"{argument} must take the engine as its one argument, got {described(function)}, "
            f"which takes {signature}: lambda engine: ..."
        ) from None


def _check_is_not_async(argument: str, context: Any) -> None:
    function = _called_by(context)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{argument} must not be async, got {described(context)}: an engine awaits nothing, "
            "write it with def"
        )


def _check_runs_when_called(argument: str, act: Any) -> None:
    _check_is_not_async(argument, act)
    if inspect.isgeneratorfunction(_called_by(act)):
        raise TypeError(
            f"{argument} must be a function without `yield`, got {described(act)}: a generator "
            "is a context by itself, register it as it is"
        )


def name_of(context: Any) -> str:
    """The name that its author knows it by."""
    if isinstance(context, HookContext):
        return repr(context)
    while isinstance(context, partial):
        context = context.func
    return str(getattr(context, "__qualname__", type(context).__qualname__))


def described(context: Any) -> str:
    """The name, with file and line where there are any."""
    # A decorated function is looked for where it was written.
    code = getattr(inspect.unwrap(_called_by(context)), "__code__", None)
    where = f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None else ""
    return f"`{name_of(context)}`{where}"


def _called_by(context: Any) -> Any:
    """The function that runs when ``context`` is called."""
    while isinstance(context, partial):
        context = context.func
    if isinstance(context, HookContext):
        return _called_by(context.before or context.after)
    if isinstance(context, type):
        return context.__init__  # type: ignore[misc]
    return context if inspect.isroutine(context) else type(context).__call__
