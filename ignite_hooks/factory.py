"""The factory of trainers: everything prepared, wired and checked before the first batch."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from ignite_hooks.checks import check_arguments
from ignite_hooks.checks import check_unused
from ignite_hooks.core.accelerators import accelerator_or_default
from ignite_hooks.data.batch import apply_model
from ignite_hooks.data.batch import identity
from ignite_hooks.data.batch import unpack
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import Feeds
from ignite_hooks.data.prepare import can_prepare
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.trainer.process_function import forward_with
from ignite_hooks.trainer.process_function import loss_alone
from ignite_hooks.trainer.process_function import supervised_step
from ignite_hooks.trainer.trainer import Trainer

if TYPE_CHECKING:
    from ignite_hooks.checkpoint.resume import ResumeCheckpoint
    from ignite_hooks.checkpoint.save import SaveCheckpoint
    from ignite_hooks.evaluation.validation import Validation
    from ignite_hooks.optim.gradient_clipping import GradientClipping

__all__ = ["create_supervised_trainer"]


def create_supervised_trainer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
    data: Iterable[Any] | None = None,
    *,
    accelerator: Accelerator | None = None,
    lr_scheduler: Any = None,
    scheduler_at: str = "step",
    batch_processor: Callable[[torch.nn.Module, Any], tuple[Any, torch.Tensor]] | None = None,
    grad_clip: "GradientClipping | None" = None,
    validation: "Validation | None" = None,
    checkpoint: "SaveCheckpoint | None" = None,
    resume_from: "ResumeCheckpoint | str | Path | None" = None,
    handlers: Iterable[Any] = (),
    prepare_batch: Callable[..., tuple[Any, Any]] = unpack,
    model_transform: Callable[[Any], Any] = identity,
    model_fn: Callable[[torch.nn.Module, Any], Any] = apply_model,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_alone,
) -> Trainer:
    """Builds a trainer: model, optimizer and data prepared with Accelerate, the handlers wired in.

    What is prepared already is used as it is. Gradient accumulation, mixed precision, device and
    processes are the accelerator's::

        trainer = create_supervised_trainer(
            model, optimizer, F.cross_entropy, loader,
            accelerator=Accelerator(gradient_accumulation_steps=4),
            lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000),
            grad_clip=GradientClipping(max_norm=1.0),
            validation=Validation(evaluator, held_out, every_epochs=1),
        )
        trainer.run(max_epochs=10)

    Args:
        model: the model to train. A root module in eval mode is set to train mode when a run
            starts; submodules of one in train mode keep their modes.
        optimizer: an optimizer of the model's parameters, and of the loss function's if it is a
            module.
        loss_fn: (y_pred, y) -> scalar loss, the mean over the batch.
        data: the batches to train on; they can be given to ``run`` instead.
        accelerator: default: a new ``Accelerator`` with the settings of those there are.
        lr_scheduler: a torch scheduler on ``optimizer``, or a callable that makes one from the
            prepared optimizer. It moves once per committed step for any number of processes.
        scheduler_at: "step", or "epoch" to move the scheduler at the end of each epoch.
        batch_processor: (model, batch) -> (outputs, loss), instead of ``loss_fn`` and the three
            functions that serve it. ``output_transform`` is then given (batch, None, outputs,
            loss).
        grad_clip: clips the gradient of each step.
        validation: validates on its schedule.
        checkpoint: saves on its schedule.
        resume_from: a ``ResumeCheckpoint``, or the path of a checkpoint or of a directory of them.
            It is loaded when all else is built; the next ``run`` goes on from there.
        handlers: anything with ``attach(engine)``: handlers of this package, Ignite's
            ``ProgressBar`` and others.
        prepare_batch: (batch, device, non_blocking) -> (x, y); the batch is on the device already.
        model_transform: makes ``y_pred`` of the model's output.
        model_fn: (model, x) -> the model's output.
        output_transform: (x, y, y_pred, loss) -> ``state.output``. The default is
            ``loss.detach()``: ``.item()`` would wait for the device in each iteration.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: arguments that do not go together; a model without trainable parameters; an
            optimizer or scheduler of other parameters; empty data.
    """
    handlers = list(handlers) if isinstance(handlers, Iterator) else handlers
    if isinstance(resume_from, str | Path):
        from ignite_hooks.checkpoint.resume import ResumeCheckpoint  # not unless it is needed

        resume_from = ResumeCheckpoint(resume_from)
    check_arguments(
        model,
        optimizer,
        loss_fn,
        batch_processor,
        handlers,
        grad_clip=grad_clip,
        validation=validation,
        checkpoint=checkpoint,
        resume_from=resume_from,
    )
    check_unused(
        batch_processor,
        prepare_batch=(prepare_batch, unpack),
        model_transform=(model_transform, identity),
        model_fn=(model_fn, apply_model),
    )
    accelerator = accelerator_or_default(accelerator)
    # DeepSpeed needs to see the loader together with the model, for the size of its batches.
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    with_loader = [data] if is_deepspeed and can_prepare(data) else []
    model, optimizer, *loaders = accelerator.prepare(model, optimizer, *with_loader)
    optimizer_step = OptimizerStep(accelerator, optimizer, lr_scheduler, scheduler_at)
    forward = forward_with(
        loss_fn,
        batch_processor,
        prepare_batch,
        model_fn,
        model_transform,
        accelerator.device,
        accelerator.non_blocking,
    )
    process_function = supervised_step(model, optimizer_step, forward, output_transform)
    feeds = Feeds(accelerator)
    trainer = Trainer(process_function, model, optimizer_step, feeds, loss_fn)
    if data is not None:
        feeds.add(data, DataFeed(loaders[0] if loaders else data, accelerator))
        trainer.set_data(data)
    for handler in (grad_clip, *handlers, validation, checkpoint, resume_from):
        if handler is not None:
            handler.attach(trainer)
    return trainer
