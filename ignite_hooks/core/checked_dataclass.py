"""Dataclasses and functions that check their arguments with pydantic, and raise readable errors."""

import inspect
import types
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import field
from functools import reduce
from functools import wraps
from operator import or_
from typing import Annotated
from typing import Any
from typing import TypeVar
from typing import Union
from typing import get_args
from typing import get_origin
from typing import overload

from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from pydantic import validate_call
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform

from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.rules import short_repr

__all__ = ["checked_call", "checked_dataclass", "error_message", "handler_config", "plain_type"]

ClassT = TypeVar("ClassT", bound=type)
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

handler_config = ConfigDict(
    extra="forbid",
    hide_input_in_errors=True,  # the messages of `must_be` contain the value already
    arbitrary_types_allowed=True,  # needed for a field whose type is a class such as Handler
)
"""The configuration of handlers that are pydantic dataclasses."""


@overload
def checked_dataclass(cls: ClassT, /) -> ClassT: ...


@overload
def checked_dataclass(*, kw_only: bool = True) -> Callable[[ClassT], ClassT]: ...


@dataclass_transform(
    kw_only_default=True,
    frozen_default=True,
    eq_default=False,
    field_specifiers=(field, Field),
)
def checked_dataclass(cls: Any = None, /, *, kw_only: bool = True) -> Any:
    """Makes a class a frozen dataclass whose constructor checks its arguments with pydantic.

    ::

        @checked_dataclass
        class LogLoss(Scheduled):
            every_steps: Every | None = None

    Instances compare by identity, so two handlers with the same settings are not equal. An error
    of the constructor names the argument, the rule, the value and the remedy. ``help`` and
    ``inspect.signature`` show plain types, without the metadata of ``Annotated``.

    Args:
        cls: the class.
        kw_only: whether all arguments must be given by keyword. If False, the fields above a
            ``dataclasses.KW_ONLY`` can be given by position too.
    """

    def decorate(cls: Any) -> Any:
        to_dataclass = dataclass(frozen=True, eq=False, kw_only=kw_only, config=handler_config)
        made: Any = to_dataclass(cls)
        signature = _plain_signature(inspect.signature(made))
        pydantic_init = made.__init__

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                pydantic_init(self, *args, **kwargs)
            except ValidationError as error:
                raise _readable_error(error, type(self).__name__, signature, args) from None

        # Pydantic sets `__signature__` on the class, where `inspect` finds it for instances too.
        # Ignite inspects the signature of a handler to decide how to call it, and a handler is an
        # instance. With this attribute, Ignite would take the arguments of the constructor for
        # those of `__call__`. So the signature is moved from the class to the constructor.
        del made.__signature__
        self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        parameters = [self_parameter, *signature.parameters.values()]
        made.__init__ = wraps(pydantic_init)(init)
        made.__init__.__signature__ = signature.replace(
            parameters=parameters, return_annotation=None
        )
        return made

    return decorate if cls is None else decorate(cls)


