"""The report on a resume: which parts of the state were restored, and how exactly."""

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
    "merge_reasons",
    "report_generators",
    "report_named_objects",
    "summarize_names",
]


@dataclass(frozen=True)
class ResumedPart:
    """The report on one part of the state, for example on the optimizer or the handlers.

    Attributes:
        level: one of "exact"; "approximate" (the part was restored, but the result may differ);
            "changed" (the script gives other settings than the checkpoint); "unknown" (the part may
            have state that could not be saved); and "missing" (the part was not restored).
        reason: why the part is not exact, and what the user can do about it. An exact part may have
            a note instead, for example that the data are read again up to the saved position.
        names: the names of the restored objects, if the part consists of named objects, as the part
            "handlers" does.
    """

    level: str
    reason: str = ""
    names: tuple[str, ...] = field(default=(), compare=False)

    def with_reason(self, level: str, reason: str) -> "ResumedPart":
        """Returns the part with one more reason why it is not exact.

        If the level of the part was "exact" before, it becomes ``level``. Any other level is kept.
        A reason that the part has already is not added.
        """
        if self.level == "exact":
            return ResumedPart(level, reason, self.names)
        if f"; {reason}; " in f"; {self.reason}; ":
            return self
        return ResumedPart(self.level, f"{self.reason}; {reason}", self.names)

    def __str__(self) -> str:
        details = self.reason or ", ".join(self.names)
        return f"{self.level} ({details})" if details else self.level


def merge_reasons(rank_reasons: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Merges the reasons of all ranks into one text for each part.

    Args:
        rank_reasons: one mapping for each rank, in the order of the ranks. Each maps the name
            of a part to the reason why the part may not be exact on that rank.

    Returns:
        A mapping from the name of a part to the merged text. A reason of a rank above 0 is left out
        if rank 0 gives the same reason for the part.
    """
    reasons: dict[str, list[str]] = {}
    for rank, own_reasons in enumerate(rank_reasons):
        for part, reason in own_reasons.items():
            if rank == 0 or reason != rank_reasons[0].get(part):
                reasons.setdefault(part, []).append(_with_rank(rank, reason) if rank else reason)
    return {part: "; ".join(part_reasons) for part, part_reasons in reasons.items()}


def _with_rank(rank: int, reason: str) -> str:
    return f"on process {rank}: {reason}"


EXACT = ResumedPart("exact")


@dataclass(frozen=True)
class ResumeReport:
    """The parts of a run's state that were restored, and how exactly.

    ``str(report)`` has a line for each part. The exact parts come last.

    Attributes:
        checkpoint: the folder of the checkpoint.
        step: the number of committed optimizer steps in the checkpoint. A step is committed if it
            has changed the parameters.
        parts: maps the name of each part of the state to the report on that part.
    """

    checkpoint: Path
    step: int
    parts: Mapping[str, ResumedPart]

    @property
    def is_exact(self) -> bool:
        """Returns whether all parts are exact: the run continues as if it had never stopped."""
        return all(part.level == "exact" for part in self.parts.values())

    def with_others(self, reports: Sequence["ResumeReport"]) -> "ResumeReport":
        """Returns this rank's report, extended by the parts that are not exact on other ranks.

        Args:
            reports: the reports of all ranks, in the order of the ranks.
        """
        parts = dict(self.parts)
        for rank, report in enumerate(reports):
            for name, part in report.parts.items():
                own = self.parts.get(name, EXACT)
                if part.level != "exact" and part != own:
                    reason = _with_rank(rank, part.reason)
                    parts[name] = parts.get(name, own).with_reason(part.level, reason)
        return ResumeReport(self.checkpoint, self.step, parts)

    def __str__(self) -> str:
        # The inexact parts come first, because the end of a long warning may be cut.
        parts = sorted(self.parts.items(), key=lambda item: item[1].level == "exact")
        lines = [f"resumed from {self.checkpoint}, step {self.step}"]
        return "\n  ".join([*lines, *(f"{name}: {part}" for name, part in parts)])


def report_named_objects(
    targets: Mapping[str, Any], states: Mapping[str, Any], what: str
) -> ResumedPart | None:
    """Returns the report on a part that consists of named objects, for example the handlers.

    Args:
        targets: the objects of this trainer that have a state, by name.
        states: the states in the checkpoint, by name.
        what: the owner of the objects in the message "not in … any more", for example "the
            trainer".

    Returns:
        The report on the part; None if there are no objects and no states.
    """
    new, gone = targets.keys() - states.keys(), states.keys() - targets.keys()
    reasons = [f"not in the checkpoint: {summarize_names(new)}"] if new else []
    reasons += [f"not in {what} any more: {summarize_names(gone)}"] if gone else []
    restored = tuple(sorted(targets.keys() & states.keys()))
    if reasons:
        return ResumedPart("missing", "; ".join(reasons), restored)
    return ResumedPart("exact", names=restored) if targets else None


def report_generators(saved: Set[str], present: Set[str]) -> ResumedPart:
    """Returns the report on the random generators that the trainer's objects hold.

    The global random generators, such as torch's default generator, are not included.

    Args:
        saved: the names of the generators in the checkpoint.
        present: the names of the generators in this trainer.
    """
    reasons = [
        f"the random generator {name} was saved, but does not exist now"
        for name in sorted(saved - present)
    ]
    reasons += [
        f"the random generator {name} exists now, but was not saved"
        for name in sorted(present - saved)
    ]
    return ResumedPart("approximate", "; ".join(reasons)) if reasons else EXACT


def summarize_names(names: Iterable[str]) -> str:
    """Returns names as text for a message.

    Up to three names are listed. For more names the text is, for example, "a and 4 more".
    """
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if len(others) > 2 else ", ".join([first, *others])
