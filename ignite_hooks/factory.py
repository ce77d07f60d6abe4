"""The factory of trainers. It checks the arguments, prepares the objects and attaches handlers."""

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
from ignite.metrics import Metric

import ignite_hooks.checkpoint
import ignite_hooks.evaluation
import ignite_hooks.optim
from ignite_hooks.core.accelerators import accelerator_or_default
from ignite_hooks.core.accelerators import broadcasts_buffers
from ignite_hooks.core.accelerators import is_data_parallel
from ignite_hooks.core.accelerators import is_prepared
from ignite_hooks.core.accelerators import prepare_for_owner
from ignite_hooks.core.ignite_arguments import check_data_is_not_a_device
from ignite_hooks.core.ignite_arguments import explain_ignite_arguments
from ignite_hooks.core.rules import check_count
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.torch_modules import check_model
from ignite_hooks.data.batch import apply_model
from ignite_hooks.data.batch import default_prepare_batch
from ignite_hooks.data.batch import identity
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import Feeds
from ignite_hooks.data.prepare import can_prepare
from ignite_hooks.hooks.context import HookContext
from ignite_hooks.optim.averaged_gradients import AveragedGradients
from ignite_hooks.optim.lr_scheduler import SchedulerArgument
from ignite_hooks.optim.lr_scheduler import SchedulerAt
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.optim.prepared_optimizer import check_optimizer
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.trainer.process_function import detached_loss
from ignite_hooks.trainer.process_function import make_forward
from ignite_hooks.trainer.process_function import make_process_function
from ignite_hooks.trainer.trainer import Trainer

__all__ = ["create_supervised_trainer"]


