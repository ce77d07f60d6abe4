"""The choice of one checkpoint among several: the best of a run, the last, a step or a name."""

import os
from collections.abc import Sequence
from pathlib import Path
from pathlib import PurePath
from typing import Literal
from typing import TypeAlias

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.candidates import Source
from ignite_hooks.checkpoint.store import best_first
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.rules import is_integer

__all__ = ["Which", "best_of_each_run", "best_of_run", "chosen", "first_of"]

Which: TypeAlias = Literal["best", "last"] | int | str | Path

MAX_SHOWN = 8
"""Texts that a message lists."""


def best_of_each_run(newest_first: Sequence[Candidate]) -> dict[str, Candidate]:
    """Returns the best checkpoint of each run that has one, by the identifier of the run.

    The metric, and which end of it is best, are those that the newest checkpoint with a metric
    says. A NaN is never the best; of equals the newer is.
    """
    found: dict[str, Candidate] = {}
    for run in dict.fromkeys(each.manifest.training for each in newest_first):
        of_run = _of_run(newest_first, run)
        for manifest in (each.manifest for each in of_run):
            if manifest.metric is not None and manifest.metric_mode is not None:
                for best in best_first(of_run, manifest.metric, manifest.metric_mode)[:1]:
                    found[run] = best
                break
    return found


def best_of_run(newest_first: Sequence[Candidate], run: str, place: str) -> Candidate:
    """Returns the best checkpoint of a run.

    Args:
        newest_first: all checkpoints of a source.
        run: the identifier of the run.
        place: the source, for messages.

    Raises:
        ValueError: no checkpoint of the run has a value of a metric.
    """
    of_run = _of_run(newest_first, run)
    best = best_of_each_run(of_run).get(run)
    if best is not None:
        return best
    metrics = ", ".join(sorted({e.manifest.metric for e in of_run if e.manifest.metric}))
    if not of_run:
        why = "there is none"
    elif not metrics:
        why = "they were saved without a metric"
    elif all(each.manifest.metric_mode is None for each in of_run):
        why = f"they do not say whether more or less of {metrics} is better"
    else:
        why = f"none of them has a value of {metrics} to go by"
    raise ValueError(
        f"the best checkpoint must have a metric, got {place}, with {len(of_run)} of the run: "
        f'{why}; say which="last" or a step, and save with '
        'SaveCheckpoint(metric="val_accuracy", mode="max"), for instance, to have a best one'
    )


def chosen(
    newest_first: Sequence[Candidate], which: Which, source: Source, place: str
) -> Sequence[Candidate]:
    """Returns the checkpoint that is meant; for "last" all, to try one after another.

    Args:
        newest_first: the checkpoints of the source.
        which: "best" of the newest run, "last", a step, or the name or path of a folder.
        source: the source.
        place: the source as its user names it. Of a place that is one checkpoint that one is
            returned, best or not.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: there is none of that name or step, or none that is known to be the best.
    """
    if not newest_first:
        raise FileNotFoundError(
            f"`source` must have a checkpoint, got {place}, where there is none"
        )
    is_one = _is_at(newest_first[0], place, source, place)
    if which == "last" or (which == "best" and is_one):
        return newest_first
    if which == "best":
        return [best_of_run(newest_first, newest_first[0].manifest.training, place)]
    if is_integer(which):
        found = [each for each in newest_first if each.manifest.step == which]
        shown = first_of([str(step) for step in sorted({e.manifest.step for e in newest_first})])
        rule = "a step that was saved"
    else:
        found = [each for each in newest_first if _is_named(each, str(which), source, place)]
        shown = first_of([PurePath(each.name).name for each in newest_first])
        rule = "the name or path of a checkpoint in `source`"
    if not found:
        raise ValueError(
            f"`which` must be {rule}, got {which!r}; {place} has {shown}: name one of these, or "
            'say "last" or "best"'
        )
    return found[:1]


def first_of(texts: Sequence[str], separator: str = ", ") -> str:
    """Returns the first of some texts in a line, and how many more there are."""
    more = len(texts) - MAX_SHOWN
    return separator.join([*texts[:MAX_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _of_run(newest_first: Sequence[Candidate], run: str) -> list[Candidate]:
    return [each for each in newest_first if each.manifest.training == run]


def _is_named(candidate: Candidate, name: str, source: Source, place: str) -> bool:
    is_its_name = name in (PurePath(candidate.name).name, candidate.name)
    return is_its_name or _is_at(candidate, name, source, place)


def _is_at(candidate: Candidate, address: str, source: Source, place: str) -> bool:
    if is_url(place):
        return address.rstrip("/") == source.address_of(candidate).rstrip("/")
    return os.path.realpath(os.path.expanduser(address)) == os.path.realpath(candidate.name)
