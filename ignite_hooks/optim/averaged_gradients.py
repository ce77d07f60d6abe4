"""Gradients of parameters beside the model, averaged over all ranks.

DDP averages the gradients of the model that it wraps. A loss function with parameters, or a batch
processor with some, cannot always be wrapped: it may be a method, or hold the model. Its gradients
are averaged here, once a window.
"""

from collections.abc import Iterable
from collections.abc import Iterator

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from ignite_hooks.processes.broadcast import broadcast_values

__all__ = ["AveragedGradients"]


class AveragedGradients:
    """Parameters that all ranks train together, though no wrapper averages their gradients.

    As with DDP, training begins with the values of rank 0, each gradient is divided by the number
    of ranks before the sum, and buffers are those of rank 0 after each step. A parameter that has
    no gradient on any rank is left without one, so that the optimizer passes over it as with one
    process.

    Args:
        model: the model; its parameters are not among them.
        modules: modules beside it, in the same order on every rank. What is in a DDP is averaged by
            that.
        optimizer: trains the parameters.
        sends_buffers: whether buffers are sent after each step.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        modules: Iterable[torch.nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        sends_buffers: bool,
    ) -> None:
        optimized = {id(each) for group in optimizer.param_groups for each in group["params"]}
        modules = [*modules]
        parts = (part for module in modules for part in module.modules())
        done = [model, *(part for part in parts if isinstance(part, DistributedDataParallel))]
        others = {id(each) for module in done for each in (*module.parameters(), *module.buffers())}
        held: Iterator[torch.Tensor] = (each for module in modules for each in module.parameters())
        trained = _unique(each for each in held if id(each) in optimized - others)
        held = (each for module in modules for each in module.buffers())
        buffers = _unique(each for each in held if id(each) not in others)
        broadcast_values([*trained, *buffers])
        self._buffers = buffers if sends_buffers else []
        self._by_kind: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for each in trained:
            self._by_kind.setdefault((each.dtype, each.device), []).append(each)

    def average(self) -> None:
        """Averages the gradients of a window over all ranks. Collective.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        with torch.no_grad():
            for parameters in self._by_kind.values():
                _average(parameters)
        broadcast_values(self._buffers)


def _average(parameters: list[torch.Tensor]) -> None:
    ranks = distributed.get_world_size()
    parts = [_gradient_of(each).flatten() / ranks for each in parameters]
    has_gradient = parts[0].new_tensor([each.grad is not None for each in parameters])
    flat = torch.cat([*parts, has_gradient])
    distributed.all_reduce(flat)
    *averages, ranks_with_gradient = torch.split(flat, [*map(len, parts), len(parameters)])
    for index, (parameter, average) in enumerate(zip(parameters, averages, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(average.view_as(parameter))
        elif ranks_with_gradient[index] > 0:  # synchronizes, where other ranks alone have one
            parameter.grad = average.view_as(parameter).clone()


def _gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    if parameter.grad.is_sparse:
        raise RuntimeError(
            "a parameter beside `model` must have a dense gradient on several processes, got a "
            f"sparse one of shape {tuple(parameter.shape)}: make the embedding with sparse=False, "
            "or its module a submodule of `model`"
        )
    return parameter.grad


def _unique(tensors: Iterator[torch.Tensor]) -> list[torch.Tensor]:
    return [*{id(tensor): tensor for tensor in tensors}.values()]
