"""Where a run stands, as data; and going on there in another process."""

from collections.abc import Callable
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING
from typing import Any

from ignite.engine import Engine

from ignite_hooks.core.engine import is_running
from ignite_hooks.core.place import FeedPosition
from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.trainer.progress import Limits
from ignite_hooks.trainer.run_position import CountingEngine

if TYPE_CHECKING:
    from ignite_hooks.optim.optimizer_step import OptimizerStep

__all__ = ["ResumableEngine"]


class ResumableEngine(CountingEngine):
    """Tells all that another engine has to know to go on as if it were this one.

    That is the counters, the limits, the place in the data with the order of its samples, and the
    random generators. Model, optimizer and scheduler have states of their own.
    """

    def __init__(
        self, process_function: Callable[[Engine, Any], Any], optimizer_step: "OptimizerStep"
    ) -> None:
        super().__init__(process_function, optimizer_step)
        self._go_to: Callable[[Any], None] | None = None
        self._is_resumed = False
        self._random: RandomState | None = None
        self._taking_up: list[Callable[[], None]] = []

    def position_state_dict(self) -> dict[str, Any]:
        """All that, at a step boundary: numbers, lists and tensors, for ``torch.load``.

        To be called when nothing of the moment is left to do: after a step, or after an epoch.
        """
        random = RandomState.capture(self._optimizer_step.accelerator.device)
        return {
            "progress": list(self._place.progress),
            "limits": asdict(self._limits),
            "epoch_length": self._epoch_length,
            "passed_length": self._passed_length,
            "optimizer_step": self._optimizer_step.steps,
            "validation": self.state.validation,
            "data": self._feed.state_dict(),
            "random": random.state_dict(),
            "has_drawn_since": self._has_drawn_since,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Ignite's. The next run goes on from that iteration, at that place in the data.

        Shuffled data has the order it had only if its sampler draws it from the number of the
        pass, as Accelerate's seedable sampler does.
        """
        self._give_up_run("load_state_dict()")
        super().load_state_dict({"optimizer_step": 0, **state_dict})
        state = self.state
        state.max_steps = None
        self._limits = self._shown = Limits.of(state)
        batches = state.iteration - state.epoch * (state.epoch_length or 0)
        self._place = Place(Progress(state.iteration, state.epoch, batches))
        self._epoch_length = state.epoch_length
        position = FeedPosition(state.epoch, batches)
        self._go_to = lambda feed: feed.seek(position)
        self._is_resumed, self._random = False, None
        self._optimizer_step.start_from(state.optimizer_step, self)

    def call_on_resume(self, act: Callable[[], None]) -> Callable[[], None]:
        """Has ``act`` called in the next run, if it goes on, where random generators are put back.

        That is for what handlers of STARTED and EPOCH_STARTED set anew, as metrics are reset. If
        nothing is left to run it is called all the same.

        Returns:
            What undoes this.
        """
        self._taking_up.append(act)

        def forget() -> None:
            self._taking_up = [other for other in self._taking_up if other is not act]

        return forget

    def load_position_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Has the next run go on there, on data that is built as the data was built then.

        The random generators are put back when the handlers of STARTED have returned, and in the
        middle of an epoch once more after those of EPOCH_STARTED: neither has been called there in
        the run that is gone on with. A run that was finished has nothing to go on with: the next
        ``run`` returns at once, unless a limit is given that lies further.
        """
        self._give_up_run("load_position_state_dict()")
        self._place = self._boundary = Place(
            Progress(*state_dict["progress"]), taken=self._optimizer_step.window.taken
        )
        self._set_limits(Limits(**state_dict["limits"]))
        self._epoch_length = state_dict["epoch_length"]
        self._passed_length = state_dict["passed_length"]
        self._optimizer_step.start_from(state_dict["optimizer_step"], self)
        progress = self._place.progress
        self.state.iteration, self.state.epoch = progress.iteration, progress.epochs
        self.state.epoch_length = self._epoch_length
        self.state.validation = state_dict["validation"]
        device = self._optimizer_step.accelerator.device
        self._random = RandomState.from_state_dict(state_dict["random"], device)
        self._go_to = lambda feed: feed.load_state_dict(state_dict["data"])
        self._is_resumed = True

    def _give_up_run(self, what: str) -> None:
        self._check_not_running(what, "call terminate() first, and load after run()")
        running, self._internal_run_generator = self._internal_run_generator, None
        if running is not None:  # interrupted, and not to be gone on with
            running.close()

    def _check_not_running(self, what: str, remedy: str) -> None:
        if is_running(self):
            raise RuntimeError(f"{what} must not be called while the trainer runs: {remedy}")

    def _nothing_is_left(self, given: Limits) -> bool:
        """Whether the run that is gone on with was finished."""
        before = self._limits.edited(self._shown, Limits.of(self.state))
        if not self._is_resumed or before == Limits():
            return False
        limits = before if given == Limits() else given
        return limits.reached(self._place.progress, self._optimizer_step.steps) is not None

    def _take_up(self, *, is_last_time: bool) -> None:
        """What handlers have drawn or reset meanwhile the other run has not."""
        if self._random is not None:
            for act in self._taking_up:
                act()
            self._random.restore()
            if is_last_time:
                self._random, self._taking_up = None, []
