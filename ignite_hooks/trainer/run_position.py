"""The position of a run: how far it has come, how far it is to go, and what it resumes."""

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

from ignite.engine import State

from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.core.rules import whole_number
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["Limits", "RunPosition"]


@dataclass(frozen=True)
class Limits:
    """The limits of a run: the first that is reached ends it. They count from its beginning.

    Args:
        max_epochs: complete epochs, or None for no such limit.
        max_iters: batches, or None.
        max_steps: committed optimizer steps, or None.
    """

    max_epochs: int | None = None
    max_iters: int | None = None
    max_steps: int | None = None

    @classmethod
    def of(cls, state: State) -> "Limits":
        """Returns the limits that the state of an engine shows."""
        shown: Any = state
        return cls(shown.max_epochs, shown.max_iters, shown.max_steps)

    def __or__(self, other: "Limits") -> "Limits":
        """Returns these limits, and those of ``other`` where these have none."""
        mine, theirs = vars(self), vars(other)
        return Limits(**{name: theirs[name] if mine[name] is None else mine[name] for name in mine})

    def edited(self, shown: "Limits", now: "Limits") -> "Limits":
        """Returns these limits, shown on a state as ``shown``, after a user set that to ``now``.

        Removing one (``state.max_epochs = None``, Ignite's way to ask for a new run) removes all.
        """
        mine, old, new = vars(self), vars(shown), vars(now)
        if any(old[name] is not None and new[name] is None for name in mine):
            return Limits()
        return Limits(**{n: mine[n] if new[n] == old[n] else new[n] for n in mine})

    def without_reached(self, progress: Progress, steps: int) -> "Limits":
        """Returns the limits that are not reached yet."""
        limits = self
        while (name := limits.reached(progress, steps)) is not None:
            limits = replace(limits, **{name: None})
        return limits

    def check(self, progress: Progress, steps: int) -> None:
        """Raises a ValueError for a limit that is no positive integer or lies in the past."""
        done = {"max_epochs": progress.epochs, "max_iters": progress.iteration, "max_steps": steps}
        for name, value in vars(self).items():
            if value is None:
                continue
            whole_number(name, value, "leave it out for no such limit")
            if value < done[name]:
                raise ValueError(
                    f"`{name}` must be at least what is done already, {done[name]}, got {value}: "
                    f"set trainer.state.{name} = None before run() to begin anew"
                )
        if self.max_epochs is not None and self.max_iters is not None:
            raise ValueError(
                "only one of `max_epochs` and `max_iters` must be given, got "
                f"{self.max_epochs} and {self.max_iters}: leave one out (if it comes from the run "
                "before, set it on trainer.state to None to begin anew)"
            )

    def reached(self, progress: Progress, steps: int) -> str | None:
        """Returns the name of the limit that ends the run, or None."""
        if self.max_steps is not None and steps >= self.max_steps:
            return "max_steps"
        if self.max_iters is not None and progress.iteration >= self.max_iters:
            return "max_iters"
        if self.max_epochs is not None and progress.epochs >= self.max_epochs:
            return "max_epochs"
        return None


