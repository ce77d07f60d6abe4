"""The factory of trainers: checks, prepares and wires everything before the first batch."""

import inspect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.engine
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

import ignite_hooks.checkpoint
import ignite_hooks.evaluation
import ignite_hooks.optim
from ignite_hooks.core.accelerators import accelerator_or_default
from ignite_hooks.core.accelerators import broadcasts_buffers
from ignite_hooks.core.accelerators import is_data_parallel
from ignite_hooks.core.accelerators import is_prepared
from ignite_hooks.core.accelerators import prepared_for
from ignite_hooks.core.ignite_arguments import check_no_device
from ignite_hooks.core.ignite_arguments import explains_arguments_of
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.rules import whole_number
from ignite_hooks.core.torch_modules import check_model
from ignite_hooks.data.batch import apply_model
from ignite_hooks.data.batch import identity
from ignite_hooks.data.batch import unpack
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import Feeds
from ignite_hooks.data.prepare import can_prepare
from ignite_hooks.hooks.context import HookContext
from ignite_hooks.optim.averaged_gradients import AveragedGradients
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.optim.prepared_optimizer import check_optimizer
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.trainer.process_function import forward_with
from ignite_hooks.trainer.process_function import loss_alone
from ignite_hooks.trainer.process_function import supervised_step
from ignite_hooks.trainer.trainer import Trainer

__all__ = ["create_supervised_trainer"]


