"""Ignite's metrics on ranks that have unequal numbers of samples, or none."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device
from ignite.engine import Engine
from ignite.engine import Events
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch import distributed

from ignite_hooks.core.accelerators import timeout_of
from ignite_hooks.core.engine import calls_of
from ignite_hooks.core.engine import move_to_front
from ignite_hooks.core.restoring import restored
from ignite_hooks.processes.ignite_collectives import among_ranks
from ignite_hooks.processes.ignite_collectives import among_unequal_ranks

__all__ = ["SharedMetrics"]

# Modules that import a collective by itself.
_WITH_OTHERS = ("ignite.metrics.mean_average_precision", "ignite.metrics.vision.")


class SharedMetrics:
    """The metrics of an evaluator, which has each sample on one rank.

    Ignite's metrics cannot be computed where they have seen no sample. Those ranks take the results
    of the others. Metrics of a user, and what is attached on one rank only, are left as they are.

    Args:
        accelerator: of the processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._groups: dict[tuple[int, ...], Any] = {}  # by their ranks

    @contextmanager
    def computed_together(self, engine: Engine, *, reaches_all_ranks: bool) -> Iterator[None]:
        """Around a run of the evaluator.

        Args:
            engine: the evaluator.
            reaches_all_ranks: whether each rank is sure to have a batch, which all of them know.
        """
        if self._accelerator.num_processes == 1:
            yield
            return
        with ExitStack() as stack:

            def share(engine: Engine) -> None:
                metrics = _metrics_of(engine)
                ranks = self._ranks_with_samples(engine, metrics)
                if 0 < len(ranks) < self._accelerator.num_processes:
                    group = self._group_of(ranks)
                    for metric in metrics:
                        compute = _ComputedBySome(metric.compute, ranks, group)
                        stack.enter_context(_replaced_compute(metric, compute))

            if not reaches_all_ranks:
                sharing = engine.add_event_handler(Events.EPOCH_COMPLETED, share)
                stack.enter_context(restored(sharing.remove))
                move_to_front(engine, Events.EPOCH_COMPLETED)
            stack.enter_context(among_unequal_ranks())
            yield

    def _ranks_with_samples(self, engine: Engine, metrics: list[Metric]) -> tuple[int, ...]:
        """Returns the ranks that have evaluated a batch; none if their metrics differ. Collective.

        Args:
            engine: the evaluator.
            metrics: those of this rank.
        """
        kinds = [type(each).__qualname__ for each in metrics]
        found: list[Any] = [None] * self._accelerator.num_processes
        distributed.all_gather_object(found, (engine.state.iteration > 0, kinds))
        if any(others != kinds for _, others in found):
            return ()
        return tuple(rank for rank, (has_sample, _) in enumerate(found) if has_sample)

    def _group_of(self, ranks: tuple[int, ...]) -> Any:
        if ranks not in self._groups:
            timeout = timeout_of(self._accelerator)
            self._groups[ranks] = distributed.new_group(ranks, timeout=timeout)
        return self._groups[ranks]


def _metrics_of(engine: Engine) -> list[Metric]:
    """Returns the metrics of Ignite that give a result, in order."""
    functions = (function for function, _ in calls_of(engine))
    called = (each for each in functions if getattr(each, "__name__", None) == "completed")
    owners = (getattr(each, "__self__", None) for each in called)
    return [each for each in owners if isinstance(each, Metric) and _is_of_ignite(each)]


def _is_of_ignite(metric: Metric) -> bool:
    """Returns whether ``compute`` uses the collectives of ``ignite.distributed`` by their names."""
    module = type(metric).compute.__module__
    return module.startswith("ignite.metrics.") and not module.startswith(_WITH_OTHERS)


class _ComputedBySome:
    """The ``compute`` of a metric: some ranks call it, and the result goes to all.

    Args:
        compute: that of the metric.
        ranks: those ranks.
        group: their group.
    """

    _is_within = False  # what a metric is made of is computed by the same ranks alone

    def __init__(self, compute: Callable[[], Any], ranks: tuple[int, ...], group: Any) -> None:
        self._compute = compute
        self._ranks = ranks
        self._group = group

    def __call__(self) -> Any:
        if _ComputedBySome._is_within:
            return self._compute()
        result, failure, told = None, None, None
        if distributed.get_rank() in self._ranks:
            try:
                result = self._compute_together()
            except Exception as error:
                failure, told = error, f"{type(error).__name__}: {error}"
        sent = [result, told]
        distributed.broadcast_object_list(sent, src=self._ranks[0])
        if failure is not None:
            raise failure
        if sent[1] is not None:
            raise NotComputableError(f"rank {self._ranks[0]} could not compute: {sent[1]}")
        return sent[0]

    def _compute_together(self) -> Any:
        def leave() -> None:
            _ComputedBySome._is_within = False

        with restored(leave), among_ranks(self._ranks, self._group):
            _ComputedBySome._is_within = True
            return send_to_device(self._compute(), "cpu")


@contextmanager
def _replaced_compute(metric: Metric, compute: Callable[[], Any]) -> Iterator[None]:
    attributes = metric.__dict__
    if "compute" in attributes:  # in an earlier epoch of this run, or under another name
        yield
        return
    with restored(lambda: attributes.pop("compute", None)):
        attributes["compute"] = compute
        yield