class RunPosition:
    """The counters and limits of a run, its last step boundary, and what it resumes.

    A run is steered by this alone. The engine's state shows copies, so nothing that a handler
    writes there creates or suppresses a step. The position knows no engine: the loop moves it, and
    goes back with it to the last step boundary when batches are dropped before their step.

    Args:
        optimizer_step: counts the committed steps, and holds the open window.

    Attributes:
        feed: the source of the batches; None as long as there is no data.
        place: the counters and the position in the data.
        limits: the limits of the run.
        shown: the limits as the state shows them: ``max_epochs`` may be derived from ``max_steps``.
        epoch_length: batches of an epoch; None if each pass over the data decides.
        is_resumed: whether the next run continues that of another process.
        has_failed: whether the run ended in a failure, and so is not finished.
    """

    def __init__(self, optimizer_step: OptimizerStep) -> None:
        self.feed: DataFeed | None = None
        self.place = Place()
        self.limits = Limits()
        self.shown = Limits()
        self.epoch_length: int | None = None
        self.is_resumed = self.has_failed = False
        self._optimizer_step = optimizer_step
        self._boundary = self.place
        self._length_of_pass: int | None = None
        self._has_dropped_batches = self._is_cut = False
        self._seek: Callable[[DataFeed], None] | None = None
        self._random: RandomState | None = None
        self._on_resume: list[Callable[[], None]] = []

    # During a run

    @property
    def steps(self) -> int:
        """The committed optimizer steps."""
        return self._optimizer_step.steps

    @property
    def limit_reached(self) -> str | None:
        """The name of the limit that ends the run now, or None."""
        return self.limits.reached(self.place.progress, self._optimizer_step.steps)

    @property
    def batches_left(self) -> int | None:
        """Batches from the present one on before data, epoch or run ends; None if not known."""
        if self.feed is None:
            return None
        left = self.feed.batches_left
        progress = self.place.progress
        if self.epoch_length is not None:
            of_epoch = self.epoch_length - progress.batches + 1
            left = of_epoch if left is None else min(left, of_epoch)
        if self.limits.max_iters is not None:
            of_run = self.limits.max_iters - progress.iteration + 1
            left = of_run if left is None else min(left, of_run)
        return left

    @property
    def is_at_boundary(self) -> bool:
        """True if every batch of this place was stepped with, or its window was dropped."""
        window = self._optimizer_step.window
        return not window.count and window.taken == self.place.taken

    @property
    def is_between_steps(self) -> bool:
        """True if this is a step boundary with no batch on its way: it can be saved."""
        return (
            self.feed is not None
            and self.is_at_boundary
            and self.feed.position == self.place.position
        )

    @property
    def epochs_to_take(self) -> int | None:
        """The epochs in all that ``max_steps`` alone takes, as far as can be told; else None."""
        limits, length = self.limits, self.epoch_length or self._length_of_pass
        if limits.max_steps is None or limits.max_epochs is not None or length is None:
            return None
        window = self._optimizer_step.accumulation.full_size()
        return self.place.progress.epochs_for(limits.max_steps - self.steps, window, length)

    def count_batch(self) -> Progress:
        """Counts the batch that the feed has just given; returns the counters with it."""
        window, place = self._optimizer_step.window, self.place
        if not window.count:
            self._boundary = place
        feed: Any = self.feed  # not asserted: this is called once per batch
        length = self.epoch_length
        iteration, epochs, batches, _ = place.progress
        is_last = feed.is_last if length is None else batches + 1 >= length
        progress = Progress(iteration + 1, epochs, batches + 1, is_last)
        self.place = Place(progress, feed.position, window.taken + 1)
        return progress

    @property
    def has_epoch_to_complete(self) -> bool:
        """Whether an epoch has had all its batches in this process, and was not completed."""
        return self.place.progress.is_full and self._random is None

    def cut_epoch(self) -> None:
        """Ends the present epoch here: it is to have no further batch."""
        self._is_cut = True
        self.mark_boundary(self.place.progress._replace(is_full=True))

    def complete_epoch(self) -> int | None:
        """Counts a complete epoch; returns the number of its batches if it was one whole pass."""
        progress = self.place.progress
        whole = self.epoch_length is None and progress.is_full and not self._is_cut
        self._is_cut = False
        if whole:
            self._length_of_pass = progress.batches
        self.mark_boundary(progress.with_epoch())
        return progress.batches if whole else None

    def mark_boundary(self, progress: Progress) -> None:
        """Stands at ``progress``, and makes it a step boundary: nothing before is done again."""
        assert self.feed is not None
        taken = self._optimizer_step.window.taken
        self.place = self._boundary = Place(progress, self.feed.position, taken)

    def enter_run(self) -> None:
        """Marks the place where a run begins, or continues, as a step boundary."""
        self._has_dropped_batches = False
        self.mark_boundary(self.place.progress)

    def roll_back(self, *, has_failed: bool) -> None:
        """Goes back to the last step boundary, at the end of a run."""
        self.has_failed = has_failed
        self._has_dropped_batches = not self.is_between_steps
        if not self.is_at_boundary:
            self.place = self._boundary

    def change_feed(self, feed: DataFeed) -> None:
        """Takes the next batches from ``feed``; the counters stay."""
        self.feed = feed
        self.place = self.place._replace(position=feed.position)
        self._boundary = self._boundary._replace(position=feed.position)

    # Where a run begins and ends

    def set_limits(self, limits: Limits) -> None:
        """Sets the limits of the run."""
        self.limits = self.shown = limits

    def show_max_epochs(self, max_epochs: int) -> None:
        """Notes that the state shows ``max_epochs`` for the limit that is not set."""
        self.shown = replace(self.shown, max_epochs=max_epochs)

    def limits_to_continue(self, given: Limits, on_state: Limits) -> Limits | None:
        """Returns the limits with which the run continues; None if a new run is to begin.

        Args:
            given: the limits that the next run was given.
            on_state: the limits that the state shows now.

        Raises:
            ValueError: a limit cannot be used.
        """
        before = self._edited(on_state)
        if before == Limits():
            return None
        progress, steps = self.place.progress, self.steps
        given.check(progress, steps)
        if self.is_resumed and given != Limits():
            before = given  # those of the other run were for that run
        further = given if given != Limits() else before
        if further.reached(progress, steps):
            return further if self.has_failed else None
        limits = given | before.without_reached(progress, steps)
        limits.check(progress, steps)
        return limits

    def is_finished(self, given: Limits, on_state: Limits) -> bool:
        """Returns whether the run that is resumed has nothing left to do within these limits."""
        before = self._edited(on_state)
        if not self.is_resumed or before == Limits():
            return False
        limits = before if given == Limits() else given
        return limits.reached(self.place.progress, self.steps) is not None

    def start_new_run(self, feed: DataFeed, limits: Limits, epoch_length: int | None) -> None:
        """Begins a new run at the next pass over ``feed``."""
        self.feed = feed
        feed.next_pass()
        self.epoch_length = epoch_length or feed.length
        self.place = Place()
        self._seek = self._random = None
        self._on_resume = []
        self._is_cut = False
        self._optimizer_step.start_from(0)
        self._optimizer_step.scheduler.start_new_run()
        self.set_limits(limits)
        self.is_resumed = False

    def continue_run(self, feed: DataFeed, limits: Limits, epoch_length: int | None) -> None:
        """Continues the run, on ``feed``: where it stopped, or with a new epoch on other data.

        Raises:
            ValueError: the epoch has another length.
        """
        before, self.feed = self.feed, feed
        if self._seek is not None:
            self._seek(feed)
            self._seek = None
        elif feed is not before:
            progress = self.place.progress
            # An epoch that has had all its batches is completed before the new data begin.
            self.place = Place(progress if progress.is_full else progress.at_epoch_start())
            self.epoch_length = epoch_length or feed.length
        if epoch_length not in (None, self.epoch_length):
            raise ValueError(
                f"`epoch_length` must stay {self.epoch_length} when training goes on, got "
                f"{epoch_length}: leave it out, or set trainer.state.max_epochs = None (or "
                "max_iters, or max_steps) before run() to begin anew"
            )
        self.set_limits(limits)
        self.is_resumed = False

    def _edited(self, on_state: Limits) -> Limits:
        return self.limits.edited(self.shown, on_state)

    # As data, for another process to continue

    def state_dict(self) -> dict[str, Any]:
        """Returns all that another process needs to continue: numbers, lists and tensors.

        To be called at a step boundary when all callbacks of that moment have returned.
        """
        assert self.feed is not None
        random = RandomState.capture(self._optimizer_step.accelerator.device)
        return {
            "progress": list(self.place.progress),
            "limits": asdict(self.limits),
            "epoch_length": self.epoch_length,
            "passed_length": self._length_of_pass,
            "optimizer_step": self.steps,
            "data": self.feed.state_dict(),
            "random": random.state_dict(),
            "has_drawn_since": self._has_dropped_batches,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue there, on data that is built as the data was built then."""
        progress, limits = Progress(*state_dict["progress"]), Limits(**state_dict["limits"])
        device = self._optimizer_step.accelerator.device
        random = RandomState.from_state_dict(state_dict["random"], device)
        self.place = self._boundary = Place(progress, taken=self._optimizer_step.window.taken)
        self.set_limits(limits)
        self.epoch_length = state_dict["epoch_length"]
        self._length_of_pass = state_dict["passed_length"]
        self._optimizer_step.start_from(state_dict["optimizer_step"])
        self._random = random
        self._seek = lambda feed: feed.load_state_dict(state_dict["data"])
        self.is_resumed = True
        self.has_failed = self._is_cut = False

    def move_to(
        self, progress: Progress, steps: int, limits: Limits, epoch_length: int | None
    ) -> None:
        """Makes the next run continue at these counters, at the batch that they say."""
        self.set_limits(limits)
        self.place = Place(progress)
        self.epoch_length = epoch_length
        position = FeedPosition(progress.epochs, progress.batches)
        self._seek = lambda feed: feed.seek(position)
        self.is_resumed, self._random = False, None
        self.has_failed = self._is_cut = False
        self._optimizer_step.start_from(steps)

    def call_on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` whenever ``restore_random_state`` restores; returns what undoes it."""
        self._on_resume.append(callback)

        def forget() -> None:
            self._on_resume = [other for other in self._on_resume if other is not callback]

        return forget

    def restore_random_state(self, *, is_last_time: bool) -> None:
        """Restores the random generators of a resumed run, and calls the callbacks on resume.

        Handlers of STARTED and EPOCH_STARTED have drawn numbers and reset states that they did not
        draw and reset at this place in the run that is resumed.

        Args:
            is_last_time: whether nothing is left to be restored after this.
        """
        if self._random is not None:
            for callback in self._on_resume:
                callback()
            self._random.restore()
            if is_last_time:
                self._random, self._on_resume = None, []
