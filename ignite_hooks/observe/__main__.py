"""The command that makes the page of a report from the records of runs.

::

    python -m ignite_hooks.observe report RECORD [RECORD ...] [-o PAGE]

The exit status is 0 for success, and 1 if no record can be read. It is 2 if an argument is invalid,
or if the page cannot be made.
"""

import argparse
import sys
from collections.abc import Sequence

from ignite_hooks.checkpoint.terminal import printable
from ignite_hooks.checkpoint.terminal import size_text
from ignite_hooks.observe.report.make import PAGE_NAME
from ignite_hooks.observe.report.make import NoRunError
from ignite_hooks.observe.report.make import write_page

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name, and returns the exit status.

    Args:
        arguments: the words after ``python -m ignite_hooks.observe``; None for those of this
            process.

    Raises:
        SystemExit: the arguments are wrong. The exit status is 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m ignite_hooks.observe",
        description="Shows the records of runs. It changes no record.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "makes one page from the records of runs, which may be in progress"
    report = commands.add_parser("report", help=text, description=text)
    report.add_argument(
        "records",
        nargs="+",
        metavar="RECORD",
        help="a record that MetricsLog writes, or its folder; several of them are compared",
    )
    report.add_argument(
        "-o",
        "--output",
        metavar="PAGE",
        help=f"the page, or an existing folder (default for one record: {PAGE_NAME} beside it)",
    )
    options = parser.parse_args(arguments)
    try:
        _report(options)
    except NoRunError as error:
        for problem in str(error).splitlines():
            _print_error(f"error: {problem}")
        return 1
    except (ImportError, OSError, ValueError) as error:
        _print_error(f"error: {error}")
        return 2
    return 0


def _report(options: argparse.Namespace) -> None:
    if len(options.records) > 1 and options.output is None:
        raise ValueError(
            f"-o must be given for several records, got none for {len(options.records)} records: "
            "write -o comparison.html for example"
        )
    page, problems = write_page(options.records, options.output)
    for problem in problems:
        _print_error(f"warning: {problem}")
    print(printable(f"the report is in {page} ({size_text(page.stat().st_size)})"))


def _print_error(text: str) -> None:
    print(printable(text), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
