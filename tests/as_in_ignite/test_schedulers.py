"""Ignite's parameter schedulers and its learning rate finder on both engines."""

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events
from ignite.handlers import BatchSizeScheduler
from ignite.handlers import ConcatScheduler
from ignite.handlers import CosineAnnealingScheduler
from ignite.handlers import FastaiLRFinder
from ignite.handlers import LinearCyclicalScheduler
from ignite.handlers import LRScheduler
from ignite.handlers import ParamGroupScheduler
from ignite.handlers import PiecewiseLinear
from ignite.handlers import ReduceLROnPlateauScheduler
from ignite.handlers import create_lr_scheduler_with_warmup
from ignite.handlers.state_param_scheduler import ExpStateScheduler
from ignite.handlers.state_param_scheduler import LambdaStateScheduler
from ignite.handlers.state_param_scheduler import MultiStepStateScheduler
from ignite.handlers.state_param_scheduler import PiecewiseLinearStateScheduler
from ignite.handlers.state_param_scheduler import StepStateScheduler
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from ignite_hooks import TrainEvents
from tests.as_in_ignite.sides import Side
from tests.as_in_ignite.sides import short_id
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import samples
from tests.reference import weights
from tests.versions import needs


def rates_of(made):
    """Returns a list that grows by the learning rate of each iteration."""
    rates, (group,) = [], made.optimizer.param_groups
    made.model.register_forward_hook(lambda *args: rates.append(group["lr"]))
    return rates


# Parameters of the optimizer


def cosine(optimizer):
    return CosineAnnealingScheduler(optimizer, "lr", 1.0, 0.0, cycle_size=4)


def linear(optimizer):
    return LinearCyclicalScheduler(optimizer, "lr", 0.0, 1.0, cycle_size=4)


def pieces(optimizer):
    return PiecewiseLinear(optimizer, "lr", milestones_values=[(1, 1.0), (3, 0.0), (5, 0.4)])


def one_after_the_other(optimizer):
    return ConcatScheduler([linear(optimizer), cosine(optimizer)], durations=[3])


def warmed_up(optimizer):
    return create_lr_scheduler_with_warmup(
        cosine(optimizer), warmup_start_value=0.0, warmup_end_value=1.0, warmup_duration=3
    )


def of_a_group(optimizer):
    return ParamGroupScheduler([linear(optimizer)])


SCHEDULES = [
    # the rate of each of six iterations
    (cosine, [1.0, 0.853553, 0.5, 0.146447, 1.0, 0.853553]),
    (linear, [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]),
    (pieces, [1.0, 1.0, 0.5, 0.0, 0.2, 0.4]),
    (one_after_the_other, [0.0, 0.5, 1.0, 1.0, 0.853553, 0.5]),
    (warmed_up, [0.0, 0.5, 1.0, 0.853553, 0.5, 0.146447]),
    (of_a_group, [0.0, 0.5, 1.0, 0.5, 0.0, 0.5]),
]


def trained_with(rates):
    """Returns the weights after plain SGD steps with these rates."""
    model = make_model(0.0)
    for rate, (x, y) in zip(rates, batches_of(6), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


@pytest.mark.parametrize(("make", "expected"), SCHEDULES, ids=lambda value: str(value)[:20])
def test_the_rate_of_each_iteration(side, make, expected):
    made = side.supervised()
    rates = rates_of(made)
    made.engine.add_event_handler(Events.ITERATION_STARTED, make(made.optimizer))
    made.engine.run(batches_of(6))
    assert rates == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(weights(made.model), trained_with(expected), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Please make sure to attach scheduler")
@pytest.mark.parametrize(
    ("event", "options"),
    [(Events.ITERATION_STARTED, {}), (Events.ITERATION_COMPLETED, {"use_legacy": True})],
    ids=short_id,
)
def test_a_scheduler_of_torch_moves_at_its_event(side, event, options):
    made = side.supervised(lr=1.0)
    rates = rates_of(made)
    scheduler = LRScheduler(StepLR(made.optimizer, step_size=2), **options)
    made.engine.add_event_handler(event, scheduler)
    made.engine.run(batches_of(6))
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_a_scheduler_is_attached_by_epochs(side):
    made = side.supervised()
    rates = rates_of(made)
    scheduler = PiecewiseLinear(made.optimizer, "lr", [(1, 1.0), (3, 0.0)], save_history=True)
    scheduler.attach(made.engine, Events.EPOCH_STARTED)
    made.engine.run(batches_of(2), max_epochs=3)
    assert rates == pytest.approx([1.0, 1.0, 1.0, 1.0, 0.5, 0.5])
    assert made.engine.state.param_history["lr"] == [[1.0], [1.0], [0.5]]


def test_the_rate_falls_on_a_plateau(side):
    made, metrics = side.supervised(lr=1.0), iter([3.0, 2.0, 2.0, 2.0, 2.0])
    rates = rates_of(made)
    scheduler = ReduceLROnPlateauScheduler(
        made.optimizer, metric_name="loss", patience=1, factor=0.5, threshold_mode="abs"
    )

    @made.engine.on(Events.EPOCH_COMPLETED)
    def measure(engine):
        engine.state.metrics["loss"] = next(metrics)

    made.engine.add_event_handler(Events.EPOCH_COMPLETED, scheduler)
    made.engine.run(batches_of(1), max_epochs=5)
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5]


def test_a_schedulers_state_is_loaded(side):
    made = side.supervised()
    first = linear(made.optimizer)
    made.engine.add_event_handler(Events.ITERATION_STARTED, first)
    made.engine.run(batches_of(2))
    other = side.supervised()
    rates = rates_of(other)
    second = linear(other.optimizer)
    second.load_state_dict(first.state_dict())
    other.engine.add_event_handler(Events.ITERATION_STARTED, second)
    other.engine.run(batches_of(2))
    assert rates == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(("make", "expected"), SCHEDULES, ids=lambda value: str(value)[:20])
def test_the_rate_of_each_step(make, expected):
    made, rates = Side("trainer").supervised(accumulation=2), []
    made.optimizer.register_step_pre_hook(
        lambda optimizer, *args: rates.append(optimizer.param_groups[0]["lr"])
    )
    made.engine.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, make(made.optimizer))
    made.engine.run(batches_of(12))
    assert rates == pytest.approx(expected, abs=1e-6)


