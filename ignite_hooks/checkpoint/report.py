"""What of a training was taken up again, and how exactly."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from collections.abc import Set
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

__all__ = [
    "EXACT",
    "ResumeReport",
    "ResumedPart",
    "part_of_generators",
    "part_of_named",
    "reasons_of_all",
    "some",
]


@dataclass(frozen=True)
class ResumedPart:
    """One kind of state.

    Args:
        level: "exact"; "approximate": it was restored, but a difference can show; "changed": the
            script gives other settings than the run had; "unknown": it may have a state that could
            not be saved; or "missing".
        reason: why it is not exact, or what it takes to restore it.
        names: the objects that were restored, if it is of several.
    """

    level: str
    reason: str = ""
    names: tuple[str, ...] = field(default=(), compare=False)

    def doubted(self, level: str, reason: str) -> "ResumedPart":
        """Returns the part with one more reason why it is not exact."""
        if self.level == "exact":
            return ResumedPart(level, reason, self.names)
        if reason in self.reason:
            return self
        return ResumedPart(self.level, f"{self.reason}; {reason}", self.names)

    def __str__(self) -> str:
        inside = self.reason or ", ".join(self.names)
        return f"{self.level} ({inside})" if inside else self.level


def reasons_of_all(of_ranks: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Returns the reasons of all processes by part: those that not all have, with the process."""
    reasons: dict[str, list[str]] = {}
    for rank, of_rank in enumerate(of_ranks):
        for part, reason in of_rank.items():
            if rank == 0 or reason != of_ranks[0].get(part):
                reasons.setdefault(part, []).append(_on(rank, reason) if rank else reason)
    return {part: "; ".join(of_part) for part, of_part in reasons.items()}


def _on(rank: int, reason: str) -> str:
    return f"on process {rank}: {reason}"


EXACT = ResumedPart("exact")


@dataclass(frozen=True)
class ResumeReport:
    """What of a run was restored. Printed, it is one line for each kind of state, exact ones last.

    Args:
        checkpoint: the folder it was read from.
        step: the committed optimizer steps there.
        parts: what became of each kind of state, by its name.
    """

    checkpoint: Path
    step: int
    parts: Mapping[str, ResumedPart]

    @property
    def is_exact(self) -> bool:
        """Whether nobody can tell from the result that the training was interrupted."""
        return all(part.level == "exact" for part in self.parts.values())

    def with_others(self, reports: Sequence["ResumeReport"]) -> "ResumeReport":
        """Returns the report with what is not exact on other processes alone.

        Args:
            reports: those of all processes, in their order.
        """
        parts = dict(self.parts)
        for rank, report in enumerate(reports):
            for name, part in report.parts.items():
                own = self.parts.get(name, EXACT)
                if part.level != "exact" and part != own:
                    reason = _on(rank, part.reason)
                    parts[name] = parts.get(name, own).doubted(part.level, reason)
        return ResumeReport(self.checkpoint, self.step, parts)

    def __str__(self) -> str:
        # A warning is read from its beginning, and its end may be cut: what matters comes first.
        parts = sorted(self.parts.items(), key=lambda item: item[1].level == "exact")
        lines = [f"resumed from {self.checkpoint}, step {self.step}"]
        return "\n  ".join([*lines, *(f"{name}: {part}" for name, part in parts)])


def part_of_named(
    targets: Mapping[str, Any], states: Mapping[str, Any], what: str
) -> ResumedPart | None:
    """What is to be said of objects that had a state, and of those that have one."""
    new, gone = targets.keys() - states.keys(), states.keys() - targets.keys()
    reasons = [f"not in the checkpoint: {some(new)}"] if new else []
    reasons += [f"not in {what} any more: {some(gone)}"] if gone else []
    restored = tuple(sorted(targets.keys() & states.keys()))
    if reasons:
        return ResumedPart("missing", "; ".join(reasons), restored)
    return ResumedPart("exact", names=restored) if targets else None


def part_of_generators(then: Set[str], now: Set[str]) -> ResumedPart:
    """Returns the report on the random generators of a run besides the global ones, by name."""
    reasons = [f"there is a random generator {name} only then" for name in sorted(then - now)]
    reasons += [f"there is a random generator {name} only now" for name in sorted(now - then)]
    return ResumedPart("approximate", "; ".join(reasons)) if reasons else EXACT


def some(names: Iterable[str]) -> str:
    """The names for a message: all, or the first and how many more."""
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if len(others) > 2 else ", ".join([first, *others])
