"""Experiment trackers: Accelerate's trackers and Ignite's loggers, with one interface for all.

A *tracker run* is the tracker's record of a run of training, for example a run of W&B. TensorBoard
has a folder instead. The points of a metric in a tracker run are its *curve*.

A training run that crashed may have sent points of steps after its last checkpoint. The run that
resumes from the checkpoint repeats these steps. ``Tracker.continue_after`` prevents that the curves
get the points twice: TensorBoard can hide the former points. The other trackers cannot, so the
repeated points are not sent.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from typing import TypeAlias
from typing import TypeVar

from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.tracking import MLflowTracker
from accelerate.tracking import TensorBoardTracker
from accelerate.tracking import WandBTracker
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers.base_logger import BaseLogger
from ignite.handlers.mlflow_logger import MLflowLogger
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.handlers.wandb_logger import WandBLogger

__all__ = ["Scalar", "Tracker", "resume_arguments", "tracker_for"]

Scalar: TypeAlias = bool | int | float | str
ValueT = TypeVar("ValueT")

TAG = "metrics"
"""The title of all curves in an Ignite logger that this module has no class for."""


class Tracker:
    """A tracker of Accelerate that has no subclass here, for example a tracker of the user.

    Args:
        source: Accelerate's tracker, or Ignite's logger.

    Attributes:
        takes_text: whether texts can be sent, and not only numbers.
        updates_settings: whether a resumed run stores its settings in the tracker run again.
    """

    takes_text = True
    updates_settings = False

    def __init__(self, source: Any) -> None:
        self.source = source

    @property
    def name(self) -> str:
        """The name of the tracker, by which a checkpoint finds the run of the tracker again."""
        return str(getattr(self.source, "name", None) or type(self.source).__name__)

    @property
    def run_id(self) -> str | None:
        """The identifier of the tracker run; None if the tracker has none.

        A tracker class of the user gives the identifier as an attribute ``run_id``.
        """
        identifier = getattr(self.source, "run_id", None)
        return None if identifier is None else str(identifier)

    @property
    def has_ended(self) -> bool:
        """True if the tracker run has ended, so that it takes no more points."""
        return False

    def send(self, values: Mapping[str, Scalar], step: int, axis: str) -> None:
        """Adds a point to the curve of each metric.

        Args:
            values: the values of the metrics; numbers only, if ``takes_text`` is False.
            step: the position on the x axis.
            axis: the name of the x axis.
        """
        self.source.log(dict(values), step=step)

    def store_settings(self, settings: Mapping[str, Scalar]) -> None:
        """Stores the settings of the training run as hyperparameters of the tracker run."""
        self.source.store_init_configuration(dict(settings))

    def continue_after(self, step: int) -> None:
        """Prepares the tracker for a training run that resumes after ``step``.

        Called if the tracker run already has the points up to ``step``, and maybe points of later
        steps.
        """


class _TensorBoard(Tracker):
    """A folder of TensorBoard. ``source`` is Accelerate's tracker or Ignite's logger."""

    @property
    def name(self) -> str:
        return "tensorboard"

    @property
    def _writer(self) -> Any:  # a SummaryWriter of torch, or of tensorboardX
        return self.source.writer

    @property
    def run_id(self) -> str:
        folder = getattr(self._writer, "log_dir", None) or self._writer.logdir
        return str(Path(folder).absolute())

    def send(self, values: Mapping[str, Scalar], step: int, axis: str) -> None:
        for name, value in values.items():
            add = self._writer.add_text if isinstance(value, str) else self._writer.add_scalar
            add(name, value, global_step=step)
        self._writer.flush()

    def store_settings(self, settings: Mapping[str, Scalar]) -> None:
        if isinstance(self.source, TensorBoardTracker):
            super().store_settings(settings)
        else:
            self._writer.add_hparams(dict(settings), {})

    def continue_after(self, step: int) -> None:
        """Hides the points of later steps, as the argument ``purge_step`` of a writer does."""
        if type(self._writer).__module__.startswith("tensorboardX"):
            from tensorboardX.proto.event_pb2 import Event
            from tensorboardX.proto.event_pb2 import SessionLog
        else:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.event_pb2 import SessionLog
        # `purge_step` itself cannot be used, because a user may have made the writer. The method
        # `_get_file_writer` opens the file of a writer that was closed.
        start = Event(session_log=SessionLog(status=SessionLog.START))
        self._writer._get_file_writer().add_event(start, step + 1)


class _SkipsRepeatedSteps(Tracker):
    """A tracker whose points cannot be hidden or removed."""

    _resumed_after: int | None = None
    _last_steps: Mapping[str, int]  # of the curves, when the training run resumed

    def _find_last_steps(self) -> Mapping[str, int]:
        """Returns the last step of each curve by its name; -1 for a name that has no curve."""
        raise NotImplementedError

    def continue_after(self, step: int) -> None:
        self._resumed_after, self._last_steps = step, self._find_last_steps()

    def _without_repeated(self, values: Mapping[str, ValueT], step: int) -> dict[str, ValueT]:
        """Returns the values whose curves have no point of ``step`` yet.

        The curves differ: if a validation crashed, the losses of its step were sent before.

        The step of the checkpoint itself is not repeated. If it has points after a resume, these
        are those of a validation that a stop had broken off.
        """
        is_new = self._resumed_after is None or step <= self._resumed_after
        return {k: v for k, v in values.items() if is_new or step > self._last_steps[k]}


class _WandB(_SkipsRepeatedSteps):
    """A run of W&B. ``source`` is Accelerate's tracker or Ignite's logger.

    W&B drops points whose step is smaller than that of a point before. Other code that logs to the
    run may have gone further: without an explicit step, each call of ``wandb.log`` counts as a
    step. So the step of the training run is sent as a metric of its own, and is the x axis.
    """

    updates_settings = True  # the settings of a run can be overwritten

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._defined: set[str] = set()

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def _run(self) -> Any:  # a Run of wandb
        return self.source.run

    @property
    def run_id(self) -> str:
        return str(self._run.id)

    @property
    def has_ended(self) -> bool:
        # W&B has no public name for this. A point of a run that has ended waits for 30 s, and is
        # lost. Ignite's logger has no run any longer.
        return bool(getattr(self._run, "_is_finished", self._run is None))

    def send(self, values: Mapping[str, Scalar], step: int, axis: str) -> None:
        values = self._without_repeated(values, step)
        if not values:
            return
        # In the call, "*" would stand for any characters.
        for name in [each for each in values if each not in self._defined and "*" not in each]:
            self._run.define_metric(name, step_metric=axis)
            self._defined.add(name)
        self._run.log({**values, axis: step}, step=max(step, self._run.step))

    def store_settings(self, settings: Mapping[str, Scalar]) -> None:
        self._run.config.update(dict(settings), allow_val_change=True)

    def _find_last_steps(self) -> Mapping[str, int]:
        # W&B gives the last values of a run that is resumed, without their steps. So the last step
        # of the run counts for each curve. An offline run has no last values.
        steps = (self._run.summary.get(axis) for axis in ("optimizer_step", "iteration"))
        last = max((int(step) for step in steps if step is not None), default=-1)
        return defaultdict(lambda: last)


class _MLflow(_SkipsRepeatedSteps):
    """A run of MLflow. ``source`` is Accelerate's tracker or Ignite's logger."""

    takes_text = False

    @property
    def name(self) -> str:
        return "mlflow"

    @property
    def run_id(self) -> str:
        return str(self.source.active_run.info.run_id)

    def send(self, values: Mapping[str, Scalar], step: int, axis: str) -> None:
        import mlflow
        from mlflow.utils.validation import MAX_METRICS_PER_BATCH

        clean = {_mlflow_name(name): value for name, value in values.items()}
        for part in _parts(self._without_repeated(clean, step), MAX_METRICS_PER_BATCH):
            mlflow.log_metrics(part, step=step, run_id=self.run_id)

    def store_settings(self, settings: Mapping[str, Scalar]) -> None:
        import mlflow
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH
        from mlflow.utils.validation import MAX_PARAMS_TAGS_PER_BATCH

        texts = {_mlflow_name(k): str(v)[:MAX_PARAM_VAL_LENGTH] for k, v in settings.items()}
        client = mlflow.MlflowClient()
        for part in _parts(texts, MAX_PARAMS_TAGS_PER_BATCH):
            params = [mlflow.entities.Param(name, text) for name, text in part.items()]
            client.log_batch(self.run_id, params=params)

    def _find_last_steps(self) -> Mapping[str, int]:
        import mlflow

        client = mlflow.MlflowClient()
        names = client.get_run(self.run_id).data.metrics
        history = {name: client.get_metric_history(self.run_id, name) for name in names}
        last = {name: max(point.step for point in points) for name, points in history.items()}
        return defaultdict(lambda: -1, last)


class _Trackio(_SkipsRepeatedSteps):
    """A run of trackio. ``source`` is Accelerate's tracker."""

    updates_settings = True  # the first point after a resume overwrites the settings of the run

    @property
    def run_id(self) -> str:
        return str(self.source.run.name)  # by which trackio resumes a run

    def send(self, values: Mapping[str, Scalar], step: int, axis: str) -> None:
        from trackio.utils import RESERVED_KEYS

        new = self._without_repeated(values, step)
        if new:
            clean = {
                f"{TAG}/{name}" if name in RESERVED_KEYS or name[:2] == "__" else name: value
                for name, value in new.items()
            }
            self.source.run.log(clean, step=step)

    def store_settings(self, settings: Mapping[str, Scalar]) -> None:
        self.source.run.config.update(settings)

    def _find_last_steps(self) -> Mapping[str, int]:
        # Trackio tells only the last step of a run, not of a curve, and has no public name for it.
        # Without this number, no point is left out.
        last = int(getattr(self.source.run, "_next_step", 0)) - 1
        return defaultdict(lambda: last)


class _IgniteLogger(Tracker):
    """Any other logger of Ignite, by the interface of ``BaseLogger``.

    A logger of Ignite reads metrics from the state of an engine. So the values are put into the
    state of an engine that has no other purpose. ``BaseLogger`` has no way to store settings.
    """

    takes_text = False

    def __init__(self, source: BaseLogger) -> None:
        super().__init__(source)
        self._engine = Engine(lambda engine, batch: None)
        self._step = 0
        source.attach_output_handler(
            self._engine,
            event_name=Events.ITERATION_COMPLETED,
            tag=TAG,
            metric_names="all",
            global_step_transform=lambda engine, event: self._step,
        )

    @property
    def name(self) -> str:
        return type(self.source).__name__

    @property
    def run_id(self) -> None:
        # Many loggers look up unknown attributes in a module, so no attribute can be relied on.
        return None

    def send(self, values: Mapping[str, Scalar], step: int, axis: str) -> None:
        self._step = step
        self._engine.state.metrics = dict(values)
        self._engine.fire_event(Events.ITERATION_COMPLETED)

    def store_settings(self, settings: Mapping[str, Scalar]) -> None:
        pass


_CLASSES: list[tuple[type | None, Callable[[Any], Tracker]]] = [
    (TensorBoardTracker, _TensorBoard),
    (TensorboardLogger, _TensorBoard),
    (WandBTracker, _WandB),
    (WandBLogger, _WandB),
    (MLflowTracker, _MLflow),
    (MLflowLogger, _MLflow),
    (getattr(tracking, "TrackioTracker", None), _Trackio),  # older versions of Accelerate lack it
    (GeneralTracker, Tracker),
    (BaseLogger, _IgniteLogger),
]