def test_the_size_of_batches_is_scheduled(side):
    loader = DataLoader(samples(12), batch_size=2)
    made, sizes = side.supervised(), []
    BatchSizeScheduler(loader, lambda epoch: 2 + 2 * epoch).attach(made.engine)
    made.engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: sizes.append(len(engine.state.batch[0]))
    )
    made.engine.run(loader, max_epochs=3)
    # With larger batches an epoch has fewer. Ignite begins the data again to keep the length.
    second, third = side.departs(
        "an epoch is one pass", ignite=([4] * 6, [6] * 6), ours=([4] * 3, [6] * 2)
    )
    assert sizes == [2] * 6 + second + third


# Parameters of the state

OF_STATE = [
    (
        lambda: PiecewiseLinearStateScheduler([(1, 1.0), (3, 0.0)], "beta", create_new=True),
        [1.0, 0.5, 0.0, 0.0],
    ),
    (
        lambda: ExpStateScheduler(initial_value=8.0, gamma=0.5, param_name="beta", create_new=True),
        [4, 2, 1, 0.5],
    ),
    (
        lambda: StepStateScheduler(
            initial_value=8.0, gamma=0.5, step_size=2, param_name="beta", create_new=True
        ),
        [8, 4, 4, 2],
    ),
    (
        lambda: MultiStepStateScheduler(
            initial_value=8.0, gamma=0.5, milestones=[2, 4], param_name="beta", create_new=True
        ),
        [8, 4, 4, 2],
    ),
    (
        lambda: LambdaStateScheduler(
            lambda_obj=lambda number: 10.0 * number, param_name="beta", create_new=True
        ),
        [10, 20, 30, 40],
    ),
]


@pytest.mark.parametrize(
    ("make", "expected"), OF_STATE, ids=["pieces", "exp", "step", "multi", "lambda"]
)
def test_a_parameter_of_the_state_is_scheduled(side, make, expected):
    engine, seen = side.engine(), []
    scheduler = make()
    scheduler.attach(engine, Events.ITERATION_STARTED)
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: seen.append(engine.state.beta)
    )
    engine.run(range(4))
    assert seen == pytest.approx(expected)


# The learning rate finder

LR_FINDER = "ignore:Run completed without loss diverging"


def find(made, batches, **options):
    """Runs a learning rate finder as its documentation shows, and returns the results."""
    finder = FastaiLRFinder()
    to_save = {"model": made.model, "optimizer": made.optimizer}
    options = {"diverge_th": float("inf"), "end_lr": 1.0, **options}
    with finder.attach(made.engine, to_save, **options) as engine:
        engine.run(batches)
    return finder.get_results()


def curve(rates):
    """Returns the smoothed losses of plain SGD steps with these rates."""
    model, losses = make_model(0.0), []
    batches = batches_of(6)
    for number, rate in enumerate(rates):
        x, y = batches[number % 6]
        loss = F.mse_loss(model(x), y)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(0.05 * loss.item() + 0.95 * losses[-1] if losses else loss.item())
    return losses


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.filterwarnings(LR_FINDER)
@pytest.mark.parametrize(("num_iter", "points"), [(None, 6), (4, 5), (6, 6), (9, 9), (15, 15)])
@pytest.mark.parametrize("step_mode", ["exp", "linear"])
def test_the_finder_gives_all_its_points(side, num_iter, points, step_mode):
    made = side.supervised(lr=0.01)
    before, rates, number = weights(made.model), rates_of(made), num_iter or 6
    found = find(
        made, batches_of(6), num_iter=num_iter, step_mode=step_mode, start_lr=0.01, smooth_f=0.05
    )
    expected = {
        "linear": [0.01 + 0.99 * point / number for point in range(points)],
        "exp": [0.01 * 100 ** ((point + 1) / number) for point in range(points)],
    }
    assert found["lr"] == pytest.approx(expected[step_mode])
    # The finder records each rate after it has set it for the next batch.
    assert rates == pytest.approx([found["lr"][0], *found["lr"][:-1]])
    assert found["loss"] == pytest.approx(curve(rates), rel=1e-4)
    assert torch.equal(weights(made.model), before)
    assert made.optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.filterwarnings(LR_FINDER)
def test_after_the_finder_training_starts_over(side):
    made = side.supervised(lr=0.1)
    find(made, batches_of(6), num_iter=4)
    made.engine.run(batches_of(6), max_epochs=2)
    assert (made.engine.state.epoch, made.engine.state.iteration) == (2, 12)
    fresh = side.supervised(lr=0.1)
    fresh.engine.run(batches_of(6), max_epochs=2)
    assert torch.allclose(weights(made.model), weights(fresh.model), atol=1e-6)


def test_the_finder_stops_where_the_loss_diverges(side):
    made = side.supervised(lr=0.1)
    found = find(made, batches_of(50), end_lr=1e4, diverge_th=2.0, smooth_f=0.0)
    assert len(found["lr"]) < 50
    assert found["loss"][-1] > 2 * min(found["loss"])
