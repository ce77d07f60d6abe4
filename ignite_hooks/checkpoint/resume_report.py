"""What of a training was taken up again, and how exactly."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ResumeReport", "ResumedPart"]


@dataclass(frozen=True)
class ResumedPart:
    """One kind of state.

    Args:
        level: "exact"; "approximate": it was taken up, but a difference can show; or "missing".
        reason: why it is not exact.
    """

    level: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.level} ({self.reason})" if self.reason else self.level


@dataclass(frozen=True)
class ResumeReport:
    """What of a training was taken up again. Printed, it is one line for each kind of state.

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

    def __str__(self) -> str:
        lines = [f"resumed from {self.checkpoint}, step {self.step}"]
        return "\n  ".join([*lines, *(f"{name}: {part}" for name, part in self.parts.items())])
