import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote
from urllib.parse import urlsplit

import pytest

import ignite_hooks
from tests.observe.report.browser import PATH
from tests.observe.report.browser import Browser

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(find_spec("furo") is None, reason="needs the extra `docs`"),
]

ROOT = Path(__file__).parents[1]
PACKAGES = ("checkpoint", "config", "evaluation", "handlers", "observe", "optim")
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
# A page in a folder, with everything that pages use.
GUIDE = """---
orphan: true
---
# A guide
<!-- run: in the
same folder -->

[handlers](../handlers.md#the-handlers) [concepts](../concepts/index.md) [](index.md)
[script](../../examples/digits.py) [notebook](../../examples/made.ipynb) [all](../../examples)
`[no link](../../examples/digits.py)` Lightning's `Trainer`

```python
print("a")
functions = [[print]]; functions[0](..)
```
<!-- compare: loosely -->
```output
loss 0.5 {"a": 1
```

```console
$ pip list
torch 2.6
$ python a.py
```

```markdown
<!-- shown -->
[shown](../../examples/digits.py)
```

| a | b |
|---|---|
| 1 | 2 |
<!-- end of table -->

![](../images/made.svg)

<picture>
  <source srcset="../images/report_dark.png" media="(prefers-color-scheme: dark)" >
  <img alt="A
report" src="../images/made.svg" width="300" />
</picture>
"""
TABLE = """---
orphan: true
---
# A table

| other library | here |
|---|---|
| `SaveCheckpoint` | `Validation` |
"""
NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["# A notebook\n", "with text"]},
        {
            "cell_type": "code",
            "source": "print(1 + 1)",
            "outputs": [
                {"output_type": "stream", "text": ["two\n"]},
                {
                    "output_type": "error",
                    "ename": "KeyboardInterrupt",
                    "evalue": "",
                    "traceback": [],
                },
                {"output_type": "display_data", "data": {"image/png": f"{PIXEL}\n"}},
            ],
        },
    ]
}


class Page(HTMLParser):
    """The links, the anchors and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.anchors, self.text = path, set(), {""}, ""
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.links |= {attributes[name] for name in ("href", "src") if attributes.get(name)}

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Builds the site from a copy of the repository that has more pages and a notebook."""
    copy, folder = tmp_path_factory.mktemp("repository") / "copy", tmp_path_factory.mktemp("site")
    ignored = [Path(line).name for line in (ROOT / ".gitignore").read_text().split()]
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", *ignored))
    (copy / "docs" / "guides" / "made.md").write_text(GUIDE)
    (copy / "docs" / "coming_from" / "made.md").write_text(TABLE)
    (copy / "docs" / "images" / "made.svg").write_text(SVG)
    (copy / "examples" / "made.ipynb").write_text(json.dumps(NOTEBOOK))
    (copy / "examples" / "left_by_a_run.png").write_bytes(b"\xff")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", folder],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {page: Page(page) for page in folder.rglob("*.html")}, folder


@pytest.fixture
def guide(site):
    pages, folder = site
    return pages[folder / "guides" / "made.html"]


def test_the_reference_has_every_public_name(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site[1] / "objects.inv").read_bytes(), uri="")
    described = {name for kind in inventory.data.values() for name in kind}
    public = {f"ignite_hooks.{name}" for name in ignite_hooks.__all__}
    for package in PACKAGES:
        names = set(import_module(f"ignite_hooks.{package}").__all__) - set(ignite_hooks.__all__)
        public |= {f"ignite_hooks.{package}.{name}" for name in names}
    public |= {f"ignite_hooks.TrainEvents.{event.name}" for event in ignite_hooks.TrainEvents}
    assert sorted(public - described) == []


def test_every_link_of_the_site_leads_to_a_page_and_a_section(site):
    pages, folder = site
    broken = []
    for page in pages.values():
        if page.path.is_relative_to(folder / "_modules"):  # written by sphinx.ext.viewcode
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            anchors = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if not target.exists() or unquote(parts.fragment) not in anchors:
                broken.append((page.path.name, link))
    assert broken == []


def test_links_to_files_of_the_repository_lead_to_pages_that_show_them(site):
    pages, folder = site
    shown = folder / "repository" / "examples" / "digits.py.html"
    assert "def main(" in pages[shown].text
    assert "repository/README.html" in pages[folder / "handlers.html"].links
    assert not (folder / "_downloads").exists()


def test_links_of_a_page_in_a_folder_lead_to_pages(guide):
    outside = "../repository/examples"
    assert guide.links > {
        "../handlers.html#the-handlers",
        "../concepts/index.html",
        "index.html",
        f"{outside}.html",
        f"{outside}/digits.py.html",
        f"{outside}/made.ipynb.html",
    }


