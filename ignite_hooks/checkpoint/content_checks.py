"""Checks of the values in a checkpoint's files, before any of them is loaded.

A file whose hash is right may hold something unexpected all the same: it was edited, or another
version of this package wrote it. Each function here yields the problems of one file, each with the
field and the value found there. Where an object of the user takes a state over by a
``load_state_dict`` of its own, only that can tell whether the state is right.
"""

import copy
import random
import warnings
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress
from inspect import signature
from typing import Annotated
from typing import Any
from typing import Literal

import numpy as np
import torch
from ignite.engine import State
from pydantic import AfterValidator
from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import NonNegativeInt
from pydantic import PositiveInt
from pydantic import ValidationError
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ignite_hooks.checkpoint.layout import OPTIMIZER
from ignite_hooks.checkpoint.layout import SCALER
from ignite_hooks.checkpoint.layout import SCHEDULER
from ignite_hooks.checkpoint.layout import TRAINER
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.core.torch_schedulers import schedulers_within
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import new_generator
from ignite_hooks.data.random_state import set_state
from ignite_hooks.data.recorded_order import unpacked

__all__ = [
    "asks_user",
    "problem_of_moving",
    "problems_of_groups",
    "problems_of_module_of_user",
    "problems_of_modules",
    "problems_of_optimizer",
    "problems_of_rank",
    "problems_of_scaler",
    "problems_of_scheduler",
    "problems_of_trainer",
]

MAX_SHOWN = 60
"""The longest value that is shown in a message, in characters."""
MAX_REPEATS = 1000
"""The most often that a schedule may name one milestone."""
MAX_BITS = 63
"""The largest integer that torch computes with."""


def _progress(value: list[Any]) -> list[Any]:
    is_right = len(value) == 4 and type(value[3]) is bool
    if not is_right or any(type(each) is not int or each < 0 for each in value[:3]):
        raise ValueError("must be three counters and a flag")
    iteration, epochs, batches, _ = value
    if epochs > iteration or batches > iteration:
        raise ValueError("must have at least as many iterations as epochs and batches")
    return value


def _pair(value: list[int]) -> list[int]:
    if len(value) != 2:
        raise ValueError("must be a pass and a number of batches")
    return value


def _random(value: dict[str, Any]) -> dict[str, Any]:
    """Sets the states on generators that nobody else has."""
    fresh: dict[str, RandomGenerator] = {
        "python": random.Random(),
        "numpy": np.random.RandomState(),
        "cpu": torch.Generator(),
    }
    for name, generator in fresh.items():
        _try(name, generator, value.get(name))
    if (device := value.get("device", "")) is not None and not (
        isinstance(device, torch.Tensor) and device.dtype == torch.uint8
    ):
        raise ValueError("device must be a tensor of bytes or None")
    if not isinstance(value.get("generators"), dict):
        raise ValueError("generators must be states by name")
    _generators(value["generators"])
    return value


def _generators(states: dict[str, Any]) -> dict[str, Any]:
    for name, state in states.items():
        generator = new_generator(name)
        if generator is not None:
            _try(name, generator, state)
    return states


def _try(name: str, generator: RandomGenerator, state: Any) -> None:
    try:
        set_state(generator, state)
    except Exception as error:
        raise ValueError(
            f"{name} must be a state of a {type(generator).__name__} "
            f"({type(error).__name__}: {error})"
        ) from error


class _Checked(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, arbitrary_types_allowed=True, defer_build=True
    )


class _Limits(_Checked):
    max_epochs: NonNegativeInt | None
    max_iters: NonNegativeInt | None
    max_steps: NonNegativeInt | None


_RandomDict = Annotated[dict[str, Any], AfterValidator(_random)]
_Names = dict[str, str]


class _BegunPass(_Checked):
    data_pass: NonNegativeInt
    random: _RandomDict


class _Opening(_Checked):
    iterator: _RandomDict | None
    first: _RandomDict | None


