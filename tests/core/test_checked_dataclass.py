import inspect
import pydoc
import re
from dataclasses import KW_ONLY
from typing import Annotated
from typing import Any
from typing import Literal

import pytest
from pydantic import Field

from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Validation
from ignite_hooks import ram_usage_metrics
from ignite_hooks.core.checked_dataclass import checked_call
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.checked_dataclass import plain_type
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Kept
from ignite_hooks.core.fields import Limit
from ignite_hooks.handlers import Handler


@checked_dataclass
class Part(Handler):
    limit: Limit
    size: int = 1


@checked_dataclass(kw_only=False)
class Whole(Handler):
    """A handler with arguments of many types."""

    source: str
    _: KW_ONLY
    every: Every | None = None
    kept: Kept = 3
    learning_rate: float = 0.1
    names: tuple[str, ...] = ()
    rates: dict[str, Annotated[float, Field(gt=0)]] | None = None
    part: Part | None = None
    handlers: tuple[Handler, ...] = ()

    def __call__(self, engine: Any) -> None:
        """Does nothing."""

    def __post_init__(self) -> None:
        if self.source == "nowhere":
            raise ValueError("`source` must be somewhere, got 'nowhere': go there")


@checked_call
def function(first: Every, *, second: Limit | None = None) -> Every:
    return first


CALLS = [
    (lambda: Whole(), "`Whole` needs the argument `source`: write Whole(source=…)"),
    (lambda: Whole("a", evry=1), "`Whole` has no argument `evry`: did you mean `every`?"),
    (lambda: Whole("a", source="b"), "`source` of `Whole` is given twice, by position and by"),
    (lambda: Whole("a", 3), "`Whole` takes `source` by position, got also 3: write every=3"),
    (lambda: Part(2.0), "`Part` takes no argument by position, got 2.0: write limit=2.0"),
    (lambda: function(), "`function` needs the argument `first`: write function(first=…)"),
    (lambda: function(1, 2), "`function` takes `first` by position, got also 2: write second=2"),
    (lambda: function(1, secnd=2), "`function` has no argument `secnd`: did you mean `second`?"),
    (lambda: function(1, first=2), "`first` of `function` is given twice, by position and by"),
    (lambda: checked_call(lambda a: a)(1, 2), "takes `a` by position, got also 2: remove it"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[text for _, text in CALLS])
def test_wrong_arguments_are_a_type_error(call, message):
    with pytest.raises(TypeError) as raised:
        call()
    assert message in str(raised.value)
    assert raised.value.__suppress_context__  # pydantic's error is not shown above it


VALUES = [
    ({"every": 0}, "`every` must be an integer >= 1, got 0; leave it out to have no such schedule"),
    ({"source": 1}, "`source` must be a valid string, got 1"),
    ({"learning_rate": "x"}, "`learning_rate` must be a valid number, got 'x'"),
    ({"names": ["a", 2]}, "`names[1]` must be a valid string, got 2"),
    ({"rates": {"a": 0}}, "`rates['a']` must be greater than 0, got 0"),
    ({"part": 1.0}, "`part` must be an instance of Part, got 1.0: write Part(…)"),
    (
        {"part": Part},
        "`part` must be an instance of Part, got the class Part itself: write Part(…)",
    ),
    ({"part": {"limit": 0}}, "part['limit']: `limit` must be a number > 0, got 0"),
    ({"part": {}}, "part['limit']: `limit` must be given"),
    ({"part": {"limit": 1, "q": 2}}, "`part['q']` must not be given, there is no such argument"),
    ({"handlers": ["gc"]}, "`handlers[0]` must be an instance of Handler, got 'gc'"),
    ({"source": "nowhere"}, "`source` must be somewhere, got 'nowhere': go there"),
]


@pytest.mark.parametrize(("arguments", "message"), VALUES, ids=[text for _, text in VALUES])
def test_wrong_values_are_a_value_error(arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        Whole(**{"source": "a"} | arguments)
    assert "pydantic" not in f"{raised.value!r}"
    assert raised.value.__suppress_context__


def test_all_problems_are_in_one_error():
    with pytest.raises(TypeError) as raised:
        Whole("a", evry=1, kep=2, every=0)
    assert str(raised.value).splitlines() == [
        "`Whole` has no argument `evry`: did you mean `every`?",
        "`Whole` has no argument `kep`: did you mean `kept`?",
    ]
    with pytest.raises(ValueError, match="every") as raised:
        Whole("a", every=0, kept=0, learning_rate="x")
    assert len(str(raised.value).splitlines()) == 3


def test_long_value_is_shortened_in_the_message():
    with pytest.raises(ValueError, match="must be a valid number") as raised:
        Whole("a", learning_rate="x" * 10_000)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("name", ["every", "learning_rate", "source"])
def test_a_number_that_python_does_not_print_is_shown_by_its_size(name):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got an integer of 20001 bits"):
        Whole(**{"source": "a"} | {name: -(2**20000)})


def test_an_inherited_constructor_names_the_subclass():
    class Derived(Part):
        pass

    with pytest.raises(TypeError, match="`Derived` needs the argument `limit`"):
        Derived()


def test_valid_call_is_unchanged():
    whole = Whole("a", every=2, part=Part(limit=1), names=["x"])
    assert (whole.source, whole.every, whole.names, whole.part.limit) == ("a", 2, ("x",), 1.0)
    assert function(3, second=1) == 3
    assert Whole("a") != Whole("a")
    with pytest.raises(AttributeError, match="every"):
        whole.every = 3


def test_signatures_show_plain_types():
    assert str(inspect.signature(Whole)) == (
        "(source: str, *, every: int | None = None, kept: Union[int, Literal['all']] = 3, "
        "learning_rate: float = 0.1, names: tuple[str, ...] = (), "
        "rates: dict[str, float] | None = None, "
        f"part: {__name__}.Part | None = None, "
        "handlers: tuple[ignite_hooks.core.handler.Handler, ...] = ()) -> None"
    )
    assert str(inspect.signature(function)) == (
        "(first: int, *, second: float | None = None) -> int"
    )
    assert list(inspect.signature(Whole.__init__).parameters)[:2] == ["self", "source"]


def test_signature_of_an_instance_is_that_of_call():
    assert list(inspect.signature(Whole("a")).parameters) == ["engine"]


@pytest.mark.parametrize(
    "thing",
    [GradientClipping, ResumeCheckpoint, SaveCheckpoint, Validation, Whole, ram_usage_metrics],
)
def test_help_shows_plain_types(thing):
    text = pydoc.plain(pydoc.render_doc(thing))
    shown = next(line for line in text.splitlines() if f"{thing.__name__}(" in line)
    assert "Validator" not in shown
    assert "Annotated" not in shown
    assert len(str(inspect.signature(thing))) < 900


@pytest.mark.parametrize(
    ("annotation", "plain"),
    [
        (int, int),
        (Annotated[int, 1], int),
        (Annotated[int, 1] | None, int | None),
        (Annotated[Literal["a", "b"], 1], Literal["a", "b"]),
        (tuple[Annotated[int, 1], ...], tuple[int, ...]),
        (dict[str, list[Annotated[int, 1]]], dict[str, list[int]]),
        (Annotated[Annotated[int, 1] | Literal["all"], 2] | None, int | Literal["all"] | None),
        ("a string", "a string"),
        (None, None),
    ],
    ids=str,
)
def test_plain_type_has_no_metadata(annotation, plain):
    assert plain_type(annotation) == plain
