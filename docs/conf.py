"""Settings of Sphinx for the site, and the code that generates some of its pages.

::

    python -m sphinx -W --keep-going docs build/site

Two folders are generated in ``docs/``, and ignored by git:

- ``reference/``: a page for each public name, grouped as in ``handlers.md``, and the help of the
  command lines.
- ``repository/``: a page for each file outside ``docs/`` that a page links to. A link such as
  ``../examples/digits.py`` therefore works on the site as it does in the repository.
"""

import inspect
import json
import os
import re
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import is_dataclass
from importlib import import_module
from io import StringIO
from itertools import chain
from pathlib import Path
from textwrap import indent
from typing import Annotated
from typing import Any
from typing import get_origin
from unittest.mock import patch

from docutils import nodes
from ignite.engine import EventEnum
from pygments.lexers.special import TextLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.typing import stringify_annotation

import ignite_hooks
from ignite_hooks.core.checked_dataclass import plain_type
from ignite_hooks.handlers import Handler
from ignite_hooks.handlers import Scheduled

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "ignite_hooks"
author = "the maintainers of ignite_hooks"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
suppress_warnings = ["myst.header"]  # a changelog repeats the levels of its headings
myst_heading_anchors = 4
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False
copybutton_selector = "div:not(.highlight-output) > div.highlight > pre"
copybutton_exclude = ".linenos, .gp, .go"  # copies commands without prompts and without output
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "ignite_hooks"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
smartquotes_action = "D"  # dashes, but no quotes: values such as "all" stay as they are written

# The command lines, with the arguments of each help to show.
COMMANDS = {
    "ignite_hooks.checkpoint": ["", "list", "show", "verify", "export", "diff"],
    "ignite_hooks.config": ["", "check", "show", "schema"],
    "ignite_hooks.observe": ["", "report"],
}
OWN_HANDLERS = "Handlers of your own"
# The members of these classes that users need. Their other members are for the package itself.
MEMBERS = {
    "DataFeed": "loader, length, state_dict, load_state_dict",
    "Trainer": "run, terminate, set_limits, set_data, seed_ranks, load_best, modules",
    "OptimizerStep": "optimizer, lr_scheduler, backward, gradient_sync",
}
BASES = (Handler, Scheduled)  # their members are shown once, on the page of `OWN_HANDLERS`
GENERATED = ("reference", "repository")
# The packages with public names of their own, and the pages of the reference that show them.
PACKAGES = {
    "checkpoint": "Checkpoints",
    "observe": "Watching a run",
    "config": "Settings files",
    "handlers": OWN_HANDLERS,
}
# Before a name that this package has, too.
OTHER_LIBRARY = re.compile(
    r"\b(Accelerate|Avalanche|Face|HF|Ignite|Lightning|RoboOrchardLab)('s)?\s$"
)
# The pages with tables whose first column has the names of other libraries.
OTHER_NAMES = ("coming_from/", "guides/use_ignites_handlers")
LANGUAGES = {
    ".cff": "yaml",
    ".json": "json",
    ".py": "python",
    ".sh": "bash",
    ".toml": "toml",
    ".txt": "text",
    ".yaml": "yaml",
}
SHOWN = {*LANGUAGES, ".ipynb", ".md"}  # in the list of the files of a folder


def setup(app: Sphinx) -> None:
    """Registers the code below with Sphinx."""
    _show_plain_types()
    _write_pages(DOCS / "reference", dict(_reference_pages()))
    _write_pages(DOCS / "repository", dict(_repository_pages()))
    app.add_lexer("output", TextLexer)  # the "output" of Pygments makes the text grey
    app.connect("source-read", _adapt_source)
    app.connect("autodoc-skip-member", _skip_member)
    app.connect("autodoc-process-signature", _skip_signature)
    app.connect("doctree-read", _remove_comments)
    app.connect("doctree-read", _link_public_names)


# The reference
#
def _groups() -> dict[str, list[str]]:
    """Returns the names of `ignite_hooks`, in the groups and in the order of handlers.md."""
    groups: dict[str, list[str]] = {}
    rows: list[tuple[str, str]] = []
    page = (DOCS / "handlers.md").read_text(encoding="utf-8")
    for first, second in re.findall(r"^\| (.+?) \|(.*)\|$", page, re.MULTILINE):
        if first.startswith("**"):
            groups[group := first.strip("*")] = []
        elif groups:
            rows.append((group, second))
            groups[group] += re.findall(r"`(\w+)`", first)
    listed = {name for names in groups.values() for name in names}
    for name in ignite_hooks.__all__:
        if name not in listed:  # such as `Trainer`, which the row of its factory explains
            groups[next(group for group, text in rows if f"`{name}`" in text)].insert(1, name)
    return groups


