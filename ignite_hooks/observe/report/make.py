"""Makes the page of a report from the records of runs, and replaces an earlier page.

This module must not import torch, and neither must the modules that it imports: the page is made on
the machine that trains, in a process of its own, which must start fast and stay small.
"""

import os
import warnings
from collections.abc import Iterable
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ignite_hooks.core.paths import absolute_path

__all__ = [
    "PAGE_NAME",
    "NoRunError",
    "check_page",
    "is_page_name",
    "make_report",
    "remove_temporary_files",
    "write_page",
]

PAGE_NAME = "report.html"
"""The name of a page, if only its folder is given."""

_ENDINGS = (".html", ".htm")


class NoRunError(ValueError):
    """The error of a page without a run, because no record can be read."""


def make_report(records: str | Path | Iterable[str | Path], path: str | Path | None = None) -> Path:
    """Makes one page from the record of a run, or from the records of several runs.

    ::

        make_report("runs/a")  # writes runs/a/report.html
        make_report(["runs/a", "runs/b"], "comparison.html")

    The page is a single file and needs no network, so it can be opened in a browser and sent by
    mail. A run may be in progress. An earlier page is replaced when the new one is complete, so a
    reader never finds a part of a page.

    If one of several records cannot be read, the page says why, and a warning is given. If none can
    be read, no page is made, and an earlier page stays.

    Args:
        records: the record that ``MetricsLog`` writes, or its folder. With several of them the page
            compares the runs.
        path: the page, whose name ends in ".html", or an existing folder, in which the page gets
            the name "report.html". Missing folders are created. Default for one record:
            "report.html" beside the record.

    Returns:
        The absolute path of the page.

    Raises:
        ValueError: no record can be read; there are several records and no ``path``; or the page
            cannot be written.
        ModuleNotFoundError: the packages of the extra ``report`` are not installed.
    """
    paths = [records] if isinstance(records, str | Path) else [*records]
    page, problems = write_page(paths, path)
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return page


def write_page(
    records: Sequence[str | Path], path: str | Path | None = None
) -> tuple[Path, list[str]]:
    """Writes the page, and returns its path and the problems of records that cannot be read.

    The arguments and the errors are those of ``make_report``.
    """
    # Imported here, because a trainer needs this module only to check the path of its page.
    from ignite_hooks.observe.report.collect import collect
    from ignite_hooks.observe.report.page import render

    sources = [absolute_path(each) for each in records]
    page = _page_for(sources, path)
    # Before the records are read, because this takes a while for a large one. But not if there is
    # none, because the check creates the folder of the page.
    if any(map(os.path.exists, sources)):
        check_page(page)
    data = collect(sources)
    runs = data["runs"]
    problems = [f"{run['path']}: {run['problem']}" for run in runs if run["problem"] is not None]
    if len(problems) == len(runs):
        raise NoRunError("\n".join(problems))
    # The name of a file can have bytes that are not UTF-8, which Python reads as surrogates.
    content = render(data).encode("utf-8", "backslashreplace")
    try:
        _replace(page, content)
    except OSError as error:
        raise _unwritable(page, error) from error
    return page, problems


def is_page_name(path: object) -> bool:
    """Returns whether a path ends in ".html" or ".htm", and so is no record and no folder."""
    return str(path).lower().endswith(_ENDINGS)


def check_page(page: Path) -> None:
    """Creates the folder of a page, and tests whether the page can be written.

    Raises:
        ValueError: the page cannot be written, or its name does not end in ".html".
    """
    if not is_page_name(page):
        example = page / PAGE_NAME if not page.suffix else page.with_suffix(".html")
        raise ValueError(
            f'`path` must be a path that ends in ".html", got {page}: write {example} for example'
        )
    if page.exists() and not page.is_file():
        raise ValueError(
            f"`path` must be a file, got {page}, which is "
            f"{'a folder' if page.is_dir() else 'no regular file'}: add the name of the file, for "
            f"example {PAGE_NAME}"
        )
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        _write_beside(page, b"").unlink()
    except OSError as error:
        raise _unwritable(page, error) from error


def remove_temporary_files(page: Path, process: int) -> None:
    """Removes the files that a killed process has left beside ``page``.

    Args:
        page: the page that the process was making.
        process: the number of the process.
    """
    folder, prefix = _temporary_names(page, process)
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(prefix):
                path.unlink()


def _page_for(records: Sequence[Path], path: str | Path | None) -> Path:
    """Returns the absolute path of the page.

    Args:
        records: the absolute paths of the records.
        path: the page; None to put it beside the only record.
    """
    if not records:
        raise ValueError("`records` must name at least one record, got none: write runs/a, say")
    if path is None:
        if len(records) > 1:
            raise ValueError(
                f"`path` must be given for several records, got none for {len(records)} records: "
                "write comparison.html for example"
            )
        path = records[0] if records[0].is_dir() else records[0].parent
    page = absolute_path(path)
    return page / PAGE_NAME if page.is_dir() else page


def _replace(page: Path, content: bytes) -> None:
    """Writes a file and renames it to ``page``, so that a reader finds the whole page."""
    temporary = _write_beside(page, content)
    try:
        # A symbolic link stays, and the page behind the link is replaced.
        os.replace(temporary, os.path.realpath(page))
    except BaseException:
        temporary.unlink()
        raise


def _write_beside(page: Path, content: bytes) -> Path:
    """Writes a temporary file in the folder of ``page``, and returns its path."""
    folder, prefix = _temporary_names(page, os.getpid())
    path = folder / f"{prefix}{os.urandom(4).hex()}.tmp"
    try:
        # "x" creates the file with the usual permissions, unlike the module `tempfile`.
        with open(path, "xb") as file:
            file.write(content)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return path


def _temporary_names(page: Path, process: int) -> tuple[Path, str]:
    """Returns the folder of the temporary files of a process, and the beginning of their names."""
    target = Path(os.path.realpath(page))
    return target.parent, f".{target.name}.{process}."


def _unwritable(page: Path, error: OSError) -> ValueError:
    return ValueError(
        f"`path` must be a file that can be written, got {page} ({type(error).__name__}: {error}): "
        "give another path, make this one writable, or free space on its disk"
    )
