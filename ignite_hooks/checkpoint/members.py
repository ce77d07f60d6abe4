"""Which handlers of a trainer have a state that a checkpoint carries."""

from collections.abc import Iterator
from typing import Any

import torch
from ignite.engine import Engine

from ignite_hooks.engine import handlers_of
from ignite_hooks.handlers.base import Handler
from ignite_hooks.handlers.base import attached

__all__ = ["handlers_with_state", "has_state"]


def handlers_with_state(trainer: Any) -> dict[str, Any]:
    """Those that have ``state_dict`` and ``load_state_dict``, Ignite's own too, by name.

    A handler's name is that of its class; the second of a class, in the order of attachment, is
    called "EarlyStopping-2", and so on.
    """
    named: dict[str, Any] = {}
    elsewhere = (trainer.optimizer, trainer.lr_scheduler)
    for handler in (*attached(trainer, Handler), *_owners(trainer)):
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


def _owners(trainer: Any) -> Iterator[Any]:
    """What the trainer's events call: handlers, and what bound methods are bound to."""
    for function in handlers_of(trainer):
        yield getattr(function, "__self__", function)
