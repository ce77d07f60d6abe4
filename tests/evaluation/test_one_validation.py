"""Validations that are due together run as one, and do not change training."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.metrics import Accuracy
from ignite.metrics import Average
from ignite.metrics import Loss

from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from tests.reference import batches_of
from tests.reference import draw_each
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import shuffled
from tests.reference import weights


class Failure(Exception):
    pass


def evaluator_of(model, accelerator):
    return create_supervised_evaluator(model, {"loss": Loss(F.mse_loss)}, accelerator=accelerator)


def plain_engine(batches=3):
    """Returns an Ignite engine with an OptimizerStep, and its data."""
    model, accelerator = make_model(0), Accelerator(cpu=True)
    engine = Engine(
        lambda engine, batch: accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))
    )
    engine.model = model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    OptimizerStep(accelerator, optimizer).attach(engine)
    return engine, batches_of(batches)


def trainer_and_data(batches=3):
    return make_trainer(), batches_of(batches)


ENGINES = pytest.mark.parametrize("make", [trainer_and_data, plain_engine])


# One validation


@ENGINES
def test_validations_due_together_have_one_pair_of_events(make):
    engine, data = make()
    for prefix in ("a_", "b_"):
        evaluate = lambda: {"epoch": engine.state.epoch}  # noqa: E731
        Validation(evaluate, every_epochs=1, prefix=prefix).attach(engine)
    seen = []
    for event in (TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED):
        engine.add_event_handler(event, lambda: seen.append(dict(engine.state.metrics)))
    engine.run(data, max_epochs=2)
    both = [{"a_epoch": epoch, "b_epoch": epoch} for epoch in (1, 2)]
    assert seen == [{}, both[0], both[0], both[1]]
    assert engine.state.validation == 2


@ENGINES
def test_schedules_by_step_that_meet_are_one_validation(make):
    engine, data = make(6)
    order = []
    for every, name in ((2, "two"), (3, "three")):
        Validation(lambda name=name: order.append(name), every_steps=every).attach(engine)
    engine.add_event_handler(TrainEvents.VALIDATION_STARTED, lambda: order.append("|"))
    engine.run(data)
    assert "".join(f"{each} " for each in order) == "| two | three | two | two three "


def test_two_validations_count_once_for_early_stopping():
    ends = []
    for prefixes in (["val_"], ["val_", "ema_"]):
        trainer = make_trainer(batches_of(1))
        for prefix in prefixes:
            worse = lambda: {"score": -trainer.state.epoch}  # noqa: B023, E731
            Validation(worse, every_epochs=1, prefix=prefix).attach(trainer)
        stopping = EarlyStopping(3, lambda engine: engine.state.metrics["val_score"], trainer)
        trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED, stopping)
        trainer.run(max_epochs=9)
        ends.append(trainer.state.epoch)
    assert ends == [4, 4]


def test_validation_at_an_event_runs_separately_in_order():
    trainer, order = make_trainer(batches_of(1)), []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: order.append("before"))
    Validation(lambda: order.append("own")).attach(trainer, Events.EPOCH_COMPLETED)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: order.append("after"))
    Validation(lambda: order.append("due"), every_epochs=1).attach(trainer)
    trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED, lambda: order.append("|"))
    trainer.run()
    assert order == ["due", "|", "before", "own", "|", "after"]
    assert trainer.state.validation == 2


@ENGINES
def test_stale_results_are_removed(make):
    engine, data = make(3)
    results = iter([{"a": 1, "b": 1}, {"a": 2}, {"b": 3}])
    Validation(lambda: next(results), every_steps=1).attach(engine)
    engine.state.metrics["of_user"] = 0
    seen = []
    engine.add_event_handler(
        TrainEvents.VALIDATION_COMPLETED, lambda: seen.append(dict(engine.state.metrics))
    )
    engine.run(data)
    assert seen == [
        {"of_user": 0, "val_a": 1, "val_b": 1},
        {"of_user": 0, "val_a": 2},
        {"of_user": 0, "val_b": 3},
    ]


def test_results_of_the_same_weights_are_kept_together():
    trainer = make_trainer(batches_of(2))
    own = Validation(lambda: {"x": 1}, prefix="own_")
    own.attach(trainer, Events.ITERATION_COMPLETED)
    Validation(lambda: {"x": 2}, every_epochs=1).attach(trainer)
    assert trainer.run().metrics == {"own_x": 1, "val_x": 2}


def test_results_are_written_together_or_not_at_all():
    trainer = make_trainer(batches_of(1))
    Validation(lambda: {"x": 1}, every_epochs=1).attach(trainer)
    Validation(lambda: 1 / 0, every_epochs=1).attach(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert trainer.state.metrics == {}
    assert trainer.state.validation == 0


def test_two_validations_that_give_one_name_are_an_error():
    trainer = make_trainer(batches_of(1))
    for _ in range(2):
        Validation(lambda: {"x": 1}, every_epochs=1).attach(trainer)
    with pytest.raises(ValueError, match=r"`prefix` must keep the metrics .*'val_', .*'val_x'"):
        trainer.run()


def test_one_validation_that_is_attached_twice_evaluates_once():
    trainer, calls = make_trainer(batches_of(1)), []
    validation = Validation(lambda: calls.append(1), every_epochs=1)
    first = validation.attach(trainer)
    validation.attach(trainer)
    trainer.run()
    first.remove()
    trainer.run()
    assert len(calls) == 2


def test_a_validation_attached_within_a_run_repeats_no_other():
    trainer, order = make_trainer(batches_of(1)), []
    Validation(lambda: order.append("a"), every_epochs=1).attach(trainer)

    @trainer.on(Events.EPOCH_COMPLETED(once=1))
    def attach(engine):
        Validation(lambda: order.append("b"), every_epochs=1, prefix="b_").attach(engine)

    trainer.run(max_epochs=2)
    assert order[0] == "a"
    assert order[-2:] == ["a", "b"]
    assert order.count("a") == 2


def test_an_interrupted_evaluator_starts_from_scratch():
    trainer, seen = make_trainer(batches_of(2)), []
    evaluator = Engine(lambda engine, batch: seen.append(batch))
    first = lambda engine, number: len(seen) == 2  # noqa: E731
    event = Events.ITERATION_COMPLETED(event_filter=first)
    evaluator.add_event_handler(event, evaluator.interrupt)
    Validation(evaluator, [1, 2, 3], every_steps=1).attach(trainer)
    trainer.run()
    assert seen == [1, 2, 1, 2, 3]


def test_a_removed_validation_that_was_due_is_not_run():
    trainer, order = make_trainer(batches_of(2)), []
    attachment = Validation(lambda: order.append("removed"), every_steps=1).attach(trainer)
    Validation(lambda: order.append("left"), every_steps=1).attach(trainer)
    trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=1), attachment.remove)
    trainer.run()
    assert order == ["left", "left"]


def test_a_new_run_forgets_the_validation_that_was_due():
    calls = []

    def fail_first():
        calls.append(trainer.state.iteration)
        if len(calls) == 1:
            raise Failure

    trainer = make_trainer(batches_of(3), validation=Validation(fail_first, every_steps=2))
    with pytest.raises(Failure):
        trainer.run(max_epochs=1)
    trainer.state.max_epochs = None
    trainer.run(max_epochs=1)
    assert calls == [2, 2]
    assert (trainer.state.iteration, trainer.state.validation) == (3, 1)


# No effect on training


def model_with_statistics():
    seed()
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)
    )


def trained(validation=None, prepare=lambda trainer: None):
    seed()
    trainer = make_trainer(shuffled(4), model=model_with_statistics())
    seed(2)
    if validation is not None:
        validation.attach(trainer)
    prepare(trainer)
    trainer.run(max_epochs=2)
    statistics = trainer.model[1].running_mean
    return torch.cat([weights(trainer.model), statistics]), torch.rand(1)


def test_a_callable_validates_in_eval_mode_without_gradients():
    seen = set()

    def evaluate(model):
        seen.add((any(each.training for each in model.modules()), torch.is_grad_enabled()))
        return {"loss": model(torch.ones(3, 4) + 5).mean().item()}

    expected = trained()
    got = trained(Validation(evaluate, every_steps=1, every_epochs=1, at_start=True))
    assert seen == {(False, False)}
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    "event", [TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED]
)
def test_handlers_of_its_events_may_draw_random_numbers(event):
    def sample(trainer):
        trainer.add_event_handler(event, draw_each)

    expected = trained()
    got = trained(Validation(lambda: None, every_steps=1, every_epochs=1), sample)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_contexts_around_it_may_draw_random_numbers():
    def sample(engine):
        draw_each()
        yield
        draw_each()

    expected = trained()
    got = trained(
        Validation(lambda: None, every_steps=1),
        lambda trainer: trainer.hooks.register("on_validation", sample),
    )
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    "event", [TrainEvents.VALIDATION_STARTED, TrainEvents.VALIDATION_COMPLETED]
)
def test_a_handler_of_its_events_may_freeze_a_layer(event):
    trainer = make_trainer(batches_of(2), validation=Validation(lambda: None, every_steps=1))

    def freeze(engine):
        engine.model[0].eval()
        engine.model[0].requires_grad_(False)

    trainer.add_event_handler(event, freeze)
    trainer.run()
    assert [each.training for each in trainer.model] == [False, True, True, True]
    assert not trainer.model[0].weight.requires_grad


def test_handlers_of_its_events_run_with_the_modes_of_training():
    trainer, seen = make_trainer(batches_of(1)), []
    note = lambda: seen.append((trainer.model.training, torch.is_grad_enabled()))  # noqa: E731
    trainer.add_event_handler(TrainEvents.VALIDATION_STARTED, note)
    Validation(note, every_epochs=1).attach(trainer)
    trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED, note)
    trainer.run()
    assert seen == [(True, True), (False, False), (True, True)]


# The metrics that handlers of EPOCH_COMPLETED see


def test_handlers_of_an_epoch_see_its_metrics_and_its_validation():
    trainer, seen = make_trainer(batches_of(3)), []
    note = lambda: seen.append(dict(trainer.state.metrics))  # noqa: E731
    trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
    Validation(lambda: {"epoch": trainer.state.epoch}, every_epochs=1).attach(trainer)
    Average(output_transform=lambda output: trainer.state.iteration).attach(trainer, "mean")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
    trainer.run(max_epochs=2)
    first, second = {"mean": 2, "val_epoch": 1}, {"mean": 5, "val_epoch": 2}
    assert seen == [first, first, second, second]


def test_a_validation_sees_the_metrics_of_its_own_epoch():
    trainer, seen = make_trainer(batches_of(3)), []
    Validation(lambda: seen.append(trainer.state.metrics["mean"]), every_epochs=1).attach(trainer)
    Average(output_transform=lambda output: trainer.state.iteration).attach(trainer, "mean")
    trainer.run(max_epochs=2)
    assert seen == [2, 5]


# The same precision as training


class Named(torch.nn.Module):
    """A model that is called by another method than ``forward``, and records dtypes."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.dtypes = []

    def predict(self, x):
        y = self.layer(x)
        self.dtypes.append((self.training, y.dtype))
        return y

    forward = predict


