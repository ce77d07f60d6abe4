"""Checks of the values in a checkpoint's files, before a trainer loads any value.

A file with the right hash can still hold unexpected values, for example because someone edited it
and updated the hash, or because another version of this package wrote it. Each function
``…_problems`` yields the problems of one file or one state. A problem is a text that names the
field and the value found there. The state of a user's object is not checked: only the
``load_state_dict`` of the object can tell whether the state is right.

The pydantic models below are the formats of the files. The modules that write the values explain
them in full: ``trainer/run_position.py``, ``data/feed.py`` and ``checkpoint/state.py``. In the data
a *pass* is one iteration over the whole data, and a *position* is the number of complete passes and
the number of batches that the present pass has had so far.
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
from ignite_hooks.core.torch_schedulers import child_schedulers
from ignite_hooks.data.random_state import RandomGenerator
from ignite_hooks.data.random_state import new_generator
from ignite_hooks.data.random_state import set_generator_state
from ignite_hooks.data.recorded_order import unpack_elements

__all__ = [
    "has_user_rates",
    "module_problems",
    "optimizer_file_problems",
    "optimizer_problems",
    "rank_file_problems",
    "scaler_problems",
    "scheduler_problems",
    "scheduler_step_problems",
    "trainer_file_problems",
    "user_module_problems",
]

MAX_SHOWN_LENGTH = 60
"""The number of characters of a value that a message shows."""
MAX_REPEATS = 1000
"""The largest allowed count of a milestone in the state of a ``MultiStepLR``.

The state maps each milestone to a count: how often it occurs in the argument ``milestones``. When
``step`` is called with an epoch, the scheduler makes a list with all these occurrences. With a huge
count this list would not fit into memory.
"""
MAX_BITS = 63
"""The largest number of bits, without the sign, of an integer that torch computes with (int64)."""


# The functions `_check_…` are validators of the fields below. pydantic puts the path of the field
# before the message of a validator, as in "progress must be …".


def _check_progress(value: list[Any]) -> list[Any]:
    """Checks the fields of ``Progress``: three counters and a flag.

    The counters are the iterations, the complete epochs, and the batches of the present epoch. The
    flag says whether the epoch has had all its batches.
    """
    is_right = len(value) == 4 and type(value[3]) is bool
    if not is_right or any(type(each) is not int or each < 0 for each in value[:3]):
        raise ValueError("must be three counters and a flag")
    iteration, epochs, batches, _ = value
    if epochs > iteration or batches > iteration:
        raise ValueError("must not have more epochs or batches than iterations")
    return value


def _check_position(value: list[int]) -> list[int]:
    """Checks a position in the data: complete passes, and batches of the present pass."""
    if len(value) != 2:
        raise ValueError("must be two numbers: of complete passes, and of batches in this pass")
    return value


def _check_random_states(value: dict[str, Any]) -> dict[str, Any]:
    """Checks states by setting them on new generators, which raise an error for a wrong state."""
    fresh: dict[str, RandomGenerator] = {
        "python": random.Random(),
        "numpy": np.random.RandomState(),
        "cpu": torch.Generator(),
    }
    for name, generator in fresh.items():
        _check_generator_state(name, generator, value.get(name))
    # "device" is the state of a generator on a device, such as a GPU, that this machine may lack.
    # So the state is not set on a generator, and only its type is checked.
    if (device := value.get("device", "")) is not None and not (
        isinstance(device, torch.Tensor) and device.dtype == torch.uint8
    ):
        raise ValueError("device must be a tensor of bytes or None")
    if not isinstance(value.get("generators"), dict):
        raise ValueError("generators must be a dict of states by name")
    _check_generator_states(value["generators"])
    return value


def _check_generator_states(states: dict[str, Any]) -> dict[str, Any]:
    """Checks a dict that maps the names of random generators to their states.

    The name of a generator contains its algorithm. If such a generator cannot be created here, for
    example because it is on a GPU, its state is not checked.
    """
    for name, state in states.items():
        generator = new_generator(name)
        if generator is not None:
            _check_generator_state(name, generator, state)
    return states


def _check_generator_state(name: str, generator: RandomGenerator, state: Any) -> None:
    try:
        set_generator_state(generator, state)
    except Exception as error:
        raise ValueError(
            f"{name} must be a state of a {type(generator).__name__} "
            f"({type(error).__name__}: {error})"
        ) from error


class _StrictModel(BaseModel):
    """A base of pydantic models that refuse unknown fields and convert no values."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        arbitrary_types_allowed=True,
        defer_build=True,  # pydantic builds a model on its first use, so that imports stay fast
    )


