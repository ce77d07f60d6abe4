"""Keeps the counters and limits of a run, and restores them when the run resumes.

A *place* is the counters together with the position in the data. A *window* is the batches whose
gradients are accumulated for one optimizer step. A *step boundary* is a place between two windows,
from which a run can continue. An epoch is *full* if it gets no further batch.
"""

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
    """The counters and limits of a run, its last step boundary, and the saved state to resume from.

    These counters decide what the run does. The engine's state has only copies of the counters, for
    handlers to read: if a handler overwrites a copy, the run does not change. This class does not
    use the engine. The loop moves the position forward. If a run ends within a window, the loop
    rolls the position back to the last step boundary.

    Args:
        optimizer_step: the handler that makes and counts the optimizer steps.

    Attributes:
        feed: the source of the batches; None as long as there is no data.
        place: the counters and the position in the data.
        limits: the present limits of the run, with the changes that handlers made.
        given_limits: the limits that were passed to ``run``, without the changes by handlers. After
            a run that has ended at a limit, the next ``run`` starts from these limits.
        shown: the limits and the epoch length that the trainer last wrote to the engine's state or
            read there. If the state differs from ``shown``, other code has changed the state. If
            ``max_steps`` is the only limit, ``shown.max_epochs`` is the number of epochs for these
            steps, and ``limits.max_epochs`` is None.
        epoch_length: the number of batches in an epoch if it is fixed; None if an epoch is one
            pass.
        is_resumed: whether the next run continues the run of another process.
        is_unfinished: whether the run failed, or has not called all its deferred callbacks. Such a
            run has work left, even if it has reached a limit.
        epoch_termination: the value of the request that ended the present epoch before its last
            batch; False if there was no such request.
        length_of_pass: the number of batches in the last epoch that was one whole pass; None if
            there was none.
        uncompleted_epoch: a list that is empty, or has one entry: the ``place`` and the
            ``epoch_termination`` from before ``complete_epoch`` counted the epoch. The list is
            cleared when the first handler of EPOCH_COMPLETED is called. If the run ends before
            that, ``roll_back`` uses the entry to undo ``complete_epoch``.
        find_generators: a function that returns the random generators of the run, except the global
            ones and those of the data.
        ended_by: the name of the handler or function that ended the run before its limit. The run
            then counts as finished. None if no handler or function has ended the run in this way.
    """

    def __init__(self, optimizer_step: OptimizerStep) -> None:
        self.feed: DataFeed | None = None
        self.place = Place()
        self.limits = self.given_limits = Limits()
        self.shown = ShownLimits()
        self.epoch_length: int | None = None
        self.is_resumed = self.is_unfinished = False
        self._optimizer_step = optimizer_step
        self._boundary = self.place
        self.length_of_pass: int | None = None
        # Whether batches were dropped at the end of a run. The random generators are not rolled
        # back, so they are then ahead of the position in the data.
        self._has_dropped_batches = False
        self.epoch_termination: Any = False
        self.ended_by: str | None = None
        self.uncompleted_epoch: list[tuple[Place, Any]] = []
        # Moves the feed to the loaded position. It is called when the next run has chosen its data.
        # None if no position was loaded.
        self._pending_seek: Callable[[DataFeed], None] | None = None
        self.find_generators: Callable[[], FoundGenerators] = FoundGenerators
        # The random state from the checkpoint; None as soon as the generators are restored.
        self._random_state: Mapping[str, Any] | None = None
        self._resume_callbacks: list[Callable[[], None]] = []

    # During a run

    @property
    def steps(self) -> int:
        """The number of optimizer steps that have changed the parameters."""
        return self._optimizer_step.steps

    @property
    def limit_reached(self) -> str | None:
        """The name of the limit that ends the run now, or None."""
        return self.limits.reached(self.place.progress, self._optimizer_step.steps)

    @property
    def length_of_epoch(self) -> int | None:
        """The total number of batches in the present epoch; None if not known yet."""
        progress, feed = self.place.progress, self.feed
        if self.epoch_length is not None or feed is None:
            return self.epoch_length
        if self.epoch_termination:
            # ``shown`` keeps the length from before the request to end the epoch. Without a
            # ``feed.length``, this length is only an estimate.
            return None if feed.length is None else self.shown.epoch_length
        if progress.is_full:
            return progress.batches
        return self._with_rest_of_pass(feed.length)

    @property
    def epoch_length_or_estimate(self) -> int | None:
        """The total number of batches in the present epoch, for users to read; None if not known.

        If the length is not certain, this is an estimate from the ``len()`` of the data. The loop
        does not rely on an estimate.
        """
        length, feed = self.length_of_epoch, self.feed
        if length is not None or feed is None:
            return length
        if self.epoch_termination:
            return self.shown.epoch_length
        return self._with_rest_of_pass(feed.promised_length)

    def _with_rest_of_pass(self, length: int | None) -> int | None:
        """Returns the length of the present epoch if the epoch ends together with the present pass.

        If ``set_data`` was called within the epoch, the epoch is longer than the pass.

        Args:
            length: the number of batches in the pass; None if not known.
        """
        assert self.feed is not None
        # Until ``_pending_seek`` is called, the feed is not at the position of this run, so the
        # rest of its pass is not the rest of this epoch.
        if not length or self._pending_seek is not None:
            return length or None
        return self.place.progress.batches + length - self.feed.position.batches

    @property
    def batches_left(self) -> int | None:
        """The number of batches up to the next known end, including the present batch.

        The next end is the end of the data, of the epoch or of the run, whichever comes first. None
        if no end is known.
        """
        if self.feed is None:
            return None
        left = self.feed.batches_left
        progress = self.place.progress
        if self.epoch_length is not None:
            left_in_epoch = self.epoch_length - progress.batches + 1
            left = left_in_epoch if left is None else min(left, left_in_epoch)
        if self.limits.max_iters is not None:
            left_in_run = self.limits.max_iters - progress.iteration + 1
            left = left_in_run if left is None else min(left, left_in_run)
        return left

    @property
    def is_at_boundary(self) -> bool:
        """True at a step boundary: no window is open, and no batch is being processed."""
        window = self._optimizer_step.window
        return not window.count and window.taken == self.place.taken

    @property
    def is_between_steps(self) -> bool:
        """True at a step boundary if the feed has not given the next batch yet.

        The run cannot be saved while the feed has given a batch that is not counted yet: the state
        of the feed would include this batch, and the counters would not.
        """
        return (
            self.feed is not None
            and self.is_at_boundary
            and self.feed.position == self.place.position
        )

    @property
    def epochs_needed(self) -> int | None:
        """The total number of epochs that the run needs to reach ``max_steps``.

        None if the run has no ``max_steps``, if it has ``max_epochs`` too, or if the length of an
        epoch is not known.
        """
        limits, length = self.limits, self.length_of_epoch or self.length_of_pass
        if limits.max_steps is None or limits.max_epochs is not None or length is None:
            return None
        window_size = self._optimizer_step.accumulation.full_size()
        # Within a window the present batches are counted already, and their step is not.
        progress = self._boundary.progress
        return progress.epochs_for(limits.max_steps - self.steps, window_size, length)

    def check_schedule(
        self, limits: Limits, feed: DataFeed, epoch_length: int | None, *, is_new: bool
    ) -> None:
        """Raises a ValueError for a learning rate schedule that ends before the run does.

        Args:
            limits: the limits of the run that is about to begin or to continue.
            feed: the source of the batches.
            epoch_length: the number of batches in an epoch if it is fixed.
            is_new: whether a new run begins.
        """
        step = self._optimizer_step
        scheduler = step.scheduler
        if scheduler.lr_scheduler is None or scheduler.at == "validation":
            return
        progress = Progress() if is_new else self.place.progress
        length, window_size = epoch_length or feed.length, step.accumulation.full_size()
        # A full epoch gets no further batch, even if ``terminate_epoch()`` has ended it early. So
        # it is counted with all ``length`` batches.
        if progress.is_full and length is not None:
            progress = progress._replace(batches=length)
        by_step = scheduler.at == "step"
        count = limits.steps_to_come if by_step else limits.epochs_to_come
        moves = count(progress, 0 if is_new else self.steps, window_size, length)
        given = {name: limit for name, limit in vars(limits).items() if limit is not None}
        scheduler.check_length(moves, ", ".join(f"{name}={given[name]}" for name in given))

    def count_batch(self) -> Progress:
        """Counts the batch that the feed has just given; returns the counters with this batch."""
        window, place = self._optimizer_step.window, self.place
        if not window.count:
            self._boundary = place
        feed: Any = self.feed  # not None here; an ``assert`` would cost time for each batch
        length = self.epoch_length
        iteration, epochs, batches, _ = place.progress
        is_last = feed.is_last if length is None else batches + 1 >= length
        progress = Progress(iteration + 1, epochs, batches + 1, is_last)
        self.place = Place(progress, feed.position, window.taken + 1)
        return progress

    @property
    def is_restored(self) -> bool:
        """True if the saved random state has been restored, or if there was none to restore."""
        return self._random_state is None

    @property
    def has_epoch_to_complete(self) -> bool:
        """True if the present epoch is full, and the loop completes it without EPOCH_STARTED.

        False for a run that has resumed in a full epoch, until the run has fired EPOCH_STARTED and
        then restored its random state.
        """
        return self.place.progress.is_full and self._random_state is None

    @property
    def ends_with_data(self) -> bool:
        """True if the epoch ends with the data: the epoch is one pass, and has had batches.

        The loop reads this property when the data have no further batch and the epoch is not full.
        """
        return self.epoch_length is None and self.place.progress.batches > 0

    def end_epoch_early(self, request: Any = True) -> None:
        """Marks the present epoch as full, so that it gets no further batch.

        Args:
            request: the value of the request to end the epoch. With "skip_epoch_completed" the loop
                does not fire EPOCH_COMPLETED.
        """
        self.epoch_termination = request
        self.mark_boundary(self.place.progress._replace(is_full=True))

    def complete_epoch(self) -> None:
        """Counts the present epoch as complete, and keeps what ``reopen_epoch`` needs."""
        progress = self.place.progress
        if self.epoch_length is None and not self.epoch_termination:
            self.length_of_pass = progress.batches
        # This call also updates the position in the data. The feed may have moved to the next pass
        # after the last batch was counted.
        self.mark_boundary(progress)
        self.uncompleted_epoch[:] = [(self.place, self.epoch_termination)]
        self.mark_boundary(progress.with_epoch())
        self.epoch_termination = False

    def reopen_epoch(self, before: tuple[Place, Any]) -> None:
        """Undoes ``complete_epoch``, so that the epoch can be completed again.

        Args:
            before: the entry of ``uncompleted_epoch``.
        """
        self._boundary, self.epoch_termination = before
        self.place = self._boundary

    def adopt_limits(self, now: ShownLimits) -> bool:
        """Adopts the limits and the epoch length that were written to the state.

        Returns:
            Whether the open window must be dropped, because the epoch has become full within it.

        Raises:
            ValueError: a value cannot be used.
        """
        limits = self.limits.with_changes(self.shown.limits, now.limits)
        if limits == Limits():
            # A handler has removed ``max_steps``, the only limit. The ``max_epochs`` that was
            # derived from it is still in the state, and is the limit from now on.
            limits = now.limits
        limits.check_written()
        self.adopt_epoch_length(now)
        self.limits, self.shown = limits, now
        return self.place.progress.is_full and not self.is_at_boundary

    def adopt_epoch_length(self, now: ShownLimits) -> None:
        """Adopts the epoch length if another length was written to the state.

        With a smaller length, the present epoch may become full.

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
        """Moves to ``progress`` and makes this place the last step boundary."""
        assert self.feed is not None
        taken = self._optimizer_step.window.taken
        self.place = self._boundary = Place(progress, self.feed.position, taken)

    def enter_run(self) -> None:
        """Marks the place where a run begins or continues as a step boundary."""
        self._has_dropped_batches = False
        self.uncompleted_epoch.clear()
        self.mark_boundary(self.place.progress)

    def roll_back(self, *, has_failed: bool) -> None:
        """Moves back to the last step boundary at the end of a run.

        Args:
            has_failed: whether the run ended in a failure.
        """
        self.is_unfinished = has_failed
        self._has_dropped_batches = self._has_dropped_batches or not self.is_between_steps
        if self.uncompleted_epoch:  # no handler of EPOCH_COMPLETED has been called
            self._boundary, self.epoch_termination = self.uncompleted_epoch[0]
            self.place = self._boundary
        elif not self.is_at_boundary:
            self.place = self._boundary

    def change_feed(self, feed: DataFeed) -> None:
        """Makes ``feed`` the source of the next batches. The counters stay unchanged."""
        self.feed = feed
        self.place = self.place._replace(position=feed.position)
        self._boundary = self._boundary._replace(position=feed.position)

    # Where a run begins and ends

    def set_limits(self, limits: Limits) -> None:
        """Sets the limits of the run."""
        self.limits = self.given_limits = limits

    def limits_to_continue(self, given: Limits, now: ShownLimits) -> Limits | None:
        """Returns the limits with which the run continues; None if a new run is to begin.

        If a handler has changed the limits, its changes are valid until the run is over.

        Args:
            given: the limits that were passed to the next ``run``.
            now: the limits that the state shows now.

        Raises:
            ValueError: a limit cannot be used.
        """
        progress, steps = self.place.progress, self.steps
        shown = self.shown.limits
        present_limits = self.limits.with_changes(shown, now.limits)
        if self.shown.asks_for_new_run(now) or present_limits == Limits():
            return None
        is_over = present_limits.reached(progress, steps) is not None and not self.is_unfinished
        # If the call repeats the limits of a run that is not over, the run keeps its own limits,
        # with the changes by handlers.
        if given == self.given_limits and not is_over:
            given = Limits()
        # After a finished run, ``max_steps`` may be lower than the number of steps so far: the call
        # then begins a new run. As in Ignite, ``max_iters`` and ``max_epochs`` must be at least the
        # numbers of iterations and of complete epochs.
        if is_over:
            given.check(progress.at_epoch_start(), 0)
        else:
            given.check(progress, steps)
        before = self.given_limits.with_changes(shown, now.limits) if is_over else present_limits
        if self.is_resumed and given != Limits():
            before = given  # the limits of the saved run do not apply to this process
        next_limits = given if given != Limits() else before
        if next_limits.reached(progress, steps):
            # An unfinished run only does the work that is left. After a finished run, a new run
            # begins.
            return next_limits if self.is_unfinished else None
        limits = given | before.without_reached(progress, steps)
        limits.check_values(progress, steps)
        return limits

    def is_finished(self, given: Limits, now: ShownLimits) -> bool:
        """Returns whether a resumed run has nothing left to do.

        Args:
            given: the limits that were passed to ``run``.
            now: the limits that the state shows now.
        """
        present_limits = self.limits.with_changes(self.shown.limits, now.limits)
        if not self.is_resumed or self.shown.asks_for_new_run(now) or present_limits == Limits():
            return False
        if self.ended_by is not None:
            return True
        if self.is_unfinished:
            return False
        limits = present_limits if given in (Limits(), self.given_limits) else given
        return limits.reached(self.place.progress, self.steps) is not None

    def start_new_run(self, feed: DataFeed, limits: Limits, epoch_length: int | None) -> None:
        """Begins a new run at the next pass over ``feed``.

        ``place`` is set last. If this method raises an exception, ``place`` is still that of the
        previous run, and the next ``run()`` tries again.
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
        """Continues the run on ``feed``.

        On the same data the run continues at its position; on other data a new epoch begins.

        Raises:
            ValueError: ``epoch_length`` is not the length of the epoch that continues.
        """
        before, self.feed = self.feed, feed
        if self._pending_seek is not None:
            self._pending_seek(feed)
            self._pending_seek = None
        elif feed is not before:
            progress = self.place.progress
            # A full epoch needs no data. It is completed before the new data is used.
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

    # State that another process continues from

    def state_dict(self) -> dict[str, Any]:
        """Returns the state from which another process can continue: numbers, lists and tensors.

        Call this at a step boundary, when all callbacks of that boundary have returned. Some keys
        differ from the names of the attributes, because older checkpoints have these keys: "asked"
        is ``given_limits``, "passed_length" is ``length_of_pass``, "has_drawn_since" is
        ``_has_dropped_batches``, and "cut" is ``epoch_termination``.
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
        """Returns the reasons why a resume may not restore some parts of the run.

        The result maps the name of such a part, for example "data", to the reasons.

        Args:
            found: the random generators of the run; default: the method searches for them.
        """
        found = self.find_generators() if found is None else found
        doubts = {"random generators": list(found.doubts)}
        if self.feed is not None:
            doubts["data"] = self.feed.doubts()
        return {part: "; ".join(reasons) for part, reasons in doubts.items() if reasons}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Makes the next run continue at the saved position, on data built in the same way."""
        progress = Progress(*state_dict["progress"])
        device = self._optimizer_step.accelerator.device
        # If the state is invalid, this call raises an error before anything is changed.
        RandomState.from_state_dict(state_dict["random"], device)
        self.place = self._boundary = Place(progress, taken=self._optimizer_step.window.taken)
        self.limits = Limits(**state_dict["limits"])
        self.given_limits = Limits(**state_dict.get("asked", state_dict["limits"]))
        self.epoch_length = state_dict["epoch_length"]
        self.length_of_pass = state_dict["passed_length"]
        self._optimizer_step.start_from(state_dict["optimizer_step"])
        self._random_state = state_dict["random"]

        def seek(feed: DataFeed) -> None:
            drops_pass = feed.drops_pass(state_dict["data"])
            ends_pass = feed.ends_pass(state_dict["data"])
            feed.load_state_dict(state_dict["data"])
            # The feed may have dropped or ended the saved pass, for example because the data has
            # changed. If an epoch is one pass, the epoch then starts again or is full.
            if self.epoch_length is None and drops_pass:
                self.place = self.place._replace(progress=progress.at_epoch_start())
            elif self.epoch_length is None and ends_pass:
                self.place = self.place._replace(progress=progress._replace(is_full=True))

        self._pending_seek = seek
        self.is_resumed = True
        self.is_unfinished = bool(state_dict.get("due"))
        self.epoch_termination = state_dict.get("cut", False)
        self.ended_by = None
        self.uncompleted_epoch.clear()

    def move_to(
        self, progress: Progress, steps: int, limits: Limits, epoch_length: int | None
    ) -> None:
        """Makes the next run continue from the given counters, and skip the batches they count."""
        self.set_limits(limits)
        self.place = Place(progress)
        self.epoch_length = epoch_length
        position = FeedPosition(progress.epochs, progress.batches)

        def seek(feed: DataFeed) -> None:
            feed.seek(position)
            # Ignite's state does not say whether an epoch is one pass. If epoch and pass have the
            # same length, the epoch counts as one pass.
            if feed.length == epoch_length:
                self.epoch_length = None

        self._pending_seek = seek
        self.is_resumed, self._random_state = False, None
        self.is_unfinished = self.epoch_termination = False
        self.ended_by = None
        self.uncompleted_epoch.clear()
        self._optimizer_step.start_from(steps)

    def call_on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Registers ``callback``, which ``restore_random_state`` calls before it restores anything.

        Returns:
            A function that removes the callback again.
        """
        self._resume_callbacks.append(callback)

        def forget() -> None:
            self._resume_callbacks = [
                other for other in self._resume_callbacks if other is not callback
            ]

        return forget

    def restore_random_state(self, *, is_last_time: bool) -> None:
        """Calls the callbacks of ``call_on_resume``, and restores the generators of a resumed run.

        Does nothing if there is no random state to restore. The loop calls this method after
        STARTED and, if the run resumes in the middle of an epoch, again after EPOCH_STARTED.
        Handlers of these events may draw random numbers and reset metrics. The saved run did not
        call these handlers in the middle of its epoch, so this method undoes their effects.

        Args:
            is_last_time: whether this is the last call before the next batch.
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