def _reference_pages() -> Iterator[tuple[str, str]]:
    """Yields the path and the text of each page of the reference."""
    pages = _groups()
    for package, title in PACKAGES.items():
        pages.setdefault(title, []).extend(_own_names(package))
    packages = {title: package for package, title in PACKAGES.items()}
    for title, names in pages.items():
        text = _heading(title)
        if title in packages:
            text += f".. automodule:: ignite_hooks.{packages[title]}\n   :no-index:\n\n"
        if title == OWN_HANDLERS:  # many short entries, on one page
            text += "".join(map(_directive, sorted(names, key=_is_type_of_field)))
        else:
            rows = "".join(map(_row, names))
            text += f".. list-table::\n   :widths: 38 62\n\n{rows}\n"
            entries = "".join(f"   {name} <ignite_hooks.{name}>\n" for name in names)
            text += f".. toctree::\n   :hidden:\n\n{entries}"
            for name in names:
                yield f"ignite_hooks.{name}.rst", _heading(name) + _directive(name)
        yield f"{_path(title)}.rst", text
    text = ".. automodule:: ignite_hooks.events\n   :no-index:\n"
    yield "events.rst", _heading("The order of events") + text
    yield "command_lines.rst", _command_lines()
    entries = "".join(f"   {each}\n" for each in [*map(_path, pages), "events", "command_lines"])
    text = "All public names, with their arguments and defaults.\n\n"
    text += f".. toctree::\n   :maxdepth: 2\n   :includehidden:\n\n{entries}"
    yield "index.rst", _heading("Reference") + text


def _own_names(package: str) -> list[str]:
    """Returns the public names that are in ``package``, and not in `ignite_hooks` itself."""
    public = import_module(f"ignite_hooks.{package}").__all__
    return [f"{package}.{name}" for name in public if name not in ignite_hooks.__all__]


def _path(title: str) -> str:
    return title.lower().replace(" ", "_")


def _row(name: str) -> str:
    sentence = re.split(r"(?<=[.])\s|:$", _docstring(name).split("\n\n")[0])[0]
    link = f":py:obj:`{name} <ignite_hooks.{name}>`"
    return f"   * - {link}\n     - {' '.join(sentence.split())}\n"


def _directive(name: str) -> str:
    """Returns the directive that describes a public name."""
    value = _value_of(name)
    address = f"ignite_hooks.{name}"
    if inspect.isclass(value):
        members = f"   :members: {MEMBERS.get(name, '')}\n"
        if name not in MEMBERS:
            members += "   :inherited-members: BaseException, object\n"
        note = ""
        if issubclass(value, Handler) and value not in BASES:
            note = "   To attach it, see :py:meth:`ignite_hooks.handlers.Handler.attach`.\n"
        return f".. autoclass:: {address}\n{members}\n{note}\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {address}\n\n"
    module, _, short = address.rpartition(".")
    text = f".. py:currentmodule:: {module}\n\n.. py:data:: {short}\n"
    if _is_type_of_field(name):
        plain = stringify_annotation(plain_type(value), "fully-qualified")
        text += f"   :type: {re.sub(r'([a-z_]+[.])+', '', plain)}\n"
    return f"{text}\n{indent(_docstring(name), '   ')}\n\n"


def _value_of(name: str) -> Any:
    module, _, name = f"ignite_hooks.{name}".rpartition(".")
    return getattr(import_module(module), name)


def _is_type_of_field(name: str) -> bool:
    return get_origin(_value_of(name)) is Annotated


def _docstring(name: str) -> str:
    """Returns the docstring of a public name; that of a value stands below its assignment."""
    value = _value_of(name)
    if inspect.isclass(value) or inspect.isroutine(value):
        return inspect.getdoc(value) or ""
    key = ("", name.rpartition(".")[2])
    for module in ("core.fields", "core.checked_dataclass"):
        documented = ModuleAnalyzer.for_module(f"ignite_hooks.{module}").find_attr_docs()
        if key in documented:
            return "\n".join(documented[key]).strip()
    raise ValueError(f"{name} has no docstring")


def _heading(title: str) -> str:
    return f"{title}\n{'=' * len(title)}\n\n"


