"""Functions that capture the state of a module, read it from a file, compare it and load it.

A ``state_dict`` does not say which parameters are frozen and which submodules are in eval mode.
These facts, called flags, are saved and restored together with the ``state_dict``. A wrapper such
as ``DistributedDataParallel`` makes the names of parameters, buffers and submodules longer, for
example ``module.weight``. These longer names are called actual names. In a file, all names are
plain names, such as ``weight``: the names in the model without wrappers (``plain_names.py``).

A module may customize its loading. For example, a buffer may take the size of the saved value, a
hook may rename keys, or the module may ignore a part of the state. In these cases names and shapes
do not show whether a state fits the module. So the state is loaded on trial: it is loaded to see
whether loading fails, and then the module is restored (``module_trial.py``).
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
from ignite_hooks.checkpoint.module_trial import SourceTracker
from ignite_hooks.checkpoint.module_trial import restored_on_exit
from ignite_hooks.checkpoint.plain_names import PlainNames
from ignite_hooks.core.torch_modules import empty_buffers
from ignite_hooks.core.torch_modules import has_custom_loading
from ignite_hooks.core.torch_modules import persistent_tensors

__all__ = [
    "ModuleFit",
    "ModuleLoadResult",
    "check_module_fit",
    "flags_of",
    "left_out_of_state",
    "load_into_module",
    "module_differences",
    "module_file",
    "read_module",
    "rename_flags",
    "set_flags",
    "split_state",
]

_MAX_ERROR_LENGTH = 400
_LAZY_CLASSES = {"parameter": UninitializedParameter, "buffer": UninitializedBuffer}


class ModuleFit(NamedTuple):
    """The result of comparing a state with a module.

    Attributes:
        differences: the reasons why the state cannot be loaded, such as names and shapes that
            differ; empty if the state fits.
        renamed: the parameters that are loaded from a tensor of another name. Maps the name of the
            parameter in the module to the name of the tensor in the state.
    """

    differences: list[str]
    renamed: dict[str, str]


class ModuleLoadResult(NamedTuple):
    """The result of loading a module: the tensors that are not as they were saved.

    Attributes:
        converted: the names of the tensors whose saved dtype differs from the module's dtype.
        unlike: the names of further tensors that are not as they were saved, because the module's
            own loading code has changed them or left them out.
        unmatched: two tuples of names that were not loaded: the names that only the module has, and
            the names that only the state has. Both tuples are empty if loading is strict.
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
    """Returns the name and the content of a module's file, and the information for a load.

    Args:
        name: the name of the module in the checkpoint, for example "model".
        module: the module.
        safe_serialization: whether the file is in the format of safetensors.
        names: the plain names of the module, if the caller has them; None to look them up.

    Returns:
        The name of the file, the content of the file, and a dict with the information for a load.
        The caller saves this dict in ``trainer.pt``. Its keys are "metadata" (maps the path of a
        submodule to the version that torch notes in a ``state_dict``), "flags" (``flags_of``) and
        "lazy" (maps the name of a lazy tensor to "parameter" or "buffer"). For a file in the format
        of safetensors, the keys "aliases" and "extra" hold the second and the third result of
        ``split_state``.
    """
    own_state: dict[str, Any] = module.state_dict()
    names = names or PlainNames(module)
    state = names.plain_state(own_state)
    versions = getattr(own_state, "_metadata", {})  # torch keeps the versions of submodules here
    # A lazy tensor is not initialized yet and has no value, so only its name and type are saved.
    lazy = {key: value for key, value in state.items() if is_lazy(value)}
    module_info: dict[str, Any] = {
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
        return pickle_file, Objects(state, f"the {name}"), module_info
    tensors, module_info["aliases"], module_info["extra"] = split_state(state)
    return safe_file, Tensors(tensors), module_info


def split_state(
    state: Mapping[str, Any],
) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, Any]]:
    """Splits a state into the tensors that safetensors can hold, and the rest.

    Returns:
        Three mappings. The first maps names to the tensors that safetensors can hold; tensors that
        share memory are copied. The second holds the aliases: for a weight with several names (a
        tied weight), it maps each further name to the first name. The third maps names to all
        values that safetensors cannot hold.
    """
    tensors = {key: value for key, value in state.items() if _is_safetensors_value(value)}
    aliases = _aliases(tensors)
    extra = {key: value for key, value in state.items() if key not in tensors}
    kept = {key: tensor for key, tensor in tensors.items() if key not in aliases}
    return _without_shared_memory(kept), aliases, extra


