"""The modes, gradients and buffers of a model while it is evaluated, and as they were before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from ignite_hooks.core.accelerators import is_data_parallel
from ignite_hooks.core.restoring import restored
from ignite_hooks.processes.broadcast import broadcast_values

__all__ = ["buffers_of_rank_0", "gradients_kept", "modes_kept", "without_ddp"]

_sent: set[int] = set()  # identities of the models that have the buffers of rank 0 now


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


@contextmanager
def buffers_of_rank_0(model: torch.nn.Module, accelerator: Accelerator | None) -> Iterator[None]:
    """The model has the buffers of rank 0, whose state is saved, on every rank. Collective.

    In training each rank updates its own, the running statistics of a BatchNorm say: metrics would
    be those of several models. They come back afterwards, so that training goes on without a trace.

    Args:
        model: the model; with one whose buffers were sent already nothing is done.
        accelerator: None for one process.
    """
    bare = without_ddp(model)
    buffers = dict(bare.named_buffers())
    if accelerator is None or not buffers or id(bare) in _sent or not _has_replicas(accelerator):
        yield
        return
    is_sent = not accelerator.is_main_process
    own = [(each, each.clone()) for each in buffers.values() if is_sent and not each.is_inference()]

    def restore() -> None:
        _sent.discard(id(bare))
        with torch.no_grad():
            for buffer, values in own:
                buffer.copy_(values)

    with restored(restore):
        broadcast_values(buffers, accelerator.device)
        _sent.add(id(bare))
        yield


def _has_replicas(accelerator: Accelerator) -> bool:
    """Returns whether several ranks have the whole model each."""
    return accelerator.num_processes > 1 and is_data_parallel(accelerator)


def without_ddp(model: torch.nn.Module) -> torch.nn.Module:
    """The module under DDP, whose forward pass needs no other process.

    DDP sends buffers in its own, which hangs when the processes have unequal numbers of batches.
    """
    return model.module if isinstance(model, DistributedDataParallel) else model
