"""Gradients of parameters beside the model, averaged over all ranks.

DDP averages the gradients of the model that it wraps. A loss function with parameters, or a batch
processor with some, cannot always be wrapped: it may be a method, or hold the model. Its gradients
are averaged here, once a window.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping

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
    process. Parameters that the optimizer is given later are averaged from then on.

    Args:
        model: the model; its parameters are not among them.
        modules: modules beside it, by name, the same on every rank. What is in a DDP is averaged by
            that.
        optimizer: trains the parameters.
        device: where the processes exchange tensors.
        sends_buffers: whether buffers are sent after each step.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        modules: Mapping[str, torch.nn.Module],
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        *,
        sends_buffers: bool,
    ) -> None:
        self._model = model
        self._modules = dict(modules)
        self._optimizer = optimizer
        self._device = device
        self._sends_buffers = sends_buffers
        broadcast_values({**self._parameters(), **self._buffers()}, device)

    def average(self) -> None:
        """Averages the gradients of a window over all ranks. Collective.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        optimized = {id(each) for group in self._optimizer.param_groups for each in group["params"]}
        by_kind: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        for each in self._parameters().values():
            if each.requires_grad and id(each) in optimized:
                by_kind.setdefault((each.dtype, each.device), []).append(each)
        with torch.no_grad():
            for parameters in by_kind.values():
                _average(parameters)
        if self._sends_buffers and by_kind and (buffers := self._buffers()):
            broadcast_values(buffers, self._device)

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Returns the parameters that no wrapper averages, by name."""
        return self._named(torch.nn.Module.named_parameters)

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Returns the buffers of now: some modules put new ones in the place of the old."""
        return self._named(torch.nn.Module.named_buffers)

    def _named(
        self, tensors_of: Callable[[torch.nn.Module], Iterable[tuple[str, torch.Tensor]]]
    ) -> dict[str, torch.Tensor]:
        taken = {id(each) for module in self._wrapped() for _, each in tensors_of(module)}
        found: dict[str, torch.Tensor] = {}
        for name, module in self._modules.items():
            for path, each in tensors_of(module):
                if id(each) not in taken:
                    taken.add(id(each))
                    found[f"{name}.{path}"] = each
        return found

    def _wrapped(self) -> Iterator[torch.nn.Module]:
        yield self._model
        for module in self._modules.values():
            yield from (
                part for part in module.modules() if isinstance(part, DistributedDataParallel)
            )


def _average(parameters: list[torch.Tensor]) -> None:
    ranks = distributed.get_world_size()
    parts = [_gradient_of(each).flatten() / ranks for each in parameters]
    has_gradient = parts[0].new_tensor([each.grad is not None for each in parameters])
    flat = torch.cat([*parts, has_gradient])
    distributed.all_reduce(flat)
    *averages, counts = torch.split(flat, [*map(len, parts), len(parameters)])
    # Synchronizes only where a parameter has no gradient on this rank.
    is_whole = all(each.grad is not None for each in parameters)
    is_used = [True] * len(parameters) if is_whole else (counts.abs() > 0).tolist()
    for parameter, average, is_given in zip(parameters, averages, is_used, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(average.view_as(parameter))
        elif is_given:
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
