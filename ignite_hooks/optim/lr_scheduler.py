"""Learning rate schedulers: those that can move with the optimizer, and errors for the others."""

from typing import Any

from accelerate.scheduler import AcceleratedScheduler
from ignite.handlers.param_scheduler import BaseParamScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

__all__ = ["scheduler_for"]


def scheduler_for(optimizer: Optimizer, lr_scheduler: Any) -> Any:
    """The scheduler given, or the one that the callable given makes from the prepared optimizer.

    Raises:
        TypeError: it is no torch scheduler and makes none.
        ValueError: it needs a metric, or belongs to another optimizer.
    """
    if lr_scheduler is None:
        return None
    if isinstance(lr_scheduler, BaseParamScheduler):
        raise TypeError(
            "`lr_scheduler` must be a torch scheduler, got Ignite's "
            f"{type(lr_scheduler).__name__}, which is a handler: attach it with "
            "trainer.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, scheduler)"
        )
    made_here = not isinstance(lr_scheduler, LRScheduler | AcceleratedScheduler)
    scheduler = _made(lr_scheduler, optimizer) if made_here else lr_scheduler
    of_torch = scheduler.scheduler if isinstance(scheduler, AcceleratedScheduler) else scheduler
    if isinstance(of_torch, ReduceLROnPlateau):
        raise ValueError(
            "`lr_scheduler` must move without a metric, got ReduceLROnPlateau: step it where the "
            "metric is, trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED, lambda engine: "
            'scheduler.step(engine.state.metrics["val_loss"]))'
        )
    if not isinstance(of_torch, LRScheduler):
        raise TypeError(
            "`lr_scheduler` must be a torch.optim.lr_scheduler.LRScheduler or make one from the "
            f"optimizer, got {type(scheduler).__name__}: "
            "pass StepLR(optimizer, 10), or lambda optimizer: StepLR(optimizer, 10)"
        )
    if _innermost(of_torch.optimizer) is not _innermost(optimizer):
        raise ValueError(
            "`lr_scheduler` must be built on the optimizer that is trained with, its own is "
            f"another {type(_innermost(of_torch.optimizer)).__name__}: build it on that one, or "
            "pass a callable that makes it from the prepared optimizer"
        )
    return scheduler


def _made(lr_scheduler: Any, optimizer: Optimizer) -> Any:
    if not callable(lr_scheduler):
        return lr_scheduler
    try:
        return lr_scheduler(optimizer)
    except TypeError as error:
        if not isinstance(lr_scheduler, type):
            raise
        raise TypeError(
            f"`lr_scheduler` must be made from the optimizer alone, {lr_scheduler.__name__} needs "
            f"more ({error}): pass lambda optimizer: {lr_scheduler.__name__}(optimizer, …)"
        ) from error


def _innermost(optimizer: Any) -> Any:
    """What is under Accelerate's wrappers."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer
