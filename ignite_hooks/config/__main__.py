"""The command that checks and shows configurations. It trains nothing and changes nothing.

::

    python -m ignite_hooks.config check FILE
    python -m ignite_hooks.config show FILE
    python -m ignite_hooks.config schema
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite_hooks.config import ConfigError
from ignite_hooks.config import RunSettings
from ignite_hooks.config import dumps
from ignite_hooks.config import load

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name, and returns the exit status.

    Args:
        arguments: the words after ``python -m ignite_hooks.config``; None for those of this
            process.

    Returns:
        0 after success, 1 if a file is invalid.

    Raises:
        SystemExit: the arguments are wrong, or a file cannot be read. The exit status is 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ignite_hooks.config",
        description="Checks and shows configurations. It trains nothing and changes nothing.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run_command, text in (
        ("check", _check, "lists all problems of a file, each with the path of its field"),
        ("show", _show, "prints the configuration in a file, with every default"),
        ("schema", _schema, "prints the JSON Schema of the settings of a run"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if name != "schema":
            command.add_argument("file", type=Path, help="a .json, .toml, .yaml or .yml file")
        if name == "show":
            command.add_argument(
                "--format", choices=["json", "toml", "yaml"], default="yaml", help="default: yaml"
            )
        command.add_argument(
            "--import",
            dest="modules",
            metavar="MODULE",
            action="append",
            default=[],
            help="a module of yours that registers classes; can be given several times",
        )
        command.set_defaults(run_command=run_command)
    options = parser.parse_args(arguments)
    for module in options.modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            is_missing = f"{module}.".startswith(f"{error.name}.")  # not a module that it imports
            rule = "must name a module" if is_missing else "must name a module that can be imported"
            parser.error(f"--import {rule}, got {module}: {error}")
    try:
        status: int = options.run_command(options)
        return status
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _check(options: Any) -> int:
    found = load(options.file)
    is_container = isinstance(found, list | dict)
    content = f"{len(found)} handlers" if is_container else type(found).__name__
    print(f"{options.file}: nothing is wrong ({content})")
    return 0


def _show(options: Any) -> int:
    print(dumps(load(options.file), options.format), end="")
    return 0


def _schema(options: Any) -> int:
    print(json.dumps(RunSettings.json_schema(), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
