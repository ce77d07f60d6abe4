import importlib
import inspect
import re

import pytest

from tests.benchmarks.all import TABLES
from tests.benchmarks.all import Table
from tests.benchmarks.all import main
from tests.benchmarks.pages import ROOT
from tests.benchmarks.pages import check_lines
from tests.benchmarks.pages import find_tables
from tests.benchmarks.pages import names_of_tables
from tests.benchmarks.pages import replace_table

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a clone")

ORIGIN = re.compile(
    r"\*Measured on \d{4}-\d\d-\d\d at commit [0-9a-f]{7,}( with changes)?(, \d+ rounds?)?: "
    r"\d+ cores, Linux \d+\.\d+, Python 3\.\d+\.\d+, torch .+\.\*"
)


def text_of(page, name):
    text = page.read_text(encoding="utf-8")
    _, _, text = text.partition(f"<!-- table: {name} -->\n")
    return text.partition("<!-- end of table -->\n")[0]


def lines_of(page, name):
    """Returns the lines of a table, and the line below it."""
    *lines, empty, origin = text_of(page, name).strip().split("\n")
    assert not empty
    return lines, origin


def test_tables_of_the_pages_are_those_that_are_measured():
    assert sorted(find_tables()) == sorted(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_table_has_a_program_that_takes_its_arguments(name):
    table = TABLES[name]
    program = importlib.import_module(f"tests.benchmarks.{table.program}")
    signature = inspect.signature(getattr(program, table.function))
    for is_quick in (False, True):
        signature.bind(**table.arguments(is_quick=is_quick))


@pytest.mark.parametrize("name", TABLES)
def test_each_table_says_where_its_figures_come_from(name):
    lines, origin = lines_of(find_tables()[name], name)
    check_lines(lines)
    assert ORIGIN.fullmatch(origin)


def test_quick_run_writes_a_table_of_the_same_shape_into_a_copy(tmp_path):
    name = "save-calls"
    page = find_tables()[name]
    copy, before = tmp_path / page.relative_to(ROOT), page.read_text(encoding="utf-8")
    assert main(["--quick", "--into", str(tmp_path), "--only", name]) == 0
    assert page.read_text(encoding="utf-8") == before
    old, _ = lines_of(page, name)
    new, origin = lines_of(copy, name)
    assert [line.count("|") for line in new] == [line.count("|") for line in old]
    assert [line.split(" | ")[0] for line in new] == [line.split(" | ")[0] for line in old]
    assert ORIGIN.fullmatch(origin)
    # Nothing but the table has changed.
    after = copy.read_text(encoding="utf-8")
    assert after.replace(text_of(copy, name), "") == before.replace(text_of(page, name), "")


def test_failed_table_keeps_its_text_and_the_next_is_measured(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(TABLES, "growth", Table("growth", quick={"numbers": [None]}))
    assert main(["--quick", "--into", str(tmp_path), "--only", "growth", "collections"]) == 1
    errors = capfd.readouterr().err
    assert "TypeError" in errors
    assert errors.splitlines()[-1] == "failed, so that the old tables stay: growth"
    page = find_tables()["growth"]
    copy = tmp_path / page.relative_to(ROOT)
    assert text_of(copy, "growth") == text_of(page, "growth")
    assert ORIGIN.fullmatch(lines_of(copy, "collections")[1])


@pytest.mark.parametrize("arguments", [["--quick"], ["--quick", "--into", str(ROOT)]])
def test_quick_run_never_writes_to_the_pages(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--into" in capsys.readouterr().err


def test_list_shows_each_table_and_the_minutes(capsys):
    assert main(["--list"]) == 0
    output = capsys.readouterr().out
    assert all(f"| {name} | " in output for name in TABLES)
    assert output.splitlines()[-1].startswith("| all | ")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["| a |", "|---|"],
        ["| a |", "|---|", "| 1 | 2 |"],
        ["| a |", "|---|", "a failure"],
        ["| a |", "| b |", "| 1 |"],
    ],
)
def test_lines_that_are_no_table_are_not_written(lines, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: a -->\nold\n<!-- end of table -->\n")
    with pytest.raises(ValueError, match="no table"):
        replace_table(page, "a", lines, "here")
    assert page.read_text() == "<!-- table: a -->\nold\n<!-- end of table -->\n"


def test_table_that_a_page_lacks_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: a -->\nold\n<!-- end of table -->\n")
    with pytest.raises(ValueError, match="no table b"):
        replace_table(page, "b", ["| a |", "|---|", "| 1 |"], "here")


def test_table_without_an_end_is_an_error():
    with pytest.raises(ValueError, match="one of the tables a, b has no end"):
        names_of_tables("<!-- table: a -->\n<!-- table: b -->\n<!-- end of table -->\n")
