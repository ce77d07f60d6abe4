"""Which handlers of a trainer have a state that a checkpoint carries."""

from collections.abc import Iterator
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics import Metric

from ignite_hooks.core.engine import handlers_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.evaluation.validation import Validation

__all__ = ["handlers_with_state", "has_state"]


def handlers_with_state(trainer: TrainingEngine) -> dict[str, Any]:
    """Those that have ``state_dict`` and ``load_state_dict``, Ignite's own too, by name.

    A handler's name is that of its class; the second of a class, by the names of their events and
    then in the order of attachment, is called "EarlyStopping-2", and so on. Those of the evaluators
    that the trainer validates with follow, but for metrics, which begin anew with each validation.
    """
    named: dict[str, Any] = {}
    elsewhere = [trainer.optimizer, trainer.lr_scheduler]
    candidates = [*attached(trainer, Handler), *_owners(trainer)]
    for validation in attached(trainer, Validation):
        if isinstance(validation.evaluate, Engine):
            owners = _owners(validation.evaluate)
            candidates += [each for each in owners if not isinstance(each, Metric)]
    for handler in candidates:
        is_held = isinstance(handler, Engine | torch.nn.Module) or any(
            handler is each for each in (*elsewhere, *named.values())
        )
        if has_state(handler) and not is_held:
            name = type(handler).__name__
            number = 1 + sum(type(each) is type(handler) for each in named.values())
            named[name if number == 1 else f"{name}-{number}"] = handler
    return named


def has_state(candidate: Any) -> bool:
    """Whether it can tell its state and take one over."""
    return not isinstance(candidate, type) and all(
        callable(getattr(candidate, name, None)) for name in ("state_dict", "load_state_dict")
    )


def _owners(engine: AnyEngine) -> Iterator[Any]:
    """What the engine's events call: handlers, and what bound methods are bound to."""
    for function in handlers_of(engine):
        yield getattr(function, "__self__", function)
