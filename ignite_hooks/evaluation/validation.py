"""Validates on schedule, and nothing in training can tell that it did."""

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
from ignite_hooks.core.due_on_resume import add_due
from ignite_hooks.core.engine import belongings
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
from ignite_hooks.core.handler import attached
from ignite_hooks.core.measured import completed_validations
from ignite_hooks.core.measured import measured_at
from ignite_hooks.core.restoring import restored
from ignite_hooks.core.stop_requests import BrokenOff
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.active_loader import set_aside
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.prepare import source_of
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.run_generators import generators_of_run
from ignite_hooks.evaluation.breaking_off import NEVER
from ignite_hooks.evaluation.breaking_off import Breaker
from ignite_hooks.evaluation.evaluations import Evaluations
from ignite_hooks.evaluation.modes import buffers_of_rank_0
from ignite_hooks.evaluation.modes import gradients_kept
from ignite_hooks.evaluation.modes import modes_kept
from ignite_hooks.events import TrainEvents
from ignite_hooks.hooks.event_channels import channels_of
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["Validation", "ValidationSchedule", "validations_of", "validations_to_come"]


@checked_dataclass
class ValidationSchedule:
    """What of a ``Validation`` is plain data; the evaluator and its data are not.

    Args:
        every_steps: validate each time so many steps were committed (on an engine without an
            OptimizerStep: so many iterations).
        every_epochs: validate each time so many epochs were completed.
        at_start: validate before the first epoch; not when training is gone on with.
        prefix: what the names in ``state.metrics`` begin with.
        max_batches: evaluate at most so many batches of each of the data, in each process.

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
    """Evaluates in the middle of training, with no effect on it.

    An evaluator on a prepared loader switches gradient accumulation off, ``model.train()`` after
    it wakes frozen submodules, and every random number that it draws shifts those of training.
    Here windows, data order, random generators and each submodule's mode are what they were, also
    when the evaluation fails or breaks off, and also if handlers of the VALIDATION events draw
    random numbers. The evaluation itself, of a callable too, is in eval mode and without
    gradients; ``torch.enable_grad()`` within it gives some. (On a plain Ignite engine that goes for
    the models that are known: the evaluator's, the engine's ``model``, and those prepared with the
    accelerator of its OptimizerStep.)

    All validations of an engine that are due by schedule at one moment are one: VALIDATION_STARTED
    and VALIDATION_COMPLETED fire once, and the results are written to ``state.metrics`` together,
    in place of those that earlier validations measured with other weights. On a trainer it runs
    after STEP_COMPLETED, and at EPOCH_COMPLETED after Ignite's metrics and before all other
    handlers. One that is attached to an event, ``attach(engine, event)``, acts by itself in its
    turn among the handlers of that event.

    A signal that asks a trainer to stop (``SaveCheckpoint(on_signals=…)``) breaks an evaluator off
    between two batches. The results are dropped, contexts on ``on_validation`` are left without an
    exception, and neither VALIDATION_COMPLETED nor the evaluator's COMPLETED is fired. The state is
    saved, with the validation still due: the run that resumes begins with it, or completes the
    epoch with it, and calls the handlers of VALIDATION_STARTED and of the evaluators again. The
    signal waits for what cannot be broken off or made up: a callable (the evaluator after it is
    not begun), a validation at an event, evaluators that handlers run, and a validation while
    handlers, of VALIDATION_STARTED or of an evaluator, have other weights swapped in. Swap weights
    in a context instead.

    Args:
        evaluate: an evaluator engine, or a callable without argument or with the model as its one
            argument; a mapping that it returns counts as its metrics. Or several by name: the
            metric ``m`` is then in ``state.metrics`` as ``val_<name>_m``.
        data: what evaluators run on, or several by name. The metric ``m`` is then in
            ``state.metrics`` as ``val_m``, or ``val_<name of the data>_m``; with several evaluators
            as ``val_<name>_<name of the data>_m``.
        every_steps: validate each time so many steps were committed (on an engine without an
            OptimizerStep: so many iterations).
        every_epochs: validate each time so many epochs were completed.
        at_start: validate before the first epoch; not when training is gone on with.
        prefix: what the names in ``state.metrics`` begin with.
        max_batches: evaluate at most so many batches of each of the data, in each process. Data of
            unknown length, which may be endless, need it.

    Raises:
        TypeError: ``evaluate`` is neither an engine nor such a callable.
        ValueError: an evaluator has no data, or data of unknown length without ``max_batches``; a
            callable has data; no schedule and no event is given.
    """

    evaluate: Any
    data: Any = None

    def __post_init__(self) -> None:
        """Checks that there is something to evaluate with, and on."""
        self.evaluations.check()

    @property
    def evaluations(self) -> Evaluations:
        """What it evaluates."""
        return Evaluations(self.evaluate, self.data, self.prefix, self.max_batches)

    def check(self, engine: Engine, event: Any) -> None:
        """Something says when, and a callable that wants a model gets one."""
        if event is None and not (self.every_steps or self.every_epochs or self.at_start):
            raise ValueError(
                "a Validation must have a schedule, `every_steps`, `every_epochs` and `at_start` "
                "are not given: every_epochs=1 is the usual choice"
            )
        if any(each is engine for each in self.evaluations.engines):
            raise ValueError(
                "`evaluate` must be another engine than the one it is attached to: pass "
                "create_supervised_evaluator(model, metrics)"
            )
        if self.evaluations.wants_model and not hasattr(engine, "model"):
            raise ValueError(
                "`evaluate` takes the model, and this engine has none to give: pass a callable "
                "without argument, lambda: evaluate(model)"
            )

    def attach(self, engine: Engine, event: Any = None) -> Attachment:
        """Attaches it; the VALIDATION events can be attached to from now on."""
        TrainEvents.register(engine)
        channels_of(engine)
        return super().attach(engine, event)

    def attach_to(self, attachment: Attachment) -> None:
        """Validates on schedule, together with the others that are due."""
        scheduled = _scheduled_on(attachment.engine)
        scheduled.members.append(self)
        attachment.on_removal(lambda: scheduled.drop(self))
        is_due, make_due = scheduled.due_on_resume(self)
        attachment.on_removal(add_due(attachment.engine, "validations", is_due, make_due))
        # Each attachment calls these, and the first call does it for all: a later one finds
        # nothing left to do.
        attachment.during_run(scheduled.in_run)
        attachment.on(Events.STARTED, scheduled.start, turn=Turn.LATE_VALIDATION)
        self.on_steps(attachment, scheduled.end_step, is_note=True)
        if is_trainer(attachment.engine):
            attachment.on(Events.EPOCH_COMPLETED, scheduled.note_epoch, turn=Turn.NOTE)
        attachment.on(Events.EPOCH_COMPLETED, scheduled.end_epoch, turn=Turn.VALIDATION)
        if self.every_steps is not None and is_trainer(attachment.engine):
            attachment.add(TrainEvents.STEP_COMPLETED, scheduled.run_after_step())

    def __call__(self, engine: Engine) -> None:
        """Validates now."""
        _validate(engine, [self])


class _ScheduledValidations:
    """The validations of one engine that have a schedule; those due at one moment are one."""

    def __init__(self, engine: Engine) -> None:
        self.members: list[Validation] = []
        self._engine = ref(engine)
        self._due: list[Validation] = []  # until they have been run without a failure
        self._due_at = -1  # the iteration: what was due at another one is due no more
        self._last_at: dict[Validation, int] = {}  # the iteration, in this run

    def drop(self, validation: Validation) -> None:
        """Takes off one, also if it is due."""
        self.members.remove(validation)
        if validation not in self.members:  # it may be attached twice
            self._due = [each for each in self._due if each is not validation]

    @contextmanager
    def in_run(self, engine: Engine) -> Iterator[None]:
        """Forgets, at the entry into a run, when the runs before have validated."""
        if not (is_interrupted(engine) or is_running(engine)):  # when attached within a run
            self._last_at = {}
        yield

    def start(self, engine: Engine) -> None:
        """Validates before the first epoch; on a trainer as the last handler of STARTED."""
        if is_trainer(engine) and engine.is_broken_off:
            return  # the loop has it made up when all is restored
        is_ending = engine.is_ending if is_trainer(engine) else engine.should_terminate
        if engine.state.iteration == 0 and not is_ending:
            # A trainer may go on from there, after a failure in the first window.
            done = completed_validations(engine) if is_trainer(engine) else ()
            self._trigger(engine, [e for e in self.members if e.at_start and e not in done])
            with suppress(BrokenOff):  # the loop finds it due
                self.run()

    def end_step(self, engine: Engine) -> None:
        """Validates after a step; on a trainer when all else that is due by step is done."""
        counts = (step.steps for step in attached(engine, OptimizerStep))
        steps = next(counts, engine.state.iteration)
        due = [each for each in self.members if _divides(each.every_steps, steps)]
        self._trigger(engine, due)

    def note_epoch(self, engine: Engine) -> None:
        """Notes what is due at the end of an epoch, before a handler can fail."""
        epoch = engine.state.epoch
        due = [each for each in self.members if _divides(each.every_epochs, epoch)]
        self._trigger(engine, due)

    def end_epoch(self, engine: Engine) -> None:
        """Validates at EPOCH_COMPLETED, if a schedule by epoch or by step is due."""
        self.note_epoch(engine)
        self.run()

    def _trigger(self, engine: Engine, due: list[Validation]) -> None:
        iteration = engine.state.iteration
        if self._due_at != iteration:  # what was due in a run that has been given up
            self._due, self._due_at = [], iteration
        due = [*self._due, *(each for each in due if self._last_at.get(each) != iteration)]
        self._due = [each for each in dict.fromkeys(self.members) if each in due]
        if self._due and is_trainer(engine):
            engine.defer(self.run, Turn.VALIDATION)
        elif self._due:
            self.run()

    def run_after_step(self) -> Callable[[TrainingEngine], None]:
        """Returns a handler that runs what a step made due, unless the epoch ends with that step.

        It is one of its own for each attachment, and called at each step.
        """

        def run(trainer: TrainingEngine) -> None:
            if self._due and not (trainer.place.progress.is_full or trainer.is_leaving_epoch):
                with suppress(BrokenOff):  # the loop finds it due
                    self.run()

        run.__qualname__ = Validation.__name__  # what profilers show
        set_turn(run, Turn.LATE_VALIDATION)
        return run

    def run(self) -> None:
        """Runs what is due as one validation. It stays due if that fails.

        Raises:
            BrokenOff: the run is to stop, and the validation stays due.
        """
        engine, iteration = self._engine(), self._due_at
        assert engine is not None
        if self._due and iteration == engine.state.iteration:
            breaker = Breaker(engine) if _evaluators(self._due) else NEVER
            breaker.look()
            self._last_at.update(dict.fromkeys(self._due, iteration))
            _validate(engine, [*self._due], self._due, breaker)
        self._due = []

    def due_on_resume(
        self, validation: Validation
    ) -> tuple[Callable[[], bool], Callable[[], None]]:
        """Returns what tells whether a validation is due, and what makes it due."""

        def is_due() -> bool:
            engine = self._engine()
            assert engine is not None
            return validation in self._due and self._due_at == engine.state.iteration

        def make_due() -> None:
            engine = self._engine()
            assert engine is not None
            self._trigger(engine, [validation])

        return is_due, make_due


def _divides(every: int | None, count: int) -> bool:
    return every is not None and count % every == 0


def _scheduled_on(engine: Engine) -> _ScheduledValidations:
    kept = belongings(engine)
    if "validations" not in kept:
        kept["validations"] = _ScheduledValidations(engine)
    scheduled: _ScheduledValidations = kept["validations"]
    return scheduled


def _validate(
    engine: Engine,
    validations: Sequence[Validation],
    due: list[Validation] | None = None,
    breaker: Breaker = NEVER,
) -> None:
    """Runs one validation: the events, the evaluations, and the results of all of them.

    Args:
        engine: the engine.
        validations: what is run.
        due: is emptied when it has been run.
        breaker: breaks it off.

    Raises:
        BrokenOff: it was broken off: its results are dropped, and contexts are left without an
            exception, as those of an epoch are when the run is terminated.
    """
    TrainEvents.register(engine)
    state: Any = engine.state
    before, due = state.validation, [*validations] if due is None else due

    def discount() -> None:
        if due:  # it broke off
            state.validation = before

    with restored(discount):
        state.validation = before + 1
        is_complete = is_broken_off = False
        # What handlers of the events and contexts draw is no more of training's than the rest.
        with _data_and_generators_kept(engine, validations), channels_of(engine).on_validation:
            breaker.note_weights(_models_of(engine, validations))
            fire_within(engine, TrainEvents.VALIDATION_STARTED)
            put_back = breaker.noted(_evaluators(validations), lambda: _feeds(validations))
            results: dict[str, Any] = {}
            try:
                with _models_kept(engine, validations):
                    for validation in validations:
                        new = dict(validation.evaluations.results(engine, breaker))
                        _add(new, validation.prefix, results)
            except BrokenOff:
                is_broken_off = True
                put_back()  # here, where the workers of training are set aside
            else:
                _write(engine, results)
                fire_within(engine, TrainEvents.VALIDATION_COMPLETED)
                is_complete = True
        if is_broken_off:
            raise BrokenOff
        if is_complete:  # and no context has made a clean stop of a failure
            completed_validations(engine).update(validations)
            are_more_to_come = bool(validations_to_come(engine))
            for step in attached(engine, OptimizerStep):
                step.end_validation(are_more_to_come=are_more_to_come)
        due.clear()  # it is done, but for the scheduler
    for step in attached(engine, OptimizerStep):
        step.scheduler.after_validation(engine)


def _add(new: dict[str, Any], prefix: str, results: dict[str, Any]) -> None:
    twice = sorted(new.keys() & results.keys())
    if twice:
        raise ValueError(
            f"`prefix` must tell apart two Validations that give the same metric, got {prefix!r} "
            f"twice, and two values of {twice[0]!r}: choose another for one of them"
        )
    results.update(new)


def validations_of(engine: AnyEngine) -> list[Validation]:
    """Returns the validations of an engine: those that are attached, and those that it calls."""
    handlers = (each for each in handlers_of(engine) if isinstance(each, Validation))
    return [*attached(engine, Validation), *handlers]


def validations_to_come(engine: AnyEngine) -> list[Validation] | None:
    """Returns the validations of an engine that have given no result yet; None if it has none."""
    validations = validations_of(engine)
    if not validations:
        return None
    return [each for each in validations if each not in completed_validations(engine)]


def _write(engine: Engine, results: dict[str, Any]) -> None:
    """Writes the results of a validation, in place of those measured with older weights."""
    metrics, measured, now = engine.state.metrics, measured_at(engine), engine.state.iteration
    for name, iteration in measured.items():
        if iteration != now:
            metrics.pop(name, None)
    metrics.update(results)
    measured.update(dict.fromkeys(results, now))


@contextmanager
def _data_and_generators_kept(engine: Engine, validations: Sequence[Validation]) -> Iterator[None]:
    """Puts back training's random generators and its place in the loader."""
    data = engine.feed if is_trainer(engine) else engine.state.dataloader
    feed = data if isinstance(data, DataFeed) else source_of(data, None, even_batches=True)
    accelerator = _accelerator_of(engine, validations)
    device = accelerator.device if accelerator is not None else None
    if is_trainer(engine):
        of_run = engine.generators
    else:
        closed = [feed, feed.loader, *feed.roots.values(), accelerator]
        models = {f"model {n}": each for n, each in enumerate(_models_of(engine, validations))}
        of_run = generators_of_run(engine, models, closed, feed.found_generators).named
    generators = {**feed.generators, **of_run}
    with RandomState.preserved(device, generators), set_aside(feed.loader):
        yield


