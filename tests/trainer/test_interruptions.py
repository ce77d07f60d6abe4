"""Ctrl-C, other signals and exceptions at any line: the next run ends as the unbroken one."""

import gc
import signal
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from accelerate.state import GradientState
from ignite.engine import Events
from ignite.metrics import Average
from ignite.metrics import Loss
from ignite.metrics import RunningAverage
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

import ignite_hooks
from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import samples
from tests.reference import seed
from tests.reference import weights

PACKAGE = str(Path(ignite_hooks.__file__).parent)
TESTS = str(Path(__file__).parent.parent)
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD)


class Failure(Exception):
    """A failure of any kind."""


def fail():
    raise Failure


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def _restore_signal_handlers():
    """Gives each test Python's own handler of SIGINT, and restores all handlers after it."""
    found = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in found.items():
        signal.signal(number, handler)
    torch.set_grad_enabled(True)


# What is trained


def shuffled():
    """Returns a loader with its own generator, which the sampler uses at the end of a pass too."""
    return DataLoader(
        samples(8), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(3)
    )


DATA = {
    "list": lambda: batches_of(4),
    "shuffled": shuffled,
    "stream": lambda: Repeatable(batches_of(4)),
}


def make(kind, accumulation, scheduler_at="step"):
    """Returns a trainer with every part that can break off, and a submodule in eval mode."""
    seed()
    model = make_model(0.0)
    evaluator = create_supervised_evaluator(model, {"loss": Loss(mse_loss)})
    trainer = make_trainer(
        DATA[kind](),
        accumulation=accumulation,
        model=model,
        lr_scheduler=lambda optimizer: ExponentialLR(optimizer, 0.9),
        scheduler_at=scheduler_at,
        validation=Validation(evaluator, batches_of(1), every_epochs=1, every_steps=3),
    )
    trainer.model.train()
    model[2].eval()
    GradientClipping(max_norm=0.5).attach(trainer)
    Average().attach(trainer, "mean")
    RunningAverage(output_transform=float).attach(trainer, "running")
    trainer.completed, trainer.shown = [], {}

    @trainer.on(Events.EPOCH_COMPLETED)
    def show(engine):
        metrics = engine.state.metrics
        trainer.shown[engine.state.epoch] = float(metrics["mean"]), float(metrics["running"])

    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED,
        lambda engine: trainer.completed.append(engine.state.optimizer_step),
    )
    return trainer


def run(trainer):
    """Runs two epochs."""
    return trainer.run(max_epochs=2)


def process_state():
    """Returns the settings of the process that a run changes and restores."""
    gradient_state = GradientState()
    return {
        "handlers": [signal.getsignal(number) for number in NUMBERS],
        "references": gradient_state.dataloader_references,
        "sync_gradients": gradient_state.sync_gradients,
        "grad": torch.is_grad_enabled(),
    }


def outcome(trainer):
    """Returns everything that must equal the unbroken run."""
    state = trainer.state
    return {
        "weights": weights(trainer.model).tolist(),
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "counters": (state.iteration, state.epoch, state.optimizer_step, state.validation),
        "completed": trainer.completed,
        "loss": state.metrics["val_loss"],
        "shown": trainer.shown,
        "modes": [module.training for module in trainer.model.modules()],
        "gradients": [parameter.grad for parameter in trainer.model.parameters()],
        "random": torch.get_rng_state().tolist(),
        **process_state(),
    }


# Where it breaks off


class Lines:
    """Counts the lines of some code that a call passes, and acts at some of them.

    Python stops tracing when an exception leaves the trace function; ``_go_on`` starts it again for
    the actions that are left.

    Args:
        counts: says of a code object whether its lines count.
        actions: what to do, by the number of the line.
    """

    def __init__(self, counts, actions=()):
        self._counts = counts
        self._actions = dict(actions)
        self.passed = []
        self.acted = []

    def follow(self, call):
        # A collection would call finalizers of earlier runs, from which nothing can be raised.
        gc.disable()
        sys.settrace(self._enter)
        sys.setprofile(self._resume_tracing)
        try:
            return call()
        finally:
            sys.setprofile(None)
            sys.settrace(None)
            gc.enable()

    def _enter(self, frame, event, argument):
        return self._line if self._counts(frame.f_code) else None

    def _resume_tracing(self, frame, event, argument):
        if len(self.acted) < len(self._actions) and sys.gettrace() is None:
            sys.settrace(self._enter)

    def _line(self, frame, event, argument):
        if event == "line":
            self.passed.append((frame.f_code.co_filename, frame.f_lineno))
            action = self._actions.get(len(self.passed))
            if action is not None:
                self.acted.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                action()
        return self._line


