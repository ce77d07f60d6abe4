"""The settings that a run is trained with, as plain data: numbers, strings, None, lists and dicts.

A checkpoint has the settings that the script of its run gave. A resume compares these settings with
those that the script of the resumed run gives. The values at the time of the save cannot be
compared, because they change during a run: for example, a schedule changes the learning rate, and
handlers freeze layers.
"""

import copy
import functools
import sys
import types
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Set
from dataclasses import dataclass
from dataclasses import field
from enum import Enum
from pathlib import PurePath
from typing import Any
from typing import TypeAlias

import torch
from ignite.engine import Events
from torch.optim.lr_scheduler import OneCycleLR
from xxhash import xxh3_64_hexdigest

from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import handlers_of
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.torch_schedulers import child_schedulers
from ignite_hooks.core.torch_schedulers import nested_schedulers
from ignite_hooks.core.torch_schedulers import one_cycle_constants
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.optim.gradient_clipping import GradientClipping
from ignite_hooks.optim.lr_scheduler import unwrapped_scheduler
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = [
    "SCHEDULE_KEYS",
    "ParamGroups",
    "SettingsRecord",
    "copied_groups",
    "plain",
    "record_settings",
    "settings_of",
    "settings_record",
    "unrestored_settings_of",
]

ParamGroups: TypeAlias = list[dict[str, Any]]

MAX_DEPTH = 8
"""The number of levels of nested containers and closures that ``plain`` enters."""

MAX_ELEMENTS = 64
"""The largest number of elements of a tensor that ``plain`` lists.

A larger tensor is described by its shape.
"""

SCHEDULE_KEYS = frozenset({"base_momentum", "max_lr", "max_momentum", "min_lr", "swa_lr"})
"""The keys that schedulers add to the optimizer's groups, besides ``initial_lr``."""

# Keys of an optimizer's group that settings_of() leaves out of the settings of the group: they are
# not settings, or they belong to the schedule.
_EXCLUDED_KEYS = {"params", "param_names", "initial_lr"} | SCHEDULE_KEYS

# Attributes of a scheduler that settings_of() leaves out. They change when the scheduler is moved,
# or can be computed from the optimizer's settings or from other attributes of the scheduler.
_EXCLUDED_ATTRIBUTES = {
    "T_cur",
    "T_i",
    "_get_lr_called_within_step",
    "_is_initial",
    "_last_lr",
    "_scale_fn_ref",
    "_step_count",
    "base_lrs",
    "best",
    "cooldown_counter",
    "default_min_lr",
    "last_epoch",
    "mode_worse",
    "num_bad_epochs",
    "optimizer",
    "verbose",
}


def settings_of(trainer: TrainingEngine) -> dict[str, Any]:
    """Returns the present settings of ``trainer``.

    Before any training, these are the settings that the script gives. The learning rate is always
    the rate that the schedule starts from. Functions, for example those of a ``LambdaLR``, are
    described by their code and the plain values that they use. Hyperparameters of modules, for
    example dropout, are not included, because a module has no list of them.
    """
    scheduler = trainer.lr_scheduler
    # Accelerate's wrapper has the optimizer as its attribute ``optimizer``.
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return {
        "optimizer": {
            "class": type(optimizer).__name__,
            "groups": [_settings_of_group(trainer, each) for each in optimizer.param_groups],
        },
        "scheduler": None
        if scheduler is None
        else _schedule_settings(unwrapped_scheduler(scheduler)),
        "frozen": sorted(
            f"{module_name}.{name}"
            for module_name, module in trainer.modules.items()
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad
        ),
        **unrestored_settings_of(trainer),
    }


def unrestored_settings_of(trainer: TrainingEngine) -> dict[str, Any]:
    """Returns the settings that are not part of any saved state, for example gradient clipping.

    A resumed run has the values that its own script gives.
    """
    (step,) = attached_handlers(trainer, OptimizerStep)
    accelerator = trainer.accelerator
    names = ("max_norm", "clip_value", "norm_type")
    clippings = [{n: plain(getattr(each, n)) for n in names} for each in _clippings(trainer)]
    return {
        "scheduler_at": None if step.lr_scheduler is None else step.scheduler.at,
        "scheduler_metric": step.scheduler.metric,
        "clipping": clippings[0] if len(clippings) == 1 else clippings or None,
        "accumulation": accelerator.gradient_accumulation_steps,
        "mixed_precision": str(accelerator.mixed_precision),
        "processes": accelerator.num_processes,
        "data": {} if trainer.feed is None else trainer.feed.facts,
    }


