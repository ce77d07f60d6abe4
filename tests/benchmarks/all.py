"""Measures the tables of the pages, and writes them there. From the root, on an idle machine:

python -m tests.benchmarks.all [--only NAME [NAME ...]]
python -m tests.benchmarks.all --list
python -m tests.benchmarks.all --quick --into FOLDER

A new process measures each table, which is written as soon as it is complete. If one fails, its old
text stays and the others are measured all the same; the exit status is then 1.
"""

import argparse
import importlib
import multiprocessing
import shutil
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import CONTESTING
from tests.benchmarks.pages import ROOT
from tests.benchmarks.pages import commit_of_tree
from tests.benchmarks.pages import find_tables
from tests.benchmarks.pages import origin_of
from tests.benchmarks.pages import replace_table

__all__ = ["TABLES", "Table", "main"]

LINEAR = {"model": "linear", "accumulation": 1, "rounds": 7}
LARGE = {"accumulation": 1, "rounds": 5, "contestants": ["ours_wired", "raw_accelerate"]}
LARGE_SAVES = {"layers": 24, "rounds": 11}  # 100 M parameters
SMALL_SAVES = {"layers": 1, "rounds": 2}
FEW = {"rounds": 1, "iterations": 100, "contestants": ["ours_wired"]}


@dataclass(frozen=True)
class Table:
    """A table of the pages.

    Args:
        program: the module of this folder that measures.
        function: the function of this module that returns the lines of the table.
        minutes: how long this takes on two idle cores.
        options: the arguments of the function.
        quick: the arguments that are different in a quick run.
        packages: the packages whose versions are told with the figures, besides torch.
    """

    program: str
    function: str = "table"
    minutes: float = 1
    options: dict[str, Any] = field(default_factory=dict)
    quick: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ("pytorch-ignite", "accelerate")

    def arguments(self, *, is_quick):
        """Returns the arguments of the function."""
        return {**self.options, **(self.quick if is_quick else {})}

    def lines(self, *, is_quick):
        """Measures, and returns the lines of the table."""
        function = getattr(
            importlib.import_module(f"tests.benchmarks.{self.program}"), self.function
        )
        return list(function(**self.arguments(is_quick=is_quick)))


TABLES = {
    "iteration": Table("overhead", minutes=11, options=LINEAR, quick=FEW, packages=CONTESTING),
    "accumulation": Table(
        "overhead",
        minutes=4,
        options={
            **LINEAR,
            "accumulation": 4,
            "contestants": [
                "raw_accelerate",
                "ours_bare",
                "ours_wired",
                "ours_everything",
                "ours_listened",
            ],
        },
        quick=FEW,
    ),
    "convs": Table("overhead", minutes=4, options={"model": "convs", **LARGE}, quick=FEW),
    "transformer": Table(
        "overhead", minutes=3, options={"model": "transformer", **LARGE}, quick=FEW
    ),
    "import": Table("import_time", minutes=1.5, options={"rounds": 11}, quick={"rounds": 1}),
    "scaling": Table("scaling", minutes=4, options={"rounds": 50}, quick={"rounds": 2}),
    "long-runs": Table(
        "scaling",
        "lengths",
        minutes=1.5,
        options={"rounds": 5},
        quick={"rounds": 1, "length": 500, "part": 200, "epochs": 20},
    ),
    "soak": Table("soak", minutes=2, quick={"iterations": 400}),
    "upstream": Table("upstream", options={"rounds": 18}, quick={"rounds": 2}),
    "channels": Table("hooks", minutes=2, options={"rounds": 61}, quick={"rounds": 2}),
    "two-processes": Table(
        "processes", options={"cases": [(1024, 1)], "rounds": 9}, quick={"rounds": 1}
    ),
    "two-processes-more": Table(
        "processes",
        minutes=2,
        options={"cases": [(16, 1), (16, 4), (1024, 4)], "rounds": 9},
        quick={"cases": [(16, 4)], "rounds": 1},
    ),
    "endings": Table("processes", "endings", minutes=0.5),
    "handlers": Table("observe", minutes=4, options={"rounds": 101}, quick={"rounds": 2}),
    "report-pages": Table("report_pages", minutes=0.5, quick={"numbers": [100]}),
    "growth": Table("growth", minutes=0.5, quick={"numbers": [1000]}),
    "memory-accuracy": Table("memory", "accuracy", options={"times": 10}, quick={"times": 1}),
    "memory-overhead": Table(
        "memory", "overhead", minutes=2, options={"rounds": 101}, quick={"rounds": 2}
    ),
    "memory-soak": Table("memory", "soak", quick={"iterations": 400, "first": 100}),
    "collections": Table("memory", "collections", minutes=0.5, quick={"times": 2}),
    "saves": Table("checkpoint", "saves", minutes=4, options=LARGE_SAVES, quick=SMALL_SAVES),
    "resumes": Table("checkpoint", "resumes", minutes=2, options=LARGE_SAVES, quick=SMALL_SAVES),
    "small-saves": Table(
        "small_saves", options={"rounds": 25}, quick={"rounds": 2, "models": ["100 kB"]}
    ),
    "save-calls": Table("calls", minutes=0.2),
    "positions": Table(
        "data",
        minutes=3,
        options={"rounds": 5, "sizes": [10**7]},
        quick={"rounds": 1, "sizes": [1000]},
        packages=("accelerate",),
    ),
}


def measure(table, *, is_quick):
    """Returns the lines of a table that a new process measures.

    The process is not a fork of this one, and measures nothing else: memory, imports, cores and
    threads of one table have no effect on the next.
    """
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as executor:
        return executor.submit(table.lines, is_quick=is_quick).result()


def copy_of(page, folder):
    """Returns the path of the page in a folder, to which the page is copied if it is not there."""
    copy = folder / page.relative_to(ROOT)
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, copy)
    return copy


def show_list(pages):
    print("| table | page | program | minutes |")
    print("|---|---|---|---|")
    for name, table in TABLES.items():
        page = pages[name].relative_to(ROOT)
        print(f"| {name} | {page} | {table.program}.{table.function} | {table.minutes:g} |")
    print(f"| all | | | {sum(table.minutes for table in TABLES.values()):.0f} |")


def options_of(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.all",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=TABLES, metavar="NAME", help="these tables")
    parser.add_argument(
        "--list", action="store_true", help="show the tables and the time they take"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds; needs --into")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="write to copies of the pages")
    options = parser.parse_args(arguments)
    if options.into is not None and options.into.resolve() == ROOT:
        parser.error("--into must be another folder than the repository")
    if options.quick and options.into is None:
        parser.error("--quick needs --into FOLDER: its figures are not for the pages")
    return options


def main(arguments=None):
    """Measures tables, and returns the exit status: 1 if one failed."""
    options, pages = options_of(arguments), find_tables()
    if options.list:
        show_list(pages)
        return 0
    commit, failed = commit_of_tree(), []
    for name in options.only or TABLES:
        table, began = TABLES[name], time.monotonic()
        print(f"{name}, about {table.minutes:g} min", end="", flush=True)
        try:
            lines = measure(table, is_quick=options.quick)
            page = pages[name] if options.into is None else copy_of(pages[name], options.into)
            rounds = table.arguments(is_quick=options.quick).get("rounds")
            replace_table(page, name, lines, origin_of(commit, table.packages, rounds))
        except Exception:
            print(flush=True)
            traceback.print_exc()
            failed.append(name)
            continue
        print(f": {(time.monotonic() - began) / 60:.1f} min", flush=True)
    if failed:
        print(f"failed, so that the old tables stay: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
