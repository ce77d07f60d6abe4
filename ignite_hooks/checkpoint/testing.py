"""A check for users' own tests: a run that is interrupted and resumed must have the same result.

``assert_resumable`` is the check. A ``RunRecorder`` computes digests (hashes) of the batch, the
parameters and so on in each iteration of a run. ``assert_resumable`` compares the digests of two
runs.
"""

import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.handler_objects import handlers_with_state
from ignite_hooks.checkpoint.object_state import StatefulObject
from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.checkpoint.resume import ResumeCheckpoint
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.rules import check_count
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.random_state import GENERATOR_CLASSES
from ignite_hooks.data.random_state import GeneratorState
from ignite_hooks.data.random_state import RandomState
from ignite_hooks.events import TrainEvents

__all__ = ["RunRecorder", "assert_resumable"]

_DEFAULT_STOPS = 5
Digests = dict[str, str]


def assert_resumable(
    make_trainer: Callable[[], Engine], max_steps: int, *, stops: Iterable[int] | None = None
) -> None:
    """Trains with and without an interruption, and compares the two runs bit by bit.

    ::

        def test_my_training_can_be_resumed():
            assert_resumable(make_trainer, max_steps=20)

    A first trainer runs to the end without an interruption. A second trainer also runs to the end,
    and saves a checkpoint at each of ``stops``. From each of these checkpoints a new trainer
    resumes and runs to the end. In each iteration the function compares the position, the batch,
    the random generators, the loss, every parameter and buffer, and the states of the optimizer,
    the scheduler and the handlers. The check finds, for example, data with unsaved state, a handler
    with unsaved state that changes the result, or a seed that is set in the wrong place.

    Args:
        make_trainer: builds the trainer and its data as the training script does, and seeds the
            random generators itself. The function is called several times, and must build the same
            trainer each time. If it attaches a ``SaveCheckpoint``, the objects in the ``also`` of
            this handler are saved and resumed too.
        max_steps: the number of committed optimizer steps to train for, preferably more than an
            epoch has. A step is committed if it has changed the parameters.
        stops: the steps to resume from. By default there are five, spread evenly from the first
            step to the last but one.

    Raises:
        AssertionError: the runs differ; the message names the first difference.
        TypeError: ``make_trainer`` does not return a trainer.
        ValueError: a stop is not between 1 and ``max_steps``, or the run ends before a stop,
            or ``make_trainer`` returns a trainer that has resumed already.
    """
    check_count("max_steps", max_steps, "it says how long to train")
    stops = _checked_stops(max_steps, stops)
    ranks = Ranks()
    directory = Path(ranks.call_on_rank_0(lambda: tempfile.mkdtemp(prefix="ignite_hooks-")))
    try:
        unbroken = _train(_make_checked(make_trainer), max_steps)
        saved = _train(_add_saves(_make_checked(make_trainer), directory, stops), max_steps)
        # The two runs from scratch are compared first. If these differ, a resumed run would differ
        # too, even if the resume were correct.
        if difference := saved.first_difference(unbroken):
            raise AssertionError(
                f"two runs from scratch are not the same, because {difference} differs: seed all "
                "random generators in make_trainer, before the model is made"
            )
        if stops[-1] > saved.steps:
            raise ValueError(
                f"`stops` must be steps that the run reaches, got {stops}, and the run ended after "
                f"step {saved.steps} of max_steps={max_steps}: give max_steps={saved.steps}, or "
                "end the run later"
            )
        for stop in stops:
            resumed = _train(_resume_at(_make_checked(make_trainer), directory, stop), max_steps)
            difference = resumed.first_difference(unbroken)
            # A resumed run without the last iteration has ended too early. A run that resumes at
            # the last step is an exception, because no iteration follows this step.
            missing = max(unbroken.iterations) not in resumed.iterations
            if difference is None and missing and stop < unbroken.steps:
                last = max(resumed.iterations, default="none")
                difference = f"the last iteration ({last})"
            if difference:
                raise AssertionError(
                    f"resumed at step {stop}, {difference} differs from the unbroken run"
                )
    finally:
        ranks.gather(None)  # waits until no rank reads the directory any more
        if ranks.is_rank_0:
            shutil.rmtree(directory)


