import inspect
import re

import pytest

from ignite_hooks.core.deprecated import renamed_argument
from ignite_hooks.handlers import Every
from ignite_hooks.handlers import Handler
from ignite_hooks.handlers import checked_dataclass


@renamed_argument("frequency", "every_steps", removed_in="0.4")
@checked_dataclass
class Report(Handler):
    every_steps: Every = 10


@renamed_argument("frequency", "every_steps", removed_in="0.4")
def report(every_steps=10):
    return every_steps


@pytest.mark.parametrize(("name", "call"), [("Report", Report), ("report", report)])
def test_the_old_name_of_an_argument_works_with_a_warning(name, call):
    message = (
        f"`frequency` of `{name}` was renamed: write every_steps=…; "
        "version 0.4 removes the old name"
    )
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(message)}$") as given:
        made = call(frequency=5)
    assert given[0].filename == __file__
    assert getattr(made, "every_steps", made) == 5
    new = call(every_steps=6)
    assert getattr(new, "every_steps", new) == 6
    assert list(inspect.signature(call).parameters) == ["every_steps"]


@pytest.mark.parametrize("call", [Report, report])
def test_the_old_and_the_new_name_together_are_an_error(call):
    with pytest.raises(TypeError, match=r"write every_steps=…, got both names"):
        call(frequency=5, every_steps=5)


def test_a_wrong_value_under_the_old_name_is_an_error():
    with (
        pytest.warns(DeprecationWarning, match="was renamed"),
        pytest.raises(ValueError, match="`every_steps` must be an integer >= 1, got 0"),
    ):
        Report(frequency=0)
