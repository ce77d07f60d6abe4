"""Scopes that restore the modes, gradients and buffers of a model after an evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from ignite_hooks.core.accelerators import is_data_parallel
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.processes.broadcast import broadcast_values

__all__ = ["buffers_of_rank_0", "gradients_kept", "modes_kept", "without_ddp"]

# The ids of the models that now have the buffers of rank 0. For such a model a nested
# `buffers_of_rank_0` does nothing.
_broadcast_models: set[int] = set()


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Restores the mode (training or eval) of each submodule after the body.

    Calling ``model.train()`` would not restore the modes: if a user has frozen a submodule in eval
    mode, ``train`` would put the submodule into training mode.
    """
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in modes:
            module.training = training

    with undo_on_exit(restore):
        yield


@contextmanager
def gradients_kept(model: torch.nn.Module) -> Iterator[None]:
    """Hides the gradients of ``model`` from the body, and restores them after the body.

    Gradients that the body computes are dropped. The setting of ``torch.set_grad_enabled`` is
    restored, too.
    """
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    was_enabled = torch.is_grad_enabled()

    def restore() -> None:
        torch.set_grad_enabled(was_enabled)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    with undo_on_exit(restore):
        for parameter, _ in gradients:
            parameter.grad = None
        yield


@contextmanager
def buffers_of_rank_0(model: torch.nn.Module, accelerator: Accelerator | None) -> Iterator[None]:
    """Gives the model the buffers of rank 0 on every rank during the body.

    This function is collective: every rank must call it.

    In training each rank updates its own buffers, such as the running statistics of a BatchNorm, so
    the ranks have slightly different models. An evaluation would mix the results of these models in
    one metric. The buffers of rank 0 are used, because checkpoints contain these buffers. After the
    body each rank gets its own buffers back, so that training continues as if there had been no
    evaluation.

    Args:
        model: the model. A nested call for the same model does nothing.
        accelerator: the accelerator of the processes; None for one process.
    """
    module = without_ddp(model)
    buffers = dict(module.named_buffers())
    if (
        accelerator is None
        or not buffers
        or id(module) in _broadcast_models
        or not _has_replicas(accelerator)
    ):
        yield
        return
    is_receiver = not accelerator.is_main_process
    # A buffer that was made in inference mode cannot be written to outside inference mode. Such a
    # buffer is not restored.
    own = [
        (each, each.clone()) for each in buffers.values() if is_receiver and not each.is_inference()
    ]

    def restore() -> None:
        _broadcast_models.discard(id(module))
        with torch.no_grad():
            for buffer, values in own:
                buffer.copy_(values)

    with undo_on_exit(restore):
        broadcast_values(buffers, accelerator.device)
        _broadcast_models.add(id(module))
        yield


def _has_replicas(accelerator: Accelerator) -> bool:
    """Returns whether there are several ranks, each with the whole model."""
    return accelerator.num_processes > 1 and is_data_parallel(accelerator)


def without_ddp(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the module inside a ``DistributedDataParallel``; any other model is returned as is.

    DDP broadcasts buffers in its forward pass. This broadcast hangs if the ranks have unequal
    numbers of batches. The forward pass of the module inside needs no other rank.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model
