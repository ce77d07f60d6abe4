"""Selects a checkpoint of a source: the best of a run, the last, or one by step, name or path.

A source is a local or remote place that has checkpoints, often of several runs. Each checkpoint is
given as a ``CheckpointCandidate``: its folder and its manifest. Its other files have not been read.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from pathlib import PurePath
from typing import Literal
from typing import TypeAlias

from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.source_interface import Source
from ignite_hooks.checkpoint.store import best_first
from ignite_hooks.core.paths import is_url
from ignite_hooks.core.rules import is_integer

__all__ = ["Which", "best_of_each_run", "best_of_run", "join_first", "select_checkpoints"]

Which: TypeAlias = Literal["best", "last"] | int | str | Path

MAX_SHOWN = 8
"""The largest number of names or steps that a message lists."""


def best_of_each_run(newest_first: Sequence[CheckpointCandidate]) -> dict[str, CheckpointCandidate]:
    """Maps the identifier of each run to the best checkpoint of the run.

    The checkpoints of one run may have been saved with different metrics. All of them are compared
    by the metric and the mode ("max" or "min") of the newest checkpoint that has both. NaN is never
    the best. Of two equal values, the value of the newer checkpoint is better. A run is left out if
    none of its checkpoints has a value of this metric.

    Args:
        newest_first: all checkpoints of a source, the newest first.
    """
    found: dict[str, CheckpointCandidate] = {}
    for run in dict.fromkeys(each.manifest.training for each in newest_first):
        run_checkpoints = _checkpoints_of_run(newest_first, run)
        for manifest in (each.manifest for each in run_checkpoints):
            if manifest.metric is not None and manifest.metric_mode is not None:
                for best in best_first(run_checkpoints, manifest.metric, manifest.metric_mode)[:1]:
                    found[run] = best
                break
    return found


def best_of_run(
    newest_first: Sequence[CheckpointCandidate], run: str, place: str
) -> CheckpointCandidate:
    """Returns the best checkpoint of a run.

    Args:
        newest_first: all checkpoints of a source, the newest first.
        run: the identifier of the run.
        place: the path or URL of the source, for messages.

    Raises:
        ValueError: no checkpoint of the run has a metric value that can be compared.
    """
    run_checkpoints = _checkpoints_of_run(newest_first, run)
    best = best_of_each_run(run_checkpoints).get(run)
    if best is not None:
        return best
    metrics = ", ".join(sorted({e.manifest.metric for e in run_checkpoints if e.manifest.metric}))
    # The reason completes the error message below. "They" are the checkpoints of the run.
    if not run_checkpoints:
        reason = "none was saved"
    elif not metrics:
        reason = "they were saved without a metric"
    elif all(each.manifest.metric_mode is None for each in run_checkpoints):
        reason = f"they do not say whether a high or a low {metrics} is better"
    else:
        reason = (
            f"none of them has a value of {metrics} that can be compared, for example because no "
            "validation had run"
        )
    raise ValueError(
        f"the best checkpoint must have a metric, got {place}, which has "
        f"{len(run_checkpoints)} checkpoint(s) of the run: "
        f"{reason}; load the last checkpoint or that of a step, or save checkpoints that have a "
        'metric, for example with SaveCheckpoint(metric="val_accuracy", mode="max")'
    )


def select_checkpoints(
    newest_first: Sequence[CheckpointCandidate], which: Which, source: Source, place: str
) -> Sequence[CheckpointCandidate]:
    """Returns a sequence whose first element is the checkpoint that ``which`` selects.

    For "last" the sequence has all checkpoints, the newest first: if the newest checkpoint is
    damaged, the caller can try an older one. Otherwise the sequence has one element.

    Args:
        newest_first: all checkpoints of the source, the newest first.
        which: "last", a step, the name or path of a checkpoint's folder, or "best". "best" selects
            the best checkpoint of the run that the newest checkpoint belongs to.
        source: the source.
        place: the path or URL of the source, as the user wrote it. If ``place`` leads to a single
            checkpoint, "best" selects this checkpoint, even if it has no metric.

    Raises:
        FileNotFoundError: the source has no checkpoint.
        ValueError: no checkpoint has the given name, path or step; or "best" cannot be selected,
            because no checkpoint of the run has a metric value that can be compared.
    """
    if not newest_first:
        raise FileNotFoundError(f"`source` must have a checkpoint, got {place}, which has none")
    is_single = _has_address(newest_first[0], place, source, place)
    if which == "last" or (which == "best" and is_single):
        return newest_first
    if which == "best":
        return [best_of_run(newest_first, newest_first[0].manifest.training, place)]
    if is_integer(which):
        found = [each for each in newest_first if each.manifest.step == which]
        shown = join_first([str(step) for step in sorted({e.manifest.step for e in newest_first})])
        rule = "a step that was saved"
    else:
        found = [each for each in newest_first if _has_name(each, str(which), source, place)]
        shown = join_first([PurePath(each.name).name for each in newest_first])
        rule = "the name or path of a checkpoint in `source`"
    if not found:
        raise ValueError(
            f"`which` must be {rule}, got {which!r}; {place} has {shown}: name one of these, "
            'or give "last" or "best"'
        )
    return found[:1]


def join_first(texts: Sequence[str], separator: str = ", ") -> str:
    """Joins the first ``MAX_SHOWN`` texts, and appends the number of the other texts."""
    more = len(texts) - MAX_SHOWN
    return separator.join([*texts[:MAX_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _checkpoints_of_run(
    newest_first: Sequence[CheckpointCandidate], run: str
) -> list[CheckpointCandidate]:
    return [each for each in newest_first if each.manifest.training == run]


def _has_name(candidate: CheckpointCandidate, name: str, source: Source, place: str) -> bool:
    is_folder_name = name in (PurePath(candidate.name).name, candidate.name)
    return is_folder_name or _has_address(candidate, name, source, place)


def _has_address(candidate: CheckpointCandidate, address: str, source: Source, place: str) -> bool:
    """Returns whether ``address``, a URL if ``place`` is one, leads to the checkpoint."""
    if is_url(place):
        return address.rstrip("/") == source.address_of(candidate).rstrip("/")
    return os.path.realpath(os.path.expanduser(address)) == os.path.realpath(candidate.name)
