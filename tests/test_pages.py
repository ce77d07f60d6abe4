import os
import re
from contextlib import suppress
from select import select

import pytest

import ignite_hooks
from tests.page_process import PROBLEM
from tests.pages import ROOT
from tests.pages import Page
from tests.pages import is_same
from tests.pages import main

DOCS = ROOT / "docs"
README = ROOT / "README.md"
GENERATED = ("reference", "repository")  # by docs/conf.py, with links that work on the site only
PAGES = [README] + [
    path for path in sorted(DOCS.rglob("*.md")) if path.relative_to(DOCS).parts[0] not in GENERATED
]
LINKING = [*PAGES, ROOT / "examples" / "README.md", ROOT / "tests" / "benchmarks" / "README.md"]
ALWAYS = ("README.md", "docs/index.md")  # the other pages run with -m exhaustive


def name_of(page):
    return page.relative_to(ROOT).as_posix()


MARKS = {page: [] if name_of(page) in ALWAYS else ["exhaustive"] for page in PAGES}
MARKS[DOCS / "guides" / "log_to_trackers.md"].append("trackers")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page), marks=[getattr(pytest.mark, each) for each in marks])
        for page, marks in MARKS.items()
    ],
)
def test_the_code_of_a_page_prints_what_the_page_shows(page, tmp_path):
    page = Page(page)
    assert page.differences(page.run(tmp_path)) == []
    if page.end is not None:
        pytest.skip(f"as shown {page.end}")


