"""Shows a run on the screen: what is trained, how far the run is, and a table of its metrics."""

import sys
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

from ignite.engine import Engine
from ignite.metrics import Metric

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import handlers_with_arguments
from ignite_hooks.core.fields import MetricName
from ignite_hooks.core.fields import Mode
from ignite_hooks.core.fields import Seconds
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.handler import check_not_attached
from ignite_hooks.core.handler import record_attachment
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.observe.console_state import ConsoleState
from ignite_hooks.observe.mean_loss import MeanLoss
from ignite_hooks.observe.run_display import RunDisplay
from ignite_hooks.observe.run_row import Ranking
from ignite_hooks.observe.steps import optimizer_step_of
from ignite_hooks.observe.throughput import Throughput
from ignite_hooks.processes.host_group import is_main_process

__all__ = ["Console"]


@checked_dataclass
class Console(Handler):
    """Shows a run in a terminal, in a notebook, or in a log file.

    - At the start: the model, the steps of an epoch, the samples of a step, the precision, the
      processes, the folder of the checkpoints, and the checkpoint from which the run resumes.
    - During the run: a bar over all steps of the run, with the remaining time, the epoch, the last
      report of the loss, and the elapsed time, as far as they fit into the width. The bar moves
      after each step, at most ten times a second. If the limits of the run cannot be converted to
      steps, because the length of an epoch is not known, the bar has no end.
    - After each epoch and each validation: a row of a table.
    - At the end: how the run ended, how long it took, and the best value of ``metric``. If no value
      was written under this name, a line says so.

    A row has the mean of the loss since the last row, the metrics that are new since then, the
    learning rates, the gradient norm, the samples per second, the share of time spent waiting for
    data, and the peaks of memory. Learning rates, gradient norm, samples per second and waiting are
    those of the last report of ``Throughput``. The peaks of memory are those of the attached
    handlers that measure memory. Without such handlers, they are the peaks of the process so far.
    Values that do not fit into the width are listed below their row. ``*`` marks the best value so
    far of ``metric``. Of two equal values the later one is the best: it is the value of the best
    checkpoint.

    If the engine has no ``Throughput``, the Console attaches one for the time of each run; on a
    trainer also a ``MeanLoss``, unless another handler writes the metric "loss". Both report every
    ten steps.

    Text that others print during a run appears above the bar, complete: also warnings and log
    messages, and text that loader workers print after a fork. Only ``sys.stdout`` and
    ``sys.stderr`` are watched, so text that a program or a C library writes is not.

    If ``sys.stdout`` is no terminal, or ``TERM`` is "dumb", there is no bar. Instead, a line says
    every ``every_seconds`` how far the run is. If ``sys.stdout`` cannot be written to, for example
    because a terminal was closed, the run continues without output. In a distributed run, only rank
    0 writes, and all ranks must attach the handler.

    A row reads the values of the metrics, which synchronizes with the device if they are tensors on
    a device. Nothing else does. On an engine that is not a trainer, attach the handlers that write
    values before the run begins.

    Args:
        metric: the name in ``state.metrics`` of the value whose best is marked. NaN is never the
            best. Default: the metric of the attached ``SaveCheckpoint``, with its ``mode``; without
            one, nothing is marked.
        mode: "max" if the largest value is best, "min" if the smallest value is best.
        every_seconds: the time from one line to the next, where there is no bar.

    Raises:
        ModuleNotFoundError: tqdm is not installed.
        ValueError: an argument is out of its range. When attached: an event is given, or the
            handler is attached already.
    """

    metric: MetricName | None = None
    mode: Mode = "max"
    every_seconds: Seconds = 60.0

    def __post_init__(self) -> None:
        """Checks that tqdm is installed."""
        if find_spec("tqdm") is None:
            raise ModuleNotFoundError(
                "a Console needs tqdm, which is not installed: pip install 'ignite-hooks[console]'"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value, and what is to be shown in the next row."""
        return _state_of(self).state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from a saved best value."""
        _state_of(self).load_state_dict(state_dict)

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that no event is given, and that the handler is attached to no engine yet."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: a Console shows a row after each epoch "
                "and each validation"
            )
        check_not_attached(self, "it keeps the best value of that engine")

    def attach_to(self, attachment: Attachment) -> None:
        """Shows each run."""
        record_attachment(attachment)
        attachment.on_removal(self._forget)
        attachment.during_run(self._shown)

    def _forget(self) -> None:
        _states.pop(self, None)

    @contextmanager
    def _shown(self, engine: Engine) -> Iterator[None]:
        """Shows the run of ``engine`` during the body."""
        state, stack = _state_of(self), ExitStack()
        with undo_on_exit(stack.close, out_of_order=True):
            # On all ranks, because their reports are collective.
            for handler in _missing_handlers(engine):
                stack.callback(_attached_with_sums(handler, engine, state))
            if not _is_rank_0(engine):
                yield
                return
            # Attached after the handlers that write values, which come first on a plain engine.
            inner = Attachment(self, engine)
            stack.callback(inner.remove)
            ranking = Ranking(self.metric, self.mode)
            display = RunDisplay(inner, state, sys.stdout, ranking, self.every_seconds)
            stack.callback(display.close)
            display.enter(engine)
            try:
                yield
            except BaseException as error:
                display.end(engine, error)
                raise
            display.end(engine, None)


def _missing_handlers(engine: Engine) -> list[MeanLoss | Throughput]:
    """Returns a new handler for each kind of value that no handler of ``engine`` writes."""
    missing: list[MeanLoss | Throughput] = []
    # Ignite passes the name of a metric as an argument to the methods of the metric.
    names = (
        each
        for function, others in handlers_with_arguments(engine)
        if isinstance(getattr(function, "__self__", None), Metric)
        for each in others
    )
    writes_loss = any(isinstance(each, str) and each == "loss" for each in names)
    if is_trainer(engine) and not (writes_loss or attached_handlers(engine, MeanLoss)):
        missing.append(MeanLoss())
    if not attached_handlers(engine, Throughput):
        missing.append(Throughput(every_steps=10))
    return missing


def _attached_with_sums(
    handler: MeanLoss | Throughput, engine: Engine, state: ConsoleState
) -> Callable[[], None]:
    """Attaches a handler for one run; returns a function that removes it.

    The sums of a MeanLoss are kept from one run to the next, which may continue the first.
    """
    attachment = handler.attach(engine)
    if isinstance(handler, MeanLoss) and state.loss_sums is not None:
        handler.load_state_dict(state.loss_sums)

    def remove() -> None:
        if isinstance(handler, MeanLoss) and attachment.is_attached:
            state.loss_sums = handler.state_dict()
        attachment.remove()

    return remove


def _is_rank_0(engine: Engine) -> bool:
    step = optimizer_step_of(engine)
    return is_main_process(None if step is None else step.accelerator)


_states: WeakKeyDictionary[Console, ConsoleState] = WeakKeyDictionary()


def _state_of(console: Console) -> ConsoleState:
    """Returns the state of a handler, which is no field of it, so that it stays frozen."""
    return _states.setdefault(console, ConsoleState())