class RunRecorder:
    """Records digests of the values in each iteration of a run, for a comparison with another run.

    Args:
        trainer: the trainer, with all its handlers attached. The recorder adds its own event
            handlers last, so that they are called after the others.

    Attributes:
        iterations: maps the number of an iteration to its digests. The digests are a dict that maps
            the name of a recorded value, for example "the loss", to the digest of the value.
    """

    def __init__(self, trainer: TrainingEngine) -> None:
        self.iterations: dict[int, Digests] = {}
        self._trainer = trainer
        trainer.add_event_handler(Events.ITERATION_STARTED, self._record_start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._record_end)

    @property
    def steps(self) -> int:
        """The number of committed optimizer steps of the trainer."""
        return int(self._trainer.state.optimizer_step)

    def first_difference(self, other: "RunRecorder") -> str | None:
        """Returns the first difference between two runs, as a text for a message.

        Compares only the iterations that occur in both runs. Returns None if these are equal.
        """
        for iteration in sorted(self.iterations.keys() & other.iterations.keys()):
            mine, theirs = self.iterations[iteration], other.iterations[iteration]
            for what, value in theirs.items():
                if mine.get(what) != value:
                    return f"{what} of iteration {iteration}"
        return None

    def _record_start(self) -> None:
        state = self._trainer.state
        trainer = self._trainer
        generators = RandomState.capture(trainer.accelerator.device, trainer.generators)
        self.iterations[state.iteration] = {
            "the place (epoch, step)": str((state.epoch, state.optimizer_step)),
            "the batch": digest_of(state.batch),
            "the random generators": digest_of(generators.state_dict()),
        }

    def _record_end(self) -> None:
        trainer = self._trainer
        digests = self.iterations[trainer.state.iteration]
        digests["the loss"] = digest_of(trainer.state.loss)
        for module_name, module in trainer.modules.items():
            for name, value in module.state_dict().items():
                digests[f"{module_name}.{name} after the step"] = digest_of(value)
        digests["the optimizer's state"] = digest_of(trainer.optimizer.state_dict())
        if trainer.lr_scheduler is not None:
            digests["the scheduler's state"] = digest_of(trainer.lr_scheduler.state_dict())
        also = _saved_objects(trainer)
        for name, each in {**handlers_with_state(trainer, also.values()), **also}.items():
            digests[f"the state of {name}"] = digest_of(StatefulObject(each, trainer).state_dict())


def _checked_stops(max_steps: int, stops: Iterable[int] | None) -> list[int]:
    if stops is None:
        last = max(max_steps - 1, 1)
        intervals = _DEFAULT_STOPS - 1
        return sorted({1 + (last - 1) * k // intervals for k in range(_DEFAULT_STOPS)})
    found = sorted(set(stops))
    if not found or found[0] < 1 or found[-1] > max_steps:
        raise ValueError(
            f"`stops` must be steps from 1 to `max_steps`, which is {max_steps}, got {found}: "
            "leave `stops` out to resume from five steps"
        )
    return found


def _make_checked(make_trainer: Callable[[], Engine]) -> Engine:
    """Makes a trainer; raises an error if the result is not a trainer, or has already resumed."""
    engine = trainer = make_trainer()
    if not is_trainer(trainer):
        raise TypeError(
            f"`make_trainer` must make a trainer, got {type(engine).__name__}: make it with "
            "create_supervised_trainer"
        )
    if trainer.resume_report is not None:
        raise ValueError(
            "`make_trainer` must make a trainer that has not resumed, got one that has resumed "
            f"from {trainer.resume_report.checkpoint}: leave out resume_from"
        )
    return engine


def _train(trainer: Engine, max_steps: int) -> RunRecorder:
    assert is_trainer(trainer)  # _make_checked() has refused all others
    recorder = RunRecorder(trainer)
    with warnings.catch_warnings():
        # A resume that is not exact warns. The warning is ignored, because the comparison shows
        # whether the result differs.
        warnings.filterwarnings("ignore", "resumed from")
        # The temporary directory has the checkpoints of several runs, but all belong to this check.
        warnings.filterwarnings("ignore", ".* checkpoints of other runs")
        # A handler, such as early stopping, may end a run at the step of a checkpoint. A trainer
        # that resumes from this checkpoint trains nothing, and warns.
        warnings.filterwarnings("ignore", "nothing is trained")
        trainer.run(max_steps=max_steps)
    return recorder


def _add_saves(trainer: Engine, directory: Path, stops: list[int]) -> Engine:
    """Attaches a ``SaveCheckpoint`` that saves at the stops, and returns the trainer."""
    save = SaveCheckpoint(
        directory, at_end=False, keep_last="all", on_signals=(), also=_saved_objects(trainer)
    )
    save.attach(trainer, TrainEvents.STEP_COMPLETED(event_filter=lambda _, step: step in stops))
    return trainer


def _saved_objects(trainer: AnyEngine) -> dict[str, Any]:
    """Returns the objects in the ``also`` of all ``SaveCheckpoint`` handlers, by name.

    Random generators are wrapped in objects that have a ``state_dict``.
    """
    handlers = attached_handlers(trainer, SaveCheckpoint)
    also = {name: each for handler in handlers for name, each in (handler.also or {}).items()}
    return {
        name: GeneratorState(each) if isinstance(each, GENERATOR_CLASSES) else each
        for name, each in also.items()
    }


def _resume_at(trainer: Engine, directory: Path, stop: int) -> Engine:
    """Makes a trainer resume from the checkpoint of a step, and returns the trainer."""
    ResumeCheckpoint(directory / f"step_{stop:08d}").attach(trainer)
    # A real resume takes place in a new process, which may draw random numbers before the run
    # begins. Such draws must not change the result, so some are made here too.
    torch.rand(1), np.random.rand(), random.random()
    return trainer
