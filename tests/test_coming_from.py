"""The pages for users of other libraries compare two scripts that do the same training."""

import ast
import re

import pytest

from tests.pages import ROOT
from tests.pages import Page

PAGES = [
    path
    for path in sorted((ROOT / "docs" / "coming_from").glob("*.md"))
    if path.stem not in ("index", "differences_from_ignite")
]
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def lines_of(code):
    """Returns the number of lines of a script, without blank lines and imports."""
    imports = [
        node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    left_out = {line for node in imports for line in range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(code.splitlines(), start=1)
    return sum(number not in left_out and line.strip() != "" for number, line in lines)


@each_page
def test_the_headings_count_the_lines_of_both_scripts(path):
    counted = {}
    for section in path.read_text(encoding="utf-8").split("\n## ")[1:]:
        if shown := re.match(r".*: (\d+) lines\n", section):
            blocks = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
            counted[shown[0]] = int(shown[1]), lines_of("".join(blocks))
    assert len(counted) == 2
    assert all(shown == lines for shown, lines in counted.values()), counted


@pytest.mark.exhaustive
@each_page
def test_both_scripts_end_with_the_same_weights(path, tmp_path):
    page = Page(path)
    printed = re.findall(r"^sum of the weights: (\S+)$", "".join(page.run(tmp_path)), re.MULTILINE)
    # A page ends after the first script if the other library is not installed.
    assert len(printed) == sum(step.code.endswith("show(model)\n") for step in page.steps)
    assert len({*printed}) == 1
