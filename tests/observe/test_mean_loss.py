"""Tests of MeanLoss against sums of the losses that a plain list keeps."""

import gc
import itertools
import weakref

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from torch.utils._python_dispatch import TorchDispatchMode

from ignite_hooks import MeanLoss
from ignite_hooks import OptimizerStep
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks.core.handler import attached_handlers
from tests.reference import FakeScaler
from tests.reference import Notes
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer


def mean(losses):
    """Returns the mean as a plain loop computes it, in double precision."""
    total = 0.0
    for loss in losses:
        total += float(loss)
    return total / len(losses)


def recording(trainer, losses=None, reports=None, name="loss"):
    """Returns (losses of all batches, reports by step), which grow during runs of ``trainer``."""
    losses = Notes() if losses is None else losses
    reports = Notes() if reports is None else reports

    @trainer.on(TrainEvents.MODEL_BACKWARD_COMPLETED)
    def note_loss(engine):
        losses.append(engine.state.loss.item())

    def note_report(engine):
        value = engine.state.metrics.get(name)
        if value is not None and (not reports or reports[-1][1] != value):
            reports.append((engine.state.optimizer_step, value))

    for event in (TrainEvents.STEP_COMPLETED, Events.EPOCH_COMPLETED, Events.TERMINATE):
        trainer.add_event_handler(event, note_report)
    return losses, reports


@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_mean_is_that_of_the_iterations_since_the_last_report(accumulation):
    trainer = make_trainer(batches_of(7), accumulation=accumulation)
    losses, reports = recording(trainer)
    MeanLoss(every_steps=2).attach(trainer)
    trainer.run(max_epochs=2)
    per_epoch = -(-7 // accumulation)
    ends = [*itertools.accumulate([accumulation] * (per_epoch - 1)), 7]
    expected, last = [], 0
    for epoch, (step, end) in itertools.product(range(2), enumerate(ends, 1)):
        steps, end = epoch * per_epoch + step, epoch * 7 + end
        if steps % 2 == 0 or step == per_epoch:
            expected.append((steps, mean(losses[last:end])))
            last = end
    assert reports == expected


def test_earlier_handlers_of_the_step_see_the_new_mean():
    trainer = make_trainer(batches_of(6))
    losses, reports = recording(trainer)  # attached before the MeanLoss
    with MeanLoss(every_steps=3).attach(trainer):
        trainer.run()
    assert reports == [(3, mean(losses[:3])), (6, mean(losses[3:]))]


def test_interval_beyond_the_epoch_gives_the_mean_of_each_epoch():
    trainer = make_trainer(batches_of(5))
    losses, reports = recording(trainer, name="epoch_loss")
    MeanLoss(every_steps=1000, prefix="epoch_").attach(trainer)
    trainer.run(max_epochs=2)
    assert reports == [(5, mean(losses[:5])), (10, mean(losses[5:]))]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_of_skipped_steps_are_left_out(accumulation):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    accelerator.scaler = FakeScaler(2, 4)
    trainer = make_trainer(batches_of(8), accelerator=accelerator)
    losses, reports = recording(trainer)
    MeanLoss(every_steps=1).attach(trainer)
    trainer.run()
    windows = [losses[at : at + accumulation] for at in range(0, 8, accumulation)]
    kept = [window for number, window in enumerate(windows, 1) if number not in (2, 4)]
    assert reports == [(step, mean(window)) for step, window in enumerate(kept, 1)]


def test_losses_of_a_dropped_window_are_left_out():
    trainer = make_trainer(batches_of(8), accumulation=2)
    losses, reports = recording(trainer)
    MeanLoss(every_steps=3).attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED)
    def stop(engine):
        if len(losses) == 5 and not reports:  # in the middle of the third window
            engine.terminate()

    trainer.run()
    assert reports == [(2, mean(losses[:4]))]  # reported at TERMINATE
    del losses[4]  # the fifth batch is given again
    trainer.run()
    assert reports[1:] == [(3, mean(losses[4:6])), (4, mean(losses[6:8]))]


