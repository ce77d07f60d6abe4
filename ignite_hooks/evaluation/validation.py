"""Validates on schedule, and nothing in training can tell that it did."""

import inspect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Engine
from ignite.engine import Events
from pydantic.dataclasses import dataclass

from ignite_hooks.core.accelerators import prepared_models
from ignite_hooks.core.engine import forget_run
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import Prefix
from ignite_hooks.core.fields import handler_config
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Scheduled
from ignite_hooks.core.handler import attached
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.active_loader import set_aside
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.prepare import source_of
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.evaluation.measured import measured_at
from ignite_hooks.evaluation.modes import gradients_kept
from ignite_hooks.evaluation.modes import modes_kept
from ignite_hooks.evaluation.modes import without_ddp
from ignite_hooks.events import TrainEvents
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["Validation", "ValidationSchedule"]


@dataclass(frozen=True, eq=False, kw_only=True, config=handler_config)
class ValidationSchedule:
    """What of a ``Validation`` is plain data; the evaluator and its data are not.

    Args:
        every_steps: validate each time so many steps were committed (on an engine without an
            OptimizerStep: so many iterations).
        every_epochs: validate each time so many epochs were completed.
        at_start: validate before the first epoch; not when training is gone on with.
        prefix: what the names in ``state.metrics`` begin with.

    Raises:
        ValueError: an argument is out of its range.
    """

    every_steps: Every | None = None
    every_epochs: Every | None = None
    at_start: Flag = False
    prefix: Prefix = "val_"