def _command_lines() -> str:
    """Returns the page of the command lines, with the help that each of them prints."""
    text = _heading("Command lines")
    for module, commands in COMMANDS.items():
        main = import_module(f"{module}.__main__").main
        text += f"python -m {module}\n{'-' * 60}\n\n"
        for command in commands:
            arguments = [*command.split(), "--help"]
            text += ".. code-block:: console\n\n"
            shown = f"$ python -m {module} {' '.join(arguments)}\n{_output(main, arguments)}"
            text += "".join(f"   {line}\n" for line in shown.splitlines()) + "\n"
    return text


def _output(main: Any, arguments: list[str]) -> str:
    """Returns what a command line prints before it exits."""
    output = StringIO()
    with redirect_stdout(output), patch.dict(os.environ, COLUMNS="88", NO_COLOR="1"):
        try:
            main(arguments)
        except SystemExit as end:
            if end.code:
                raise ValueError(f"{main.__module__} {arguments} ends with {end.code}") from end
    return output.getvalue()


def _show_plain_types() -> None:
    """Removes the rules from the types of fields: ``str | Path``, not ``Annotated[str | Path, …]``.

    Sphinx reads these annotations of the classes. The classes have checked arguments already.
    """
    for name in [*ignite_hooks.__all__, *chain(*map(_own_names, PACKAGES))]:
        value = _value_of(name)
        for each in [value, *getattr(value, "__mro__", ())]:
            if is_dataclass(each) or inspect.isfunction(each):
                annotations = each.__annotations__.items()
                each.__annotations__ = {name: plain_type(of) for name, of in annotations}


def _skip_member(app: Sphinx, kind: str, name: str, value: Any, skip: bool, options: Any) -> Any:
    """Skips members of Ignite's classes, and those that each handler has from its base."""
    page = app.env.current_document.docname
    defined_in = getattr(value, "__module__", None) or "ignite_hooks"
    is_of_base = any(name in vars(base) for base in BASES)
    is_of_base = is_of_base and page != f"reference/{_path(OWN_HANDLERS)}"
    return True if is_of_base or not defined_in.startswith("ignite_hooks") else None


def _skip_signature(
    app: Sphinx, kind: str, name: str, value: Any, *_: Any
) -> tuple[str, str] | None:
    """Leaves out the signature of an enumeration, which is not called."""
    return ("", "") if kind == "class" and issubclass(value, EventEnum) else None


def _remove_comments(app: Sphinx, document: nodes.document) -> None:
    """Removes the comments of Markdown pages, which are notes for tests and for maintainers."""
    for node in [*document.findall(nodes.raw)]:
        if not COMMENT.sub("", node.astext()).strip():
            node.parent.remove(node)


def _link_public_names(app: Sphinx, document: nodes.document) -> None:
    """Makes each public name in the text a link to its page in the reference.

    Names such as ``load`` or ``save`` are not linked, because they may mean something else, nor is
    the ``Trainer`` of another library.
    """
    addresses = {name: f"ignite_hooks.{name}" for name in ignite_hooks.__all__}
    for address in chain(*map(_own_names, PACKAGES)):
        name = address.rpartition(".")[2]
        if not name.islower() or "_" in name:
            addresses.setdefault(name, f"ignite_hooks.{address}")
    for node in [*document.findall(nodes.literal)]:
        name, page = node.astext(), app.env.current_document.docname
        is_linked = isinstance(node.parent, nodes.reference | nodes.title | pending_xref)
        before = node.previous_sibling()
        is_foreign = before is not None and OTHER_LIBRARY.search(before.astext())
        is_foreign = is_foreign or (page.startswith(OTHER_NAMES) and _is_in_first_column(node))
        is_shown_here = page.endswith(f".{name}")
        if name in addresses and not (is_linked or is_foreign or is_shown_here):
            target = addresses[name]
            link = pending_xref("", refdomain="py", reftype="obj", reftarget=target, refdoc=page)
            node.replace_self(link)
            link += node


def _is_in_first_column(node: nodes.Node) -> bool:
    while node.parent is not None and not isinstance(node, nodes.entry):
        node = node.parent
    return isinstance(node, nodes.entry) and node.parent[0] is node


