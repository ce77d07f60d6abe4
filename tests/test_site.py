import re
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

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(find_spec("furo") is None, reason="needs the extra `docs`"),
]

ROOT = Path(__file__).parents[1]
PACKAGES = ("checkpoint", "config", "evaluation", "handlers", "observe", "optim")


class Page(HTMLParser):
    """The links, the anchors and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.anchors, self.text = path, set(), {""}, ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.links |= {attributes[name] for name in ("href", "src") if attributes.get(name)}

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {page: Page(page) for page in folder.rglob("*.html")}, folder


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
    assert any("repository/README.html" in link for link in pages[folder / "data.html"].links)
    assert not (folder / "_downloads").exists()


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


def test_public_names_in_the_text_are_links_to_the_reference(site):
    pages, folder = site
    link = "reference/ignite_hooks.Trainer.html#ignite_hooks.Trainer"
    assert link in pages[folder / "handlers.html"].links
    assert link not in pages[folder / "costs.html"].links  # Hugging Face's `Trainer`


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