@pytest.mark.parametrize(
    "event", [Events.ITERATION_COMPLETED, TrainEvents.OPTIMIZER_STEP_COMPLETED]
)
def test_failure_after_a_step_loses_and_repeats_no_loss(event):
    trainer = make_trainer(batches_of(8), accumulation=2)

    @trainer.on(event)
    def fail(engine):
        if engine.state.iteration == 4 and engine.state.optimizer_step == 2 and not failed:
            failed.append(True)
            raise OSError("once")

    failed = []
    losses, reports = recording(trainer)
    MeanLoss(every_steps=2).attach(trainer)
    with pytest.raises(OSError, match="once"):
        trainer.run()
    trainer.run()
    assert len(losses) == 8
    assert reports == [(2, mean(losses[:4])), (4, mean(losses[4:]))]


def test_new_run_starts_from_zero():
    trainer = make_trainer(batches_of(4))
    losses, reports = recording(trainer)
    MeanLoss(every_steps=10).attach(trainer)

    @trainer.on(
        Events.ITERATION_STARTED(event_filter=lambda engine, number: number == 3 and not losses[2:])
    )
    def fail(engine):
        raise OSError("once")

    with pytest.raises(OSError, match="once"):
        trainer.run()
    trainer.state.max_epochs = None
    trainer.run(max_epochs=1)
    assert reports == [(4, mean(losses[2:]))]


@pytest.mark.parametrize("steps", [9, 10, 11])
def test_continued_run_reports_at_multiples(steps, tmp_path):
    def run(limit, **options):
        trainer = make_trainer(batches_of(20), handlers=[MeanLoss(every_steps=5)], **options)
        recording(trainer, reports=reports)
        trainer.run(max_steps=limit)
        return trainer

    reports = Notes()
    trainer = run(steps, checkpoint=SaveCheckpoint(tmp_path))
    trainer.run(max_steps=20)
    assert [step for step, _ in reports] == sorted({5, 10, steps, 15, 20})
    reports[:] = [each for each in reports if each[0] <= steps and each[0] % 5 == 0]
    run(20, resume_from=tmp_path / f"step_{steps:08}")
    assert [step for step, _ in reports] == [5, 10, 15, 20]


@pytest.mark.parametrize("steps", [3, 4, 5])
def test_resumed_run_reports_as_if_it_had_not_stopped(steps, tmp_path):
    def run(reports, limits, **options):
        handlers = [MeanLoss(every_steps=3)]
        trainer = make_trainer(batches_of(7), accumulation=2, handlers=handlers, **options)
        recording(trainer, reports=reports)
        trainer.run(**limits)

    unbroken, reports = Notes(), Notes()
    run(unbroken, {"max_epochs": 2})
    run(reports, {"max_steps": steps}, checkpoint=SaveCheckpoint(tmp_path))
    if steps == 5:
        assert reports.pop() not in unbroken  # the rest, which was reported at the end of the run
    run(reports, {"max_epochs": 2}, resume_from=tmp_path)
    assert reports == unbroken


def test_sums_of_other_losses_are_not_continued():
    handler = MeanLoss(keys=["a"])
    state = {"names": ["loss", "b"], "sums": [torch.ones(()), torch.ones(())], "count": 1}
    handler.load_state_dict(state)
    assert handler.state_dict() == {"names": ["loss", "a"], "sums": [], "count": 0}


def losses_by_name(model, batch):
    outputs = model(batch[0])
    parts = {"fit": F.mse_loss(outputs, batch[1]), "size": outputs.abs().mean().reshape(1, 1)}
    return {**parts, "number": 2.0, "outputs": outputs}, parts["fit"] + parts["size"].sum()


def by_name(**options):
    return make_trainer(batches_of(6), loss_fn=None, batch_processor=losses_by_name, **options)


