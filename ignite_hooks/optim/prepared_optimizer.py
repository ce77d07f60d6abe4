"""An optimizer that Accelerate has prepared, with its backward pass, clipping and loss scaling.

Where torch's own functions give the same result, they are called instead of Accelerate's, because
they are faster.
"""

import inspect
from collections.abc import Callable
from math import inf
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.optim import Optimizer

from ignite_hooks.core.accelerators import is_data_parallel
from ignite_hooks.core.accelerators import prepare_for_owner
from ignite_hooks.core.rules import shown_type

__all__ = ["PreparedOptimizer", "check_optimizer"]


def check_optimizer(optimizer: Any) -> None:
    """Checks that ``optimizer`` is an optimizer that steps without a closure.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer, or its ``step`` needs an argument.
    """
    if not isinstance(optimizer, Optimizer):
        remedy = "pass torch.optim.SGD(model.parameters(), lr=0.1), for example"
        if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
            remedy = f"make one, {optimizer.__name__}(model.parameters(), …)"
        elif isinstance(getattr(optimizer, "optimizer", None), Optimizer):
            remedy = "pass the optimizer here, and the scheduler as `lr_scheduler`"
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer, got {shown_type(optimizer)}: {remedy}"
        )
    torch_optimizer: Any = optimizer
    while isinstance(torch_optimizer, AcceleratedOptimizer):
        torch_optimizer = torch_optimizer.optimizer
    try:
        # The method of the class is inspected, because a torch scheduler replaces the method of the
        # instance with a wrapper.
        parameters = inspect.signature(type(torch_optimizer).step).parameters
    except (TypeError, ValueError):  # a ``step`` that is not written in Python has no signature
        return
    for each in list(parameters.values())[1:]:
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            raise TypeError(
                f"`optimizer` must step without arguments, {type(torch_optimizer).__name__}.step() "
                f"needs `{each.name}`: a closure would run the model several times within a step, "
                "on batches that are no longer in memory; use an optimizer that needs no closure, "
                "or your own training loop"
            )


class PreparedOptimizer:
    """An optimizer that Accelerate has prepared, with the matching backward pass and clipping.

    Args:
        accelerator: the accelerator. Its loss scaler and its type of parallelism decide what the
            methods do.
        optimizer: a torch optimizer, prepared or not.

    Raises:
        ValueError: another accelerator, which has a different loss scaler, prepared the optimizer.
    """

    def __init__(self, accelerator: Accelerator, optimizer: Optimizer) -> None:
        self.accelerator = accelerator
        self.optimizer: Any = prepare_for_owner(
            self, accelerator, accelerator.prepare_optimizer, optimizer
        )
        if getattr(self.optimizer, "scaler", accelerator.scaler) is not accelerator.scaler:
            raise ValueError(
                "`accelerator` must be the accelerator that prepared `optimizer`, got an "
                "accelerator with a different loss scaler: gradients would be scaled by one scaler "
                "and unscaled by the other; pass the accelerator that prepared `optimizer`"
            )
        self.is_data_parallel = is_data_parallel(accelerator)
        self.calls_torch_directly = self._can_call_torch_directly()
        self._is_unscaled = False
        # Autograd counts the in-place changes of a tensor in ``_version``. To test cheaply whether
        # parameters have changed, ``OptimizerStep`` compares the count of this one parameter only.
        self.first_parameter = next(iter(self.parameters), torch.empty(0))

    def _can_call_torch_directly(self) -> bool:
        """Returns whether Accelerate's backward, step and zero_grad do the same as torch's.

        If so, calling torch directly saves 100 µs per step, because Accelerate's functions look up
        a package twice in each step, and call ``inspect.signature``.
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
        return [
            parameter
            for group in groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]

    def backward(self, loss: torch.Tensor, window_size: int) -> None:
        """Back-propagates ``loss / window_size``.

        Args:
            loss: the loss of one batch.
            window_size: the number of batches whose gradients are accumulated for the step.
        """
        if self.calls_torch_directly:
            share = loss if window_size == 1 else loss / window_size
            share.backward()  # type: ignore[no-untyped-call]
        else:
            # ``accelerator.backward`` divides the loss by ``steps``, so the loss is multiplied by
            # ``steps`` first.
            steps = self.accelerator.gradient_accumulation_steps
            self.accelerator.backward(loss if steps == window_size else loss * steps / window_size)

    def scale(self, factor: float) -> None:
        """Multiplies the gradients by ``factor``."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def unscale(self) -> None:
        """Divides the gradients by the factor of the loss scaler, if there is a loss scaler.

        Does nothing if the model is split over processes, for example with FSDP. Accelerate then
        decides when to divide.
        """
        if self.optimizer.scaler is not None and self.is_data_parallel:
            # The flag is set before the call: if ``unscale_`` raises, the scaler may already have
            # marked the optimizer as unscaled, and ``zero_grad`` must reset this mark.
            self._is_unscaled = True
            self.optimizer.scaler.unscale_(self.optimizer.optimizer)

    def clip_grad_norm_(self, max_norm: float, norm_type: float) -> torch.Tensor:
        """Clips the gradients by their norm; returns the norm from before the clipping.

        With ``max_norm`` inf the gradients are not changed.
        """
        if max_norm == inf and self.is_data_parallel:
            # torch's clipping would multiply all gradients by inf / inf if one of them is infinite.
            return self.grad_norm(norm_type)
        # If `is_data_parallel`, `unscale` has unscaled these gradients. Accelerate's function
        # would unscale them again, and torch's loss scaler does not allow that.
        clip: Any = torch.nn.utils if self.is_data_parallel else self.accelerator
        norm: torch.Tensor = clip.clip_grad_norm_(self.parameters, max_norm, norm_type=norm_type)
        return norm

    def grad_norm(self, norm_type: float) -> torch.Tensor:
        """Returns the norm of the gradients of this process."""
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        norm: torch.Tensor = torch.nn.utils.get_total_norm(gradients, norm_type)
        return norm

    def clip_grad_value_(self, clip_value: float) -> None:
        """Clips each element of the gradients to at most ``clip_value`` in absolute value."""
        clip: Any = torch.nn.utils if self.is_data_parallel else self.accelerator
        clip.clip_grad_value_(self.parameters, clip_value)

    @property
    def step(self) -> Callable[[], Any]:
        """The function that makes the optimizer step."""
        if self.calls_torch_directly:
            # Accelerate's wrapper is not called, so its flag ``_opt_called`` is set here. A
            # scheduler on the wrapper warns at its first move if the flag is missing.
            self.optimizer._opt_called = True
            return self.optimizer.optimizer.step  # type: ignore[no-any-return]
        return self.optimizer.step  # type: ignore[no-any-return]

    def has_changed_parameters(self) -> bool:
        """Returns whether the last step was committed, that is, not skipped by the loss scaler."""
        self._is_unscaled = False
        return self.calls_torch_directly or not self.optimizer.step_was_skipped

    def zero_grad(self) -> None:
        """Clears the gradients, after a step or when accumulated gradients are dropped."""
        if self._is_unscaled:
            # The gradients were unscaled, and no step followed. Without ``update`` the scaler would
            # refuse to unscale the gradients of the next step. The present scale is passed, so
            # that ``update`` does not change it.
            self.optimizer.scaler.update(self.optimizer.scaler.get_scale())
            self._is_unscaled = False
        # ``zero_grad`` of Accelerate's wrapper does nothing if ``sync_gradients`` is False.
        self.accelerator.gradient_state.sync_gradients = True
        (self.optimizer.optimizer if self.calls_torch_directly else self.optimizer).zero_grad()