@dataclass
class SettingsRecord:
    """The settings of a run as its script gave them, kept with the trainer and in checkpoints.

    Attributes:
        given: the settings when the first ``SaveCheckpoint`` or ``ResumeCheckpoint`` was attached,
            before anything was trained. In a resumed run these are the settings in the checkpoint.
            If the resumed run uses the script's value of a setting instead, for example because of
            ``ResumeCheckpoint(override=…)``, this value is in the record.
        started: the settings after the handlers of STARTED; None if they were not recorded.
        writes: shows what handlers of STARTED and EPOCH_STARTED have written to the optimizer's
            groups. Maps the name of the event to a list of two entries: the settings of the groups
            before the handlers of the event, and after them. The first entry for STARTED has the
            settings at the call of ``record_settings``. Each epoch replaces the list of
            EPOCH_STARTED.
    """

    given: dict[str, Any]
    started: dict[str, Any] | None = None
    writes: dict[str, list[Any]] = field(default_factory=dict)

    def state_dict(self, trainer: TrainingEngine) -> dict[str, Any]:
        """Returns the record as plain data.

        The result also has the present values of the settings that a resume does not restore.
        """
        return {
            "given": self.given,
            "started": self.started,
            "writes": self.writes,
            "unrestored": unrestored_settings_of(trainer),
        }


def settings_record(trainer: TrainingEngine) -> SettingsRecord:
    """Returns the record of the trainer's settings; creates it on the first call."""
    kept = engine_storage(trainer)
    if "settings" not in kept:
        kept["settings"] = SettingsRecord(settings_of(trainer))
    record: SettingsRecord = kept["settings"]
    return record


def record_settings(attachment: Attachment) -> None:
    """Records the settings now, and adds callbacks that record them during a run.

    The callbacks record the settings after the handlers of STARTED, and both before and after the
    handlers of EPOCH_STARTED. Nothing is recorded at STARTED of a resumed run, nor at EPOCH_STARTED
    if the run resumes in the middle of the epoch: the resume then replaces what the handlers have
    written by the saved settings.
    """
    trainer = attachment.engine
    assert is_trainer(trainer)
    record = settings_record(trainer)
    as_built = plain(copied_groups(trainer))

    def record_started(trainer: TrainingEngine) -> None:
        if trainer.place.progress.iteration == 0:
            record.started = settings_of(trainer)
            record.writes["STARTED"] = [as_built, plain(copied_groups(trainer))]

    def record_before_epoch(trainer: TrainingEngine) -> None:
        if trainer.place.progress.batches == 0:
            record.writes["EPOCH_STARTED"] = [plain(copied_groups(trainer))]

    def record_after_epoch_started(trainer: TrainingEngine) -> None:
        if trainer.place.progress.batches == 0:
            record.writes.setdefault("EPOCH_STARTED", [None])[1:] = [plain(copied_groups(trainer))]

    # The handlers of an event are called in the order of their turns. Turn.NOTE comes before all
    # other handlers of the event, and Turn.CHECKPOINT comes after them.
    attachment.on(Events.STARTED, record_started, turn=Turn.CHECKPOINT)
    attachment.on(Events.EPOCH_STARTED, record_before_epoch, turn=Turn.NOTE)
    attachment.on(Events.EPOCH_STARTED, record_after_epoch_started, turn=Turn.CHECKPOINT)


