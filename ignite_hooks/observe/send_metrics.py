"""Sends the metrics of a run to experiment trackers, such as TensorBoard, W&B or MLflow."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary
from weakref import WeakSet
from weakref import ref

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import ProgressBar
from ignite.handlers.base_logger import BaseLogger

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import ProjectName
from ignite_hooks.core.fields import Runtime
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.handler import check_not_attached
from ignite_hooks.core.handler import record_attachment
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.observe.hyperparameters import flattened
from ignite_hooks.observe.hyperparameters import hyperparameters_of
from ignite_hooks.observe.plain_values import plain_values
from ignite_hooks.observe.reports import Report
from ignite_hooks.observe.reports import Reports
from ignite_hooks.observe.steps import optimizer_step_of
from ignite_hooks.observe.trackers import Scalar
from ignite_hooks.observe.trackers import Tracker
from ignite_hooks.observe.trackers import resume_arguments
from ignite_hooks.observe.trackers import tracker_for
from ignite_hooks.processes.host_group import is_main_process

__all__ = ["SendMetrics"]

_LIMITS = ("max_epochs", "max_iters", "max_steps")


@checked_dataclass(kw_only=False)
class SendMetrics(Handler):
    """Sends the new values of ``state.metrics`` to experiment trackers.

    ::

        accelerator = Accelerator(log_with="wandb")
        trainer = create_supervised_trainer(
            ..., accelerator=accelerator, handlers=[MeanLoss(), SendMetrics(project="digits")]
        )
        trainer.run(max_epochs=10)
        accelerator.end_training()

    Values are sent after every ``every_steps`` steps, after each validation, and at the end of each
    epoch and of the run. The x axis is ``state.optimizer_step``, for the metrics of training and of
    validations alike. On an engine without an ``OptimizerStep``, the x axis is ``state.iteration``.
    A report reads the values of tensors, so it synchronizes with the device. With several
    processes, rank 0 alone sends; on the other ranks the handler does nothing.

    *What is sent.* A metric has the same name as in ``state.metrics``. The items of lists and dicts
    are sent as "name/0" and "name/key". A text is sent as a text, or is left out with one warning
    if the tracker takes only numbers. MLflow refuses some characters in names; they become "_".
    When a run begins, its settings are sent as hyperparameters: those of optimizer, scheduler,
    data, precision and handlers, the limits of the run, and ``config``.

    *Who starts the trackers.* If ``accelerator.init_trackers`` was not called, the handler calls it
    when the run begins. Each new run then gets new tracker runs. A run that resumes from a
    checkpoint continues the tracker runs of the checkpoint, so its curves continue. This needs
    TensorBoard, W&B, MLflow, trackio, or a tracker class with an attribute and an argument
    ``run_id``. Other trackers begin a new tracker run. A step that is repeated after a crash is
    there once: TensorBoard shows the later numbers; W&B, MLflow and trackio keep the earlier ones.
    (TensorBoard shows a text of such a step twice. W&B and trackio lack the results of a validation
    that crashed. Other trackers get a repeated step twice.) To send a resumed run to new tracker
    runs, give another ``project``. If you have called ``init_trackers`` yourself, or give
    an Ignite logger, the handler cannot choose the tracker run. It warns if a resumed run goes to
    another tracker run than the checkpoint.

    *Who ends the trackers.* Tracker runs stay open after training, so that you can log further
    values. Call ``accelerator.end_training()`` at the end of the script. If the training continues
    after it, the handler opens the tracker runs again. The handler itself ends a tracker run only
    if it has started the tracker run, and starts another one.

    *Failures.* If a tracker cannot be started, the run fails before its first batch. If a tracker
    fails later, one warning is given, the training continues, and the next values are sent again.

    Args:
        to: an ``Accelerator``, one of Accelerate's trackers (``accelerator.get_tracker(name)``), or
            a logger of Ignite, such as ``TensorboardLogger``. Default: the accelerator of the
            trainer, which must have been made with ``log_with``.
        every_steps: the number of committed steps from one report to the next.
        project: the name of the project in the trackers that the handler starts. For TensorBoard
            the project is a folder in the accelerator's ``project_dir``.
        config: further settings to send.
        init_kwargs: arguments of trackers that the handler starts, by the name of the tracker, as
            in ``accelerator.init_trackers``: ``{"wandb": {"tags": ["baseline"]}}``.

    Raises:
        ValueError: an argument is out of its range. When attached: an event is given; there is no
            tracker; the handler is attached already; or another ``SendMetrics`` of the engine sends
            to the same trackers. When the run begins: another running engine sends to the trackers
            of the accelerator; or a tracker that the handler has not started has ended.
        TypeError: ``to`` is none of these objects.
    """

    to: Runtime = None
    _: KW_ONLY
    every_steps: Every = 10
    project: ProjectName = "training"
    config: dict[str, Any] | None = None
    init_kwargs: dict[str, dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Checks the type of ``to``."""
        is_allowed = isinstance(self.to, Accelerator | GeneralTracker | BaseLogger)
        if isinstance(self.to, ProgressBar) or not (is_allowed or self.to is None):
            raise TypeError(
                "`to` must be an Accelerator, a tracker of Accelerate or a logger of Ignite, got "
                f"{shown_type(self.to)}: leave it out for the trackers of the accelerator"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the identifiers of the tracker runs, and the names of values not yet sent."""
        return _sender_of(self).state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue the saved tracker runs."""
        _sender_of(self).load_state_dict(state_dict)

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that no event is given, that there are trackers, and that no other sends there."""
        if event is not None:
            raise ValueError(
                f"`event` must be left out, got {event}: SendMetrics sends every `every_steps` "
                "steps, and after validations and epochs"
            )
        check_not_attached(self, "two engines count their steps separately")
        destination = _destination(self.to, engine)
        _check_destination(destination, engine)
        self._check_init_kwargs(destination)
        others = attached_handlers(engine, SendMetrics)
        if destination and any(_destination(o.to, engine) is destination for o in others):
            raise ValueError(
                "two SendMetrics of one engine must not send to the same trackers, which would get "
                "each value twice: remove() the other attachment"
            )

    def _check_init_kwargs(self, destination: Any) -> None:
        """Checks that ``init_kwargs`` names trackers that the handler starts."""
        names: list[str] = []
        if isinstance(destination, Accelerator) and (
            destination in _started or not destination.trackers
        ):
            trackers = (each for each in destination.log_with if not hasattr(each, "tracker"))
            names = [*map(str, trackers)]
        for name in self.init_kwargs or {}:
            if name not in names:
                raise ValueError(
                    "`init_kwargs` must name trackers that SendMetrics starts, got arguments for "
                    f"{name!r}: {did_you_mean(name, names)}"
                )

    def attach_to(self, attachment: Attachment) -> None:
        """Starts the trackers when a run begins, and sends the values of each report."""
        record_attachment(attachment)
        sender = _sender_of(self)
        reports = Reports(attachment, self.every_steps, sender.report)
        sender.reports = ref(reports)  # the callbacks of the attachment hold the reports
        attachment.on(Events.STARTED, sender.begin_run, turn=Turn.NOTE)
        # A resume has restored the handlers before EPOCH_STARTED.
        attachment.on(Events.EPOCH_STARTED, sender.start, turn=Turn.REPORTS)


class _Sender:
    """The part of a ``SendMetrics`` that changes during a run.

    Args:
        handler: the handler, which is not kept.

    Attributes:
        reports: returns the ``Reports`` of the present attachment, or None.
    """

    def __init__(self, handler: SendMetrics) -> None:
        self._to, self._project = handler.to, handler.project
        self._config, self._init_kwargs = handler.config or {}, handler.init_kwargs or {}
        self.reports: Any = lambda: None
        self._forget()

    def _forget(self) -> None:
        self._trackers: list[Tracker] | None = None  # None until they are started
        self._runs: dict[str, str] = {}  # their tracker runs, by the names of the trackers
        self._saved: Mapping[str, Any] | None = None  # the loaded state, if the run was resumed
        self._has_sent = False  # since the state was loaded
        # What is not sent yet: index of the tracker, step and values. A report of a run that ends
        # before its limit waits here. If the run continues in this process, the report is sent.
        self._queue: list[tuple[int, int, dict[str, Any]]] = []
        self._warned: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Returns the identifiers of the tracker runs by the names of the trackers."""
        runs = dict(self._saved_runs() if self._trackers is None else self._runs)
        reports = self.reports()
        unsent = {"unreported": []} if reports is None else reports.state_dict()
        return {"project": self._project, "runs": runs, "reports": unsent}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next ``start`` continue the saved tracker runs.

        A resume in the middle of an epoch calls this method twice. The second call must not start
        the trackers again.
        """
        if self._has_sent or self._saved != state_dict:
            self._forget()
            self._saved = state_dict
        self._queue = []
        reports = self.reports()
        if reports is not None:
            reports.load_state_dict(state_dict["reports"])

    def _saved_runs(self) -> Mapping[str, str]:
        """Returns the saved tracker runs that are to be continued."""
        saved = self._saved
        is_accelerator = self._to is None or isinstance(self._to, Accelerator)
        if saved is None or (is_accelerator and saved["project"] != self._project):
            return {}
        runs: Mapping[str, str] = saved["runs"]
        return runs

    def begin_run(self, engine: Engine) -> None:
        """Forgets the trackers of an earlier run, and trackers that were ended since."""
        if engine.state.iteration == 0:
            self._forget()
        elif self._trackers is not None and not self._are_open(self._trackers, engine):
            self._saved, self._trackers = self.state_dict(), None  # `start` continues these runs

    def _are_open(self, trackers: list[Tracker], engine: Engine) -> bool:
        destination = _destination(self._to, engine)
        is_accelerator = isinstance(destination, Accelerator)
        return not any(
            each.has_ended or (is_accelerator and each.source not in destination.trackers)
            for each in trackers
        )

    def report(self, engine: Engine, report: Report) -> None:
        """Sends the values of a report."""
        if not _is_rank_0(engine, self._to):
            return
        self.start(engine)
        values = flattened(plain_values(report.metrics), with_lists=True)
        step = _step(engine)
        self._queue += [(index, step, values) for index in range(len(self._trackers or ()))]
        # At the end of a run that a signal stops in the middle of an epoch, MeanLoss reports a mean
        # over fewer steps. An unbroken run has no such point. So the point is sent only if this
        # process continues, or if the run is finished.
        if report.reason != "end" or not _may_be_resumed(engine):
            self._send_queue(engine)

    def start(self, engine: Engine) -> None:
        """Starts the trackers on rank 0, continues saved tracker runs, and sends the settings."""
        if self._trackers is not None or not _is_rank_0(engine, self._to):
            return
        saved = self._saved_runs()
        destination = _destination(self._to, engine)
        if isinstance(destination, Accelerator):
            sources = self._trackers_of(destination, engine, saved)
        else:
            sources = [destination]
        trackers = _open_trackers([tracker_for(source) for source in sources])
        runs = {each.name: each.run_id for each in trackers}
        settings: dict[str, Scalar] | None = None
        for tracker in trackers:
            run_id = runs[tracker.name]
            continues = run_id is not None and saved.get(tracker.name) == run_id
            self._warn_of_other_run(tracker, saved.get(tracker.name), run_id)
            if continues:
                tracker.continue_after(_step(engine))
            if not continues or tracker.updates_settings:
                if settings is None:
                    settings = hyperparameters_of(engine, self._config)
                self._store_settings(tracker, settings)
        self._runs = {name: run_id for name, run_id in runs.items() if run_id is not None}
        self._trackers = trackers

    def _trackers_of(
        self, accelerator: Accelerator, engine: Engine, saved: Mapping[str, str]
    ) -> list[Any]:
        """Returns the trackers of an accelerator. Starts them, except if a user has started them.

        Raises:
            ValueError: the trackers are in use by another engine, which is running.
        """
        started = _started.get(accelerator)
        present = accelerator.trackers
        if started is not None and present and all(each in started.trackers for each in present):
            owner = started.engine()
            if owner is not None and owner is not engine and is_running(owner):
                raise ValueError(
                    "two engines that run at the same time must not send to the trackers of one "
                    "accelerator, because each new run starts new tracker runs: give one of them "
                    "another Accelerator, SendMetrics(to=Accelerator(log_with=…))"
                )
            _finish(accelerator)
        if not accelerator.trackers:
            self._init_trackers(accelerator, saved)
            _started[accelerator] = _Started(list(accelerator.trackers), engine)
        return list(accelerator.trackers)

    def _init_trackers(self, accelerator: Accelerator, saved: Mapping[str, str]) -> None:
        arguments = {name: resume_arguments(name, run_id) for name, run_id in saved.items()}
        names = {*arguments, *self._init_kwargs}
        merged = {n: {**arguments.get(n, {}), **self._init_kwargs.get(n, {})} for n in names}
        if "tensorboard" not in saved:
            self._warn_of_used_folder(accelerator)
        try:
            accelerator.init_trackers(self._project, init_kwargs=merged)
        except BaseException:
            _finish(accelerator)  # otherwise the next attempt would start some trackers twice
            raise

    def _warn_of_used_folder(self, accelerator: Accelerator) -> None:
        """Warns if TensorBoard's folder has the points of another run."""
        folder = Path(accelerator.logging_dir or "") / self._project
        is_used = "tensorboard" in map(str, accelerator.log_with)
        if is_used and any(folder.glob("events.out.tfevents.*")):
            warnings.warn(
                f"{folder} has the points of an earlier run: TensorBoard draws the curves of both "
                "runs as one; give SendMetrics another `project`",
                stacklevel=2,
            )

    def _warn_of_other_run(self, tracker: Tracker, before: str | None, now: str | None) -> None:
        """Warns if the tracker run is not the one that the user may expect.

        Args:
            tracker: the tracker.
            before: the tracker run of the checkpoint or of the former ``run()``, or None.
            now: the present tracker run, or None.
        """
        if before is not None and before != now:
            warnings.warn(
                f"{tracker.name}: the run was sent to the tracker run {before}, and its metrics "
                f"are now sent to {now}: the curves begin there at the present step; let "
                "SendMetrics start the trackers, or start them with the former run",
                stacklevel=2,
            )
        elif self._saved is None and tracker.source in _used:
            warnings.warn(
                f"{tracker.name}: a new run sends its metrics to a tracker run that has those of "
                "an earlier run, so its curves go back to step 0; let SendMetrics start the "
                "trackers, or start another tracker run before each run",
                stacklevel=2,
            )

    def _store_settings(self, tracker: Tracker, settings: Mapping[str, Scalar]) -> None:
        try:
            tracker.store_settings(settings)
        except Exception as error:
            self._warn_once(
                f"{tracker.name}: the settings of the run could not be sent "
                f"({type(error).__name__}: {error}): they are missing in the tracker run"
            )

    def _send_queue(self, engine: Engine) -> None:
        axis = "iteration" if optimizer_step_of(engine) is None else "optimizer_step"
        while self._queue and self._trackers:
            index, step, values = self._queue[0]
            self._send(self._trackers[index], step, values, axis)
            self._has_sent = True
            del self._queue[0]  # last, so that Ctrl-C loses no values

    def _send(self, tracker: Tracker, step: int, values: dict[str, Any], axis: str) -> None:
        """Sends values to one tracker. If this fails, warns the first time."""
        if not tracker.takes_text:
            texts = [name for name, value in values.items() if isinstance(value, str)]
            for name in texts:
                self._warn_once(
                    f"{tracker.name} takes only numbers: the metric {name!r} is not sent, because "
                    "it is a text"
                )
            values = {name: value for name, value in values.items() if name not in texts}
        if not values:
            return
        _used.add(tracker.source)
        try:
            tracker.send(values, step, axis)
        except Exception as error:
            self._warn_once(
                f"{tracker.name}: the metrics of step {step} could not be sent "
                f"({type(error).__name__}: {error}): the curves have a gap there, and training "
                "continues; further failures are not reported",
                key=tracker.name,
            )

    def _warn_once(self, message: str, key: str | None = None) -> None:
        key = key or message
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=2)


