"""The table of differences is complete: each has a reason and a test, and the docs show it."""

import ast
from pathlib import Path

from tests.as_in_ignite.sides import DEPARTURES

TEXT = {
    node.value
    for path in Path(__file__).parent.glob("test_*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
}


def test_each_departure_is_tested():
    assert DEPARTURES.keys() - TEXT == set()


def test_each_departure_has_a_reason():
    assert all(reason.endswith(".") for reason in DEPARTURES.values())


def test_the_docs_have_the_table():
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "coming_from" / "differences_from_ignite.md").read_text()
    rows = [f"| {name} | {reason} |" for name, reason in DEPARTURES.items()]
    assert "\n".join(rows) in page
