"""The choice of one checkpoint among several: the best of a run, the last, a step or a name."""

from collections.abc import Sequence
from pathlib import PurePath

from ignite_hooks.checkpoint.candidates import Candidate
from ignite_hooks.checkpoint.store import best_first

__all__ = ["best_of_each_run", "chosen"]

MAX_SHOWN = 8


def best_of_each_run(newest_first: Sequence[Candidate]) -> dict[str, Candidate]:
    """Returns the best checkpoint of each run that has one, by the identifier of the run.

    The metric, and which end of it is best, are those that the newest checkpoint with a metric
    says. A NaN is never the best; of equals the newer is.
    """
    found: dict[str, Candidate] = {}
    for run in dict.fromkeys(each.manifest.training for each in newest_first):
        of_run = [each for each in newest_first if each.manifest.training == run]
        for manifest in (each.manifest for each in of_run):
            if manifest.metric is not None and manifest.metric_mode is not None:
                for best in best_first(of_run, manifest.metric, manifest.metric_mode)[:1]:
                    found[run] = best
                break
    return found


def chosen(newest_first: Sequence[Candidate], which: str, source: str) -> Candidate:
    """Returns the checkpoint that ``which`` names: "best" of the newest run, "last", step or name.

    Raises:
        ValueError: there is no checkpoint, or none of that name or step.
    """
    if not newest_first:
        raise ValueError(f"there is no checkpoint in {source}")
    newest = newest_first[0]
    if which == "last":
        return newest
    if which == "best":
        best = best_of_each_run(newest_first).get(newest.manifest.training)
        if best is None and len(newest_first) > 1:
            raise ValueError(
                f"`--which` must be another than best for {source}: the checkpoints of its newest "
                "run have no value of a metric; say last, a step or the name of a folder"
            )
        return best or newest
    is_step = which.isascii() and which.isdigit()
    for each in newest_first:
        if which == PurePath(each.name).name or (is_step and each.manifest.step == int(which)):
            return each
    names = [f"{each.manifest.step} ({PurePath(each.name).name})" for each in newest_first]
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    raise ValueError(
        f"`--which` must be best, last, a step or the name of a folder, got {which}; {source} has "
        f"the steps {', '.join(names[:MAX_SHOWN])}{more}"
    )