class _Source(_Checked):
    model_config = ConfigDict(extra="allow")  # each kind of data adds to it

    begun: _BegunPass | None
    seeds: list[int] = []
    opening: _Opening | None = None
    drew_seed: bool = False
    has_workers: bool = False
    generators: Annotated[dict[str, Any], AfterValidator(_generators)]


class _WorkerState(_Checked):
    random: _RandomDict
    objects: dict[str, Any]


class _Workers(_Checked):
    first: NonNegativeInt
    states: list[_WorkerState | None]


def _elements(value: dict[str, Any]) -> dict[str, Any]:
    try:
        unpacked(value)
    except Exception as error:
        raise ValueError(
            f"must be elements of a sampler ({type(error).__name__}: {error})"
        ) from error
    return value


_Elements = Annotated[dict[str, Any], AfterValidator(_elements)]


class _OrderOfData(_Checked):
    of: str
    state: Any
    start: NonNegativeInt
    elements: _Elements
    head: _Elements
    is_within: bool
    is_over: bool
    opening: _Opening | None = None


class _PlaceOfData(_Checked):
    of: str
    ahead: NonNegativeInt
    is_cut: bool
    keeper: Any
    objects: dict[str, Any]
    random: _RandomDict
    generators: Annotated[dict[str, Any], AfterValidator(_generators)]


class _Data(_Checked):
    position: Annotated[list[NonNegativeInt], AfterValidator(_pair)]
    samples: NonNegativeInt | None = None
    workers: _Workers | None = None
    order: _OrderOfData | None = None
    source: _Source
    place: _PlaceOfData | None = None
    draws_in_workers: bool = False
    facts: dict[str, int | str | None]