@explain_ignite_arguments(ignite.engine.create_supervised_trainer)
def create_supervised_trainer(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Any, Any], torch.Tensor] | None = None,
    data: Iterable[Any] | None = None,
    *,
    accelerator: Accelerator | None = None,
    lr_scheduler: SchedulerArgument = None,
    scheduler_at: SchedulerAt = "step",
    scheduler_metric: str | None = None,
    batch_processor: Callable[[torch.nn.Module, Any], tuple[Any, torch.Tensor]] | None = None,
    grad_clip: "ignite_hooks.optim.GradientClipping | None" = None,
    validation: "ignite_hooks.evaluation.Validation | None" = None,
    checkpoint: "ignite_hooks.checkpoint.SaveCheckpoint | None" = None,
    resume_from: "ignite_hooks.checkpoint.ResumeCheckpoint | str | Path | None" = None,
    handlers: Iterable[Any] = (),
    on_peer_failure: OnPeerFailure = "exit",
    prepare_batch: Callable[..., tuple[Any, Any]] = default_prepare_batch,
    model_transform: Callable[[Any], Any] = identity,
    model_fn: Callable[[torch.nn.Module, Any], Any] = apply_model,
    output_transform: Callable[[Any, Any, Any, torch.Tensor], Any] = detached_loss,
    agree_every: int = 1,
) -> Trainer:
    """Builds a trainer: prepares model, optimizer and data with Accelerate, and attaches handlers.

    Objects that are prepared already are used unchanged. Gradient accumulation, mixed precision,
    device and processes are settings of the accelerator here, not arguments as in Ignite's
    factory::

        trainer = create_supervised_trainer(
            model, optimizer, F.cross_entropy, loader,
            accelerator=Accelerator(gradient_accumulation_steps=4),
            lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=1000),
            grad_clip=GradientClipping(max_norm=1.0),
            validation=Validation(evaluator, held_out, every_epochs=1),
        )
        trainer.run(max_epochs=10)

    Args:
        model: the model to train. If the model is in eval mode when a run starts, the model and its
            submodules are set to train mode. If the model is in train mode, its submodules keep
            their modes, so frozen submodules may stay in eval mode.
        optimizer: an optimizer of the model's parameters. If ``loss_fn``, ``batch_processor`` or
            another function is itself a module, the optimizer may also hold the parameters of this
            module. The module is moved to the device and saved in checkpoints, and its gradients
            are averaged over all processes.
        loss_fn: (y_pred, y) -> scalar loss, the mean over the batch.
        data: the batches to train on; they can be given to ``run`` instead.
        accelerator: the accelerator to use; default: a new ``Accelerator`` with the settings of the
            existing accelerators.
        lr_scheduler: a torch scheduler on ``optimizer``, or a callable that makes a scheduler from
            the prepared optimizer. ``scheduler_at`` says when the scheduler moves. Each time it
            moves once, whatever the number of processes.
        scheduler_at: when the scheduler moves. "step": after each committed step, which is an
            optimizer step that has changed the parameters. "epoch": at the end of each epoch, after
            a validation that is due at this time. "validation": after each validation, except a
            validation before the first step.
        scheduler_metric: the name of the metric in ``state.metrics`` that a ``ReduceLROnPlateau``
            takes, for example "val_loss".
        batch_processor: (model, batch) -> (outputs, loss). It replaces ``loss_fn``,
            ``prepare_batch``, ``model_fn`` and ``model_transform``, which must be left out.
            ``output_transform`` is then called with (batch, None, outputs, loss). With mixed
            precision the whole batch processor runs in the accelerator's autocast.
        grad_clip: the handler that clips the gradient of each step.
        validation: the handler that validates on a schedule. ``handlers`` may contain further
            validations. If several validations are due at the same event, they run as one:
            VALIDATION_STARTED and VALIDATION_COMPLETED fire once.
        checkpoint: the handler that saves checkpoints on a schedule.
        resume_from: a ``ResumeCheckpoint``, the path of a checkpoint, or the path of a directory of
            checkpoints. The checkpoint is loaded after everything else is built. The next ``run``
            continues from the checkpoint.
        handlers: objects with an ``attach(engine)`` method: handlers of this package, Ignite's
            ``ProgressBar`` and others.
        on_peer_failure: with several processes, what happens to a process that is blocked in a
            collective after another process has failed. "exit" ends the blocked process with exit
            code 1; "wait" leaves it blocked until the timeout of the collective. With both values,
            a process that is not blocked raises an error with the message of the failure.
        prepare_batch: (batch, device, non_blocking) -> (x, y); the batch is on the device already.
        model_transform: (the model's output) -> ``y_pred``.
        model_fn: (model, x) -> the model's output.
        output_transform: (x, y, y_pred, loss) -> ``state.output``. The default is
            ``loss.detach()``, because ``.item()`` would synchronize with the device in each
            iteration.
        agree_every: with several processes, the number of windows from one exchange of requests to
            the next. A window is the batches whose gradients are accumulated for one step. A
            request is a stop, a signal, or a save that is due by
            ``SaveCheckpoint(every_seconds=…)``. All processes obey the request of one process after
            the same step: at most ``agree_every`` + 1 windows after the request, and at the latest
            at the end of the epoch.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: two arguments exclude each other; the model has no trainable parameters; the
            optimizer or scheduler is built on parameters of another model; the model is split over
            the processes, and the optimizer also holds parameters of another module; the data are
            empty.
    """
    handlers = list(handlers) if isinstance(handlers, Iterator) else handlers
    if isinstance(resume_from, str | Path):
        resume_from = ignite_hooks.checkpoint.ResumeCheckpoint(resume_from)
    check_data_is_not_a_device(data)
    _check_arguments(model, optimizer, loss_fn, batch_processor)
    modules = _modules_of_functions(
        model,
        loss_fn=loss_fn,
        batch_processor=batch_processor,
        prepare_batch=prepare_batch,
        model_fn=model_fn,
        model_transform=model_transform,
    )
    _check_parameters(model, optimizer, modules)
    check_count("agree_every", agree_every, "with 1, requests are exchanged after each window")
    _check_handler_arguments(grad_clip, validation, checkpoint, resume_from)
    _check_handlers(handlers)
    _check_unused(
        batch_processor,
        prepare_batch=(prepare_batch, default_prepare_batch),
        model_transform=(model_transform, identity),
        model_fn=(model_fn, apply_model),
    )
    accelerator = accelerator_or_default(accelerator)
    _check_not_sharded(model, accelerator)
    _move_to_device(modules, accelerator)
    _check_replicated(_separately_trained(model, modules, optimizer), accelerator)
    # DeepSpeed reads the batch size from a loader that is prepared together with the model.
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    with_loader = [data] if is_deepspeed and can_prepare(data) else []
    feeds = Feeds(accelerator)
    model, optimizer, *loaders = prepare_for_owner(
        feeds, accelerator, accelerator.prepare, model, optimizer, *with_loader
    )
    optimizer_step = OptimizerStep(
        accelerator, optimizer, lr_scheduler, scheduler_at, scheduler_metric
    )
    trainable_modules = {
        name: each for name, each in modules.items() if any(True for _ in each.parameters())
    }
    if trainable_modules and accelerator.num_processes > 1 and is_data_parallel(accelerator):
        optimizer_step.averaged_gradients = AveragedGradients(
            model,
            trainable_modules,
            optimizer_step.optimizer,
            accelerator.device,
            sends_buffers=broadcasts_buffers(accelerator),
        )
    forward = make_forward(
        loss_fn,
        batch_processor,
        prepare_batch,
        model_fn,
        model_transform,
        accelerator,
    )
    process_function = make_process_function(model, optimizer_step, forward, output_transform)
    trainer = Trainer(
        process_function, model, optimizer_step, feeds, modules, agree_every, on_peer_failure
    )
    if data is not None:
        feeds.register(data, DataFeed(loaders[0] if loaders else data, accelerator))
        trainer.set_data(data)
    for handler in (grad_clip, *handlers, validation, checkpoint, resume_from):
        if handler is not None:
            handler.attach(trainer)
    return trainer


