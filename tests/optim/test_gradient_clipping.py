from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import GradientClipping
from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import create_supervised_trainer
from tests.ids import stable_id
from tests.reference import Noisy
from tests.reference import make_model
from tests.reference import train_on_windows
from tests.reference import weights

WINDOWS = [[0, 1], [2]]
LIMITS = [
    {"max_norm": 0.2},
    {"max_norm": 0.2, "norm_type": 1},
    {"max_norm": 0.2, "norm_type": 3.5},
    {"max_norm": 0.05, "norm_type": float("inf")},
    {"max_norm": float("inf")},
    {"clip_value": 0.02},
    {"clip_value": 1},
]


def make_batches(count=3):
    noisy = Noisy(2 * count)
    return [(noisy.x[at : at + 2], noisy.y[at : at + 2]) for at in range(0, 2 * count, 2)]


def make_sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def clip_with_torch(limits):
    """Returns torch's clipping function for these limits, and the norms that it returned."""
    norms = []

    def clip(parameters):
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if "clip_value" in limits:
            torch.nn.utils.clip_grad_value_(parameters, limits["clip_value"])
        else:
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, **limits))

    return clip, norms


def plain_loop(limits, model=None):
    model = model or make_model(dropout=0)
    clip, norms = clip_with_torch(limits)
    train_on_windows(model, make_sgd(model), make_batches(), WINDOWS, clip=clip)
    return weights(model), norms


def make_trainer(limits, *, scaler=None, model=None, **arguments):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    accelerator.scaler = scaler
    model = model or make_model(dropout=0)
    return create_supervised_trainer(
        model,
        make_sgd(model),
        F.mse_loss,
        make_batches(),
        accelerator=accelerator,
        grad_clip=GradientClipping(**limits) if limits else None,
        **arguments,
    )


def record_norms(engine):
    norms = []
    engine.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_COMPLETED,
        lambda engine: norms.append(engine.state.metrics.get("grad_norm")),
    )
    return norms


def assert_norms(norms, expected):
    if expected:
        assert torch.equal(torch.stack(norms), torch.stack(expected))
    else:
        assert norms == [None] * len(WINDOWS)


@pytest.mark.parametrize("path", ["plain", "accelerate", "scaler"])
@pytest.mark.parametrize("limits", LIMITS)
def test_clips_once_per_window_and_reports_the_norm_before(limits, path):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if path == "scaler" else None
    trainer = make_trainer(limits, scaler=scaler)
    trainer._optimizer_step.prepared.calls_torch_directly = path == "plain"
    norms = record_norms(trainer)
    trainer.run()
    expected, expected_norms = plain_loop(limits)
    assert torch.equal(weights(trainer.model), expected)
    assert_norms(norms, expected_norms)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("limits", LIMITS)
def test_clips_on_a_plain_ignite_engine(limits, accumulate):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = accelerator.prepare(make_model(dropout=0))

    def train(engine, batch):
        with accelerator.accumulate(model) if accumulate else nullcontext():
            accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))

    engine = Engine(train)
    OptimizerStep(accelerator, make_sgd(model)).attach(engine)
    GradientClipping(**limits).attach(engine)
    norms = record_norms(engine)
    engine.run(make_batches())
    expected, expected_norms = plain_loop(limits)
    assert torch.equal(weights(model), expected)
    assert_norms(norms, expected_norms)


def make_plain_engine():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = accelerator.prepare(make_model(dropout=0))
    engine = Engine(
        lambda engine, batch: accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))
    )
    engine.model = model
    OptimizerStep(accelerator, make_sgd(model)).attach(engine)
    return engine


