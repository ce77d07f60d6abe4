"""The settings of a run as hyperparameters: names and plain values, without nesting."""

import sys
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import fields
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import Any

from ignite.engine import Engine
from torch.nn.parameter import is_lazy

from ignite_hooks.checkpoint.settings import plain
from ignite_hooks.checkpoint.settings import settings_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.batch_size import global_batch_size
from ignite_hooks.observe.handler_names import numbered

__all__ = ["flattened", "hyperparameters_of"]

MAX_TEXT = 500
"""The largest number of characters in a text; trackers refuse or hide longer texts."""

_LIMITS = ("max_epochs", "max_iters", "max_steps", "epoch_length")


def hyperparameters_of(engine: Engine, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run, by names such as "optimizer/lr".

    Args:
        engine: the engine. A plain Ignite engine has only limits and handlers.
        config: settings of the user. They replace other settings of the same name.

    Returns:
        Numbers, texts, True and False. Settings that are None are left out. Lists are texts.
    """
    limits = {name: getattr(engine.state, name, None) for name in _LIMITS}
    settings = _trainer_settings(engine) if is_trainer(engine) else {}
    handlers = {"handlers": dict(_handler_settings(engine))}
    own = flattened({**settings, **limits, **handlers}, with_lists=False)
    return own | flattened(plain(config), with_lists=False)


def flattened(values: Mapping[str, Any], *, with_lists: bool) -> dict[str, Any]:
    """Returns plain values without nesting: the item "b" of the dict "a" is called "a/b".

    Args:
        values: numbers, texts, None, and lists and dicts of them. None is left out.
        with_lists: whether the first item of a list "a" is called "a/0", and so on. If False, a
            list of numbers and texts becomes a text.
    """
    return dict(_flat_items(values, "", with_lists))


def _flat_items(value: Any, name: str, with_lists: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and (with_lists or any(isinstance(v, list | dict) for v in value)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat_items(each, f"{name}/{key}" if name else str(key), with_lists)
    elif isinstance(value, int) and abs(value) > sys.float_info.max:
        yield name, str(value)[:MAX_TEXT]  # a tracker would convert it to a float, and fail
    elif isinstance(value, str | list):
        yield name, str(value)[:MAX_TEXT]
    elif value is not None:
        yield name, value


def _trainer_settings(trainer: TrainingEngine) -> dict[str, Any]:
    settings = settings_of(trainer)
    groups = settings["optimizer"].pop("groups")
    settings["optimizer"] |= groups[0] if len(groups) == 1 else {"groups": groups}
    settings["frozen_parameters"] = len(settings.pop("frozen"))
    parameters = list(trainer.modules["model"].parameters())
    has_sizes = not any(map(is_lazy, parameters))
    settings["model"] = {
        "class": type(trainer.modules["model"]).__name__,
        "parameters": sum(each.numel() for each in parameters) if has_sizes else None,
    }
    if trainer.feed is not None:
        settings["batch_size"] = _batch_size(trainer.feed.loader, trainer.accelerator)
    return settings


def _batch_size(loader: Any, accelerator: Any) -> int | None:
    try:
        return global_batch_size(loader, accelerator.num_processes)
    except Exception:  # a property of the user's sampler may raise, and the run can do without
        return None


def _handler_settings(engine: Engine) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name of each attached handler, and those of its fields that are plain data.

    The second handler of a class is called "MeanLoss_2", for example.
    """
    attached = attached_handlers(engine, Handler)
    handlers: list[Any] = [each for each in attached if is_dataclass(each)]
    names = numbered(type(each).__name__ for each in handlers)
    for name, handler in zip(names, handlers, strict=True):
        values = {each.name: getattr(handler, each.name) for each in fields(handler)}
        yield name, {key: plain(each) for key, each in values.items() if _is_plain(each)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return bool(value) and all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | PurePath)
