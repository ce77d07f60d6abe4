"""The page about Ignite's handlers names only what these tests attach."""

import re
from pathlib import Path

import pytest

from tests.as_in_ignite.test_metrics import METRICS

FOLDER = Path(__file__).parent
PAGE = (FOLDER.parents[1] / "docs" / "guides" / "use_ignites_handlers.md").read_text()
ROWS = re.findall(r"^\| (`\w+`.*?) \|", PAGE, re.MULTILINE)
TESTS = "".join(
    path.read_text()
    for path in (*FOLDER.glob("*.py"), FOLDER.parent / "observe/test_progress_bar.py")
)


@pytest.mark.parametrize("name", re.findall(r"`(\w+)`", " ".join(ROWS)))
def test_what_the_page_lists_is_tested(name):
    assert re.search(rf"\b{name}\(|\b{name}\b[,)]", TESTS)


def test_the_page_counts_the_metrics():
    assert f"| {len(METRICS)} metrics, with each usage |" in PAGE
