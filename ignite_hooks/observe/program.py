"""Describes the program that a record belongs to: settings, versions, machine, command line."""

import os
import platform
from collections.abc import Mapping
from dataclasses import fields
from dataclasses import is_dataclass
from typing import Any

import torch
from ignite.engine import Engine

from ignite_hooks.checkpoint.command_line import command_line
from ignite_hooks.checkpoint.command_line import without_secrets
from ignite_hooks.checkpoint.description import versions
from ignite_hooks.checkpoint.plain_data import plain_data
from ignite_hooks.checkpoint.settings import settings_of
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.evaluation.validation import Validation

__all__ = ["describe_program", "redacted"]


def describe_program(engine: Engine) -> dict[str, Any]:
    """Returns the description as data that JSON can hold.

    Values that look like secrets are redacted in the command line and in the fields of handlers. On
    an engine that is not a trainer, the settings are left out.
    """
    state: Any = engine.state
    limits = ("max_epochs", "max_iters", "max_steps", "epoch_length")
    validations = attached_handlers(engine, Validation)
    described: dict[str, Any] = {
        "limits": {name: getattr(state, name, None) for name in limits},
        "handlers": [_describe_handler(e) for e in attached_handlers(engine, Handler)],
        "validation_prefixes": list(dict.fromkeys(each.prefix for each in validations)),
        "versions": versions(),
        "machine": {"host": platform.node(), "cpus": os.cpu_count(), "process": os.getpid()},
        "command": list(command_line()),
        "folder": _working_folder(),
    }
    if is_trainer(engine):
        device = engine.accelerator.device
        described["machine"] |= {
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "processes": engine.accelerator.num_processes,
        }
        described["settings"] = settings_of(engine)
    return dict(plain_data(described))


def _describe_handler(handler: Handler) -> dict[str, Any]:
    """Returns the class of a handler, and the values of its fields."""
    described: dict[str, Any] = {"type": type(handler).__name__}
    if is_dataclass(handler):
        names = [each.name for each in fields(handler)]
        described |= {name: redacted(name, getattr(handler, name)) for name in names}
    return described


def redacted(name: str, value: Any) -> Any:
    """Returns a value, by its name, without the secrets in it, such as the key of a tracker."""
    if isinstance(value, Mapping):
        return {key: redacted(str(key), each) for key, each in value.items()}
    if isinstance(value, str):
        return without_secrets([f"{name}={value}"])[0].removeprefix(f"{name}=")
    return value


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # the folder was removed
        return None