def of_package(code):
    return code.co_filename.startswith(PACKAGE)


def of_package_and_libraries(code):
    return not code.co_filename.startswith((TESTS, "<"))


class Sweep:
    """Breaks off equal runs at different lines, and compares how they end after the next run."""

    def __init__(self, counts, *arguments):
        self._counts, self._make = counts, lambda: make(*arguments)
        for _ in range(2):  # the first time, modules are imported and caches filled
            trainer = self._make()
            lines = Lines(counts)
            lines.follow(lambda trainer=trainer: run(trainer))
        self._lines = lines
        trainer = self._make()
        run(trainer)
        self._expected = outcome(trainer)
        self.wrong = {}

    def places(self, share=0, of=1):
        """Yields the numbers of a share of the lines, each at one of its executions."""
        numbers = defaultdict(list)
        for number, place in enumerate(self._lines.passed, 1):
            numbers[place].append(number)
        return sorted(
            times[line % len(times)] for (_, line), times in numbers.items() if line % of == share
        )

    def break_off(self, actions):
        """Returns whether all actions were reached."""
        trainer, lines = self._make(), Lines(self._counts, actions)
        try:
            lines.follow(lambda: run(trainer))
        except (Failure, KeyboardInterrupt):
            pass
        else:
            if lines.acted:
                self.wrong[" ".join(lines.acted)] = ["nothing was raised"]
            return False  # a library has passed fewer lines than the time before
        if len(lines.acted) == len(actions):
            try:
                run(trainer)
                found, expected = outcome(trainer), {**self._expected}
                # Handlers of an event that had begun are not called again.
                shown = expected["shown"]
                expected["shown"] = {epoch: shown[epoch] for epoch in trainer.shown}
                differs = [name for name, value in expected.items() if found[name] != value]
            except Exception as error:
                differs = [repr(error)]
            if differs:
                self.wrong[" ".join(lines.acted)] = differs
        return len(lines.acted) == len(actions)


SETTINGS = [("list", 3, "step"), ("shuffled", 1, "epoch"), ("stream", 3, "validation")]
each_share = pytest.mark.parametrize("share", range(len(SETTINGS)), ids=lambda n: SETTINGS[n][0])


@pytest.mark.exhaustive
@each_share
def test_failure_at_any_line_of_the_package(share):
    sweep = Sweep(of_package, *SETTINGS[share])
    for place in sweep.places(share, of=3):
        assert sweep.break_off({place: fail})
    assert sweep.wrong == {}


@pytest.mark.exhaustive
@each_share
def test_ctrl_c_at_any_line(share):
    sweep = Sweep(of_package_and_libraries, *SETTINGS[share])
    for place in sweep.places(share, of=29):
        sweep.break_off({place: press_ctrl_c})
    assert sweep.wrong == {}


@pytest.mark.exhaustive
@each_share
def test_second_failure_while_a_run_unwinds(share):
    sweep = Sweep(of_package, *SETTINGS[share])
    first = sweep.places()[300 + 200 * share]
    second = first + 1
    while sweep.break_off({first: fail, second: fail}):
        second += 4
    assert sweep.wrong == {}


FUNCTIONS = {
    "the step": {"close_window", "count_step", "complete_step", "zero_grad", "call_due"},
    "the end of an epoch": {"finish", "_leave_pass", "_complete_epoch", "complete_epoch", "call"},
    "a validation": {"restore", "restored", "end", "_validate", "run", "run_due", "_move"},
    "the way out": {"_stand_at_boundary", "roll_back", "drop_window", "close", "_finish_run"},
}


@pytest.mark.parametrize("part", FUNCTIONS)
def test_failure_at_the_lines_that_matter_most(part):
    sweep = Sweep(lambda code: of_package(code) and code.co_name in FUNCTIONS[part], *SETTINGS[0])
    for place in sweep.places(share=2, of=7):
        assert sweep.break_off({place: fail})
    assert sweep.wrong == {}


