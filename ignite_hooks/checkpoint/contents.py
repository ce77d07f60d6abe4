"""The contents of the files of a checkpoint: tensors and plain data, never code."""

import copy
import io
import re
from abc import ABC
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

__all__ = ["Content", "Objects", "Tensors", "load_objects", "plain_part"]

# Values of these types, dtypes and devices are known to load with `weights_only=True`. `_is_plain`
# accepts them without a trial. Any other value is checked by a trial: it is written and read back.
_SCALAR_TYPES = {bool, float, str, type(None)}
_IMMUTABLE_TYPES = {*_SCALAR_TYPES, int}
_CHECKED_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
_CHECKED_DEVICES = {"cpu", "cuda"}
# Larger integers are checked by the trial: with `weights_only=True`, torch loads only integers of
# at most 255 bytes.
_MAX_INT = 2**63
# The number of levels of nested containers that `_is_plain` enters. Without this limit, the
# check of a list that contains itself would never end.
_MAX_DEPTH = 100


class Content(ABC):
    """The content of one file."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Writes the file at ``path``, without forcing the bytes to the disk (``fsync``)."""

    @abstractmethod
    def copied(self) -> "Content":
        """Returns a copy in the host's memory. Training does not change the copy."""


@dataclass(frozen=True)
class Tensors(Content):
    """Tensors by name, in the format of safetensors."""

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    def write(self, path: Path) -> None:
        """Writes the tensors with ``save_file``.

        The tensors must not share memory, because ``save_file`` refuses such tensors.

        Raises:
            OSError: the file cannot be written.
        """
        # torch conjugates and negates some tensors lazily, for example `z.conj().imag`: it sets a
        # flag, and leaves the bytes in memory as they are. `save_file` writes the bytes without the
        # flag, so these conjugations and negations are computed first.
        dense = {
            name: tensor.resolve_conj().resolve_neg().contiguous()
            for name, tensor in self.tensors.items()
        }
        try:
            save_file(dense, path, metadata=dict(self.metadata))
        except SafetensorError as error:
            raise OSError(f"{path.name} cannot be written ({error})") from error

    def copied(self) -> "Tensors":
        """Returns a copy in the host's memory."""
        return Tensors({name: _copy_on_cpu(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class Objects(Content):
    """Plain data, written by ``torch.save``.

    Plain data are tensors, numbers, strings and None, and lists, tuples and dicts that contain
    plain data.

    Args:
        content: the data.
        owner: the name of the object whose state is saved, for messages.
        may_pickle: whether the data may hold objects of any other type, too. Such an object can
            only be loaded with pickle.

    Raises:
        TypeError: the data holds an object that needs pickle, and ``may_pickle`` is False.
    """

    content: Any
    owner: str
    may_pickle: bool = False

    def __post_init__(self) -> None:
        """Checks that a resume can load the data without pickle."""
        if self.may_pickle or _is_plain(self.content):
            return
        file = io.BytesIO()
        try:
            # Tensors are written without their values, because this trial is about types only.
            torch.save(_map_tensors(_without_values, self.content), file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:
            raise TypeError(
                f"the state of {self.owner} must be made of tensors, numbers, strings, None, "
                "lists, tuples and dicts, which are loaded without running code, got "
                f"{_refused_global(error) or 'something else'}: "
                "leave that object out of the state_dict()"
            ) from error

    def write(self, path: Path) -> None:
        """Writes the data with ``torch.save``.

        A tensor that is a view of a larger storage is cloned first. Otherwise ``torch.save`` would
        write the whole storage.

        Raises:
            OSError: the file cannot be written.
        """
        with path.open("wb") as file:
            try:
                torch.save(_map_tensors(_with_own_storage, self.content), file)
            except RuntimeError as error:
                # torch's zip writer reports an OSError of the file as a RuntimeError.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def copied(self) -> "Objects":
        """Returns a copy in the host's memory."""
        # With may_pickle=True, the content can hold objects of any type, and `_map_tensors` copies
        # only containers and tensors.
        content = copy.deepcopy(self.content) if self.may_pickle else self.content
        content = _map_tensors(_copy_on_cpu, content)
        # With may_pickle=True, the copy is not checked a second time.
        return Objects(content, self.owner, may_pickle=True)


def load_objects(
    file: Path | io.BufferedReader, *, trust_pickle: bool = False, mapped: bool = False
) -> Any:
    """Returns the data of a file that ``Objects.write`` has written, with all tensors on the CPU.

    Args:
        file: the path of the file, or the open file.
        trust_pickle: whether the file may run code when it is loaded.
        mapped: whether tensors stay in the file (``mmap``) until they are used. If True, ``file``
            must be a path.

    Raises:
        ValueError: the file holds objects that need pickle, or torch cannot read it.
    """
    name = Path(file if isinstance(file, Path) else file.name).name
    try:
        return torch.load(file, map_location="cpu", weights_only=not trust_pickle, mmap=mapped)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file is missing, or this process has no permission to read it
        if (refused := _refused_global(error)) is not None:
            raise ValueError(
                f"{name} holds more than data: loading it would run code ({refused})"
            ) from error
        # The bytes of a damaged file can lead to any exception.
        raise ValueError(f"{name} cannot be read ({_first_line(error)})") from error


def plain_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries whose values can be saved without pickle.

    Numpy scalars become Python numbers.
    """
    plain = {}
    for name, value in values.items():
        value = value.item() if isinstance(value, np.generic) else value
        try:
            plain[name] = Objects(value, name).content
        except TypeError:
            continue
    return plain


def _is_plain(content: Any) -> bool:
    """Returns whether the content has only common types that torch loads without pickle.

    If the result is False, torch may still load the content without pickle: only a trial can tell.
    """
    # Each save checks all states, so the check must be fast. Containers are visited level by level,
    # because recursive calls would take longer.
    level = [content]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            cls = type(value)
            if cls in _SCALAR_TYPES or (cls is int and -_MAX_INT <= value < _MAX_INT):
                continue
            if cls is list or cls is tuple:
                inner += value
            elif cls is dict:
                inner += value.keys()
                inner += value.values()
            elif cls is OrderedDict:  # may have attributes, like `_metadata` of a state_dict
                inner += value.keys()
                inner += value.values()
                inner.append(vars(value))
            elif not (
                (cls is torch.Tensor or cls is torch.nn.Parameter)
                and value.layout is torch.strided
                and value.dtype in _CHECKED_DTYPES
                and value.device.type in _CHECKED_DEVICES
            ):
                return False
        if not inner:
            return True
        # Duplicates are dropped. Otherwise, if a list contains itself twice, the number of values
        # would double with each level.
        level = list({id(value): value for value in inner}.values())
    return False


def _map_tensors(function: Callable[[torch.Tensor], torch.Tensor], content: Any) -> Any:
    """Returns a copy of the content in which ``function(tensor)`` replaces each tensor.

    Lists, tuples, dicts, sets and bytearrays are copied, and numpy scalars become Python numbers.
    The copy shares all other objects with the content.
    """
    if isinstance(content, torch.Tensor):
        return function(content)
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, dict):
        changed = content.copy() if type(content) is dict else copy.copy(content)
        for key, value in content.items():
            # The most common types are handled without a recursive call: an optimizer's state has
            # thousands of entries, and training waits during the copy.
            cls = type(value)
            if cls is torch.Tensor or cls is torch.nn.Parameter:
                changed[key] = function(value)
            elif (cls is dict or cls is list) and _IMMUTABLE_TYPES.issuperset(
                map(type, value.values() if cls is dict else value)
            ):
                changed[key] = value.copy()
            elif cls not in _IMMUTABLE_TYPES:
                changed[key] = _map_tensors(function, value)
        return changed
    if isinstance(content, set | bytearray):
        return copy.copy(content)
    if type(content) in (list, tuple):
        return type(content)(
            [v if type(v) in _IMMUTABLE_TYPES else _map_tensors(function, v) for v in content]
        )
    return content


def _without_values(tensor: torch.Tensor) -> torch.Tensor:
    """Returns an empty tensor of the same type, dtype and device.

    A tensor that is sparse or quantized is returned as it is.
    """
    is_plain = tensor.layout == torch.strided and not tensor.is_quantized
    return tensor.new_empty(0) if is_plain else tensor


def _copy_on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _with_own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor, cloned if its storage holds more than the tensor."""
    is_sparse = tensor.layout != torch.strided
    owns_storage = is_sparse or tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.detach() if owns_storage else tensor.detach().clone()


def _refused_global(error: BaseException) -> str | None:
    """Returns the class or function that torch refuses to load; None for any other error."""
    found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, UnpicklingError) else None
    return None if found is None else found[1]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
