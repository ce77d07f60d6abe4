"""The save that a signal asked for, when the run has failed before it.

After a failure the trainer is back at its last step boundary: the open window was dropped, and the
next run is given its batches again. The code that failed may have drawn random numbers or changed
its own state since that boundary, which cannot be seen or undone. A checkpoint that is taken here
therefore names the parts that are uncertain.
"""

from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["uncertain_parts", "why_not_saved"]


def why_not_saved(trainer: TrainingEngine, error: BaseException | None, ranks: int) -> str | None:
    """Returns why the last step boundary cannot be saved after a failure; None if it can.

    Args:
        trainer: the trainer, whose run has ended.
        error: the exception that ended the run; None if a handler of EXCEPTION_RAISED handled it.
        ranks: the number of processes.
    """
    (optimizer_step,) = attached_handlers(trainer, OptimizerStep)
    # KeyboardInterrupt and SystemExit ask to end without delay, and a save may take minutes.
    if error is not None and not isinstance(error, Exception):
        return f"{type(error).__name__} ends a run at once"
    if ranks > 1:
        return f"a save needs all of the {ranks} processes, and the others may be waiting elsewhere"
    if not optimizer_step.is_consistent:
        return "the parameters are not known to be those of a step"
    feed = trainer.feed
    if feed is None or feed.position != trainer.place.position or optimizer_step.window.count:
        # For example where the data are an iterator, which cannot give a batch again.
        return "the run has not come back to a step boundary"
    return None


def uncertain_parts(trainer: TrainingEngine, error: BaseException | None) -> dict[str, str]:
    """Returns why parts of the state may have changed since the step that is saved.

    Args:
        trainer: the trainer, whose run has ended.
        error: the exception that ended the run; None if a handler of EXCEPTION_RAISED handled it.

    Returns:
        The reasons, by the names of the parts in the ``ResumeReport``.
    """
    cause = "an error" if error is None else type(error).__name__
    reason = f"{cause} broke off the run after that step, and what it had changed is not known"
    names = ["random generators", "handlers", "also", "scheduler"]
    if any(True for module in trainer.modules.values() for _ in module.buffers()):
        # Batch normalization updates its buffers in each forward pass, before the step is whole.
        names.append("model")
    parts = dict.fromkeys(names, reason)
    (optimizer_step,) = attached_handlers(trainer, OptimizerStep)
    if not optimizer_step.has_completed_step:
        parts["counters"] = (
            f"{cause} came before all was done that step {optimizer_step.steps} makes due: what is "
            "left of STEP_COMPLETED, validations and saves by step is left out"
        )
    return parts
