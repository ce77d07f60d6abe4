"""Describes a run in the manifest of a checkpoint, for people to read.

A resume does not use the description.
"""

import importlib.metadata
import platform
from collections.abc import Collection
from collections.abc import Mapping
from functools import cache
from functools import lru_cache
from typing import Any

from ignite_hooks.checkpoint.command_line import command_line
from ignite_hooks.checkpoint.contents import Content
from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.layout import rank_file
from ignite_hooks.checkpoint.layout import registered_files
from ignite_hooks.checkpoint.plain_data import plain_text
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.data.batch_size import global_batch_size

__all__ = ["contents_of", "description_of", "versions"]

MAX_NAMES = 100
"""The largest number of names that a manifest lists for one kind of objects, such as "handlers"."""

_PACKAGES = (
    "ignite-hooks",
    "torch",
    "accelerate",
    "pytorch-ignite",
    "numpy",
    "safetensors",
)
_GLOBAL_GENERATORS = ("python", "numpy", "cpu", "device")


def description_of(
    trainer: TrainingEngine, files: Mapping[str, Content], processes: int
) -> dict[str, Any]:
    """Returns the fields of a manifest that describe a run.

    Args:
        trainer: the trainer.
        files: the contents of the files that rank 0 is about to write, by the names of the files.
        processes: the number of processes.
    """
    settings = _content(files, TRAINER).get("settings", {})
    return {
        "settings": {**settings.get("given", {}), **settings.get("unrestored", {})},
        "global_batch": _global_batch(trainer, processes),
        "contents": contents_of(files),
        "command_line": list(command_line()),
        "versions": versions(),
    }


def contents_of(files: Mapping[str, Content]) -> dict[str, list[str]]:
    """Maps each kind of objects in a checkpoint, such as "handlers", to the names of the objects.

    Kinds without objects are left out.

    Args:
        files: the contents of the files that rank 0 is about to write, by the names of the files.
    """
    about, rank_content = _content(files, TRAINER), _content(files, rank_file(0))
    objects, random = about.get("objects", {}), rank_content.get("random") or {}
    data_generators = rank_content.get("data", {}).get("source", {}).get("generators", {})
    generators = [name for name in _GLOBAL_GENERATORS if random.get(name) is not None]
    registered = [files[name] for name in registered_files(set(files))]
    # Maps a part of the state to the reason why a resume may not restore the part exactly.
    unknown = {**about.get("unknown", {}), **about.get("uncertain", {})}
    found: dict[str, Collection[Any]] = {
        # The model is added here, because a sharded model is in none of the files in `files`.
        "modules": {"model": None, **about.get("modules", {})},
        # "kinds" has the class names of the optimizer, the scheduler and the gradient scaler.
        **{kind: [name] for kind, name in about.get("kinds", {}).items() if name is not None},
        "handlers": objects.get("handlers", ()),
        "also": objects.get("also", ()),
        "metrics": objects.get("metrics", ()),
        "user state": objects.get("user_state", ()),
        "registered with the accelerator": [getattr(each, "owner", "?") for each in registered],
        "random generators": [*generators, *random.get("generators", ()), *data_generators],
        "unknown": [f"{part}: {reason}" for part, reason in unknown.items()],
    }
    return {kind: list(_shorten_names(tuple(names))) for kind, names in found.items() if names}


@cache
def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a checkpoint depends on."""
    found = {name: _version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found, "platform": platform.platform()}


def _version(package: str) -> str:
    """Returns the version of a package; "unknown" for a source folder that was not installed."""
    try:
        return str(importlib.metadata.version(package))
    except Exception:  # the metadata is missing or damaged
        return "unknown"


def _global_batch(trainer: TrainingEngine, processes: int) -> int | None:
    """Returns how many samples all processes together use in one iteration; None if not known."""
    if trainer.feed is None:
        return None
    try:
        return global_batch_size(trainer.feed.loader, processes)
    except Exception:
        # A property of a user's loader or sampler may raise any error, and the save must continue.
        return None


def _content(files: Mapping[str, Content], name: str) -> Mapping[str, Any]:
    """Returns the data in a file; an empty dict if the file is absent or holds only tensors."""
    content = files.get(name)
    return content.content if isinstance(content, Objects) else {}


@lru_cache(64)  # most names are the same at each save
def _shorten_names(names: tuple[Any, ...]) -> list[str]:
    """Returns up to ``MAX_NAMES`` different names, and a text that counts the omitted names."""
    unique = dict.fromkeys(names)
    shown = [plain_text(name) for name in list(unique)[:MAX_NAMES]]
    return [*shown, f"... {len(unique) - MAX_NAMES} more"] if len(unique) > MAX_NAMES else shown