@contextmanager
def _models_kept(engine: Engine, validations: Sequence[Validation]) -> Iterator[None]:
    """Has the models in eval mode, and without gradients, for the time of the evaluation alone."""
    accelerator = _accelerator_of(engine, validations)
    with ExitStack() as kept:
        for model in _models_of(engine, validations):
            kept.enter_context(modes_kept(model))
            kept.enter_context(gradients_kept(model))
            kept.enter_context(buffers_of_rank_0(model, accelerator))
            model.eval()
        kept.enter_context(torch.no_grad())
        yield


def _accelerator_of(engine: Engine, validations: Sequence[Validation]) -> Accelerator | None:
    owners = [engine, *attached(engine, OptimizerStep), *_evaluators(validations)]
    accelerators = (getattr(owner, "accelerator", None) for owner in owners)
    return next((each for each in accelerators if isinstance(each, Accelerator)), None)


def _models_of(engine: Engine, validations: Sequence[Validation]) -> list[torch.nn.Module]:
    owners = [engine, *_evaluators(validations)]
    models = [getattr(owner, "model", None) for owner in owners]
    for step in attached(engine, OptimizerStep):
        models += prepared_models(step.accelerator)
    return [each for each in models if isinstance(each, torch.nn.Module)]


def _feeds(validations: Sequence[Validation]) -> list[DataFeed]:
    runs = (run for validation in validations for run in validation.evaluations.runs())
    return [evaluator.feed_of(data) for _, evaluator, data in runs]


def _evaluators(validations: Sequence[Validation]) -> list[Engine]:
    return [each for validation in validations for each in validation.evaluations.engines]
