"""Validation on a schedule within training, which leaves the training unchanged."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from contextlib import suppress
from typing import Any
from weakref import ref

import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.accelerators import prepared_models
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.due_on_resume import add_due_entry
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import fire_within
from ignite_hooks.core.engine import handlers_of
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.engine import set_turn
from ignite_hooks.core.fields import Batches
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Prefix
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Scheduled
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.stale_metrics import completed_validations
from ignite_hooks.core.stale_metrics import measured_at
from ignite_hooks.core.stop_requests import ValidationStopped
from ignite_hooks.core.time_accounts import charged_to
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.data.active_loader import deactivated
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.prepare import prepare_source
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.run_generators import generators_of_run
from ignite_hooks.evaluation.evaluations import Evaluations
from ignite_hooks.evaluation.modes import buffers_of_rank_0
from ignite_hooks.evaluation.modes import gradients_kept
from ignite_hooks.evaluation.modes import modes_kept
from ignite_hooks.evaluation.stop_check import NEVER_STOPS
from ignite_hooks.evaluation.stop_check import StopCheck
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.event_channels import channels_of
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["Validation", "ValidationSchedule", "validations_of", "validations_without_result"]


@checked_dataclass
class ValidationSchedule:
    """The fields of a ``Validation`` that are plain data: all but the evaluator and its data.

    Args:
        every_steps: the number of committed steps from one validation to the next. A committed step
            is an optimizer step that the loss scaler did not skip. On an engine without an
            ``OptimizerStep`` handler, iterations are counted instead.
        every_epochs: the number of completed epochs from one validation to the next.
        at_start: whether to validate before the first epoch. A resumed run does not repeat this
            validation.
        prefix: the beginning of the names in ``state.metrics``.
        max_batches: the largest number of batches that each process evaluates, for each set of
            data; None for all.

    Raises:
        ValueError: an argument is out of its range.
    """

    every_steps: Every | None = None
    every_epochs: Every | None = None
    at_start: Flag = False
    prefix: Prefix = "val_"
    max_batches: Batches | None = None


@checked_dataclass(kw_only=False)
class Validation(ValidationSchedule, Scheduled):
    """Evaluates in the middle of training, and leaves the training unchanged.

    Without this class, an evaluation changes the training in three ways: an evaluator on a prepared
    loader switches gradient accumulation off, ``model.train()`` after the evaluation puts frozen
    submodules into training mode, and every random number that the evaluation draws shifts the
    random numbers of training. ``Validation`` restores gradient accumulation, data order, random
    generators and each submodule's mode, even if the evaluation fails or is broken off. Handlers of
    the VALIDATION events may draw random numbers without shifting those of training.

    The evaluation runs in eval mode and without gradients. Code that needs gradients can enable
    them with ``torch.enable_grad()``. These models are put into eval mode: the models of the
    evaluators, the ``model`` of the engine, and the models that were prepared with the accelerator
    of the engine's ``OptimizerStep`` handler.

    If several Validations of an engine are due at the same step or epoch, they run as one:
    VALIDATION_STARTED and VALIDATION_COMPLETED fire once, and the results are written to
    ``state.metrics`` together. The results replace the metrics of earlier validations, which are
    stale, because they were measured with other weights.

    On a trainer, a validation that is due by step runs at STEP_COMPLETED, after the other handlers
    and before the save of a checkpoint. A validation that is due by epoch, or by the last step of
    an epoch, runs at EPOCH_COMPLETED, after Ignite's metrics and before all other handlers.

    A Validation that is attached to an event with ``attach(engine, event)`` runs separately, in
    order of attachment among the handlers of the event.

    A signal that asks a trainer to stop (``SaveCheckpoint(on_signals=…)``) breaks an evaluator off
    between two batches. The results are dropped, and neither VALIDATION_COMPLETED nor the
    evaluator's COMPLETED is fired. Context managers that a user has registered on the channel
    ``on_validation`` are left as usual, without an exception.

    When the run stops, it saves a checkpoint that records the validation as due. The resumed run
    begins with this validation. If the validation was due at the end of an epoch, the resumed run
    begins with the end of this epoch. The handlers of VALIDATION_STARTED and of the evaluators are
    called again.

    In these cases the stop is delayed, because the evaluation could not be broken off and repeated:

    - A callable is running. If an evaluator is to run after the callable, the validation is broken
      off before this evaluator.
    - The Validation is attached to an event, or a handler of the user calls ``evaluator.run()``.
    - A handler of VALIDATION_STARTED or of an evaluator has swapped other weights in. To avoid the
      delay, swap the weights in a context on ``on_validation`` instead.

    Args:
        evaluate: an evaluator engine, or a callable that takes either no argument or the model. If
            the callable returns a mapping, the items are its metrics. A callable without metrics
            returns None. For any other result a warning is given, because no metric is written. To
            use several evaluators or callables, pass a mapping from names to them. The metric ``m``
            is then in ``state.metrics`` as ``val_<name>_m``.
        data: the data that evaluators run on. The metric ``m`` is in ``state.metrics`` as
            ``val_m``. To use several sets of data, pass a mapping from names to them. The metric is
            then ``val_<name of the data>_m``, or with several evaluators
            ``val_<name>_<name of the data>_m``.
        every_steps: the number of committed steps from one validation to the next. A committed step
            is an optimizer step that the loss scaler did not skip. On an engine without an
            ``OptimizerStep`` handler, iterations are counted instead.
        every_epochs: the number of completed epochs from one validation to the next.
        at_start: whether to validate before the first epoch. A resumed run does not repeat this
            validation.
        prefix: the beginning of the names in ``state.metrics``.
        max_batches: the largest number of batches that each process evaluates, for each set of
            data; None for all. It must be given for data of unknown length, which may be endless.

    Raises:
        TypeError: ``evaluate`` is neither an engine nor a callable of the form ``f()`` or
            ``f(model)``.
        ValueError: an evaluator has no data; data have an unknown length, and ``max_batches`` is
            not given; a callable has data; the handler is attached without an event, and has no
            schedule.
    """

    evaluate: Any
    data: Any = None

    def __post_init__(self) -> None:
        """Checks ``evaluate`` and ``data``."""
        self.evaluations.check()

    @property
    def evaluations(self) -> Evaluations:
        """The evaluators and callables with their data."""
        return Evaluations(self.evaluate, self.data, self.prefix, self.max_batches)

    def check(self, engine: Engine, event: Any) -> None:
        """Raises a ValueError if this handler cannot be attached to ``engine``.

        There must be a schedule or an event. ``engine`` must not be one of the evaluators, and must
        have a model if a callable takes the model.
        """
        if event is None and not (self.every_steps or self.every_epochs or self.at_start):
            raise ValueError(
                "a Validation must have a schedule, but `every_steps`, `every_epochs` and "
                "`at_start` are not given: every_epochs=1 is the usual choice"
            )
        if any(each is engine for each in self.evaluations.engines):
            raise ValueError(
                "`evaluate` must not be the engine to which the Validation is attached: pass "
                "create_supervised_evaluator(model, metrics)"
            )
        if self.evaluations.needs_model and not hasattr(engine, "model"):
            raise ValueError(
                "`evaluate` takes the model, and this engine has none to give: pass a callable "
                "without argument, lambda: evaluate(model)"
            )

    def attach(self, engine: Engine, event: Any = None) -> Attachment:
        """Attaches the handler, and registers the VALIDATION events with ``engine``."""
        # The events and channels must exist before a user attaches handlers and contexts to them.
        # They are made here and not in attach_to(), because attach_to() is not called if `event` is
        # given.
        TrainEvents.register(engine)
        channels_of(engine)
        return super().attach(engine, event)

    def attach_to(self, attachment: Attachment) -> None:
        """Adds this Validation to the scheduled Validations of the engine."""
        scheduled = _scheduled_validations(attachment.engine)
        scheduled.validations.append(self)
        attachment.on_removal(lambda: scheduled.remove(self))
        # If a checkpoint is saved while this Validation is due, the resumed run makes it due again.
        is_due, make_due = scheduled.due_on_resume(self)
        attachment.on_removal(add_due_entry(attachment.engine, "validations", is_due, make_due))
        # Each method of `scheduled` acts for all Validations of the engine. Every Validation
        # attaches the methods, so that they stay attached until the last Validation is removed. The
        # first call of a method at an event does the work, further calls do nothing. `turn` is the
        # place of a handler among the handlers of its event.
        attachment.during_run(scheduled.run_scope)
        attachment.on(Events.STARTED, scheduled.validate_at_start, turn=Turn.LATE_VALIDATION)
        self.on_steps(attachment, scheduled.after_step, is_note=True)
        if is_trainer(attachment.engine):
            attachment.on(Events.EPOCH_COMPLETED, scheduled.note_due_by_epoch, turn=Turn.NOTE)
        attachment.on(Events.EPOCH_COMPLETED, scheduled.after_epoch, turn=Turn.VALIDATION)
        if self.every_steps is not None and is_trainer(attachment.engine):
            attachment.add(TrainEvents.STEP_COMPLETED, scheduled.handler_after_step())

    def __call__(self, engine: Engine) -> None:
        """Runs this validation now."""
        _validate(engine, [self])


class _ScheduledValidations:
    """The scheduled Validations of one engine, which run as one when they are due together."""

    def __init__(self, engine: Engine) -> None:
        self.validations: list[Validation] = []
        self._engine = ref(engine)
        # The Validations that are due, and the iteration at which they became due. A Validation
        # stays due until it has run without a failure, or the engine continues at another
        # iteration.
        self._due: list[Validation] = []
        self._due_iteration = -1
        # The iteration of this run at which each Validation last ran. At the end of an epoch a
        # Validation may be due both by step and by epoch, but must run only once.
        self._last_iterations: dict[Validation, int] = {}

    def remove(self, validation: Validation) -> None:
        """Removes one attachment of ``validation``."""
        self.validations.remove(validation)
        # The same handler may be attached twice, and stays due until both attachments are removed.
        if validation not in self.validations:
            self._due = [each for each in self._due if each is not validation]

    @contextmanager
    def run_scope(self, engine: Engine) -> Iterator[None]:
        """Forgets at the start of a new run at which iterations earlier runs have validated."""
        # No new run starts if an interrupted run continues, or if this scope is entered because a
        # Validation is attached within a run.
        if not (is_interrupted(engine) or is_running(engine)):
            self._last_iterations = {}
        yield

    def validate_at_start(self, engine: Engine) -> None:
        """Validates before the first epoch. On a trainer this is the last handler of STARTED."""
        # The trainer's loop repeats a validation that was broken off, but only after STARTED: a
        # resumed run must restore its random generators first.
        if is_trainer(engine) and engine.is_broken_off:
            return
        is_ending = engine.is_ending if is_trainer(engine) else engine.should_terminate
        if engine.state.iteration == 0 and not is_ending:
            # If a trainer fails in its first window (the batches of the first optimizer step), the
            # next run continues from iteration 0. A validation that was completed before the
            # failure must not be repeated.
            done = completed_validations(engine) if is_trainer(engine) else ()
            self._run_or_defer_due(
                engine, [e for e in self.validations if e.at_start and e not in done]
            )
            # If the validation is broken off, it stays due. The loop then saves a checkpoint and
            # stops the run.
            with suppress(ValidationStopped):
                self.run_due()

    def after_step(self, engine: Engine) -> None:
        """Runs the validations that are due by step. A trainer defers them."""
        # An engine without an OptimizerStep counts iterations.
        counts = (step.steps for step in attached_handlers(engine, OptimizerStep))
        steps = next(counts, engine.state.iteration)
        due = [each for each in self.validations if _is_due(each.every_steps, steps)]
        self._run_or_defer_due(engine, due)

    def note_due_by_epoch(self, engine: Engine) -> None:
        """Notes which validations are due at the end of an epoch.

        On a trainer this is one of the first handlers of EPOCH_COMPLETED. If a later handler fails,
        the validations are already noted as due, and the next run can run them.
        """
        epoch = engine.state.epoch
        due = [each for each in self.validations if _is_due(each.every_epochs, epoch)]
        self._run_or_defer_due(engine, due)

    def after_epoch(self, engine: Engine) -> None:
        """Validates at EPOCH_COMPLETED, if a schedule by epoch or by step is due."""
        # On a plain engine `note_due_by_epoch` is not attached as a handler, so it is called here.
        # On a trainer it is attached and has been called already. The call here changes nothing.
        self.note_due_by_epoch(engine)
        self.run_due()

    def _run_or_defer_due(self, engine: Engine, due: list[Validation]) -> None:
        """Adds validations to those that are due. A trainer runs them later, a plain engine now.

        Args:
            engine: the engine.
            due: validations that a schedule makes due, in any order. A validation that has already
                run at this iteration is ignored.
        """
        iteration = engine.state.iteration
        # Validations that became due at another iteration belong to a run that was not continued.
        if self._due_iteration != iteration:
            self._due, self._due_iteration = [], iteration
        due = [*self._due, *(each for each in due if self._last_iterations.get(each) != iteration)]
        # Each validation is taken once, in order of attachment.
        self._due = [each for each in dict.fromkeys(self.validations) if each in due]
        if self._due and is_trainer(engine):
            engine.defer(self.run_due, Turn.VALIDATION)
        elif self._due:
            self.run_due()

    def handler_after_step(self) -> Callable[[TrainingEngine], None]:
        """Returns a handler of STEP_COMPLETED that runs the validations that a step made due.

        At the last step of an epoch the handler does nothing, because the validations are deferred
        to EPOCH_COMPLETED.
        """

        # Each call makes a new function. With one function for all Validations, detaching one of
        # them would remove the handlers of all, because Ignite removes all handlers that are equal.
        def run_if_epoch_continues(trainer: TrainingEngine) -> None:
            if self._due and not (trainer.place.progress.is_full or trainer.is_leaving_epoch):
                # If the validation is broken off, it stays due. The loop then saves a checkpoint
                # and stops the run.
                with suppress(ValidationStopped):
                    self.run_due()

        run_if_epoch_continues.__qualname__ = Validation.__name__  # profilers show this name
        set_turn(run_if_epoch_continues, Turn.LATE_VALIDATION)
        return run_if_epoch_continues

    def run_due(self) -> None:
        """Runs all due Validations as one validation. If it fails, the Validations stay due.

        Raises:
            ValidationStopped: the run is to stop, and the validations stay due.
        """
        engine, iteration = self._engine(), self._due_iteration
        assert engine is not None
        if self._due and iteration == engine.state.iteration:
            stop_check = StopCheck(engine) if _evaluators(self._due) else NEVER_STOPS
            stop_check.raise_if_stopping()
            self._last_iterations.update(dict.fromkeys(self._due, iteration))
            _validate(engine, [*self._due], self._due, stop_check)
        self._due = []

    def due_on_resume(
        self, validation: Validation
    ) -> tuple[Callable[[], bool], Callable[[], None]]:
        """Returns ``is_due`` and ``make_due`` of ``validation``, for ``add_due_entry``."""

        def is_due() -> bool:
            engine = self._engine()
            assert engine is not None
            return validation in self._due and self._due_iteration == engine.state.iteration

        def make_due() -> None:
            engine = self._engine()
            assert engine is not None
            self._run_or_defer_due(engine, [validation])

        return is_due, make_due


def _is_due(every: int | None, count: int) -> bool:
    return every is not None and count % every == 0


def _scheduled_validations(engine: Engine) -> _ScheduledValidations:
    """Returns the scheduled Validations of ``engine``, which are stored on the engine."""
    stored = engine_storage(engine)
    if "validations" not in stored:
        stored["validations"] = _ScheduledValidations(engine)
    scheduled: _ScheduledValidations = stored["validations"]
    return scheduled


def _validate(
    engine: Engine,
    validations: Sequence[Validation],
    due: list[Validation] | None = None,
    stop_check: StopCheck = NEVER_STOPS,
) -> None:
    """Runs several Validations as one: fires the events once, and writes all results together.

    Args:
        engine: the engine.
        validations: the Validations to run as one.
        due: the list of due Validations; None if there is no such list. The list is emptied, unless
            the validation fails or is broken off.
        stop_check: checks whether to break the validation off.

    Raises:
        ValidationStopped: the validation was broken off. The results are dropped.
    """
    TrainEvents.register(engine)
    state: Any = engine.state
    before, due = state.validation, [*validations] if due is None else due

    def restore_count() -> None:
        # The body of the `with` below ends with `due.clear()`. If `due` is not empty here, the
        # validation has failed or was broken off. Such a validation is not counted.
        if due:
            state.validation = before

    with undo_on_exit(restore_count):
        state.validation = before + 1
        is_complete = is_broken_off = False
        # The VALIDATION events and the contexts on `on_validation` are within the scope that
        # restores the generators: if handlers draw random numbers, these draws must not shift the
        # random numbers of training.
        with (
            charged_to(engine, "validation"),
            _data_and_generators_restored(engine, validations),
            channels_of(engine).on_validation,
        ):
            stop_check.remember_weights(_models_of(engine, validations))
            fire_within(engine, TrainEvents.VALIDATION_STARTED)
            restore = stop_check.snapshot(_evaluators(validations), lambda: _feeds(validations))
            results: dict[str, Any] = {}
            try:
                with _models_in_eval_mode(engine, validations):
                    for validation in validations:
                        new = dict(validation.evaluations.results(engine, stop_check))
                        _merge(new, validation.prefix, results)
            except ValidationStopped:
                # The exception is raised again below, when the contexts on `on_validation` have
                # been left. So these contexts see no exception.
                is_broken_off = True
                # `restore` may end the persistent workers of a loader. An evaluator may have the
                # same loader as training. The scope `_data_and_generators_restored` has detached
                # the workers of training from this loader, so they are not ended.
                restore()
            else:
                _write_results(engine, results)
                fire_within(engine, TrainEvents.VALIDATION_COMPLETED)
                is_complete = True
        if is_broken_off:
            raise ValidationStopped
        # `is_complete` is False here if the validation failed, and a context on `on_validation` has
        # handled the failure by calling `terminate()`.
        if is_complete:
            completed_validations(engine).update(validations)
            are_results_missing = bool(validations_without_result(engine))
            for step in attached_handlers(engine, OptimizerStep):
                step.end_validation(are_results_missing=are_results_missing)
        due.clear()
    # The schedulers move after `due.clear()`, which marks the validation as complete. So if a
    # scheduler fails, the validation is not repeated.
    for step in attached_handlers(engine, OptimizerStep):
        step.scheduler.move_after_validation(engine)


def _merge(new: dict[str, Any], prefix: str, results: dict[str, Any]) -> None:
    """Adds new results to ``results``; raises a ValueError if a name is there already."""
    duplicates = sorted(new.keys() & results.keys())
    if duplicates:
        raise ValueError(
            f"`prefix` must keep the metrics of two Validations apart, got {prefix!r}, and two "
            f"values of {duplicates[0]!r}: choose another prefix for one of the Validations"
        )
    results.update(new)


def validations_of(engine: AnyEngine) -> list[Validation]:
    """Returns the Validations of ``engine``.

    A Validation may be attached with ``attach`` or added with ``add_event_handler``.
    """
    handlers = (each for each in handlers_of(engine) if isinstance(each, Validation))
    return [*attached_handlers(engine, Validation), *handlers]


def validations_without_result(engine: AnyEngine) -> list[Validation] | None:
    """Returns the Validations that have no result yet; None if ``engine`` has no Validation."""
    validations = validations_of(engine)
    if not validations:
        return None
    return [each for each in validations if each not in completed_validations(engine)]


def _write_results(engine: Engine, results: dict[str, Any]) -> None:
    """Writes new results to ``state.metrics``, and removes the results of other iterations."""
    metrics, measured, now = engine.state.metrics, measured_at(engine), engine.state.iteration
    for name, iteration in measured.items():
        if iteration != now:
            metrics.pop(name, None)
    metrics.update(results)
    measured.update(dict.fromkeys(results, now))


@contextmanager
def _data_and_generators_restored(
    engine: Engine, validations: Sequence[Validation]
) -> Iterator[None]:
    """Restores the random generators and the training loader's position after the body."""
    data = engine.feed if is_trainer(engine) else engine.state.dataloader
    feed = data if isinstance(data, DataFeed) else prepare_source(data, None, even_batches=True)
    accelerator = _accelerator_of(engine, validations)
    device = accelerator.device if accelerator is not None else None
    if is_trainer(engine):
        run_generators = engine.generators
    else:
        # The search for generators skips the objects in `closed`, because the feed has found the
        # generators of the data already.
        closed = [feed, feed.loader, *feed.roots.values(), accelerator]
        models = {f"model {n}": each for n, each in enumerate(_models_of(engine, validations))}
        run_generators = generators_of_run(engine, models, closed, feed.found_generators).named
    generators = {**feed.generators, **run_generators}
    with RandomState.preserved(device, generators), deactivated(feed.loader):
        yield


@contextmanager
def _models_in_eval_mode(engine: Engine, validations: Sequence[Validation]) -> Iterator[None]:
    """Puts the models into eval mode and turns gradients off, and restores both after the body."""
    accelerator = _accelerator_of(engine, validations)
    with ExitStack() as scopes:
        for model in _models_of(engine, validations):
            scopes.enter_context(modes_kept(model))
            scopes.enter_context(gradients_kept(model))
            scopes.enter_context(buffers_of_rank_0(model, accelerator))
            model.eval()
        scopes.enter_context(torch.no_grad())
        yield


def _accelerator_of(engine: Engine, validations: Sequence[Validation]) -> Accelerator | None:
    """Returns the first accelerator of engine, OptimizerStep and evaluators; None without any."""
    owners = [engine, *attached_handlers(engine, OptimizerStep), *_evaluators(validations)]
    accelerators = (getattr(owner, "accelerator", None) for owner in owners)
    return next((each for each in accelerators if isinstance(each, Accelerator)), None)


def _models_of(engine: Engine, validations: Sequence[Validation]) -> list[torch.nn.Module]:
    """Returns the models of the engine, of the evaluators and of the OptimizerStep.

    A model may occur more than once.
    """
    owners = [engine, *_evaluators(validations)]
    models = [getattr(owner, "model", None) for owner in owners]
    for step in attached_handlers(engine, OptimizerStep):
        models += prepared_models(step.accelerator)
    return [each for each in models if isinstance(each, torch.nn.Module)]


def _feeds(validations: Sequence[Validation]) -> list[DataFeed]:
    runs = (run for validation in validations for run in validation.evaluations.runs())
    return [evaluator.feed_of(data) for _, evaluator, data in runs]


def _evaluators(validations: Sequence[Validation]) -> list[Engine]:
    return [each for validation in validations for each in validation.evaluations.engines]
