"""Renders the page of a report: one HTML file that needs no network."""

import base64
import shlex
from collections.abc import Iterable
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from ignite_hooks.observe.report.chart_library import chart_library
from ignite_hooks.observe.report.key_numbers import compared_results
from ignite_hooks.observe.report.key_numbers import key_numbers
from ignite_hooks.observe.report.page_data import Checkpoint
from ignite_hooks.observe.report.page_data import PageData
from ignite_hooks.observe.report.page_data import Panel
from ignite_hooks.observe.report.page_data import Run
from ignite_hooks.observe.report.page_text import breakable
from ignite_hooks.observe.report.page_text import count_text
from ignite_hooks.observe.report.page_text import duration_text
from ignite_hooks.observe.report.page_text import file_name
from ignite_hooks.observe.report.page_text import growth_text
from ignite_hooks.observe.report.page_text import number_text
from ignite_hooks.observe.report.page_text import parsed_time
from ignite_hooks.observe.report.page_text import percent_text
from ignite_hooks.observe.report.page_text import time_text
from ignite_hooks.observe.report.page_text import unit_text
from ignite_hooks.observe.report.page_text import value_text

__all__ = ["check_report_packages", "render"]

MIN_FILTERED_PANELS = 13
"""From this number of charts on, the page has a field that filters them by name."""

QUIET_SECONDS = 600
"""If a run in progress has written nothing for so long, the page says that it may be killed."""

SHOWN_CHECKPOINTS = 8
"""The number of newest checkpoints that the page shows without a click."""

_SCRIPTS = (
    *("data", "texts", "choices", "x_axis", "curves", "specifications"),
    *("chart", "curve_chart", "event_strip", "tooltip", "gestures", "controls", "start"),
)
"""The files with the JavaScript of the page, in the order in which they are joined."""

_SECTIONS = {
    "metrics": "Metrics",
    "optimization": "Optimization",
    "speed": "Speed",
    "memory": "Memory",
    "growth": "Growth",
}


def check_report_packages() -> None:
    """Checks that the packages are installed which a page needs.

    Raises:
        ModuleNotFoundError: jinja2 or vl-convert-python is not installed.
    """
    for module, package in (("jinja2", "jinja2"), ("vl_convert", "vl-convert-python")):
        if find_spec(module) is None:
            raise ModuleNotFoundError(
                f"a report needs {package}, which is not installed: "
                "pip install 'ignite-hooks[report]'"
            )


def render(data: PageData) -> str:
    """Returns the page as HTML, which UTF-8 can encode.

    The page contains its style, its scripts and the curves. A Content-Security-Policy admits only
    these scripts, by their hashes, and no request. Whatever users put into names and texts is
    shown as text.

    Raises:
        ModuleNotFoundError: jinja2 or vl-convert-python is not installed.
        RuntimeError: this version of vl-convert-python does not bundle Vega-Embed.
    """
    check_report_packages()
    from jinja2 import Environment
    from jinja2 import StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "breakable": breakable,
        "count": count_text,
        "duration": duration_text,
        "file_name": file_name,
        "growth": growth_text,
        "number": number_text,
        "percent": percent_text,
        "python": repr,
        "shell": shlex.join,
        "time": time_text,
        "unit": unit_text,
        "value": value_text,
    }
    scripts = [_inline(chart_library()), _inline(_joined_scripts())]
    page = environment.from_string(_resource("page.html")).render(
        data=data,
        chart_data=_chart_data(data),
        scripts=scripts,
        policy=_policy(scripts),
        style=_resource("page.css"),
        sections=_sections(data["panels"]),
        has_filter=len(data["panels"]) >= MIN_FILTERED_PANELS,
        key_numbers=key_numbers,
        results=compared_results(data["runs"]),
        quiet_seconds=_quiet_seconds,
        chosen_checkpoint=_chosen_checkpoint,
        shown_checkpoints=_shown_checkpoints,
        setting_groups=_setting_groups,
    )
    page = page.lstrip()  # the macros at the top of the template leave empty lines
    # A lone surrogate, which JSON may contain, cannot be encoded.
    return page.encode("utf-8", "replace").decode("utf-8")


def _joined_scripts() -> str:
    """Returns one script in strict mode; the braces keep its names out of those of the window."""
    parts = "\n".join(_resource(f"{name}.js") for name in _SCRIPTS)
    return f'"use strict";\n{{\n{parts}}}\n'


def _resource(name: str) -> str:
    text = (files(__package__) / "web" / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")  # HTML parsers do the same, and the policy has hashes


def _inline(script: str) -> str:
    """Returns a script without what would end, or comment out, its element in HTML."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: Iterable[str]) -> str:
    hashes = (base64.b64encode(sha256(each.encode()).digest()).decode() for each in scripts)
    admitted = " ".join(f"'sha256-{each}'" for each in hashes)
    # Vega compiles the expressions of the charts, which needs 'unsafe-eval'.
    return (
        f"default-src 'none'; script-src 'unsafe-eval' {admitted}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _chart_data(data: PageData) -> dict[str, Any]:
    """Returns the part of the data that the charts need."""
    keys = ("label", "curves", "marks", "summaries")
    runs = [{key: run[key] for key in keys} for run in data["runs"]]  # type: ignore[literal-required]
    return {"panels": data["panels"], "runs": runs}


def _sections(panels: Sequence[Panel]) -> list[tuple[str, list[tuple[int, Panel]]]]:
    """Returns the titles of the sections that have charts, and these with their numbers."""
    found: list[tuple[str, list[tuple[int, Panel]]]] = []
    for section, title in _SECTIONS.items():
        charts = [(n, panel) for n, panel in enumerate(panels) if panel["section"] == section]
        if charts:
            found.append((title, charts))
    return found


def _quiet_seconds(run: Run, made_at: str) -> float | None:
    """Returns how long a run in progress has written nothing, if that is unusually long."""
    if run["status"]["state"] != "running" or run["at"] is None:
        return None
    last, made = parsed_time(run["at"]["time"]), parsed_time(made_at)
    if last is None or made is None:
        return None
    quiet = (made - last).total_seconds()
    return quiet if quiet >= QUIET_SECONDS else None


def _shown_checkpoints(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Returns the best checkpoint and the newest ones, of those still there, if any are."""
    there = [each for each in checkpoints if each["is_there"]] or checkpoints
    newest = there[-SHOWN_CHECKPOINTS:]
    return [each for each in checkpoints if each["is_best"] or each in newest]


def _chosen_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Returns the best checkpoint that is still there, or else the last one; None without one."""
    there = [each for each in checkpoints if each["is_there"]]
    return next((each for each in reversed(there) if each["is_best"]), there[-1] if there else None)


def _setting_groups(settings: dict[str, Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Returns the settings by their prefixes, such as "optimizer"; those without one come first."""
    groups: dict[str, list[tuple[str, Any]]] = {"": []}
    for name, value in settings.items():
        prefix, slash, rest = name.partition("/")
        key, shown = (prefix, rest) if slash and rest else ("", name)
        groups.setdefault(key, []).append((shown, value))
    return [(prefix, values) for prefix, values in groups.items() if values]