class _LimitFields(_StrictModel):
    """The limits of a run. A limit of None does not apply."""

    max_epochs: NonNegativeInt | None
    max_iters: NonNegativeInt | None
    max_steps: NonNegativeInt | None


_RandomStates = Annotated[dict[str, Any], AfterValidator(_check_random_states)]
_TextByName = dict[str, str]


class _BegunPass(_StrictModel):
    """The pass that began last: its number, and the random states at its start."""

    data_pass: NonNegativeInt
    random: _RandomStates


class _Opening(_StrictModel):
    """The random states before a sampler drew the order of a pass from the global generators.

    Some samplers draw the order in ``iter(sampler)``. Others draw it when the iterator is asked for
    its first element.

    Attributes:
        iterator: the states before ``iter(sampler)``; None if this call did not draw the order.
        first: the states before the iterator was asked for its first element; None if the order was
            not drawn then.
    """

    iterator: _RandomStates | None
    first: _RandomStates | None


class _SourceFields(_StrictModel):
    """The state from which a data loader can begin the same pass again.

    Attributes:
        begun: the pass that began last; None before the first pass.
        seeds: the seeds of Accelerate's seedable samplers.
        opening: see ``_Opening``; None if the sampler did not draw the order of the pass from the
            global generators.
        drew_seed: whether torch drew a seed for the workers of the loader when the pass began.
        has_workers: whether workers that outlive a pass (persistent workers) were running.
        generators: the states of the random generators of the data, by name.
    """

    model_config = ConfigDict(extra="allow")  # each kind of data source adds further fields

    begun: _BegunPass | None
    seeds: list[int] = []
    opening: _Opening | None = None
    drew_seed: bool = False
    has_workers: bool = False
    generators: Annotated[dict[str, Any], AfterValidator(_check_generator_states)]


class _WorkerState(_StrictModel):
    """The random states of one worker of the loader, and the states of objects in its data set."""

    random: _RandomStates
    objects: dict[str, Any]


class _Workers(_StrictModel):
    """The states from which new workers of the loader continue a pass.

    Attributes:
        first: the number of the batch that worker 0 loads first.
        states: for each worker, the state to continue from; None if the worker begins with its
            random generators as torch seeds them.
    """

    first: NonNegativeInt
    states: list[_WorkerState | None]


def _check_elements(value: dict[str, Any]) -> dict[str, Any]:
    """Checks elements of a sampler in the form that ``pack_elements`` returns."""
    try:
        unpack_elements(value)
    except Exception as error:
        raise ValueError(
            f"must be elements of a sampler ({type(error).__name__}: {error})"
        ) from error
    return value


_Elements = Annotated[dict[str, Any], AfterValidator(_check_elements)]


class _DataOrder(_StrictModel):
    """The state of a sampler, and elements that it has yielded (``data/recorded_order.py``).

    An element is one index or index batch. A sampler often yields elements for batches that
    training has not received yet. These elements are saved, because a sampler that loads the state
    continues after them.

    Attributes:
        of: the name of the sampler: its path in the loader, and its class.
        state: the ``state_dict`` of the sampler.
        start: the number of elements in the pass up to the position of the run.
        elements: the further elements that the sampler has yielded already.
        head: the first elements of the pass, with which Accelerate pads the last batches.
        is_within: whether the position is within a pass that has begun. If not, ``elements`` and
            ``head`` are empty.
        is_over: whether the sampler was at the end of a pass, or at the start of the next one.
        opening: see ``_Opening``; None if the sampler did not draw the order of the pass from the
            global generators.
    """

    of: str
    state: Any
    start: NonNegativeInt
    elements: _Elements
    head: _Elements
    is_within: bool
    is_over: bool
    opening: _Opening | None = None


