"""Decides whether a run that has failed can still save the checkpoint that a signal has requested.

After a failure the trainer returns to its last step boundary, a point between two optimizer steps.
The batches since the boundary are dropped, and the next run gets them again. The code that failed
may have drawn random numbers or changed its own state since the boundary. Such changes cannot be
detected or undone, so a checkpoint that is saved after a failure names the parts of the state that
are uncertain.
"""

from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["uncertain_parts", "why_not_saved"]


def why_not_saved(trainer: TrainingEngine, error: BaseException | None, ranks: int) -> str | None:
    """Returns the reason why a save after a failure is impossible; None if a save is possible.

    The reason completes a message such as "the state of step 7 was not saved: …".

    Args:
        trainer: the trainer, whose run has ended.
        error: the exception that ended the run; None if a handler of EXCEPTION_RAISED handled it.
        ranks: the number of processes.
    """
    (optimizer_step,) = attached_handlers(trainer, OptimizerStep)
    # KeyboardInterrupt and SystemExit must end the process without delay. A save can take minutes.
    if error is not None and not isinstance(error, Exception):
        return f"{type(error).__name__} must end the run at once"
    if ranks > 1:
        return f"a save needs all {ranks} processes, and the others may be waiting elsewhere"
    if not optimizer_step.is_consistent:
        return "the parameters may have changed since the last step"
    feed = trainer.feed
    if feed is None or feed.position != trainer.place.position or optimizer_step.window.count:
        # The data may be an iterator, for example, which cannot give a batch again.
        return "the run could not return to its last step boundary"
    return None


def uncertain_parts(trainer: TrainingEngine, error: BaseException | None) -> dict[str, str]:
    """Returns the parts of the state that the failed code may have changed after the saved step.

    Args:
        trainer: the trainer, whose run has ended.
        error: the exception that ended the run; None if a handler of EXCEPTION_RAISED handled it.

    Returns:
        A dict that maps the name of a part in the ``ResumeReport`` to the reason why the part may
        have changed.
    """
    cause = "an error" if error is None else type(error).__name__
    reason = f"{cause} ended the run after the saved step, and may have changed this part"
    names = ["random generators", "handlers", "also", "scheduler"]
    if any(True for module in trainer.modules.values() for _ in module.buffers()):
        # Batch normalization updates its buffers in each forward pass, before the step is complete.
        names.append("model")
    parts = dict.fromkeys(names, reason)
    (optimizer_step,) = attached_handlers(trainer, OptimizerStep)
    if not optimizer_step.has_completed_step:
        parts["counters"] = (
            f"{cause} ended the run before the work that is due after step {optimizer_step.steps} "
            "was complete (handlers of STEP_COMPLETED, validations, saves): the resumed run skips "
            "the rest of this work"
        )
    return parts
