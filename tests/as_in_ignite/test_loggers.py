"""Ignite's metrics, bars and loggers on both engines: what they show of a run."""

import io
import logging
import re

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import FBResearchLogger
from ignite.handlers import ProgressBar
from ignite.handlers import global_step_from_engine
from ignite.handlers.tensorboard_logger import GradsScalarHandler
from ignite.handlers.tensorboard_logger import OutputHandler
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.handlers.tensorboard_logger import WeightsScalarHandler
from ignite.metrics import Accuracy
from ignite.metrics import Average
from ignite.metrics import BatchWise
from ignite.metrics import EpochMetric
from ignite.metrics import Loss
from ignite.metrics import RunningAverage
from ignite.metrics.metric import RunningBatchWise
from ignite.metrics.metric import RunningEpochWise
from ignite.metrics.metric import SingleEpochRunningBatchWise
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.as_in_ignite.sides import Side
from tests.as_in_ignite.sides import on_both_sides
from tests.as_in_ignite.sides import outputs
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer


def note_metric(engine, name, event):
    """Returns a list that grows by the value of a metric at each event; None without a value."""
    seen = []
    engine.add_event_handler(event, lambda engine: seen.append(engine.state.metrics.get(name)))
    return seen


# Metrics


def test_a_metric_is_computed_for_each_epoch(side):
    engine = side.engine(float)
    Average().attach(engine, "mean")
    before = note_metric(engine, "mean", Events.EPOCH_STARTED)
    after = note_metric(engine, "mean", Events.EPOCH_COMPLETED)
    engine.run(range(4), max_epochs=2)
    assert before == [None, 1.5]
    assert after == [1.5, 1.5]


def test_a_metric_by_batches(side):
    engine = side.engine(float)
    Average().attach(engine, "mean", usage=BatchWise())
    seen = note_metric(engine, "mean", Events.ITERATION_COMPLETED)
    engine.run(range(4))
    assert seen == [0.0, 1.0, 2.0, 3.0]


def test_a_metric_that_is_detached_computes_no_more(side):
    engine, metric = side.engine(float), Average()
    metric.attach(engine, "mean")
    assert metric.is_attached(engine)
    metric.detach(engine)
    assert not metric.is_attached(engine)
    engine.run(range(4))
    assert "mean" not in engine.state.metrics


@pytest.mark.parametrize(("alpha", "means"), [(0.5, [0, 0.5, 1.25]), (0.9, [0, 0.1, 0.29])])
@pytest.mark.parametrize("usage", [SingleEpochRunningBatchWise, RunningBatchWise])
def test_a_running_average_of_outputs(side, alpha, means, usage):
    engine = side.engine(float)
    average = RunningAverage(output_transform=lambda output: output, alpha=alpha)
    average.attach(engine, "loss", usage=usage())
    seen = note_metric(engine, "loss", Events.ITERATION_COMPLETED)
    engine.run(range(3), max_epochs=2)
    assert seen[:3] == pytest.approx(means)
    goes_on = 0 if usage is SingleEpochRunningBatchWise else alpha * means[-1]
    assert seen[3] == pytest.approx(goes_on)


@pytest.mark.parametrize(
    ("usage", "event", "means"),
    [
        (RunningBatchWise, Events.ITERATION_COMPLETED, [1, 2, 5, 3, 3, 5.5]),
        (RunningEpochWise, Events.EPOCH_COMPLETED, [4, 4]),
    ],
    ids=["batches", "epochs"],
)
def test_a_running_average_of_a_metric(side, usage, event, means):
    engine = side.engine(float)
    RunningAverage(Average(), alpha=0.5).attach(engine, "mean", usage=usage())
    seen = note_metric(engine, "mean", event)
    engine.run([1, 3, 8], max_epochs=2)
    assert seen == pytest.approx(means)


def test_metrics_that_depend_on_metrics(side):
    engine = side.engine(float)
    mean = Average()
    (mean * 2 + 1).attach(engine, "scaled")
    engine.run(range(4))
    assert engine.state.metrics == {"scaled": 4.0}


def test_metrics_of_predictions(side):
    engine = side.engine(lambda batch: (torch.tensor([[0.1, 0.9], [0.8, 0.2]]), batch))
    Accuracy().attach(engine, "accuracy")
    Loss(F.cross_entropy).attach(engine, "loss")
    EpochMetric(lambda y_pred, y: float(y.sum())).attach(engine, "sum")
    engine.run([torch.tensor([1, 0]), torch.tensor([1, 1])])
    assert engine.state.metrics["accuracy"] == 0.75
    assert engine.state.metrics["loss"] == pytest.approx(0.554294, abs=1e-6)
    assert engine.state.metrics["sum"] == 3.0


def test_metrics_that_handlers_of_epoch_completed_see(side):
    engine = side.engine(float)
    attached_before = note_metric(engine, "mean", Events.EPOCH_COMPLETED)
    Average().attach(engine, "mean")
    attached_after = note_metric(engine, "mean", Events.EPOCH_COMPLETED)
    engine.run(range(4))
    assert attached_after == [1.5]
    assert attached_before == side.departs(
        "metrics come first at EPOCH_COMPLETED", ignite=[None], ours=[1.5]
    )


