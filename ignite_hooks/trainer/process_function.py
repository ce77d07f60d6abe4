"""The process function of a supervised trainer: forward, loss, backward."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from accelerate.utils import convert_to_fp32

from ignite_hooks.core.scopes import NOTHING
from ignite_hooks.data.batch import apply_model
from ignite_hooks.data.batch import describe
from ignite_hooks.data.batch import identity
from ignite_hooks.data.batch import pair
from ignite_hooks.data.batch import unpack
from ignite_hooks.events import TrainEvents
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.trainer.trainer import Trainer

__all__ = ["forward_with", "loss_alone", "supervised_step"]

Forward = Callable[[torch.nn.Module, Any], tuple[Any, Any, Any, Any]]


def supervised_step(
    model: torch.nn.Module,
    optimizer_step: OptimizerStep,
    forward: Forward,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any],
) -> Callable[[Trainer, Any], Any]:
    """Returns the process function; the optimizer steps after it."""
    is_distributed = optimizer_step.is_distributed
    is_value = output_transform is loss_alone  # then there is no need to detach it twice

    def process(engine: Trainer, batch: Any) -> Any:
        state, fire, channels = engine.state, engine.fire_event, engine.hook_channels
        if not model.training:
            engine.return_to_train_mode()
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
    accelerator: Accelerator,
) -> Forward:
    """Returns a function from a model and a batch to (x, y, outputs, loss).

    With mixed precision the model and all of ``batch_processor`` are in the accelerator's autocast.
    Accelerate sees to that in ``forward`` alone, and not where another method is called.
    """
    if batch_processor is not None:
        return _forward_of(batch_processor, accelerator)
    assert loss_fn is not None
    return _supervised_forward(loss_fn, prepare_batch, model_fn, model_transform, accelerator)


def _forward_of(
    batch_processor: Callable[[torch.nn.Module, Any], tuple[Any, torch.Tensor]],
    accelerator: Accelerator,
) -> Forward:
    # Without a cache: autocast keeps the weights that it has cast until the outermost one is left,
    # and a batch processor may change them between two calls of the model.
    without_cache = AutocastKwargs(cache_enabled=False)
    watched: set[torch.nn.Module] = set()

    def forward(model: torch.nn.Module, batch: Any) -> tuple[Any, Any, Any, Any]:
        if accelerator.native_amp:
            if model not in watched:  # once: to a compiled model a new hook is a new program
                watched.add(model)
                model.register_forward_pre_hook(_clear_autocast_cache)
            with accelerator.autocast(without_cache):
                processed = batch_processor(model, batch)
        else:
            processed = batch_processor(model, batch)
        if not isinstance(processed, tuple) or len(processed) != 2:
            raise TypeError(
                "`batch_processor` must return a tuple (outputs, loss), got "
                f"{describe(processed)}: return model_outputs, loss"
            )
        outputs, loss = processed
        return batch, None, outputs, _checked(loss, "batch_processor")

    return forward


def _clear_autocast_cache(model: torch.nn.Module, inputs: Any) -> None:
    """Forgets the weights as they were cast in the forward before, in Accelerate's own autocast."""
    torch.clear_autocast_cache()


def _supervised_forward(
    loss_fn: Callable[[Any, Any], torch.Tensor],
    prepare_batch: Callable[..., tuple[Any, Any]],
    model_fn: Callable[[torch.nn.Module, Any], Any],
    model_transform: Callable[[Any], Any],
    accelerator: Accelerator,
) -> Forward:
    device, non_blocking = accelerator.device, accelerator.non_blocking
    # What does nothing is not called: 4 µs of an iteration.
    only_unpacks = prepare_batch is unpack and device.type == "cpu"
    is_usual = model_transform is identity and model_fn is apply_model

    def predict(model: torch.nn.Module, x: Any) -> Any:
        """Does as the evaluator does."""
        if not accelerator.native_amp:
            return model_transform(model_fn(model, x))
        with accelerator.autocast():
            return model_transform(convert_to_fp32(model_fn(model, x)))

    def forward(model: torch.nn.Module, batch: Any) -> tuple[Any, Any, Any, Any]:
        x, y = (
            pair(batch)
            if only_unpacks
            else prepare_batch(batch, device=device, non_blocking=non_blocking)
        )
        y_pred = model(x) if is_usual else predict(model, x)
        return x, y, y_pred, _checked(loss_fn(y_pred, y), "loss_fn")

    return forward


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