@pytest.mark.parametrize("make", [make_plain_engine, lambda: make_trainer({})])
@pytest.mark.parametrize("limits", [{"max_norm": 0.2}, {"clip_value": 0.02}])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_clipping_acts_last_whenever_it_was_attached(place, limits, make):
    engine, largest = make(), []

    def record(engine):
        largest.append(max(float(p.grad.abs().max()) for p in engine.model.parameters()))

    @engine.on(TrainEvents.OPTIMIZER_STEP_STARTED)
    def rescale(engine):
        for parameter in engine.model.parameters():
            parameter.grad *= 3

    for number in range(3):
        if number == place:
            GradientClipping(**limits).attach(engine)
        engine.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, record)
    engine.add_event_handler(TrainEvents.OPTIMIZER_STEP_COMPLETED, record)
    engine.run(make_batches())
    for *before, after in (largest[:4], largest[4:]):
        assert len(set(before)) == 1
        assert before[0] > after
    model = make_model(dropout=0)
    clip, _ = clip_with_torch(limits)

    def rescale_and_clip(parameters):
        parameters = list(parameters)
        for parameter in parameters:
            parameter.grad *= 3
        clip(parameters)

    train_on_windows(model, make_sgd(model), make_batches(), WINDOWS, clip=rescale_and_clip)
    assert torch.equal(weights(engine.model), weights(model))


def test_an_attachment_is_removed_by_itself_and_by_its_context():
    trainer = make_trainer({})
    GradientClipping(max_norm=0.01).attach(trainer).remove()
    with GradientClipping(max_norm=0.01).attach(trainer):
        pass
    trainer.run()
    model = make_model(dropout=0)
    train_on_windows(model, make_sgd(model), make_batches(), WINDOWS)
    assert torch.equal(weights(trainer.model), weights(model))


def partly_frozen():
    """Returns a model with a frozen bias, and an unused layer whose gradients stay None."""
    model = make_model(dropout=0)
    model[0].bias.requires_grad_(False)
    model.add_module("unused", torch.nn.Linear(2, 2))
    model.forward = lambda x: model[3](model[1](model[0](x)))
    return model


@pytest.mark.parametrize("limits", LIMITS)
def test_frozen_parameters_and_those_without_gradient_are_ignored(limits):
    trainer = make_trainer(limits, model=partly_frozen())
    norms = record_norms(trainer)
    trainer.run()
    expected, expected_norms = plain_loop(limits, partly_frozen())
    assert torch.equal(weights(trainer.model), expected)
    assert_norms(norms, expected_norms)
    assert trainer.model.unused.weight.grad is None


def test_the_gradient_of_a_frozen_parameter_does_not_count():
    norms = []
    for frozen_gradient in (0.0, 1000.0):
        trainer = make_trainer({"max_norm": 0.2}, model=partly_frozen())
        bias = trainer.model[0].bias

        def leave_a_gradient(engine, bias=bias, value=frozen_gradient):
            bias.grad = torch.full_like(bias, value)

        trainer.add_event_handler(TrainEvents.MODEL_BACKWARD_COMPLETED, leave_a_gradient)
        norms.append(record_norms(trainer))
        trainer.run(max_iters=2)
        assert bias.grad is None
    assert_norms(*norms)


def test_norm_is_a_tensor_metric_only_when_clipping_by_norm():
    trainer = make_trainer({"max_norm": 0.2})
    trainer.run()
    norm = trainer.state.metrics["grad_norm"]
    assert isinstance(norm, torch.Tensor)
    assert norm.shape == ()
    assert norm > 0.2
    trainer = make_trainer({"clip_value": 0.2})
    trainer.run()
    assert "grad_norm" not in trainer.state.metrics


def test_the_overflow_of_a_scaler_is_not_hidden_by_clipping():
    batches = make_batches()
    batches[0] = (batches[0][0], batches[0][1] * torch.inf)
    trainer = make_trainer(
        {"clip_value": 0.02}, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0)
    )
    trainer.run(batches)
    assert trainer.state.optimizer_step == 1
    model = make_model(dropout=0)
    clip, _ = clip_with_torch({"clip_value": 0.02})
    train_on_windows(model, make_sgd(model), batches, [[2]], clip=clip)
    assert torch.equal(weights(trainer.model), weights(model))


