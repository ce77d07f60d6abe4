"""The optimizer as Accelerate prepared it, called directly where Accelerate adds nothing."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer

from ignite_hooks.core.accelerators import is_data_parallel
from ignite_hooks.core.accelerators import prepared_for
from ignite_hooks.core.rules import shown_type

__all__ = ["PreparedOptimizer", "check_optimizer"]


def check_optimizer(optimizer: Any) -> None:
    """Checks that there is an optimizer, and that it steps without a closure.

    Raises:
        TypeError: it is none, or its ``step`` needs an argument.
    """
    if not isinstance(optimizer, Optimizer):
        remedy = "pass torch.optim.SGD(model.parameters(), lr=0.1), say"
        if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
            remedy = f"make one, {optimizer.__name__}(model.parameters(), …)"
        elif isinstance(getattr(optimizer, "optimizer", None), Optimizer):
            remedy = "pass the optimizer here, and the scheduler as `lr_scheduler`"
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer, got {shown_type(optimizer)}: {remedy}"
        )
    of_torch: Any = optimizer
    while isinstance(of_torch, AcceleratedOptimizer):
        of_torch = of_torch.optimizer
    try:
        # Of the class: a scheduler wraps the method of the instance.
        parameters = inspect.signature(type(of_torch).step).parameters
    except (TypeError, ValueError):  # one that is not written in Python
        return
    for each in list(parameters.values())[1:]:
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            raise TypeError(
                f"`optimizer` must step without arguments, {type(of_torch).__name__}.step() needs "
                f"`{each.name}`: a closure would run the model several times within a step, on "
                "batches that are gone; use an optimizer that needs none, or a loop of your own"
            )


class PreparedOptimizer:
    """An optimizer that Accelerate has prepared, and the backward pass that goes with it.

    Args:
        accelerator: whose scaler, processes and kind of parallelism decide what is done.
        optimizer: a torch optimizer, prepared or not.
    """

    def __init__(self, accelerator: Accelerator, optimizer: Optimizer) -> None:
        self.accelerator = accelerator
        self.optimizer: Any = prepared_for(
            self, accelerator, accelerator.prepare_optimizer, optimizer
        )
        self.is_data_parallel = is_data_parallel(accelerator)
        self.is_plain = self._accelerate_adds_nothing()
        self._is_unscaled = False
        # Its ``_version``, autograd's count of changes, tells whether parameters have changed.
        self.first_parameter = next(iter(self.parameters), torch.empty(0))

    def _accelerate_adds_nothing(self) -> bool:
        """Whether Accelerate's backward, step and zero_grad come down to torch's.

        They cost 100 µs a step then, for two look-ups of a package and an ``inspect.signature``.
        """
        return (
            self.is_data_parallel
            and type(self.optimizer) is AcceleratedOptimizer
            and self.optimizer.scaler is None
            and self.accelerator.scaler is None
            and not self.accelerator.has_lomo_optimizer
        )

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters, in the order of the optimizer's groups."""
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def backward(self, loss: torch.Tensor, window_size: int) -> None:
        """Back-propagates the share of ``loss`` in the mean over a window."""
        if self.is_plain:
            share = loss if window_size == 1 else loss / window_size
            share.backward()  # type: ignore[no-untyped-call]
        else:
            steps = self.accelerator.gradient_accumulation_steps  # by which Accelerate divides
            self.accelerator.backward(loss if steps == window_size else loss * steps / window_size)

    def scale(self, factor: float) -> None:
        """Multiplies the gradients."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def unscale(self) -> None:
        """Takes the loss scaler's factor out of the gradients, if there is one."""
        if self.optimizer.scaler is not None and self.is_data_parallel:
            self._is_unscaled = True  # before: ``zero_grad`` must know if this breaks off
            self.optimizer.scaler.unscale_(self.optimizer.optimizer)

    def clip_grad_norm_(self, max_norm: float, norm_type: float) -> torch.Tensor:
        """Clips by norm; returns the norm before."""
        # Accelerate's would unscale again, and with the scaler of every optimizer.
        clip: Any = torch.nn.utils if self.is_data_parallel else self.accelerator
        norm: torch.Tensor = clip.clip_grad_norm_(self.parameters, max_norm, norm_type=norm_type)
        return norm

    def clip_grad_value_(self, clip_value: float) -> None:
        """Clips each value."""
        clip: Any = torch.nn.utils if self.is_data_parallel else self.accelerator
        clip.clip_grad_value_(self.parameters, clip_value)

    @property
    def step(self) -> Callable[[], Any]:
        """The function that steps."""
        if self.is_plain:
            # A scheduler that was built on Accelerate's wrapper looks here.
            self.optimizer._opt_called = True
            return self.optimizer.optimizer.step  # type: ignore[no-any-return]
        return self.optimizer.step  # type: ignore[no-any-return]

    def has_changed_parameters(self) -> bool:
        """Returns whether the last step was made, and not skipped by the loss scaler."""
        self._is_unscaled = False
        return self.is_plain or not self.optimizer.step_was_skipped

    def zero_grad(self) -> None:
        """Clears the gradients, also of a step that is not to be."""
        if self._is_unscaled:
            # Else the scaler would refuse to unscale the next window. Its factor stays.
            self.optimizer.scaler.update(self.optimizer.scaler.get_scale())
            self._is_unscaled = False
        self.accelerator.gradient_state.sync_gradients = True  # else Accelerate's does nothing
        (self.optimizer.optimizer if self.is_plain else self.optimizer).zero_grad()
