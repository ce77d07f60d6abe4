"""A module as a file: how it is taken, read, compared and given back.

A module's ``state_dict`` leaves out which parameters are frozen and which submodules are in eval
mode. Those flags are saved and restored with it. All names are those of the plain model, without
wrappers (``plain_names.py``).

A module may load in a way of its own: buffers that grow, keys that a hook renames, parts that it
leaves out. Names and shapes do not tell then, and the module is asked (``module_trial.py``).
"""

from collections import OrderedDict
from collections import defaultdict
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.parameter import UninitializedBuffer
from torch.nn.parameter import UninitializedParameter
from torch.nn.parameter import is_lazy

from ignite_hooks.checkpoint.contents import Content
from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.contents import Tensors
from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.layout import module_files
from ignite_hooks.checkpoint.module_trial import Sources
from ignite_hooks.checkpoint.module_trial import put_back
from ignite_hooks.checkpoint.plain_names import PlainNames
from ignite_hooks.core.torch_modules import empty_buffers
from ignite_hooks.core.torch_modules import has_own_loading
from ignite_hooks.core.torch_modules import parts_to_save

__all__ = [
    "ModuleFit",
    "Restored",
    "differences_of_module",
    "fit_of_module",
    "flags_of",
    "flags_renamed",
    "give_to_module",
    "left_out_of_state",
    "module_file",
    "read_module",
    "set_flags",
    "split_state",
]

_LAZY = {"parameter": UninitializedParameter, "buffer": UninitializedBuffer}


class ModuleFit(NamedTuple):
    """How a state fits a module.

    Args:
        differences: what keeps the state from being loaded: names and shapes.
        renamed: parameters that are loaded from a tensor of another name, and that name.
    """

    differences: list[str]
    renamed: dict[str, str]


class Restored(NamedTuple):
    """What of a module is not, after loading, as it was saved.

    Args:
        converted: the names of tensors of another dtype.
        unlike: the names of tensors that the module's own loading has changed or left out.
        unmatched: where names need not match, those that the state lacks, and those that the
            module lacks.
    """

    converted: set[str]
    unlike: set[str]
    unmatched: tuple[tuple[str, ...], tuple[str, ...]]


def module_file(
    name: str,
    module: torch.nn.Module,
    *,
    safe_serialization: bool,
    names: PlainNames | None = None,
) -> tuple[str, Content, dict[str, Any]]:
    """Returns the file of a module, its content, and what is to be known besides to read it.

    Args:
        name: of the module.
        module: the module.
        safe_serialization: whether the file is one of safetensors.
        names: the plain names of what is in the module, if they are known.
    """
    own_state: dict[str, Any] = module.state_dict()
    names = names or PlainNames(module)
    state = names.plain_state(own_state)
    versions = getattr(own_state, "_metadata", {})
    lazy = {key: value for key, value in state.items() if is_lazy(value)}
    about: dict[str, Any] = {
        "metadata": {k: dict(value) for k, value in names.plain_state(versions).items()},
        "flags": flags_of(module, names),
        "lazy": {
            key: "parameter" if isinstance(value, torch.nn.Parameter) else "buffer"
            for key, value in lazy.items()
        },
    }
    state = {key: value for key, value in state.items() if key not in lazy}
    safe_file, pickle_file = module_files(name)
    if not safe_serialization:
        return pickle_file, Objects(state, f"the {name}"), about
    tensors, about["aliases"], about["extra"] = split_state(state)
    return safe_file, Tensors(tensors), about


def split_state(
    state: Mapping[str, Any],
) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, Any]]:
    """Splits a state into what safetensors can hold, and the rest.

    Returns:
        Tensors that share no memory; the names of those that are the same as one of them, tied
        weights for instance, and its name; and all other values.
    """
    tensors = {key: value for key, value in state.items() if _fits(value)}
    aliases = _aliases(tensors)
    extra = {key: value for key, value in state.items() if key not in tensors}
    kept = {key: tensor for key, tensor in tensors.items() if key not in aliases}
    return _apart(kept), aliases, extra


