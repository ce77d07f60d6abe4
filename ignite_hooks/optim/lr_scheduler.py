"""Moves a learning rate scheduler, and checks that the scheduler can be used.

A scheduler moves when its ``step()`` is called.
"""

import warnings
from collections.abc import Callable
from collections.abc import Iterator
from math import inf
from typing import Any
from typing import Literal
from typing import TypeAlias
from typing import get_args

from accelerate import PartialState
from accelerate.scheduler import AcceleratedScheduler
from ignite.engine import Engine
from ignite.handlers.param_scheduler import BaseParamScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import SequentialLR

from ignite_hooks.core.held_signals import HeldSignals
from ignite_hooks.core.rules import did_you_mean
from ignite_hooks.core.stale_metrics import measured_at
from ignite_hooks.core.torch_schedulers import child_schedulers
from ignite_hooks.core.torch_schedulers import milestones_of

__all__ = ["SchedulerArgument", "SchedulerAt", "SchedulerDriver", "unwrapped_scheduler"]

SchedulerAt = Literal["step", "epoch", "validation"]
SchedulerArgument: TypeAlias = LRScheduler | Callable[[Optimizer], Any] | None
"""A scheduler, a callable that makes one from the optimizer, or None.

Accelerate's wrapper of a scheduler is admitted, too. The type does not name the wrapper, because
Accelerate has no types: type checkers would take the whole type for ``Any``.
"""