def anchors(page):
    """Returns the anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_pages_link_to_files_and_sections_that_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text)
    links += [(file, "") for file in re.findall(r'(?:src|srcset)="([^"]*)"', text)]
    targets = [((page.parent / file) if file else page, section) for file, section in links]
    assert [str(file) for file, _ in targets if not file.exists()] == []
    assert [each for each in targets if each[1] and each[1] not in anchors(each[0])] == []


def test_the_docs_name_every_public_name():
    words = {*re.findall(r"\w+", (DOCS / "handlers.md").read_text())}
    missing = [name for name in ignite_hooks.__all__ if name not in words]
    assert missing == []


def test_each_promise_of_the_readme_is_explained_and_names_tests():
    section = README.read_text().split("## What it promises\n")[1].split("\n## ")[0]
    promises = re.findall(r"^- \[?\*\*(.+?)\.?\*\*", section, re.MULTILINE)
    page = DOCS / "concepts" / "promises.md"
    _, *parts = re.split(r"^## ", page.read_text(), flags=re.MULTILINE)
    assert [part.split("\n")[0] for part in parts[: len(promises)]] == promises
    for part in parts:
        rows = re.findall(r"^- .*: \[`(\w+)`\]\((.*\.py)\)$", part, re.MULTILINE)
        assert len(rows) == part.count("`test_") > 0
        missing = [
            name for name, file in rows if f"def {name}(" not in (page.parent / file).read_text()
        ]
        assert missing == []


# The tool itself
#
@pytest.mark.parametrize(
    ("shown", "printed", "tolerance", "same"),
    [
        ("loss 0.500\n", "loss 0.504\n", 0.01, True),
        ("loss 0.500\n", "loss 0.510\n", 0.01, False),
        ("loss -0.500\n", "loss 0.500\n", 0.01, False),
        ("loss 0.5\n", "loss 7,123.5e-3\n", float("inf"), True),
        ("loss 0.5\n", "loss nan\n", float("inf"), False),
        ("step 100\n", "step 101\n", 0.01, False),
        ("step 100\n", "step 101\n", 0.1, True),
        ("a   1\n\nb 2\n", "a 1\nb     2  \n", 0, True),
        ("a 1\n", "a 1\na 1\n", 0, False),
        ("a 1\na 1\n", "a 1\n", 0, False),
        ("a\n…\n", "a\nb\nc\n", 0, True),
        ("…\nc\n", "a\nb\nc\n", 0, True),
        ("…\nb\n", "a\nb\nc\n", 0, False),
        ("a\n…\nb\n…\nd\n", "a\nx\nb\nc\nd\n", 0, True),
        ("a\n…\nb\n…\nd\n", "a\nx\nc\nd\n", 0, False),
        ("…\n", "", 0, True),
        ("…\n", "a\nExit: at 3\n", 0, True),
        ("…\n", f"a\n{PROBLEM}Exit: at 3\nb\n", 0, False),
        ("…\nExit: …\n…\n", f"a\n{PROBLEM}Exit: at 3\nb\n", 0, True),
        ("", "", 0, True),
        ("saved … at 3\n", "saved /some/where at 3\n", 0, True),
        ("saved … at 3\n", "saved /some/where at 4\n", 0, False),
        ("saved … at 3\n", "kept /some/where at 3\n", 0, False),
    ],
)
def test_outputs_are_compared_by_words_and_numbers(shown, printed, tolerance, same):
    assert is_same(shown, printed, tolerance) is same


def page_of(folder, *blocks):
    path = folder / "page.md"
    path.write_text("\n\n".join(blocks) + "\n")
    return path


PROGRAM = "```python\nx = 2\nprint('x is', x)\n```"


@pytest.mark.parametrize(
    "blocks",
    [
        (PROGRAM, "```output\nx is 3\n```"),
        (PROGRAM, "Text\n\n```output\n```"),
        ("```console\n$ echo a\nb\n```",),
        ("```console\n$ echo a; exit 2\na\n```",),
        ("```sh\nexit 2\n```",),
        ("```python\nraise ValueError('no')\n```",),
        ("```python\nimport warnings\nwarnings.warn('look')\n```",),
        (PROGRAM, "```python\nx.y = 3\n```"),
        (PROGRAM, "```python\nnext(iter([]))\n```"),
        (PROGRAM, "```python\nprint('x', end='')\nraise ValueError('no')\n```"),
        ("```python\nprint('x')\nraise ValueError('no')\n```", "```output\nx\n…\n```"),
        ("```python\nfrom threading import Thread\nThread(target=any).start()\n```",),
        ("```console\n$ python -c \"import warnings; warnings.warn('look')\"\n```",),
    ],
)
def test_other_outputs_failures_and_warnings_are_found(blocks, tmp_path, capsys):
    assert main([str(page_of(tmp_path, *blocks))]) == 1
    assert "page.md: differs" in capsys.readouterr().out


def test_blocks_run_in_order_in_one_folder_and_one_namespace(tmp_path, capsys):
    page = page_of(
        tmp_path,
        PROGRAM,
        "<!-- file: more.py -->\n```python\nprint('more')\n```",
        "```console\n$ python more.py\nmore\n$ ls\nexamples\nmore.py\n```",
        "```console\n$ pwd\n/home/you\n```",
        "<!-- not run: for readers -->\n```sh\nrm /\n```",
        "```python\nprint(x + 1, open('more.py').read())\nraise Exception('end')\n```",
        "<!-- numbers: any -->\n```output\n7 print('more')\nException: end\n```",
        "<!-- needs: no_such_package -->\n```python\n1 / 0\n```",
    )
    assert main([str(page)]) == 0
    assert (
        capsys.readouterr().out == f"{page}: as shown, up to line 42, which needs no_such_package\n"
    )


def test_write_replaces_what_is_shown_but_for_gaps(tmp_path):
    gap = "```output\nx …\n```"
    page = page_of(
        tmp_path, PROGRAM, "```output\n```", PROGRAM, gap, "```console\n$ echo a\n$ echo b\n```"
    )
    assert main([str(page), "--write"]) == 0
    shown = [step.shown for step in Page(page).steps]
    assert shown == ["x is 2\n", "x …\n", "a\n", "b\n"]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (["```py\n1\n```"], "not 'py'"),
        (["- a\n\n  ```python\n  1\n  ```"], "indented or not closed"),
        (["~~~python\n1\n~~~"], "indented or not closed"),
        (["<!-- needs: torch -->", PROGRAM], "not in the line before it"),
        (["```console\npython train.py\n```"], "must begin with a command"),
        (["```output\n1\n```"], "an output needs a block before it"),
        ([PROGRAM, "```text\n1\n```", "```output\n```"], "an output needs a block before it"),
        (
            [PROGRAM, f"<!-- not run: it is slow -->\n{PROGRAM}", "```output\n```"],
            "an output needs a block before it",
        ),
        ([PROGRAM, "```output\n```", "```output\n```"], "an output needs a block before it"),
    ],
)
def test_blocks_that_would_not_be_compared_are_errors(blocks, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Page(page_of(tmp_path, *blocks))


@pytest.mark.parametrize("status", [0, 3])
def test_a_page_that_ends_its_process_is_an_error(status, tmp_path):
    page = Page(page_of(tmp_path, PROGRAM, f"```python\nimport os\nos._exit({status})\n```"))
    (folder := tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match=rf"ended early, with {status}, after \['x is 2"):
        page.run(folder)
    assert os.listdir(folder) == ["examples"]


def test_processes_that_a_page_leaves_are_killed(tmp_path):
    page = page_of(tmp_path, "```console\n$ cat /dev/zero >/dev/null 2>&1 & echo $!\n…\n```")
    (folder := tmp_path / "empty").mkdir()
    (printed,) = Page(page).run(folder)
    with suppress(ProcessLookupError):  # it has ended already
        process = os.pidfd_open(int(printed))  # is readable when the process has ended
        assert select([process], [], [], 60)[0]
        os.close(process)