class _SnapshotFields(_StrictModel):
    """The state of data with a *keeper* (``data/snapshots.py``).

    The keeper is an object in the data whose ``state_dict`` contains the position, for example a
    data loader.

    Attributes:
        of: the name of the keeper: its path in the data, and its class.
        ahead: the number of batches that the loader has loaded beyond the position.
        is_cut: whether the previous pass was left before its end.
        keeper: the state of the keeper.
        objects: the states of the other objects in the data, by name.
        random: the states of the global random generators.
        generators: the states of the random generators of the data, by name.
    """

    of: str
    ahead: NonNegativeInt
    is_cut: bool
    keeper: Any
    objects: dict[str, Any]
    random: _RandomStates
    generators: Annotated[dict[str, Any], AfterValidator(_check_generator_states)]


class _DataFields(_StrictModel):
    """The position in the data of a trainer or an evaluator, with all that a resume needs.

    Attributes:
        position: the complete passes, and the batches of the present pass.
        samples: the number of samples in the pass up to the position; None if not known.
        workers: the states of the workers; None if there are none, or if they are not known.
        order: the state of a sampler that has a ``state_dict``; None without such a sampler.
        source: the state from which the loader can begin the same pass again.
        place: the state of data with a keeper; None for other data.
        draws_in_workers: whether ``place`` includes the random states of the workers, so that the
            workers of a resumed run continue the random draws.
        facts: properties, such as the batch size, that must be equal for a resume to give the same
            batches.
    """

    position: Annotated[list[NonNegativeInt], AfterValidator(_check_position)]
    samples: NonNegativeInt | None = None
    workers: _Workers | None = None
    order: _DataOrder | None = None
    source: _SourceFields
    place: _SnapshotFields | None = None
    draws_in_workers: bool = False
    facts: dict[str, int | str | None]


