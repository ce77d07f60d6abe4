"""Renders the page of a report: one HTML file that needs no network."""

import base64
import re
import shlex
from collections.abc import Iterable
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

from ignite_hooks.observe.report.chart_library import chart_library
from ignite_hooks.observe.report.page_data import Checkpoint
from ignite_hooks.observe.report.page_data import PageData
from ignite_hooks.observe.report.page_data import Panel
from ignite_hooks.observe.report.page_data import Run
from ignite_hooks.observe.report.page_data import Summary
from ignite_hooks.observe.report.page_text import duration_text
from ignite_hooks.observe.report.page_text import number_text
from ignite_hooks.observe.report.page_text import parsed_time
from ignite_hooks.observe.report.page_text import percent_text
from ignite_hooks.observe.report.page_text import time_text
from ignite_hooks.observe.report.page_text import value_text

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["check_report_packages", "render"]

MAX_KEY_METRICS = 4
MIN_FILTERED_PANELS = 13
"""From this number of charts on, the page has a field that filters them by name."""

QUIET_SECONDS = 600
"""If a run in progress has written nothing for so long, the page says that it may be killed."""

_SECTIONS = {
    "metrics": "Metrics",
    "optimization": "Optimization",
    "speed": "Speed",
    "memory": "Memory",
    "growth": "Growth",
}

# The quantities of GrowthWatch that are in bytes.
_MEMORY_QUANTITIES = ("resident memory", "memory of worker processes", "device memory")


class KeyNumber(NamedTuple):
    """A number at the top of the page."""

    name: str
    value: float
    unit: str | None
    note: str


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
        "duration": duration_text,
        "number": number_text,
        "percent": percent_text,
        "time": time_text,
        "value": value_text,
        "file_name": file_name,
        "growth_rate": growth_text,
        "python": repr,
        "shell": shlex.join,
        "unit": unit_text,
    }
    scripts = [_inline(chart_library()), _inline(_resource("page.js"))]
    page = environment.from_string(_resource("page.html")).render(
        data=data,
        chart_data=_chart_data(data),
        scripts=scripts,
        policy=_policy(scripts),
        style=_resource("page.css"),
        sections=_sections(data["panels"]),
        has_filter=len(data["panels"]) >= MIN_FILTERED_PANELS,
        key_numbers=_key_numbers,
        results=_results(data["runs"]),
        quiet_seconds=_quiet_seconds,
        chosen_checkpoint=_chosen_checkpoint,
        setting_groups=_setting_groups,
    )
    # A lone surrogate, which JSON may contain, cannot be encoded.
    return page.encode("utf-8", "replace").decode("utf-8")


def _resource(name: str) -> str:
    text = (files(__package__) / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")  # HTML parsers do the same, and the policy has hashes


def _inline(script: str) -> str:
    """Returns a script without what would end, or comment out, its element in HTML."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: Iterable[str]) -> str:
    hashes = (base64.b64encode(sha256(each.encode()).digest()).decode() for each in scripts)
    admitted = " ".join(f"'sha256-{each}'" for each in hashes)
    # Vega compiles its expressions, which needs 'unsafe-eval'. They are part of the page's scripts.
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


def _key_numbers(run: Run, panels: Sequence[Panel]) -> list[KeyNumber]:
    """Returns the numbers that tell most of a run: the best metrics, the speed and the memory."""
    summaries = {each["metric"]: each for each in run["summaries"]}
    validated = {each["metric"] for each in run["curves"] if each["is_validation"]}
    found = []
    for panel in panels:
        if panel["section"] == "metrics":
            # Of training and validation, the validation tells more.
            names = [name for name in panel["metrics"] if name in summaries]
            name = next((name for name in names if name in validated), next(iter(names), None))
            if name is not None and (number := _key_metric(summaries[name], panel["unit"])):
                found.append((summaries[name]["best"] is None, name not in validated, number))
    found.sort(key=lambda each: each[:2])
    numbers = [number for *_, number in found[:MAX_KEY_METRICS]]
    for section in ("speed", "memory"):
        for panel in panels:
            names = [name for name in panel["metrics"] if name in summaries]
            if panel["section"] == section and names:
                last, highest = summaries[names[0]]["last"], summaries[names[0]]["highest"]
                if section == "speed" and last is not None:
                    numbers.append(KeyNumber(names[0], last, panel["unit"], "last"))
                    break
                if section == "memory" and highest is not None:
                    numbers.append(KeyNumber(names[0], highest["value"], panel["unit"], "highest"))
                    break
    return numbers


def _key_metric(summary: Summary, unit: str | None) -> KeyNumber | None:
    last, best = summary["last"], _best(summary)
    if best is None:
        return None if last is None else KeyNumber(summary["metric"], last, unit, "last")
    value, step = best
    note = f"{summary['best']}, at step {number_text(step)}; last {number_text(last)}"
    return KeyNumber(summary["metric"], value, unit, note)


def _best(summary: Summary) -> tuple[float, int] | None:
    """Returns the best value of a metric and its step; None if it is not known which is better."""
    extreme = summary["lowest"] if summary["best"] == "lowest" else summary["highest"]
    if summary["best"] is None or extreme is None:
        return None
    return extreme["value"], extreme["at"]["step"]


class Result(NamedTuple):
    """The best values of a metric in several runs."""

    metric: str
    best: str
    values: list[float | None]
    winner: float


def _results(runs: Sequence[Run]) -> list[Result]:
    """Returns the metrics of several runs whose best values can be compared."""
    found: dict[str, Result] = {}
    for number, run in enumerate(runs):
        for summary in run["summaries"]:
            best = _best(summary)
            if best is not None and summary["best"] is not None:
                empty = Result(summary["metric"], summary["best"], [None] * len(runs), best[0])
                result = found.setdefault(summary["metric"], empty)
                result.values[number] = best[0]
    return [_with_winner(each) for each in found.values()]


def _with_winner(result: Result) -> Result:
    values = [each for each in result.values if each is not None]
    return result._replace(winner=min(values) if result.best == "lowest" else max(values))


def _quiet_seconds(run: Run, made_at: str) -> float | None:
    """Returns how long a run in progress has written nothing, if that is unusually long."""
    if run["status"]["state"] != "running" or run["at"] is None:
        return None
    last, made = parsed_time(run["at"]["time"]), parsed_time(made_at)
    if last is None or made is None:
        return None
    quiet = (made - last).total_seconds()
    return quiet if quiet >= QUIET_SECONDS else None


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


def breakable(text: str) -> "Markup":
    """Returns a name as HTML that browsers may break after "/" and "_"."""
    from markupsafe import Markup
    from markupsafe import escape

    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(text))))  # entities have neither


def file_name(path: str) -> str:
    """Returns the last part of a path of any system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def unit_text(unit: str) -> str:
    """Returns a unit as it stands after a number: "/s" instead of "1/s"."""
    return unit.removeprefix("1")


def growth_text(rate: float, name: str) -> str:
    """Returns the rate of a quantity that ``GrowthWatch`` names; that of memory in MiB."""
    if name in _MEMORY_QUANTITIES:
        return f"{number_text(rate / 2**20)} MiB"
    return number_text(rate)
