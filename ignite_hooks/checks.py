"""What can be known to be wrong before anything is prepared."""

import inspect
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import torch

import ignite_hooks
from ignite_hooks.hooks.context import HookContext

__all__ = ["check_arguments", "check_unused"]

_KINDS = {
    "grad_clip": ("GradientClipping", "GradientClipping(max_norm=1.0)"),
    "validation": ("Validation", "Validation(evaluator, loader, every_epochs=1)"),
    "checkpoint": ("SaveCheckpoint", 'SaveCheckpoint("runs", every_epochs=1)'),
    "resume_from": ("ResumeCheckpoint", 'ResumeCheckpoint("checkpoints")'),
}


def check_arguments(
    model: Any,
    optimizer: Any,
    loss_fn: Any,
    batch_processor: Any,
    handlers: Any,
    **own_handlers: Any,
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
    for name, handler in own_handlers.items():
        _check_kind(name, handler)
    _check_handlers(handlers)


def check_unused(batch_processor: Any, **functions: tuple[Any, Any]) -> None:
    """Raises a ValueError for functions that ``batch_processor`` would make useless."""
    given = [name for name, (function, default) in functions.items() if function is not default]
    if batch_processor is not None and given:
        raise ValueError(
            f"`{given[0]}` must not be given with `batch_processor`, which takes the batch and the "
            "model as they are: call it in the batch processor"
        )


def _check_kind(name: str, handler: Any) -> None:
    """A class that is not needed is not imported: those with checked fields take 60 ms."""
    kind, remedy = _KINDS[name]
    if handler is not None and not isinstance(handler, getattr(ignite_hooks, kind)):
        raise TypeError(f"`{name}` must be a {kind}, got {type(handler).__name__}: pass {remedy}")


def _check_handlers(handlers: Any) -> None:
    if not isinstance(handlers, Iterable):
        raise TypeError(
            f"`handlers` must be a list of handlers, got {type(handlers).__name__}: put it into a "
            "list, handlers=[handler]"
        )
    for index, handler in enumerate(handlers):
        if isinstance(handler, type):
            raise TypeError(
                f"`handlers` must hold handlers, handlers[{index}] is the class "
                f"{handler.__name__}: make one, {handler.__name__}(…)"
            )
        if isinstance(handler, HookContext) or inspect.isgeneratorfunction(handler):
            raise TypeError(
                f"`handlers` must have attach(engine), handlers[{index}] is a context: register it "
                "on a channel, trainer.hooks.register(channel, context)"
            )
        if not callable(getattr(handler, "attach", None)):
            raise TypeError(
                f"`handlers` must have attach(engine), handlers[{index}] is a "
                f"{type(handler).__name__}, which has not: add a function with "
                "trainer.add_event_handler(event, function)"
            )


def _check_one_loss(loss_fn: Any, batch_processor: Any) -> None:
    if (loss_fn is None) == (batch_processor is None):
        got = "neither" if loss_fn is None else "both"
        raise ValueError(
            f"exactly one of `loss_fn` and `batch_processor` must be given, got {got}: pass "
            "loss_fn=torch.nn.functional.cross_entropy, say, for batches (x, y), or a function "
            "(model, batch) -> (outputs, loss) as batch_processor"
        )
    if isinstance(loss_fn, type):
        raise TypeError(
            f"`loss_fn` must be a function or a module, got the class {loss_fn.__name__}: "
            f"make one, {loss_fn.__name__}()"
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
    if _has_other_parameters(optimizer):
        return
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


def _has_other_parameters(optimizer: Any) -> bool:
    """Whether preparing may have put others in the place of the model's, as sharding does."""
    state = getattr(optimizer, "accelerator_state", None)
    if not getattr(optimizer, "_is_accelerate_prepared", False) or state is None:
        return False
    return not (state.distributed_type.value == "NO" or "MULTI_" in state.distributed_type.value)
