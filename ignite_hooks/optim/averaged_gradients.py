"""Averages, over all ranks, the gradients of parameters that are not in the model.

DDP averages the gradients of the model that it wraps. A loss function, or a user's function that
computes the loss of a batch, may have parameters too. DDP cannot always wrap such a function: it
may be a method, or a module that holds the model. The gradients of these parameters are averaged
here, once per window. A *window* is the batches whose gradients are accumulated for one optimizer
step.
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
    """Averages the gradients of trained parameters that no DDP wrapper averages.

    The result is the same as with DDP. Training starts from the parameters and buffers of rank 0.
    Each gradient is divided by the number of ranks, and the quotients are summed. With
    ``sends_buffers``, the buffers of rank 0 are copied to all ranks once per window. If a parameter
    has no gradient on any rank, its ``grad`` stays None, so that the optimizer skips the parameter.
    If a parameter is added to the optimizer later, its gradient is averaged from then on.

    Args:
        model: the model. The gradients of its parameters are not averaged here.
        modules: the other modules by name, the same on every rank. The gradients of submodules that
            are wrapped in DDP are not averaged here.
        optimizer: the optimizer that trains the parameters.
        device: the device on which the processes exchange tensors.
        sends_buffers: whether rank 0 sends its buffers once per window. DDP has the same option,
            ``broadcast_buffers``.
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
        groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        # There is one group, and one all_reduce, for each dtype and device. All ranks must form the
        # same groups, so parameters without a gradient are in the groups too.
        for each in self._parameters().values():
            if each.requires_grad and id(each) in optimized:
                groups.setdefault((each.dtype, each.device), []).append(each)
        with torch.no_grad():
            for parameters in groups.values():
                _average(parameters)
        if self._sends_buffers and groups and (buffers := self._buffers()):
            broadcast_values(buffers, self._device)

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Returns the parameters whose gradients no DDP wrapper averages, by name."""
        return self._collect(torch.nn.Module.named_parameters)

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Returns the buffers that no DDP wrapper copies to all ranks, by name.

        The buffers are looked up at each call, because some modules replace their buffers.
        """
        return self._collect(torch.nn.Module.named_buffers)

    def _collect(
        self, tensors_of: Callable[[torch.nn.Module], Iterable[tuple[str, torch.Tensor]]]
    ) -> dict[str, torch.Tensor]:
        """Returns the tensors of ``modules`` by name, without those that DDP handles.

        DDP handles the tensors of the model and of submodules that are wrapped in DDP. A tensor
        that has several names is returned once.

        Args:
            tensors_of: ``Module.named_parameters`` or ``Module.named_buffers``.
        """
        seen = {id(each) for module in self._wrapped_modules() for _, each in tensors_of(module)}
        found: dict[str, torch.Tensor] = {}
        for name, module in self._modules.items():
            for path, each in tensors_of(module):
                if id(each) not in seen:
                    seen.add(id(each))
                    found[f"{name}.{path}"] = each
        return found

    def _wrapped_modules(self) -> Iterator[torch.nn.Module]:
        """Yields the modules that DDP handles: the model, and submodules wrapped in DDP."""
        yield self._model
        for module in self._modules.values():
            yield from (
                part for part in module.modules() if isinstance(part, DistributedDataParallel)
            )


def _average(parameters: list[torch.Tensor]) -> None:
    """Averages the gradients of parameters with the same dtype and device, in one collective."""
    ranks = distributed.get_world_size()
    parts = [_gradient_or_zeros(each).flatten() / ranks for each in parameters]
    # For each parameter a 1 or a 0 is sent too. The sum over the ranks is then the number of ranks
    # on which the parameter has a gradient.
    has_gradient = parts[0].new_tensor([each.grad is not None for each in parameters])
    flat = torch.cat([*parts, has_gradient])
    distributed.all_reduce(flat)
    *averages, counts = torch.split(flat, [*map(len, parts), len(parameters)])
    # The counts are read only if a parameter has no gradient on this rank, because ``tolist``
    # synchronizes with the device.
    are_all_present = all(each.grad is not None for each in parameters)
    has_averages = [True] * len(parameters) if are_all_present else (counts.abs() > 0).tolist()
    for parameter, average, has_average in zip(parameters, averages, has_averages, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(average.view_as(parameter))
        elif has_average:
            parameter.grad = average.view_as(parameter).clone()


def _gradient_or_zeros(parameter: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of ``parameter``, or zeros of the same shape if it has no gradient."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    if parameter.grad.is_sparse:
        raise RuntimeError(
            "with several processes, a parameter outside `model` must have a dense gradient, got a "
            f"sparse gradient of shape {tuple(parameter.shape)}: make the embedding with "
            "sparse=False, or make its module a submodule of `model`"
        )
    return parameter.grad
