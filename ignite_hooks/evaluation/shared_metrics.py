"""Makes Ignite's metrics work if ranks have unequal numbers of samples, or no samples at all."""

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

from ignite_hooks.core.accelerators import collective_timeout
from ignite_hooks.core.engine import handlers_with_arguments
from ignite_hooks.core.engine import move_to_front
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.processes.ignite_collectives import among_ranks
from ignite_hooks.processes.ignite_collectives import among_unequal_ranks

__all__ = ["SharedMetrics"]

# The metrics of these modules are left unchanged. The modules import a collective by its name, so
# they would not call the functions that `ignite_collectives` puts into `ignite.distributed`.
_MODULES_WITH_OWN_COLLECTIVES = ("ignite.metrics.mean_average_precision", "ignite.metrics.vision.")


class SharedMetrics:
    """The metrics of an evaluator that evaluates each sample on one rank.

    Ignite's metrics cannot be computed on a rank that has seen no sample. So the ranks that have
    samples compute the metrics together, and the other ranks receive the results. Users' own
    metrics are left unchanged. If the ranks have attached different metrics, all metrics are left
    unchanged.

    Args:
        accelerator: the accelerator of the processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        # Maps ranks to their process group. Each group is made only once, because torch keeps all
        # groups until the process ends.
        self._groups: dict[tuple[int, ...], Any] = {}

    @contextmanager
    def computed_together(self, engine: Engine, *, reaches_all_ranks: bool) -> Iterator[None]:
        """Lets the ranks with samples compute the metrics for all ranks. The body runs ``engine``.

        Args:
            engine: the evaluator.
            reaches_all_ranks: whether it is certain that each rank has at least one batch. This
                argument must be the same on every rank.
        """
        if self._accelerator.num_processes == 1:
            yield
            return
        with ExitStack() as stack:

            def share(engine: Engine) -> None:
                metrics = _ignite_metrics_of(engine)
                ranks = self._ranks_with_samples(engine, metrics)
                if 0 < len(ranks) < self._accelerator.num_processes:
                    group = self._group_of(ranks)
                    for metric in metrics:
                        compute = _ComputeOnSomeRanks(metric.compute, ranks, group)
                        stack.enter_context(_replaced_compute(metric, compute))

            # `share` must be called before the metrics compute their values at EPOCH_COMPLETED.
            if not reaches_all_ranks:
                sharing = engine.add_event_handler(Events.EPOCH_COMPLETED, share)
                stack.enter_context(undo_on_exit(sharing.remove))
                move_to_front(engine, Events.EPOCH_COMPLETED)
            stack.enter_context(among_unequal_ranks())
            yield

    def _ranks_with_samples(self, engine: Engine, metrics: list[Metric]) -> tuple[int, ...]:
        """Returns the ranks that have evaluated a batch; () if the metrics differ between ranks.

        This is a collective call: all ranks must call the method together.
        """
        metric_types = [type(each).__qualname__ for each in metrics]
        found: list[Any] = [None] * self._accelerator.num_processes
        distributed.all_gather_object(found, (engine.state.iteration > 0, metric_types))
        if any(others != metric_types for _, others in found):
            return ()
        return tuple(rank for rank, (has_sample, _) in enumerate(found) if has_sample)

    def _group_of(self, ranks: tuple[int, ...]) -> Any:
        """Returns the process group of ``ranks``.

        The first call for these ranks makes the group, and is a collective call of all ranks.
        """
        if ranks not in self._groups:
            timeout = collective_timeout(self._accelerator)
            self._groups[ranks] = distributed.new_group(ranks, timeout=timeout)
        return self._groups[ranks]


def _ignite_metrics_of(engine: Engine) -> list[Metric]:
    """Returns Ignite's own metrics that write a result, in the order of their handlers."""
    functions = (function for function, _ in handlers_with_arguments(engine))
    # A metric writes its result in its handler `completed`. A metric that is only an argument of
    # another metric (`MetricsLambda`) has no such handler.
    called = (each for each in functions if getattr(each, "__name__", None) == "completed")
    owners = (getattr(each, "__self__", None) for each in called)
    return [each for each in owners if isinstance(each, Metric) and _uses_ignite_collectives(each)]


def _uses_ignite_collectives(metric: Metric) -> bool:
    """Returns whether ``compute`` looks its collectives up in ``ignite.distributed``."""
    module = type(metric).compute.__module__
    return module.startswith("ignite.metrics.") and not module.startswith(
        _MODULES_WITH_OWN_COLLECTIVES
    )


class _ComputeOnSomeRanks:
    """A replacement for a metric's ``compute``. Some ranks compute; all ranks get the result.

    Args:
        compute: the ``compute`` of the metric.
        ranks: the ranks that compute.
        group: the process group of these ranks.
    """

    # True while a metric is computed. If this metric calls the `compute` of another metric, the
    # inner call must not broadcast, because the ranks without samples make no inner call.
    _is_computing = False

    def __init__(self, compute: Callable[[], Any], ranks: tuple[int, ...], group: Any) -> None:
        self._compute = compute
        self._ranks = ranks
        self._group = group

    def __call__(self) -> Any:
        if _ComputeOnSomeRanks._is_computing:
            return self._compute()
        result, failure, message = None, None, None
        if distributed.get_rank() in self._ranks:
            try:
                result = self._compute_together()
            except Exception as error:
                # Raised after the broadcast, because the ranks without samples wait for it.
                failure, message = error, f"{type(error).__name__}: {error}"
        sent = [result, message]
        distributed.broadcast_object_list(sent, src=self._ranks[0])
        if failure is not None:
            raise failure
        if sent[1] is not None:
            raise NotComputableError(f"rank {self._ranks[0]} could not compute: {sent[1]}")
        return sent[0]

    def _compute_together(self) -> Any:
        """Returns the result, on the CPU.

        While the metric is computed, Ignite's collectives include only the ranks that compute.
        """

        def end() -> None:
            _ComputeOnSomeRanks._is_computing = False

        with undo_on_exit(end), among_ranks(self._ranks, self._group):
            _ComputeOnSomeRanks._is_computing = True
            # The result is pickled, and a CUDA tensor would be unpickled on the sender's device.
            return send_to_device(self._compute(), "cpu")


@contextmanager
def _replaced_compute(metric: Metric, compute: Callable[[], Any]) -> Iterator[None]:
    """Replaces the metric's ``compute`` in the body, unless it is replaced already."""
    attributes = metric.__dict__
    # An earlier epoch may have replaced `compute`, or the metric may be attached under two names.
    if "compute" in attributes:
        yield
        return
    with undo_on_exit(lambda: attributes.pop("compute", None)):
        attributes["compute"] = compute
        yield