def test_the_output_is_the_loss(side):
    made = side.supervised()
    losses = outputs(made.engine)
    made.engine.run(batches_of(3))
    kind = side.departs("outputs are tensors", ignite=float, ours=torch.Tensor)
    assert [type(loss) for loss in losses] == [kind] * 3
    by_hand, model = [], make_model(0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches_of(3):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        by_hand.append(loss.item())
    assert [float(loss) for loss in losses] == pytest.approx(by_hand)


def test_when_gradients_are_available(side):
    made, seen = side.supervised(), []

    def look(engine):
        has_gradients = all(each.grad is not None for each in made.model.parameters())
        seen.append((engine.last_event_name.name, has_gradients))

    events = Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED | Events.COMPLETED
    made.engine.add_event_handler(events, look)
    made.engine.run(batches_of(2))
    later = side.departs("gradients are zeroed within the iteration", ignite=True, ours=False)
    assert seen == [
        ("ITERATION_COMPLETED", True),
        ("ITERATION_COMPLETED", True),
        ("EPOCH_COMPLETED", later),
        ("COMPLETED", later),
    ]


def test_a_tensor_as_a_batch(side):
    made = side.supervised(torch.nn.Linear(4, 4))
    with side.refuses("a batch is a pair"):
        made.engine.run([torch.rand(2, 3, 4)])


# Bars


def bar_text(
    side, batches=4, max_epochs=2, attach=lambda bar, engine: bar.attach(engine), **options
):
    """Returns the text that a progress bar prints for a run on numbers."""
    engine, file = side.engine(float), io.StringIO()
    bar = ProgressBar(file=file, ncols=80, mininterval=0, **options)
    attach(bar, engine)
    engine.run(range(batches), max_epochs=max_epochs)
    return file.getvalue()


def test_a_bar_of_each_epoch(side):
    shown = bar_text(side, persist=True)
    assert "Epoch [1/2]: [4/4] 100%" in shown
    assert "Epoch [2/2]: [4/4] 100%" in shown
    assert "Epoch [1/2]: [2/4]  50%" in shown


def test_a_bar_of_one_epoch_counts_iterations(side):
    assert "Iteration: [4/4] 100%" in bar_text(side, max_epochs=1, persist=True)


def test_a_bar_over_all_epochs(side):
    def attach(bar, engine):
        bar.attach(engine, event_name=Events.EPOCH_COMPLETED, closing_event_name=Events.COMPLETED)

    shown = bar_text(side, attach=attach, max_epochs=3, persist=True)
    assert "Epoch: [3/3] 100%" in shown
    assert "Epoch: [2/3]  67%" in shown


def test_a_bar_shows_metrics_outputs_and_attributes(side):
    def attach(bar, engine):
        engine.state.alpha = 3.5
        RunningAverage(output_transform=lambda output: output, alpha=0.5).attach(engine, "mean")
        bar.attach(
            engine,
            ["mean"],
            output_transform=lambda output: {"last": output},
            state_attributes=["alpha"],
        )

    shown = bar_text(side, attach=attach, max_epochs=1, persist=True)
    assert "mean=2.12" in shown
    assert "last=3" in shown
    assert "alpha=3.5" in shown


def test_a_message_is_written_between_bars(side):
    engine, file = side.engine(), io.StringIO()
    bar = ProgressBar(file=file)
    bar.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: bar.log_message("a message"))
    engine.run(range(2))
    assert file.getvalue().count("a message") == 2


@pytest.mark.parametrize("event", [Events.STARTED, Events.ITERATION_COMPLETED(every=2)])
def test_a_bar_with_events_that_do_not_fit_is_an_error(side, event):
    bar = ProgressBar(file=io.StringIO())
    closing = Events.EPOCH_STARTED if event is Events.STARTED else event
    opening = Events.COMPLETED if event is Events.STARTED else Events.ITERATION_STARTED
    with pytest.raises(ValueError, match=r"[Ee]vent"):
        bar.attach(side.engine(), event_name=opening, closing_event_name=closing)


# TensorBoard


class Writer:
    """A replacement for TensorBoard's writer that keeps the values in memory."""

    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, float(value), step))

    def close(self):
        pass


class Logger(TensorboardLogger):
    """Ignite's logger without TensorBoard's package, which writes files."""

    def __init__(self):
        self.writer = Writer()


def test_a_logger_of_outputs_and_rates(side):
    made, logger = side.supervised(lr=0.25), Logger()
    logger.attach_output_handler(
        made.engine,
        event_name=Events.ITERATION_COMPLETED(every=2),
        tag="training",
        output_transform=lambda loss: {"loss": loss},
    )
    logger.attach_opt_params_handler(
        made.engine, event_name=Events.ITERATION_STARTED(once=3), optimizer=made.optimizer
    )
    losses = outputs(made.engine)
    made.engine.run(batches_of(4))
    assert logger.writer.scalars == [
        ("training/loss", float(losses[1]), 2),
        ("lr/group_0", 0.25, 3),
        ("training/loss", float(losses[3]), 4),
    ]


