"""The mean of the loss since the last report, over all iterations and processes."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from numbers import Real
from typing import Any
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import MetricNames
from ignite_hooks.core.fields import Prefix
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import check_not_attached
from ignite_hooks.core.handler import record_attachment
from ignite_hooks.core.metric_writer import MetricWriter
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.batch import describe_value
from ignite_hooks.events import TrainEvents
from ignite_hooks.observe.steps import Steps
from ignite_hooks.optim.window import Window
from ignite_hooks.processes.host_group import sum_over_ranks

__all__ = ["MeanLoss", "listen_to_reports"]


Listener = Callable[[Mapping[str, float], int], None]


@checked_dataclass
class MeanLoss(MetricWriter):
    """Reports the mean of the loss over the iterations since the last report.

    The loss of a single batch says little, and reading it in each iteration synchronizes with the
    device each time. MeanLoss adds the losses up on the device. Only a report synchronizes: it
    needs one transfer to the host and, with several processes, one exchange of all sums.

    The mean is written to ``state.metrics["loss"]`` as a float. It is computed in double precision,
    from all iterations of all processes since the last report:

    - The losses of a window (the batches whose gradients make one optimizer step) are added when
      the step is committed. So the losses of a step that the loss scaler skips are left out, and so
      are those of a window that is dropped when a run ends.
    - At the end of an epoch or of a run, the losses since the last report are reported too. So if
      ``every_steps`` is larger than an epoch, each report is the mean over an epoch.
    - A checkpoint contains the sums. So the first report of a resumed run is the same as in a run
      that was never stopped.

    On a trainer, handlers of STEP_COMPLETED and EPOCH_COMPLETED see the new values, whenever they
    were attached. On any other engine, attach MeanLoss before these handlers. All processes must
    attach it and make the same number of iterations, because a report is collective.

    On an engine that is not a trainer, the loss is ``state.output``. The output must be a scalar,
    or a mapping that has the key "loss" and all ``keys``. If the engine has no ``OptimizerStep``,
    each iteration counts as a step.

    Args:
        every_steps: the number of committed steps from one report to the next.
        keys: the names of further losses to report, each under its own name. On a trainer these are
            keys of ``state.model_outputs``, which then must be a mapping. Default: none.
        prefix: is put before each name in ``state.metrics``.

    Raises:
        ValueError: an argument is out of its range. When attached: an event is given, the handler
            is attached already, or another handler of the engine reports the same names. In the
            first iteration: a loss is missing or is not a scalar.
        TypeError: an argument, or a loss, has the wrong type.
    """

    no_event: ClassVar[str] = "reports every `every_steps` steps"

    every_steps: Every = 10
    keys: MetricNames | None = None
    prefix: Prefix = ""

    def __post_init__(self) -> None:
        """Checks that no further loss is called "loss"."""
        if "loss" in (self.keys or ()):
            raise ValueError(
                f'`keys` must not contain "loss", got {self.keys!r}: the loss that is minimized '
                "has this name, and is reported in any case"
            )

    def names(self) -> list[str]:
        """Returns the keys that the handler writes in ``state.metrics``."""
        return [f"{self.prefix}{key}" for key in ("loss", *(self.keys or ()))]

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums of this process since the last report, and the number of iterations."""
        return _sums_of(self).state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues from saved sums. If ``keys`` has changed since the save, starts from zero."""
        _sums_of(self).load_state_dict(state_dict)

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that no event is given, and that the handler is attached to no engine yet."""
        super().check(engine, event)
        check_not_attached(self, "it adds up the losses of that engine")

    def attach_to(self, attachment: Attachment) -> None:
        """Adds up the losses of each window, and reports their means."""
        record_attachment(attachment)
        sums, steps, names = _sums_of(self), Steps(attachment, self.every_steps), self.names()
        attachment.on_removal(sums.reset)
        # A handler that removes an earlier attachment may be followed by the last call of its
        # ``collect``.
        sums.drop_window()

        def begin_run(engine: Engine) -> None:
            if engine.state.iteration == 0:
                sums.reset()

        def report_means(engine: Engine) -> None:
            if sums.count:
                means, count = sums.take_means(steps.accelerator)
                report = dict(zip(names, means, strict=True))
                engine.state.metrics.update(report)
                for listener in sums.listeners:
                    listener(report, count)

        attachment.on(Events.STARTED, begin_run)
        add_step: Callable[[Engine], None]
        if steps.optimizer_step is None:
            add_step = self._add_iteration
        elif is_trainer(attachment.engine):
            add_step = self._collect_losses(attachment, steps.optimizer_step.window)
        else:
            add_step = self._collect_outputs(attachment, steps.optimizer_step.window)
        steps.call(add_step, report_means)

    def _add_iteration(self, engine: Engine) -> None:
        """Adds the output of a plain engine on which each iteration is a step."""
        sums = _sums_of(self)
        sums.add(self._read_output(engine))
        sums.commit_window()

    def _collect_losses(self, attachment: Attachment, window: Window) -> Callable[[Engine], None]:
        """Collects the losses of each window of a trainer, after the backward passes.

        Returns:
            A function to call after each step. It adds the collected losses to the sums.
        """
        sums, keys = _sums_of(self), self.keys or ()

        def collect(engine: Engine) -> None:
            if window.count == 1:  # the losses of a window that made no step may still be there
                sums.drop_window()
            state: Any = engine.state
            losses = [state.loss if state.loss.ndim == 0 else state.loss.reshape(())]
            if keys:
                losses += _read_keys(state.model_outputs, keys, "state.model_outputs")
            sums.add(losses)

        collect.__qualname__ = type(self).__name__  # the name that profilers show
        # A handler that ``add`` attaches costs less per call than a handler that ``on`` attaches.
        attachment.add(TrainEvents.MODEL_BACKWARD_COMPLETED, collect)
        return lambda engine: sums.commit_window()

    def _collect_outputs(self, attachment: Attachment, window: Window) -> Callable[[Engine], None]:
        """Collects the outputs of each window on a plain Ignite engine with an OptimizerStep.

        At ITERATION_COMPLETED the OptimizerStep comes first. If the window is full, it fires
        STEP_COMPLETED at once, so the last output of a window is read there.

        Returns:
            A function to call after each step. It adds the collected outputs to the sums.
        """
        sums = _sums_of(self)
        is_read = False  # whether the output of the present iteration has been read

        def begin(engine: Engine) -> None:
            nonlocal is_read
            is_read = False
            if window.count == 1:
                sums.drop_window()

        def collect(engine: Engine) -> None:
            nonlocal is_read
            if not is_read:
                sums.add(self._read_output(engine))
                is_read = True

        def add_step(engine: Engine) -> None:
            collect(engine)
            sums.commit_window()

        attachment.on(Events.ITERATION_STARTED, begin)
        attachment.on(Events.ITERATION_COMPLETED, collect)
        return add_step

    def _read_output(self, engine: Engine) -> list[Any]:
        """Returns the losses in the output of a plain engine, in the order of ``names``."""
        output = engine.state.output
        if self.keys or isinstance(output, Mapping):
            return _read_keys(output, ("loss", *(self.keys or ())), "state.output")
        return [_as_scalar(output, "state.output")]