# The pages in Markdown, and the files outside of docs/
#
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
CODE = r"^(?P<fence> *[`~]{3,}).*?^(?P=fence)$|`[^`\n]+`"
# Code is matched, too, so that nothing in it is taken for a link.
CODE_OR_LINK = re.compile(
    rf"{CODE}|(?<=\]\()(?!\w+:|#)(?P<target>[^)\s#]+)(?=(#[^)\s]*)?\))", re.DOTALL | re.MULTILINE
)
PICTURE = re.compile(
    r"<picture>\s*<source(?P<dark>[^>]*prefers-color-scheme: dark[^>]*)>\s*"
    r"<img(?P<light>[^>]*)>\s*</picture>"
)
ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
FENCE = "`" * 6
PNG = "data:image/png;base64,"


def _repository_pages() -> Iterator[tuple[str, str]]:
    """Yields the path and the text of the page of each file that pages link to."""
    found: dict[Path, None] = {ROOT / name: None for name in ("README.md", "CHANGELOG.md")}
    for page in sorted(DOCS.rglob("*.md")):
        if page.relative_to(DOCS).parts[0] in GENERATED:
            continue
        found |= dict.fromkeys(_linked_outside(page, page.read_text(encoding="utf-8")))
    waiting = [*found]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        text = _page_of(path, name)
        new = [each for each in _linked_outside(path, text) if each not in found]
        found |= dict.fromkeys(new)
        waiting += new
        options = "orphan: true\n" + ("" if path.suffix == ".md" else "nosearch: true\n")
        yield f"{name.removesuffix('.md')}.md", f"---\n{options}---\n{text}"


def _page_of(path: Path, name: str) -> str:
    if path.is_dir():
        files = sorted(each.name for each in path.iterdir() if each.suffix in SHOWN)
        return f"# {name}\n\n" + "".join(f"- [{each}]({each})\n" for each in files)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        return "\n\n".join(_parts_of_notebook(json.loads(text)))
    return f"# {name}\n\n{_block(LANGUAGES.get(path.suffix, 'text'), text)}\n"


def _parts_of_notebook(notebook: Any) -> Iterator[str]:
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        yield text if cell["cell_type"] == "markdown" else _block("python", text)
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                yield f"![]({PNG}{''.join(data['image/png']).strip()})"
            elif output["output_type"] == "error":
                yield _block("output", f"{output['ename']}: {output['evalue']}")
            else:
                yield _block("output", "".join(output.get("text") or data["text/plain"]))


def _block(language: str, text: str) -> str:
    return f"{FENCE}{language}\n{text}\n{FENCE}"


def _linked_outside(page: Path, text: str) -> Iterable[Path]:
    folder = page if page.is_dir() else page.parent
    for target in filter(None, (match["target"] for match in CODE_OR_LINK.finditer(text))):
        path = (folder / target).resolve()
        if path.exists() and path.is_relative_to(ROOT) and not path.is_relative_to(DOCS):
            yield path


def _adapt_source(app: Sphinx, name: str, content: list[str]) -> None:
    """Makes links and pictures of a page work on the site."""
    if name.startswith("reference/"):
        return
    is_outside = name.startswith("repository/")
    original = ROOT / name.removeprefix("repository/") if is_outside else DOCS / name
    folder = original if original.is_dir() else original.parent

    def link(match: re.Match[str]) -> str:
        if match["target"] is None:  # code
            return match[0]
        path = (folder / match["target"]).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            return match[0]
        if path.is_relative_to(DOCS):
            return f"/{path.relative_to(DOCS).as_posix()}"
        return f"/repository/{path.relative_to(ROOT).as_posix().removesuffix('.md')}.md"

    def picture(match: re.Match[str]) -> str:
        light, dark = (dict(ATTRIBUTE.findall(match[theme])) for theme in ("light", "dark"))
        width = f":width: {light['width']}\n" if "width" in light else ""
        return "\n\n".join(
            f"```{{image}} /{(folder / address).resolve().relative_to(DOCS).as_posix()}\n"
            f":class: only-{theme}\n:alt: {' '.join(light['alt'].split())}\n{width}```"
            for theme, address in (("light", light["src"]), ("dark", dark["srcset"]))
        )

    content[0] = PICTURE.sub(picture, CODE_OR_LINK.sub(link, content[0]))


def _write_pages(folder: Path, pages: dict[str, str]) -> None:
    """Writes the pages that have changed, and removes the pages that are no more.

    Each file is replaced at once, because several builds may run at the same time.
    """
    for path, text in pages.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            unfinished = file.with_name(f"{file.name}.{os.getpid()}")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(file)
    for file in [*folder.rglob("*.md"), *folder.rglob("*.rst")]:
        if file.relative_to(folder).as_posix() not in pages:
            file.unlink(missing_ok=True)
