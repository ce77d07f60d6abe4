"""The table of tags. A tag is the name of a class in configurations.

A configuration is plain data, for example the content of a YAML file. In
``{"type": "clear_cache"}`` the tag "clear_cache" says that the mapping describes a ``ClearCache``.
A tag is looked up in this table and nowhere else, so a configuration can never cause the import of
a class.
"""

import re
from collections.abc import Callable
from typing import Any
from typing import TypeVar

from pydantic.dataclasses import is_pydantic_dataclass

from ignite_hooks.checkpoint.resume import ResumeCheckpoint
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.config.annotations import admits_none
from ignite_hooks.config.annotations import fields_of
from ignite_hooks.config.annotations import is_class
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
from ignite_hooks.observe.console import Console
from ignite_hooks.observe.growth.watch import GrowthWatch
from ignite_hooks.observe.mean_loss import MeanLoss
from ignite_hooks.observe.metrics_log import MetricsLog
from ignite_hooks.observe.report.training_report import TrainingReport
from ignite_hooks.observe.send_metrics import SendMetrics
from ignite_hooks.observe.throughput import Throughput
from ignite_hooks.observe.time_ledger import TimeLedger
from ignite_hooks.optim.gradient_clipping import GradientClipping
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = [
    "TAG",
    "not_data_message",
    "register",
    "registered_classes",
    "registered_subclasses",
    "tag_of",
]

TAG = "type"
"""The key of the tag in a mapping that describes a handler."""

# Files of users contain these tags, so a tag must not change.
_classes: dict[str, type] = {
    "clear_cache": ClearCache,
    "console": Console,
    "cuda_garbage_collector": CudaGarbageCollector,
    "epoch_max_ram": EpochMaxRAM,
    "experience_max_ram": ExperienceMaxRAM,
    "garbage_collector": GarbageCollector,
    "gradient_clipping": GradientClipping,
    "growth_watch": GrowthWatch,
    "max_device_memory": MaxDeviceMemory,
    "max_ram": MaxRAM,
    "mean_loss": MeanLoss,
    "metrics_log": MetricsLog,
    "minibatch_max_ram": MinibatchMaxRAM,
    "resume_checkpoint": ResumeCheckpoint,
    "save_checkpoint": SaveCheckpoint,
    "send_metrics": SendMetrics,
    "stream_max_ram": StreamMaxRAM,
    "throughput": Throughput,
    "time_ledger": TimeLedger,
    "training_report": TrainingReport,
}

# The classes of this package whose instances cannot be written as data. The values are the ends of
# the error messages: the reason and the remedy.
_HOLD_OBJECTS: dict[type, str] = {
    HookContext: "`before` and `after` are functions: register the context in code, on "
    "`trainer.hooks`",
    Hooks: "its contexts are functions: register the contexts in code, on `trainer.hooks`",
    OptimizerStep: "`accelerator`, `optimizer` and `lr_scheduler` are objects: write "
    "`scheduler_at` into RunSettings, and pass the objects to build(), which makes the "
    "OptimizerStep",
    Validation: "`evaluate` and `data` are objects: write the schedule as `validation` into "
    "RunSettings, and pass the objects to build() as `evaluator` and `validation_data`",
}

ClassT = TypeVar("ClassT", bound=type)


def register(tag: str) -> Callable[[ClassT], ClassT]:
    """Registers the decorated class under ``tag``, so that it can be used in configurations.

    ::

        @register("my_handler")
        @checked_dataclass
        class MyHandler(Handler):
            every_steps: Every | None = None

    With this class, a configuration can have ``{"type": "my_handler", "every_steps": 10}``.
    ``checked_dataclass`` is in ``ignite_hooks.handlers``. Any other pydantic dataclass can be
    registered too.

    If a class of the same module and name is registered already, the new class replaces the old
    one. So a cell of a notebook that registers a class can be run again.

    Raises:
        TypeError: the class is not a pydantic dataclass.
        ValueError: the tag is invalid, or belongs to another class; the class has another tag; a
            field is called ``type``; a field admits None, but its default is not None. TOML has no
            None, so a TOML file leaves out a field that is None. The field then gets its default,
            which must therefore be None.
    """
    if not isinstance(tag, str) or not re.fullmatch(r"[a-z][a-z0-9_.-]*", tag):
        raise ValueError(
            f"`tag` must be lower case letters, digits and `_`, `.`, `-`, got {tag!r}: "
            '@register("my_handler")'
        )

    def add(cls: ClassT) -> ClassT:
        _check_class(tag, cls)
        _classes[tag] = cls
        return cls

    return add


def tag_of(cls: type) -> str | None:
    """Returns the tag of a class; None if it has none. A subclass does not inherit a tag."""
    return next((tag for tag, each in _classes.items() if each is cls), None)


def registered_classes() -> dict[str, type]:
    """Returns a dict that maps each tag to its class, sorted by tag."""
    return dict(sorted(_classes.items()))


def registered_subclasses(annotation: Any) -> dict[str, type]:
    """Returns the registered classes that a field with this annotation accepts, by tag.

    If the annotation is ``object`` or not a class, the result is empty.
    """
    if not is_class(annotation) or annotation is object:
        return {}
    return {tag: cls for tag, cls in registered_classes().items() if issubclass(cls, annotation)}


def not_data_message(cls: type) -> str:
    """Returns the error message for an object that cannot be written as data for lack of a tag."""
    for base, reason in _HOLD_OBJECTS.items():
        if issubclass(cls, base):
            return f"a {cls.__name__} cannot be written as data, {reason}"
    return (
        f"a {cls.__name__} cannot be written as data, its class has no tag: "
        f'put @register("…") above the class if its fields are plain data'
    )


def _check_class(tag: str, cls: Any) -> None:
    """Raises an error if a class cannot be registered with this tag."""
    if not is_class(cls) or not is_pydantic_dataclass(cls):
        name = cls.__name__ if is_class(cls) else type(cls).__name__
        raise TypeError(
            f"the class registered as {tag!r} must be a checked dataclass, {name} is not: put "
            "@checked_dataclass, of ignite_hooks.handlers, between @register and the class"
        )
    # The classes are compared by their names, because a cell of a notebook makes a new class each
    # time it runs.
    other = _classes.get(tag)
    if other is not None and _qualified_name(other) != _qualified_name(cls):
        raise ValueError(
            f"`tag` must belong to one class, {tag!r} belongs to {_qualified_name(other)}: choose "
            f"another tag for {_qualified_name(cls)}"
        )
    former = tag_of(cls)
    if former not in (None, tag):
        raise ValueError(
            f"{cls.__name__} must have one tag, it has {former!r}, got {tag!r} too: remove one tag"
        )
    for name, field in fields_of(cls).items():
        if name == TAG:
            raise ValueError(
                f"no field of {cls.__name__} must be called {TAG!r}, which is the key of the tag: "
                "choose another name"
            )
        if admits_none(field.annotation) and (field.is_required or field.default is not None):
            default = "no default" if field.is_required else repr(field.default)
            raise ValueError(
                f"`{name}` of {cls.__name__} admits None, so None must be its default, got "
                f"{default}: TOML has no None; make None the default, or replace None by another "
                'value, for example "all"'
            )


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