class _LossSums:
    """The sums of the losses of this process since the last report.

    An addition makes a new tensor. So a commit and a drop only assign lists, and a sum never shares
    memory with a loss.

    Attributes:
        count: the number of iterations in the sums of the committed steps.
        listeners: are called at each report, as ``listen_to_reports`` says.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self.listeners: list[Listener] = []
        self.reset()

    def reset(self) -> None:
        """Sets the sums to zero."""
        self._restore([], 0)

    def _restore(self, sums: list[torch.Tensor], count: int) -> None:
        # The sums of the committed steps, one for each name; an empty list stands for zeros.
        self._sums, self.count = sums, count
        self._are_placed = False  # whether the sums are on the devices of the losses
        self.drop_window()

    def drop_window(self) -> None:
        """Forgets the losses of the present window, whose step has not been committed."""
        # The sums with the losses of the present window.
        self._pending, self._pending_count = self._sums, self.count

    def add(self, losses: Sequence[Any]) -> None:
        """Adds the losses of one batch to the present window, in the order of the names.

        They are added at once, because a loss may share memory with a parameter or a buffer, which
        the optimizer step or the next batch changes.
        """
        if not self._are_placed:
            sums = self._sums or [torch.zeros((), dtype=torch.float64)] * len(losses)
            self._sums = [*map(_placed, sums, losses)]
            self._are_placed = True
            self.drop_window()
        self._pending = [total + loss for total, loss in zip(self._pending, losses, strict=True)]
        self._pending_count += 1

    def commit_window(self) -> None:
        """Adds the losses of the present window, whose step has been committed."""
        self._sums, self.count = self._pending, self._pending_count

    def take_means(self, accelerator: Any) -> tuple[list[float], int]:
        """Returns the means and the number of iterations, and sets the sums to zero. Collective.

        Both are those of all processes together.
        """
        first = self._sums[0]
        sums = torch.stack([each.to(first) for each in self._sums]).tolist()
        *sums, count = sum_over_ranks([*sums, self.count], accelerator)
        self.reset()
        return [each / count for each in sums], int(count)

    def state_dict(self) -> dict[str, Any]:
        """Returns the names, the sums and the number of iterations."""
        sums = [*self._sums] if self.count else []
        return {"names": self._names, "sums": sums, "count": self.count}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the sums, if they are of the same losses; otherwise sets the sums to zero."""
        if state_dict["names"] == self._names:
            self._restore([*state_dict["sums"]], state_dict["count"])
        else:
            self.reset()


