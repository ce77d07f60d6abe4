"""The modes and the gradients of a model, and keeping them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.parallel import DistributedDataParallel

from ignite_hooks.core.restoring import restored

__all__ = ["gradients_kept", "modes_kept", "without_ddp"]


@contextmanager
def modes_kept(model: torch.nn.Module) -> Iterator[None]:
    """Whatever the body does, each submodule is in its own mode again afterwards.

    ``model.train()`` would not do: it wakes the submodules that were frozen in eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in modes:
            module.training = training

    with restored(restore):
        yield


@contextmanager
def gradients_kept(model: torch.nn.Module) -> Iterator[None]:
    """The body sees no gradients and leaves none; it may switch their recording on and off."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    was_enabled = torch.is_grad_enabled()

    def restore() -> None:
        torch.set_grad_enabled(was_enabled)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    with restored(restore):
        for parameter, _ in gradients:
            parameter.grad = None
        yield


def without_ddp(model: torch.nn.Module) -> torch.nn.Module:
    """The module under DDP, whose forward pass needs no other process.

    DDP sends buffers in its own, which hangs when the processes have unequal numbers of batches.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model
