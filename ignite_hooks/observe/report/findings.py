"""The findings of handlers: where the time of a run went, and what grows."""

from math import isfinite
from typing import Any

from ignite_hooks.checkpoint.plain_data import plain_data
from ignite_hooks.checkpoint.plain_data import plain_text
from ignite_hooks.observe.record_lines import number_in
from ignite_hooks.observe.report.page_data import Times

__all__ = ["Findings"]

MAX_HANDLERS = 100
MAX_PARTS = 100
MAX_TEXT = 2000


class Findings:
    """The findings in the lines of a record, and the shares of time in its reports."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}  # by handler
        self._shares: dict[str, float] = {}  # of the time, by part

    def begin(self) -> None:
        """Forgets what was found. The record has all findings again after a header."""
        self._found, self._shares = {}, {}

    def set_share(self, part: str, value: Any) -> None:
        """Notes the share of a part of the time, a value of a metric."""
        number = number_in(value)
        is_new = part not in self._shares and len(self._shares) == MAX_PARTS
        if number is not None and 0 <= number <= 1 and not is_new:
            self._shares[part] = number

    def add(self, findings: Any) -> None:
        """Adds the findings of a line."""
        if not isinstance(findings, dict):
            return
        for name, found in findings.items():
            is_new = name not in self._found and len(self._found) == MAX_HANDLERS
            if isinstance(found, dict) and not is_new:
                self._found[name] = found
        seconds = _durations(findings.get("TimeLedger"), "seconds")
        if total := sum(seconds.values()):
            self._shares = {part: each / total for part, each in seconds.items()}

    def times(self) -> Times | None:
        """Returns where the time went; None if no TimeLedger says so."""
        total = sum(self._shares.values())
        if not total:
            return None
        found = self._found.get("TimeLedger", {})
        parts = sorted(self._shares.items(), key=lambda item: -item[1])
        advice = found.get("advice")
        return {
            "parts": [{"name": name, "share": round(each / total, 6)} for name, each in parts],
            "advice": plain_text(advice, MAX_TEXT) if isinstance(advice, str) else None,
            "background": _durations(found, "background"),
        }

    def growth(self, limit: int) -> list[dict[str, Any]]:
        """Returns what every GrowthWatch has found, at most ``limit`` causes."""
        growing = [
            each
            for name, found in self._found.items()
            if name.startswith("GrowthWatch") and isinstance(found.get("growing"), list)
            for each in found["growing"]
            if isinstance(each, dict)
        ]
        return [dict(plain_data(each, MAX_TEXT)) for each in growing[:limit]]


def _durations(found: Any, name: str) -> dict[str, float]:
    """Returns the seconds by part in the findings of a TimeLedger."""
    durations = found.get(name) if isinstance(found, dict) else None
    items = [*durations.items()][:MAX_PARTS] if isinstance(durations, dict) else []
    numbers = {part: number_in(each) for part, each in items}
    return {k: v for k, v in numbers.items() if v is not None and isfinite(v) and v > 0}
