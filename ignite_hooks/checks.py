"""What can be known to be wrong before anything is prepared."""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["check_arguments", "check_unused"]


def check_arguments(
    model: Any,
    optimizer: Any,
    loss_fn: Any,
    batch_processor: Any,
    handlers: Iterable[Any],
) -> None:
    """Raises a TypeError or ValueError that names the argument, the rule and the remedy."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"`model` must be a torch.nn.Module, got {type(model).__name__}: "
            "put several models into a torch.nn.ModuleDict"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"`optimizer` must be a torch.optim.Optimizer, got {type(optimizer).__name__}: "
            "pass torch.optim.SGD(model.parameters(), lr=0.1), say"
        )
    _check_one_loss(loss_fn, batch_processor)
    _check_parameters(model, optimizer, loss_fn)
    for index, handler in enumerate(handlers):
        if not callable(getattr(handler, "attach", None)):
            raise TypeError(
                f"`handlers` must have attach(engine), handlers[{index}] is a "
                f"{type(handler).__name__}, which has not: add a function with "
                "trainer.add_event_handler(event, function)"
            )


def check_unused(batch_processor: Any, **functions: tuple[Any, Any]) -> None:
    """Raises a ValueError for functions that ``batch_processor`` would make useless."""
    given = [name for name, (function, default) in functions.items() if function is not default]
    if batch_processor is not None and given:
        raise ValueError(
            f"`{given[0]}` must not be given with `batch_processor`, which takes the batch and the "
            "model as they are: call it in the batch processor"
        )


def _check_one_loss(loss_fn: Any, batch_processor: Any) -> None:
    if (loss_fn is None) == (batch_processor is None):
        got = "neither" if loss_fn is None else "both"
        raise ValueError(
            f"exactly one of `loss_fn` and `batch_processor` must be given, got {got}: pass "
            "loss_fn=torch.nn.functional.cross_entropy, say, for batches (x, y), or a function "
            "(model, batch) -> (outputs, loss) as batch_processor"
        )
    for name, function in (("loss_fn", loss_fn), ("batch_processor", batch_processor)):
        if function is not None and not callable(function):
            raise TypeError(
                f"`{name}` must be callable, got {type(function).__name__}: pass a function or a "
                "module"
            )


def _check_parameters(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Callable[..., Any] | None
) -> None:
    known = list(model.parameters())
    if not any(parameter.requires_grad for parameter in known):
        raise ValueError(
            f"`model` must have trainable parameters, {type(model).__name__} has none out of "
            f"{len(known)}: set requires_grad, or use create_supervised_evaluator"
        )
    if getattr(optimizer, "_is_accelerate_prepared", False):
        return  # preparing may have put others in the place of the model's
    if isinstance(loss_fn, torch.nn.Module):
        known += loss_fn.parameters()
    ids = set(map(id, known))
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreign = sum(id(parameter) not in ids for parameter in own)
    if foreign:
        raise ValueError(
            "`optimizer` must hold parameters of `model` (or of a `loss_fn` that is a module), "
            f"{foreign} of its {len(own)} are not: make it from model.parameters() after the last "
            "change to the model"
        )