def checked_call(function: FunctionT) -> FunctionT:
    """Makes a function check its arguments with pydantic, as ``checked_dataclass`` does."""
    signature = _plain_signature(inspect.signature(function))
    validated: Any = validate_call(config=handler_config)(function)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return validated(*args, **kwargs)
        except ValidationError as error:
            raise _readable_error(error, function.__name__, signature, args) from None

    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def plain_type(annotation: Any) -> Any:
    """Returns an annotation without the metadata of its ``Annotated`` parts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return plain_type(arguments[0])
    plain = tuple(plain_type(each) for each in arguments)
    if plain == arguments:
        return annotation
    if origin in (Union, types.UnionType):
        return reduce(or_, plain)  # shown as "int | None", and not as "Optional[int]"
    # typing.List[int] has the method `copy_with`, the built-in list[int] does not.
    return annotation.copy_with(plain) if hasattr(annotation, "copy_with") else origin[plain]


def _plain_signature(signature: inspect.Signature) -> inspect.Signature:
    """Returns a signature without the metadata of its ``Annotated`` types."""
    parameters = [
        each.replace(annotation=plain_type(each.annotation))
        for each in signature.parameters.values()
    ]
    return signature.replace(
        parameters=parameters, return_annotation=plain_type(signature.return_annotation)
    )


def _readable_error(
    error: ValidationError, name: str, signature: inspect.Signature, args: tuple[Any, ...]
) -> TypeError | ValueError:
    """Returns the error to raise in place of pydantic's error.

    If the call itself has problems, such as an unknown argument, the error is a TypeError that
    lists these problems. Otherwise, the error is a ValueError that lists the wrong values.

    Args:
        error: the error of pydantic.
        name: the name of the class or function that was called.
        signature: the signature of the class or function, without ``self``.
        args: the arguments that were given by position.
    """
    errors: Any = error.errors(include_url=False)
    call_problems = list(_call_problems(errors, name, signature.parameters, args))
    if call_problems:
        return TypeError("\n".join(call_problems))
    return ValueError("\n".join(_located_message(each) for each in errors))


def _call_problems(
    errors: Any,
    name: str,
    parameters: Mapping[str, inspect.Parameter],
    args: tuple[Any, ...],
) -> Iterator[str]:
    """Yields the problems of the call itself, which Python would report as a TypeError."""
    by_position = [p for p in parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    if len(args) > len(by_position):
        extra = args[len(by_position)]
        by_keyword = [p.name for p in parameters.values() if p not in by_position]
        takes = " and ".join(f"`{p.name}`" for p in by_position) or "no argument"
        # "got also", because the extra argument follows arguments that may be positional.
        more = "also " if by_position else ""
        remedy = f"write {by_keyword[0]}={short_repr(extra)}" if by_keyword else "remove it"
        yield f"`{name}` takes {takes} by position, got {more}{short_repr(extra)}: {remedy}"
    for each in errors:
        argument = each["loc"][-1] if each["loc"] else ""
        if len(each["loc"]) > 1 or isinstance(argument, int):
            # A problem inside a value is skipped, because it is not a problem of the call. An extra
            # positional argument is skipped, because the lines above have reported it.
            continue
        if each["type"] == "unexpected_keyword_argument":
            yield f"`{name}` has no argument `{argument}`: {did_you_mean(argument, parameters)}"
        elif each["type"].startswith("missing"):
            yield f"`{name}` needs the argument `{argument}`: write {name}({argument}=…)"
        elif each["type"] == "multiple_argument_values":
            yield f"`{argument}` of `{name}` is given twice, by position and by keyword: remove one"


def _located_message(error: Any) -> str:
    """Returns the message of one error of pydantic, with the path to the value: ``sizes[2]``."""
    message = error_message(error)
    first, *within = error["loc"] or ("",)
    path = str(first) + "".join(f"[{key!r}]" for key in within)
    if error["type"] in ("value_error", "missing"):  # the message names the field already
        return f"{path}: {message}" if within else message
    return f"`{path}` {message}" if first else message


def error_message(error: Any) -> str:
    """Returns the message of one error of pydantic in the form of this package's messages.

    The message of a rule made by ``must_be`` begins with the name of the field, and is returned
    unchanged. The message about a missing argument begins with the name of the argument. Any other
    message begins with a verb, for example "must be a valid number, got 'x'". The caller puts the
    name of the field before this message.
    """
    error_type, value = error["type"], error["input"]
    if error_type == "value_error":
        return str(error["ctx"]["error"])
    if error_type.startswith("missing"):
        return f"`{error['loc'][-1]}` must be given"
    if error_type == "unexpected_keyword_argument":
        return f"must not be given, there is no such argument, got {short_repr(value)}"
    # Pydantic's words about conversions are cut off. For example, "a dictionary or an instance of
    # Part" becomes "an instance of Part", and "a valid number, unable to parse string as a number"
    # becomes "a valid number".
    rule = error["msg"].removeprefix("Input should be ").removeprefix("a dictionary or ")
    rule = rule.partition(", unable to")[0]
    if isinstance(value, type) and error_type in ("is_instance_of", "dataclass_type"):
        return f"must be {rule}, got the class {value.__name__} itself: write {value.__name__}(…)"
    remedy = f": write {error['ctx']['class_name']}(…)" if error_type == "dataclass_type" else ""
    if error_type == "is_instance_of" and error["ctx"]["class"] == "Handler":
        remedy = ": write an object, GarbageCollector(every_steps=100) for example"
    return f"must be {rule}, got {short_repr(value)}{remedy}"
