"""A summary of a trainer, for its ``repr``, its log and the Console."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.data.batch_size import global_batch_size
from ignite_hooks.data.feed import DataFeed

__all__ = ["summary_of"]


def summary_of(trainer: TrainingEngine, feed: DataFeed | None) -> list[str]:
    """Returns a summary of ``trainer``, one text for each part.

    The summary has the number of parameters, the number of steps in an epoch, the number of samples
    that all processes together use in a step, the precision, the number of processes, the folder of
    the checkpoints, and the checkpoint from which the run was resumed. A value that is not known,
    such as the length of a stream, is left out.

    Args:
        trainer: the trainer.
        feed: the source of the batches; None without data.
    """
    return [part for part in _parts(trainer, feed) if part]


def _parts(trainer: TrainingEngine, feed: DataFeed | None) -> Iterator[str]:
    yield _describe_parameters(trainer)
    yield _describe_steps(trainer, feed)
    yield _describe_devices(trainer.accelerator, trainer.modules["model"])
    for handler in attached_handlers(trainer, Handler):
        yield handler.summary
    report = trainer.resume_report
    if report is not None:
        yield f"resumed from {report.checkpoint}, step {report.step}"


def _describe_parameters(trainer: TrainingEngine) -> str:
    modules = trainer.modules.values()
    name = type(trainer.modules["model"]).__name__
    parameters = {id(p): p for module in modules for p in module.parameters()}.values()
    if any(map(is_lazy, parameters)):
        return f"{name} with parameters that are not initialized yet"
    total = sum(each.numel() for each in parameters)
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    frozen = f", {trained:,} of them trained" if trained != total else ""
    return f"{name} with {total:,} parameters{frozen}"


def _describe_steps(trainer: TrainingEngine, feed: DataFeed | None) -> str:
    if feed is None:
        return ""
    window_size: int = trainer.accelerator.gradient_accumulation_steps
    length = trainer.state.epoch_length or feed.length or feed.promised_length
    samples = _global_batch(feed, trainer.accelerator.num_processes)
    # A window is the batches of one step. The number of steps is rounded up, because the last
    # window of an epoch makes a step even if it has fewer batches.
    steps = [f"{_counted(-(-length // window_size), 'step')} an epoch"] if length else []
    if samples:
        product = f" ({window_size} × {samples:,})" if window_size > 1 else ""
        steps.append(f"{_counted(window_size * samples, 'sample')} a step{product}")
    elif window_size > 1:
        steps.append(f"{window_size} batches a step")
    return ", ".join(steps)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _global_batch(feed: DataFeed, processes: int) -> int | None:
    """Returns the number of samples in a batch, summed over all processes; None if not known."""
    try:
        return global_batch_size(feed.loader, processes)
    except Exception:  # a property of the user's sampler may raise, but a ``repr`` should not raise
        return None


def _describe_devices(accelerator: Any, model: torch.nn.Module) -> str:
    precision = str(accelerator.mixed_precision)
    if precision == "no":
        dtypes = dict.fromkeys(str(each.dtype) for each in model.parameters())
        precision = " and ".join(dtypes).replace("torch.", "")
    else:
        precision = f"mixed precision {precision}"
    processes = accelerator.num_processes
    where = f"{processes} processes, this one on" if processes > 1 else "1 process on"
    return f"{precision}, {where} {accelerator.device}"