# Between a step and the end of its epoch


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_failure_after_the_last_batch_ends_its_pass_once(kind, accumulation):
    unbroken, trainer = make(kind, accumulation), make(kind, accumulation)
    run(unbroken)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda engine: fail())
    with pytest.raises(Failure):
        run(trainer)
    run(trainer)
    assert outcome(trainer) == outcome(unbroken)


def test_same_call_continues_a_run_that_failed_at_its_end():
    """Tests a run whose handler has raised the limit of the call."""
    trainer, completed = make("list", 1), []
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: setattr(engine.state, "max_epochs", 3)
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=3), lambda engine: fail())
    trainer.add_event_handler(Events.COMPLETED, completed.append)
    with pytest.raises(Failure):
        run(trainer)
    run(trainer)
    assert (trainer.state.epoch, trainer.state.max_epochs, len(completed)) == (3, 3, 1)


# Within the optimizer's step


class Watched(SGD):
    """Calls ``within`` when the first of its parameters has changed and the others have not."""

    within = staticmethod(lambda step: None)

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1, momentum=0.9)
        self.number = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.number += 1
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters[1:]:
            parameter.grad = None
        super().step()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.within(self.number)
        parameters[0].grad = None
        super().step()


def with_watched_step(within, **options):
    """A trainer whose optimizer calls ``within`` in the middle of each step."""
    model = make_model(0.0)
    optimizer = Watched(model.parameters())
    optimizer.within = within
    options.setdefault("lr_scheduler", lambda optimizer: ExponentialLR(optimizer, 0.9))
    return ignite_hooks.create_supervised_trainer(
        model, optimizer, mse_loss, batches_of(4), **options
    )


def at_step(number, action):
    return lambda step: action() if step == number else None


def result(trainer):
    lr = trainer.optimizer.param_groups[0]["lr"]
    return weights(trainer.model).tolist(), lr, trainer.state.optimizer_step


@pytest.fixture
def unbroken():
    trainer = with_watched_step(lambda step: None)
    trainer.run(max_epochs=2)
    return result(trainer)