def test_several_losses_are_reported_by_name():
    trainer = by_name(
        handlers=[MeanLoss(every_steps=6, keys=["fit", "size", "number"], prefix="train/")]
    )
    outputs = Notes()

    @trainer.on(TrainEvents.MODEL_FORWARD_COMPLETED)
    def note(engine):
        outputs.append(
            {
                k: float(torch.as_tensor(v).detach())
                for k, v in engine.state.model_outputs.items()
                if k != "outputs"
            }
        )

    losses, _ = recording(trainer)
    trainer.run()
    assert trainer.state.metrics == {
        "train/loss": mean(losses),
        **{f"train/{key}": mean([each[key] for each in outputs]) for key in outputs[0]},
    }


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (
            ["fot"],
            ValueError,
            r"`state.model_outputs` must have the loss 'fot' .* did you mean `fit`",
        ),
        (
            ["outputs"],
            ValueError,
            r"`state.model_outputs\['outputs'\]` must be a scalar .* \(2, 2\)",
        ),
    ],
)
def test_wrong_key_is_an_error_in_the_first_iteration(keys, error, message):
    trainer = by_name(handlers=[MeanLoss(keys=keys)])
    with pytest.raises(error, match=message):
        trainer.run()
    assert trainer.state.optimizer_step == 0


def test_outputs_without_names_are_an_error():
    trainer = make_trainer(batches_of(2), handlers=[MeanLoss(keys=["fit"])])
    with pytest.raises(
        TypeError, match=r"`state.model_outputs` must be a mapping .*, got a tensor"
    ):
        trainer.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": ["loss"]}, r'`keys` must not contain "loss"'),
        ({"keys": "fit"}, r"`keys` must be a tuple or list of different strings"),
        ({"keys": ["a", "a"]}, r"`keys` must be a tuple or list of different strings"),
        ({"every_steps": 0}, r"`every_steps` must be an integer >= 1"),
        ({"prefix": None}, r"`prefix` must be a string"),
    ],
)
def test_wrong_argument_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        MeanLoss(**arguments)


def test_second_use_is_an_error():
    handler = MeanLoss()
    trainer = make_trainer(handlers=[handler])
    with pytest.raises(ValueError, match="must not write to one name, got 'loss' twice"):
        MeanLoss().attach(trainer)
    with pytest.raises(ValueError, match="must be attached to one engine only"):
        handler.attach(make_trainer())
    with pytest.raises(ValueError, match="`event` must be left out"):
        MeanLoss(prefix="b").attach(trainer, Events.EPOCH_COMPLETED)


def test_loss_that_is_a_parameter_is_that_of_its_batch():
    model = make_model(0.0)

    def process(model, batch):
        outputs = model(batch[0])
        return {"bias": model[0].bias[:1]}, F.mse_loss(outputs, batch[1])

    trainer = make_trainer(
        batches_of(4), accumulation=2, model=model, loss_fn=None, batch_processor=process
    )
    values = Notes()
    trainer.add_event_handler(
        TrainEvents.MODEL_BACKWARD_COMPLETED,
        lambda engine: values.append(engine.model[0].bias[0].item()),
    )
    MeanLoss(every_steps=2, keys=["bias"]).attach(trainer)
    trainer.run()
    assert trainer.state.metrics["bias"] == mean(values)


def test_handler_is_freed_and_can_be_used_after_its_engine():
    handler = MeanLoss()
    handler.attach(make_trainer())
    gc.collect()
    trainer = make_trainer(batches_of(2), handlers=[handler])
    trainer.run()
    assert trainer.state.metrics["loss"] > 0
    freed = weakref.ref(handler)
    del handler, trainer
    gc.collect()
    assert freed() is None


def test_second_attachment_starts_from_zero():
    trainer = make_trainer(batches_of(20))
    handler = MeanLoss(every_steps=5)
    attachment = handler.attach(trainer)
    losses, reports = recording(trainer)
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED(once=7), lambda engine: attachment.remove()
    )
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=13), lambda engine: handler.attach(engine)
    )
    trainer.run()
    assert reports == [(5, mean(losses[:5])), (15, mean(losses[12:15])), (20, mean(losses[15:]))]