class _Started:
    """The trackers that a ``SendMetrics`` has started, and a weak reference to its engine."""

    def __init__(self, trackers: list[Any], engine: Engine) -> None:
        self.trackers, self.engine = trackers, ref(engine)


_senders: WeakKeyDictionary[SendMetrics, _Sender] = WeakKeyDictionary()
_started: WeakKeyDictionary[Accelerator, _Started] = WeakKeyDictionary()
_used: WeakSet[Any] = WeakSet()  # trackers and loggers that have got values


def _sender_of(handler: SendMetrics) -> _Sender:
    """Returns the sender of a handler, which is no field, so that the handler stays frozen."""
    if handler not in _senders:
        _senders[handler] = _Sender(handler)
    return _senders[handler]


def _step(engine: Engine) -> int:
    """Returns the position on the x axis."""
    state: Any = engine.state
    has_steps = optimizer_step_of(engine) is not None
    return int(state.optimizer_step if has_steps else state.iteration)


def _destination(to: Any, engine: Engine) -> Any:
    """Returns the accelerator, the tracker or the logger that gets the values, or None."""
    step = optimizer_step_of(engine)
    return to if to is not None or step is None else step.accelerator


def _open_trackers(trackers: list[Tracker]) -> list[Tracker]:
    """Returns the trackers without ended ones that the user has started again.

    Accelerate keeps ended trackers: a second ``init_trackers`` adds the new trackers to them.

    Raises:
        ValueError: a tracker has ended, and was not started again.
    """
    names = {each.name for each in trackers if not each.has_ended}
    for each in trackers:
        if each.has_ended and each.name not in names:
            raise ValueError(
                f"the trackers must be open when a run begins, but the run of {each.name} has "
                "ended: start the tracker again before trainer.run(), with init_trackers or as a "
                "new logger"
            )
    return [each for each in trackers if not each.has_ended]


