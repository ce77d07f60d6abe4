"""What can be known before training about a save that would fail after hours."""

import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch.nn.parameter import is_lazy

from ignite_hooks.checkpoint.durable import make_folder
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.memory.mark import MIB

__all__ = ["check_directory", "warn_if_full"]


def check_directory(directory: Path) -> None:
    """Makes the directory, and a file in it for a moment.

    Raises:
        ValueError: it cannot be made, or not be written to.
    """
    try:
        make_folder(directory)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"?")
    except OSError as error:
        raise ValueError(
            f"`directory` must be a folder that can be written to, got {directory} "
            f"({type(error).__name__}: {error}): give another, or mend that one"
        ) from error


def warn_if_full(directory: Path, trainer: TrainingEngine) -> None:
    """Warns if less than two checkpoints find room: the old one goes after the new one is there."""
    needed = 2 * _size_of_checkpoint(trainer)
    free = shutil.disk_usage(directory).free
    if free < needed:
        warnings.warn(
            f"{directory} has {free / MIB:,.0f} MiB left, and two checkpoints take some "
            f"{needed / MIB:,.0f} MiB: the old one can only be removed after the new one is "
            "complete",
            stacklevel=2,
        )


def _size_of_checkpoint(trainer: TrainingEngine) -> int:
    """In bytes: the model, and twice its trainable parameters for the optimizer, as Adam needs."""
    size = 0
    for module in trainer.modules.values():
        size += sum(map(_size_of, (*module.parameters(), *module.buffers())))
        size += 2 * sum(_size_of(each) for each in module.parameters() if each.requires_grad)
    return size


def _size_of(tensor: torch.Tensor) -> int:
    """In bytes, as far as it is known: a lazy tensor has no size yet, and sparse ones tell none."""
    return 0 if is_lazy(tensor) or tensor.layout != torch.strided else tensor.nbytes
