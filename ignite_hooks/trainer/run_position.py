"""The position of a run: its counters, its limits, and what it resumes."""

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.core.rules import check_count
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.trainer.limits import Limits
from ignite_hooks.trainer.limits import ShownLimits

__all__ = ["RunPosition"]


class RunPosition:
    """The counters and limits of a run, its last step boundary, and the state that it resumes.

    A run is controlled by this object alone. The engine's state shows copies, so nothing that a
    handler writes there creates or suppresses a step. The position knows no engine: the loop moves
    it forward, and rolls it back to the last step boundary when batches are dropped before their
    step.

    Args:
        optimizer_step: counts the committed steps, and holds the open window.

    Attributes:
        feed: the source of the batches; None as long as there is no data.
        place: the counters and the position in the data.
        limits: the present limits of the run, with the changes that handlers made.
        given_limits: the limits that the run was given; they hold again when the run is over.
        shown: the limits as the state shows them: ``max_epochs`` may be derived from ``max_steps``.
        epoch_length: batches of an epoch where the length is fixed; None if an epoch is one pass.
        is_resumed: whether the next run continues the run of another process.
        has_failed: whether the run ended in a failure, and so is not finished.
        epoch_termination: the request that ended the present epoch before its last batch, or False.
        length_of_pass: batches of the last epoch that was one whole pass; None without one.
        uncompleted_epoch: place and ``epoch_termination`` from before an epoch was counted as
            complete, until the first handler of EPOCH_COMPLETED is called; then empty.
        find_generators: returns the random generators of the run that are neither global nor in the
            data.
        ended_by: names what finished the run that is resumed before its limit; None if nothing did.
    """

    def __init__(self, optimizer_step: OptimizerStep) -> None:
        self.feed: DataFeed | None = None
        self.place = Place()
        self.limits = self.given_limits = Limits()
        self.shown = ShownLimits()
        self.epoch_length: int | None = None
        self.is_resumed = self.has_failed = False
        self._optimizer_step = optimizer_step
        self._boundary = self.place
        self.length_of_pass: int | None = None
        # Dropped batches have drawn random numbers that are not drawn back; a checkpoint says so.
        self._has_dropped_batches = False
        self.epoch_termination: Any = False
        self.ended_by: str | None = None
        self.uncompleted_epoch: list[tuple[Place, Any]] = []
        # Moves the feed to its resumed position; called once the next run has chosen its data.
        self._pending_seek: Callable[[DataFeed], None] | None = None
        self.find_generators: Callable[[], FoundGenerators] = FoundGenerators
        self._random_state: Mapping[str, Any] | None = None  # of the run to resume
        self._resume_callbacks: list[Callable[[], None]] = []

    # During a run

    @property
    def steps(self) -> int:
        """The number of committed optimizer steps."""
        return self._optimizer_step.steps

    @property
    def limit_reached(self) -> str | None:
        """The name of the limit that ends the run now, or None."""
        return self.limits.reached(self.place.progress, self._optimizer_step.steps)

    @property
    def length_of_epoch(self) -> int | None:
        """Batches of the present epoch in all; None if not known yet."""
        progress, feed = self.place.progress, self.feed
        if self.epoch_length is not None or feed is None:
            return self.epoch_length
        if self.epoch_termination:
            return None if feed.length is None else self.shown.epoch_length
        if progress.is_full:
            return progress.batches
        return self._with_rest_of_pass(feed.length)

    @property
    def epoch_length_or_estimate(self) -> int | None:
        """Batches of the present epoch in all, for users to read; None if not known.

        Where the length is not certain, this is what the data promises by its ``len()``. Nothing in
        the loop relies on an estimate.
        """
        length, feed = self.length_of_epoch, self.feed
        if length is not None or feed is None:
            return length
        if self.epoch_termination:
            return self.shown.epoch_length
        return self._with_rest_of_pass(feed.promised_length)

    def _with_rest_of_pass(self, length: int | None) -> int | None:
        """Returns the batches of this epoch if it ends with a pass of ``length`` batches."""
        assert self.feed is not None
        # Before the seek the feed is not yet at the position of this run.
        if not length or self._pending_seek is not None:
            return length or None
        return self.place.progress.batches + length - self.feed.position.batches

    @property
    def batches_left(self) -> int | None:
        """Batches from the present one to the end of data, epoch or run; None if not known."""
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
        """True if each batch of this place was used in a step, or its window was dropped."""
        window = self._optimizer_step.window
        return not window.count and window.taken == self.place.taken

    @property
    def is_between_steps(self) -> bool:
        """True if the place is a step boundary with no batch on its way: it can be saved."""
        return (
            self.feed is not None
            and self.is_at_boundary
            and self.feed.position == self.place.position
        )

    @property
    def epochs_needed(self) -> int | None:
        """The total number of epochs that ``max_steps`` alone takes; None if not known."""
        limits, length = self.limits, self.length_of_epoch or self.length_of_pass
        if limits.max_steps is None or limits.max_epochs is not None or length is None:
            return None
        window = self._optimizer_step.accumulation.full_size()
        return self.place.progress.epochs_for(limits.max_steps - self.steps, window, length)

    def check_schedule(
        self, limits: Limits, feed: DataFeed, epoch_length: int | None, *, is_new: bool
    ) -> None:
        """Raises a ValueError for a learning rate schedule that ends before the run does.

        Args:
            limits: the limits of the run that is about to begin or to continue.
            feed: the source of its batches.
            epoch_length: batches of an epoch where the length is fixed.
            is_new: whether a new run begins.
        """
        step = self._optimizer_step
        scheduler = step.scheduler
        if scheduler.lr_scheduler is None or scheduler.at == "validation":
            return
        progress = Progress() if is_new else self.place.progress
        length, window = epoch_length or feed.length, step.accumulation.full_size()
        # ``terminate_epoch()`` may have ended the epoch with fewer batches.
        if progress.is_full and length is not None:
            progress = progress._replace(batches=length)
        by_step = scheduler.at == "step"
        count = limits.steps_to_come if by_step else limits.epochs_to_come
        moves = count(progress, 0 if is_new else self.steps, window, length)
        given = {name: limit for name, limit in vars(limits).items() if limit is not None}
        scheduler.check_length(moves, ", ".join(f"{name}={given[name]}" for name in given))

    def count_batch(self) -> Progress:
        """Counts the batch that the feed has just given; returns the counters with this batch."""
        window, place = self._optimizer_step.window, self.place
        if not window.count:
            self._boundary = place
        feed: Any = self.feed  # never None here: an assert would cost time for each batch
        length = self.epoch_length
        iteration, epochs, batches, _ = place.progress
        is_last = feed.is_last if length is None else batches + 1 >= length
        progress = Progress(iteration + 1, epochs, batches + 1, is_last)
        self.place = Place(progress, feed.position, window.taken + 1)
        return progress

    @property
    def is_restored(self) -> bool:
        """True unless the random state of a resumed run is still to be restored."""
        return self._random_state is None

    @property
    def has_epoch_to_complete(self) -> bool:
        """True if an epoch had all its batches in this process, and is not complete yet."""
        return self.place.progress.is_full and self._random_state is None

    @property
    def has_lost_batches(self) -> bool:
        """True if a pass has ended earlier than expected, and the epoch with it."""
        return self.epoch_length is None and self.place.progress.batches > 0

    def end_epoch_early(self, request: Any = True) -> None:
        """Ends the present epoch here: it gets no further batches.

        Args:
            request: the request to end the epoch, which the loop looks at when the epoch completes.
        """
        self.epoch_termination = request
        self.mark_boundary(self.place.progress._replace(is_full=True))

    def complete_epoch(self) -> None:
        """Counts a complete epoch, and notes how to reopen it."""
        progress = self.place.progress
        if self.epoch_length is None and not self.epoch_termination:
            self.length_of_pass = progress.batches
        self.mark_boundary(progress)  # at the end of the data of this epoch
        self.uncompleted_epoch[:] = [(self.place, self.epoch_termination)]
        self.mark_boundary(progress.with_epoch())
        self.epoch_termination = False

    def reopen_epoch(self, before: tuple[Place, Any]) -> None:
        """Undoes ``complete_epoch``: the epoch will be completed once more.

        Args:
            before: what ``uncompleted_epoch`` held.
        """
        self._boundary, self.epoch_termination = before
        self.place = self._boundary

    def adopt_limits(self, now: ShownLimits) -> bool:
        """Adopts the limits and the epoch length that were written to the state.

        Returns:
            Whether the epoch has become full in the middle of a window, which must be dropped.

        Raises:
            ValueError: a value cannot be used.
        """
        limits = self.limits.with_changes(self.shown.limits, now.limits)
        if limits == Limits():
            # ``max_steps`` was removed; what is left is the ``max_epochs`` derived from it.
            limits = now.limits
        limits.check_written()
        self.adopt_epoch_length(now)
        self.limits, self.shown = limits, now
        return self.place.progress.is_full and not self.is_at_boundary

    def adopt_epoch_length(self, now: ShownLimits) -> None:
        """Fixes the length of an epoch if one was written; the present epoch may become full.

        Raises:
            ValueError: the length cannot be used.
        """
        length = now.epoch_length
        if length == self.shown.epoch_length:
            return
        if length is not None:
            remedy = "write None for one pass over the data"
            check_count("trainer.state.epoch_length", length, remedy)
        self.epoch_length = length
        progress, feed = self.place.progress, self.feed
        if progress.batches and not self.epoch_termination and feed is not None:
            is_full = feed.is_last if length is None else progress.batches >= length
            self.place = self.place._replace(progress=progress._replace(is_full=is_full))

    def mark_boundary(self, progress: Progress) -> None:
        """Moves to ``progress`` and makes this a step boundary: nothing before is repeated."""
        assert self.feed is not None
        taken = self._optimizer_step.window.taken
        self.place = self._boundary = Place(progress, self.feed.position, taken)

    def enter_run(self) -> None:
        """Marks the place where a run begins or continues as a step boundary."""
        self._has_dropped_batches = False
        self.uncompleted_epoch.clear()
        self.mark_boundary(self.place.progress)

    def roll_back(self, *, has_failed: bool) -> None:
        """Returns to the last step boundary at the end of a run.

        Args:
            has_failed: whether the run ended in a failure.
        """
        self.has_failed = has_failed
        self._has_dropped_batches = self._has_dropped_batches or not self.is_between_steps
        if self.uncompleted_epoch:  # no handler of EPOCH_COMPLETED has been called
            self._boundary, self.epoch_termination = self.uncompleted_epoch[0]
            self.place = self._boundary
        elif not self.is_at_boundary:
            self.place = self._boundary

    def change_feed(self, feed: DataFeed) -> None:
        """Takes the next batches from ``feed``; the counters stay."""
        self.feed = feed
        self.place = self.place._replace(position=feed.position)
        self._boundary = self._boundary._replace(position=feed.position)

    # Where a run begins and ends

    def set_limits(self, limits: Limits) -> None:
        """Sets the limits of the run."""
        self.limits = self.given_limits = limits

    def limits_to_continue(self, given: Limits, now: ShownLimits) -> Limits | None:
        """Returns the limits with which the run continues; None if a new run is to begin.

        Limits that a handler wrote hold as long as the run is not over.

        Args:
            given: the limits that the next run was given.
            now: the limits that the state shows now.

        Raises:
            ValueError: a limit cannot be used.
        """
        progress, steps = self.place.progress, self.steps
        shown = self.shown.limits
        live = self.limits.with_changes(shown, now.limits)
        if self.shown.asks_for_new_run(now) or live == Limits():
            return None
        is_over = live.reached(progress, steps) is not None and not self.has_failed
        if given == self.given_limits and not is_over:
            given = Limits()
        # After a finished run a limit that is not higher than the last one begins a new run, so it
        # is no error that it lies in the past.
        if is_over:
            given.check(progress.at_epoch_start(), 0)
        else:
            given.check(progress, steps)
        before = self.given_limits.with_changes(shown, now.limits) if is_over else live
        if self.is_resumed and given != Limits():
            before = given  # the limits of the other process were for its run only
        further = given if given != Limits() else before
        if further.reached(progress, steps):
            return further if self.has_failed else None
        limits = given | before.without_reached(progress, steps)
        limits.check_values(progress, steps)
        return limits

    def is_finished(self, given: Limits, now: ShownLimits) -> bool:
        """Returns whether a resumed run has nothing left to do within these limits."""
        live = self.limits.with_changes(self.shown.limits, now.limits)
        if not self.is_resumed or self.shown.asks_for_new_run(now) or live == Limits():
            return False
        if self.ended_by is not None:
            return True
        if self.has_failed:  # a stop broke off callbacks that are still to be called
            return False
        limits = live if given in (Limits(), self.given_limits) else given
        return limits.reached(self.place.progress, self.steps) is not None

    def start_new_run(self, feed: DataFeed, limits: Limits, epoch_length: int | None) -> None:
        """Begins a new run at the next pass over ``feed``.

        ``place`` is set last: if an exception comes before, the next ``run()`` begins a new run
        too.
        """
        self.feed = feed
        feed.next_pass()
        feed.update_length()
        self.epoch_length = epoch_length
        self._pending_seek = self._random_state = None
        self._resume_callbacks = []
        self.epoch_termination = False
        self.uncompleted_epoch.clear()
        self._optimizer_step.start_from(0)
        self._optimizer_step.scheduler.start_new_run()
        self.set_limits(limits)
        self.is_resumed = False
        self.place = Place()

    def continue_run(self, feed: DataFeed, limits: Limits, epoch_length: int | None) -> None:
        """Continues the run on ``feed``: where it stopped, or on other data with a new epoch.

        Raises:
            ValueError: the epoch has another length.
        """
        before, self.feed = self.feed, feed
        if self._pending_seek is not None:
            self._pending_seek(feed)
            self._pending_seek = None
        elif feed is not before:
            progress = self.place.progress
            # An epoch that has had all its batches completes before the new data begins.
            self.place = Place(progress if progress.is_full else progress.at_epoch_start())
            self.epoch_length = epoch_length or self.epoch_length
        feed.update_length()
        if epoch_length not in (None, length := self.length_of_epoch):
            raise ValueError(
                f"`epoch_length` must stay {length} when training continues, got "
                f"{epoch_length}: leave it out, or set trainer.state.max_epochs = None (or "
                "max_iters, or max_steps) before run() to begin a new run"
            )
        self.set_limits(limits)
        self.is_resumed = False

    # As data, for another process to continue

    def state_dict(self) -> dict[str, Any]:
        """Returns all that another process needs to continue: numbers, lists and tensors.

        Call this at a step boundary, when all callbacks of that boundary have returned. The keys
        "asked", "cut" and "has_drawn_since" keep their names for the sake of older checkpoints.
        """
        assert self.feed is not None
        device = self._optimizer_step.accelerator.device
        found = self.find_generators()
        random = RandomState.capture(device, found.named)
        return {
            "progress": list(self.place.progress),
            "limits": asdict(self.limits),
            "asked": asdict(self.given_limits),
            "epoch_length": self.epoch_length,
            "passed_length": self.length_of_pass,
            "optimizer_step": self.steps,
            "data": self.feed.state_dict(),
            "random": random.state_dict(),
            "has_drawn_since": self._has_dropped_batches,
            "cut": self.epoch_termination,
            "unknown": self.unknown_parts(found),
        }

    def unknown_parts(self, found: FoundGenerators | None = None) -> dict[str, str]:
        """Returns why parts of a ``ResumeReport`` may not be restored, by their names.

        Args:
            found: the random generators of the run; default: searches for them.
        """
        found = self.find_generators() if found is None else found
        doubts = {"random generators": list(found.doubts)}
        if self.feed is not None:
            doubts["data"] = self.feed.doubts()
        return {part: "; ".join(reasons) for part, reasons in doubts.items() if reasons}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue at that position, on data that is built in the same way."""
        progress = Progress(*state_dict["progress"])
        device = self._optimizer_step.accelerator.device
        # For its error: a state that cannot be used must not change anything here.
        RandomState.from_state_dict(state_dict["random"], device)
        self.place = self._boundary = Place(progress, taken=self._optimizer_step.window.taken)
        self.limits = Limits(**state_dict["limits"])
        self.given_limits = Limits(**state_dict.get("asked", state_dict["limits"]))
        self.epoch_length = state_dict["epoch_length"]
        self.length_of_pass = state_dict["passed_length"]
        self._optimizer_step.start_from(state_dict["optimizer_step"])
        self._random_state = state_dict["random"]

        def seek(feed: DataFeed) -> None:
            starts_over = feed.starts_over(state_dict["data"])
            ends_pass = feed.ends_pass(state_dict["data"])
            feed.load_state_dict(state_dict["data"])
            if self.epoch_length is None and starts_over:
                self.place = self.place._replace(progress=progress.at_epoch_start())
            elif self.epoch_length is None and ends_pass:
                self.place = self.place._replace(progress=progress._replace(is_full=True))

        self._pending_seek = seek
        self.is_resumed = True
        self.has_failed = bool(state_dict.get("due"))
        self.epoch_termination = state_dict.get("cut", False)
        self.ended_by = None
        self.uncompleted_epoch.clear()

    def move_to(
        self, progress: Progress, steps: int, limits: Limits, epoch_length: int | None
    ) -> None:
        """Makes the next run continue at these counters, and at the batch that they count to."""
        self.set_limits(limits)
        self.place = Place(progress)
        self.epoch_length = epoch_length
        position = FeedPosition(progress.epochs, progress.batches)

        def seek(feed: DataFeed) -> None:
            feed.seek(position)
            # Ignite's state does not say whether an epoch was one pass; this length says so.
            if feed.length == epoch_length:
                self.epoch_length = None

        self._pending_seek = seek
        self.is_resumed, self._random_state = False, None
        self.has_failed = self.epoch_termination = False
        self.ended_by = None
        self.uncompleted_epoch.clear()
        self._optimizer_step.start_from(steps)

    def call_on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls ``callback`` whenever ``restore_random_state`` restores.

        Returns:
            A function that undoes this.
        """
        self._resume_callbacks.append(callback)

        def forget() -> None:
            self._resume_callbacks = [
                other for other in self._resume_callbacks if other is not callback
            ]

        return forget

    def restore_random_state(self, *, is_last_time: bool) -> None:
        """Restores the random generators of a resumed run, and calls the callbacks on resume.

        Handlers of STARTED and EPOCH_STARTED have drawn numbers and reset states. The run that is
        resumed had not called them at this place.

        Args:
            is_last_time: whether this is the last call: no further event resets anything.
        """
        if self._random_state is not None:
            for callback in self._resume_callbacks:
                callback()
            device, generators = (
                self._optimizer_step.accelerator.device,
                self.find_generators().named,
            )
            RandomState.from_state_dict(self._random_state, device, generators).restore()
            if is_last_time:
                self._random_state, self._resume_callbacks = None, []
