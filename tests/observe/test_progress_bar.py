"""Ignite's progress bar by optimizer steps, on trainers and plain engines."""

import io
import re

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite import handlers
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import OptimizerStep
from ignite_hooks import ProgressBar
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from tests.reference import FakeScaler
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer

STEP = TrainEvents.STEP_COMPLETED
RUN = {"event_name": STEP, "closing_event_name": Events.COMPLETED}
EPOCH = {"event_name": STEP}


class Screen(io.StringIO):
    """A file in which a bar draws itself."""

    @property
    def drawings(self):
        """The words and the numbers of each drawing, without repetitions."""
        found = re.findall(r"([^\r\n\x1b]*\]) +\d+%", self.getvalue())
        return [each for i, each in enumerate(found) if i == 0 or each != found[i - 1]]


def watch(engine, bar_class=ProgressBar, persist=True, desc=None, **options):
    """Attaches a bar, and returns the screen that shows it."""
    screen = Screen()
    words = {} if desc is None else {"desc": desc}
    # With a position, the bar is drawn alike if bars of other tests are still open.
    bar = bar_class(persist=persist, file=screen, mininterval=0, ncols=120, position=0, **words)
    bar.attach(engine, **options)
    return screen


def plain_engine(accumulation):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model = make_model(0.0)
    step = OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1))

    def process(engine, batch):
        x, y = batch
        step.backward(F.mse_loss(model(x), y))

    engine = Engine(process)
    step.attach(engine)
    return engine


RUNS = {
    # the limits of a run with epochs of five batches, two for a step, then what the bar shows
    "max_epochs": ({"max_epochs": 2}, [f"Step: [{n}/6]" for n in range(1, 7)]),
    "max_iters": ({"max_iters": 7}, [f"Step: [{n}/4]" for n in range(1, 5)]),
    "max_steps": ({"max_steps": 5}, [f"Step: [{n}/5]" for n in range(1, 6)]),
}


@pytest.mark.parametrize(("limits", "shown"), RUNS.values(), ids=RUNS)
def test_a_bar_shows_the_steps_of_the_run(limits, shown):
    trainer = make_trainer(batches_of(5), accumulation=2)
    screen = watch(trainer, **RUN)
    trainer.run(**limits)
    assert screen.drawings == shown


def test_a_bar_shows_the_steps_of_each_epoch():
    trainer = make_trainer(batches_of(5), accumulation=2)
    screen = watch(trainer, **EPOCH)
    trainer.run(max_epochs=2)
    assert screen.drawings == [f"Epoch [{e}/2]: [{n}/3]" for e in (1, 2) for n in (1, 2, 3)]


def test_a_bar_of_an_epoch_without_max_epochs_has_its_number():
    trainer = make_trainer(batches_of(2))
    screen = watch(trainer, **EPOCH)
    trainer.run(max_iters=3)
    assert screen.drawings == ["Epoch [1]: [1/2]", "Epoch [1]: [2/2]", "Epoch [2]: [1/2]"]


@pytest.mark.parametrize("data", [list, Repeatable])
@pytest.mark.parametrize("skip_completed", [False, True])
def test_a_bar_of_a_terminated_epoch_shows_what_was_done(data, skip_completed):
    trainer = make_trainer(data(batches_of(5)))
    trainer.add_event_handler(STEP(once=2), lambda: trainer.terminate_epoch(skip_completed))
    screen = watch(trainer, **EPOCH)
    trainer.run()
    total = "5" if data is list else "?"
    assert screen.drawings == [f"Step: [1/{total}]", f"Step: [2/{total}]"]
    assert screen.getvalue().endswith("\n")


def test_a_bar_of_one_epoch_counts_steps():
    trainer = make_trainer(batches_of(2))
    screen = watch(trainer, **EPOCH)
    trainer.run()
    assert screen.drawings == ["Step: [1/2]", "Step: [2/2]"]


@pytest.mark.parametrize("options", [RUN, EPOCH], ids=["run", "epoch"])
def test_a_bar_on_a_plain_engine_is_that_of_a_trainer(options):
    trainer, engine = make_trainer(accumulation=2), plain_engine(2)
    screens = [watch(each, **options) for each in (trainer, engine)]
    for each in (trainer, engine):
        each.run(batches_of(6), max_epochs=2)
    assert screens[0].drawings == screens[1].drawings
    assert len(screens[0].drawings) == 6


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (RUN, ["Step: [3/6]", "Step: [4/6]", "Step: [5/6]", "Step: [6/6]"]),
        (EPOCH, [f"Epoch [{each}]: [{n}/2]" for each in ("2/3", "3/3") for n in (1, 2)]),
    ],
    ids=["run", "epoch"],
)
def test_a_resumed_bar_starts_at_the_step_of_the_checkpoint(tmp_path, options, shown):
    data = batches_of(4)
    saver = make_trainer(data, accumulation=2, checkpoint=SaveCheckpoint(tmp_path))
    watch(saver, **options)
    saver.run(max_steps=2)
    trainer = make_trainer(data, accumulation=2, resume_from=tmp_path)
    screen = watch(trainer, **options)
    trainer.run(max_epochs=3)
    assert screen.drawings == shown
    assert trainer.resume_report.is_exact


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (RUN, ["Step: [3/6]", "Step: [4/6]", "Step: [5/6]", "Step: [6/6]"]),
        (EPOCH, ["Epoch [1/2]: [3/3]", *(f"Epoch [2/2]: [{n}/3]" for n in (1, 2, 3))]),
    ],
    ids=["run", "epoch"],
)
def test_a_bar_resumed_within_an_epoch_knows_what_is_left(tmp_path, options, shown):
    data = batches_of(5)
    saver = make_trainer(data, accumulation=2, checkpoint=SaveCheckpoint(tmp_path))
    saver.run(max_steps=2)
    trainer = make_trainer(data, accumulation=2, resume_from=tmp_path)
    screen = watch(trainer, **options)
    trainer.run(max_epochs=2)
    assert screen.drawings == shown


def test_the_speed_of_a_resumed_bar_counts_no_earlier_step(tmp_path):
    data = batches_of(4)
    make_trainer(data, checkpoint=SaveCheckpoint(tmp_path)).run(max_steps=3)
    trainer, seen = make_trainer(data, resume_from=tmp_path), []
    bar = ProgressBar(file=io.StringIO())
    bar.attach(trainer, **RUN)
    trainer.add_event_handler(STEP, lambda: seen.append((bar.pbar.initial, bar.pbar.n)))
    trainer.run(max_epochs=2)
    assert seen == [(4, n) for n in range(4, 9)]


def test_skipped_steps_are_not_among_the_steps_of_the_run():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = FakeScaler(2)
    trainer = make_trainer(batches_of(4), accelerator=accelerator)
    run, epoch = watch(trainer, **RUN), watch(trainer, **EPOCH)
    trainer.run()
    assert run.drawings == ["Step: [1/4]", "Step: [2/3]", "Step: [3/3]"]
    assert epoch.drawings == ["Step: [1/4]", "Step: [3/4]", "Step: [4/4]"]


def test_a_bar_follows_a_limit_that_changes():
    trainer = make_trainer(batches_of(3))
    screen = watch(trainer, **RUN)

    @trainer.on(Events.ITERATION_STARTED(once=2))
    def extend(engine):
        engine.state.max_epochs = 2

    trainer.run(max_epochs=1)
    assert screen.drawings[:2] == ["Step: [1/3]", "Step: [2/6]"]
    assert screen.drawings[-1] == "Step: [6/6]"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (RUN, ["Step: [1/?]", "Step: [2/?]", "Step: [3/?]", "Step: [4/?]", "Step: [4/4]"]),
        (EPOCH, [f"Epoch [{e}/2]: [{n}]" for e in (1, 2) for n in ("1/?", "2/?", "2/2")]),
    ],
    ids=["run", "epoch"],
)
def test_a_total_that_is_not_known_is_a_question_mark(options, shown):
    trainer = make_trainer(Repeatable(batches_of(2)))
    screen = watch(trainer, **options)
    trainer.run(max_epochs=2)
    assert screen.drawings == shown


def test_a_bar_with_a_filter_ends_with_the_last_step():
    trainer = make_trainer(batches_of(5))
    often = {**RUN, "event_name": STEP(every=3)}
    run, epoch = watch(trainer, **often), watch(trainer, **{**EPOCH, "event_name": STEP(every=3)})
    trainer.run()
    assert run.drawings == epoch.drawings == ["Step: [3/5]", "Step: [5/5]"]


@pytest.mark.parametrize("options", [RUN, EPOCH], ids=["run", "epoch"])
def test_a_bar_of_a_terminated_run_shows_what_was_done(options):
    trainer = make_trainer(batches_of(5))
    trainer.add_event_handler(STEP(once=3), trainer.terminate)
    screen = watch(trainer, **options)
    trainer.run()
    assert screen.drawings == ["Step: [1/5]", "Step: [2/5]", "Step: [3/5]"]
    assert screen.getvalue().endswith("\n")


def test_a_failure_closes_the_bar_and_the_next_run_continues():
    trainer = make_trainer(batches_of(4))
    screen = watch(trainer, **RUN)
    fail = trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), fail:
        trainer.run()
    assert screen.getvalue().endswith("\n")
    trainer.run()
    assert screen.drawings == [f"Step: [{n}/4]" for n in range(1, 5)]


def test_a_new_run_has_a_new_bar():
    trainer = make_trainer(batches_of(2))
    screen = watch(trainer, **RUN)
    for _ in range(2):
        trainer.run()
    assert screen.drawings == ["Step: [1/2]", "Step: [2/2]"] * 2


def test_a_bar_shows_metrics_outputs_and_attributes():
    trainer = make_trainer(batches_of(1))
    trainer.state.alpha = 3.5
    trainer.state.metrics["nested"] = {"a": 1.25}
    screen = watch(
        trainer,
        metric_names="all",
        output_transform=lambda loss: {"last": loss},
        state_attributes=["alpha"],
        desc="Training",
        **RUN,
    )
    trainer.run()
    assert screen.drawings == ["Training: [1/1]"]
    shown = screen.getvalue()
    assert f"nested_a=1.25, last={trainer.state.output:.3g}" in shown
    assert "alpha=3.5" in shown


def test_a_bar_that_does_not_persist_leaves_nothing():
    trainer = make_trainer(batches_of(2))
    screen = watch(trainer, persist=False, **RUN)
    trainer.run()
    assert screen.getvalue().split("\r")[-2].strip() == ""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric_names": "all", "output_transform": lambda loss: {"loss": loss}},
        {"event_name": Events.EPOCH_COMPLETED, "closing_event_name": Events.COMPLETED},
    ],
    ids=["default", "values", "epochs"],
)
def test_at_other_events_the_bar_is_that_of_ignite(options):
    drawings = []
    for bar_class in (ProgressBar, handlers.ProgressBar):
        trainer = make_trainer(batches_of(3))
        screen = watch(trainer, bar_class, **options)
        trainer.run(max_epochs=2)
        drawings.append(screen.drawings)
    assert drawings[0] == drawings[1] != []


@pytest.mark.parametrize(
    ("make_engine", "options", "message"),
    [
        (lambda: Engine(print), RUN, "attach an OptimizerStep first"),
        (make_trainer, {**RUN, "closing_event_name": STEP}, "write Events.COMPLETED"),
        (make_trainer, {**RUN, "closing_event_name": Events.STARTED}, "write Events.COMPLETED"),
    ],
)
def test_wrong_events_are_an_error(make_engine, options, message):
    with pytest.raises(ValueError, match=message):
        ProgressBar().attach(make_engine(), **options)


def test_the_class_of_ignite_does_not_accept_steps():
    with pytest.raises(ValueError, match="STEP_COMPLETED is not in list"):
        handlers.ProgressBar().attach(make_trainer(), **RUN)