@pytest.mark.parametrize("way", ["forward", "model_fn", "batch_processor"])
def test_training_and_evaluation_have_the_same_precision(way):
    model, accelerator = Named(), Accelerator(cpu=True, mixed_precision="bf16")
    predict = {"model_fn": lambda model, x: model.predict(x)} if way == "model_fn" else {}
    transformed = []
    if way != "batch_processor":
        predict["model_transform"] = lambda y: transformed.append(y.dtype) or y
    options = {"loss_fn": F.mse_loss, **predict}
    if way == "batch_processor":

        def process(model, batch):
            y = accelerator.unwrap_model(model).predict(batch[0])
            return y, F.mse_loss(y.float(), batch[1])

        options = {"batch_processor": process}
    trainer = make_trainer(batches_of(1), model=model, accelerator=accelerator, **options)
    evaluator = create_supervised_evaluator(
        model, {"accuracy": Loss(F.mse_loss)}, accelerator=accelerator, **predict
    )
    Validation(evaluator, batches_of(1), every_epochs=1).attach(trainer)
    trainer.run()
    assert model.dtypes == [(True, torch.bfloat16), (False, torch.bfloat16)]
    assert set(transformed) <= {torch.float32}


def test_without_mixed_precision_training_has_full_precision():
    model = Named()
    trainer = make_trainer(batches_of(1), model=model)
    trainer.run()
    assert model.dtypes == [(True, torch.float32)]


def test_a_validation_gives_what_its_evaluator_gives():
    trainer = make_trainer(batches_of(1), dropout=0.5)
    evaluator = create_supervised_evaluator(
        trainer.model,
        {"accuracy": Accuracy(output_transform=lambda out: (out[0], out[1].argmax(1)))},
        accelerator=trainer.accelerator,
    )
    Validation(evaluator, batches_of(4), every_epochs=1).attach(trainer)
    metrics = dict(trainer.run().metrics)
    assert metrics == {"val_accuracy": evaluator.run(batches_of(4)).metrics["accuracy"]}