def read_module(
    folder: Path, name: str, files: Collection[str], about: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The state of a module, its tensors still in the file; None if the checkpoint has none.

    Raises:
        ValueError: the file cannot be read, or holds code.
    """
    safe_file, pickle_file = module_files(name)
    lazy = {key: _LAZY[kind]() for key, kind in about.get("lazy", {}).items()}
    if pickle_file in files:
        state: dict[str, Any] = load_objects(folder / pickle_file, mapped=True)
        return {**state, **lazy}
    if safe_file not in files or not about:
        return None
    try:
        tensors = load_file(folder / safe_file)
    except SafetensorError as error:
        raise ValueError(f"{safe_file} cannot be read ({error})") from error
    aliases = {alias: tensors[first] for alias, first in about["aliases"].items()}
    return {**tensors, **aliases, **about["extra"], **lazy}


def differences_of_module(
    name: str, theirs: Mapping[str, Any], module: torch.nn.Module
) -> list[str]:
    """Returns what keeps a state with plain names from being this module's: names and shapes."""
    return fit_of_module(name, theirs, {"metadata": {}}, module).differences


def fit_of_module(
    name: str,
    theirs: Mapping[str, Any] | None,
    about: Mapping[str, Any],
    module: torch.nn.Module,
    *,
    strict: bool = True,
    keeps_parameters: bool = True,
) -> ModuleFit:
    """Returns what keeps a state from being this module's. The module is as before.

    Args:
        name: of the module, for messages.
        theirs: the state, None if the checkpoint has none.
        about: what is known besides, as ``module_file`` has returned it.
        module: the module.
        strict: whether all names must be on both sides.
        keeps_parameters: whether a module that replaces its parameters when it is loaded is
            refused: an optimizer would go on with those that were there before.
    """
    if theirs is None:
        return ModuleFit([f"the {name} is not in the checkpoint"], {})
    names = PlainNames(module)
    own_state = module.state_dict()
    ours = names.plain_state(own_state)
    parts = list(_parts_with_own_loading(module))
    paths = [names.plain(path) for path, _ in parts]
    empty = {names.plain(key) for key in empty_buffers(module)} - ours.keys()
    if any(isinstance(value, torch.Tensor) and value.is_meta for value in ours.values()):
        return ModuleFit([f"the {name} is on the meta device: call its to_empty() first"], {})
    common = theirs.keys() & ours.keys()
    if not strict and not common and not paths:
        return ModuleFit([f"the {name} has no name of the module's"], {})
    compared = common if not strict else (theirs.keys() - empty) | ours.keys()
    theirs_compared = {key: value for key, value in theirs.items() if key in compared}
    ours_compared = {key: value for key, value in ours.items() if key in compared}
    found = list(
        _differences(name, _outside(theirs_compared, paths), _outside(ours_compared, paths))
    )
    renamed: dict[str, str] = {}
    for (path, part), plain_path in zip(parts, paths, strict=True):
        state = names.actual_state(_within(theirs, plain_path), own_state)
        sources = Sources(state)
        before = dict(part.named_parameters())
        with put_back(part), torch.random.fork_rng(devices=[]):
            failure = None
            try:
                _make_buffers(module, _within(theirs, plain_path), names)
                with sources:
                    metadata = names.actual_metadata(about["metadata"])
                    _load(part, path, state, metadata, strict=strict)
            except Exception as error:  # whatever a user's code raises
                failure = error
            now = {id(each) for each in part.parameters()}
            trained = {key: each for key, each in before.items() if each.requires_grad}
            lost = [key for key, each in trained.items() if id(each) not in now]
        if failure is not None:
            found += _differences(
                name, _within(theirs_compared, plain_path), _within(ours_compared, plain_path)
            )
            where = f"{plain_path} of the {name}" if plain_path else f"the {name}"
            found.append(f"{where} does not take the state ({_one_line(failure)})")
        elif lost and keeps_parameters:
            found.append(
                f"loading the {name} replaces {', '.join(lost)}, which the optimizer has: have "
                "its loading copy into the parameters that are there"
            )
        for key, parameter in before.items():
            own_name, source = names.plain(_joined(path, key)), sources.of(parameter)
            if source is not None and _is_renamed(theirs, own_name, names.plain(source)):
                renamed[own_name] = names.plain(source)
    return ModuleFit(found, renamed)


def give_to_module(
    module: torch.nn.Module,
    state: Mapping[str, Any],
    about: Mapping[str, Any],
    *,
    strict: bool = True,
) -> Restored:
    """Loads a state that fits the module; returns what is not as it was saved.

    Args:
        module: the module.
        state: the state.
        about: what is known besides. Flags are set if they are in it.
        strict: whether all names must be on both sides.
    """
    names = PlainNames(module)
    before = names.plain_state(module.state_dict())
    converted = {
        key
        for key, value in state.items()
        if key in before and getattr(value, "dtype", None) != getattr(before[key], "dtype", None)
    }
    paths = [names.plain(path) for path, _ in _parts_with_own_loading(module)]
    _make_buffers(module, state, names)
    own_state = names.actual_state(state, module.state_dict())
    sources = Sources(own_state)
    with sources:
        metadata = names.actual_metadata(about["metadata"])
        result = _load(module, "", own_state, metadata, strict=strict)
    if "flags" in about:
        set_flags(module, about["flags"])
    missing, unexpected = (
        tuple(map(names.plain, getattr(result, f"{kind}_keys", ())))
        for kind in ("missing", "unexpected")
    )
    unmatched = missing, unexpected
    if not (paths and strict):
        return Restored(converted, set(), unmatched)
    now = names.plain_state(module.state_dict())
    for key, parameter in module.named_parameters():
        source, own_name = sources.of(parameter), names.plain(key)
        if source is not None and own_name in now and own_name not in state:
            now[names.plain(source)] = now.pop(own_name)
    theirs = {key: state[key] for path in paths for key in _within(state, path)}
    ours = {key: now[key] for path in paths for key in _within(now, path)}
    unlike = (theirs.keys() ^ ours.keys()) | {
        key for key in theirs.keys() & ours.keys() if digest_of(theirs[key]) != digest_of(ours[key])
    }
    return Restored(converted, unlike - converted, unmatched)


def left_out_of_state(module: torch.nn.Module, names: PlainNames | None = None) -> list[str]:
    """Returns the names of parameters and persistent buffers that the module's state leaves out.

    Args:
        module: the module.
        names: the plain names of what is in it, if they are known.
    """
    names = names or PlainNames(module)
    if not [p for p, each in names.modules if has_own_loading(each, is_root=each is module)]:
        return []
    state = module.state_dict()
    saved = {_memory_of(value) for value in state.values()}
    return [
        names.plain(name)
        for name, tensor in parts_to_save(module).items()
        if name not in state and not is_lazy(tensor) and _memory_of(tensor) not in saved
    ]


def flags_of(module: torch.nn.Module, names: PlainNames | None = None) -> dict[str, list[str]]:
    """Returns the names of the frozen parameters and of the submodules in eval mode.

    Args:
        module: the module.
        names: the plain names of what is in it, if they are known.
    """
    names = names or PlainNames(module)
    modes = names.plain_state({path: each.training for path, each in names.modules})
    trained = names.plain_state({name: each.requires_grad for name, each in names.parameters})
    return {
        "frozen": [name for name, is_trained in trained.items() if not is_trained],
        "eval": [path for path, is_training in modes.items() if not is_training],
    }


def set_flags(module: torch.nn.Module, flags: Mapping[str, Any]) -> None:
    """Sets what ``flags_of`` has returned for a module that was built the same way."""
    plain = PlainNames(module).plain
    for name, parameter in module.named_parameters():
        is_trained = plain(name) not in flags["frozen"]
        if parameter.requires_grad != is_trained:
            parameter.requires_grad = is_trained  # the method refuses lazy ones
    for name, each in module.named_modules():
        each.training = plain(name) not in flags["eval"]


def flags_renamed(
    flags: Mapping[str, list[str]], renamed: Mapping[str, str]
) -> dict[str, list[str]]:
    """Returns flags with the names of a module that has ``renamed`` some of its parameters."""
    parameters = {then: now for now, then in renamed.items()}
    modules = {then.rpartition(".")[0]: now.rpartition(".")[0] for now, then in renamed.items()}
    return {
        "frozen": [parameters.get(name, name) for name in flags["frozen"]],
        "eval": [modules.get(name, name) for name in flags["eval"]],
    }


def _load(
    module: torch.nn.Module,
    path: str,
    state: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    strict: bool,
) -> Any:
    """Loads the part of a state that belongs to the submodule at ``path``."""
    start = f"{path}." if path else ""
    versioned = OrderedDict((key.removeprefix(start), value) for key, value in state.items())
    versioned._metadata = {  # type: ignore[attr-defined]
        key.removeprefix(path).removeprefix("."): dict(value)
        for key, value in metadata.items()
        if key == path or key.startswith(start)
    }
    if path:  # torch does not call the method of a submodule, which may be another
        return torch.nn.Module.load_state_dict(module, versioned, strict)
    return module.load_state_dict(versioned) if strict else module.load_state_dict(versioned, False)


def _make_buffers(module: torch.nn.Module, state: Mapping[str, Any], names: PlainNames) -> None:
    """Makes the buffers that a module makes with its first batch, which torch would not load."""
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    for key, owner in empty_buffers(module).items():
        value = state.get(names.plain(key))
        if isinstance(value, torch.Tensor) and not has_own_loading(owner):
            setattr(owner, key.rpartition(".")[2], torch.empty_like(value, device=device))


def _parts_with_own_loading(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yields the outermost submodules that load in a way of their own, and their paths."""
    above: list[str] = []
    for path, each in module.named_modules():
        if any(path.startswith(f"{other}." if other else "") for other in above):
            continue
        if has_own_loading(each, is_root=not path) or _has_odd_tensors(each):
            above.append(path)
            yield path, each


def _has_odd_tensors(module: torch.nn.Module) -> bool:
    """Returns whether torch may refuse to copy into a tensor of the right shape."""
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(
        tensor.is_inference()
        or tensor.layout != torch.strided
        or any(tensor.stride(axis) == 0 < size - 1 for axis, size in enumerate(tensor.shape))
        for tensor in tensors
        if not is_lazy(tensor)
    )


def _is_renamed(state: Mapping[str, Any], name: str, source: str) -> bool:
    """Returns whether a parameter is loaded from another tensor than that of its name.

    Tied weights have two names for one tensor.
    """
    return name != source and _memory_of(state.get(name)) != _memory_of(state[source])


def _differences(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*ours, *theirs}):
        if key not in ours:
            yield f"the {name} has no {key}, the checkpoint has"
        elif key not in theirs:
            yield f"the {name} has {key}, the checkpoint has not"
        elif not key.endswith("_extra_state"):
            then, now = _looks(theirs[key], ours[key])
            if then != now:
                yield f"{key} had {then}, it has {now}"


def _looks(theirs: Any, ours: Any) -> tuple[str, str]:
    """Describes two values by what keeps one from being loaded into the other, if anything does."""
    if _shape(theirs) != _shape(ours):
        return f"the shape {_shape(theirs)}", f"{_shape(ours)}"
    if not isinstance(ours, torch.Tensor) or is_lazy(ours):
        return "", ""
    if theirs.layout != ours.layout or theirs.is_quantized != ours.is_quantized:
        return f"the layout {_layout(theirs)}", _layout(ours)
    if _rank(theirs) > _rank(ours):  # torch would drop a part of each number
        return f"the dtype {theirs.dtype}", f"{ours.dtype}"
    return "", ""


def _shape(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return None
    return "of a lazy module" if is_lazy(value) else tuple(value.shape)


def _layout(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype}" if tensor.is_quantized else f"{tensor.layout}"


def _rank(tensor: torch.Tensor) -> int:
    """Returns 2 for complex numbers, 1 for real ones, 0 for integers."""
    return 2 if tensor.is_complex() else int(tensor.is_floating_point())


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _within(state: Mapping[str, Any], path: str) -> dict[str, Any]:
    start = f"{path}." if path else ""
    return {key: value for key, value in state.items() if key.startswith(start)}


def _outside(state: Mapping[str, Any], paths: list[str]) -> dict[str, Any]:
    starts = tuple(f"{path}." if path else "" for path in paths)
    return {key: value for key, value in state.items() if not key.startswith(starts)}


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 400 else f"{text[:400]}…"


def _memory_of(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or is_lazy(value) or value.layout != torch.strided:
        return id(value)
    return value.device, value.data_ptr(), value.shape


@lru_cache
def _can_hold(dtype: torch.dtype) -> bool:
    """Returns whether the installed safetensors can hold tensors of ``dtype``."""
    try:
        content = safetensors.torch.save({"": torch.empty(1, dtype=dtype)})
        return safetensors.torch.load(content)[""].dtype == dtype
    except (KeyError, SafetensorError, RuntimeError, TypeError, ValueError):
        return False


def _fits(value: Any) -> bool:
    """Returns whether safetensors can hold a value."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta)
        and _can_hold(value.dtype)
        and (value.data_ptr() != 0 or not value.numel())  # 0: it only wraps others
    )


def _aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Of tensors that are one and the same, tied weights say, all but the first: which it is."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        layout = tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()
        where = tensor.device, tensor.data_ptr(), *layout
        if tensor.numel() and first.setdefault(where, name) != name:
            aliases[name] = first[where]
    return aliases


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, with a copy of each that shares memory with another in part."""
    sharing = defaultdict(list)
    for name, tensor in tensors.items():
        sharing[tensor.device, tensor.untyped_storage().data_ptr()].append(name)
    copied = {name for names in sharing.values() for name in names[1:]}
    return {n: tensor.clone() if n in copied else tensor for n, tensor in tensors.items()}