def read_module(
    folder: Path, name: str, files: Collection[str], module_info: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the saved state of a module; None if the checkpoint has no file for the module.

    The tensors are mapped from the file: their values are read on first use.

    Args:
        folder: the folder of the checkpoint.
        name: the name of the module.
        files: the names of the files of the checkpoint.
        module_info: the information that ``module_file`` has returned for this module.

    Raises:
        ValueError: the file cannot be read, or loading the file would run code.
    """
    safe_file, pickle_file = module_files(name)
    lazy = {key: _LAZY_CLASSES[kind]() for key, kind in module_info.get("lazy", {}).items()}
    if pickle_file in files:
        state: dict[str, Any] = load_objects(folder / pickle_file, mapped=True)
        return {**state, **lazy}
    if safe_file not in files or not module_info:
        return None
    try:
        tensors = load_file(folder / safe_file)
    except SafetensorError as error:
        raise ValueError(f"{safe_file} cannot be read ({error})") from error
    aliases = {alias: tensors[first] for alias, first in module_info["aliases"].items()}
    return {**tensors, **aliases, **module_info["extra"], **lazy}


def module_differences(name: str, saved: Mapping[str, Any], module: torch.nn.Module) -> list[str]:
    """Returns the reasons why a module cannot load ``saved``, a state with plain names."""
    return check_module_fit(name, saved, {"metadata": {}}, module).differences


def check_module_fit(
    name: str,
    saved: Mapping[str, Any] | None,
    module_info: Mapping[str, Any],
    module: torch.nn.Module,
    *,
    strict: bool = True,
    keeps_parameters: bool = True,
) -> ModuleFit:
    """Compares a state with a module. The module is unchanged afterwards.

    Args:
        name: the name of the module, for messages.
        saved: the state, with plain names; None if the checkpoint has no state of this module.
        module_info: the information that ``module_file`` has returned for this module. Only its
            "metadata" is used.
        module: the module.
        strict: whether the module and the state must have the same names.
        keeps_parameters: whether a trainable parameter that loading replaces by a new Python object
            counts as a difference. An optimizer would continue to update the old object.
    """
    if saved is None:
        return ModuleFit([f"the {name} is not in the checkpoint"], {})
    names = PlainNames(module)
    own_state = module.state_dict()
    current = names.plain_state(own_state)
    submodules = list(_parts_with_own_loading(module))
    paths = [names.plain(path) for path, _ in submodules]
    # A buffer that is still None in the module is created before loading. So if only the state has
    # a value for such a buffer, this does not count as a difference.
    empty = {names.plain(key) for key in empty_buffers(module)} - current.keys()
    if any(isinstance(value, torch.Tensor) and value.is_meta for value in current.values()):
        return ModuleFit([f"the {name} is on the meta device: call its to_empty() first"], {})
    common = saved.keys() & current.keys()
    if not strict and not common and not paths:
        return ModuleFit([f"the saved {name} has no name in common with the module"], {})
    compared = common if not strict else (saved.keys() - empty) | current.keys()
    compared_saved = {key: value for key, value in saved.items() if key in compared}
    compared_current = {key: value for key, value in current.items() if key in compared}
    differences = list(
        _entry_differences(
            name, _entries_outside(compared_saved, paths), _entries_outside(compared_current, paths)
        )
    )
    renamed: dict[str, str] = {}
    for (path, submodule), plain_path in zip(submodules, paths, strict=True):
        state = names.actual_state(_entries_under(saved, plain_path), own_state)
        sources = SourceTracker(state)
        before = dict(submodule.named_parameters())
        # The trial may run any code of the user. This code may draw random numbers, so the random
        # state of the CPU is restored, too.
        with restored_on_exit(submodule), torch.random.fork_rng(devices=[]):
            failure = None
            try:
                _create_missing_buffers(module, _entries_under(saved, plain_path), names)
                with sources:
                    metadata = names.actual_metadata(module_info["metadata"])
                    _load_part(submodule, path, state, metadata, strict=strict)
            except Exception as error:  # the user's code may raise anything
                failure = error
            current_ids = {id(each) for each in submodule.parameters()}
            trainable = {key: each for key, each in before.items() if each.requires_grad}
            replaced = [key for key, each in trainable.items() if id(each) not in current_ids]
        if failure is not None:
            differences += _entry_differences(
                name,
                _entries_under(compared_saved, plain_path),
                _entries_under(compared_current, plain_path),
            )
            owner_name = f"{plain_path} of the {name}" if plain_path else f"the {name}"
            differences.append(f"{owner_name} cannot load the state ({_describe_error(failure)})")
        elif replaced and keeps_parameters:
            differences.append(
                f"loading the {name} replaces {', '.join(replaced)}, which the optimizer would not "
                "notice: change the module's loading code to copy into the existing parameters"
            )
        for key, parameter in before.items():
            own_name, source = names.plain(_join_path(path, key)), sources.source_name(parameter)
            if source is not None and _is_renamed(saved, own_name, names.plain(source)):
                renamed[own_name] = names.plain(source)
    return ModuleFit(differences, renamed)


def load_into_module(
    module: torch.nn.Module,
    state: Mapping[str, Any],
    module_info: Mapping[str, Any],
    *,
    strict: bool = True,
) -> ModuleLoadResult:
    """Loads a state into a module, and returns which tensors are not as they were saved.

    Call ``check_module_fit`` first, and this function only if the state fits the module.

    Args:
        module: the module.
        state: the state, with plain names.
        module_info: the information that ``module_file`` has returned for this module. Only its
            "metadata" and, if there are any, its "flags" are used.
        strict: whether the module and the state must have the same names.
    """
    names = PlainNames(module)
    before = names.plain_state(module.state_dict())
    converted = {
        key
        for key, value in state.items()
        if key in before and getattr(value, "dtype", None) != getattr(before[key], "dtype", None)
    }
    paths = [names.plain(path) for path, _ in _parts_with_own_loading(module)]
    _create_missing_buffers(module, state, names)
    own_state = names.actual_state(state, module.state_dict())
    sources = SourceTracker(own_state)
    with sources:
        metadata = names.actual_metadata(module_info["metadata"])
        result = _load_part(module, "", own_state, metadata, strict=strict)
    if "flags" in module_info:
        set_flags(module, module_info["flags"])
    missing, unexpected = (
        tuple(map(names.plain, getattr(result, f"{kind}_keys", ())))
        for kind in ("missing", "unexpected")
    )
    unmatched = missing, unexpected
    # torch's own loading copies every value as it is. So only submodules that customize their
    # loading are compared with the state. Without `strict` nothing is compared, because even the
    # names may differ.
    if not (paths and strict):
        return ModuleLoadResult(converted, set(), unmatched)
    current_state = names.plain_state(module.state_dict())
    # A parameter that was loaded from a tensor of another name is compared with this tensor.
    for key, parameter in module.named_parameters():
        source, own_name = sources.source_name(parameter), names.plain(key)
        if source is not None and own_name in current_state and own_name not in state:
            current_state[names.plain(source)] = current_state.pop(own_name)
    saved = {key: state[key] for path in paths for key in _entries_under(state, path)}
    current = {
        key: current_state[key] for path in paths for key in _entries_under(current_state, path)
    }
    unlike = (saved.keys() ^ current.keys()) | {
        key
        for key in saved.keys() & current.keys()
        if digest_of(saved[key]) != digest_of(current[key])
    }
    return ModuleLoadResult(converted, unlike - converted, unmatched)


def left_out_of_state(module: torch.nn.Module, names: PlainNames | None = None) -> list[str]:
    """Returns the names of parameters and persistent buffers that the module's state leaves out.

    Args:
        module: the module.
        names: the plain names of the module, if the caller has them; None to look them up.
    """
    names = names or PlainNames(module)
    # Only modules that customize their loading or saving can leave a tensor out.
    if not [p for p, each in names.modules if has_custom_loading(each, is_root=each is module)]:
        return []
    state = module.state_dict()
    # The tensors are compared by their memory, because the state may have a tied weight under only
    # one of its names.
    saved = {_memory_key(value) for value in state.values()}
    return [
        names.plain(name)
        for name, tensor in persistent_tensors(module).items()
        if name not in state and not is_lazy(tensor) and _memory_key(tensor) not in saved
    ]


def flags_of(module: torch.nn.Module, names: PlainNames | None = None) -> dict[str, list[str]]:
    """Returns the flags of a module.

    Args:
        module: the module.
        names: the plain names of the module, if the caller has them; None to look them up.

    Returns:
        Maps "frozen" to the names of the frozen parameters, and "eval" to the names of the modules
        in eval mode. The module itself has the empty name.
    """
    names = names or PlainNames(module)
    modes = names.plain_state({path: each.training for path, each in names.modules})
    trainable = names.plain_state({name: each.requires_grad for name, each in names.parameters})
    return {
        "frozen": [name for name, is_trained in trainable.items() if not is_trained],
        "eval": [path for path, is_training in modes.items() if not is_training],
    }


def set_flags(module: torch.nn.Module, flags: Mapping[str, Any]) -> None:
    """Freezes parameters, and puts submodules in train or eval mode, as ``flags`` says.

    Args:
        module: the module.
        flags: the flags that ``flags_of`` has returned for this module, or for another module with
            the same names.
    """
    plain = PlainNames(module).plain
    for name, parameter in module.named_parameters():
        is_trained = plain(name) not in flags["frozen"]
        if parameter.requires_grad != is_trained:
            parameter.requires_grad = is_trained  # `requires_grad_` refuses lazy parameters
    for name, each in module.named_modules():
        each.training = plain(name) not in flags["eval"]


def rename_flags(
    flags: Mapping[str, list[str]], renamed: Mapping[str, str]
) -> dict[str, list[str]]:
    """Returns saved flags, with the saved names replaced by the current names of the module.

    Args:
        flags: the flags in the checkpoint.
        renamed: maps the current name of a parameter to its saved name.
    """
    parameters = {saved: current for current, saved in renamed.items()}
    modules = {
        saved.rpartition(".")[0]: current.rpartition(".")[0] for current, saved in renamed.items()
    }
    return {
        "frozen": [parameters.get(name, name) for name in flags["frozen"]],
        "eval": [modules.get(name, name) for name in flags["eval"]],
    }


def _load_part(
    module: torch.nn.Module,
    path: str,
    state: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    strict: bool,
) -> Any:
    """Loads a state into a whole module, or into only one of its submodules.

    Args:
        module: the whole module or the submodule.
        path: the path of the submodule in the whole module; empty for the whole module.
        state: the state to load. Its names are those in the whole module: they begin with ``path``.
        metadata: maps the path of a submodule in the whole module to the version of the submodule.
        strict: whether the module and the state must have the same names.

    Returns:
        The value that ``load_state_dict`` returns.
    """
    prefix = f"{path}." if path else ""
    versioned = OrderedDict((key.removeprefix(prefix), value) for key, value in state.items())
    versioned._metadata = {  # type: ignore[attr-defined]
        key.removeprefix(path).removeprefix("."): dict(value)
        for key, value in metadata.items()
        if key == path or key.startswith(prefix)
    }
    # As in torch's own loading, an overridden `load_state_dict` of a submodule is not called.
    if path:
        return torch.nn.Module.load_state_dict(module, versioned, strict)
    # A `load_state_dict` that the user has overridden may lack the parameter `strict`. So `strict`
    # is passed only if it differs from the default.
    return module.load_state_dict(versioned) if strict else module.load_state_dict(versioned, False)


def _create_missing_buffers(
    module: torch.nn.Module, state: Mapping[str, Any], names: PlainNames
) -> None:
    """Creates each buffer that is still None in the module, if the state has a value for it.

    For example, a module may create a buffer only when it sees its first batch. torch does not load
    a value into a buffer that is None.
    """
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    for key, owner in empty_buffers(module).items():
        value = state.get(names.plain(key))
        # A submodule that customizes its loading creates its buffers itself.
        if isinstance(value, torch.Tensor) and not has_custom_loading(owner):
            setattr(owner, key.rpartition(".")[2], torch.empty_like(value, device=device))


def _parts_with_own_loading(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yields the path and the module of each submodule that must be loaded on trial.

    Such a submodule customizes its loading, or has tensors that torch may refuse to copy into.
    Submodules of a yielded submodule are left out, because both are loaded together. The whole
    module can be yielded too, with an empty path.
    """
    above: list[str] = []
    for path, each in module.named_modules():
        if any(path.startswith(f"{other}." if other else "") for other in above):
            continue
        if has_custom_loading(each, is_root=not path) or _has_special_tensors(each):
            above.append(path)
            yield path, each


def _has_special_tensors(module: torch.nn.Module) -> bool:
    """Returns whether the module itself has an inference tensor, a sparse or an expanded tensor.

    torch may refuse to copy into such a tensor, even if the shapes are equal.
    """
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(
        tensor.is_inference()
        or tensor.layout != torch.strided
        or any(tensor.stride(axis) == 0 < size - 1 for axis, size in enumerate(tensor.shape))
        for tensor in tensors
        if not is_lazy(tensor)
    )


def _is_renamed(state: Mapping[str, Any], name: str, source: str) -> bool:
    """Returns whether a parameter is loaded from a tensor that has another name in the state.

    If the state has the tensor under both names (a tied weight), the result is False.

    Args:
        state: the saved state.
        name: the name of the parameter in the module.
        source: the name, in the state, of the tensor that the parameter is loaded from.
    """
    return name != source and _memory_key(state.get(name)) != _memory_key(state[source])


def _entry_differences(
    name: str, saved: Mapping[str, Any], current: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the differences in names, shapes, layouts and dtypes that make loading impossible."""
    for key in sorted({*current, *saved}):
        if key not in current:
            yield f"the checkpoint has {key}, the {name} has not"
        elif key not in saved:
            yield f"the {name} has {key}, the checkpoint has not"
        elif not key.endswith("_extra_state"):  # extra state may be anything; the module checks it
            saved_text, current_text = _incompatibility(saved[key], current[key])
            if saved_text != current_text:
                yield f"{key} had {saved_text}, it has {current_text}"


def _incompatibility(saved: Any, current: Any) -> tuple[str, str]:
    """Describes why a saved value cannot be loaded in the place of a current value.

    Returns:
        Two texts: the shape, layout or dtype of the saved value, and that of the current value.
        They complete the message "KEY had {saved}, it has {current}". Both are empty if the saved
        value can be loaded.
    """
    if _shape(saved) != _shape(current):
        return f"the shape {_shape(saved)}", f"{_shape(current)}"
    if not isinstance(current, torch.Tensor) or is_lazy(current):
        return "", ""
    if saved.layout != current.layout or saved.is_quantized != current.is_quantized:
        return f"the layout {_layout(saved)}", _layout(current)
    # torch would convert the values without a warning, and drop imaginary parts or fractions.
    if _number_class(saved) > _number_class(current):
        return f"the dtype {saved.dtype}", f"{current.dtype}"
    return "", ""


def _shape(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return None
    return "of a lazy module" if is_lazy(value) else tuple(value.shape)


def _layout(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype}" if tensor.is_quantized else f"{tensor.layout}"


def _number_class(tensor: torch.Tensor) -> int:
    """Returns 2 for complex dtypes, 1 for floating-point dtypes, 0 for integers and booleans."""
    return 2 if tensor.is_complex() else int(tensor.is_floating_point())


def _join_path(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _entries_under(state: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns the entries of the submodule at ``path``. Their names still begin with the path."""
    prefix = f"{path}." if path else ""
    return {key: value for key, value in state.items() if key.startswith(prefix)}


def _entries_outside(state: Mapping[str, Any], paths: list[str]) -> dict[str, Any]:
    """Returns the entries that belong to none of the submodules at ``paths``."""
    starts = tuple(f"{path}." if path else "" for path in paths)
    return {key: value for key, value in state.items() if not key.startswith(starts)}


def _describe_error(error: Exception) -> str:
    """Returns the class and the message of an error in one line, cut if it is long."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _MAX_ERROR_LENGTH else f"{text[:_MAX_ERROR_LENGTH]}…"


def _memory_key(value: Any) -> Any:
    """Returns a key that is equal for tensors with the same memory and shape."""
    if not isinstance(value, torch.Tensor) or is_lazy(value) or value.layout != torch.strided:
        return id(value)
    return value.device, value.data_ptr(), value.shape


@lru_cache
def _is_safetensors_dtype(dtype: torch.dtype) -> bool:
    """Returns whether the installed safetensors can hold tensors of ``dtype``."""
    # The versions of safetensors and torch decide which dtypes can be saved, so saving is tried.
    try:
        content = safetensors.torch.save({"": torch.empty(1, dtype=dtype)})
        return safetensors.torch.load(content)[""].dtype == dtype
    except (KeyError, SafetensorError, RuntimeError, TypeError, ValueError):
        return False


def _is_safetensors_value(value: Any) -> bool:
    """Returns whether safetensors can hold a value."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta)
        and _is_safetensors_dtype(value.dtype)
        # A tensor subclass that wraps other tensors has no memory of its own.
        and (value.data_ptr() != 0 or not value.numel())
    )


def _aliases(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns the aliases: maps each further name of a tied weight to its first name."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        layout = tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()
        view = tensor.device, tensor.data_ptr(), *layout
        # Tensors without elements have no memory, so their equal addresses do not mean that they
        # are the same tensor.
        if tensor.numel() and first.setdefault(view, name) != name:
            aliases[name] = first[view]
    return aliases


def _without_shared_memory(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors. A tensor that shares its storage with an earlier tensor is copied.

    safetensors refuses tensors that share a storage, even if they do not overlap in it.
    """
    sharing = defaultdict(list)
    for name, tensor in tensors.items():
        sharing[tensor.device, tensor.untyped_storage().data_ptr()].append(name)
    copied = {name for names in sharing.values() for name in names[1:]}
    return {n: tensor.clone() if n in copied else tensor for n, tensor in tensors.items()}
