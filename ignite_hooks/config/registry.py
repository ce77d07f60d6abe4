"""Which class a tag names. Data is looked up here and nowhere else: nothing is imported for it."""

import re
from collections.abc import Callable
from typing import Any
from typing import TypeVar

from pydantic.dataclasses import is_pydantic_dataclass

from ignite_hooks.checkpoint.resume import ResumeCheckpoint
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.config.kinds import admits_none
from ignite_hooks.config.kinds import fields_of
from ignite_hooks.config.kinds import is_class
from ignite_hooks.evaluation.validation import Validation
from ignite_hooks.hooks.context import HookContext
from ignite_hooks.hooks.hooks import Hooks
from ignite_hooks.memory.clear_cache import ClearCache
from ignite_hooks.memory.garbage_collection import CudaGarbageCollector
from ignite_hooks.memory.garbage_collection import GarbageCollector
from ignite_hooks.memory.max_device_memory import MaxDeviceMemory
from ignite_hooks.memory.max_ram import MaxRAM
from ignite_hooks.memory.ram_metrics import EpochMaxRAM
from ignite_hooks.memory.ram_metrics import ExperienceMaxRAM
from ignite_hooks.memory.ram_metrics import MinibatchMaxRAM
from ignite_hooks.memory.ram_metrics import StreamMaxRAM
from ignite_hooks.optim.gradient_clipping import GradientClipping
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["TAG", "all_tagged", "register", "tag_of", "tagged", "why_it_is_no_data"]

TAG = "type"
"""The key of a mapping that says which class it is of."""

_classes: dict[str, type] = {
    "clear_cache": ClearCache,
    "cuda_garbage_collector": CudaGarbageCollector,
    "epoch_max_ram": EpochMaxRAM,
    "experience_max_ram": ExperienceMaxRAM,
    "garbage_collector": GarbageCollector,
    "gradient_clipping": GradientClipping,
    "max_device_memory": MaxDeviceMemory,
    "max_ram": MaxRAM,
    "minibatch_max_ram": MinibatchMaxRAM,
    "resume_checkpoint": ResumeCheckpoint,
    "save_checkpoint": SaveCheckpoint,
    "stream_max_ram": StreamMaxRAM,
}

_HOLD_OBJECTS: dict[type, str] = {
    HookContext: "`before` and `after` are functions: register it in code, on `trainer.hooks`",
    Hooks: "it holds contexts, which are functions: register them in code, on `trainer.hooks`",
    OptimizerStep: "`accelerator`, `optimizer` and `lr_scheduler` are objects, and a trainer makes "
    "one by itself: write its `scheduler_at` into RunSettings, and pass the others to build()",
    Validation: "`evaluate` and `data` are objects: write its schedule as `validation` into "
    "RunSettings, and pass them to build() as `evaluator` and `validation_data`",
}

ClassT = TypeVar("ClassT", bound=type)


def register(tag: str) -> Callable[[ClassT], ClassT]:
    """Has ``tag`` name the class below it, in what is written and what is read.

    ::

        @register("my_handler")
        @checked_dataclass  # of pydantic's
        class MyHandler(Handler):
            every_steps: Every | None = None

    A cell of a notebook can be run again: a class of the same module and name replaces that of
    before.

    Raises:
        TypeError: it is no pydantic dataclass.
        ValueError: the tag is of another class, or is no tag; the class has another tag; one of its
            fields is called ``type``, or admits None and has another default. TOML has no None: a
            field that is not there is None.
    """
    if not isinstance(tag, str) or not re.fullmatch(r"[a-z][a-z0-9_.-]*", tag):
        raise ValueError(
            f"`tag` must be lower case letters, digits and `_`, `.`, `-`, got {tag!r}: "
            '@register("my_handler")'
        )

    def add(cls: ClassT) -> ClassT:
        _check(tag, cls)
        _classes[tag] = cls
        return cls

    return add


def tag_of(cls: type) -> str | None:
    """The tag of exactly this class, if it has one."""
    return next((tag for tag, each in _classes.items() if each is cls), None)


def tagged(kind: Any) -> dict[str, type]:
    """Those that can stand where a value of the class ``kind`` is to be, by their tags."""
    if not is_class(kind) or kind is object:
        return {}
    return {tag: cls for tag, cls in all_tagged().items() if issubclass(cls, kind)}


def all_tagged() -> dict[str, type]:
    """All classes that have a tag."""
    return dict(sorted(_classes.items()))


def why_it_is_no_data(cls: type) -> str:
    """Why what has no tag cannot be written, and what to do."""
    for kind, why in _HOLD_OBJECTS.items():
        if issubclass(cls, kind):
            return f"a {cls.__name__} cannot be written as data, {why}"
    return (
        f"a {cls.__name__} cannot be written as data, its class has no tag: "
        f'put @register("…") above it if its fields are plain data'
    )


def _check(tag: str, cls: Any) -> None:
    if not is_class(cls) or not is_pydantic_dataclass(cls):
        name = cls.__name__ if is_class(cls) else type(cls).__name__
        raise TypeError(
            f"what is registered as {tag!r} must be a pydantic dataclass, {name} is none: put "
            "@pydantic.dataclasses.dataclass(frozen=True, eq=False, kw_only=True) between it and "
            "@register"
        )
    other = _classes.get(tag)
    if other is not None and _place_of(other) != _place_of(cls):
        raise ValueError(
            f"`tag` must be of one class, {tag!r} is of {'.'.join(_place_of(other))} already: "
            f"take another for {'.'.join(_place_of(cls))}"
        )
    first = tag_of(cls)
    if first not in (None, tag):
        raise ValueError(f"{cls.__name__} must have one tag, it has {first!r}: {tag!r} is too many")
    for name, field in fields_of(cls).items():
        if name == TAG:
            raise ValueError(
                f"no field of {cls.__name__} must be called {TAG!r}, which is the key of the tag: "
                "call it otherwise"
            )
        if admits_none(field.kind) and (field.is_required or field.default is not None):
            has = "none" if field.is_required else repr(field.default)
            raise ValueError(
                f"`{name}` of {cls.__name__} admits None, so None must be its default, it has "
                f'{has}: TOML has no None; let another value, "all" say, mean that'
            )


def _place_of(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__