def _user_state(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in _OF_ENGINE or hasattr(State, name):
            raise ValueError(f"{name} is an attribute of the engine's own")
    return value


_OF_ENGINE = {*vars(State()), *State.event_to_attr.values(), "max_steps", "loss", "model_outputs"}


class _Objects(_Checked):
    user_state: Annotated[dict[str, Any], AfterValidator(_user_state)]
    metrics: dict[str, Any]
    measured_at: dict[str, NonNegativeInt]
    handlers: dict[str, Any]
    also: dict[str, Any]


class _Rank(_Checked):
    progress: Annotated[list[Any], AfterValidator(_progress)]
    limits: _Limits
    asked: _Limits
    epoch_length: PositiveInt | None
    passed_length: PositiveInt | None
    optimizer_step: NonNegativeInt
    data: _Data
    evaluations: dict[str, _Data | None] | None = None
    random: _RandomDict
    has_drawn_since: bool
    cut: bool | str
    unknown: _Names
    validation: NonNegativeInt
    due: dict[str, list[NonNegativeInt]]
    objects: _Objects | None = None


class _Kinds(_Checked):
    optimizer: str | None
    scheduler: str | None
    scaler: str | None


class _Flags(_Checked):
    frozen: list[str]
    eval: list[str]


class _Metadata(_Checked):
    model_config = ConfigDict(extra="allow")

    version: int | None = None


class _Module(_Checked):
    metadata: dict[str, _Metadata]
    flags: _Flags
    lazy: dict[str, Literal["parameter", "buffer"]]
    aliases: _Names = {}
    extra: dict[str, Any] = {}


class _ModuleOfUser(_Checked):
    module: dict[str, Any]
    metadata: dict[str, _Metadata]
    flags: _Flags
    shared: _Names


class _Trainer(_Checked):
    kinds: _Kinds
    groups: list[list[str]]
    objects: _Objects
    modules: dict[str, _Module]
    settings: dict[str, Any]
    uncertain: _Names
    unknown: _Names
    in_run: bool


class _Group(_Checked):
    model_config = ConfigDict(extra="allow")

    params: list[NonNegativeInt]


class _Optimizer(_Checked):
    state: dict[int, dict[Any, Any]]
    param_groups: Annotated[list[_Group], Field(min_length=1)]


def problems_of_trainer(content: Any) -> Iterator[str]:
    """Yields the problems of ``trainer.pt``."""
    yield from _problems(TRAINER, _Trainer, content)


def problems_of_rank(name: str, content: Any, manifest: Manifest) -> Iterator[str]:
    """Yields the problems of the file of a process, and where the manifest contradicts it."""
    problems = [*_problems(name, _Rank, content)]
    yield from problems
    if problems:
        return
    iteration, epochs, *_ = content["progress"]
    for field, told, found in (
        ("step", manifest.step, content["optimizer_step"]),
        ("epoch", manifest.epoch, epochs),
        ("iteration", manifest.iteration, iteration),
    ):
        if told != found:
            yield f"{name}: {field} is {found}, and {told} in the manifest"
    if content["optimizer_step"] > iteration:
        yield f"{name}: optimizer_step is {content['optimizer_step']}, of {iteration} iterations"


def problems_of_modules(modules: Mapping[str, Any]) -> Iterator[str]:
    """Yields the problems of the states of modules: names and tensors, or extra states."""
    for name, state in modules.items():
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            yield f"the {name} must be tensors by name, got {_shown(state)}"


def problems_of_module_of_user(path: str, content: Any) -> Iterator[str]:
    """Yields the problems of the state of a module in ``also`` or of a handler, in ``trainer.pt``.

    Args:
        path: the fields that lead to the state.
        content: the state.
    """
    yield from _problems(f"{TRAINER}: {path}", _ModuleOfUser, content)


def problems_of_groups(content: Any) -> Iterator[str]:
    """Yields what keeps the optimizer's file from having groups of parameters and their states."""
    yield from _problems(OPTIMIZER, _Optimizer, content)


def problems_of_optimizer(
    content: Any,
    optimizer: Any,
    *,
    is_same_torch: bool,
    is_same_scheduler: bool,
    has_free_rates: bool = False,
) -> Iterator[str]:
    """Yields the problems of the optimizer's state, for one of the same class and groups.

    Args:
        content: the content of the file.
        optimizer: the optimizer that is to load it.
        is_same_torch: whether the same version of torch wrote it. Another may have other settings,
            which torch fills in.
        is_same_scheduler: whether its scheduler had the class that it has now. Schedulers keep
            settings of their own there.
        has_free_rates: whether the user makes the learning rates. They may have any sign.
    """
    inner = _inner(optimizer)
    theirs, ours = content["param_groups"], optimizer.param_groups
    sizes = [len(group["params"]) for group in theirs]
    if [n for group in theirs for n in group["params"]] != [*range(sum(sizes))]:
        yield f"{OPTIMIZER}: param_groups must number the parameters from 0"
        return
    for number, (group, own) in enumerate(zip(theirs, ours, strict=True)):
        path = f"{OPTIMIZER}: param_groups.{number}"
        settings = _without_parameters(own)
        required = settings if is_same_scheduler else inner.defaults
        required = required if is_same_torch else {}
        found = [*_unlike(path, group, settings, required)]
        if found:
            yield from found
            continue
        tried = {**group, "lr": own["lr"]} if has_free_rates else group
        try:
            expected = _state_of_torch(tried, own, type(inner))
        except Exception as error:
            if _refuses_its_own(own, type(inner)):
                continue
            yield f"{path} must have settings of a {type(inner).__name__}: {error}"
            continue
        for index, parameter in zip(group["params"], own["params"], strict=True):
            state = content["state"].get(index, {})
            if state and not is_lazy(parameter):
                yield from _problems_of_state(
                    f"{OPTIMIZER}: state.{index}", state, expected, parameter
                )
    for index in content["state"].keys() - {*range(sum(sizes))}:
        yield f"{OPTIMIZER}: state.{index} is of no parameter, there are {sum(sizes)}"


def problems_of_scheduler(content: Any, scheduler: Any, *, is_same_torch: bool) -> Iterator[str]:
    """Yields the problems of a scheduler's state, for one of the same class.

    torch's ``load_state_dict`` makes attributes of whatever it is given.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(content, dict):
        yield f"{SCHEDULER}: must be a dict, got {_shown(content)}"
        return
    if not type(scheduler).__module__.startswith("torch."):
        return
    ours = scheduler.state_dict()
    for name in content.keys() - ours.keys():
        if not isinstance(name, str) or name == "optimizer" or hasattr(type(scheduler), name):
            yield f"{SCHEDULER}: {name!r} is no field of a {type(scheduler).__name__}"
    yield from _unlike(SCHEDULER, content, ours, ours if is_same_torch else (), joint=": ")
    groups = len(scheduler.optimizer.param_groups)
    for name in ("base_lrs", "_last_lr"):
        rates = content.get(name, [])
        if not isinstance(rates, list) or (name in ours and len(rates) != groups):
            yield f"{SCHEDULER}: {name} must have a rate for each of {groups} groups"
    for name in ("last_epoch", "_step_count"):
        if name in ours and name in content and type(content[name]) is not int:
            yield f"{SCHEDULER}: {name} must be an integer, got {_shown(content[name])}"


def problem_of_moving(content: Any, scheduler: Any, groups: Any) -> Iterator[str]:
    """Yields what keeps a scheduler of torch from moving on from a state that looks right.

    A copy of the scheduler moves, on an optimizer that nobody uses, with the settings of the
    checkpoint's groups. A scheduler that asks a function of the user is not tried.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if asks_user(scheduler):
        return
    # A copy: schedulers write to a rate that is a tensor in place.
    settings = [copy.deepcopy(_without_parameters(group)) for group in groups]
    like = [{"params": [torch.zeros(1)], **each} for each in settings]
    stand_in = torch.optim.SGD(like, lr=0.1)
    replaced = {id(scheduler.optimizer): stand_in, id(_inner(scheduler.optimizer)): stand_in}
    tried = copy.deepcopy(scheduler, replaced)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tried.load_state_dict(copy.deepcopy(content))
            tried.step(*([0.0] if isinstance(tried, ReduceLROnPlateau) else []))
    except ValueError:
        pass  # a schedule that has come to its end
    except Exception as error:
        yield (
            f"{SCHEDULER}: must be a state that a {type(scheduler).__name__} can move from, which "
            f"says: {type(error).__name__}: {error}"
        )


def asks_user(scheduler: Any) -> bool:
    """Returns whether a function or a class of the user makes the rates of a scheduler."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if scheduler is None:
        return False
    is_own = not type(scheduler).__module__.startswith("torch.")
    inner = schedulers_within(scheduler)
    return is_own or hasattr(scheduler, "lr_lambdas") or any(map(asks_user, inner))


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def problems_of_scaler(content: Any, scaler: Any) -> Iterator[str]:
    """Yields the problems of the gradient scaler's state."""
    if not isinstance(content, dict):
        yield f"{SCALER}: must be a dict, got {_shown(content)}"
        return
    ours = scaler.state_dict()
    yield from _unlike(SCALER, content, ours, ours if content else (), joint=": ")


def _problems(file: str, model: type[BaseModel], content: Any) -> Iterator[str]:
    try:
        model.model_validate(content)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            field = ".".join(map(str, each["loc"]))
            told = each["msg"].removeprefix("Value error, ")
            told = told.replace("Input should be", "must be").replace("Field", "field")
            if each["type"] == "missing":
                yield f"{file}: {field} is missing"
            elif each["type"] == "extra_forbidden":
                yield f"{file}: {field} is no field of it"
            else:
                at = f"{field} " if field else ""
                yield f"{file}: {at}{told}, got {_shown(each['input'])}"


_LIKE_PARAMETER = (2, 3)


def _state_of_torch(group: Mapping[str, Any], own: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Returns the state that an optimizer of torch with these settings keeps for a parameter.

    An optimizer that nobody uses is made, so that torch itself checks the settings, and makes a
    step. Nothing is known of other optimizers, or of a step that needs more than a gradient.

    Raises:
        Exception: whatever torch raises for a setting.
    """
    if not kind.__module__.startswith("torch.optim.") or not own["params"]:
        return {}
    names = signature(kind).parameters
    settings = {name: value for name, value in group.items() if name in names and name != "params"}
    like = own["params"][0]
    parameter = torch.zeros(
        _LIKE_PARAMETER, dtype=like.dtype, device=like.device, requires_grad=True
    )
    one = kind([parameter], **settings)
    parameter.grad = torch.zeros_like(parameter)
    with suppress(Exception):
        one.step()
    return dict(one.state[parameter])


def _refuses_its_own(own: Mapping[str, Any], kind: type) -> bool:
    """Returns whether torch cannot make an optimizer with what this one has come to have.

    A schedule may have written there what a constructor refuses and a step takes: a number into
    ``betas`` that are tensors, for instance.
    """
    try:
        _state_of_torch(own, own, kind)
    except Exception:
        return True
    return False


def _problems_of_state(
    path: str, state: Mapping[Any, Any], expected: Mapping[str, Any], parameter: torch.Tensor
) -> Iterator[str]:
    """Yields where a state cannot be one of this parameter."""
    for name, example in expected.items():
        if not isinstance(example, torch.Tensor):
            continue
        value = state.get(name)
        if example.shape == _LIKE_PARAMETER:
            shape = value.shape if isinstance(value, torch.Tensor) else None
            if shape != parameter.shape:
                yield (
                    f"{path}.{name} must be a tensor of its parameter's shape, "
                    f"{tuple(parameter.shape)}, got {_shown(value)}"
                )
        elif example.numel() == 1 and (_kind(value) != "a number" or float(value or 0) < 0):
            yield f"{path}.{name} must be a number of at least 0, got {_shown(value)}"


def _inner(optimizer: Any) -> Any:
    """Returns the optimizer under Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _unlike(
    path: str,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    required: Collection[str],
    joint: str = ".",
) -> Iterator[str]:
    """Yields where values are of another kind than those they replace, or are missing."""
    for name, own in ours.items():
        if name not in theirs:
            if name in required:
                yield f"{path}{joint}{name} is missing"
        elif not _is_like(theirs[name], own):
            yield f"{path}{joint}{name} must be {_kind(own)}, got {_shown(theirs[name])}"


def _is_like(theirs: Any, ours: Any) -> bool:
    """Returns whether a value can stand where ours stands now, as far as its kind tells."""
    if _kind(ours) == _UNKNOWN:
        return not isinstance(theirs, torch.Tensor | Mapping | list)
    if isinstance(ours, bool):
        return theirs is None or theirs in (0, 1) if not isinstance(theirs, torch.Tensor) else False
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if not all(isinstance(key, str) for key in ours):  # MultiStepLR's milestones, say
            are_counts = all(
                type(each) is int and 0 <= each <= MAX_REPEATS for each in theirs.values()
            )
            return are_counts and all(isinstance(key, int | float) for key in theirs)
        return all(key in theirs and _is_like(theirs[key], ours[key]) for key in ours)
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        has_its_length = len(theirs) == len(ours)
        return (has_its_length or isinstance(ours, list)) and all(map(_is_like, theirs, ours))
    return _kind(theirs) == _kind(ours)


_UNKNOWN = "something else"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return _UNKNOWN
    if isinstance(value, int | float | np.number) or (
        isinstance(value, torch.Tensor) and value.numel() == 1
    ):
        return "a number"
    for kind, name in ((str, "a text"), (Mapping, "a dict"), (list | tuple, "a list")):
        if isinstance(value, kind):
            return name
    return _UNKNOWN


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except Exception:  # a Counter compares its values for this
        return f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
