"""Says how far a run is: the steps and the estimated time until it reaches its first limit."""

from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

from ignite.engine import Engine

from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.place import Progress
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.evaluation.validation import Validation
from ignite_hooks.observe.step_timer import StepTimer
from ignite_hooks.observe.steps import Steps
from ignite_hooks.observe.steps import optimizer_step_of
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["remaining_seconds", "steps_left", "steps_of_epoch", "steps_of_run"]


def steps_of_run(engine: Engine) -> tuple[int, int | None]:
    """Returns the number of committed steps, and how many it will be at the end of the run.

    Args:
        engine: an engine that has an ``OptimizerStep``, after a step.

    Returns:
        The two numbers; None as the second if no limit of the run can be converted to steps.
    """
    state: Any = engine.state
    done: int = state.optimizer_step
    remaining = _Ends(engine, done, optimizer_step_of(engine)).steps
    return done, None if remaining is None else done + remaining


def steps_of_epoch(engine: Engine) -> tuple[int, int | None]:
    """Returns the number of optimizer steps in the present epoch so far, and until its end.

    The steps that were skipped count too, because nothing is known about those that were made
    before a resume.

    Args:
        engine: an engine that has an ``OptimizerStep``, after a step.

    Returns:
        The two numbers; None as the second if the length of the epoch is not known.
    """
    step, length = optimizer_step_of(engine), engine.state.epoch_length
    assert step is not None
    size = step.accumulation.full_size()
    done = -(-_progress_of(engine).batches // size)
    return done, None if length is None else -(-length // size)


def remaining_seconds(engine: Engine, steps: Steps, timer: StepTimer) -> float | None:
    """Returns the time that the run still takes at its present speed; None if that is not known.

    The time has four parts: the steps, the pauses between them, the validations, and the saves of
    checkpoints. Validations and saves are counted by the schedules of the attached handlers. Their
    durations are the means so far, so before the first one they count as nothing.

    Args:
        engine: the engine, after a step.
        steps: counts the steps.
        timer: has measured the last steps.
    """
    ends = _Ends(engine, steps.count(engine), steps.optimizer_step)
    if ends.steps is None:
        return None
    per_step = sum(seconds for seconds, *_ in timer.last) / len(timer.last) + timer.pause.value
    seconds = ends.steps * per_step
    savers = attached_handlers(engine, SaveCheckpoint)
    validations = ends.count_due(attached_handlers(engine, Validation))
    saves: float = ends.count_due(savers, at_end=any(each.at_end for each in savers))
    saves += sum(seconds // each.every_seconds for each in savers if each.every_seconds is not None)
    return seconds + validations * timer.validation.value + saves * timer.save.value


def steps_left(engine: Engine, steps: Steps) -> int | None:
    """Returns the number of steps until the first limit ends the run; None if it is not known."""
    return _Ends(engine, steps.count(engine), steps.optimizer_step).steps


class _Ends:
    """The numbers of steps and epochs at which a run is now, and at which it will end.

    Args:
        engine: the engine.
        done: the number of completed steps.
        optimizer_step: the ``OptimizerStep`` of the engine; None if iterations are the steps.

    Attributes:
        steps: the number of steps until the end of the run; None if it is not known.
    """

    def __init__(self, engine: Engine, done: int, optimizer_step: OptimizerStep | None) -> None:
        self._engine = engine
        self._done = done
        self._window_size = 1
        self._progress = progress = _progress_of(engine)
        if optimizer_step is not None:
            self._window_size = optimizer_step.accumulation.full_size()
            # The batches of an open window make a step together with batches that are to come.
            open_batches = min(optimizer_step.window.count, progress.batches)
            self._progress = progress._replace(
                iteration=progress.iteration - open_batches,
                batches=progress.batches - open_batches,
            )
        self._length: int | None = engine.state.epoch_length
        self.steps = min(self._steps_to_limits(), default=None)

    def _steps_to_limits(self) -> Iterator[int]:
        """Yields the number of steps until each limit that can be converted to steps."""
        state: Any = self._engine.state
        progress, size, length = self._progress, self._window_size, self._length
        if (max_steps := getattr(state, "max_steps", None)) is not None:
            yield max(0, max_steps - self._done)
        if (max_iters := getattr(state, "max_iters", None)) is not None:
            yield progress.steps_in(max(0, max_iters - progress.iteration), size, length)
        if state.max_epochs is not None and length is not None:
            batches = (state.max_epochs - progress.epochs) * length - progress.batches
            yield progress.steps_in(max(0, batches), size, length)

    def count_due(self, schedules: Iterable[Any], *, at_end: bool = False) -> int:
        """Returns at how many step boundaries handlers are still due.

        Handlers that are due at the same boundary act together, and count once. What is due after
        the present step has not been done yet, so it is counted.

        Args:
            schedules: the handlers, which have ``every_steps`` and ``every_epochs``.
            at_end: whether one of them is also due at the end of the run.
        """
        assert self.steps is not None
        end = self._done + self.steps
        due: list[range] = []  # for each schedule, the numbers of the steps
        for each in schedules:
            if each.every_steps is not None:
                first = -(-max(1, self._done) // each.every_steps) * each.every_steps
                due.append(range(first, end + 1, each.every_steps))
            if each.every_epochs is not None and self._length is not None:
                due.append(self._ends_of_epochs(each.every_epochs, end))
        # The steps of a long run are not listed if they need not be.
        count = len(due[0]) if len(due) == 1 else len(set().union(*due))
        return count + (at_end and not any(end in each for each in due))

    def _ends_of_epochs(self, every: int, end: int) -> range:
        """Returns the numbers of the last steps of every n-th epoch, up to the step ``end``."""
        assert self._length is not None
        per_epoch = -(-self._length // self._window_size)
        in_this_epoch = -(-(self._length - self._progress.batches) // self._window_size)
        to_skip = every - 1 - self._progress.epochs % every  # epochs before the first that counts
        first = self._done + in_this_epoch + to_skip * per_epoch
        return range(first, end + 1, every * per_epoch)


def _progress_of(engine: Engine) -> Progress:
    """Returns the counters of the run."""
    if is_trainer(engine):
        return engine.place.progress
    state = engine.state
    length = state.epoch_length or 0
    epochs = max(0, state.epoch - 1)
    return Progress(state.iteration, epochs, max(0, state.iteration - epochs * length))
