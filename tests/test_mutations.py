import ast

import pytest

from tests.mutations import changes_of
from tests.mutations import quickest_tests

FUNCTION = '''
LIMIT = 3


def function(values: "list[1]", a=1):
    """The ä before a change counts two bytes."""
    {}
'''


def normal(source):
    return ast.unparse(ast.parse(source))


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("a == b", {"pass", "a != b"}),
        ("x = a < b", {"pass", "x = a <= b"}),
        ("x = a > b", {"pass", "x = a >= b"}),
        ("x = a is None", {"pass", "x = a is not None"}),
        ("x = a not in b", {"pass", "x = a in b"}),
        ("x: int = f(1)", {"pass", "x: int = f(2)"}),
        ("x += 'ä', 1", {"pass", "x += 'ä', 2"}),
        (
            "return a and (b or c)",
            {"return None", "return a or (b or c)", "return a and (b and c)"},
        ),
        ("return not (a or b)", {"return None", "return a or b", "return not (a and b)"}),
        ("if a is not b: return", {"if a is b: return"}),
        ("if a: return b", {"if a: return None"}),
        ("for x in range(3): f()", {"for x in range(4): f()", "for x in range(3): pass"}),
        ("while True: break", {"while False: break"}),
        ("with f(1) as x: pass", {"with f(2) as x: pass"}),
        ("x = yield 1", {"x = yield 2"}),
        ("x = [y for y in z if y == w]", {"pass", "x = [y for y in z if y != w]"}),
        ("f(f'{a == 1}')", {"pass"}),
        ("f(k=1)", {"pass", "f(k=2)"}),
        ("a < b < c", {"pass"}),
        ("return None", set()),
        ("return", set()),
        ("x: int", set()),
    ],
)
def test_each_change_of_a_statement_is_in_one_place(statement, expected):
    changes = changes_of(FUNCTION.format(statement))
    assert {normal(source) for each in changes.values() for *_, source in each} == {
        normal(FUNCTION.format(each)) for each in expected
    }


def test_only_lines_of_functions_are_changed():
    assert set(changes_of(FUNCTION.format("return a"))) == {7}


def test_the_quickest_case_of_each_test_comes_first():
    seconds = {"a[1]": 3, "a[2]": 1, "a[3]": 2, "b": 4, "c": 5}
    assert quickest_tests(set(seconds), seconds, 4) == ["a[2]", "b", "c", "a[3]"]
    assert quickest_tests({"b", "a[1]"}, seconds, 40) == ["a[1]", "b"]
