"""Learning rate schedulers: which can be used, and when they move."""

import warnings
from collections.abc import Iterator
from math import inf
from typing import Any
from typing import Literal
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
from ignite_hooks.core.measured import measured_at
from ignite_hooks.core.rules import close_to
from ignite_hooks.core.torch_schedulers import milestones_of
from ignite_hooks.core.torch_schedulers import schedulers_within

__all__ = ["SchedulerAt", "SchedulerDriver", "of_torch"]

SchedulerAt = Literal["step", "epoch", "validation"]


class SchedulerDriver:
    """Moves a scheduler: after each step, at the end of each epoch, or after each validation.

    Args:
        lr_scheduler: a torch scheduler, a callable that makes one from the optimizer, or None.
        optimizer: the optimizer as Accelerate prepared it.
        at: when the scheduler moves.
        metric: the name in ``state.metrics`` of the value that a ReduceLROnPlateau is given.
        signals: are held back while it moves.

    Attributes:
        at: when the scheduler moves.
        metric: the name of the metric that the scheduler is given, or None.
        moves_by_step: whether ``OptimizerStep`` moves the scheduler after each committed step.

    Raises:
        TypeError: ``lr_scheduler`` is no torch scheduler and makes none.
        ValueError: it belongs to another optimizer, or does not go with ``at`` and ``metric``.
    """

    def __init__(
        self,
        lr_scheduler: Any,
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
        self._ended_epoch: list[int] = []  # the iteration after which it began, if one has ended
        self._validated: list[bool] = []  # whether more are to come, if a validation has ended
        self._of_torch = of_torch(self.lr_scheduler)
        self._left_at: int | None = None  # its `last_epoch` after our last step
        self._has_warned = False
        _check_metric(self.lr_scheduler, at, metric)

    @property
    def takes_metric(self) -> bool:
        """Whether the scheduler is given a metric."""
        return self.metric is not None

    def check_length(self, moves: int, limits: str) -> None:
        """Checks that a schedule which has an end, a OneCycleLR, lasts as long as the run.

        Args:
            moves: how often the run is to move the scheduler from now on, at least.
            limits: the limits of the run, for the message.

        Raises:
            ValueError: the schedule would fail in the middle of the run.
        """
        wrapper, scheduler = self.lr_scheduler, self._of_torch
        is_prepared = isinstance(wrapper, AcceleratedScheduler) and wrapper.step_with_optimizer
        if is_prepared and not wrapper.split_batches:
            if hasattr(scheduler, "total_steps"):
                return  # Accelerate does not move it any more at its end
            moves *= PartialState().num_processes
        for schedule, left in _ends_of(scheduler):
            if moves > left:
                total = schedule.total_steps
                raise ValueError(
                    f"`lr_scheduler` must last as long as the run, got a {type(schedule).__name__} "
                    f"with total_steps={total} that can be moved {left} more times, and this run "
                    f"({limits}) moves it {moves} times, after each {self.at}: give it "
                    f"total_steps={total - left + moves}, with "
                    'ResumeCheckpoint(override=("scheduler",)) if a run is resumed, or end the run '
                    "earlier"
                )

    def watch(self) -> None:
        """Before the scheduler is moved: warns once if something else has moved it meanwhile.

        A scheduler that stands further back has had a state loaded.
        """
        left_at, found_at = self._left_at, self._place()
        self._left_at = None  # one that fails or is interrupted half-way has moved or has not
        if left_at is not None and found_at > left_at and not self._has_warned:
            self._warn(left_at, found_at)

    def note_place(self) -> None:
        """After the scheduler was moved: notes where it stands."""
        self._left_at = self._place()

    def _place(self) -> int:
        place: int = getattr(self._of_torch, "last_epoch", 0)  # a ChainedScheduler has none
        return place

    def forget_place(self) -> None:
        """Forgets where the scheduler stood: a state may have been loaded."""
        self._left_at = None

    def _warn(self, left_at: int, found_at: int) -> None:
        self._has_warned = True
        warnings.warn(
            f"`lr_scheduler` must be stepped in one place: it is stepped after each {self.at} "
            f"already, and in between its `last_epoch` went from {left_at} to {found_at}, so the "
            "learning rate runs ahead. Remove the other lr_scheduler.step(), or do not give it as "
            "`lr_scheduler`",
            stacklevel=3,
        )

    def end_epoch(self, began_after: int) -> bool:
        """Notes that an epoch has ended; returns whether the scheduler is to move now.

        Args:
            began_after: the number of iterations before the epoch, to tell a metric of this one.
        """
        moves = self.at == "epoch" and self.lr_scheduler is not None
        self._ended_epoch = [began_after] if moves else []
        return moves

    def after_epoch(self, engine: Engine) -> None:
        """Moves the scheduler if the end of an epoch was noted; a second call does nothing."""
        if not self._ended_epoch:
            return
        began_after = self._ended_epoch[0]
        arguments = [] if self.metric is None else [self._value(engine, began_after)]
        self._move(self._ended_epoch, arguments)

    def end_validation(self, *, are_more_to_come: bool) -> None:
        """Notes that a validation has ended.

        Args:
            are_more_to_come: whether another, not run yet, may be the one that gives the metric.
        """
        moves = self.at == "validation" and self.lr_scheduler is not None
        self._validated = [are_more_to_come] if moves else []

    @property
    def is_validated(self) -> bool:
        """Whether a validation has ended after which the scheduler is still to be moved."""
        return bool(self._validated)

    def after_validation(self, engine: Engine) -> None:
        """Moves the scheduler if the end of a validation was noted that gave its metric."""
        if not self._validated:
            return
        are_more_to_come, arguments = self._validated[0], []
        if self.metric is not None:
            measured = measured_at(engine).get(self.metric)
            is_of_another = measured is not None and measured != engine.state.iteration
            is_of_later = are_more_to_come and self.metric not in engine.state.metrics
            if is_of_another or is_of_later:
                self.forget_validation()
                return
            arguments = [self._value(engine, -1)]
        self._move(self._validated, arguments)

    def forget_validation(self) -> None:
        """Forgets a validation that ended."""
        self._validated = []

    def start_new_run(self) -> None:
        """Forgets an epoch and a validation that ended in the run before."""
        self._ended_epoch = []
        self._validated = []

    def _move(self, due: list[Any], arguments: list[Any]) -> None:
        """Moves the scheduler, with signals held back, and takes off ``due`` what made it due.

        That is one line: a failure before leaves it due; one that raises half-way cannot be
        repaired.
        """
        self.watch()
        step = self.lr_scheduler.step
        self._signals.is_holding = True
        try:
            with warnings.catch_warnings():
                # A resumed run may begin with this move: torch knows of no step before it.
                message = r"Detected call of `lr_scheduler\.step\(\)` before"
                warnings.filterwarnings("ignore", message)
                due.pop(), step(*arguments)
        finally:
            self._signals.release()
        self.note_place()

    def _value(self, engine: Engine, after: int) -> Any:
        """Returns the metric, which must have been measured after iteration ``after``."""
        metrics, name = engine.state.metrics, self.metric
        assert name is not None
        measured = measured_at(engine).get(name)
        if measured is not None and (measured <= after or name not in metrics):
            raise ValueError(
                f"`scheduler_metric` must be measured at the end of each epoch, {name!r} was last "
                f"measured at iteration {measured}, and this is {engine.state.iteration}: use "
                'scheduler_at="validation", or validate each epoch'
            )
        if name not in metrics:
            raise ValueError(
                "`scheduler_metric` must be one of state.metrics when the scheduler moves, got "
                f"{name!r}: {close_to(name, metrics)}"
            )
        return metrics[name]


def of_torch(lr_scheduler: Any) -> Any:
    """Returns the torch scheduler in Accelerate's wrapper, or ``lr_scheduler`` itself."""
    is_prepared = isinstance(lr_scheduler, AcceleratedScheduler)
    return lr_scheduler.scheduler if is_prepared else lr_scheduler


def _ends_of(
    scheduler: Any, until: float = inf, place: int | None = None
) -> Iterator[tuple[Any, int]]:
    """Gives the schedules that have an end, and how often the whole can be moved until then.

    Args:
        scheduler: a torch scheduler, which may be made of others.
        until: how often it is moved at most before another takes its place.
        place: how often it was moved; default: as often as it says.
    """
    if place is None:
        place = getattr(scheduler, "last_epoch", None)
    if isinstance(scheduler, OneCycleLR):
        left = scheduler.total_steps - (place or 0)
        if left < until:
            yield scheduler, left
    within = schedulers_within(scheduler)
    if not isinstance(scheduler, SequentialLR):
        for each in within:
            yield from _ends_of(each, until, place)
        return
    place, milestones = place or 0, milestones_of(scheduler)
    for each, begin, end in zip(within, [0, *milestones], [*milestones, inf], strict=False):
        to_come = max(0, begin - place)  # the call at a milestone begins the next schedule
        last = min(until, end - 1 - place) - to_come
        for inner, left in _ends_of(each, last, max(0, place - begin)):
            yield inner, to_come + left


def _check_metric(lr_scheduler: Any, at: str, metric: str | None) -> None:
    """Checks that a ReduceLROnPlateau, and no other scheduler, has a metric, and where."""
    if not isinstance(lr_scheduler, ReduceLROnPlateau):
        if metric is not None:
            kind = "None" if lr_scheduler is None else type(lr_scheduler).__name__
            raise ValueError(
                f"`scheduler_metric` must be left out unless `lr_scheduler` is a "
                f"ReduceLROnPlateau, got {metric!r} with {kind}: other schedulers take no metric"
            )
    elif at == "step":
        raise ValueError(
            '`scheduler_at` must be "epoch" or "validation" with a ReduceLROnPlateau, whose metric '
            'is there then, got "step": pass scheduler_at="validation"'
        )
    elif not isinstance(metric, str):
        raise ValueError(
            "`scheduler_metric` must be given as a text with a ReduceLROnPlateau, got "
            f'{metric!r}: name one of state.metrics, "val_loss" for instance'
        )


def _scheduler_for(optimizer: Optimizer, lr_scheduler: Any) -> Any:
    """Returns the scheduler given, or the one that the callable given makes from the optimizer."""
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
    inner = of_torch(scheduler)
    if not isinstance(inner, LRScheduler):
        raise TypeError(
            "`lr_scheduler` must be a torch.optim.lr_scheduler.LRScheduler or make one from the "
            f"optimizer, got {type(scheduler).__name__}: "
            "pass StepLR(optimizer, 10), or lambda optimizer: StepLR(optimizer, 10)"
        )
    if _innermost(inner.optimizer) is not _innermost(optimizer):
        raise ValueError(
            "`lr_scheduler` must be built on the optimizer that is trained with, its own is "
            f"another {type(_innermost(inner.optimizer)).__name__}: build it on that one, or "
            "pass a callable that makes it from the prepared optimizer"
        )
    # Accelerate's wrapper would step a ReduceLROnPlateau once per process.
    return inner if isinstance(inner, ReduceLROnPlateau) else scheduler


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
