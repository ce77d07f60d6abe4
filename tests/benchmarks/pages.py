"""The tables of the pages: where they are, and how a new one replaces an old one.

A table stands on one page, between two comments, which neither GitHub nor the site shows::

    <!-- table: import -->

    | after … | median, ms |
    |---|---|
    | … | 0.6 |

    *Measured on 2026-12-01 at commit 0123abc: 2 cores, …*

    <!-- end of table -->
"""

import re
import subprocess
from datetime import datetime
from datetime import timezone
from pathlib import Path

from tests.benchmarks.machine import describe_machine

__all__ = [
    "ROOT",
    "check_lines",
    "commit_of_tree",
    "find_tables",
    "names_of_tables",
    "origin_of",
    "replace_table",
]

ROOT = Path(__file__).parents[2]
MARKED = re.compile(
    r"^<!-- table: (?P<name>\S+) -->\n(?P<text>.*?)^<!-- end of table -->$",
    re.MULTILINE | re.DOTALL,
)
BEGINNING = re.compile(r"^<!-- table: (\S+) -->$", re.MULTILINE)
CELL_BORDER = re.compile(r"(?<!\\)\|")


def git(*arguments):
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def names_of_tables(text):
    """Returns the names of the tables in the text of a page.

    Raises:
        ValueError: a table has no end.
    """
    names = BEGINNING.findall(text)
    if names != [match["name"] for match in MARKED.finditer(text)]:
        raise ValueError(f"one of the tables {', '.join(names)} has no end")
    return names


def find_tables():
    """Returns the page of each table by the name of the table.

    Raises:
        ValueError: a name is used twice, or a table has no end.
    """
    found = {}
    # Git leaves out the pages that are generated for the site.
    for page in (ROOT / name for name in git("ls-files", "*.md").splitlines()):
        for name in names_of_tables(page.read_text(encoding="utf-8")) if page.exists() else ():
            if name in found:
                raise ValueError(f"two tables have the name {name}: in {found[name]} and {page}")
            found[name] = page
    return found


def check_lines(lines):
    """Checks that the lines are a table of Markdown with at least one row.

    Raises:
        ValueError: they are not.
    """
    widths = [len(CELL_BORDER.findall(line)) for line in lines]
    is_table = len(lines) > 2 and all(line[:1] == line[-1:] == "|" for line in lines)
    if not is_table or len(set(widths)) > 1 or set(lines[1]) != {"|", "-"}:
        raise ValueError(f"the benchmark has returned no table but {lines!r}")


def replace_table(page, name, lines, origin):
    """Replaces the table of a page, and the line that says where the figures come from.

    Raises:
        ValueError: the page has no table of this name, or the lines are no table.
    """
    check_lines(lines)
    text = page.read_text(encoding="utf-8")
    match = next((each for each in MARKED.finditer(text) if each["name"] == name), None)
    if match is None:
        raise ValueError(f"{page} has no table {name}")
    table = "\n".join(["", *lines, "", f"*{origin}*", "", ""])
    start, end = match.span("text")
    page.write_text(text[:start] + table + text[end:], encoding="utf-8")


def commit_of_tree():
    """Returns the short hash of the commit, and whether the tree has other content.

    The pages with tables are left out, so that a table does not change the origin of the next one.
    """
    pages = [f":(exclude){page.relative_to(ROOT)}" for page in set(find_tables().values())]
    is_changed = git("status", "--porcelain", "--", ".", *pages).strip()
    return git("rev-parse", "--short", "HEAD").strip() + (" with changes" if is_changed else "")


def origin_of(commit, packages, rounds=None):
    """Returns the line that says when and where the figures of a table were measured."""
    day = datetime.now(timezone.utc).date().isoformat()
    often = f", {rounds} round{'s' * (rounds > 1)}" if rounds else ""
    return f"Measured on {day} at commit {commit}{often}: {describe_machine(packages)}."