class SchedulerDriver:
    """Moves a scheduler: after each step, at the end of each epoch, or after each validation.

    Args:
        lr_scheduler: a torch scheduler, a callable that makes one from the optimizer, or None.
        optimizer: the optimizer as Accelerate prepared it.
        at: when the scheduler moves: after each "step", "epoch" or "validation".
        metric: the name of a metric in ``state.metrics``. A ReduceLROnPlateau is given the value of
            this metric at each move. None for any other scheduler.
        signals: holds back signal handlers while the scheduler moves.

    Attributes:
        at: when the scheduler moves.
        metric: the name of the metric that the scheduler is given, or None.
        moves_by_step: whether the scheduler moves after each step. ``OptimizerStep`` makes these
            moves; this object makes all other moves.

    Raises:
        TypeError: ``lr_scheduler`` is neither a torch scheduler nor a callable that makes one.
        ValueError: the scheduler belongs to another optimizer, or cannot be used with this ``at``
            and ``metric``.
    """

    def __init__(
        self,
        lr_scheduler: SchedulerArgument,
        optimizer: Any,
        at: SchedulerAt,
        metric: str | None,
        signals: HeldSignals,
    ) -> None:
        if at not in get_args(SchedulerAt):
            raise ValueError(
                f'`scheduler_at` must be "step", "epoch" or "validation", got {at!r}: '
                "it says when the learning rate scheduler moves"
            )
        self.lr_scheduler = _scheduler_for(optimizer, lr_scheduler)
        self.at = at
        self.metric = metric
        self._signals = signals
        self.moves_by_step = at == "step" and self.lr_scheduler is not None
        # If a move of the scheduler is due, one of the lists has one entry: the argument of
        # `end_epoch` or `end_validation`. `_move` removes the entry and moves the scheduler in one
        # statement, so that Ctrl-C does not come in between.
        self._due_epoch: list[int] = []
        self._due_validation: list[bool] = []
        self._torch_scheduler = unwrapped_scheduler(self.lr_scheduler)
        # The position (``last_epoch``) of the torch scheduler after the last move that this object
        # or ``OptimizerStep`` has made.
        self._last_position: int | None = None
        self._has_warned = False
        _check_metric(self.lr_scheduler, at, metric)

    @property
    def takes_metric(self) -> bool:
        """True if the scheduler is given a metric."""
        return self.metric is not None

    def check_length(self, moves: int, limits: str) -> None:
        """Checks that a schedule of fixed length (OneCycleLR) does not end before the run does.

        Args:
            moves: the minimum number of moves in the run from now on.
            limits: the limits of the run, for the message.

        Raises:
            ValueError: the schedule would raise an error in the middle of the run.
        """
        wrapper, scheduler = self.lr_scheduler, self._torch_scheduler
        is_prepared = isinstance(wrapper, AcceleratedScheduler) and wrapper.step_with_optimizer
        if is_prepared and not wrapper.split_batches:
            if hasattr(scheduler, "total_steps"):
                return  # Accelerate itself stops moving this scheduler at the end of its schedule
            # Each call of the wrapper's ``step`` moves the scheduler once per process.
            moves *= PartialState().num_processes
        for schedule, left in _finite_schedules(scheduler):
            if moves > left:
                total = schedule.total_steps
                raise ValueError(
                    f"`lr_scheduler` must last as long as the run, got a {type(schedule).__name__} "
                    f"with total_steps={total} that can be moved {left} more times, and this run "
                    f"({limits}) moves it {moves} times, after each {self.at}: end the run "
                    f"earlier, or give the scheduler total_steps={total - left + moves} (in a "
                    'resumed run, also pass ResumeCheckpoint(override=("scheduler",)))'
                )

    def check_not_moved_elsewhere(self) -> None:
        """Warns once if other code has moved the scheduler since the last noted position.

        A position below the noted one comes from a loaded state, so there is no warning.
        """
        last_position, position = self._last_position, self._current_position()
        # The caller moves the scheduler next, and then calls ``note_position``. If the move raises
        # an exception, the position stays unknown.
        self._last_position = None
        if last_position is not None and position > last_position and not self._has_warned:
            self._warn_of_other_moves(last_position, position)

    def note_position(self) -> None:
        """Notes the position (``last_epoch``) of the scheduler after a move."""
        self._last_position = self._current_position()

    def _current_position(self) -> int:
        # The default 0 is for ChainedScheduler, which has no ``last_epoch``.
        position: int = getattr(self._torch_scheduler, "last_epoch", 0)
        return position

    def forget_position(self) -> None:
        """Forgets the noted position, because the scheduler may have loaded a state."""
        self._last_position = None

    def _warn_of_other_moves(self, last_position: int, position: int) -> None:
        """Warns that other code moves the scheduler too."""
        self._has_warned = True
        warnings.warn(
            f"`lr_scheduler` must be stepped in one place only: it is stepped after each "
            f"{self.at} already, and other code has moved its `last_epoch` from {last_position} "
            f"to {position} in between, so the learning rate runs ahead. Remove the other call of "
            "lr_scheduler.step(), or do not pass the scheduler as `lr_scheduler`",
            stacklevel=3,
        )

    def end_epoch(self, began_after: int) -> bool:
        """Notes that an epoch has ended, so that ``move_after_epoch`` moves the scheduler.

        Args:
            began_after: the iteration after which the epoch began. A metric that was measured at
                this iteration or earlier is stale: it was measured with earlier weights.

        Returns:
            Whether the scheduler is due to move after this epoch.
        """
        moves = self.at == "epoch" and self.lr_scheduler is not None
        self._due_epoch = [began_after] if moves else []
        return moves

    def move_after_epoch(self, engine: Engine) -> None:
        """Moves the scheduler if ``end_epoch`` has noted a move. A second call does nothing."""
        if not self._due_epoch:
            return
        began_after = self._due_epoch[0]
        arguments = [] if self.metric is None else [self._metric_value(engine, began_after)]
        self._move(self._due_epoch, arguments)

    def end_validation(self, *, are_results_missing: bool) -> None:
        """Notes that a validation has ended, so that ``move_after_validation`` moves the scheduler.

        Args:
            are_results_missing: whether the engine has another Validation that has not run yet in
                this run. That Validation may be the one that measures the metric.
        """
        moves = self.at == "validation" and self.lr_scheduler is not None
        self._due_validation = [are_results_missing] if moves else []

    @property
    def has_due_validation(self) -> bool:
        """True if a validation has ended and the scheduler has not moved since."""
        return bool(self._due_validation)

    def move_after_validation(self, engine: Engine) -> None:
        """Moves the scheduler if ``end_validation`` has noted a move. A second call does nothing.

        The move is canceled if the metric of the scheduler does not come from the validation that
        has just ended, but from another ``Validation``, which ran earlier or has not run yet.
        """
        if not self._due_validation:
            return
        are_results_missing, arguments = self._due_validation[0], []
        if self.metric is not None:
            measured = measured_at(engine).get(self.metric)
            is_stale = measured is not None and measured != engine.state.iteration
            comes_later = are_results_missing and self.metric not in engine.state.metrics
            if is_stale or comes_later:
                self.forget_validation()
                return
            arguments = [self._metric_value(engine, -1)]
        self._move(self._due_validation, arguments)

    def forget_validation(self) -> None:
        """Cancels the move that is due after a validation."""
        self._due_validation = []

    def start_new_run(self) -> None:
        """Cancels the moves that are due after an epoch or a validation of the previous run."""
        self._due_epoch = []
        self._due_validation = []

    def _move(self, due: list[Any], arguments: list[Any]) -> None:
        """Moves the scheduler, and holds signal handlers back meanwhile.

        If the scheduler itself raises an exception, the move is not repeated.

        Args:
            due: ``_due_epoch`` or ``_due_validation``. Its entry is removed.
            arguments: the arguments of ``step()``: the value of the metric, or none.
        """
        self.check_not_moved_elsewhere()
        step = self.lr_scheduler.step
        self._signals.is_holding = True
        try:
            with warnings.catch_warnings():
                # Torch warns if a scheduler moves before the first optimizer step in the process.
                # In a resumed run such a move can be correct: the saved run has made the steps that
                # come before the move.
                message = r"Detected call of `lr_scheduler\.step\(\)` before"
                warnings.filterwarnings("ignore", message)
                due.pop(), step(*arguments)
        finally:
            self._signals.release()
        self.note_position()

    def _metric_value(self, engine: Engine, after: int) -> Any:
        """Returns the metric for the scheduler.

        Args:
            engine: the engine whose state has the metrics.
            after: an iteration. A metric that a validation measured at this iteration or earlier is
                stale. With -1 no metric is stale.

        Raises:
            ValueError: the metric is stale, or missing.
        """
        metrics, name = engine.state.metrics, self.metric
        assert name is not None
        measured = measured_at(engine).get(name)
        if measured is not None and (measured <= after or name not in metrics):
            raise ValueError(
                f"`scheduler_metric` must be measured at the end of each epoch, {name!r} was last "
                f"measured at iteration {measured}, and the epoch ends at iteration "
                f'{engine.state.iteration}: use scheduler_at="validation", or validate each epoch'
            )
        if name not in metrics:
            raise ValueError(
                "`scheduler_metric` must be one of state.metrics when the scheduler moves, got "
                f"{name!r}: {did_you_mean(name, metrics)}"
            )
        return metrics[name]


