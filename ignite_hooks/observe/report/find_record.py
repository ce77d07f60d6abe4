"""Finds the record of a run by the path of the record or of its folder."""

from pathlib import Path

from ignite_hooks.checkpoint.regular_file import open_regular
from ignite_hooks.observe.record_lines import MAGIC

__all__ = ["find_record", "reason_of"]

USUAL_NAME = "metrics.jsonl"


def find_record(path: Path) -> tuple[Path, str | None]:
    """Returns the path of a record and None, or a path and the reason why it has no record.

    The record in a folder is ``metrics.jsonl``, or else the only record in it.

    Args:
        path: a record, or the folder of one.
    """
    path = path.expanduser()
    try:
        if not path.is_dir():
            with open_regular(path):
                return path, None
        usual = path / USUAL_NAME
        if usual.exists():
            return usual, None
        records = sorted(each for each in path.glob("*.jsonl") if _is_record(each))
    except FileNotFoundError:
        return path, f"There is no record at {path}: give the path that MetricsLog writes to."
    except (OSError, ValueError) as error:
        return path, f"{path} cannot be read ({reason_of(error)}): make it readable for this user."
    if len(records) == 1:
        return records[0], None
    if records:
        names = ", ".join(each.name for each in records[:5]) + (", …" if len(records) > 5 else "")
        return path, f"The folder {path} has several records ({names}): give the path of one."
    return path, f"The folder {path} has no record: give the path that MetricsLog writes to."


def reason_of(error: Exception) -> str:
    """Returns the reason for an error in a few words, for example "Permission denied"."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _is_record(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