@pytest.mark.parametrize("limits", [{"max_norm": 0.2}, {"clip_value": 0.02}])
def test_half_precision_gradients_are_unscaled_only_once(limits):
    trainer = make_trainer(limits, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    # As Accelerator(mixed_precision="fp16") has it, but for the rounding of its forward pass.
    trainer.accelerator.native_amp = True
    trainer.accelerator.state._mixed_precision = "fp16"
    assert trainer.accelerator.mixed_precision == "fp16"
    trainer.run()
    assert torch.equal(weights(trainer.model), plain_loop(limits)[0])


def test_clipping_can_be_attached_at_another_event():
    trainer = make_trainer({})
    GradientClipping(clip_value=0.02).attach(trainer, TrainEvents.OPTIMIZER_STEP_STARTED(every=2))
    largest = []
    trainer.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_STARTED,
        lambda engine: largest.append(
            float(max(parameter.grad.abs().max() for parameter in engine.model.parameters()))
        ),
    )
    trainer.run(max_epochs=2)
    # The event counts the steps before it: 0, 1, 2, 3.
    limit = pytest.approx(0.02)
    assert [value == limit for value in largest] == [True, False, True, False]


def test_a_second_clipper_is_an_error_when_it_is_attached():
    trainer = make_trainer({"max_norm": 1.0})
    with pytest.raises(ValueError, match=r"must have at most one GradientClipping.*remove\(\)"):
        GradientClipping(clip_value=1.0).attach(trainer)
    with pytest.raises(ValueError, match="must have at most one GradientClipping"):
        make_trainer({"max_norm": 1.0}, handlers=[GradientClipping(max_norm=1.0)])


def test_clips_for_a_replacement_optimizer_step():
    accelerator = Accelerator(cpu=True)
    model = make_model(dropout=0)
    first, second = (OptimizerStep(accelerator, make_sgd(model)) for _ in range(2))
    clipped = []
    for step in (first, second):
        step.prepared.clip_grad_norm_ = lambda *limits, step=step: clipped.append(step)

    def train(engine, batch):
        accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))

    engine = Engine(train)
    attachment = first.attach(engine)
    GradientClipping(max_norm=1.0).attach(engine)
    engine.run(make_batches()[:1])
    attachment.remove()
    second.attach(engine)
    first.attach(Engine(train))
    engine.run(make_batches()[:1])
    assert clipped == [first, second]


def test_a_clipper_may_follow_one_that_was_removed():
    trainer = make_trainer({})
    GradientClipping(max_norm=0.01).attach(trainer).remove()
    GradientClipping(max_norm=0.2).attach(trainer)
    trainer.run()
    assert torch.equal(weights(trainer.model), plain_loop({"max_norm": 0.2})[0])


def test_clipping_without_an_optimizer_step_is_an_error():
    engine = Engine(lambda engine, batch: None)
    message = r"`engine` must have an OptimizerStep .*, or first attach OptimizerStep\("
    with pytest.raises(ValueError, match=message):
        GradientClipping(max_norm=1.0).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, GradientClipping(max_norm=1.0))
    with pytest.raises(ValueError, match=message):
        engine.run([1])


def test_exactly_one_limit_must_be_given():
    message = "exactly one of `max_norm` and `clip_value` must be given, got .*max_norm=1.0 is"
    for limits in ({}, {"max_norm": 1.0, "clip_value": 1.0}, {"norm_type": 2.0}):
        with pytest.raises(ValueError, match=message):
            GradientClipping(**limits)


BAD = [0, 0.0, -1.0, float("nan"), float("-inf"), True, False, "1", [1.0], torch.tensor(1.0)]


@pytest.mark.parametrize("value", BAD, ids=stable_id)
@pytest.mark.parametrize("name", ["max_norm", "clip_value", "norm_type"])
def test_a_limit_must_be_a_number_above_zero(name, value):
    limits = {"max_norm": 1.0, name: value} if name != "clip_value" else {name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be a number > 0") as raised:
        GradientClipping(**limits)
    assert f"got {value!r}" in str(raised.value)


def test_norm_type_must_not_be_none():
    with pytest.raises(ValueError, match=r"`norm_type` must be .* or inf, got None; 2\.0"):
        GradientClipping(max_norm=1.0, norm_type=None)


def test_clippers_with_equal_limits_are_not_equal():
    assert GradientClipping(max_norm=1.0) != GradientClipping(max_norm=1.0)