_sums_by_handler: WeakKeyDictionary[MeanLoss, _LossSums] = WeakKeyDictionary()


def _sums_of(handler: MeanLoss) -> _LossSums:
    """Returns the sums of a handler, which are no field of the handler, so that it stays frozen."""
    return _sums_by_handler.setdefault(handler, _LossSums(("loss", *(handler.keys or ()))))


def listen_to_reports(handler: MeanLoss, listener: Listener) -> Callable[[], None]:
    """Calls ``listener`` at each report of ``handler``; returns a function that ends the calls.

    Args:
        handler: makes the reports.
        listener: is called with the means by their names in ``state.metrics``, and with the number
            of iterations of all processes in them.
    """
    listeners = _sums_of(handler).listeners
    listeners.append(listener)
    return lambda: listeners.remove(listener)


def _placed(total: torch.Tensor, loss: Any) -> torch.Tensor:
    """Returns the sum ``total``, or a copy of it, on the device of ``loss``."""
    return total.to(loss.device, _sum_dtype(loss)) if isinstance(loss, torch.Tensor) else total


def _sum_dtype(loss: torch.Tensor) -> torch.dtype:
    """Returns the dtype of sums: double precision, which Apple's devices do not have."""
    return torch.float32 if loss.device.type == "mps" else torch.float64


def _read_keys(outputs: Any, keys: Sequence[str], place: str) -> list[Any]:
    """Returns the values of ``keys`` as scalars.

    Args:
        outputs: the mapping of losses.
        keys: the names of the losses.
        place: where the mapping is, for messages.
    """
    if not isinstance(outputs, Mapping):
        raise TypeError(
            f"`{place}` must be a mapping for the `keys` of MeanLoss, got "
            f"{describe_value(outputs)}: return the losses in a dict, or leave `keys` out"
        )
    for key in keys:
        if key not in outputs:
            raise ValueError(
                f"`{place}` must have the loss {key!r} for MeanLoss, and has not: "
                f"{did_you_mean(key, map(str, outputs))}"
            )
    return [_as_scalar(outputs[key], f"{place}[{key!r}]") for key in keys]


def _as_scalar(value: Any, place: str) -> Any:
    """Returns a number, or a tensor of one element without dimensions and without a graph."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if isinstance(value, Real):
        return float(value)
    raise ValueError(
        f"`{place}` must be a scalar for MeanLoss, got {describe_value(value)}: reduce it, with "
        ".mean() for instance"
    )
