"""A save that a signal has asked for, when the run has failed before it.

The trainer stands at its last step boundary then: the open window was dropped, its batches are
given again. Nobody can tell what the code that failed has drawn at random or written to its own
state since that boundary, so a checkpoint that is taken here names what is uncertain.
"""

from ignite_hooks.core.handler import attached
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["uncertain_parts", "why_not_saved"]


def why_not_saved(trainer: TrainingEngine, error: BaseException | None, ranks: int) -> str | None:
    """Returns why the last step boundary cannot be saved after a failure; None if it can.

    Args:
        trainer: the trainer, whose run has ended.
        error: what has ended it; None if a handler of EXCEPTION_RAISED has handled that.
        ranks: the number of processes.
    """
    (optimizer_step,) = attached(trainer, OptimizerStep)
    if error is not None and not isinstance(error, Exception):
        return f"{type(error).__name__} ends a run at once"
    if ranks > 1:
        return f"a save needs all of the {ranks} processes, and the others may be waiting elsewhere"
    if not optimizer_step.is_whole:
        return "the parameters are not known to be those of a step"
    feed = trainer.feed
    if feed is None or feed.position != trainer.place.position or optimizer_step.window.count:
        return "the run has not come back to a step boundary"  # an iterator cannot
    return None


def uncertain_parts(trainer: TrainingEngine, error: BaseException | None) -> dict[str, str]:
    """Returns why a part may not be that of the step, by its name in the ``ResumeReport``."""
    what = "an error" if error is None else type(error).__name__
    reason = f"{what} broke off the run after that step, and what it had changed is not known"
    names = ["random generators", "handlers", "also", "scheduler"]
    if any(True for module in trainer.modules.values() for _ in module.buffers()):
        names.append("model")  # of batch normalization, say, which has seen batches since
    parts = dict.fromkeys(names, reason)
    (optimizer_step,) = attached(trainer, OptimizerStep)
    if not optimizer_step.is_completed:
        parts["counters"] = (
            f"{what} came before all was done that step {optimizer_step.steps} makes due: what is "
            "left of STEP_COMPLETED, validations and saves by step is left out"
        )
    return parts
