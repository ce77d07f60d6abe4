"""The speed of a run, the time that it still needs, the learning rates and the gradient norm."""

from math import isnan
from math import nan
from time import perf_counter
from typing import Any
from typing import ClassVar

import torch
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Function
from ignite_hooks.core.fields import Iterations
from ignite_hooks.core.fields import Runtime
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.metric_writer import MetricWriter
from ignite_hooks.core.rules import check_function
from ignite_hooks.observe.remaining import remaining_seconds
from ignite_hooks.observe.step_timer import StepTimer
from ignite_hooks.observe.steps import Steps
from ignite_hooks.optim.gradient_clipping import GradientClipping
from ignite_hooks.optim.optimizer_step import callbacks_before_step
from ignite_hooks.processes.host_group import sum_over_ranks

__all__ = ["Throughput"]


@checked_dataclass
class Throughput(MetricWriter):
    """Reports how fast a run trains, how long it still takes, and what its optimizer does.

    A report writes these values to ``state.metrics``, as floats:

    - ``steps_per_second``, ``samples_per_second``: of all processes together, over the last
      ``window`` steps. The time of a step is the time from the request of its first batch until the
      step is complete. So validations, checkpoints and the other work between two steps do not
      count.
    - ``items_per_second``: with ``items``, for example tokens per second.
    - ``data_wait``: the share of the time of the steps that was spent waiting for batches, from 0
      to 1. A share near 1 means that the data are the bottleneck.
    - ``remaining_seconds``: the time until the first limit (``max_steps``, ``max_epochs`` or
      ``max_iters``) ends the run, at the present speed. The validations and checkpoints that are
      still to come are counted, with the mean duration of those so far. Left out if no limit can be
      converted to steps, because the length of an epoch is not known.
    - ``lr``: the learning rate of the last step at a multiple of ``every_steps``. With several
      parameter groups it is ``lr_0``, ``lr_1`` and so on.
    - ``grad_norm``: the 2-norm of the gradient of the same step, before clipping, as a tensor. If a
      ``GradientClipping`` with ``max_norm`` is attached, it writes this value itself. Left out if a
      gradient is sparse, or if the model is split over processes.

    At the start of a run, the values of an earlier run are removed from ``state.metrics``. A run
    that resumes from a checkpoint shows the values of the checkpoint until its first report.

    The first three steps of a run, also of a resumed run, are not measured. A device may still be
    computing when a step is complete on the host, so only a mean over many steps is exact.

    Except at a report with several processes, which exchange their values on the host, no process
    waits: reading the clock does not synchronize with the device. All processes must attach the
    handler, because a report is collective.

    Args:
        every_steps: the number of committed steps from one report to the next. At the end of an
            epoch or of a run, there is a report too.
        window: the number of steps over which the speed is averaged.
        items: a function that takes a batch and returns the number of its items, for example
            ``lambda batch: batch["input_ids"].numel()``. Default: items are not counted.
        clock: a function that returns seconds, for tests. Default: ``time.perf_counter``.

    Raises:
        ValueError: an argument is out of its range, or ``items`` is not a function. When attached:
            an event is given, or the engine has a ``Throughput`` already.
        TypeError: ``clock`` is not a function. In the first iteration: ``items`` returns something
            else than a number, for example a tensor on a device.
    """

    no_event: ClassVar[str] = "reports every `every_steps` steps"

    every_steps: Every = 50
    window: Iterations = 100
    items: Function | None = None
    clock: Runtime = None

    def __post_init__(self) -> None:
        """Checks that ``clock`` is a function."""
        check_function("clock", self.clock, "clock=time.monotonic")

    def names(self) -> list[str]:
        """Returns the keys that the handler writes in ``state.metrics`` on any engine."""
        rates = ["steps_per_second", "samples_per_second", "data_wait", "remaining_seconds"]
        items = [] if self.items is None else ["items_per_second"]
        return [*rates, *items, "lr"]

    def attach_to(self, attachment: Attachment) -> None:
        """Measures the steps, and reports on schedule."""
        engine = attachment.engine
        steps = Steps(attachment, self.every_steps)
        clock = perf_counter if self.clock is None else self.clock
        timer = StepTimer(clock, self.window, self.items)
        optimizer = _OptimizerValues(steps)

        def report(engine: Engine) -> None:
            metrics = engine.state.metrics
            if timer.has_news:
                timer.has_news = False
                for name, value in self._speed(engine, steps, timer).items():
                    if isnan(value):
                        metrics.pop(name, None)  # an earlier value would be out of date
                    else:
                        metrics[name] = value
            metrics.update(optimizer.values)

        def forget(engine: Engine) -> None:
            for name in [*self.names(), *optimizer.values]:
                engine.state.metrics.pop(name, None)
            optimizer.values = {}

        attachment.on(Events.STARTED, forget)
        timer.attach_to(attachment)
        if steps.optimizer_step is not None:
            # The callbacks are called when all handlers of OPTIMIZER_STEP_STARTED have returned.
            # The first place in the list is before the clipping.
            callbacks = callbacks_before_step(engine)
            callbacks.insert(0, optimizer.read_if_due)
            attachment.on_removal(lambda: callbacks.remove(optimizer.read_if_due))
        steps.call(timer.end_step, report)

    def _speed(self, engine: Engine, steps: Steps, timer: StepTimer) -> dict[str, float]:
        """Returns the values by the names of their metrics; NaN for a value that is not known."""
        own = [sum(values) for values in zip(*timer.last, strict=True)]
        left = remaining_seconds(engine, steps, timer)
        # All processes take the same steps, so a duration is the mean over the processes.
        seconds, waiting, samples, items, left, ranks = sum_over_ranks(
            [*own, nan if left is None else left, 1], steps.accelerator
        )
        rate = ranks / seconds if seconds else nan
        speed = {
            "steps_per_second": len(timer.last) * rate,
            "samples_per_second": samples * rate,
            "data_wait": waiting / seconds if seconds else nan,
            "remaining_seconds": left / ranks,
        }
        if self.items is not None:
            speed["items_per_second"] = items * rate
        return speed


