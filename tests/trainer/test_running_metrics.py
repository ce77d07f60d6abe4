"""Ignite's metrics when a run continues in the middle of an epoch, in the same process."""

import pytest
import torch
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import Average
from ignite.metrics import EpochMetric
from ignite.metrics import Metric
from ignite.metrics import MetricGroup
from ignite.metrics import RunningAverage
from ignite.metrics.metric import RunningBatchWise

from ignite_hooks import TrainEvents
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer


class Failure(Exception):
    pass


def raise_failure(engine):
    raise Failure


class Sizes(Metric):
    """A metric of a user, which declares no state and changes it in place."""

    def reset(self):
        self.sizes, self.seen, self.total = {}, [], torch.zeros(1)

    def update(self, output):
        self.seen.append(round(output, 6))
        self.sizes[len(self.seen)] = output
        self.total += output

    def compute(self):
        return sum(self.sizes.values()) + len(self.seen) + float(self.total)


def all_losses(predictions, targets):
    return float(predictions.sum())


def as_pair(loss):
    return loss.reshape(1, 1), loss.reshape(1, 1)


METRICS = {
    "mean": lambda: Average(),
    "running": lambda: RunningAverage(output_transform=float),
    "all values": lambda: EpochMetric(all_losses, output_transform=as_pair, check_compute_fn=False),
    "group": lambda: MetricGroup({"one more": 1 + Average()}),
    "sum of two": lambda: Average() + Average(output_transform=lambda loss: 2 * loss),
    "a user's": lambda: Sizes(output_transform=float),
}


def watched(accumulation, **options):
    """Returns a trainer with all metrics, and a log of their values at the end of each epoch."""
    trainer, shown = make_trainer(batches_of(7), accumulation=accumulation, **options), []
    for name, make in METRICS.items():
        make().attach(trainer, name)
    Average().attach(trainer, "run", usage=RunningBatchWise())
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: shown.append({**engine.state.metrics})
    )
    return trainer, shown


def unbroken(accumulation, **options):
    trainer, shown = watched(accumulation, **options)
    trainer.run(max_epochs=2)
    return shown


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("number", [1, 3, 5, 6, 7, 8, 12, 14])
def test_metrics_continue_after_a_stop(number, accumulation):
    trainer, shown = watched(accumulation)
    stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=number), Engine.terminate)
    trainer.run(max_epochs=2)
    stop.remove()
    if len(shown) < 2:
        trainer.run()
    assert shown == unbroken(accumulation)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(
    "event",
    [
        Events.GET_BATCH_COMPLETED,
        Events.ITERATION_STARTED,
        TrainEvents.MODEL_FORWARD_COMPLETED,
        TrainEvents.OPTIMIZER_STEP_STARTED,
        TrainEvents.OPTIMIZER_STEP_COMPLETED,
        Events.ITERATION_COMPLETED,
        TrainEvents.STEP_COMPLETED,
        Events.EPOCH_STARTED,
        Events.EPOCH_COMPLETED,
    ],
    ids=lambda event: event.name,
)
@pytest.mark.parametrize("comes_first", [True, False])
def test_metrics_continue_after_a_failure(event, accumulation, comes_first):
    def attach(trainer):
        calls = []

        @trainer.on(event)
        def fail_sometimes(engine):
            calls.append(engine.state.iteration)
            if len(calls) in (2, 5, 6):
                raise Failure

    trainer, shown = make_trainer(batches_of(7), accumulation=accumulation), []
    if comes_first:
        attach(trainer)
    for name, make in METRICS.items():
        make().attach(trainer, name)
    if not comes_first:
        attach(trainer)
    for _ in range(5):
        try:
            trainer.run(max_epochs=2)
        except Failure:
            continue
        shown.append({**trainer.state.metrics})
        break
    expected = unbroken(accumulation)[-1]
    expected.pop("run")
    assert shown == [expected]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_metrics_continue_after_runs_that_fail_early(accumulation):
    """Tests that a reset at STARTED and EPOCH_STARTED is undone by then."""
    trainer, shown = watched(accumulation)
    stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), Engine.terminate)
    trainer.run(max_epochs=2)
    stop.remove()

    def fail_once_at(event):
        def fail(engine):
            failing.remove()
            raise Failure

        failing = trainer.add_event_handler(event, fail)

    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.GET_BATCH_STARTED):
        fail_once_at(event)
        with pytest.raises(Failure):
            trainer.run()
    trainer.run()
    assert shown == unbroken(accumulation)


def test_metrics_are_complete_when_step_completed_is_made_up():
    trainer, seen = make_trainer(batches_of(4)), []
    calls = iter([False, True])

    @trainer.on(Events.ITERATION_COMPLETED)
    def fail(engine):
        if next(calls, False):
            raise Failure

    Sizes(output_transform=float).attach(trainer, "sizes", usage=RunningBatchWise())
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, lambda engine: seen.append(engine.state.metrics["sizes"])
    )
    with pytest.raises(Failure):
        trainer.run()
    trainer.run()
    other, expected = make_trainer(batches_of(4)), []
    Sizes(output_transform=float).attach(other, "sizes", usage=RunningBatchWise())
    other.add_event_handler(
        TrainEvents.STEP_COMPLETED,
        lambda engine: expected.append(engine.state.metrics["sizes"]),
    )
    other.run()
    assert seen == expected


def test_a_new_run_resets_metrics():
    trainer, shown = watched(3)
    stop = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), Engine.terminate)
    trainer.run(max_epochs=2)
    stop.remove()
    trainer.state.max_epochs = None
    trainer.model.load_state_dict(make_model(0.0).state_dict())
    trainer.optimizer.state.clear()
    trainer.run(max_epochs=2)
    assert shown == unbroken(3)


def test_a_metric_attached_between_runs_sees_the_next_batches():
    trainer = make_trainer(batches_of(4))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate)
    trainer.run()
    metric = Sizes(output_transform=float)
    metric.attach(trainer, "sizes")
    trainer.run()
    assert len(metric.seen) == 2


def test_a_metric_attached_after_an_iteration_did_not_miss_it():
    trainer, metric = make_trainer(batches_of(4)), Sizes(output_transform=float)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=2))
    def attach_and_fail(engine):
        metric.attach(engine, "sizes")
        raise Failure

    with pytest.raises(Failure):
        trainer.run()
    metric.reset()
    trainer.run()
    assert len(metric.seen) == 2


def test_metrics_survive_a_failure_in_a_window_of_one_batch():
    """Trains seven batches in windows of three: the dropped window of one batch was not noted."""
    trainer, shown = watched(3)

    def fail(engine):
        failing.remove()
        raise Failure

    failing = trainer.add_event_handler(Events.ITERATION_STARTED(once=7), fail)
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    trainer.run()
    assert shown == unbroken(3)


def test_a_missed_batch_is_repeated_if_its_update_fails():
    trainer, failing = make_trainer(batches_of(4)), iter([False, True, True])

    def transform(output):
        if next(failing, False):
            raise Failure
        return float(output)

    first, second = Sizes(output_transform=float), Sizes(output_transform=transform)
    breaking = trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), raise_failure)
    first.attach(trainer, "first")
    second.attach(trainer, "second")
    with pytest.raises(Failure):
        trainer.run()
    breaking.remove()
    with pytest.raises(Failure):  # the first has been shown the batch, the second breaks off
        trainer.run()
    with pytest.raises(Failure):
        trainer.run()
    trainer.run()
    assert len(first.seen) == len(second.seen) == 4