def unwrapped_scheduler(lr_scheduler: Any) -> Any:
    """Returns the torch scheduler within Accelerate's wrapper, or ``lr_scheduler`` itself."""
    is_prepared = isinstance(lr_scheduler, AcceleratedScheduler)
    return lr_scheduler.scheduler if is_prepared else lr_scheduler


def _finite_schedules(
    scheduler: Any, max_moves: float = inf, moves_made: int | None = None
) -> Iterator[tuple[Any, int]]:
    """Yields (schedule, moves left until its end) for each OneCycleLR in ``scheduler``.

    If a SequentialLR moves to its next part before a OneCycleLR ends, the OneCycleLR is left out.

    Args:
        scheduler: a torch scheduler, which may be composed of others.
        max_moves: the number of moves after which an outer SequentialLR replaces ``scheduler`` with
            the next one; inf if ``scheduler`` is never replaced.
        moves_made: the number of moves so far; default: the scheduler's own count.
    """
    if moves_made is None:
        moves_made = getattr(scheduler, "last_epoch", None)
    if isinstance(scheduler, OneCycleLR):
        left = scheduler.total_steps - (moves_made or 0)
        if left < max_moves:
            yield scheduler, left
    # At each move, all parts of a ChainedScheduler move, but only one part of a SequentialLR does.
    within = child_schedulers(scheduler)
    if not isinstance(scheduler, SequentialLR):
        for each in within:
            yield from _finite_schedules(each, max_moves, moves_made)
        return
    moves_made, milestones = moves_made or 0, milestones_of(scheduler)
    for each, begin, end in zip(within, [0, *milestones], [*milestones, inf], strict=False):
        # `to_come` is the number of moves until this part begins. The move that reaches `end`
        # belongs to the next part, hence the `end - 1`.
        to_come = max(0, begin - moves_made)
        max_moves_of_part = min(max_moves, end - 1 - moves_made) - to_come
        for inner, left in _finite_schedules(each, max_moves_of_part, max(0, moves_made - begin)):
            yield inner, to_come + left


