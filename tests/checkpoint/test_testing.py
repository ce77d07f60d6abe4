import copy
import itertools
import tempfile
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from ignite.engine import Events
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import assert_resumable
from ignite_hooks.checkpoint.testing import RunRecorder
from ignite_hooks.events import TrainEvents
from tests import reference
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import seed


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A temporary directory that must be empty after the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.glob("ignite_hooks*")) == []


def make_trainer(data=None, number=1):
    seed(number)
    model = make_model(dropout=0.5)
    return create_supervised_trainer(
        model,
        torch.optim.Adam(model.parameters(), lr=0.01),
        torch.nn.functional.mse_loss,
        DataLoader(Noisy(10), 2, shuffle=True) if data is None else data,
        lr_scheduler=lambda optimizer: StepLR(optimizer, 2, gamma=0.7),
    )


class Fading:
    """Makes each step smaller than the one before, by a count that it keeps."""

    def __init__(self, trainer):
        self.steps = 0
        self.optimizer = trainer.optimizer

    def __call__(self):
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 / self.steps


class FadingWithState(Fading):
    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state_dict):
        self.steps = state_dict["steps"]


def faded(kind):
    trainer = make_trainer()
    trainer.add_event_handler(Events.ITERATION_STARTED, kind(trainer))
    return trainer


def test_a_training_that_can_be_resumed_passes():
    assert_resumable(make_trainer, max_steps=8)


def test_nondeterministic_training_is_reported_before_resuming():
    numbers = itertools.count()
    with pytest.raises(AssertionError, match="two runs from scratch are not the same, because the"):
        assert_resumable(lambda: make_trainer(number=next(numbers)), max_steps=4)


def test_handler_with_unsaved_state_is_reported_where_it_shows():
    expected = r"resumed at step 1, model\.0\.weight after the step of iteration 2 differs from"
    with pytest.raises(AssertionError, match=expected):
        assert_resumable(lambda: faded(Fading), max_steps=8)


def test_handler_with_saved_state_passes():
    assert_resumable(lambda: faded(FadingWithState), max_steps=8)


class Queue:
    """Data that continue in each pass where the last one ended, and have no state_dict."""

    def __init__(self):
        self.batches = itertools.cycle(batches_of(7))

    def __iter__(self):
        return itertools.islice(self.batches, 5)


def test_unsaved_data_state_is_found_by_the_batches():
    with pytest.raises(AssertionError, match="resumed at step 6, the batch of iteration 7 differs"):
        assert_resumable(lambda: make_trainer(Queue()), max_steps=8, stops=[6])


def test_a_misplaced_draw_is_found_by_the_generators():
    starts = itertools.count()

    def make():
        trainer = make_trainer(batches_of(5))
        draws = 1 + (next(starts) > 1)
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: torch.rand(draws))
        return trainer

    with pytest.raises(AssertionError, match="the random generators of iteration 2 differs"):
        assert_resumable(make, max_steps=4, stops=[1])


class Drawing(torch.nn.Module):
    """A module that draws from its own generator, without an effect on the weights."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rng = inner, torch.Generator().manual_seed(3)

    def forward(self, x):
        torch.rand(1, generator=self.rng)
        return self.inner(x)


def drawing(draw=lambda trainer: None, **options):
    seed(1)
    model = Drawing(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.nn.functional.mse_loss
    trainer = create_supervised_trainer(model, optimizer, loss, batches_of(5), **options)
    draw(trainer)
    return trainer


def test_a_generator_of_the_model_is_compared():
    assert_resumable(drawing, max_steps=4, stops=[2])
    starts = itertools.count()

    def draw(trainer):
        number = 1 + (next(starts) > 1)

        @trainer.on(Events.ITERATION_STARTED)
        def draw_more():
            torch.rand(number, generator=trainer.model.rng)

    with pytest.raises(AssertionError, match="the random generators of iteration 3 differs"):
        assert_resumable(lambda: drawing(draw), max_steps=4, stops=[2])


def test_an_object_in_also_is_compared(tmp_path):
    starts = itertools.count()

    def make(change):
        tally = FadingWithState(SimpleNamespace(optimizer=None))
        also, options = {"tally": tally}, {"on_signals": (), "at_end": False, "every_steps": 99}
        trainer = drawing(checkpoint=SaveCheckpoint(tmp_path / "own", also=also, **options))
        number = 1 + (change and next(starts) > 1)

        @trainer.on(Events.ITERATION_STARTED)
        def count():
            tally.steps += number

        return trainer

    assert_resumable(lambda: make(False), max_steps=4, stops=[2])
    with pytest.raises(AssertionError, match="the state of tally of iteration 3 differs"):
        assert_resumable(lambda: make(True), max_steps=4, stops=[2])


def test_resumed_run_that_ends_too_early_is_reported():
    starts = itertools.count()

    def make():
        trainer = make_trainer()
        if next(starts) > 1:
            trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), trainer.terminate)
        return trainer

    with pytest.raises(AssertionError, match=r"the last iteration \(4\) differs"):
        assert_resumable(make, max_steps=8, stops=[2])


@pytest.mark.parametrize("is_named", [True, False])
def test_objects_named_by_own_checkpoints_are_saved_too(tmp_path_factory, is_named):
    folder = tmp_path_factory.mktemp("own")

    def make():
        trainer = make_trainer()
        fading = FadingWithState(trainer) if is_named else Fading(trainer)
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: fading())
        also = {"fading": fading} if is_named else None
        SaveCheckpoint(folder, every_steps=4, at_end=False, also=also).attach(trainer)
        return trainer

    if is_named:
        assert_resumable(make, max_steps=6)
    else:
        with pytest.raises(AssertionError, match="resumed at step 1"):
            assert_resumable(make, max_steps=6)


def test_stops_are_five_by_default_or_as_given(monkeypatch):
    resumed = []

    def make():
        trainer = make_trainer()
        trainer.add_event_handler(Events.STARTED, lambda: resumed.append(trainer.state.start_step))
        return trainer

    assert_resumable(make, max_steps=10)
    assert resumed == [0, 0, 1, 3, 5, 7, 9]
    resumed.clear()
    assert_resumable(make, max_steps=10, stops=[5, 10, 2, 5])
    assert resumed == [0, 0, 2, 5]  # a finished run is not run again


@pytest.mark.parametrize("stops", [[], [0], [3, 9]])
def test_stops_outside_the_run_are_refused(stops):
    with pytest.raises(ValueError, match=r"`stops` must be steps from 1 to `max_steps`.* is 8"):
        assert_resumable(make_trainer, max_steps=8, stops=stops)


def test_a_number_of_steps_is_needed():
    with pytest.raises(ValueError, match="`max_steps` must be an integer >= 1, got 0"):
        assert_resumable(make_trainer, max_steps=0)


def test_run_of_one_step_can_be_checked():
    assert_resumable(make_trainer, max_steps=1)


def test_an_error_of_the_training_is_raised_unchanged():
    def make():
        trainer = make_trainer()
        trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: 1 // 0)
        return trainer

    with pytest.raises(ZeroDivisionError):
        assert_resumable(make, max_steps=8)


def slowed(trainer):
    for group in trainer.optimizer.param_groups:
        group["lr"] *= 0.5


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED])
def test_rates_set_at_run_start_are_set_once_on_resume(event):
    def make():
        trainer = make_trainer()
        trainer.add_event_handler(event, slowed)
        return trainer

    assert_resumable(make, max_steps=8)


def test_the_state_of_a_handler_is_compared_too():
    class Forgetful(FadingWithState):
        def __call__(self):
            self.steps += 1

        def load_state_dict(self, state_dict):
            pass

    with pytest.raises(AssertionError, match="the state of Forgetful of iteration 2 differs"):
        assert_resumable(lambda: faded(Forgetful), max_steps=4)


def test_a_trainer_that_has_resumed_already_is_refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    save = SaveCheckpoint(folder)
    trainer = make_trainer()
    save.attach(trainer)
    trainer.run(max_steps=2)

    def make():
        trainer = make_trainer()
        ResumeCheckpoint(folder).attach(trainer)
        return trainer

    with pytest.raises(ValueError, match=r"has not resumed, got one that has resumed.*leave out"):
        assert_resumable(make, max_steps=4)


def test_an_engine_that_is_not_a_trainer_is_refused():
    with pytest.raises(TypeError, match="`make_trainer` must make a trainer, got Engine"):
        assert_resumable(lambda: Engine(lambda engine, batch: None), max_steps=4)


# The records that are compared


def recorded(*, change=None, at=3, **options):
    trainer = reference.make_trainer(lr_scheduler=lambda optimizer: StepLR(optimizer, 2), **options)
    if change is not None:
        event, callback = change
        trainer.add_event_handler(event(once=at), lambda: callback(trainer))
    recorder = RunRecorder(trainer)
    torch.manual_seed(5)
    trainer.run(batches_of(5))
    return recorder


def test_two_equal_runs_have_no_difference():
    assert recorded().first_difference(recorded()) is None


def test_every_iteration_is_recorded_completely():
    recorder = recorded()
    assert list(recorder.iterations) == [1, 2, 3, 4, 5]
    for digests in recorder.iterations.values():
        assert list(digests)[:4] == [
            "the place (epoch, step)",
            "the batch",
            "the random generators",
            "the loss",
        ]
        assert list(digests)[4:] == [
            "model.0.weight after the step",
            "model.0.bias after the step",
            "model.3.weight after the step",
            "model.3.bias after the step",
            "the optimizer's state",
            "the scheduler's state",
        ]


def differing(what, iteration=3):
    """Returns the first difference of two records that differ in one digest."""
    recorder = recorded()
    other = copy.copy(recorder)
    other.iterations = copy.deepcopy(recorder.iterations)
    other.iterations[iteration][what] = "another"
    return recorder.first_difference(other)


@pytest.mark.parametrize("what", list(recorded().iterations[1]))
def test_the_first_difference_is_named(what):
    assert differing(what) == f"{what} of iteration 3"


def test_only_common_iterations_are_compared():
    one, other = recorded(), recorded()
    del one.iterations[2]
    other.iterations[2] = {}
    assert one.first_difference(other) is None


def test_a_run_that_ends_before_a_stop_is_refused():
    def make():
        trainer = make_trainer()
        trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=3), trainer.terminate)
        return trainer

    with pytest.raises(ValueError, match=r"`stops` .* the run ended after step 3 of max_steps=8"):
        assert_resumable(make, max_steps=8)