@explains_arguments_of(ignite.engine.create_supervised_trainer)
def create_supervised_trainer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
    data: Iterable[Any] | None = None,
    *,
    accelerator: Accelerator | None = None,
    lr_scheduler: Any = None,
    scheduler_at: "ignite_hooks.optim.lr_scheduler.SchedulerAt" = "step",
    scheduler_metric: str | None = None,
    batch_processor: Callable[[torch.nn.Module, Any], tuple[Any, torch.Tensor]] | None = None,
    grad_clip: "ignite_hooks.optim.GradientClipping | None" = None,
    validation: "ignite_hooks.evaluation.Validation | None" = None,
    checkpoint: "ignite_hooks.checkpoint.SaveCheckpoint | None" = None,
    resume_from: "ignite_hooks.checkpoint.ResumeCheckpoint | str | Path | None" = None,
    handlers: Iterable[Any] = (),
    on_peer_failure: OnPeerFailure = "exit",
    prepare_batch: Callable[..., tuple[Any, Any]] = unpack,
    model_transform: Callable[[Any], Any] = identity,
    model_fn: Callable[[torch.nn.Module, Any], Any] = apply_model,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = loss_alone,
    agree_every: int = 1,
) -> Trainer:
    """Builds a trainer: model, optimizer and data prepared with Accelerate, the handlers wired in.

    What is prepared already is used as it is. Gradient accumulation, mixed precision, device and
    processes are the accelerator's, and not arguments as in Ignite's factory::

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
        optimizer: an optimizer of the model's parameters, and of those of a ``loss_fn``, a
            ``batch_processor`` or another of the functions that is a module. Such a module is moved
            to the device and saved in checkpoints, and several processes average its gradients.
        loss_fn: (y_pred, y) -> scalar loss, the mean over the batch.
        data: the batches to train on; they can be given to ``run`` instead.
        accelerator: default: a new ``Accelerator`` with the settings of those there are.
        lr_scheduler: a torch scheduler on ``optimizer``, or a callable that makes one from the
            prepared optimizer. It moves once per committed step for any number of processes.
        scheduler_at: when the scheduler moves: after each "step", at the end of each "epoch" after
            its validation, or after each "validation" but that before the first step.
        scheduler_metric: the name in ``state.metrics`` that a ``ReduceLROnPlateau`` is given,
            "val_loss" for instance.
        batch_processor: (model, batch) -> (outputs, loss), instead of ``loss_fn`` and the three
            functions that serve it. ``output_transform`` is then given (batch, None, outputs,
            loss). With mixed precision all of it is in the accelerator's autocast.
        grad_clip: clips the gradient of each step.
        validation: validates on its schedule. Others can be among the handlers; those that are due
            at one moment are one validation.
        checkpoint: saves on its schedule.
        resume_from: a ``ResumeCheckpoint``, or the path of a checkpoint or of a directory of them.
            It is loaded when all else is built; the next ``run`` goes on from there.
        handlers: anything with ``attach(engine)``: handlers of this package, Ignite's
            ``ProgressBar`` and others.
        on_peer_failure: with several processes, what becomes of one that is blocked in a collective
            when another has failed. "exit" ends it with exit code 1; "wait" leaves it there until
            the timeout of the collective. One that is not blocked raises what the other tells.
        prepare_batch: (batch, device, non_blocking) -> (x, y); the batch is on the device already.
        model_transform: makes ``y_pred`` of the model's output.
        model_fn: (model, x) -> the model's output.
        output_transform: (x, y, y_pred, loss) -> ``state.output``. The default is
            ``loss.detach()``: ``.item()`` would wait for the device in each iteration.
        agree_every: with several processes, the windows from one exchange of stops, signals and
            clocks to the next. What one process asks for is obeyed by all of them, at the same
            step, at most ``agree_every`` + 1 windows later and at the end of each epoch.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: arguments that do not go together; a model without trainable parameters; an
            optimizer or scheduler of other parameters; with a model that is split over processes,
            a module beside it whose parameters the optimizer holds; empty data.
    """
    handlers = list(handlers) if isinstance(handlers, Iterator) else handlers
    if isinstance(resume_from, str | Path):
        resume_from = ignite_hooks.checkpoint.ResumeCheckpoint(resume_from)
    check_no_device(data)
    _check_arguments(model, optimizer, loss_fn, batch_processor)
    modules = _modules_beside(
        model,
        loss_fn=loss_fn,
        batch_processor=batch_processor,
        prepare_batch=prepare_batch,
        model_fn=model_fn,
        model_transform=model_transform,
    )
    _check_parameters(model, optimizer, modules)
    whole_number("agree_every", agree_every, "1 exchanges after each step")
    _check_own_handlers(grad_clip, validation, checkpoint, resume_from)
    _check_handlers(handlers)
    _check_unused(
        batch_processor,
        prepare_batch=(prepare_batch, unpack),
        model_transform=(model_transform, identity),
        model_fn=(model_fn, apply_model),
    )
    accelerator = accelerator_or_default(accelerator)
    _check_whole(model, accelerator)
    _move_to_device(modules, accelerator)
    _check_averaged(_trained_apart(model, modules, optimizer), accelerator)
    # DeepSpeed needs to see the loader together with the model, for the size of its batches.
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    with_loader = [data] if is_deepspeed and can_prepare(data) else []
    feeds = Feeds(accelerator)
    model, optimizer, *loaders = prepared_for(
        feeds, accelerator, accelerator.prepare, model, optimizer, *with_loader
    )
    optimizer_step = OptimizerStep(
        accelerator, optimizer, lr_scheduler, scheduler_at, scheduler_metric
    )
    beside = {name: each for name, each in modules.items() if any(True for _ in each.parameters())}
    if beside and accelerator.num_processes > 1 and is_data_parallel(accelerator):
        optimizer_step.averaged = AveragedGradients(
            model,
            beside,
            optimizer_step.optimizer,
            accelerator.device,
            sends_buffers=broadcasts_buffers(accelerator),
        )
    forward = forward_with(
        loss_fn,
        batch_processor,
        prepare_batch,
        model_fn,
        model_transform,
        accelerator,
    )
    process_function = supervised_step(model, optimizer_step, forward, output_transform)
    trainer = Trainer(
        process_function, model, optimizer_step, feeds, modules, agree_every, on_peer_failure
    )
    if data is not None:
        feeds.add(data, DataFeed(loaders[0] if loaders else data, accelerator))
        trainer.set_data(data)
    for handler in (grad_clip, *handlers, validation, checkpoint, resume_from):
        if handler is not None:
            handler.attach(trainer)
    return trainer


