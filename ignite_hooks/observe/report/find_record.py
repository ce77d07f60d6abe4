"""Finds the record of a run by the path of the record or of its folder."""

from pathlib import Path

from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.observe.record_lines import MAGIC

__all__ = ["ANOTHER_PATH", "cannot_be_read", "find_record"]

USUAL_NAME = "metrics.jsonl"

ANOTHER_PATH = "give the path that MetricsLog writes to"
"""The remedy if a path leads to no record."""


def find_record(path: Path) -> tuple[Path, str | None]:
    """Returns the path of a record and None, or a path and the reason why it has no record.

    The record in a folder is ``metrics.jsonl``, or else the only record in it.

    Args:
        path: a record, or the folder of one.
    """
    try:
        path = path.expanduser()
        if not path.is_dir():
            with open_regular(path):
                return path, None
        usual = path / USUAL_NAME
        if usual.exists():
            return usual, None
        records = sorted(each for each in path.glob("*.jsonl") if _is_record(each))
    except FileNotFoundError:
        return path, f"There is no such file: {ANOTHER_PATH}."
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: "~name" of no user
        return path, cannot_be_read(error)
    if len(records) == 1:
        return records[0], None
    if records:
        names = ", ".join(each.name for each in records[:5]) + (", …" if len(records) > 5 else "")
        return path, f"The folder has several records ({names}): give the path of one."
    return path, f"The folder has no record: {ANOTHER_PATH}."


def cannot_be_read(error: Exception) -> str:
    """Returns a sentence which says that a record cannot be read, why, and what to do."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    is_forbidden = isinstance(error, PermissionError)
    remedy = "make it readable for this user" if is_forbidden else ANOTHER_PATH
    return f"The record cannot be read ({reason}): {remedy}."


def _is_record(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