def test_pictures_of_a_page_in_a_folder_have_two_themes(guide, site):
    content = guide.html
    light, dark = re.findall(r"<img alt=\"A report\"[^>]*>", content)
    assert 'class="only-light"' in light
    assert 'src="../_images/made.svg"' in light
    assert 'width="300"' in light
    assert 'class="only-dark"' in dark
    assert 'src="../_images/report_dark.png"' in dark
    assert "<picture" not in "".join(page.html for page in site[0].values())


def test_comments_of_a_page_are_not_shown_but_those_in_code_are(guide):
    assert not re.search("same folder|loosely|end of table", guide.html)
    assert "<!-- shown -->\n[shown](../../examples/digits.py)" in guide.text
    assert "[no link](../../examples/digits.py)" in guide.text
    assert "functions[0](..)" in guide.text


def test_a_notebook_is_shown_with_its_output_and_pictures(site):
    pages, folder = site
    page = pages[folder / "repository" / "examples" / "made.ipynb.html"]
    assert re.search(r"A notebook.*with text.*print\(1 \+ 1\)\s*two\s*Keyb", page.text, re.DOTALL)
    assert f"data:image/png;base64,{PIXEL}" in page.links


@pytest.mark.browser
@pytest.mark.skipif(PATH is None, reason="needs Chromium")
def test_the_copy_button_copies_code_and_no_output(guide):
    assert '<span class="go">loss' not in guide.html  # in the color of the text, not in grey
    selected = "document.execCommand = () => copied.push(document.activeElement.value)"
    browser = Browser()
    try:
        browser.open(guide.path)
        browser.evaluate(f"window.copied = []; {selected}; null")
        browser.evaluate("document.querySelectorAll('.copybtn').forEach(each => each.click())")
        copied = browser.evaluate("copied")
    finally:
        browser.close()
    assert [each.split() for each in copied] == [
        ['print("a")', "functions", "=", "[[print]];", "functions[0](..)"],
        ["pip", "list", "python", "a.py"],
        ["<!--", "shown", "-->", "[shown](../../examples/digits.py)"],
    ]


def test_the_reference_shows_types_as_people_write_them(site):
    pages, _ = site
    texts = {
        path.stem: page.text for path, page in pages.items() if path.parent.name == "reference"
    }
    saved = texts["ignite_hooks.SaveCheckpoint"]
    assert "directory (str | Path)" in saved
    assert "every_steps (int | None)" in saved
    assert "on_signals=('SIGTERM',)" in re.sub(r"\s", "", saved)
    assert "handlers.Every" not in texts["handlers_of_your_own"]
    for name, text in texts.items():
        assert not re.search(r"Validator\(|WithJsonSchema|PydanticUndefined|<function", text), name


def test_members_that_all_handlers_have_are_described_once(site):
    pages, folder = site
    name = "ignite_hooks.handlers.Handler.attach"
    described = [path.name for path, page in pages.items() if name in page.anchors]
    assert described == ["handlers_of_your_own.html"]
    saved = pages[folder / "reference" / "ignite_hooks.SaveCheckpoint.html"]
    assert "ignite_hooks.SaveCheckpoint.last_checkpoint" in saved.anchors
    assert "ignite_hooks.SaveCheckpoint.attach" not in saved.anchors
    assert any(link.endswith(f"#{name}") for link in saved.links)


def test_public_names_in_the_text_are_links_to_the_reference(site, guide):
    pages, folder = site
    link = "reference/ignite_hooks.Trainer.html#ignite_hooks.Trainer"
    assert link in pages[folder / "handlers.html"].links
    (costs,) = [page for path, page in pages.items() if path.name == "costs.html"]
    for foreign in (guide, costs):  # Lightning's `Trainer`, and Hugging Face's
        assert not any(each.endswith(link) for each in foreign.links)
    links = {each.rpartition("#")[2] for each in pages[folder / "coming_from" / "made.html"].links}
    assert "ignite_hooks.Validation" in links
    assert "ignite_hooks.SaveCheckpoint" not in links  # the other library's


def test_the_help_of_each_command_line_is_shown(site):
    pages, folder = site
    text = pages[folder / "reference" / "command_lines.html"].text
    done = subprocess.run(
        [sys.executable, "-m", "ignite_hooks.checkpoint", "diff", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "88", "NO_COLOR": "1"},
    )
    assert done.stdout in text
    for package in ("checkpoint", "config", "observe"):
        assert f"$ python -m ignite_hooks.{package} --help" in text