_ORDER = "create_supervised_trainer(model, optimizer, loss_fn, data)"


def _check_arguments(
    model: Any,
    optimizer: Any,
    loss_fn: Any,
    batch_processor: Any,
) -> None:
    """Raises a TypeError or ValueError that names the argument, the rule and the remedy."""
    if isinstance(optimizer, torch.nn.Module) and isinstance(model, torch.optim.Optimizer):
        raise TypeError(
            f"`model` must be a torch.nn.Module, got {shown_type(model)}: it is swapped with "
            f"`optimizer`, write {_ORDER}"
        )
    check_model(model, "put several models into a torch.nn.ModuleDict")
    check_optimizer(optimizer)
    _check_one_loss(loss_fn, batch_processor)


def _check_unused(batch_processor: Any, **functions: tuple[Any, Any]) -> None:
    """Raises a ValueError for functions that ``batch_processor`` would make useless."""
    given = [name for name, (function, default) in functions.items() if function is not default]
    if batch_processor is not None and given:
        raise ValueError(
            f"`{given[0]}` must not be given with `batch_processor`, which takes the batch and the "
            "model as they are: call it in the batch processor"
        )


def _check_own_handlers(grad_clip: Any, validation: Any, checkpoint: Any, resume_from: Any) -> None:
    """Checks the kinds of the handlers that have an argument of their own.

    A class is looked up only for what was given: those with checked fields take 60 ms to import.
    """
    if grad_clip is not None:
        kind: type = ignite_hooks.optim.GradientClipping
        _check_kind("grad_clip", grad_clip, kind, "GradientClipping(max_norm=1.0)")
    if validation is not None:
        kind = ignite_hooks.evaluation.Validation
        remedy = "Validation(evaluator, loader, every_epochs=1)"
        _check_kind("validation", validation, kind, remedy)
    if checkpoint is not None:
        kind = ignite_hooks.checkpoint.SaveCheckpoint
        directory = str(checkpoint) if isinstance(checkpoint, str | Path) else "runs"
        _check_kind(
            "checkpoint", checkpoint, kind, f"SaveCheckpoint({directory!r}, every_epochs=1)"
        )
    if resume_from is not None:
        kind = ignite_hooks.checkpoint.ResumeCheckpoint
        _check_kind("resume_from", resume_from, kind, 'ResumeCheckpoint("checkpoints")')


def _check_kind(name: str, handler: Any, kind: type, remedy: str) -> None:
    if not isinstance(handler, kind):
        raise TypeError(
            f"`{name}` must be a {kind.__name__}, got {shown_type(handler)}: pass {remedy}"
        )


