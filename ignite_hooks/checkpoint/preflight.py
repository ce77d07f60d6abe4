"""Finds, before training, the problems that would otherwise appear at the first save."""

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
    """Creates the directory, and a temporary file in it as a test.

    Raises:
        ValueError: the directory cannot be created, or cannot be written to.
    """
    try:
        make_folder(directory)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"?")
    except OSError as error:
        if directory.exists() and not directory.is_dir():
            raise ValueError(
                f"`directory` must be a folder that can be written to, got the file {directory}: "
                "give a folder, which is made if it does not exist"
            ) from error
        raise ValueError(
            f"`directory` must be a folder that can be written to, got {directory} "
            f"({type(error).__name__}: {error}): give another directory, or make this one writable"
        ) from error


def warn_if_full(directory: Path, trainer: TrainingEngine) -> None:
    """Warns if the disk does not have room for two checkpoints.

    At times two checkpoints exist side by side, because an old checkpoint is removed only when the
    new one is complete.
    """
    needed = 2 * _checkpoint_bytes(trainer)
    free = shutil.disk_usage(directory).free
    if free < needed:
        warnings.warn(
            f"{directory} has {free / MIB:,.0f} MiB left, and two checkpoints take some "
            f"{needed / MIB:,.0f} MiB: an old checkpoint is only removed after the next one is "
            "complete",
            stacklevel=2,
        )


def _checkpoint_bytes(trainer: TrainingEngine) -> int:
    """Returns an estimate of the size of a checkpoint in bytes.

    The optimizer has no state before its first step, so the size of its state is not known. The
    estimate assumes the optimizer Adam, whose state is twice as large as the trainable parameters.
    """
    size = 0
    for module in trainer.modules.values():
        size += sum(map(_tensor_bytes, (*module.parameters(), *module.buffers())))
        size += 2 * sum(_tensor_bytes(each) for each in module.parameters() if each.requires_grad)
    return size


def _tensor_bytes(tensor: torch.Tensor) -> int:
    """Returns the size of a tensor in bytes; 0 for lazy and sparse tensors."""
    return 0 if is_lazy(tensor) or tensor.layout != torch.strided else tensor.nbytes
