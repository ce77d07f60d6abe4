"""Tests of Throughput by a clock that moves only when the test says so."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import GradientClipping
from ignite_hooks import MeanLoss
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Throughput
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.reference import FakeScaler
from tests.reference import Notes
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import samples

WARM_UP = 3


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Samples(Dataset):
    """Samples of which each takes time to come."""

    def __init__(self, clock, count, seconds):
        self.clock, self.samples, self.seconds = clock, samples(count), seconds

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.clock.now += self.seconds
        return self.samples[index]


def loader_of(clock, batches, wait=1.0):
    """Returns a loader of batches of two samples. A batch takes ``wait`` seconds to come."""
    return DataLoader(Samples(clock, 2 * batches, wait / 2), batch_size=2)


def timed(clock, batches=20, *, seconds=3.0, wait=1.0, data=None, **options):
    """Returns a trainer in which a batch takes ``wait`` to come and ``seconds`` to train on."""

    def process(model, batch):
        clock.now += seconds
        outputs = model(batch[0])
        return outputs, F.mse_loss(outputs, batch[1])

    data = loader_of(clock, batches, wait) if data is None else data
    return make_trainer(data, loss_fn=None, batch_processor=process, **options)


def reports_of(trainer):
    """Returns (step, metrics) at each new report, seen by a handler that was attached before."""
    reports = Notes()

    def note(engine):
        metrics = dict(engine.state.metrics)
        if "steps_per_second" in metrics and (not reports or reports[-1][1] != metrics):
            reports.append((engine.state.optimizer_step, metrics))

    for event in (TrainEvents.STEP_COMPLETED, Events.EPOCH_COMPLETED, Events.TERMINATE):
        trainer.add_event_handler(event, note)
    return reports


@pytest.mark.parametrize("accumulation", [1, 2])
def test_speed_is_that_of_the_last_steps(accumulation):
    clock = Clock()
    trainer = timed(clock, 20, accumulation=accumulation)
    reports = reports_of(trainer)
    items = lambda batch: batch[0].numel()  # noqa: E731
    Throughput(every_steps=5, window=4, items=items, clock=clock).attach(trainer)
    trainer.run()
    step, metrics = reports[-1]
    assert step == 20 // accumulation
    assert metrics["steps_per_second"] == pytest.approx(1 / (4 * accumulation))
    assert metrics["samples_per_second"] == pytest.approx(2 / 4)
    assert metrics["items_per_second"] == pytest.approx(2 * 4 / 4)
    assert metrics["data_wait"] == pytest.approx(1 / 4)
    assert metrics["remaining_seconds"] == 0.0


def test_first_steps_of_a_run_do_not_count():
    clock = Clock()
    trainer = timed(clock, 6)

    @trainer.on(Events.ITERATION_STARTED(event_filter=lambda engine, number: number <= WARM_UP))
    def compile_model(engine):
        clock.now += 100.0

    reports = reports_of(trainer)
    Throughput(every_steps=1, clock=clock).attach(trainer)
    trainer.run()
    assert [step for step, _ in reports] == [4, 5, 6]
    assert {metrics["steps_per_second"] for _, metrics in reports} == {1 / 4}


def test_next_run_is_measured_afresh():
    clock = Clock()
    trainer = timed(clock, 20)

    class Slower(Notes):
        def append(self, engine):
            clock.now += 2.0

    later = Slower()
    Throughput(every_steps=2, clock=clock).attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_STARTED(event_filter=lambda engine, number: number > 8), later.append
    )
    trainer.run(max_steps=8)
    clock.now += 1000.0
    trainer.state.metrics.clear()
    trainer.run(max_steps=8 + WARM_UP)
    assert "steps_per_second" not in trainer.state.metrics
    trainer.run(max_steps=18)
    assert trainer.state.metrics["steps_per_second"] == 1 / 6


def test_last_batches_that_are_smaller_are_counted_as_they_are():
    clock = Clock()
    data = DataLoader(Samples(clock, 15, 0.5), batch_size=2)
    trainer = timed(clock, data=data)
    Throughput(every_steps=100, window=2, clock=clock).attach(trainer)
    trainer.run()
    assert trainer.state.metrics["samples_per_second"] == (2 + 1) / 7.5


@pytest.mark.parametrize("limits", [{"max_steps": 24}, {"max_epochs": 3}, {"max_iters": 48}])
def test_remaining_time_is_that_until_the_first_limit(limits):
    clock = Clock()
    trainer = timed(clock, 16, accumulation=2)
    reports = reports_of(trainer)
    Throughput(every_steps=4, clock=clock).attach(trainer)
    trainer.run(**limits)
    end = 24
    assert [step for step, _ in reports] == [4, 8, 12, 16, 20, 24]
    assert [metrics["remaining_seconds"] for _, metrics in reports] == [
        (end - step) * 8.0 for step, _ in reports
    ]


def test_last_short_window_of_an_epoch_counts_as_a_step():
    clock = Clock()
    trainer = timed(clock, 7, accumulation=2, wait=0.0, seconds=1.0)
    reports = reports_of(trainer)
    Throughput(every_steps=4, window=1, clock=clock).attach(trainer)
    trainer.run(max_epochs=3)
    # The last step before the report had one batch.
    assert reports[0][1]["remaining_seconds"] == 8 * 1.0


def test_validations_pauses_and_saves_are_counted(tmp_path):
    clock, spent = Clock(), {}
    trainer = timed(clock, 10, checkpoint=SaveCheckpoint(tmp_path, every_steps=5, at_end=False))

    def validate(engine):
        clock.now += 20.0
        return {"score": 1.0}

    @trainer.on(Events.EPOCH_STARTED | Events.EPOCH_COMPLETED)
    def pause(engine):
        clock.now += 1.0

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def save(engine):
        clock.now += 7.0

    Validation(validate, every_epochs=1).attach(trainer)
    reports = reports_of(trainer)
    Throughput(every_steps=10, clock=clock).attach(trainer)

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def note(engine):
        spent[engine.state.optimizer_step] = clock.now

    trainer.run(max_epochs=8)
    for step, metrics in reports[3:-1]:
        # The two seconds between two epochs are spread over all saves.
        assert metrics["remaining_seconds"] == pytest.approx(clock.now - spent[step], abs=3.0)
    assert {metrics["steps_per_second"] for _, metrics in reports} == {1 / 4}


def test_saves_by_the_clock_and_at_the_end_are_counted(tmp_path):
    clock = Clock()
    save = SaveCheckpoint(tmp_path, every_steps=6, every_seconds=1000.0)
    trainer = timed(clock, 40, wait=0.0, seconds=100.0, checkpoint=save)

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def take_time(engine):
        clock.now += 7.0

    reports = reports_of(trainer)
    Throughput(every_steps=10, clock=clock).attach(trainer)
    trainer.run()
    # At step 10: 3,000 s, five saves by step, three by the clock, and one at the end.
    assert reports[0][1]["remaining_seconds"] == pytest.approx(3000.0 + 9 * 7.0)


def test_remaining_time_is_left_out_if_the_end_is_not_known():
    clock = Clock()

    trainer = timed(clock, data=Repeatable(batches_of(9)))
    reports = reports_of(trainer)
    Throughput(every_steps=5, clock=clock).attach(trainer)
    trainer.run(max_epochs=2)
    step, metrics = reports[0]
    assert step == 5
    assert metrics["steps_per_second"] == 1 / 3
    assert "remaining_seconds" not in metrics
    # The length of the second epoch becomes known with its last batch.
    remaining = [(step, metrics.get("remaining_seconds")) for step, metrics in reports]
    assert remaining == [(5, None), (9, 27.0), (10, None), (15, None), (18, 0.0)]


def test_validation_within_a_step_does_not_count_for_its_time():
    clock = Clock()
    trainer = timed(clock, 20, accumulation=2)

    def validate(engine):
        clock.now += 1000.0
        return {"score": 1.0}

    Validation(validate).attach(trainer, Events.ITERATION_COMPLETED(every=5))
    Throughput(every_steps=1, window=1, clock=clock).attach(trainer)
    reports = reports_of(trainer)
    trainer.run()
    assert {metrics["steps_per_second"] for _, metrics in reports} == {1 / 8}


@pytest.mark.parametrize("way", ["terminate_epoch", "skipped step"])
def test_end_of_an_epoch_does_not_count_for_the_next_step(way):
    clock, accelerator = Clock(), Accelerator(cpu=True, gradient_accumulation_steps=2)
    if way == "skipped step":
        accelerator.scaler = FakeScaler(10)
    trainer = timed(clock, 20, accelerator=accelerator)

    @trainer.on(Events.ITERATION_COMPLETED(once=19))
    def stop(engine):
        if way == "terminate_epoch":
            engine.terminate_epoch()

    @trainer.on(Events.EPOCH_COMPLETED)
    def pause(engine):
        clock.now += 1000.0

    Throughput(every_steps=1, window=1, clock=clock).attach(trainer)
    reports = reports_of(trainer)
    trainer.run(max_epochs=2)
    assert {metrics["steps_per_second"] for _, metrics in reports} == {1 / 8}
    assert {metrics["samples_per_second"] for _, metrics in reports} == {4 / 8}


def test_work_that_is_due_together_is_counted_once(tmp_path):
    clock = Clock()
    save = SaveCheckpoint(tmp_path, every_steps=10, every_epochs=1)
    trainer = timed(clock, 10, wait=0.0, seconds=1.0, checkpoint=save)

    def validate(engine):
        clock.now += 250.0
        return {"score": 1.0}

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def take_time(engine):
        clock.now += 7.0

    for name in ("a_", "b_"):
        Validation(validate, every_steps=10, every_epochs=1, prefix=name).attach(trainer)
    Throughput(every_steps=15, clock=clock).attach(trainer)
    remaining = Notes()
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED(every=15),
        lambda engine: remaining.append(engine.state.metrics["remaining_seconds"]),
    )
    trainer.run(max_epochs=6)
    assert remaining[0] == pytest.approx(45 + 5 * 500 + 5 * 7)


def test_validations_of_every_second_epoch_are_counted():
    clock = Clock()
    trainer = timed(clock, 10, wait=0.0, seconds=1.0)

    def validate(engine):
        clock.now += 100.0
        return {"score": 1.0}

    Validation(validate, every_epochs=2).attach(trainer)
    Throughput(every_steps=35, clock=clock).attach(trainer)
    remaining = Notes()
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED(once=35),
        lambda engine: remaining.append(engine.state.metrics["remaining_seconds"]),
    )
    trainer.run(max_epochs=6)
    assert remaining == [25 + 2 * 100.0]  # after the epochs 4 and 6


def test_values_of_an_earlier_run_are_removed():
    trainer = make_trainer(batches_of(6), handlers=[Throughput(every_steps=2)])
    trainer.run()
    assert trainer.state.metrics["remaining_seconds"] == 0.0
    seen = Notes()
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda engine: seen.append(dict(engine.state.metrics))
    )
    trainer.run(max_epochs=1)
    assert seen == [{}]


def test_skipped_steps_count_for_the_samples_only():
    clock, accelerator = Clock(), Accelerator(cpu=True)
    accelerator.scaler = FakeScaler(6)
    trainer = timed(clock, 8, accelerator=accelerator)
    Throughput(every_steps=100, clock=clock).attach(trainer)
    trainer.run()
    assert trainer.state.optimizer_step == 7
    # Of the eight batches three are warm-up.
    assert trainer.state.metrics["steps_per_second"] == 4 / 20
    assert trainer.state.metrics["samples_per_second"] == 10 / 20


# -- the optimizer ------------------------------------------------------------------------------


def test_rate_and_norm_are_those_of_the_reported_step():
    model = make_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer(
        batches_of(8),
        model=model,
        optimizer=optimizer,
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    )
    Throughput(every_steps=4).attach(trainer)
    norms, reported = Notes(), Notes()

    @trainer.on(TrainEvents.OPTIMIZER_STEP_STARTED)
    def note_norm(engine):
        gradients = [p.grad.flatten() for p in engine.model.parameters()]
        norms.append(torch.cat(gradients).norm().item())

    @trainer.on(TrainEvents.STEP_COMPLETED(every=4))
    def note(engine):
        metrics = engine.state.metrics
        reported.append((metrics["lr"], float(metrics["grad_norm"])))

    trainer.run()
    assert reported == [
        (0.1 * 0.5**3, pytest.approx(norms[3], rel=1e-6)),
        (0.1 * 0.5**7, pytest.approx(norms[7], rel=1e-6)),
    ]


def test_several_groups_have_their_rates_by_number():
    model = make_model(dropout=0.0)
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    trainer = make_trainer(batches_of(2), model=model, optimizer=optimizer)
    Throughput(every_steps=2).attach(trainer)
    trainer.run()
    assert trainer.state.metrics["lr_0"] == 0.1
    assert trainer.state.metrics["lr_1"] == 0.2
    assert "lr" not in trainer.state.metrics


@pytest.mark.parametrize("order", [1, -1])
def test_clipping_by_norm_writes_the_norm_itself(order):
    trainer = make_trainer(batches_of(2))
    for handler in [GradientClipping(max_norm=1e-3), Throughput(every_steps=2)][::order]:
        handler.attach(trainer)
    counts = Notes()
    trainer.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_STARTED,
        lambda engine: counts.append("grad_norm" in engine.state.metrics),
    )
    trainer.run()
    assert counts == [False, True]
    assert float(trainer.state.metrics["grad_norm"]) > 1e-3


def test_norm_is_that_from_before_a_clipping_by_value():
    trainer = make_trainer(batches_of(2), grad_clip=GradientClipping(clip_value=1e-6))
    Throughput(every_steps=2).attach(trainer)
    trainer.run()
    assert float(trainer.state.metrics["grad_norm"]) > 1e-3


@pytest.mark.parametrize("handler", [Throughput(every_steps=1), None])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_measuring_the_norm_of_an_infinite_gradient_changes_nothing(handler, value):
    clipping = GradientClipping(clip_value=1.0) if handler else GradientClipping(max_norm=math.inf)
    trainer = make_trainer(batches_of(2), grad_clip=clipping)
    if handler:
        handler.attach(trainer)
    gradients = Notes()

    @trainer.on(TrainEvents.OPTIMIZER_STEP_STARTED)
    def overflow(engine):
        engine.model[0].bias.grad[0] = value

    @trainer.on(TrainEvents.OPTIMIZER_STEP_COMPLETED)
    def note(engine):
        gradients.append(torch.cat([p.grad.flatten() for p in engine.model.parameters()]))

    trainer.run(max_steps=1)
    is_kept = gradients[0].isfinite()
    assert is_kept.sum() >= is_kept.numel() - 1
    assert not float(trainer.state.metrics["grad_norm"]) < math.inf


def test_rate_that_is_a_tensor_is_that_of_the_step():
    model = make_model(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.5), foreach=False)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    trainer = make_trainer(batches_of(3), model=model, optimizer=optimizer, lr_scheduler=schedule)
    rates = Notes()
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, lambda engine: rates.append(engine.state.metrics["lr"])
    )
    Throughput(every_steps=1).attach(trainer)
    trainer.run()
    assert rates == [0.5, 0.25, 0.125]


def test_groups_without_a_rate_have_none():
    class Fixed(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        def step(self, closure=None):
            for group in self.param_groups:
                for each in group["params"]:
                    each.data -= 0.1 * each.grad

    model = make_model(dropout=0.0)
    optimizer = Fixed(model.parameters())
    trainer = make_trainer(batches_of(2), model=model, optimizer=optimizer)
    Throughput(every_steps=1).attach(trainer)
    trainer.run()
    assert "lr" not in trainer.state.metrics
    assert float(trainer.state.metrics["grad_norm"]) > 0


def test_sparse_gradients_have_no_norm():
    model = torch.nn.Sequential(
        torch.nn.Embedding(8, 4, sparse=True), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )
    batches = [(torch.randint(0, 8, (3, 2)), torch.rand(3, 2)) for _ in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer(batches, model=model, optimizer=optimizer)
    Throughput(every_steps=1).attach(trainer)
    trainer.run()
    assert trainer.state.metrics["lr"] == 0.1
    assert "grad_norm" not in trainer.state.metrics


def test_norm_that_clipping_measures_is_not_replaced():
    trainer = make_trainer(batches_of(2), grad_clip=GradientClipping(max_norm=1.0, norm_type=1.0))
    norms = Notes()
    trainer.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_COMPLETED,
        lambda engine: norms.append(float(engine.state.metrics["grad_norm"])),
    )
    Throughput(every_steps=2).attach(trainer)
    trainer.run()
    assert float(trainer.state.metrics["grad_norm"]) == norms[-1]


@pytest.mark.parametrize("is_removed", [False, True])
def test_norm_is_measured_at_reports_only(monkeypatch, is_removed):
    calls, measure = Notes(), torch.nn.utils.get_total_norm

    def counted(*args, **kwargs):
        calls.append(None)
        return measure(*args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", counted)
    trainer = make_trainer(batches_of(9))
    attachment = Throughput(every_steps=4).attach(trainer)
    if is_removed:
        attachment.remove()
    trainer.run()
    assert len(calls) == (0 if is_removed else 2)


def test_measuring_the_norm_changes_no_gradient():
    weights = []
    for handlers in ([], [Throughput(every_steps=1)], [MeanLoss(every_steps=1)]):
        trainer = make_trainer(batches_of(4), handlers=handlers)
        trainer.run()
        weights.append([each.detach().clone() for each in trainer.model.parameters()])
    for others in weights[1:]:
        for one, other in zip(weights[0], others, strict=True):
            assert torch.equal(one, other)


# -- other engines and wrong use ----------------------------------------------------------------


def test_plain_engine_reports_its_iterations():
    clock = Clock()

    def process(engine, batch):
        clock.now += 3.0

    engine = Engine(process)
    Throughput(every_steps=5, clock=clock).attach(engine)
    engine.run(loader_of(clock, 10), max_epochs=2)
    assert engine.state.metrics == {
        "steps_per_second": 1 / 4,
        "samples_per_second": 2 / 4,
        "data_wait": 1 / 4,
        "remaining_seconds": 0.0,
    }


def test_engine_without_data_reports_its_steps():
    clock = Clock()

    def process(model, batch):
        clock.now += 3.0
        return None, model(torch.ones(1, 4)).mean()

    trainer = make_trainer(loss_fn=None, batch_processor=process)
    Throughput(every_steps=5, clock=clock).attach(trainer)
    trainer.run(max_epochs=1, epoch_length=10)
    metrics = trainer.state.metrics
    assert metrics["steps_per_second"] == 1 / 3
    assert metrics["data_wait"] == 0.0


def test_items_may_be_a_number_of_numpy():
    engine = Engine(lambda engine, batch: None)
    Throughput(every_steps=1, items=lambda batch: np.prod(batch.shape)).attach(engine)
    engine.run([torch.ones(2, 3)] * 5)
    assert engine.state.metrics["items_per_second"] > 0


@pytest.mark.parametrize("batch", [None, [], {}, "text", [1, 2]])
def test_batches_without_tensors_have_no_samples_per_second(batch):
    engine = Engine(lambda engine, batch: None)
    Throughput(every_steps=1).attach(engine)
    engine.run([batch] * 6)
    assert engine.state.metrics["steps_per_second"] > 0
    assert "samples_per_second" not in engine.state.metrics


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"items": 3}, ValueError, "`items` must be a function, got 3; .* for example len"),
        ({"clock": 3}, TypeError, "`clock` must be a function, got int"),
        ({"window": 0}, ValueError, "`window` must be an integer >= 1"),
        ({"every_steps": 1.5}, ValueError, "`every_steps` must be an integer >= 1"),
    ],
)
def test_wrong_argument_is_an_error(arguments, error, message):
    with pytest.raises(error, match=message):
        Throughput(**arguments)


@pytest.mark.parametrize(
    ("items", "got"),
    [
        (lambda batch: batch, "list of length 2"),
        (lambda batch: torch.ones(2), "a tensor of shape"),
        (lambda batch: torch.ones((), device="meta"), "a tensor on meta"),
    ],
)
def test_items_that_are_no_number_are_an_error(items, got):
    trainer = make_trainer(
        [list(each) for each in batches_of(2)], handlers=[Throughput(items=items)]
    )
    with pytest.raises(TypeError, match=f"`items` must return a number, got {got}"):
        trainer.run()
    assert trainer.state.iteration == 0


def test_second_throughput_is_an_error():
    trainer = make_trainer(handlers=[Throughput()])
    with pytest.raises(ValueError, match="got 'steps_per_second' twice"):
        Throughput().attach(trainer)


def test_waiting_within_an_interruption_does_not_count():
    clock = Clock()
    trainer = timed(clock, 12)
    Throughput(every_steps=1, clock=clock).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda engine: engine.interrupt())
    trainer.run(max_epochs=2)
    clock.now += 1000.0
    reports = reports_of(trainer)
    trainer.run()
    assert {metrics["steps_per_second"] for _, metrics in reports} == {1 / 4}
    assert dict(reports)[9]["remaining_seconds"] == 4.0 * (24 - 9)