def copied_groups(trainer: TrainingEngine) -> ParamGroups:
    """Returns a copy of the present settings of the optimizer's groups, without the parameters."""
    return [
        {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        for group in trainer.optimizer.param_groups
    ]


def _settings_of_group(trainer: TrainingEngine, group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a parameter group; "lr" is the rate that the schedule starts from."""
    settings = {name: plain(value) for name, value in group.items() if name not in _EXCLUDED_KEYS}
    if trainer.lr_scheduler is not None and "initial_lr" in group:
        settings["lr"] = plain(group["initial_lr"])
    schedulers = nested_schedulers(unwrapped_scheduler(trainer.lr_scheduler))
    if any(getattr(each, "cycle_momentum", False) for each in schedulers):
        # The schedule writes "momentum", or the first of "betas", at each move.
        settings.pop("momentum", None)
        if "betas" in settings:
            settings["betas"] = [None, *settings["betas"][1:]]
    return settings


def _schedule_settings(scheduler: Any) -> dict[str, Any]:
    """Returns the constants of a scheduler, including those in the groups of its optimizer."""
    groups = scheduler.optimizer.param_groups
    # "min_lr" is left out, because OneCycleLR computes it from its other constants.
    kept = sorted(SCHEDULE_KEYS.intersection(*groups) - {"min_lr"})
    return _constants_of(scheduler) | {name: [plain(g[name]) for g in groups] for name in kept}


def _constants_of(scheduler: Any) -> dict[str, Any]:
    """Returns the class and the constants of a torch scheduler and of the schedulers within it."""
    constants = {
        name.lstrip("_"): plain(value)
        for name, value in vars(scheduler).items()
        # Attributes with these prefixes are read separately below: one_cycle_constants() reads
        # "_anneal…" and "_schedule…" of a OneCycleLR, and child_schedulers() reads "_schedulers".
        if name not in _EXCLUDED_ATTRIBUTES and not name.startswith(("_anneal", "_schedule"))
    }
    if isinstance(scheduler, OneCycleLR):
        constants |= one_cycle_constants(scheduler)
    within = [_constants_of(each) for each in child_schedulers(scheduler)]
    if within:
        constants["schedulers"] = within
    return {"class": type(scheduler).__name__, **constants}


def _clippings(trainer: TrainingEngine) -> Iterator[GradientClipping]:
    """Yields each ``GradientClipping`` that was attached, or added with ``add_event_handler``."""
    own = attached_handlers(trainer, GradientClipping)
    yield from own
    for handler in handlers_of(trainer):
        if isinstance(handler, GradientClipping) and not any(handler is each for each in own):
            yield handler


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Returns ``value`` as plain data, so that equal settings compare equal in two processes.

    An object that cannot be written as plain data becomes the name of its class.

    Args:
        value: the value of a setting.
        depth: the number of levels of nested containers to convert. A container that is nested
            deeper becomes the name of its class.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):  # a lone surrogate cannot be written as JSON
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int | float):
        # A subclass, for example numpy's float64, becomes the plain number.
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, torch.Tensor):
        if value.numel() <= MAX_ELEMENTS and not value.is_meta:  # a meta tensor has no values
            return value.tolist()
        return f"a tensor of shape {list(value.shape)}"
    if depth == 0:
        return type(value).__name__
    within = functools.partial(plain, depth=depth - 1)
    if isinstance(value, Counter):
        # MultiStepLR turns its list of milestones into a Counter.
        return within(sorted(value.elements()))
    if isinstance(value, Mapping):
        return {plain(str(key)): within(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [within(each) for each in value]
    if isinstance(value, Set):
        return sorted(map(within, value), key=repr)
    if isinstance(value, Enum | PurePath):
        return value.name if isinstance(value, Enum) else str(value)
    if callable(value):
        return _describe_callable(value, within)
    item = getattr(type(value), "item", None)  # numpy's scalars have this method
    return within(value.item()) if item is not None else type(value).__name__


def _describe_callable(function: Any, within: Callable[[Any], Any]) -> Any:
    """Describes a callable by its name, its code, and the plain values that it uses.

    Args:
        function: the callable.
        within: converts the values that the callable uses to plain data. This is ``plain`` with a
            fixed argument ``depth``.
    """
    if isinstance(function, functools.partial):
        return {
            "function": within(function.func),
            "arguments": within(function.args),
            **{name: within(each) for name, each in function.keywords.items()},
        }
    if isinstance(function, types.MethodType):
        return within(function.__func__)
    if not isinstance(function, types.FunctionType):
        cls = function if isinstance(function, type) else type(function)
        name = getattr(function, "__name__", cls.__name__)
        attributes = {} if isinstance(function, type) else getattr(function, "__dict__", {})
        return {"function": name, **{key: within(each) for key, each in attributes.items()}}
    used = dict(zip(function.__code__.co_freevars, _closure_values(function), strict=False))
    scope = function.__globals__
    codes = _code_objects(function.__code__)
    names = {name for code in codes for name in code.co_names if name in scope}
    used |= {
        name: scope[name]
        for name in sorted(names)
        if isinstance(scope[name], bool | int | float | str | list | tuple)
    }
    return {
        "function": function.__qualname__,
        "code": _digest_of(function.__code__),
        "defaults": within(function.__defaults__),
        **{name: within(each) for name, each in used.items()},
    }


def _closure_values(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the cell is empty: the variable is not assigned yet
            yield None


def _code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields a code object, then the code objects of all functions that are defined within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_objects(constant)


def _digest_of(code: types.CodeType) -> str:
    """Returns the version of Python that compiled the code, followed by a digest of the code.

    The version is included, because each version of Python compiles code differently. Line numbers
    and file names do not enter the digest.
    """
    parts = [
        repr((each.co_code, each.co_names, [_constant_text(c) for c in each.co_consts]))
        for each in _code_objects(code)
    ]
    return f"{sys.implementation.cache_tag} {xxh3_64_hexdigest(repr(parts).encode())}"


def _constant_text(constant: Any) -> str:
    if isinstance(constant, types.CodeType):
        return "code"  # _code_objects() yields nested code objects separately
    # The order of a set of strings differs between two processes.
    return repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
