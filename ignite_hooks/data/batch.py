"""The default functions of supervised training, from the batch to the output, as in Ignite."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ignite.utils import convert_tensor

__all__ = ["apply_model", "default_prepare_batch", "describe_value", "identity", "split_pair"]


def default_prepare_batch(
    batch: Any, device: Any = None, non_blocking: bool = False
) -> tuple[Any, Any]:
    """Returns the input and the target of a batch. This function is the default ``prepare_batch``.

    Tensors are moved to ``device``. If ``device`` is None or the CPU, they stay where they are.
    """
    x, y = split_pair(batch)
    if device is None or torch.device(device).type == "cpu":
        return x, y
    return (
        convert_tensor(x, device=device, non_blocking=non_blocking),
        convert_tensor(y, device=device, non_blocking=non_blocking),
    )


def apply_model(model: torch.nn.Module, x: Any) -> Any:
    """Returns ``model(x)``. This function is the default ``model_fn``."""
    return model(x)


def identity(output: Any) -> Any:
    """Returns ``output`` unchanged. This function is the default ``model_transform``."""
    return output


def split_pair(batch: Any) -> tuple[Any, Any]:
    """Returns the input and the target of a batch.

    Raises:
        ValueError: the batch is not a sequence of two elements.
    """
    # The classes tuple and list come first, because most batches are tuples or lists. When the
    # abstract class Sequence came first, `isinstance` took 2 µs per batch.
    if not isinstance(batch, (tuple, list, Sequence)) or len(batch) != 2:
        raise ValueError(
            f"a batch must be a pair (x, y), got {describe_value(batch)}: choose two parts with "
            "prepare_batch=lambda batch, device, non_blocking: (batch[0], batch[1]), or give the "
            "trainer a `batch_processor`, (model, batch) -> (outputs, loss)"
        )
    x, y = batch
    return x, y


def describe_value(value: Any) -> str:
    """Describes a value for an error message, by its type and its shape or length."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    size = f" of length {len(value)}" if isinstance(value, list | tuple | dict) else ""
    return f"{type(value).__name__}{size}"