def _check_handlers(handlers: Any) -> None:
    if not isinstance(handlers, Iterable):
        raise TypeError(
            f"`handlers` must be a list of handlers, got {shown_type(handlers)}: put it into a "
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
        attach = getattr(handler, "attach", None)
        if not callable(attach):
            raise TypeError(
                f"`handlers` must have attach(engine), handlers[{index}] is a "
                f"{type(handler).__name__}, which has not: add a function with "
                "trainer.add_event_handler(event, function)"
            )
        try:
            inspect.signature(attach).bind("engine")
        except TypeError as error:
            raise TypeError(
                f"`handlers` must have attach(engine), attach() of handlers[{index}] "
                f"({type(handler).__name__}) needs more ({error}): attach it yourself, with "
                "attach(trainer, …)"
            ) from None


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
    arguments = {"loss_fn": ("y_pred", "y"), "batch_processor": ("model", "batch")}
    for name, function in (("loss_fn", loss_fn), ("batch_processor", batch_processor)):
        if function is not None:
            _check_function(name, function, arguments[name])


def _check_function(name: str, function: Any, arguments: tuple[str, str]) -> None:
    if not callable(function):
        remedy = f"the order is {_ORDER}" if isinstance(function, Iterable) else "pass a function"
        raise TypeError(
            f"`{name}` must be a function or a module, got {shown_type(function)}: {remedy}"
        )
    takes = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        signature = inspect.signature(takes)
    except (TypeError, ValueError):  # a function that is not written in Python
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        shown = getattr(function, "__name__", type(function).__name__)
        raise TypeError(
            f"`{name}` must take {' and '.join(arguments)} by position, got {shown}{signature} "
            f"({error}): write {name}=lambda {', '.join(arguments)}: …"
        ) from None


def _modules_beside(model: torch.nn.Module, **functions: Any) -> dict[str, torch.nn.Module]:
    """Returns those of the functions that are modules, or methods of one, with their names.

    The model, its parts, and a module that only holds the model are none of them: what they train
    is the model's.
    """
    found: dict[str, torch.nn.Module] = {}
    of_model = set(map(id, _tensors(model)))
    for name, function in functions.items():
        module = getattr(function, "__self__", function)
        if isinstance(module, torch.nn.Module) and module not in found.values():
            own = set(map(id, _tensors(module)))
            if not own or own - of_model:
                found[name] = module
    return found


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _check_parameters(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    modules: Mapping[str, torch.nn.Module],
) -> None:
    known = list(model.parameters())
    if not any(parameter.requires_grad for parameter in known):
        raise ValueError(
            f"`model` must have trainable parameters, {type(model).__name__} has none out of "
            f"{len(known)}: set requires_grad, or use create_supervised_evaluator"
        )
    if _has_other_parameters(optimizer):
        return
    for module in modules.values():
        known += module.parameters()
    ids = set(map(id, known))
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreign = sum(id(parameter) not in ids for parameter in own)
    if foreign:
        raise ValueError(
            "`optimizer` must hold parameters of `model` (or of a `loss_fn`, `batch_processor` or "
            f"other function that is a module), {foreign} of its {len(own)} are not: make it from "
            "model.parameters() after the last change to the model"
        )


def _trained_apart(
    model: torch.nn.Module,
    modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
) -> dict[str, torch.nn.Module]:
    """Returns the modules that have parameters which are trained and are not the model's."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own -= set(map(id, model.parameters()))
    return {
        name: module
        for name, module in modules.items()
        if any(id(parameter) in own for parameter in module.parameters())
    }


def _check_whole(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Raises a ValueError if the user has split the model over the processes."""
    kinds = {type(each).__name__ for each in model.parameters()} | {
        type(each.data).__name__ for each in model.parameters()
    }
    if "DTensor" in kinds and is_data_parallel(accelerator):
        raise ValueError(
            "`model` must be whole on every process, got parameters that are split over them "
            "(DTensor, of fully_shard or parallelize_module): give the whole model, which "
            "Accelerate wraps in DDP, or an Accelerator with fsdp_plugin=, which splits it itself. "
            "Training and saving models that are split by hand is planned"
        )


def _check_averaged(apart: Mapping[str, torch.nn.Module], accelerator: Accelerator) -> None:
    """Raises a ValueError if parameters beside the model are to be trained where it is split."""
    for name, module in {} if is_data_parallel(accelerator) else apart.items():
        raise ValueError(
            f"`{name}` must have no parameters that `optimizer` holds with "
            f"{accelerator.distributed_type.value}, which "
            f"splits `model` alone over the processes, got a {type(module).__name__} that has: "
            "make it a submodule of `model`, whose forward calls it and may return (outputs, "
            "loss), with batch_processor=lambda model, batch: model(batch)"
        )


def _move_to_device(modules: Mapping[str, torch.nn.Module], accelerator: Accelerator) -> None:
    """Moves modules from the CPU to the device; one that was put elsewhere stays there."""
    for module in modules.values():
        is_on_cpu = all(tensor.device.type == "cpu" for tensor in _tensors(module))
        if accelerator.device_placement and is_on_cpu:
            module.to(accelerator.device)


def _has_other_parameters(optimizer: Any) -> bool:
    """Whether preparing may have put others in the place of the model's, as sharding does."""
    state = getattr(optimizer, "accelerator_state", None)
    if not is_prepared(optimizer) or state is None:
        return False
    return not (state.distributed_type.value == "NO" or "MULTI_" in state.distributed_type.value)