def test_ctrl_c_within_a_step_waits_for_its_end(unbroken):
    trainer = with_watched_step(at_step(2, press_ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        trainer.run(max_epochs=2)
    assert (trainer.state.optimizer_step, trainer.lr_scheduler.last_epoch) == (2, 2)
    trainer.run(max_epochs=2)
    assert result(trainer) == unbroken


def test_ctrl_c_in_a_handler_of_the_step_is_not_held_back():
    trainer, seen = with_watched_step(lambda step: None), []

    @trainer.on(TrainEvents.OPTIMIZER_STEP_STARTED | TrainEvents.OPTIMIZER_STEP_COMPLETED)
    def interrupt(engine):
        try:
            press_ctrl_c()
            seen.append("held back")
        except KeyboardInterrupt:
            seen.append("at once")

    trainer.run(max_steps=1)
    assert seen == ["at once"] * 2


def press_twice():
    press_ctrl_c()
    press_ctrl_c()


@pytest.mark.parametrize(
    ("action", "error"), [(press_twice, KeyboardInterrupt), (fail, Failure)], ids=["twice", "fail"]
)
def test_next_run_refuses_a_half_done_step(action, error, tmp_path):
    trainer = with_watched_step(at_step(3, action))
    SaveCheckpoint(tmp_path, every_steps=2).attach(trainer)
    with pytest.raises(error):
        trainer.run(max_epochs=2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"half-way.*make model.*step_00000002"):
            trainer.run(max_epochs=2)


@pytest.mark.filterwarnings("ignore:resumed from")  # the optimizer counts its calls itself
def test_loading_a_checkpoint_repairs_a_half_done_step(tmp_path, unbroken):
    trainer = with_watched_step(at_step(3, fail))
    SaveCheckpoint(tmp_path, every_steps=2).attach(trainer)
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    ResumeCheckpoint(tmp_path).attach(trainer)
    trainer.run(max_epochs=2)
    assert result(trainer) == unbroken


def test_second_ctrl_c_that_raises_nothing_completes_the_step(unbroken):
    signal.signal(signal.SIGINT, lambda number, frame: None)
    trainer = with_watched_step(at_step(2, press_twice))
    trainer.run(max_epochs=1)
    trainer.run(max_epochs=2)
    assert result(trainer) == unbroken


def test_all_held_signals_are_handled_even_if_one_raises():
    seen = []

    def note(number, frame):
        seen.append(number)
        raise Failure

    def send():
        for number in NUMBERS:
            signal.raise_signal(number)

    for number in NUMBERS:
        signal.signal(number, note)
    trainer = with_watched_step(at_step(1, send))
    with pytest.raises(Failure):
        trainer.run()
    assert sorted(seen) == sorted(NUMBERS)
    assert trainer.state.optimizer_step == 1


def test_a_scheduler_that_raised_is_not_moved_again():
    class Failing(ExponentialLR):
        def step(self, *arguments):
            if self.last_epoch == 1:
                self.last_epoch += 1  # half-way
                raise Failure
            super().step(*arguments)

    trainer = with_watched_step(lambda step: None, lr_scheduler=lambda o: Failing(o, 0.9))
    with pytest.raises(Failure):
        trainer.run()
    assert (trainer.state.optimizer_step, trainer.lr_scheduler.last_epoch) == (2, 2)
    trainer.run(max_epochs=1)
    assert (trainer.state.optimizer_step, trainer.lr_scheduler.last_epoch) == (4, 4)


def test_sigterm_within_a_step_saves_that_step(tmp_path):
    trainer = with_watched_step(at_step(2, lambda: signal.raise_signal(signal.SIGTERM)))
    save = SaveCheckpoint(tmp_path)
    save.attach(trainer)
    found = process_state()
    trainer.run(max_epochs=2)
    assert (trainer.stop_reason, save.last_checkpoint.name) == ("SIGTERM", "step_00000002")
    assert process_state() == found


def test_signal_handlers_set_during_a_run_are_held_and_stay():
    def handler(number, frame):
        raise Failure

    class Batches(list):
        """Sets a signal handler when first iterated, as a loader with workers does."""

        def __iter__(self):
            signal.signal(signal.SIGCHLD, handler)
            return super().__iter__()

    trainer = with_watched_step(at_step(2, lambda: signal.raise_signal(signal.SIGCHLD)))
    with pytest.raises(Failure):
        trainer.run(Batches(batches_of(4)))
    assert trainer.state.optimizer_step == 2
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_signal_handler_set_by_an_event_handler_is_used_and_stays():
    seen = []

    def own(number, frame):
        seen.append(number)

    trainer = with_watched_step(at_step(2, press_ctrl_c))
    trainer.add_event_handler(Events.ITERATION_STARTED(once=1), lambda e: signal.signal(2, own))
    trainer.run()
    assert seen == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is own


def test_signal_handlers_are_restored_during_an_interruption():
    trainer = with_watched_step(lambda step: None)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    found = process_state()["handlers"]
    for _ in range(2):
        trainer.run(max_epochs=1)
        assert process_state()["handlers"] == found
    assert trainer.state.optimizer_step == 4


def test_ctrl_c_within_the_step_of_a_nested_trainer(unbroken):
    inner = with_watched_step(at_step(2, press_ctrl_c))
    outer = with_watched_step(lambda step: None)

    @outer.on(Events.ITERATION_STARTED(once=3))
    def run_inner(engine):
        if not inner.state.optimizer_step:
            inner.run(max_epochs=2)

    found = process_state()
    with pytest.raises(KeyboardInterrupt):
        outer.run(max_epochs=2)
    assert (inner.state.optimizer_step, outer.state.optimizer_step) == (2, 2)
    assert process_state() == found
    for trainer in (outer, inner):
        trainer.run(max_epochs=2)
        assert result(trainer) == unbroken


def test_a_run_in_another_thread_holds_back_nothing():
    arrived, may_go_on = threading.Event(), threading.Event()

    def wait():
        arrived.set()
        may_go_on.wait()

    trainer = with_watched_step(at_step(2, wait))
    thread = threading.Thread(target=trainer.run)
    thread.start()
    arrived.wait()
    try:
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    finally:
        may_go_on.set()
        thread.join()
    assert trainer.state.optimizer_step == 4