class ReadValues(TorchDispatchMode):
    """Counts the calls of ``item()`` and ``float()``, each of which would wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_no_loss_is_read_from_the_device_by_itself():
    trainer = make_trainer(batches_of(8), handlers=[MeanLoss(every_steps=4)])
    with ReadValues() as values:
        trainer.run()
    assert trainer.state.metrics["loss"] > 0
    assert values.count == 0


# -- plain Ignite engines -----------------------------------------------------------------------


def reports_of(engine, event):
    reports = []
    engine.add_event_handler(
        event, lambda engine: reports.append((engine.state.iteration, dict(engine.state.metrics)))
    )
    return reports


@pytest.mark.parametrize(
    "output", [float, torch.tensor, lambda value: {"loss": torch.tensor(value)}]
)
def test_plain_engine_reports_its_output(output):
    engine = Engine(lambda engine, batch: output(float(batch)))
    MeanLoss(every_steps=2).attach(engine)
    reports = reports_of(engine, Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED)
    engine.run([1, 2, 4, 8, 16])
    assert [metrics.get("loss") for _, metrics in reports] == [None, 1.5, 1.5, 6.0, 6.0, 16.0]


def stepped_engine(accumulation, *skipped):
    """Returns a plain engine with an OptimizerStep and a MeanLoss, its losses, and its reports."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    accelerator.scaler = FakeScaler(*skipped)
    model = accelerator.prepare(make_model(0.0))
    losses = []

    def train(engine, batch):
        loss = F.mse_loss(model(batch[0]), batch[1])
        accelerator.backward(loss)
        losses.append(loss.item())
        return losses[-1]

    engine = Engine(train)
    OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1)).attach(engine)
    MeanLoss(every_steps=1).attach(engine)
    return engine, losses, reports_of(engine, TrainEvents.STEP_COMPLETED)


@pytest.mark.parametrize("skipped", [(), (2,)])
def test_plain_engine_with_steps_reports_by_step(skipped):
    engine, losses, reports = stepped_engine(2, *skipped)
    engine.run(batches_of(7))
    windows = [losses[at : at + 2] for at in range(0, 7, 2)]
    kept = [window for number, window in enumerate(windows, 1) if number not in skipped]
    assert [metrics["loss"] for _, metrics in reports] == [mean(each) for each in kept]


def test_step_at_the_end_of_data_of_unknown_length_is_reported():
    engine, losses, reports = stepped_engine(4)
    engine.run(iter(batches_of(6)))
    assert [metrics["loss"] for _, metrics in reports] == [mean(losses[:4]), mean(losses[4:])]


def test_optimizer_step_attached_later_is_an_error():
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(make_model(0.0))
    engine = Engine(lambda engine, batch: 1.0)
    MeanLoss().attach(engine)
    with pytest.warns(UserWarning, match="attached after other handlers"):
        OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1)).attach(engine)
    with pytest.raises(ValueError, match="OptimizerStep must be attached before a MeanLoss"):
        engine.run([1])


def test_replaced_optimizer_step_is_an_error():
    engine, _, _ = stepped_engine(2)
    (step,) = attached_handlers(engine, OptimizerStep)
    step.attachment.remove()
    with pytest.raises(ValueError, match="attached after it, or replaced"):
        engine.run(batches_of(2))


def test_output_that_is_no_loss_is_an_error():
    engine = Engine(lambda engine, batch: (1.0, 2.0))
    MeanLoss().attach(engine)
    with pytest.raises(ValueError, match=r"`state.output` must be a scalar .*, got tuple"):
        engine.run([1])


def test_removed_handler_reports_no_more():
    trainer = make_trainer(batches_of(4))
    with MeanLoss(every_steps=1).attach(trainer):
        pass
    trainer.run()
    assert "loss" not in trainer.state.metrics
