"""What goes into the files of a checkpoint: tensors and plain data, and no code."""

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

_SCALARS = {bool, float, str, type(None)}
_UNCHANGED = {*_SCALARS, int}
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
_DEVICES = {"cpu", "cuda"}
_MAX_INT = 2**63
_MAX_DEPTH = 100


class Content(ABC):
    """The content of one file."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Makes the file; it need not be on the disk when this returns."""

    @abstractmethod
    def copied(self) -> "Content":
        """The same in the host's memory, where training does not change it."""


@dataclass(frozen=True)
class Tensors(Content):
    """Tensors by name, in the format of safetensors."""

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})

    def write(self, path: Path) -> None:
        """Whole tensors one after another: no two may share memory."""
        # The bytes are written: a lazy conjugation or negation, as of `z.conj().imag`, is none.
        dense = {
            name: tensor.resolve_conj().resolve_neg().contiguous()
            for name, tensor in self.tensors.items()
        }
        try:
            save_file(dense, path, metadata=dict(self.metadata))
        except SafetensorError as error:
            raise OSError(f"{path.name} cannot be written ({error})") from error

    def copied(self) -> "Tensors":
        """In the host's memory."""
        return Tensors({name: _copied(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class Objects(Content):
    """Numbers, strings, tensors, and lists, tuples and dicts of such, by ``torch.save``.

    Args:
        content: the data.
        what: what it is, for messages.
        may_pickle: whether other objects are let through.

    Raises:
        TypeError: there is something in it that would have to be unpickled.
    """

    content: Any
    what: str
    may_pickle: bool = False

    def __post_init__(self) -> None:
        """Checks that a resume can read the data; where types do not tell, by reading them back."""
        if self.may_pickle or _is_plain(self.content):
            return
        file = io.BytesIO()
        try:
            torch.save(_with_tensors(_emptied, self.content), file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:
            raise TypeError(
                f"the state of {self.what} must be made of tensors, numbers, strings, None, lists, "
                "tuples and dicts, which are loaded without running code, got "
                f"{_refused(error) or 'something else'}: have its state_dict() leave that out"
            ) from error

    def write(self, path: Path) -> None:
        """By ``torch.save``, each tensor without what else is in its storage."""
        with path.open("wb") as file:
            try:
                torch.save(_with_tensors(_alone, self.content), file)
            except RuntimeError as error:  # what torch's writer makes of a write that failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def copied(self) -> "Objects":
        """In the host's memory."""
        # What is let through besides may change too, and where it is none there is nothing to copy.
        content = copy.deepcopy(self.content) if self.may_pickle else self.content
        content = _with_tensors(_copied, content)
        return Objects(content, self.what, may_pickle=True)  # it was looked at


def load_objects(
    file: Path | io.BufferedReader, *, trust_pickle: bool = False, mapped: bool = False
) -> Any:
    """What ``Objects`` has written, in the host's memory.

    Args:
        file: the path of the file, or the file, open.
        trust_pickle: whether what is in it may run code.
        mapped: whether tensors stay in the file until they are looked at; needs a path.

    Raises:
        ValueError: the file has something else in it, or is none of such files.
    """
    name = Path(file if isinstance(file, Path) else file.name).name
    try:
        return torch.load(file, map_location="cpu", weights_only=not trust_pickle, mmap=mapped)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if (refused := _refused(error)) is not None:
            raise ValueError(
                f"{name} holds more than data, loading it would run code ({refused})"
            ) from error
        # Whatever the bytes of a damaged file lead to.
        raise ValueError(f"{name} cannot be read ({_first_line(error)})") from error


def plain_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those among some values that can be saved without pickle; numpy's numbers become Python's."""
    plain = {}
    for name, value in values.items():
        value = value.item() if isinstance(value, np.generic) else value
        try:
            plain[name] = Objects(value, name).content
        except TypeError:
            continue
    return plain


def _is_plain(content: Any) -> bool:
    """Returns whether content is of the most common types alone, which torch loads without pickle.

    False means that torch has to be asked: it allows some more. One call looks at a whole level of
    nested containers.
    """
    level = [content]
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for value in level:
            kind = type(value)
            if kind in _SCALARS or (kind is int and -_MAX_INT <= value < _MAX_INT):
                continue
            if kind is list or kind is tuple:
                inner += value
            elif kind is dict:
                inner += value.keys()
                inner += value.values()
            elif kind is OrderedDict:  # the state of a module has attributes of its own
                inner += value.keys()
                inner += value.values()
                inner.append(vars(value))
            elif not (
                (kind is torch.Tensor or kind is torch.nn.Parameter)
                and value.layout is torch.strided
                and value.dtype in _DTYPES
                and value.device.type in _DEVICES
            ):
                return False
        if not inner:
            return True
        # What is there twice is looked at once: a list that contains itself would grow each level.
        level = list({id(value): value for value in inner}.values())
    return False


def _with_tensors(change: Callable[[torch.Tensor], torch.Tensor], content: Any) -> Any:
    """A copy with other tensors; lists, tuples and dicts are new, all else is the same."""
    if isinstance(content, torch.Tensor):
        return change(content)
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, dict):
        changed = content.copy() if type(content) is dict else copy.copy(content)
        for key, value in content.items():
            kind = type(value)  # the most common are seen to here: each call counts at each save
            if kind is torch.Tensor or kind is torch.nn.Parameter:
                changed[key] = change(value)
            elif (kind is dict or kind is list) and _UNCHANGED.issuperset(
                map(type, value.values() if kind is dict else value)
            ):
                changed[key] = value.copy()
            elif kind not in _UNCHANGED:
                changed[key] = _with_tensors(change, value)
        return changed
    if isinstance(content, set | bytearray):
        return copy.copy(content)
    if type(content) in (list, tuple):
        return type(content)(
            [v if type(v) in _UNCHANGED else _with_tensors(change, v) for v in content]
        )
    return content


def _emptied(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor of the same kind without values, where there can be one."""
    is_plain = tensor.layout == torch.strided and not tensor.is_quantized
    return tensor.new_empty(0) if is_plain else tensor


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    is_sparse = tensor.layout != torch.strided
    is_alone = is_sparse or tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.detach() if is_alone else tensor.detach().clone()


def _refused(error: BaseException) -> str | None:
    """The class or function that torch refuses, and names somewhere in a long text."""
    found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, UnpicklingError) else None
    return None if found is None else found[1]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