@dataclass(frozen=True, eq=False, config=handler_config)
class Validation(ValidationSchedule, Scheduled):
    """Evaluates in the middle of training, with no effect on it.

    An evaluator on a prepared loader switches gradient accumulation off, ``model.train()`` after
    it wakes frozen submodules, and every random number that it draws shifts those of training.
    Here windows, data order, random generators and each submodule's mode are what they were, also
    when the evaluation fails or breaks off. (On a hand-made engine that goes for the models that
    are known: the evaluator's, the engine's ``model``, and those prepared with the accelerator of
    its OptimizerStep.) It runs when all other handlers of its moment have
    returned, once however many schedules are due, fires VALIDATION_STARTED and
    VALIDATION_COMPLETED, and leaves the results in ``state.metrics``.

    Args:
        evaluate: an evaluator engine, or a callable without argument or with the model as its one
            argument; a mapping that it returns counts as its metrics.
        data: what the evaluator runs on, or several by name. The metric ``m`` is then in
            ``state.metrics`` as ``val_m``, or ``val_<name>_m``.
        every_steps: validate each time so many steps were committed (on an engine without an
            OptimizerStep: so many iterations).
        every_epochs: validate each time so many epochs were completed.
        at_start: validate before the first epoch; not when training is gone on with.
        prefix: what the names in ``state.metrics`` begin with.

    Raises:
        TypeError: ``evaluate`` is neither an engine nor such a callable.
        ValueError: an evaluator has no data, a callable has; no schedule and no event is given.
    """

    evaluate: Any
    data: Any = None

    def __post_init__(self) -> None:
        """Checks that there is something to evaluate with, and on."""
        if isinstance(self.evaluate, Engine):
            _check_data(self.data)
        elif not callable(self.evaluate) or isinstance(self.evaluate, torch.nn.Module):
            raise TypeError(
                "`evaluate` must be an engine or a callable, got "
                f"{type(self.evaluate).__name__}: pass create_supervised_evaluator(model, metrics)"
            )
        elif self.data is not None:
            raise ValueError(
                "`data` must be left out with a callable, which takes none or the model: "
                "evaluate on the data within it"
            )
        else:
            _arguments_of(self.evaluate)

    def check(self, engine: Engine, event: Any) -> None:
        """Something says when, and a callable that wants a model gets one."""
        if event is None and not (self.every_steps or self.every_epochs or self.at_start):
            raise ValueError(
                "a Validation must have a schedule, `every_steps`, `every_epochs` and `at_start` "
                "are not given: every_epochs=1 is the usual choice"
            )
        if self.evaluate is engine:
            raise ValueError(
                "`evaluate` must be another engine than the one it is attached to: pass "
                "create_supervised_evaluator(model, metrics)"
            )
        wants_model = not isinstance(self.evaluate, Engine) and _arguments_of(self.evaluate)
        if wants_model and not hasattr(engine, "model"):
            raise ValueError(
                "`evaluate` takes the model, and this engine has none to give: pass a callable "
                "without argument, lambda: evaluate(model)"
            )

    def attach(self, engine: Engine, event: Any = None) -> Attachment:
        """As any handler; the VALIDATION events can be attached to from now on."""
        TrainEvents.register(engine)
        return super().attach(engine, event)

    def attach_to(self, attachment: Attachment) -> None:
        """Validates on schedule; on a trainer after all other handlers of the event."""
        last_at = [-1]

        def validate() -> None:
            self(attachment.engine)

        def when_due(engine: Engine) -> None:
            if is_trainer(engine):
                engine.defer(validate)
            elif last_at[0] != engine.state.iteration:
                last_at[0] = engine.state.iteration
                validate()

        def at_start(engine: Engine) -> None:
            last_at[0] = -1
            if self.at_start and engine.state.iteration == 0:
                when_due(engine)

        attachment.on(Events.STARTED, at_start)
        self.on_schedule(attachment, when_due)

    def __call__(self, engine: Engine) -> None:
        """Validates now."""
        TrainEvents.register(engine)
        state: Any = engine.state
        state.validation += 1
        engine.fire_event(TrainEvents.VALIDATION_STARTED)
        with self._without_trace(engine):
            results = dict(self._results(engine))
        state.metrics.update(results)
        measured_at(engine).update(dict.fromkeys(results, state.iteration))
        engine.fire_event(TrainEvents.VALIDATION_COMPLETED)

    def _results(self, engine: Engine) -> Iterator[tuple[str, Any]]:
        if not isinstance(self.evaluate, Engine):
            owner: Any = engine  # nothing is known of the model of a plain engine
            arguments = [without_ddp(owner.model)] if _arguments_of(self.evaluate) else []
            metrics = self.evaluate(*arguments)
            yield from self._named("", metrics if isinstance(metrics, Mapping) else {})
        elif isinstance(self.data, Mapping):
            for name, data in self.data.items():
                yield from self._named(f"{name}_", self._run_evaluator(data))
        else:
            yield from self._named("", self._run_evaluator(self.data))

    def _run_evaluator(self, data: Any) -> Mapping[str, Any]:
        self.evaluate.state.metrics = {}  # none of an earlier run, should this one break off
        try:
            self.evaluate.run(data)
        except BaseException:
            forget_run(self.evaluate)
            raise
        return dict(self.evaluate.state.metrics)

    def _named(self, loader: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        return ((f"{self.prefix}{loader}{name}", value) for name, value in metrics.items())

    def _evaluated_models(self, engine: Engine) -> list[torch.nn.Module]:
        """Those that the evaluation may touch, as far as they are known."""
        models = [getattr(owner, "model", None) for owner in (engine, self.evaluate)]
        for step in attached(engine, OptimizerStep):
            models += prepared_models(step.accelerator)
        return [model for model in models if isinstance(model, torch.nn.Module)]

    @contextmanager
    def _without_trace(self, engine: Engine) -> Iterator[None]:
        data = engine.feed if is_trainer(engine) else engine.state.dataloader
        feed = data if isinstance(data, DataFeed) else source_of(data, None, even_batches=True)
        steps = attached(engine, OptimizerStep)
        owners = (engine, *steps, self.evaluate)
        accelerators = (getattr(owner, "accelerator", None) for owner in owners)
        accelerator = next((each for each in accelerators if each is not None), None)
        with ExitStack() as kept:
            for model in self._evaluated_models(engine):
                kept.enter_context(modes_kept(model))
                kept.enter_context(gradients_kept(model))
            device = accelerator.device if accelerator is not None else None
            kept.enter_context(RandomState.preserved(device, feed.generators))
            kept.enter_context(set_aside(feed.loader))
            yield


def _check_data(data: Any) -> None:
    """An evaluator must have data, and under each name."""
    by_name = data if isinstance(data, Mapping) else {"": data}
    if not by_name:
        raise ValueError(
            "`data` must be given with an evaluator engine, got {}: "
            "Validation(evaluator, loader, every_epochs=1)"
        )
    for name, each in by_name.items():
        where = f"`data` of {name!r}" if name else "`data`"
        if each is None:
            raise ValueError(
                f"{where} must be given with an evaluator engine, got None: "
                "Validation(evaluator, loader, every_epochs=1)"
            )
        if not isinstance(each, Iterable) or isinstance(each, str):
            raise TypeError(
                f"{where} must be an iterable of batches, got {type(each).__name__}: pass a "
                "DataLoader or a list of batches"
            )
        if PlainIterable(each).length == 0:
            raise ValueError(
                f"{where} must give at least one batch, got an empty {type(each).__name__}: check "
                "its data set"
            )


def _arguments_of(evaluate: Callable[..., Any]) -> int:
    """How many arguments the callable must be given: none, or one for the model."""
    try:
        parameters = inspect.signature(evaluate).parameters.values()
    except ValueError:
        raise TypeError(
            f"`evaluate` must have a signature that tells its arguments, {evaluate!r} has none: "
            "put a function around it, lambda model: evaluate(model)"
        ) from None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty]
    needed = [p for p in needed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1 or any(p.kind not in kinds for p in needed):
        names = ", ".join(p.name for p in needed)
        raise TypeError(
            f"`evaluate` must take no argument or the model, it needs ({names}): bind the others, "
            "lambda model: evaluate(model, loader)"
        )
    return len(needed)
