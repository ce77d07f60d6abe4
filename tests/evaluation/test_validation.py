import dataclasses
import functools
import gc
import random
import weakref
from contextlib import closing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import GradientState
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from ignite.engine import Engine
from ignite.engine import Events
from ignite.engine import State
from ignite.engine import create_supervised_evaluator as create_ignite_evaluator
from ignite.metrics import Loss
from ignite.metrics import MeanSquaredError
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import Subset

from ignite_hooks import DataFeed
from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.evaluation.validation import ValidationSchedule
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import seed


class Failure(Exception):
    pass


class RecordingEvaluator:
    """A callable without argument that counts its calls and returns the count as a metric."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"calls": self.calls}


def nothing():
    return None


def iterations_of_event(engine, event=TrainEvents.VALIDATION_STARTED):
    """Returns a list that grows by (epoch, iteration, steps) at each ``event``."""
    seen = []
    engine.add_event_handler(
        event,
        lambda engine: seen.append(
            (engine.state.epoch, engine.state.iteration, engine.state.optimizer_step)
        ),
    )
    return seen


def modes(model):
    return [module.training for module in model.modules()]


def mse_evaluator(model, accelerator=None):
    accelerator = accelerator or Accelerator(cpu=True)
    return create_supervised_evaluator(model, {"mse": MeanSquaredError()}, accelerator=accelerator)


def ignites_evaluator(model, accelerator=None):
    return create_ignite_evaluator(model, {"mse": MeanSquaredError()})


EVALUATORS = pytest.mark.parametrize("make_evaluator", [mse_evaluator, ignites_evaluator])


# Schedules: three steps an epoch, of two batches each.


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every_steps": 1}, [(1, 2, 1), (1, 4, 2), (1, 6, 3), (2, 8, 4), (2, 10, 5), (2, 12, 6)]),
        ({"every_steps": 2}, [(1, 4, 2), (2, 8, 4), (2, 12, 6)]),
        ({"every_steps": 3}, [(1, 6, 3), (2, 12, 6)]),
        ({"every_steps": 7}, []),
        ({"every_epochs": 1}, [(1, 6, 3), (2, 12, 6)]),
        ({"every_epochs": 2}, [(2, 12, 6)]),
        ({"every_epochs": 3}, []),
        ({"at_start": True}, [(0, 0, 0)]),
        ({"every_steps": 2, "every_epochs": 1}, [(1, 4, 2), (1, 6, 3), (2, 8, 4), (2, 12, 6)]),
        ({"every_steps": 3, "every_epochs": 1}, [(1, 6, 3), (2, 12, 6)]),
        ({"every_steps": 4, "at_start": True}, [(0, 0, 0), (2, 8, 4)]),
        ({"every_epochs": 2, "at_start": True}, [(0, 0, 0), (2, 12, 6)]),
        (
            {"every_steps": 6, "every_epochs": 1, "at_start": True},
            [(0, 0, 0), (1, 6, 3), (2, 12, 6)],
        ),
    ],
)
def test_validates_on_its_schedules_and_once_where_two_are_due(schedule, expected):
    evaluate = RecordingEvaluator()
    trainer = make_trainer(
        batches_of(6), accumulation=2, validation=Validation(evaluate, **schedule)
    )
    seen = iterations_of_event(trainer)
    trainer.run(max_epochs=2)
    assert seen == expected
    assert evaluate.calls == trainer.state.validation == len(expected)


@settings(max_examples=30, deadline=None)
@given(
    batches=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    epochs=st.integers(1, 3),
    every_steps=st.none() | st.integers(1, 5),
    every_epochs=st.none() | st.integers(1, 3),
)
def test_validations_occur_exactly_when_schedules_are_due(
    batches, accumulation, epochs, every_steps, every_epochs
):
    if every_steps is None and every_epochs is None:
        return
    trainer = make_trainer(
        batches_of(batches),
        accumulation=accumulation,
        validation=Validation(nothing, every_steps=every_steps, every_epochs=every_epochs),
    )
    seen = iterations_of_event(trainer)
    trainer.run(max_epochs=epochs)
    in_epoch = -(-batches // accumulation)
    expected = [
        (step - 1) // in_epoch + 1
        for step in range(1, epochs * in_epoch + 1)
        if (every_steps and step % every_steps == 0)
        or (every_epochs and step % in_epoch == 0 and step // in_epoch % every_epochs == 0)
    ]
    assert [epoch for epoch, _, _ in seen] == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_steps": 2}, [(1, 4, 2)]),
        ({"max_steps": 6}, [(1, 4, 2), (2, 8, 4), (2, 12, 6)]),
        ({"max_iters": 5}, [(1, 4, 2)]),
        ({"max_iters": 4}, [(1, 4, 2)]),
    ],
)
def test_validates_at_the_step_that_ends_the_run(limits, expected):
    trainer = make_trainer(
        batches_of(6), accumulation=2, validation=Validation(nothing, every_steps=2)
    )
    seen = iterations_of_event(trainer)
    trainer.run(**limits)
    assert seen == expected


@pytest.mark.parametrize("stop", ["terminate", "terminate_epoch"])
def test_validates_when_a_handler_of_the_same_event_stops_the_run(stop):
    trainer = make_trainer(
        batches_of(6), accumulation=2, validation=Validation(nothing, every_steps=2)
    )
    seen = iterations_of_event(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=4), lambda engine: getattr(engine, stop)()
    )
    trainer.run()
    assert seen == [(1, 4, 2)]


def test_an_epoch_that_ended_early_is_validated():
    trainer = make_trainer(
        batches_of(6), accumulation=2, validation=Validation(nothing, every_epochs=1)
    )
    seen = iterations_of_event(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), Engine.terminate_epoch)
    trainer.run(max_epochs=2)
    assert seen == [(1, 3, 1), (2, 9, 4)]


def test_works_with_data_of_unknown_length():
    trainer = make_trainer(
        (each for each in batches_of(5)),
        accumulation=2,
        validation=Validation(nothing, every_steps=2, every_epochs=1),
    )
    seen = iterations_of_event(trainer)
    trainer.run()
    assert seen == [(1, 4, 2), (1, 5, 3)]


def test_at_start_validates_after_started_and_before_any_batch():
    data = iter(batches_of(2))
    order = []
    trainer = make_trainer(
        data,
        validation=Validation(lambda: order.append(("validation", next(data))), at_start=True),
    )
    trainer.add_event_handler(Events.STARTED, lambda: order.append("started"))
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: order.append("epoch"))
    trainer.run()
    assert [order[0], order[1][0], order[2]] == ["started", "validation", "epoch"]
    assert torch.equal(order[1][1][0], batches_of(2)[0][0])


@pytest.mark.parametrize("stop", [Engine.terminate, Engine.interrupt, "failure", "limit"])
def test_at_start_is_not_repeated_when_a_run_is_continued(stop):
    evaluate = RecordingEvaluator()
    trainer = make_trainer(batches_of(4), validation=Validation(evaluate, at_start=True))

    def stop_once(engine):
        if stop == "failure":
            raise Failure
        if stop != "limit":
            stop(engine)

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), stop_once)
    try:
        trainer.run(max_epochs=2, max_steps=2 if stop == "limit" else None)
    except Failure:
        assert stop == "failure"
    trainer.run(max_epochs=2, max_steps=8 if stop == "limit" else None)
    assert trainer.state.iteration == 8
    assert evaluate.calls == 1


def test_at_start_is_not_repeated_for_more_epochs():
    evaluate = RecordingEvaluator()
    trainer = make_trainer(batches_of(2), validation=Validation(evaluate, at_start=True))
    trainer.run(max_epochs=1)
    trainer.run(max_epochs=2)
    assert evaluate.calls == 1


def test_at_start_is_repeated_in_a_new_run():
    evaluate = RecordingEvaluator()
    trainer = make_trainer(batches_of(2), validation=Validation(evaluate, at_start=True))
    trainer.run()
    trainer.run()
    assert evaluate.calls == 2
    assert trainer.state.validation == 1


def test_a_run_terminated_at_its_start_is_not_validated():
    evaluate = RecordingEvaluator()
    trainer = make_trainer(batches_of(2), validation=Validation(evaluate, at_start=True))
    trainer.add_event_handler(Events.STARTED, Engine.terminate)
    trainer.run()
    assert evaluate.calls == 0


def test_schedules_continue_over_several_runs():
    trainer = make_trainer(
        batches_of(5), validation=Validation(nothing, every_steps=3, every_epochs=2)
    )
    seen = iterations_of_event(trainer)
    trainer.run(max_steps=4)
    trainer.run(max_epochs=4, max_steps=20)
    assert [steps for _, _, steps in seen] == [3, 6, 9, 10, 12, 15, 18, 20]


# Order.


def test_validation_runs_after_later_attached_handlers_too():
    order = []
    trainer = make_trainer(
        batches_of(3), validation=Validation(lambda: order.append("validation"), every_steps=1)
    )
    for event in (
        TrainEvents.STEP_COMPLETED,
        Events.ITERATION_COMPLETED(every=1),
        Events.ITERATION_COMPLETED,
    ):
        trainer.add_event_handler(event, lambda: order.append("other"))
    trainer.run()
    assert order == ["other", "other", "other", "validation"] * 3


@pytest.mark.parametrize("schedule", [{"every_steps": 2}, {"every_epochs": 1}])
def test_validation_of_an_epoch_precedes_its_scheduler_and_handlers(schedule):
    order = []
    trainer = make_trainer(
        batches_of(2),
        lr_scheduler=lambda optimizer: StepLR(optimizer, 1, gamma=0.5),
        scheduler_at="epoch",
        validation=Validation(
            lambda: order.append(trainer.optimizer.param_groups[0]["lr"]), **schedule
        ),
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: order.append("epoch"))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: order.append("batch"))
    trainer.run(max_epochs=2)
    assert order == ["batch", "batch", 0.1, "epoch", "batch", "batch", 0.05, "epoch"]


def test_runs_before_the_next_epoch_and_before_completed():
    trainer = make_trainer(batches_of(1), validation=Validation(nothing, every_epochs=1))
    seen = record(
        trainer,
        [
            Events.EPOCH_STARTED,
            Events.EPOCH_COMPLETED,
            TrainEvents.VALIDATION_STARTED,
            TrainEvents.VALIDATION_COMPLETED,
            Events.COMPLETED,
        ],
    )
    trainer.run(max_epochs=2)
    epoch = ["EPOCH_STARTED", "VALIDATION_STARTED", "VALIDATION_COMPLETED", "EPOCH_COMPLETED"]
    assert [name for name, _, _ in seen] == [*epoch, *epoch, "COMPLETED"]


def test_metrics_are_set_between_evaluation_and_completed_event():
    order = []
    trainer = make_trainer(
        batches_of(2),
        validation=Validation(lambda: order.append("evaluate") or {"x": 5}, every_epochs=1),
    )
    for event in (TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED):
        trainer.add_event_handler(
            event, lambda engine: order.append(engine.state.metrics.get("val_x"))
        )
    trainer.run()
    assert order == [None, "evaluate", 5]


def test_filters_of_the_events_count_validations():
    trainer = make_trainer(batches_of(5), validation=Validation(nothing, every_steps=1))
    second = iterations_of_event(trainer, TrainEvents.VALIDATION_COMPLETED(every=2))
    third = iterations_of_event(trainer, TrainEvents.VALIDATION_STARTED(once=3))
    trainer.run()
    assert [steps for _, _, steps in second] == [2, 4]
    assert [steps for _, _, steps in third] == [3]


def test_validations_due_at_the_same_step_are_one():
    order = []
    trainer = make_trainer(batches_of(2))
    for name in ("a", "b", "c"):
        every = {"every_steps": 2} if name == "b" else {"every_epochs": 1}
        validation = Validation(functools.partial(order.append, name), **every)
        validation.attach(trainer)
    trainer.run()
    assert order == ["a", "b", "c"]
    assert trainer.state.validation == 1


def test_handlers_can_use_the_metrics_to_stop_training():
    trainer = make_trainer(batches_of(3), validation=Validation(lambda: {"x": 1}, every_steps=2))

    @trainer.on(TrainEvents.VALIDATION_COMPLETED)
    def stop(engine):
        if engine.state.metrics["val_x"] == 1:
            engine.terminate()

    trainer.run(max_epochs=3)
    assert (trainer.state.iteration, trainer.stop_reason) == (2, "terminate")


# No validation after a skipped step or a failure.


def test_no_validation_on_a_skipped_step():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model = make_model(0.0)
    data = batches_of(4)
    data[1] = (data[1][0] * float("inf"), data[1][1])
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        F.mse_loss,
        data,
        accelerator=accelerator,
        validation=Validation(nothing, every_steps=1),
    )
    seen = iterations_of_event(trainer)
    trainer.run()
    assert seen == [(1, 1, 1), (1, 3, 2), (1, 4, 3)]


@pytest.mark.parametrize(
    ("event", "validations"),
    [
        (Events.STARTED, 0),
        (Events.EPOCH_STARTED(once=2), 1),
        (Events.ITERATION_STARTED(once=4), 1),
        (TrainEvents.MODEL_BACKWARD_COMPLETED(once=4), 1),
        (TrainEvents.OPTIMIZER_STEP_STARTED(once=3), 1),
        (TrainEvents.STEP_COMPLETED(once=4), 1),
        (Events.ITERATION_COMPLETED(once=4), 1),
        (Events.ITERATION_COMPLETED(once=6), 2),
        (Events.EPOCH_COMPLETED(once=2), 3),
    ],
)
def test_no_validation_after_a_failure(event, validations):
    evaluate = RecordingEvaluator()
    trainer = make_trainer(
        batches_of(3),
        validation=Validation(evaluate, every_steps=4, every_epochs=2, at_start=True),
    )

    def fail():
        raise Failure

    trainer.add_event_handler(event, fail)
    with pytest.raises(Failure):
        trainer.run(max_epochs=2)
    assert evaluate.calls == validations


def test_a_validation_that_a_failure_prevented_comes_with_the_next_run():
    trainer = make_trainer(batches_of(4), validation=Validation(nothing, every_steps=1))
    seen = iterations_of_event(trainer)

    def fail():
        raise Failure

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail)
    with pytest.raises(Failure):
        trainer.run()
    trainer.run()
    assert [steps for _, _, steps in seen] == [1, 2, 3, 4]


# Names and results.


def test_metrics_of_an_evaluator_are_in_the_state_with_the_prefix():
    trainer = make_trainer(batches_of(2))
    evaluator = create_supervised_evaluator(
        trainer.model,
        {"mse": MeanSquaredError(), "loss": Loss(F.mse_loss)},
        accelerator=trainer.accelerator,
    )
    Validation(evaluator, batches_of(3), every_epochs=1).attach(trainer)
    metrics = trainer.run().metrics
    expected = evaluator.run(batches_of(3)).metrics
    assert metrics == {"val_mse": expected["mse"], "val_loss": expected["loss"]}


@EVALUATORS
def test_metrics_of_several_loaders_have_their_names(make_evaluator):
    trainer = make_trainer(batches_of(2))
    evaluator = make_evaluator(trainer.model, trainer.accelerator)
    held_out, small = batches_of(3), DataLoader(Noisy(4, noise=0.0), 2)
    Validation(evaluator, {"held_out": held_out, "small": small}, every_epochs=1).attach(trainer)
    metrics = dict(trainer.run().metrics)
    assert metrics == {
        "val_held_out_mse": evaluator.run(held_out).metrics["mse"],
        "val_small_mse": evaluator.run(small).metrics["mse"],
    }


@pytest.mark.parametrize(("prefix", "name"), [("test/", "test/x"), ("", "x")])
def test_the_prefix_can_be_chosen(prefix, name):
    validation = Validation(lambda: {"x": 1}, every_epochs=1, prefix=prefix)
    trainer = make_trainer(batches_of(1), validation=validation)
    assert trainer.run().metrics == {name: 1}


def test_metric_objects_are_stored_unchanged():
    value = torch.tensor(3.0)
    trainer = make_trainer(
        batches_of(1), validation=Validation(lambda: {"x": value}, every_epochs=1)
    )
    trainer.run()
    assert trainer.state.metrics["val_x"] is value


def test_other_metrics_of_the_trainer_are_left_alone():
    trainer = make_trainer(batches_of(1), validation=Validation(lambda: {"x": 1}, every_epochs=1))
    trainer.add_event_handler(Events.STARTED, lambda e: e.state.metrics.update(mine=7))
    trainer.run()
    assert trainer.state.metrics == {"mine": 7, "val_x": 1}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (0.5, r'got float; no metric .*: return {"x": value}, .* "val_x"; return None'),
        (torch.tensor(0.5), "got Tensor; no metric"),
        ([("x", 1)], "got list; no metric"),
        (State(metrics={"x": 1}), r"got State; .*: pass .* Validation\(evaluator, loader\)"),
    ],
)
def test_a_result_that_is_no_dict_warns_once_and_sets_no_metrics(result, message):
    warn_once.cache_clear()
    trainer = make_trainer(batches_of(1), validation=Validation(lambda: result, every_epochs=1))
    with pytest.warns(UserWarning, match=f"`evaluate` must return a dict .* {message}") as warned:
        trainer.run(max_epochs=3)
    assert len(warned) == 1
    assert trainer.state.metrics == {}


@EVALUATORS
def test_terminated_evaluation_does_not_report_stale_metrics(make_evaluator):
    trainer = make_trainer(batches_of(2))
    evaluator = make_evaluator(trainer.model, trainer.accelerator)
    data = {"whole": batches_of(3), "broken": batches_of(2)}

    @evaluator.on(Events.ITERATION_COMPLETED)
    def stop(engine):
        if engine.state.epoch_length == 2:
            engine.terminate()

    Validation(evaluator, data, every_epochs=1).attach(trainer)
    trainer.run()
    assert "val_whole_mse" in trainer.state.metrics
    assert "val_broken_mse" not in trainer.state.metrics


# Evaluators and callables.


@EVALUATORS
def test_evaluators_see_the_current_weights(make_evaluator):
    trainer = make_trainer(batches_of(4))
    evaluator = make_evaluator(trainer.model, trainer.accelerator)
    held_out = batches_of(2)
    Validation(evaluator, held_out, every_steps=2, at_start=True).attach(trainer)
    seen = []
    trainer.add_event_handler(
        TrainEvents.VALIDATION_COMPLETED,
        lambda engine: seen.append(
            (engine.state.metrics["val_mse"], ignites_evaluator(copied()).run(held_out).metrics)
        ),
    )

    def copied():
        model = make_model(0.0)
        model.load_state_dict(trainer.model.state_dict())
        return model

    trainer.run()
    assert len({value for value, _ in seen}) == 3
    assert all(value == expected["mse"] for value, expected in seen)


class Holder:
    def without(self):
        return {"got": "nothing"}

    def with_model(self, model):
        return {"got": model}

    @staticmethod
    def of_class(model):
        return {"got": model}

    def __call__(self, model):
        return {"got": model}


def of_model(model):
    return {"got": model}


def of_two(data, model):
    return {"got": model}


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda: {"got": "nothing"},
        lambda got="nothing": {"got": got},
        lambda *args, **kwargs: {"got": args[0] if args else "nothing"},
        lambda *, got="nothing": {"got": got},
        Holder().without,
        functools.partial(of_model, "nothing"),
        functools.partial(of_model, model="nothing"),
        functools.partial(of_two, "data", model="nothing"),
    ],
)
def test_a_callable_without_argument_gets_none(evaluate):
    trainer = make_trainer(batches_of(1), validation=Validation(evaluate, every_epochs=1))
    trainer.run()
    assert trainer.state.metrics == {"val_got": "nothing"}


@pytest.mark.parametrize(
    "evaluate",
    [
        of_model,
        lambda m, got="nothing": {"got": m},
        lambda m, *args, **kwargs: {"got": m},
        lambda m, /: {"got": m},
        Holder().with_model,
        Holder.of_class,
        Holder(),
        functools.partial(of_two, "data"),
    ],
)
def test_a_callable_of_one_argument_gets_the_model(evaluate):
    trainer = make_trainer(batches_of(1), validation=Validation(evaluate, every_epochs=1))
    trainer.run()
    assert trainer.state.metrics["val_got"] is trainer.model


def test_raw_loader_is_prepared_once_and_seen_whole_each_time():
    trainer = make_trainer(batches_of(2))
    evaluator = mse_evaluator(trainer.model, trainer.accelerator)
    seen = []
    evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: seen.append(engine.state.iteration)
    )
    loader = DataLoader(Noisy(5), 2)
    Validation(evaluator, loader, every_steps=1, at_start=True).attach(trainer)
    trainer.run(max_epochs=2)
    assert seen == [3] * 5
    assert len(trainer.accelerator._dataloaders) == 1


@EVALUATORS
def test_an_evaluator_can_run_again_after_a_failure(make_evaluator):
    trainer = make_trainer(batches_of(3))
    evaluator = make_evaluator(trainer.model, trainer.accelerator)
    Validation(evaluator, batches_of(3), every_steps=1).attach(trainer)
    failure, failures = Failure(), []

    def fail_in_the_second(engine):
        if trainer.state.validation == 2 and not failures:
            failures.append(failure)
            raise failure

    evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail_in_the_second)
    with pytest.raises(Failure) as raised:
        trainer.run()
    assert raised.value is failure
    assert trainer.state.optimizer_step == 2
    trainer.run()
    assert trainer.state.optimizer_step == 3
    assert evaluator.state.iteration == 3
    assert trainer.state.metrics["val_mse"] == evaluator.run(batches_of(3)).metrics["mse"]


def test_failed_validation_is_not_completed_and_sets_no_metrics():
    def fail():
        raise Failure

    trainer = make_trainer(batches_of(1), validation=Validation(fail, every_epochs=1))
    seen = record(trainer, [TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED])
    with pytest.raises(Failure):
        trainer.run()
    assert [name for name, _, _ in seen] == ["VALIDATION_STARTED"]
    assert trainer.state.metrics == {}


# The three ways to use a handler, and removal.


def test_validation_can_be_attached_to_any_event():
    trainer = make_trainer(batches_of(4))
    evaluate = RecordingEvaluator()
    attachment = Validation(evaluate).attach(trainer, Events.ITERATION_COMPLETED(every=2))
    seen = iterations_of_event(trainer)
    trainer.run()
    assert seen == [(1, 2, 2), (1, 4, 4)]
    attachment.remove()
    trainer.run()
    assert evaluate.calls == 2


def test_validation_can_be_added_as_a_handler():
    trainer = make_trainer(batches_of(4))
    handle = trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=2), Validation(lambda: {"x": 1})
    )
    seen = iterations_of_event(trainer)
    trainer.run()
    assert seen == [(1, 2, 2), (1, 4, 4)]
    assert trainer.state.metrics == {"val_x": 1}
    handle.remove()
    trainer.run()
    assert len(seen) == 2


def test_attached_to_an_event_its_schedules_are_ignored():
    trainer = make_trainer(batches_of(4))
    Validation(nothing, every_steps=1, every_epochs=1, at_start=True).attach(
        trainer, Events.EPOCH_COMPLETED
    )
    seen = iterations_of_event(trainer)
    trainer.run()
    assert seen == [(1, 4, 4)]


def test_validation_can_be_called_directly():
    trainer = make_trainer(batches_of(1))
    Validation(lambda: {"x": 1})(trainer)
    assert trainer.state.metrics == {"val_x": 1}


def test_removed_validation_does_not_run():
    trainer = make_trainer(batches_of(2))
    evaluate = RecordingEvaluator()
    schedules = {"every_steps": 1, "every_epochs": 1, "at_start": True}
    with Validation(evaluate, **schedules).attach(trainer):
        trainer.run()
    assert evaluate.calls == 3
    trainer.run()
    assert evaluate.calls == 3


def test_one_of_two_validation_attachments_can_be_removed():
    trainer = make_trainer(batches_of(2))
    evaluate = RecordingEvaluator()
    validation = Validation(evaluate, every_epochs=1)
    first = validation.attach(trainer)
    validation.attach(trainer)
    first.remove()
    trainer.run()
    assert evaluate.calls == 1


def test_validation_can_be_removed_and_added_within_a_run():
    trainer = make_trainer(batches_of(6))
    evaluate = RecordingEvaluator()
    attachment = Validation(evaluate, every_steps=1).attach(trainer)
    trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED(once=2), lambda: attachment.remove())
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=4),
        lambda engine: Validation(evaluate, every_steps=1).attach(engine),
    )
    seen = iterations_of_event(trainer)
    trainer.run()
    assert [steps for _, _, steps in seen] == [1, 2, 4, 5, 6]


def test_one_validation_serves_several_trainers():
    validation = Validation(nothing, every_steps=2, every_epochs=1)
    trainers = [make_trainer(batches_of(n), validation=validation) for n in (2, 3)]
    seen = [iterations_of_event(trainer) for trainer in trainers]
    for trainer in trainers:
        trainer.run()
    assert seen == [[(1, 2, 2)], [(1, 2, 2), (1, 3, 3)]]


def test_validation_keeps_no_trainer_alive():
    validation = Validation(nothing, every_steps=1, every_epochs=1, at_start=True)
    trainer = make_trainer(batches_of(2), validation=validation)
    trainer.run()
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


# Plain Ignite engines.


def engine_by_hand(model, accelerator):
    """Returns an engine that trains if an OptimizerStep is attached."""

    def process(engine, batch):
        x, y = batch
        accelerator.backward(F.mse_loss(model(x), y))

    return Engine(process)


@pytest.mark.parametrize("way", ["attach", "event", "callable"])
def test_validation_works_on_a_plain_ignite_engine(way):
    engine = Engine(lambda engine, batch: None)
    validation = Validation(lambda: {"x": 1}, every_epochs=1)
    if way == "attach":
        validation.attach(engine)
    elif way == "event":
        validation.attach(engine, Events.EPOCH_COMPLETED)
    else:
        engine.add_event_handler(Events.EPOCH_COMPLETED, validation)
    engine.run([1, 2])
    assert engine.state.metrics == {"val_x": 1}
    assert engine.state.validation == 1


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every_steps": 2}, [2, 4, 6]),
        ({"every_steps": 4}, [4]),
        ({"every_epochs": 1}, [3, 6]),
        ({"at_start": True}, [0]),
        ({"every_steps": 3, "every_epochs": 1, "at_start": True}, [0, 3, 6]),
        ({"every_steps": 2, "every_epochs": 1}, [2, 3, 4, 6]),
    ],
)
def test_without_an_optimizer_step_steps_are_iterations(schedule, expected):
    engine = Engine(lambda engine, batch: None)
    seen = []
    Validation(lambda: seen.append(engine.state.iteration), **schedule).attach(engine)
    for _ in range(2):
        seen.clear()
        engine.run([1, 2, 3], max_epochs=2)
        assert seen == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every_steps": 1}, [(2, 1), (4, 2), (5, 3), (7, 4), (9, 5), (10, 6)]),
        ({"every_steps": 2}, [(4, 2), (7, 4), (10, 6)]),
        ({"every_steps": 3, "every_epochs": 1}, [(5, 3), (10, 6)]),
        ({"every_epochs": 2, "at_start": True}, [(0, 0), (10, 6)]),
    ],
)
def test_with_an_optimizer_step_steps_are_committed_steps(schedule, expected):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(0.0)
    engine = engine_by_hand(model, accelerator)
    OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1)).attach(engine)
    seen = []
    Validation(
        lambda: seen.append((engine.state.iteration, engine.state.optimizer_step)), **schedule
    ).attach(engine)
    engine.run(DataFeed(batches_of(5), accelerator), max_epochs=2)
    assert seen == expected


def test_on_a_plain_engine_at_start_is_not_repeated_on_resume():
    evaluate = RecordingEvaluator()
    engine = Engine(lambda engine, batch: None)
    Validation(evaluate, at_start=True).attach(engine)
    engine.run([1, 2], max_epochs=1)
    engine.run([1, 2], max_epochs=2)
    assert evaluate.calls == 1


def test_on_a_plain_engine_a_removed_validation_validates_no_more():
    evaluate = RecordingEvaluator()
    engine = Engine(lambda engine, batch: None)
    with Validation(evaluate, every_steps=1, every_epochs=1, at_start=True).attach(engine):
        engine.run([1, 2])
    engine.run([1, 2])
    assert evaluate.calls == 3


def test_on_a_plain_engine_the_events_and_their_filters_work():
    engine = Engine(lambda engine, batch: None)
    Validation(nothing, every_steps=1).attach(engine)
    seen = []
    engine.add_event_handler(
        TrainEvents.VALIDATION_COMPLETED(every=2), lambda e: seen.append(e.state.iteration)
    )
    engine.run([1, 2, 3, 4])
    assert seen == [2, 4]


# No effect on training: two epochs of seven batches, windows of two.


class Stream(IterableDataset):
    """A stream whose samples are drawn at random while it is read."""

    def __iter__(self):
        for _ in range(14):
            yield torch.randn(4) + random.random(), torch.randn(2) + float(np.random.rand())


def model_with_frozen_parts():
    """Returns a model with one submodule in eval mode while the others train."""
    model = torch.nn.Sequential(make_model(0.5), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2))
    model[1].eval()
    return model


class Jittered(Noisy):
    """A data set whose augmentation draws from its own generator."""

    def __init__(self, size):
        super().__init__(size, noise=0)
        self.rng = np.random.default_rng(1)

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.from_numpy(self.rng.standard_normal(4, np.float32)), y


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(14), 2, shuffle=True),
    "own generator": lambda: DataLoader(
        Noisy(14), 2, shuffle=True, generator=torch.Generator().manual_seed(4)
    ),
    "data with a generator": lambda: DataLoader(Jittered(14), 2, shuffle=True),
    "stream": lambda: DataLoader(Stream(), 2),
}


class Training:
    """A training run that uses every source of randomness and records all results."""

    def __init__(self, loader="shuffled", **options):
        seed()
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **options)
        self.kind = loader
        self.raw = LOADERS[loader]()
        self.loader = self.accelerator.prepare(self.raw)
        self.model = model_with_frozen_parts()
        self.record = []
        self.engine = self.make_engine()
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def make_engine(self):
        return create_supervised_trainer(
            self.model,
            torch.optim.AdamW(self.model.parameters(), lr=0.1),
            F.mse_loss,
            self.loader,
            accelerator=self.accelerator,
            lr_scheduler=lambda optimizer: StepLR(optimizer, 3, gamma=0.5),
        )

    def run(self):
        self.engine.run(max_epochs=2)
        return self

    def note(self, engine):
        self.record.append(
            (
                (engine.state.iteration, engine.state.optimizer_step, self.loader.iteration),
                self.accelerator.sync_gradients,
                modes(self.model),
                random.getstate(),
                np.random.get_state()[1].tolist(),
                torch.get_rng_state(),
                torch.cat([each.flatten() for each in engine.state.batch]),
                torch.cat([each.flatten() for each in self.model.state_dict().values()]),
            )
        )


class TrainingByHand(Training):
    """The same training run on a plain engine with an OptimizerStep."""

    def make_engine(self):
        self.model = self.accelerator.prepare(self.model)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

        def process(engine, batch):
            x, y = batch
            self.accelerator.backward(F.mse_loss(self.model(x), y))

        engine = Engine(process)
        OptimizerStep(self.accelerator, optimizer).attach(engine)
        return engine

    def run(self):
        with closing(DataFeed(self.loader, self.accelerator)) as feed:
            self.engine.run(feed, max_epochs=2)
        return self


class TrainingWithoutAccelerate(Training):
    """The same training run on an engine without Accelerate and this package."""

    def make_engine(self):
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

        def process(engine, batch):
            x, y = batch
            optimizer.zero_grad()
            F.mse_loss(self.model(x), y).backward()
            optimizer.step()

        engine = Engine(process)
        engine.state.optimizer_step = None
        return engine

    def run(self):
        self.engine.run(self.raw, max_epochs=2)
        return self


WHAT = ["place", "sync_gradients", "modes", "python", "numpy", "torch", "batch", "weights"]


@functools.cache
def undisturbed(kind=Training, loader="shuffled"):
    return kind(loader).run().record


def assert_undisturbed(training):
    expected = undisturbed(type(training), training.kind)
    assert len(training.record) == len(expected)
    for mine, theirs in zip(training.record, expected, strict=True):
        for what, one, other in zip(WHAT, mine, theirs, strict=True):
            same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
            assert same, f"other {what} at iteration {mine[0][0]}"
    assert GradientState().dataloader_references == [None]


def held_out(training, prepare=True):
    loader = DataLoader(Noisy(7), 2, shuffle=True)
    return training.accelerator.prepare(loader) if prepare else loader


def ours(training):
    return mse_evaluator(training.model, training.accelerator)


def ignites(training):
    return ignites_evaluator(training.model)


def breaking_off(evaluator):
    evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.terminate)
    return evaluator


def iterate(loader, most=99):
    for index, _ in enumerate(loader):
        if index + 1 == most:
            break


def draw():
    random.random()
    np.random.rand(3)
    torch.rand(5)


def to_eval(model):
    model.eval()


def to_train(model):
    model.train()


def gradients_off():
    torch.set_grad_enabled(False)


def odd_modes(model):
    model.eval()
    model[1].train()
    model[0].train()
    model[0][2].eval()


def gradients(model):
    model.zero_grad()
    with torch.enable_grad():
        model(torch.ones(2, 4)).sum().backward()


def accumulate(accelerator):
    for _ in range(2):
        with accelerator.accumulate():
            pass


VALIDATIONS = {
    "ours, prepared": lambda t: (ours(t), held_out(t)),
    "ours, raw": lambda t: (ours(t), held_out(t, prepare=False)),
    "ours, several": lambda t: (ours(t), {"a": held_out(t), "b": batches_of(2)}),
    "ours, breaking off": lambda t: (breaking_off(ours(t)), held_out(t)),
    "ours, the training loader": lambda t: (ours(t), t.loader),
    "ours, the training loader, breaking off": lambda t: (breaking_off(ours(t)), t.loader),
    "ours, the raw training loader": lambda t: (ours(t), t.raw),
    "ignite's, prepared": lambda t: (ignites(t), held_out(t)),
    "ignite's, breaking off": lambda t: (breaking_off(ignites(t)), held_out(t)),
    "ignite's, the training loader": lambda t: (ignites(t), t.loader),
    "ignite's, the training loader, breaking off": lambda t: (breaking_off(ignites(t)), t.loader),
    "iterates": lambda t: (functools.partial(iterate, held_out(t)),),
    "iterates, breaking off": lambda t: (functools.partial(iterate, held_out(t), 2),),
    "iterates the training loader": lambda t: (functools.partial(iterate, t.loader),),
    "iterates the training loader, breaking off": lambda t: (
        functools.partial(iterate, t.loader, 2),
    ),
    "iterates the raw training loader": lambda t: (functools.partial(iterate, t.raw),),
    "draws": lambda t: (draw,),
    "seeds": lambda t: (functools.partial(seed, 5),),
    "eval": lambda t: (to_eval,),
    "train": lambda t: (to_train,),
    "odd modes": lambda t: (odd_modes,),
    "gradients": lambda t: (gradients,),
    "accumulates": lambda t: (functools.partial(accumulate, t.accelerator),),
    "no gradients from now on": lambda t: (gradients_off,),
}

SCHEDULES = {
    "every step": {"every_steps": 1},
    "every third step, at start": {"every_steps": 3, "at_start": True},
    "every epoch": {"every_epochs": 1},
    "before each batch": Events.GET_BATCH_STARTED,
    "before each forward pass": Events.ITERATION_STARTED,
    "in the window": Events.ITERATION_COMPLETED,
}


def attach(training, name, when):
    schedule = SCHEDULES[when] if isinstance(SCHEDULES[when], dict) else {}
    event = None if schedule else SCHEDULES[when]
    evaluate, *data = VALIDATIONS[name](training)
    if isinstance(evaluate, Engine):
        schedule = {**schedule, "max_batches": 100}  # needed for data of unknown length
    return Validation(evaluate, *data, **schedule).attach(training.engine, event)


@pytest.fixture(autouse=True)
def _gradients_on():
    yield
    torch.set_grad_enabled(True)


@pytest.mark.grid(11)
@pytest.mark.parametrize("when", SCHEDULES)
@pytest.mark.parametrize("name", VALIDATIONS)
def test_validation_does_not_change_training(name, when):
    training = Training()
    attach(training, name, when)
    training.run()
    assert training.engine.state.validation > 0
    assert_undisturbed(training)


@pytest.mark.grid(7)
@pytest.mark.parametrize("when", ["every third step, at start", "before each batch"])
@pytest.mark.parametrize(
    "name", ["draws", *(name for name in VALIDATIONS if "training loader" in name)]
)
@pytest.mark.parametrize("loader", ["own generator", "stream"])
def test_validation_does_not_change_training_on_other_loaders(name, when, loader):
    training = Training(loader)
    attach(training, name, when)
    training.run()
    assert_undisturbed(training)


def test_validation_may_share_the_training_loader_generator():
    training = Training("own generator")
    loader = DataLoader(Noisy(7), 2, shuffle=True, generator=training.raw.generator)
    Validation(ours(training), loader, every_steps=1, at_start=True).attach(training.engine)
    training.run()
    assert_undisturbed(training)


def test_validation_may_share_the_data_set_and_its_generator():
    training = Training("data with a generator")
    loader = DataLoader(Subset(training.raw.dataset, range(5)), 2)
    Validation(ours(training), loader, every_steps=1, at_start=True).attach(training.engine)
    training.run()
    assert_undisturbed(training)


@pytest.mark.grid(5)
@pytest.mark.parametrize("when", ["every third step, at start", "in the window"])
@pytest.mark.parametrize("name", [name for name in VALIDATIONS if "raw training" not in name])
def test_validation_does_not_change_training_on_a_plain_engine(name, when):
    training = TrainingByHand()
    if len(VALIDATIONS[name](training)) == 1:
        training.engine.model = training.model
    attach(training, name, when)
    training.run()
    assert training.engine.state.validation > 0
    assert_undisturbed(training)


@pytest.mark.parametrize(
    ("kind", "make_evaluator"),
    [(TrainingByHand, ours), (TrainingByHand, ignites), (TrainingWithoutAccelerate, ours)],
)
def test_any_engine_restores_the_modes_of_the_evaluated_model(kind, make_evaluator):
    training = kind()
    Validation(make_evaluator(training), held_out(training), every_steps=1).attach(training.engine)
    training.run()
    assert_undisturbed(training)


@pytest.mark.parametrize("kind", [Training, TrainingByHand])
def test_a_callable_without_argument_cannot_change_modes(kind):
    training = kind()
    Validation(lambda: to_eval(training.model), every_steps=1).attach(training.engine)
    training.run()
    assert_undisturbed(training)


@pytest.mark.parametrize("evaluate", [odd_modes, gradients])
def test_a_callable_gets_the_model_of_a_plain_engine(evaluate):
    training = TrainingWithoutAccelerate()
    training.engine.model = training.model
    Validation(evaluate, every_steps=1).attach(training.engine)
    training.run()
    assert_undisturbed(training)


@pytest.mark.parametrize("kind", [TrainingByHand, TrainingWithoutAccelerate])
def test_on_any_engine_validation_may_share_loader_generator(kind):
    training = kind("own generator")
    loader = DataLoader(Noisy(7), 2, shuffle=True, generator=training.raw.generator)
    Validation(ours(training), loader, every_steps=1, at_start=True).attach(training.engine)
    training.run()
    assert_undisturbed(training)


def test_modes_of_another_evaluated_model_are_restored_too():
    training = Training()
    averaged = torch.optim.swa_utils.AveragedModel(training.model).train()
    evaluator = mse_evaluator(averaged, training.accelerator)
    Validation(evaluator, batches_of(2), every_steps=1).attach(training.engine)
    before = modes(averaged)
    training.run()
    assert modes(averaged) == before
    assert_undisturbed(training)


def failing_evaluator(evaluator):
    def fail(engine):
        raise Failure

    evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), fail)
    return evaluator


def and_fail(act):
    def evaluate(model):
        act(model)
        raise Failure

    return evaluate


FAILING = {
    "ours": lambda t: (failing_evaluator(ours(t)), held_out(t)),
    "ours, the training loader": lambda t: (failing_evaluator(ours(t)), t.loader),
    "ignite's": lambda t: (failing_evaluator(ignites(t)), held_out(t)),
    "ignite's, the training loader": lambda t: (failing_evaluator(ignites(t)), t.loader),
    "iterates": lambda t: (and_fail(lambda model: iterate(t.loader, 2)),),
    "draws": lambda t: (and_fail(lambda model: draw()),),
    "eval": lambda t: (and_fail(odd_modes),),
}


@pytest.mark.parametrize("schedule", [{"every_steps": 3}, {"every_epochs": 1}, {"at_start": True}])
@pytest.mark.parametrize("name", FAILING)
def test_training_is_unaffected_after_a_failed_validation(name, schedule):
    training = Training()
    attachment = Validation(*FAILING[name](training), **schedule).attach(training.engine)
    before = modes(training.model)
    with pytest.raises(Failure):
        training.run()
    assert modes(training.model) == before
    assert GradientState().dataloader_references == [None]
    attachment.remove()
    training.run()
    assert_undisturbed(training)


@pytest.mark.parametrize("name", FAILING)
def test_training_is_unaffected_by_a_failure_within_a_handler(name):
    training = Training()
    validation = Validation(*FAILING[name](training))

    def validate(engine):
        with pytest.raises(Failure):
            validation(engine)

    training.engine.add_event_handler(Events.ITERATION_STARTED, validate)
    training.run()
    assert_undisturbed(training)


def test_training_loader_is_inactive_while_validating():
    training = Training()
    seen = []
    Validation(lambda: seen.append(training.accelerator.gradient_state.in_dataloader)).attach(
        training.engine, Events.ITERATION_COMPLETED
    )
    training.run()
    assert set(seen) == {False}


def test_a_validation_within_a_window_does_not_end_the_window():
    trainer = make_trainer(batches_of(7), accumulation=3)
    loader = trainer.accelerator.prepare(DataLoader(Noisy(4), 2))
    Validation(ignites_evaluator(trainer.model), loader).attach(
        trainer, Events.ITERATION_COMPLETED(once=2)
    )
    steps = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.step_committed)
    )
    trainer.run()
    assert steps == [False, False, True, False, False, True, True]


def test_the_reference_training_is_sensitive_to_changes():
    assert_undisturbed(Training().run())
    training = Training()
    training.engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), draw)
    with pytest.raises(AssertionError, match="at iteration 6"):
        assert_undisturbed(training.run())


# The schedule alone, as plain data.


def test_a_validation_has_its_fields_and_defaults():
    schedule = ValidationSchedule()
    validation = Validation(lambda: None)
    assert isinstance(validation, ValidationSchedule)
    for field in dataclasses.fields(schedule):
        assert getattr(validation, field.name) == getattr(schedule, field.name)


def test_the_fields_of_a_schedule_make_a_validation():
    schedule = ValidationSchedule(every_steps=3, every_epochs=2, at_start=True, prefix="test_")
    validation = Validation(lambda: None, **vars(schedule))
    assert {**vars(validation), **vars(schedule)} == vars(validation)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("every_steps", 0, "an integer >= 1"),
        ("every_epochs", 1.0, "an integer >= 1"),
        ("at_start", 1, "True or False"),
        ("prefix", None, "a string"),
        ("prefix", 1, "a string"),
    ],
)
def test_a_wrong_value_is_named_with_the_rule(field, value, rule):
    with pytest.raises(ValueError, match=f"`{field}` must be {rule}, got {value!r}"):
        ValidationSchedule(**{field: value})