def _finish(accelerator: Accelerator) -> None:
    """Ends the tracker runs of an accelerator."""
    for tracker in accelerator.trackers:
        with suppress(Exception):  # the user may have ended the tracker, or it was not started
            tracker.finish()
    accelerator.trackers = []


def _is_rank_0(engine: Engine, to: Any) -> bool:
    destination = _destination(to, engine)
    return is_main_process(destination if isinstance(destination, Accelerator) else None)


def _check_destination(destination: Any, engine: Engine) -> None:
    """Raises an error on rank 0 if there is no tracker."""
    if not _is_rank_0(engine, destination):
        return  # where nothing is sent, and a logger is not needed
    if destination is None:
        raise ValueError(
            "`to` must be given on an engine without an OptimizerStep, got None: pass an "
            "Accelerator that was made with `log_with`, or a logger of Ignite"
        )
    has_trackers = not isinstance(destination, Accelerator) or (
        destination.log_with or destination.trackers
    )
    if not has_trackers:
        raise ValueError(
            "`to` must have trackers, got an Accelerator without any: make it with `log_with`, "
            'Accelerator(log_with="wandb") for example, and install the package of the tracker '
            "(pip install wandb)"
        )


def _may_be_resumed(engine: Engine) -> bool:
    """Returns whether the run of a trainer ends before its limit, and can be continued."""
    return is_trainer(engine) and engine.ended_by is None and engine.stop_reason not in _LIMITS
