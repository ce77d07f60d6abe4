"""Digests of states, which are equal for states that are equal bit for bit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy
from xxhash import xxh3_128

__all__ = ["digest_of"]

_CHUNK_BYTES = 2**24  # copied to be hashed: bounds the extra memory


def digest_of(value: Any) -> str:
    """Returns a digest that is the same for equal content, bit for bit, and differs otherwise."""
    hasher = xxh3_128()
    _update_hash(value, hasher)
    return hasher.hexdigest()


def _update_hash(value: Any, hasher: Any) -> None:
    """Adds a value to the hash.

    Types of containers are ignored: a list and a tuple with the same values, or a dict and another
    mapping, have the same digest. An object of another class is its class name and attributes.
    """
    if isinstance(value, torch.Tensor):
        if is_lazy(value):
            hasher.update(b"lazy")
            return
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
        # The steps below make a dense, contiguous tensor, whose bytes can be viewed.
        plain = value.detach().cpu()
        if plain.is_quantized:
            plain = plain.dequantize()
        elif plain.layout != torch.strided:
            plain = plain.to_dense()
        plain = plain.resolve_conj().resolve_neg().contiguous()
        flat = plain.reshape(-1)
        # A tensor with one element counts as contiguous whatever its stride, but view() to another
        # dtype demands a stride of 1.
        if flat.stride() != (1,):
            flat = torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)
        for part in torch.split(flat.view(torch.uint8), _CHUNK_BYTES):
            # numpy() forbids torch to resize a storage for good, so it is called on a copy.
            hasher.update(part.clone().numpy())
    elif isinstance(value, np.ndarray):
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        hasher.update(f"{{{len(value)}:".encode())
        for key, each in value.items():
            hasher.update(f"{key!r}:".encode())
            _update_hash(each, hasher)
    elif isinstance(value, list | tuple):
        hasher.update(f"[{len(value)}:".encode())
        for each in value:
            _update_hash(each, hasher)
    elif isinstance(value, set | frozenset):
        hasher.update(f"<{len(value)}:".encode())
        # The order of a set depends on the hash seed of the process.
        hasher.update("".join(sorted(map(digest_of, value))).encode())
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        hasher.update(f"{value!r};".encode())
    else:
        hasher.update(type(value).__name__.encode())
        _update_hash(getattr(value, "__dict__", {}), hasher)
