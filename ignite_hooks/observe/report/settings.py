"""The settings of runs, by names such as "optimizer/lr", and what differs between runs."""

import json
import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ignite_hooks.checkpoint.plain_data import flattened
from ignite_hooks.checkpoint.plain_data import plain_data
from ignite_hooks.checkpoint.plain_data import plain_text
from ignite_hooks.core.rules import is_number
from ignite_hooks.observe.handler_names import numbered
from ignite_hooks.observe.report.page_data import Difference
from ignite_hooks.observe.report.page_data import Run

__all__ = ["differences_of", "plain_header", "scalars_of", "settings_of_header"]

HEADER_LISTS, HEADER_DICTS = ("handlers", "command"), ("limits", "settings", "versions", "machine")

MAX_TEXT = 200
"""The length of a value as text, after which it is cut."""

MAX_FOLDER = 1000

MAX_CELLS = 3000
"""The number of values in the table of differences."""

# The last part of the names of settings that hold a path.
_PATHS = {
    *("path", "directory", "folder", "source", "out", "output", "resume", "resume_from"),
    *("dir", "cache_dir", "project_dir", "logging_dir", "log_dir", "output_dir", "run_dir"),
}
_OPTION_NAME = re.compile(r"(--)?[A-Za-z][\w.-]*")  # "model.width" of "model.width=64", too
_OPTION = re.compile(r"-[^\d.]|--")
# Differs between a run and its continuation, which are trained alike.
_OF_RESUME = "handlers/ResumeCheckpoint"
_OF_PLACE = {"machine/host", "machine/process"}


def plain_header(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description of the program in a header of a record, of bounded size.

    All its keys are there, also if they are missing in the line or have values of other types.
    """
    header: dict[str, Any] = {}
    for names, kind in ((HEADER_LISTS, list), (HEADER_DICTS, dict)):
        for name in names:
            value = line.get(name)
            header[name] = plain_data(value) if isinstance(value, kind) else kind()
    header["handlers"] = [each for each in header["handlers"] if isinstance(each, dict)]
    folder = line.get("folder")
    header["folder"] = plain_text(folder, MAX_FOLDER) if isinstance(folder, str) else None
    return header


def settings_of_header(header: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of trainer, limits and handlers in what ``plain_header`` returns."""
    settings = {**header["settings"]}
    optimizer = settings.get("optimizer")
    groups = optimizer.get("groups") if isinstance(optimizer, dict) else None
    if isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict):
        others = {name: each for name, each in settings["optimizer"].items() if name != "groups"}
        settings["optimizer"] = {**others, **groups[0]}
    handlers = header["handlers"]
    names = numbered(str(each.get("type")) for each in handlers)
    fields = [{key: each[key] for key in each if key != "type"} for each in handlers]
    # A handler without fields is an empty dict, which is shown as "attached".
    values = {
        **settings,
        "limits": header["limits"],
        "handlers": dict(zip(names, fields, strict=True)),
    }
    return {name: _shown(value) for name, value in flattened(values, separator="/")}


def scalars_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns versions, or facts about the machine, without lists and dicts."""
    return {name: each for name, each in values.items() if not isinstance(each, list | dict)}


def differences_of(runs: Sequence[Run]) -> list[Difference]:
    """Returns settings, options of the command line, versions and machines that are not the same.

    Paths, the names of machines, the ids of processes, and the order of texts in a list do not
    count. A handler that only some of the runs have is one difference.
    """
    shown = [each for each in runs if each["problem"] is None]
    if len(shown) < 2:
        return []
    tables = [_compared(each) for each in runs]
    known = [table for each, table in zip(runs, tables, strict=True) if each["problem"] is None]
    names = dict.fromkeys(name for table in known for name in table)
    found: list[Difference] = []
    for name in names:
        values = [table.get(name) for table in known]
        handler = _handler_of(name)
        if handler is not None and name != handler:
            values = [table.get(name) for table in known if handler in table]
        if len({_key(each) for each in values}) > 1 and len(found) < MAX_CELLS // len(runs):
            found.append({"name": name, "values": [table.get(name) for table in tables]})
    return found


def _compared(run: Run) -> dict[str, Any]:
    """Returns what is compared between runs, by name."""
    table: dict[str, Any] = {}
    options = _options_of(run["command"])
    versions = {f"versions/{name}": value for name, value in run["versions"].items()}
    machine = {f"machine/{name}": value for name, value in run["machine"].items()}
    for name, value in {**run["settings"], **options, **versions, **machine}.items():
        handler = _handler_of(name)
        if handler is not None:
            table[handler] = "attached"
        is_path = name.rpartition("/")[2].lstrip("-").replace("-", "_") in _PATHS
        if not (is_path or name in _OF_PLACE or name == handler):
            table[name] = value
    return {name: value for name, value in table.items() if not name.startswith(_OF_RESUME)}


def _options_of(command: Sequence[str]) -> dict[str, str]:
    """Returns the options of a command line, such as "command/--width", with their values.

    The program may take settings from there that the trainer does not know. The second value of an
    option, and arguments without a name, are left out.
    """
    options = {}
    for argument, following in zip(command, [*command[1:], "--"], strict=False):
        name, separator, value = argument.partition("=")
        if not separator and name.startswith("--"):
            value = "given" if _OPTION.match(following) else following
        if value and _OPTION_NAME.fullmatch(name):
            options[f"command/{name}"] = _shown(value)
    return options


def _handler_of(name: str) -> str | None:
    """Returns the name of the handler that has a setting, such as "handlers/MeanLoss"."""
    return "/".join(name.split("/", 2)[:2]) if name.startswith("handlers/") else None


def _key(value: Any) -> str:
    """Returns a text that is equal for equal values."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = sorted(value)
    if is_number(value):
        value = float(value)
    return json.dumps(value, sort_keys=True)


def _shown(value: Any) -> Any:
    """Returns a value of bounded length."""
    if value == {}:
        return "attached"
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}…"
    if isinstance(value, list):
        text = json.dumps(value, ensure_ascii=False)
        return value if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
    return value