def test_a_logger_of_validations_takes_the_trainers_epoch(side):
    engine, logger = side.engine(), Logger()
    evaluator = Engine(lambda engine, batch: float(batch))
    Average().attach(evaluator, "mean")
    logger.attach(
        evaluator,
        OutputHandler(
            "validation", metric_names="all", global_step_transform=global_step_from_engine(engine)
        ),
        Events.COMPLETED,
    )
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([1, 2, 6]))
    engine.run(range(4), max_epochs=2)
    assert logger.writer.scalars == [("validation/mean", 3.0, 1), ("validation/mean", 3.0, 2)]


def test_a_logger_of_weights_and_gradients(side):
    made, logger = side.supervised(), Logger()
    logger.attach(
        made.engine,
        WeightsScalarHandler(made.model, whitelist=["0.weight"]),
        Events.EPOCH_COMPLETED,
    )
    logger.attach(
        made.engine,
        GradsScalarHandler(made.model, whitelist=["0.weight"]),
        Events.ITERATION_COMPLETED,
    )
    made.engine.run(batches_of(2))
    *gradients, weight = logger.writer.scalars
    assert [(name, step) for name, _, step in gradients] == [
        ("grads_norm/0/weight", 1),
        ("grads_norm/0/weight", 2),
    ]
    assert weight[0::2] == ("weights_norm/0/weight", 1)
    assert all(value > 0 for _, value, _ in logger.writer.scalars)


# FBResearchLogger


def logged_text(side, **limits):
    """Returns what Ignite's text logger writes about a run, without the times."""
    made, file = side.supervised(lr=0.25), io.StringIO()
    logger = logging.Logger("tests")
    logger.addHandler(logging.StreamHandler(file))
    FBResearchLogger(logger, show_output=True).attach(
        made.engine,
        "Train",
        every=2,
        optimizer=made.optimizer,
        output_transform=lambda loss: {"loss": loss},
        state_attributes=["iteration"],
    )
    made.engine.run(batches_of(4), **limits)
    return re.sub(r"\d+:\d\d:\d\d|\d+\.\d+ s", "TIME", file.getvalue()).splitlines()


def test_the_text_logger_writes_what_it_writes_in_ignite():
    first, line, *_, last = on_both_sides(lambda side: logged_text(side, max_epochs=2))
    assert first == "Train: start epoch [1/2]"
    assert line.startswith("Epoch [1/2]  [2/4]:  ETA: TIME  lr: 0.25000  loss: 0.")
    assert last == "Train: run completed  Total time: TIME"


def test_the_text_logger_of_a_run_of_steps():
    text = logged_text(Side("trainer"), max_steps=8)
    assert text == logged_text(Side("ignite"), max_epochs=2)


# Steps


def test_the_number_of_an_event_is_that_of_its_counter():
    made, seen = Side("trainer").supervised(accumulation=2), []
    evaluator = Side("trainer").evaluator(made.model)
    Validation(evaluator, batches_of(1), every_steps=1).attach(made.engine)
    by_step = global_step_from_engine(made.engine, TrainEvents.STEP_COMPLETED)
    own = global_step_from_engine(made.engine)
    for event in (TrainEvents.STEP_COMPLETED, TrainEvents.VALIDATION_COMPLETED):
        made.engine.add_event_handler(
            event, lambda event: seen.append((event.name, own(None, event))), event
        )
    evaluator.add_event_handler(
        Events.COMPLETED, lambda: seen.append(("COMPLETED", by_step(None, Events.COMPLETED)))
    )
    made.engine.run(batches_of(4))
    assert seen == [
        (name, step)
        for step in (1, 2)
        for name in ("STEP_COMPLETED", "COMPLETED", "VALIDATION_COMPLETED")
    ]


def test_a_rate_that_is_logged_by_step_is_that_of_the_next_step():
    model, rates = make_model(0.0), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = make_trainer(
        model=model, optimizer=optimizer, lr_scheduler=StepLR(optimizer, 1, 0.5), accumulation=2
    )
    optimizer.register_step_pre_hook(
        lambda optimizer, *args: rates.append(optimizer.param_groups[0]["lr"])
    )
    by_step, by_iteration = Logger(), Logger()
    by_step.attach_opt_params_handler(
        trainer, TrainEvents.STEP_COMPLETED, optimizer=trainer.optimizer
    )
    by_iteration.attach_opt_params_handler(
        trainer, Events.ITERATION_STARTED, optimizer=trainer.optimizer
    )
    trainer.run(batches_of(6))
    assert rates == [0.5, 0.25, 0.125]
    assert by_step.writer.scalars == [
        ("lr/group_0", rate, step) for step, rate in enumerate([0.25, 0.125, 0.0625], 1)
    ]
    assert [rate for _, rate, _ in by_iteration.writer.scalars] == [
        rate for rate in rates for _ in range(2)
    ]
