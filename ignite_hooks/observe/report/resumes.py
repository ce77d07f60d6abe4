"""The resumes of a run, as the lines of a record describe them."""

from typing import Any

from ignite_hooks.checkpoint.plain_data import plain_text
from ignite_hooks.observe.report.page_data import Position
from ignite_hooks.observe.report.page_data import Resume
from ignite_hooks.observe.report.positions import is_small_count
from ignite_hooks.observe.report.progress import end_text

__all__ = ["resume_of"]

MAX_PARTS = 30
MAX_PATH, MAX_REASON = 1000, 500  # characters


def resume_of(line: dict[str, Any], at: Position) -> Resume:
    """Returns the resume in a line.

    Args:
        line: the line.
        at: its position.
    """
    checkpoint, exact, cut = line.get("checkpoint"), line.get("exact"), line.get("cut")
    cut = cut if isinstance(cut, dict) else {}
    end, cut_lines = cut.get("end"), cut.get("lines")
    return {
        "at": at,
        "checkpoint": plain_text(checkpoint, MAX_PATH) if isinstance(checkpoint, str) else None,
        "exact": exact if isinstance(exact, bool) else None,
        "parts": _parts_of(line.get("parts")),
        "cut_lines": cut_lines if is_small_count(cut_lines) else 0,
        "cut_end": end_text(end) if isinstance(end, dict) else None,
    }


def _parts_of(parts: Any) -> list[dict[str, Any]]:
    """Returns the parts of a resume, those that are not exact first."""
    items = [*parts.items()][:MAX_PARTS] if isinstance(parts, dict) else []
    described = [
        {
            "name": plain_text(name),
            "level": plain_text(part.get("level")),
            "reason": plain_text(part.get("reason") or "", MAX_REASON),
        }
        for name, part in items
        if isinstance(part, dict)
    ]
    return sorted(described, key=lambda part: part["level"] == "exact")
