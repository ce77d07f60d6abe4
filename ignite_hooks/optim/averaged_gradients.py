"""Gradients of parameters outside of the model, averaged over all ranks.

DDP averages the gradients of the model that it wraps. A loss function or a batch processor with
parameters cannot always be wrapped: it may be a method, or hold the model. Its gradients are
averaged here, once per window.
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
    """Averages the gradients of parameters that all ranks train and no wrapper covers.

    As with DDP, training starts from the values of rank 0, each gradient is divided by the number
    of ranks before they are summed, and after each step the buffers are those of rank 0. A
    parameter that has no gradient on any rank is left without one, so that the optimizer skips it
    as with one process. Parameters that the optimizer is given later are averaged from then on.

    Args:
        model: the model, whose parameters are left out.
        modules: the other modules by name, the same on every rank. Parts in a DDP are left out.
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
        groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
        # One all_reduce needs one dtype and one device. All ranks form the same groups, in the same
        # order: what has a gradient may differ between ranks, so it must not decide.
        for each in self._parameters().values():
            if each.requires_grad and id(each) in optimized:
                groups.setdefault((each.dtype, each.device), []).append(each)
        with torch.no_grad():
            for parameters in groups.values():
                _average(parameters)
        if self._sends_buffers and groups and (buffers := self._buffers()):
            broadcast_values(buffers, self._device)

    def _parameters(self) -> dict[str, torch.Tensor]:
        """Returns the parameters that no wrapper averages, by name."""
        return self._collect(torch.nn.Module.named_parameters)

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Returns the present buffers, by name: some modules replace theirs by new tensors."""
        return self._collect(torch.nn.Module.named_buffers)

    def _collect(
        self, tensors_of: Callable[[torch.nn.Module], Iterable[tuple[str, torch.Tensor]]]
    ) -> dict[str, torch.Tensor]:
        """Returns the tensors of the modules that are in no wrapper, each once, by name."""
        seen = {id(each) for module in self._wrapped_modules() for _, each in tensors_of(module)}
        found: dict[str, torch.Tensor] = {}
        for name, module in self._modules.items():
            for path, each in tensors_of(module):
                if id(each) not in seen:
                    seen.add(id(each))
                    found[f"{name}.{path}"] = each
        return found

    def _wrapped_modules(self) -> Iterator[torch.nn.Module]:
        """Yields the modules whose gradients are averaged elsewhere."""
        yield self._model
        for module in self._modules.values():
            yield from (
                part for part in module.modules() if isinstance(part, DistributedDataParallel)
            )


def _average(parameters: list[torch.Tensor]) -> None:
    """Averages the gradients of parameters of one dtype and device, with one collective."""
    ranks = distributed.get_world_size()
    parts = [_gradient_or_zeros(each).flatten() / ranks for each in parameters]
    has_gradient = parts[0].new_tensor([each.grad is not None for each in parameters])
    flat = torch.cat([*parts, has_gradient])
    distributed.all_reduce(flat)
    *averages, counts = torch.split(flat, [*map(len, parts), len(parameters)])
    # The result is read, which synchronizes with the device, only on a rank where a parameter has
    # no gradient.
    are_all_present = all(each.grad is not None for each in parameters)
    has_averages = [True] * len(parameters) if are_all_present else (counts.abs() > 0).tolist()
    for parameter, average, has_average in zip(parameters, averages, has_averages, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(average.view_as(parameter))
        elif has_average:
            parameter.grad = average.view_as(parameter).clone()


def _gradient_or_zeros(parameter: torch.Tensor) -> torch.Tensor:
    """Returns the gradient, or zeros of its shape on a rank that has none."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    if parameter.grad.is_sparse:
        raise RuntimeError(
            "a parameter beside `model` must have a dense gradient on several processes, got a "
            f"sparse one of shape {tuple(parameter.shape)}: make the embedding with sparse=False, "
            "or its module a submodule of `model`"
        )
    return parameter.grad
