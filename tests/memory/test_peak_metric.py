import pytest
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import EpochMaxRAM
from ignite_hooks import ExperienceMaxRAM
from ignite_hooks import MaxDeviceMemory
from ignite_hooks import MinibatchMaxRAM
from ignite_hooks import StreamMaxRAM
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.core.handler import Handler
from ignite_hooks.memory.peak_metric import PeakMetric
from tests.ids import stable_id
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer

RAM_METRICS = [MinibatchMaxRAM, EpochMaxRAM, ExperienceMaxRAM, StreamMaxRAM]
METRICS = [*RAM_METRICS, MaxDeviceMemory]
NAMES = [
    "minibatch_max_ram_mib",
    "epoch_max_ram_mib",
    "experience_max_ram_mib",
    "stream_max_ram_mib",
]


def plain_engine():
    return Engine(lambda engine, batch: None)


@pytest.fixture(params=["engine", "trainer"])
def engine(request):
    return make_trainer() if request.param == "trainer" else plain_engine()


def run(engine):
    return engine.run(batches_of(2), max_epochs=1)


def validate(engine):
    evaluator = create_supervised_evaluator(make_model())
    Validation(evaluator, batches_of(1), every_epochs=1).attach(engine)


def test_metric_without_names_can_be_attached_repeatedly():
    class Nameless(PeakMetric):
        def attach_to(self, attachment):
            pass

    engine = plain_engine()
    for _ in range(2):
        Nameless().attach(engine)
    assert Nameless().names() == ()


def test_the_usual_names_are_those_of_the_documentation(engine):
    validate(engine)
    for metric in RAM_METRICS:
        metric().attach(engine)
    run(engine)
    assert sorted(engine.state.metrics) == sorted(NAMES)
    assert [metric().names() for metric in RAM_METRICS] == [(name,) for name in NAMES]


@pytest.mark.parametrize("metric", RAM_METRICS)
def test_metric_uses_the_given_name(engine, metric):
    validate(engine)
    metric(name="x").attach(engine)
    metric(name="y").attach(engine)
    run(engine)
    assert sorted(engine.state.metrics) == ["x", "y"]
    assert all(value > 0.0 for value in engine.state.metrics.values())


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        *((metric(), metric(), name) for metric, name in zip(RAM_METRICS, NAMES, strict=True)),
        (MinibatchMaxRAM(name="x"), EpochMaxRAM(name="x"), "x"),
        (StreamMaxRAM(name=NAMES[2]), ExperienceMaxRAM(), NAMES[2]),
        (MaxDeviceMemory(), MaxDeviceMemory(), "minibatch_max_device_allocated_mib"),
        (
            MaxDeviceMemory(minibatch=False),
            MaxDeviceMemory(epoch=False),
            "run_max_device_allocated_mib",
        ),
        (
            MaxDeviceMemory(minibatch=False, run=False),
            EpochMaxRAM(name="epoch_max_device_reserved_mib"),
            "epoch_max_device_reserved_mib",
        ),
    ],
    ids=stable_id,
)
def test_a_name_that_is_taken_is_an_error_with_a_remedy(engine, first, second, name):
    attachment = first.attach(engine)
    message = (
        f"must not write to one name, got '{name}' twice: "
        r"remove\(\) the other attachment, or have one of them write to another name"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            second.attach(engine)
    attachment.remove()
    second.attach(engine).remove()
    first.attach(engine)
    run(engine)


def test_refused_metric_does_nothing(engine):
    ExperienceMaxRAM(name="x").attach(engine)
    refused = EpochMaxRAM(name="x")
    with pytest.raises(ValueError, match="to one name, got 'x' twice"):
        refused.attach(engine)
    run(engine)
    assert refused.result() == 0.0
    assert list(engine.state.metrics) == ["x"]


@pytest.mark.parametrize("metric", METRICS)
def test_handler_attaches_once_per_engine_to_several_engines(metric):
    metric, engine, other = metric(), plain_engine(), make_trainer()
    metric.attach(engine)
    with pytest.raises(ValueError, match="must not write to one name"):
        metric.attach(engine)
    metric.attach(other)


def test_different_parts_of_device_memory_are_reported_by_two():
    engine = plain_engine()
    MaxDeviceMemory(minibatch=False).attach(engine)
    MaxDeviceMemory(epoch=False, run=False, every_iterations=2).attach(engine)


def test_a_name_that_is_taken_is_an_error_in_the_factory_too():
    handlers = [EpochMaxRAM(name="x"), ExperienceMaxRAM(name="x")]
    with pytest.raises(ValueError, match="to one name, got 'x' twice"):
        make_trainer(batches_of(2), handlers=handlers)


@pytest.mark.parametrize("metric", METRICS)
def test_another_event_is_an_error_with_a_remedy(engine, metric):
    message = f"`event` must be left out, got .*: {metric.__name__} measures .*; .* of a MaxRAM"
    with pytest.raises(ValueError, match=message):
        metric().attach(engine, Events.ITERATION_COMPLETED(every=2))
    metric().attach(engine)  # nothing was left behind


@pytest.mark.parametrize("metric", METRICS)
def test_metric_cannot_be_called_or_added_at_an_event(metric):
    engine, trainer = plain_engine(), make_trainer()
    with pytest.raises(TypeError, match=f"{metric.__name__} acts on its own schedule: use attach"):
        metric()(engine)
    with pytest.raises(ValueError, match=f"`event` must be left out, got .*: {metric.__name__}"):
        trainer.add_event_handler(Events.EPOCH_COMPLETED, metric())
    engine.add_event_handler(Events.EPOCH_COMPLETED, metric())
    with pytest.raises(TypeError, match=r"use attach\(engine\)"):
        run(engine)
    assert issubclass(metric, Handler)