def _check_user_state(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in _ENGINE_ATTRIBUTES or hasattr(State, name):
            raise ValueError(f"{name} is an attribute that the engine sets")
    return value


# The attributes of `trainer.state` that the engine sets. A checkpoint must not set them, because it
# would change the limits or the counters of the run.
_ENGINE_ATTRIBUTES = {
    *vars(State()),
    *State.event_to_attr.values(),
    "max_steps",
    "loss",
    "model_outputs",
}


class _ObjectStates(_StrictModel):
    """The states of handlers, metrics and objects of the user, by name.

    Attributes:
        user_state: attributes of ``trainer.state``, by name.
        metrics: the values in ``trainer.state.metrics``.
        measured_at: for each metric of a validation, the iteration of its last measurement.
        handlers: the states of handlers, and of objects that handlers hold.
        also: the states of the objects in ``SaveCheckpoint(also=…)``.
    """

    user_state: Annotated[dict[str, Any], AfterValidator(_check_user_state)]
    metrics: dict[Any, Any]  # Ignite allows a metric any name, such as the number of a class
    measured_at: dict[Any, NonNegativeInt]
    handlers: dict[str, Any]
    also: dict[str, Any]


class _RankFile(_StrictModel):
    """The file of one process: its counters, limits, position in the data and random states.

    Attributes:
        progress: the iterations, the complete epochs, the batches of the present epoch, and whether
            the epoch has had all its batches.
        limits: the present limits, which handlers may have changed.
        asked: the limits that were passed to ``run``.
        epoch_length: the number of batches in an epoch if it is fixed; None if an epoch is one
            pass over the data.
        passed_length: the number of batches in the last epoch that was a pass over the data from
            start to end; None if there was no such epoch.
        optimizer_step: the number of optimizer steps that have changed the parameters.
        data: the position in the training data.
        evaluations: the position in each set of validation data. The key is the prefix of the
            results, such as "val_".
        random: the states of the random generators.
        has_drawn_since: whether the run ended with batches that no optimizer step had used. If so,
            ``data`` has the position before these batches, but ``random`` has the states after
            them.
        cut: the request that has ended the present epoch early; False without a request.
        unknown: maps a part of the state to the reason why the saved part may be incomplete.
        validation: the number of completed validations.
        due: the work that was due and not done yet. For example, the value is
            ``{"validations": [1]}`` if the second ``Validation`` handler was due.
        objects: the states that differ from those of rank 0; None on rank 0.
    """

    progress: Annotated[list[Any], AfterValidator(_check_progress)]
    limits: _LimitFields
    asked: _LimitFields
    epoch_length: PositiveInt | None
    passed_length: PositiveInt | None
    optimizer_step: NonNegativeInt
    data: _DataFields
    evaluations: dict[str, _DataFields | None] | None = None
    random: _RandomStates
    has_drawn_since: bool
    cut: bool | str
    unknown: _TextByName
    validation: NonNegativeInt
    due: dict[str, list[NonNegativeInt]]
    objects: _ObjectStates | None = None


class _ClassNames(_StrictModel):
    """The names of the classes of three objects; None for an object that the trainer lacks."""

    optimizer: str | None
    scheduler: str | None
    scaler: str | None


class _FlagFields(_StrictModel):
    """The names of the frozen parameters, and of the submodules in eval mode."""

    frozen: list[str]
    eval: list[str]


class _MetadataFields(_StrictModel):
    """The metadata of one submodule, as torch keeps them in ``state_dict()._metadata``."""

    model_config = ConfigDict(extra="allow")

    version: int | None = None


class _ModuleFields(_StrictModel):
    """The information in ``trainer.pt`` that is necessary to read the file of one module.

    Attributes:
        metadata: maps the path of a submodule to its metadata.
        flags: the frozen parameters, and the submodules in eval mode.
        lazy: the kinds of the tensors that were not initialized yet, by name.
        aliases: maps each further name of a tied weight to the first name of the weight.
        extra: the values that safetensors cannot hold, by name.
    """

    metadata: dict[str, _MetadataFields]
    flags: _FlagFields
    lazy: dict[str, Literal["parameter", "buffer"]]
    aliases: _TextByName = {}
    extra: dict[str, Any] = {}


class _UserModuleState(_StrictModel):
    """The state of a module in ``SaveCheckpoint(also=…)`` or in a handler.

    ``StatefulObject.state_dict`` returns this state.

    Attributes:
        module: the ``state_dict`` of the module.
        metadata: maps the path of a submodule to its metadata.
        flags: the frozen parameters, and the submodules in eval mode.
        shared: the tensors that also belong to the trainer's modules. The keys are the names of the
            tensors in this module. The values are their names in the trainer's modules.
    """

    module: dict[str, Any]
    metadata: dict[str, _MetadataFields]
    flags: _FlagFields
    shared: _TextByName


class _TrainerFile(_StrictModel):
    """The file ``trainer.pt``.

    Attributes:
        kinds: the classes of the optimizer, the scheduler and the gradient scaler.
        groups: the names of the parameters in each group of the optimizer.
        objects: the states of handlers, metrics and objects of the user.
        modules: maps the name of a module to the information about its file.
        settings: the result of ``SettingsRecord.state_dict``.
        uncertain: maps each part of the state that a failure may have changed to an explanation.
        unknown: maps a part of the state to the reason why the saved part may be incomplete.
        in_run: whether the checkpoint was saved during a run, and not between two runs.
    """

    kinds: _ClassNames
    groups: list[list[str]]
    objects: _ObjectStates
    modules: dict[str, _ModuleFields]
    settings: dict[str, Any]
    uncertain: _TextByName
    unknown: _TextByName
    in_run: bool


class _ParameterGroup(_StrictModel):
    model_config = ConfigDict(extra="allow")  # the settings, which each optimizer class defines

    params: list[NonNegativeInt]


class _OptimizerFile(_StrictModel):
    """The ``state_dict`` of an optimizer. Each key of ``state`` is the number of a parameter."""

    state: dict[int, dict[Any, Any]]
    param_groups: Annotated[list[_ParameterGroup], Field(min_length=1)]


def trainer_file_problems(content: Any) -> Iterator[str]:
    """Yields the problems of ``trainer.pt``."""
    yield from _validation_problems(TRAINER, _TrainerFile, content)


def rank_file_problems(name: str, content: Any, manifest: Manifest) -> Iterator[str]:
    """Yields wrong or missing fields of one process's file, and contradictions to the manifest."""
    problems = [*_validation_problems(name, _RankFile, content)]
    yield from problems
    if problems:  # the fields that are compared below may be missing
        return
    iteration, epochs, *_ = content["progress"]
    for field, expected, actual in (
        ("step", manifest.step, content["optimizer_step"]),
        ("epoch", manifest.epoch, epochs),
        ("iteration", manifest.iteration, iteration),
    ):
        if expected != actual:
            yield f"{name}: {field} is {actual}, but {expected} in the manifest"
    if content["optimizer_step"] > iteration:
        steps = content["optimizer_step"]
        yield f"{name}: optimizer_step is {steps}, which is more than iteration {iteration}"


def module_problems(modules: Mapping[str, Any]) -> Iterator[str]:
    """Yields a problem for each module of the trainer whose state is not a dict with text keys."""
    for name, state in modules.items():
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            yield f"the {name} must be a dict of tensors by name, got {_format(state)}"


def user_module_problems(path: str, content: Any) -> Iterator[str]:
    """Yields the problems of the state of a module that is in ``also`` or belongs to a handler.

    Args:
        path: the fields of ``trainer.pt`` that lead to the state, for messages.
        content: the state.
    """
    yield from _validation_problems(f"{TRAINER}: {path}", _UserModuleState, content)


def optimizer_file_problems(content: Any) -> Iterator[str]:
    """Yields the problems of the optimizer's file: the groups of parameters and their states."""
    yield from _validation_problems(OPTIMIZER, _OptimizerFile, content)


def optimizer_problems(
    content: Any,
    optimizer: Any,
    *,
    is_same_torch: bool,
    is_same_scheduler: bool,
    has_free_rates: bool = False,
) -> Iterator[str]:
    """Yields the problems of the saved state of an optimizer.

    The caller has checked that the saved optimizer has the same class and groups as the present
    one.

    Args:
        content: the content of the optimizer's file.
        optimizer: the present optimizer, which is to load the state.
        is_same_torch: whether the present version of torch wrote the file. If not, settings may be
            missing: torch fills them in.
        is_same_scheduler: whether the saved scheduler has the same class as the present one. If
            not, settings that the present scheduler keeps in the groups may be missing.
        has_free_rates: whether code of the user computes the learning rates. If so, a rate may have
            any value, even a negative one.
    """
    inner = _unwrapped(optimizer)
    saved, current = content["param_groups"], optimizer.param_groups
    sizes = [len(group["params"]) for group in saved]
    # torch uses the numbers in "params" to find the state of each parameter.
    if [n for group in saved for n in group["params"]] != [*range(sum(sizes))]:
        yield f"{OPTIMIZER}: param_groups must number the parameters from 0"
        return
    for number, (group, current_group) in enumerate(zip(saved, current, strict=True)):
        path = f"{OPTIMIZER}: param_groups.{number}"
        settings = _group_settings(current_group)
        required = settings if is_same_scheduler else inner.defaults
        required = required if is_same_torch else {}
        mismatches = [*_mismatches(path, group, settings, required)]
        if mismatches:
            yield from mismatches
            continue
        # `_example_state` calls the constructor of the optimizer, which refuses a negative rate.
        # Rates that code of the user computes may be negative, so the present rate replaces them.
        group_to_try = {**group, "lr": current_group["lr"]} if has_free_rates else group
        try:
            expected = _example_state(group_to_try, current_group, type(inner))
        except Exception as error:
            if _refuses_current_settings(current_group, type(inner)):
                continue  # the present settings raise an error, too, so the file may be right
            yield f"{path} must have valid settings of a {type(inner).__name__}: {error}"
            continue
        for index, parameter in zip(group["params"], current_group["params"], strict=True):
            state = content["state"].get(index, {})
            if state and not is_lazy(parameter):  # a lazy parameter has no shape yet
                yield from _parameter_state_problems(
                    f"{OPTIMIZER}: state.{index}", state, expected, parameter
                )
    for index in content["state"].keys() - {*range(sum(sizes))}:
        count = f"{sum(sizes)} parameters"
        yield f"{OPTIMIZER}: state.{index} belongs to no parameter: there are {count}"


def scheduler_problems(content: Any, scheduler: Any, *, is_same_torch: bool) -> Iterator[str]:
    """Yields the problems of the saved state of a scheduler.

    The caller has checked that the saved scheduler has the same class as the present one. The
    method ``load_state_dict`` of a torch scheduler checks nothing: it makes each entry of the state
    an attribute of the scheduler.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # without Accelerate's wrapper
    if not isinstance(content, dict):
        yield f"{SCHEDULER}: must be a dict, got {_format(content)}"
        return
    if not type(scheduler).__module__.startswith("torch."):
        return  # this function does not know the fields of a user's class
    current = scheduler.state_dict()
    for name in content.keys() - current.keys():
        # An unknown name, for example from another version of torch, is allowed unless the entry
        # would replace a method or the optimizer.
        if not isinstance(name, str) or name == "optimizer" or hasattr(type(scheduler), name):
            yield f"{SCHEDULER}: {name!r} is not a field of a {type(scheduler).__name__}"
    yield from _mismatches(
        SCHEDULER, content, current, current if is_same_torch else (), separator=": "
    )
    groups = len(scheduler.optimizer.param_groups)
    for name in ("base_lrs", "_last_lr"):
        rates = content.get(name, [])
        if not isinstance(rates, list) or (name in current and len(rates) != groups):
            yield f"{SCHEDULER}: {name} must have a rate for each of the {groups} groups"
    for name in ("last_epoch", "_step_count"):
        if name in current and name in content and type(content[name]) is not int:
            yield f"{SCHEDULER}: {name} must be an integer, got {_format(content[name])}"


def scheduler_step_problems(content: Any, scheduler: Any, groups: Any) -> Iterator[str]:
    """Yields a problem if a torch scheduler cannot load the state and make a step.

    A copy of the scheduler loads the state and makes a step, on a dummy optimizer that has the
    settings of the checkpoint's groups. Nothing is checked if the scheduler calls code of the user.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if has_user_rates(scheduler):
        return
    # The settings are copied, because the step below changes a rate that is a tensor in place.
    settings = [copy.deepcopy(_group_settings(group)) for group in groups]
    dummy_groups = [{"params": [torch.zeros(1)], **each} for each in settings]
    dummy_optimizer = torch.optim.SGD(dummy_groups, lr=0.1)
    # This memo makes `deepcopy` insert the dummy optimizer wherever the scheduler refers to the
    # trainer's optimizer.
    replaced = {
        id(scheduler.optimizer): dummy_optimizer,
        id(_unwrapped(scheduler.optimizer)): dummy_optimizer,
    }
    scheduler_copy = copy.deepcopy(scheduler, replaced)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler_copy.load_state_dict(copy.deepcopy(content))
            # The step of a ReduceLROnPlateau needs a metric. Any number will do, such as 0.0.
            scheduler_copy.step(*([0.0] if isinstance(scheduler_copy, ReduceLROnPlateau) else []))
    except ValueError:
        pass  # OneCycleLR raises a ValueError after its last step: the schedule is at its end
    except Exception as error:
        yield (
            f"{SCHEDULER}: must be a state from which a {type(scheduler).__name__} can make a "
            f"step, got {type(error).__name__}: {error}"
        )


def has_user_rates(scheduler: Any) -> bool:
    """Returns whether a scheduler, or one inside it, computes rates with code of the user."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if scheduler is None:
        return False
    is_own = not type(scheduler).__module__.startswith("torch.")
    inner = child_schedulers(scheduler)
    return is_own or hasattr(scheduler, "lr_lambdas") or any(map(has_user_rates, inner))


def _group_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def scaler_problems(content: Any, scaler: Any) -> Iterator[str]:
    """Yields the problems of the gradient scaler's state."""
    if not isinstance(content, dict):
        yield f"{SCALER}: must be a dict, got {_format(content)}"
        return
    current = scaler.state_dict()
    yield from _mismatches(SCALER, content, current, current if content else (), separator=": ")


def _validation_problems(file: str, model: type[BaseModel], content: Any) -> Iterator[str]:
    """Yields a problem for each field of ``content`` that the pydantic model refuses."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            field = ".".join(map(str, each["loc"]))
            # The messages of pydantic are reworded like the messages of the other checks.
            message = each["msg"].removeprefix("Value error, ")
            message = message.replace("Input should be", "must be").replace("Field", "field")
            if each["type"] == "missing":
                yield f"{file}: {field} is missing"
            elif each["type"] == "extra_forbidden":
                yield f"{file}: {field} is not a field of this file"
            else:
                location = f"{field} " if field else ""
                yield f"{file}: {location}{message}, got {_format(each['input'])}"


# The shape of the example parameter in `_example_state`. If an entry of the state has this shape,
# such as a momentum, a saved entry must have the shape of its parameter.
_EXAMPLE_SHAPE = (2, 3)


def _example_state(
    group: Mapping[str, Any], current_group: Mapping[str, Any], cls: type
) -> dict[str, Any]:
    """Returns the state that a torch optimizer with the given settings keeps for one parameter.

    The function creates a new optimizer, whose constructor checks the settings. This optimizer
    makes a step with a parameter of the shape ``_EXAMPLE_SHAPE``. The result is empty for an
    optimizer that is not torch's, and for an optimizer whose step needs a closure (``LBFGS``).

    Args:
        group: the settings of the group, for example from a checkpoint.
        current_group: the present group, whose first parameter gives the dtype and the device.
        cls: the class of the optimizer.

    Raises:
        Exception: any exception that torch raises for a setting.
    """
    if not cls.__module__.startswith("torch.optim.") or not current_group["params"]:
        return {}
    names = signature(cls).parameters
    settings = {name: value for name, value in group.items() if name in names and name != "params"}
    first_parameter = current_group["params"][0]
    parameter = torch.zeros(
        _EXAMPLE_SHAPE,
        dtype=first_parameter.dtype,
        device=first_parameter.device,
        requires_grad=True,
    )
    example_optimizer = cls([parameter], **settings)
    parameter.grad = torch.zeros_like(parameter)
    with suppress(Exception):  # a step that needs a closure fails, and leaves the state empty
        example_optimizer.step()
    return dict(example_optimizer.state[parameter])


def _refuses_current_settings(current_group: Mapping[str, Any], cls: type) -> bool:
    """Returns whether torch refuses to create an optimizer with the present settings of a group.

    A scheduler can write a setting that the ``step`` of the optimizer accepts and the constructor
    refuses. For example, the scheduler replaces one of two tensors in ``betas`` by a number.
    """
    try:
        _example_state(current_group, current_group, cls)
    except Exception:
        return True
    return False


def _parameter_state_problems(
    path: str, state: Mapping[Any, Any], expected: Mapping[str, Any], parameter: torch.Tensor
) -> Iterator[str]:
    """Yields a problem for each entry of a parameter's state that does not fit the parameter.

    Args:
        path: the fields that lead to the state, for messages.
        state: the state of the parameter in the checkpoint.
        expected: the state that ``_example_state`` has returned for the optimizer.
        parameter: the present parameter.
    """
    for name, example in expected.items():
        if not isinstance(example, torch.Tensor):
            continue
        value = state.get(name)
        # A momentum has the shape of the parameter, and a step count is one number.
        if example.shape == _EXAMPLE_SHAPE:
            shape = value.shape if isinstance(value, torch.Tensor) else None
            if shape != parameter.shape:
                yield (
                    f"{path}.{name} must be a tensor of its parameter's shape, "
                    f"{tuple(parameter.shape)}, got {_format(value)}"
                )
        elif example.numel() == 1 and (_type_name(value) != "a number" or float(value or 0) < 0):
            yield f"{path}.{name} must be a number of at least 0, got {_format(value)}"


def _unwrapped(optimizer: Any) -> Any:
    """Returns the optimizer without Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _mismatches(
    path: str,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    required: Collection[str],
    separator: str = ".",
) -> Iterator[str]:
    """Yields a problem for each required value that is missing, and for each value of a wrong type.

    Args:
        path: the fields that lead to the values, for messages.
        saved: the values in the checkpoint, by name.
        current: the present values by name. A saved value must be able to replace the present one.
        required: the names that must be in the checkpoint.
        separator: the text between ``path`` and a name.
    """
    for name, value in current.items():
        if name not in saved:
            if name in required:
                yield f"{path}{separator}{name} is missing"
        elif not _can_replace(saved[name], value):
            yield f"{path}{separator}{name} must be {_type_name(value)}, got {_format(saved[name])}"


def _can_replace(saved: Any, current: Any) -> bool:
    """Returns whether a saved value can replace a current one, as far as the types show."""
    if _type_name(current) == _OTHER_TYPE:
        # A present value such as None may be replaced by any value but a tensor or a container.
        return not isinstance(saved, torch.Tensor | Mapping | list)
    if isinstance(current, bool):
        # Options of torch such as `foreach` may be None, too.
        return saved is None or saved in (0, 1) if not isinstance(saved, torch.Tensor) else False
    if isinstance(current, Mapping) and isinstance(saved, Mapping):
        if not all(isinstance(key, str) for key in current):
            # A mapping whose keys are not texts is the Counter of milestones in a MultiStepLR.
            are_counts = all(
                type(each) is int and 0 <= each <= MAX_REPEATS for each in saved.values()
            )
            return are_counts and all(isinstance(key, int | float) for key in saved)
        return all(key in saved and _can_replace(saved[key], current[key]) for key in current)
    if isinstance(current, tuple | list) and isinstance(saved, tuple | list):
        # If the present value is a list, the saved list may have another length. A tuple such as
        # `betas` must keep its length.
        has_its_length = len(saved) == len(current)
        return (has_its_length or isinstance(current, list)) and all(
            map(_can_replace, saved, current)
        )
    return _type_name(saved) == _type_name(current)


_OTHER_TYPE = "something else"


def _type_name(value: Any) -> str:
    """Returns the name of the type of a value, for messages.

    Types that can replace each other have one name: integers, floats and tensors with one element
    are "a number".
    """
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return _OTHER_TYPE  # torch raises an OverflowError for such an integer
    if isinstance(value, int | float | np.number) or (
        isinstance(value, torch.Tensor) and value.numel() == 1
    ):
        return "a number"
    for cls, name in ((str, "a text"), (Mapping, "a dict"), (list | tuple, "a list")):
        if isinstance(value, cls):
            return name
    return _OTHER_TYPE


def _format(value: Any) -> str:
    """Returns the text of a value for a message; a long text is cut."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    try:
        text = repr(value)
    except Exception:  # the repr of a Counter sorts its values, which fails for some types
        return f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[:MAX_SHOWN_LENGTH]}…"
