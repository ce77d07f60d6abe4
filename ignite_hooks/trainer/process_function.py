"""The process function of a supervised trainer: forward, loss, backward."""

from collections.abc import Callable
from typing import Any

import torch

from ignite_hooks.core.scopes import NOTHING
from ignite_hooks.data.batch import apply_model
from ignite_hooks.data.batch import describe
from ignite_hooks.data.batch import identity
from ignite_hooks.data.batch import pair
from ignite_hooks.data.batch import unpack
from ignite_hooks.events import TrainEvents
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.trainer.loop import TrainingLoop

__all__ = ["forward_with", "loss_alone", "supervised_step"]

Forward = Callable[[torch.nn.Module, Any], tuple[Any, Any, Any, Any]]


def supervised_step(
    model: torch.nn.Module,
    optimizer_step: OptimizerStep,
    forward: Forward,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any],
) -> Callable[[TrainingLoop, Any], Any]:
    """Returns the process function; the optimizer steps after it, at ITERATION_COMPLETED."""
    is_distributed = optimizer_step.is_distributed
    is_value = output_transform is loss_alone  # then there is no need to detach it twice

    def process(engine: TrainingLoop, batch: Any) -> Any:
        state, fire, channels = engine.state, engine.fire_event, engine.hook_channels
        with optimizer_step.synchronizing(model) if is_distributed else NOTHING:
            with channels.on_model_forward:
                fire(TrainEvents.MODEL_FORWARD_STARTED)
                x, y, outputs, loss = forward(model, batch)
                state.model_outputs, state.loss = outputs, loss
                fire(TrainEvents.MODEL_FORWARD_COMPLETED)

            with channels.on_model_backward:
                fire(TrainEvents.MODEL_BACKWARD_STARTED)
                optimizer_step.backward(loss)
                state.loss = value = loss.detach()
                fire(TrainEvents.MODEL_BACKWARD_COMPLETED)
        return value if is_value else output_transform(x, y, outputs, loss)

    return process


def forward_with(
    loss_fn: Callable[[Any, Any], torch.Tensor] | None,
    batch_processor: Callable[[torch.nn.Module, Any], tuple[Any, torch.Tensor]] | None,
    prepare_batch: Callable[..., tuple[Any, Any]],
    model_fn: Callable[[torch.nn.Module, Any], Any],
    model_transform: Callable[[Any], Any],
    device: torch.device,
    non_blocking: bool,
) -> Forward:
    """Returns a function from a model and a batch to (x, y, outputs, loss)."""
    if batch_processor is not None:
        process_batch = batch_processor

        def forward(model: torch.nn.Module, batch: Any) -> tuple[Any, Any, Any, Any]:
            processed = process_batch(model, batch)
            if not isinstance(processed, tuple) or len(processed) != 2:
                raise TypeError(
                    "`batch_processor` must return a tuple (outputs, loss), got "
                    f"{describe(processed)}: return model_outputs, loss"
                )
            outputs, loss = processed
            return batch, None, outputs, _checked(loss, "batch_processor")

        return forward

    assert loss_fn is not None
    compute_loss = loss_fn
    # What does nothing is not called: 4 µs of an iteration.
    only_unpacks = prepare_batch is unpack and device.type == "cpu"
    is_usual = model_transform is identity and model_fn is apply_model

    def forward_and_loss(model: torch.nn.Module, batch: Any) -> tuple[Any, Any, Any, Any]:
        x, y = (
            pair(batch)
            if only_unpacks
            else prepare_batch(batch, device=device, non_blocking=non_blocking)
        )
        y_pred = model(x) if is_usual else model_transform(model_fn(model, x))
        return x, y, y_pred, _checked(compute_loss(y_pred, y), "loss_fn")

    return forward_and_loss


def loss_alone(x: Any, y: Any, y_pred: Any, loss: torch.Tensor) -> torch.Tensor:
    """The default ``output_transform``. Ignite's is ``loss.item()``, which waits for the device."""
    return loss.detach()


def _checked(loss: Any, source: str) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor):
        raise TypeError(
            f"the loss of `{source}` must be a tensor, got {describe(loss)}: return what is to be "
            "minimized, as it comes from torch"
        )
    if loss.numel() != 1:
        order = " (it returns (outputs, loss), in this order)" if source != "loss_fn" else ""
        raise ValueError(
            f"the loss of `{source}` must be a scalar, got {describe(loss)}: reduce it, with "
            f".mean() for instance{order}"
        )
    if not loss.requires_grad:
        raise ValueError(
            f"the loss of `{source}` must require grad, got {describe(loss)} that does not: "
            "something cut it from the model, .detach(), .item() or torch.no_grad()"
        )
    return loss