class _OptimizerValues:
    """Reads the learning rates and the gradient norm of a step before the step is made.

    Args:
        steps: has the ``OptimizerStep`` of the engine.

    Attributes:
        values: maps the names of the metrics to their values in the last step that was read.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.values: dict[str, Any] = {}

    def read_if_due(self, engine: Engine) -> None:
        """Reads the values before the step after which a report is due."""
        state: Any = engine.state
        if state.optimizer_step + 1 >= self._steps.next_due:
            self._read(engine)

    def _read(self, engine: Engine) -> None:
        step = self._steps.optimizer_step
        assert step is not None
        groups = step.optimizer.param_groups
        names = ["lr"] if len(groups) == 1 else [f"lr_{number}" for number in range(len(groups))]
        rates = {name: group.get("lr") for name, group in zip(names, groups, strict=True)}
        self.values = {name: _fixed(rate) for name, rate in rates.items() if rate is not None}
        clippings = attached_handlers(engine, GradientClipping)
        measures_norm = any(each.max_norm is not None for each in clippings)
        # torch cannot compute the norm of sparse gradients. If the model is split over processes,
        # this process does not have the whole gradient.
        gradients = (each.grad for each in step.prepared.parameters)
        is_sparse = any(each is not None and each.is_sparse for each in gradients)
        if step.prepared.is_data_parallel and not measures_norm and not is_sparse:
            self.values["grad_norm"] = step.prepared.grad_norm(2.0)


def _fixed(rate: Any) -> Any:
    """Returns a learning rate as a float, or as a copy if reading it would wait for a device.

    torch's schedulers change a rate that is a tensor in place. The result is a new object, because
    loggers recognize a new value by its identity (see ``Reports``).
    """
    if isinstance(rate, torch.Tensor) and rate.device.type != "cpu":
        return rate.detach().clone()
    return float(rate) * 1.0