# Messages about arguments in a wrong order end with this call.
_ORDER = "create_supervised_trainer(model, optimizer, loss_fn, data)"


def _check_arguments(
    model: Any,
    optimizer: Any,
    loss_fn: Any,
    batch_processor: Any,
) -> None:
    """Checks the model, the optimizer and the function that computes the loss."""
    if isinstance(optimizer, torch.nn.Module) and isinstance(model, torch.optim.Optimizer):
        raise TypeError(
            f"`model` must be a torch.nn.Module, got {shown_type(model)}: `model` and `optimizer` "
            f"are swapped, write {_ORDER}"
        )
    check_model(model, "put several models into a torch.nn.ModuleDict")
    check_optimizer(optimizer)
    _check_one_loss(loss_fn, batch_processor)


def _check_unused(batch_processor: Any, **functions: tuple[Any, Any]) -> None:
    """Raises a ValueError if a ``batch_processor`` is given with a function that it replaces.

    ``functions`` maps the name of each such function to a pair (value of the argument, default).
    """
    given = [name for name, (function, default) in functions.items() if function is not default]
    if batch_processor is not None and given:
        raise ValueError(
            f"`{given[0]}` must not be given with `batch_processor`, which is called with the "
            f"batch and the model unchanged: call `{given[0]}` in the batch processor"
        )


def _check_handler_arguments(
    grad_clip: Any, validation: Any, checkpoint: Any, resume_from: Any
) -> None:
    """Checks the types of the handlers that have an argument of their own, such as ``grad_clip``.

    The class of a handler is imported only if the argument was given, because the import of a class
    with checked fields takes 60 ms.
    """
    if grad_clip is not None:
        expected: type = ignite_hooks.optim.GradientClipping
        _check_type("grad_clip", grad_clip, expected, "GradientClipping(max_norm=1.0)")
    if validation is not None:
        expected = ignite_hooks.evaluation.Validation
        remedy = "Validation(evaluator, loader, every_epochs=1)"
        _check_type("validation", validation, expected, remedy)
    if checkpoint is not None:
        expected = ignite_hooks.checkpoint.SaveCheckpoint
        directory = str(checkpoint) if isinstance(checkpoint, str | Path) else "runs"
        remedy = f"SaveCheckpoint({directory!r}, every_epochs=1)"
        _check_type("checkpoint", checkpoint, expected, remedy)
    if resume_from is not None:
        expected = ignite_hooks.checkpoint.ResumeCheckpoint
        _check_type("resume_from", resume_from, expected, 'ResumeCheckpoint("checkpoints")')


