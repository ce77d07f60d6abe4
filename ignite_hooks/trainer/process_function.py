"""The process function of a supervised trainer: forward pass, loss, backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from accelerate.utils import convert_to_fp32

from ignite_hooks.core.scopes import NULL_CONTEXT
from ignite_hooks.data.batch import apply_model
from ignite_hooks.data.batch import default_prepare_batch
from ignite_hooks.data.batch import describe_value
from ignite_hooks.data.batch import identity
from ignite_hooks.data.batch import split_pair
from ignite_hooks.events import TrainEvents
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.trainer.trainer import Trainer

__all__ = ["detached_loss", "make_forward", "make_process_function"]

Forward = Callable[[torch.nn.Module, Any], tuple[Any, Any, Any, Any]]


def make_process_function(
    model: torch.nn.Module,
    optimizer_step: OptimizerStep,
    forward: Forward,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any],
) -> Callable[[Trainer, Any], Any]:
    """Returns the process function of a trainer, which the loop calls with each batch.

    The process function ends with the backward pass. The loop makes the optimizer step afterwards.

    Args:
        model: the prepared model.
        optimizer_step: divides the loss for gradient accumulation, and decides when ranks exchange
            gradients.
        forward: a function (model, batch) -> (x, y, outputs, loss).
        output_transform: a function (x, y, outputs, loss) -> the value of ``state.output``.
    """
    is_distributed = optimizer_step.is_distributed
    # The default ``output_transform`` is not called, because ``process`` detaches the loss itself.
    returns_loss = output_transform is detached_loss

    def process(engine: Trainer, batch: Any) -> Any:
        state, fire, channels = engine.state, engine.fire_event, engine.hook_channels
        if not model.training:
            engine.return_to_train_mode()
        with optimizer_step.gradient_sync(model) if is_distributed else NULL_CONTEXT:
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
        return value if returns_loss else output_transform(x, y, outputs, loss)

    return process


def make_forward(
    loss_fn: Callable[[Any, Any], torch.Tensor] | None,
    batch_processor: Callable[[torch.nn.Module, Any], tuple[Any, torch.Tensor]] | None,
    prepare_batch: Callable[..., tuple[Any, Any]],
    model_fn: Callable[[torch.nn.Module, Any], Any],
    model_transform: Callable[[Any], Any],
    accelerator: Accelerator,
) -> Forward:
    """Returns the forward function: (model, batch) -> (x, y, outputs, loss).

    The forward function calls either ``batch_processor``, or the model and ``loss_fn``. With mixed
    precision the accelerator's autocast is on while ``batch_processor`` or the model runs.
    Accelerate itself turns autocast on only in the ``forward`` of the model, not in other methods
    that ``model_fn`` or ``batch_processor`` may call.
    """
    if batch_processor is not None:
        return _batch_processor_forward(batch_processor, accelerator)
    assert loss_fn is not None
    return _supervised_forward(loss_fn, prepare_batch, model_fn, model_transform, accelerator)


def _batch_processor_forward(
    batch_processor: Callable[[torch.nn.Module, Any], tuple[Any, torch.Tensor]],
    accelerator: Accelerator,
) -> Forward:
    """Returns a forward function that calls ``batch_processor``."""
    # Autocast caches the weights that it has cast. Such a cache would last until the batch
    # processor returns. But the batch processor may change the weights between two calls of the
    # model, so autocast runs without its cache.
    no_cache = AutocastKwargs(cache_enabled=False)
    hooked_models: set[torch.nn.Module] = set()

    def forward(model: torch.nn.Module, batch: Any) -> tuple[Any, Any, Any, Any]:
        if accelerator.native_amp:
            # Accelerate has put an autocast of its own around the ``forward`` of the model, and
            # this autocast uses a cache. So a hook clears the cache before each call of the model.
            # The hook is registered once per model, because torch.compile compiles a model again
            # when it gets another hook.
            if model not in hooked_models:
                hooked_models.add(model)
                model.register_forward_pre_hook(_clear_autocast_cache)
            with accelerator.autocast(no_cache):
                processed = batch_processor(model, batch)
        else:
            processed = batch_processor(model, batch)
        if not isinstance(processed, tuple) or len(processed) != 2:
            raise TypeError(
                "`batch_processor` must return a tuple (outputs, loss), got "
                f"{describe_value(processed)}: return model_outputs, loss"
            )
        outputs, loss = processed
        return batch, None, outputs, _check_loss(loss, "batch_processor")

    return forward


def _clear_autocast_cache(model: torch.nn.Module, inputs: Any) -> None:
    """A forward pre-hook that drops the cast weights in the cache of autocast."""
    torch.clear_autocast_cache()


def _supervised_forward(
    loss_fn: Callable[[Any, Any], torch.Tensor],
    prepare_batch: Callable[..., tuple[Any, Any]],
    model_fn: Callable[[torch.nn.Module, Any], Any],
    model_transform: Callable[[Any], Any],
    accelerator: Accelerator,
) -> Forward:
    """Returns a forward function that calls ``prepare_batch``, the model and ``loss_fn``."""
    device, non_blocking = accelerator.device, accelerator.non_blocking
    # Default functions are replaced by shorter code, which saves 4 µs per iteration. On the CPU the
    # default ``prepare_batch`` only unpacks the batch. The default ``model_fn`` only calls
    # the model, and the default ``model_transform`` returns its argument.
    only_unpacks = prepare_batch is default_prepare_batch and device.type == "cpu"
    calls_model_directly = model_transform is identity and model_fn is apply_model

    def predict(model: torch.nn.Module, x: Any) -> Any:
        """Calls the model and transforms its output, exactly as the evaluator does."""
        if not accelerator.native_amp:
            return model_transform(model_fn(model, x))
        with accelerator.autocast():
            return model_transform(convert_to_fp32(model_fn(model, x)))

    def forward(model: torch.nn.Module, batch: Any) -> tuple[Any, Any, Any, Any]:
        x, y = (
            split_pair(batch)
            if only_unpacks
            else prepare_batch(batch, device=device, non_blocking=non_blocking)
        )
        y_pred = model(x) if calls_model_directly else predict(model, x)
        return x, y, y_pred, _check_loss(loss_fn(y_pred, y), "loss_fn")

    return forward


def detached_loss(x: Any, y: Any, y_pred: Any, loss: torch.Tensor) -> torch.Tensor:
    """Returns ``loss.detach()``: the default ``output_transform``.

    Ignite's default is ``loss.item()``, which synchronizes with the device in each iteration.
    """
    return loss.detach()


def _check_loss(loss: Any, source: str) -> torch.Tensor:
    """Returns ``loss`` if it is a scalar tensor that requires grad; raises an error otherwise.

    Args:
        loss: the loss of a batch.
        source: the name of the user's function that returned the loss, for the message: "loss_fn"
            or "batch_processor".
    """
    # The user may have returned (loss, outputs), so the messages end with the right order.
    order = " (it returns (outputs, loss), in this order)" if source != "loss_fn" else ""
    if not isinstance(loss, torch.Tensor):
        raise TypeError(
            f"the loss of `{source}` must be a tensor, got {describe_value(loss)}: return the "
            f"tensor to minimize, not a number made from it{order}"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"the loss of `{source}` must be a scalar, got {describe_value(loss)}: reduce it, with "
            f".mean() for instance{order}"
        )
    if not loss.requires_grad:
        raise ValueError(
            f"the loss of `{source}` must require grad, got {describe_value(loss)} that does not: "
            "remove the .detach(), .item() or torch.no_grad() between the model and the loss"
        )
    return loss
