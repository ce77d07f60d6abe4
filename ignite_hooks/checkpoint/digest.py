"""Digests of states. States that are equal bit for bit have equal digests."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy
from xxhash import xxh3_128

__all__ = ["digest_of"]

_CHUNK_BYTES = 2**24  # tensors are copied and hashed in chunks, which bounds the extra memory


def digest_of(value: Any) -> str:
    """Returns a digest. Digests are equal if and only if the contents are equal bit for bit."""
    hasher = xxh3_128()
    _update_hash(value, hasher)
    return hasher.hexdigest()


def _update_hash(value: Any, hasher: Any) -> None:
    """Adds a value to the hash.

    The types of containers are ignored: a list has the same digest as a tuple with the same values,
    and a dict has the same digest as any other mapping with the same items in the same order. An
    object of any other class is hashed by its class name and its attributes.
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
        # view() can change the dtype only if the stride is 1. A contiguous tensor with one element
        # may have another stride, so it is copied.
        if flat.stride() != (1,):
            flat = torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)
        for part in torch.split(flat.view(torch.uint8), _CHUNK_BYTES):
            # After a call of numpy(), torch cannot resize the storage of the tensor any more. So
            # numpy() is called on a copy.
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
        # The order of a set depends on the hash seed of the process, so the digests are sorted.
        hasher.update("".join(sorted(map(digest_of, value))).encode())
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        hasher.update(f"{value!r};".encode())
    else:
        hasher.update(type(value).__name__.encode())
        _update_hash(getattr(value, "__dict__", {}), hasher)