def tracker_for(source: GeneralTracker | BaseLogger) -> Tracker:
    """Returns the ``Tracker`` for a tracker of Accelerate or a logger of Ignite."""
    return next(make(source) for cls, make in _CLASSES if cls and isinstance(source, cls))


def resume_arguments(name: str, run_id: str) -> dict[str, Any]:
    """Returns the arguments by which Accelerate's tracker ``name`` continues a tracker run.

    A tracker class of the user gets the argument ``run_id``, as Accelerate's ``MLflowTracker``.
    """
    if name == "tensorboard":
        return {}  # the folder is given by the project
    if name == "wandb":
        return {"id": run_id, "resume": "allow"}
    if name == "trackio":
        return {"name": run_id, "resume": "allow"}
    return {"run_id": run_id}


def _mlflow_name(name: str) -> str:
    """Returns a name that MLflow accepts: other characters become "_"."""
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH

    path = posixpath.normpath("/" + re.sub(r"[^\w.\- /]", "_", name)).strip("/")
    return path[:MAX_ENTITY_KEY_LENGTH].rstrip("/") or "_"


def _parts(values: Mapping[str, ValueT], size: int) -> Iterator[dict[str, ValueT]]:
    """Divides a mapping into dicts with at most ``size`` items."""
    items = iter(values.items())
    while part := dict(islice(items, size)):
        yield part