def _check_type(name: str, handler: Any, expected: type, remedy: str) -> None:
    """Raises a TypeError unless ``handler`` is an object of the class ``expected``."""
    if not isinstance(handler, expected):
        raise TypeError(
            f"`{name}` must be a {expected.__name__}, got {shown_type(handler)}: pass {remedy}"
        )


def _check_handlers(handlers: Any) -> None:
    """Raises a TypeError for a handler that cannot be attached."""
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
                f"{type(handler).__name__} without this method: add a function with "
                "trainer.add_event_handler(event, function)"
            )
        if isinstance(handler, Metric):
            name = type(handler).__name__
            raise TypeError(
                f"`handlers` must hold handlers, handlers[{index}] is the metric {name}: to "
                "compute it on held-out data, write validation=Validation("
                f'create_supervised_evaluator(model, {{"name": {name}()}}), loader); to compute it '
                'while training, write metric.attach(trainer, "name")'
            )
        try:
            inspect.signature(attach).bind("engine")
        except TypeError as error:
            raise TypeError(
                f"`handlers` must have attach(engine), handlers[{index}] is a "
                f"{type(handler).__name__}, whose attach() takes other arguments ({error}): take "
                "it out of the list, and write handler.attach(trainer, …) yourself"
            ) from None


def _check_one_loss(loss_fn: Any, batch_processor: Any) -> None:
    """Checks that exactly one of the functions is given, and that it takes the right arguments."""
    if (loss_fn is None) == (batch_processor is None):
        got = "neither" if loss_fn is None else "both"
        raise ValueError(
            f"exactly one of `loss_fn` and `batch_processor` must be given, got {got}: for batches "
            "(x, y) pass a loss function, loss_fn=torch.nn.functional.cross_entropy; for other "
            "batches pass a function (model, batch) -> (outputs, loss) as batch_processor"
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
    except (TypeError, ValueError):  # a function written in C may have no signature to check
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        shown = f"{getattr(function, '__name__', type(function).__name__)}{signature}"
        remedy = f"write {name}=lambda {', '.join(arguments)}: …"
        if isinstance(function, torch.nn.Module):
            takes = ", ".join(signature.parameters)
            shown = f"the module {type(function).__name__}, whose forward takes ({takes})"
        if isinstance(function, torch.nn.Module) and name == "loss_fn":
            remedy = "pass a loss, torch.nn.CrossEntropyLoss() for example"
        raise TypeError(
            f"`{name}` must take {' and '.join(arguments)} by position, got {shown} ({error}): "
            f"{remedy}"
        ) from None


def _modules_of_functions(model: torch.nn.Module, **functions: Any) -> dict[str, torch.nn.Module]:
    """Returns the modules that the functions belong to, under the same names as ``functions``.

    A function belongs to a module if the function is the module itself, or a method of the module.
    A module whose tensors all belong to the model, such as a linear layer of the model, is left
    out. A module without tensors is included.
    """
    found: dict[str, torch.nn.Module] = {}
    model_tensors = set(map(id, _tensors(model)))
    for name, function in functions.items():
        module = getattr(function, "__self__", function)
        if isinstance(module, torch.nn.Module) and module not in found.values():
            own = set(map(id, _tensors(module)))
            if not own or own - model_tensors:
                found[name] = module
    return found


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Returns the parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def _check_parameters(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    modules: Mapping[str, torch.nn.Module],
) -> None:
    """Raises a ValueError if the model is frozen, or the optimizer holds foreign parameters.

    A parameter is foreign if it does not belong to ``model`` or one of ``modules``.
    """
    known = list(model.parameters())
    if not any(parameter.requires_grad for parameter in known):
        raise ValueError(
            f"`model` must have trainable parameters, {type(model).__name__} has none out of "
            f"{len(known)}: set requires_grad, or use create_supervised_evaluator"
        )
    # Sharding may have replaced the parameters in the optimizer. The replacements are not
    # parameters of the model, so the check below would refuse them.
    if _may_hold_replacements(optimizer):
        return
    for module in modules.values():
        known += module.parameters()
    ids = set(map(id, known))
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    foreign = sum(id(parameter) not in ids for parameter in own)
    if foreign:
        raise ValueError(
            "`optimizer` must hold only parameters of `model` (or of a `loss_fn`, "
            "`batch_processor` or other function that is a module), got "
            f"{foreign} of {len(own)} parameters from "
            "elsewhere: make the optimizer from model.parameters() after the last change to the "
            "model"
        )


def _separately_trained(
    model: torch.nn.Module,
    modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
) -> dict[str, torch.nn.Module]:
    """Returns the modules that the optimizer trains in addition to the model, by name.

    The optimizer holds a parameter of such a module, and the model does not have this parameter.
    """
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own -= set(map(id, model.parameters()))
    return {
        name: module
        for name, module in modules.items()
        if any(id(parameter) in own for parameter in module.parameters())
    }


def _check_not_sharded(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Raises a ValueError if the user has split the model over the processes.

    If the accelerator itself splits models (with FSDP, for example), no error is raised.
    """
    type_names = {type(each).__name__ for each in model.parameters()} | {
        type(each.data).__name__ for each in model.parameters()
    }
    if "DTensor" in type_names and is_data_parallel(accelerator):
        raise ValueError(
            "`model` must be whole on every process, got parameters that are split over the "
            "processes (DTensor, of fully_shard or parallelize_module): pass the whole model; "
            "Accelerate wraps it in DDP, or splits it if the Accelerator has an fsdp_plugin. "
            "It is planned to support models that the user has split"
        )


def _check_replicated(modules: Mapping[str, torch.nn.Module], accelerator: Accelerator) -> None:
    """Raises a ValueError if the model is split over processes and another module is trained too.

    ``modules`` are the modules that the optimizer trains in addition to the model.
    """
    if modules and not is_data_parallel(accelerator):
        name, module = next(iter(modules.items()))
        raise ValueError(
            f"`{name}` must not be trained with {accelerator.distributed_type.value}, which "
            f"splits only `model` over the processes, got a {type(module).__name__} with "
            f"parameters that `optimizer` holds: make the {type(module).__name__} a submodule of "
            "`model`, call it in the forward of `model`, which may return (outputs, loss), and "
            "pass batch_processor=lambda model, batch: model(batch)"
        )


def _move_to_device(modules: Mapping[str, torch.nn.Module], accelerator: Accelerator) -> None:
    """Moves modules from the CPU to the device.

    A module that the user has put on another device stays on that device.
    """
    for module in modules.values():
        is_on_cpu = all(tensor.device.type == "cpu" for tensor in _tensors(module))
        if accelerator.device_placement and is_on_cpu:
            module.to(accelerator.device)


def _may_hold_replacements(optimizer: Any) -> bool:
    """Returns whether an optimizer may hold other parameters than the user has given it.

    When Accelerate prepares model and optimizer together and shards the model, it replaces the
    parameters in the optimizer by the shards. With one process, or with DDP, nothing is replaced.
    """
    state = getattr(optimizer, "accelerator_state", None)
    if not is_prepared(optimizer) or state is None:
        return False
    return not (state.distributed_type.value == "NO" or "MULTI_" in state.distributed_type.value)