def _check_metric(lr_scheduler: Any, at: str, metric: str | None) -> None:
    """Checks that a ReduceLROnPlateau gets a metric, and that other schedulers get none."""
    if not isinstance(lr_scheduler, ReduceLROnPlateau):
        if metric is not None:
            scheduler_name = "None" if lr_scheduler is None else type(lr_scheduler).__name__
            raise ValueError(
                f"`scheduler_metric` must be left out unless `lr_scheduler` is a "
                f"ReduceLROnPlateau, got {metric!r} with {scheduler_name}: other schedulers "
                "take no metric"
            )
    elif at == "step":
        raise ValueError(
            '`scheduler_at` must be "epoch" or "validation" with a ReduceLROnPlateau, because its '
            'metric is measured then, got "step": pass scheduler_at="validation"'
        )
    elif not isinstance(metric, str):
        raise ValueError(
            "`scheduler_metric` must be given as a text with a ReduceLROnPlateau, got "
            f'{metric!r}: name one of state.metrics, "val_loss" for instance'
        )


def _scheduler_for(optimizer: Optimizer, lr_scheduler: Any) -> Any:
    """Returns the given scheduler, or the scheduler that the given callable makes.

    Raises:
        TypeError: ``lr_scheduler`` is neither a torch scheduler nor a callable that makes one.
        ValueError: the scheduler belongs to another optimizer.
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
    scheduler = _call_maker(lr_scheduler, optimizer) if made_here else lr_scheduler
    inner = unwrapped_scheduler(scheduler)
    if not isinstance(inner, LRScheduler):
        raise TypeError(
            "`lr_scheduler` must be a torch.optim.lr_scheduler.LRScheduler or make one from the "
            f"optimizer, got {type(scheduler).__name__}: "
            "pass StepLR(optimizer, 10), or lambda optimizer: StepLR(optimizer, 10)"
        )
    if _unwrapped_optimizer(inner.optimizer) is not _unwrapped_optimizer(optimizer):
        raise ValueError(
            "`lr_scheduler` must be built on `optimizer`, got a scheduler of another "
            f"{type(_unwrapped_optimizer(inner.optimizer)).__name__}: build the scheduler on "
            "`optimizer`, or pass a callable that makes it from the prepared optimizer"
        )
    # A ReduceLROnPlateau is unwrapped: Accelerate's wrapper would step it once per process.
    return inner if isinstance(inner, ReduceLROnPlateau) else scheduler


def _call_maker(lr_scheduler: Any, optimizer: Optimizer) -> Any:
    """Returns the scheduler that ``lr_scheduler`` makes from the optimizer.

    If ``lr_scheduler`` is not callable, it is returned unchanged.

    Raises:
        TypeError: a scheduler class needs more arguments than the optimizer.
    """
    if not callable(lr_scheduler):
        return lr_scheduler
    try:
        return lr_scheduler(optimizer)
    except TypeError as error:
        if not isinstance(lr_scheduler, type):
            raise
        raise TypeError(
            "`lr_scheduler` must be a scheduler, or a callable that takes the optimizer alone, got "
            f"the class {lr_scheduler.__name__}, which takes more ({error}): pass "
            f"lambda optimizer: {lr_scheduler.__name__}(optimizer, …)"
        ) from error


def _unwrapped_optimizer(optimizer: Any) -> Any:
    """Returns the optimizer within Accelerate's wrappers."""
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer
