"""Digests of any state, which tell whether two are the same bit by bit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy
from xxhash import xxh3_128

__all__ = ["digest_of"]

_CHUNK = 2**24


def digest_of(value: Any) -> str:
    """The same for the same content, bit by bit, and another for any other."""
    total = xxh3_128()
    _add(value, total)
    return total.hexdigest()


def _add(value: Any, total: Any) -> None:
    """What kind of object it is does not matter, but for its content."""
    if isinstance(value, torch.Tensor):
        if is_lazy(value):
            total.update(b"lazy")
            return
        total.update(f"{value.dtype}{tuple(value.shape)}".encode())
        plain = value.detach().cpu()
        if plain.is_quantized:
            plain = plain.dequantize()
        elif plain.layout != torch.strided:
            plain = plain.to_dense()
        plain = plain.resolve_conj().resolve_neg().contiguous()
        flat = plain.reshape(-1)
        if flat.stride() != (1,):  # of one element, which counts as contiguous whatever its stride
            flat = torch.empty(flat.shape, dtype=flat.dtype).copy_(flat)
        for part in torch.split(flat.view(torch.uint8), _CHUNK):
            # Of a copy: torch never resizes memory again that numpy has seen.
            total.update(part.clone().numpy())
    elif isinstance(value, np.ndarray):
        total.update(f"{value.dtype}{value.shape}".encode())
        total.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        total.update(f"{{{len(value)}:".encode())
        for key, each in value.items():
            total.update(f"{key!r}:".encode())
            _add(each, total)
    elif isinstance(value, list | tuple):
        total.update(f"[{len(value)}:".encode())
        for each in value:
            _add(each, total)
    elif isinstance(value, set | frozenset):
        total.update(f"<{len(value)}:".encode())
        total.update("".join(sorted(map(digest_of, value))).encode())
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        total.update(f"{value!r};".encode())
    else:
        total.update(type(value).__name__.encode())
        _add(getattr(value, "__dict__", {}), total)
