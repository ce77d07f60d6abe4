import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import MaxDeviceMemory
from ignite_hooks.memory import device as device_mark
from ignite_hooks.memory.device import memory_in_use
from ignite_hooks.memory.max_device_memory import _shared_mark
from tests.ids import stable_id
from tests.memory.test_device import Allocator
from tests.memory.test_device import Refusing
from tests.reference import batches_of
from tests.reference import make_trainer

MIB = 2**20
KINDS = ["minibatch", "epoch", "run"]
NAMES = [f"{kind}_max_device_{what}_mib" for kind in KINDS for what in ("allocated", "reserved")]


@pytest.fixture(autouse=True)
def _shared_mark_as_found():
    yield
    assert not _shared_mark.running
    assert not _shared_mark._holders
    assert not _shared_mark._is_open


@pytest.fixture
def allocator(monkeypatch):
    """Installs a device that has its first tensor, of 10 MiB."""
    allocator = Allocator()
    allocator.allocate(10)
    monkeypatch.setattr(device_mark, "allocator_module", lambda: allocator)
    return allocator


def nothing(engine):
    pass


def engine_of(kind, act=nothing):
    """Returns an engine that calls ``act(engine)`` in its process function."""
    if kind == "engine":
        return Engine(lambda engine, batch: act(engine))

    def loss_fn(prediction, target):
        act(trainer)
        return F.mse_loss(prediction, target)

    trainer = make_trainer(loss_fn=loss_fn)
    return trainer


def values_at(engine, event, name):
    values = []
    engine.add_event_handler(event, lambda engine: values.append(engine.state.metrics.get(name)))
    return values


def allocated_at_ends(engine):
    """Returns the allocated peaks at the end of each iteration, epoch and run."""
    ends = [Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED, Events.COMPLETED]
    return [values_at(engine, end, name) for end, name in zip(ends, NAMES[::2], strict=True)]


@pytest.mark.parametrize("kind", ["engine", "trainer"])
def test_on_a_cpu_no_device_memory_is_reported(kind):
    engine, metric = engine_of(kind), MaxDeviceMemory()
    metric.attach(engine)
    engine.run(batches_of(3), max_epochs=2)
    if not torch.accelerator.is_available():
        assert engine.state.metrics == {}
        assert metric.result() == dict.fromkeys(NAMES, 0.0)


@pytest.mark.parametrize("kind", ["engine", "trainer"])
def test_each_span_has_the_peaks_of_its_own_time(kind, allocator):
    def act(engine):
        if engine.state.iteration == 2:
            allocator.spike(20)

    engine = engine_of(kind, act)
    MaxDeviceMemory().attach(engine)
    minibatches, epochs, runs = allocated_at_ends(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: allocator.spike(30))
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: allocator.spike(40))
    engine.run(batches_of(3), max_epochs=3)
    assert minibatches == [10, 30, 10, 10, 10, 10, 10, 10, 10]
    assert epochs == [30, 40, 10]
    assert runs == [50]


def test_reserved_and_allocated_memory_are_distinguished(allocator):
    def act(engine):
        if engine.state.iteration == 2:
            allocator.spike(20)
        if engine.state.iteration == 3:
            allocator.empty_cache()

    engine = engine_of("engine", act)
    MaxDeviceMemory().attach(engine)
    reserved = values_at(engine, Events.ITERATION_COMPLETED, NAMES[1])
    engine.run([0] * 4)
    assert reserved == [10, 30, 30, 10]
    assert engine.state.metrics == dict(zip(NAMES, [10, 10, 30, 30, 30, 30], strict=True))


def test_reserved_memory_is_reported_without_any_tensor(allocator):
    allocator.free(10)
    engine = engine_of("engine")
    MaxDeviceMemory().attach(engine)
    engine.run([0])
    assert engine.state.metrics == dict(zip(NAMES, [0, 10] * 3, strict=True))


def test_each_run_is_measured_from_its_call(allocator):
    engine = engine_of("engine")
    spiking = engine.add_event_handler(Events.STARTED, lambda: allocator.spike(20))
    MaxDeviceMemory().attach(engine)
    _, _, runs = allocated_at_ends(engine)
    with spiking:
        engine.run([0])
    allocator.spike(70)
    engine.run([0])
    assert runs == [30, 10]


@pytest.mark.parametrize(
    "options",
    [
        {"minibatch": False},
        {"epoch": False},
        {"run": False},
        {"minibatch": False, "epoch": False},
        {"minibatch": False, "run": False},
        {"epoch": False, "run": False},
        {},
    ],
    ids=stable_id,
)
def test_only_requested_peaks_are_reported(options, allocator):
    metric, engine = MaxDeviceMemory(**options), engine_of("engine")
    names = [
        name
        for kind, two in zip(KINDS, (NAMES[:2], NAMES[2:4], NAMES[4:]), strict=True)
        if options.get(kind, True)
        for name in two
    ]
    assert metric.names() == names
    assert metric.result() == dict.fromkeys(names, 0.0)
    metric.attach(engine)
    engine.run([0] * 2)
    assert engine.state.metrics == metric.result() == dict.fromkeys(names, 10)


def test_each_second_iteration_is_measured_and_its_value_stays(allocator):
    def act(engine):
        if engine.state.iteration in (2, 3, 5):
            allocator.spike(engine.state.iteration)

    engine = engine_of("engine", act)
    MaxDeviceMemory(every_iterations=2).attach(engine)
    minibatches, epochs, runs = allocated_at_ends(engine)
    engine.run([0] * 3, max_epochs=2)
    assert minibatches == [None, 12, 12, 10, 10, 10]
    assert epochs == [13, 15]
    assert runs == [15]


def test_the_result_is_the_peak_so_far_until_a_reset(allocator):
    metric, engine = MaxDeviceMemory(epoch=False), engine_of("engine")
    metric.reset()
    metric.attach(engine)
    assert metric.result() == dict.fromkeys(metric.names(), 0.0)
    within = []

    def look():
        within.append(metric.result()[NAMES[0]])

    for act in (look, lambda: allocator.spike(20), look, metric.reset, look):
        engine.add_event_handler(Events.ITERATION_STARTED, act)
    engine.run([0])
    assert within == [10, 30, 10]
    assert engine.state.metrics[NAMES[0]] == engine.state.metrics[NAMES[4]] == 10
    assert metric.result() == engine.state.metrics
    metric.reset()
    assert metric.result() == dict.fromkeys(metric.names(), 0.0)


def test_two_engines_keep_own_values_and_result_is_last_attached(allocator):
    metric = MaxDeviceMemory()
    first = engine_of("engine", lambda engine: allocator.spike(20))
    second = engine_of("engine")
    metric.attach(first)
    metric.attach(second)
    second.run([0])
    first.run([0])
    assert first.state.metrics[NAMES[4]] == 30
    assert second.state.metrics[NAMES[4]] == metric.result()[NAMES[4]] == 10


def test_before_the_first_tensor_nothing_is_reset_or_reported(monkeypatch):
    allocator = Allocator()
    monkeypatch.setattr(device_mark, "allocator_module", lambda: allocator)

    def act(engine):
        if engine.state.iteration == 3:
            allocator.allocate(10)

    engine = engine_of("engine", act)
    MaxDeviceMemory().attach(engine)
    minibatches, _, _ = allocated_at_ends(engine)
    engine.run([0] * 4)
    assert minibatches == [None, None, 10, 10]
    assert engine.state.metrics == dict.fromkeys(NAMES, 10)


def test_a_device_without_statistics_is_asked_once_per_run(monkeypatch):
    allocator = Refusing()
    monkeypatch.setattr(device_mark, "allocator_module", lambda: allocator)
    engine, metric = engine_of("engine"), MaxDeviceMemory()
    metric.attach(engine)
    for runs in (1, 2):
        engine.run([0] * 4, max_epochs=2)
        assert allocator.asked == runs
    assert engine.state.metrics == {}
    assert metric.result() == dict.fromkeys(NAMES, 0.0)


def test_the_device_is_looked_for_once_a_run(monkeypatch):
    looks = []
    monkeypatch.setattr(device_mark, "allocator_module", lambda: looks.append(1))
    engine = engine_of("engine")
    MaxDeviceMemory(epoch=False, run=False).attach(engine)
    engine.run([0] * 4)
    assert len(looks) == 1


@pytest.mark.parametrize("failure", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("kind", ["engine", "trainer"])
def test_the_peak_until_a_failure_is_reported(kind, failure, allocator):
    def act(engine):
        if engine.state.iteration == 2:
            allocator.spike(20)
            raise failure

    engine = engine_of(kind, act)
    MaxDeviceMemory().attach(engine)
    with pytest.raises(failure):
        engine.run(batches_of(3), max_epochs=1)
    assert [engine.state.metrics[name] for name in NAMES[::2]] == [30, 30, 30]


def test_an_interrupted_run_continues_with_its_peaks(allocator):
    engine = engine_of("engine")
    MaxDeviceMemory().attach(engine)

    def spike_and_interrupt():
        allocator.spike(20)
        engine.interrupt()

    engine.add_event_handler(Events.ITERATION_STARTED(once=1), spike_and_interrupt)
    minibatches, epochs, runs = allocated_at_ends(engine)
    engine.run([0] * 2)
    allocator.spike(70)
    engine.run()
    assert (minibatches, epochs, runs) == ([30, 10], [30], [30])


def test_nothing_to_report_is_an_error():
    with pytest.raises(
        ValueError, match="`minibatch`, `epoch` and `run` must be True, got none: leave them out"
    ):
        MaxDeviceMemory(minibatch=False, epoch=False, run=False)


def test_a_number_of_iterations_without_minibatches_is_an_error():
    with pytest.raises(
        ValueError, match="`every_iterations` must be left out with minibatch=False, got 2"
    ):
        MaxDeviceMemory(minibatch=False, every_iterations=2)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        *((kind, value, "True or False") for kind in KINDS for value in (1, None, "yes")),
        *(("every_iterations", v, "an integer >= 1") for v in (0, -1, True, 1.0, "1")),
    ],
)
def test_wrong_fields_are_named_with_their_rule(field, value, rule):
    with pytest.raises(ValueError, match=f"`{field}` must be {rule}, got {value!r}[;,] "):
        MaxDeviceMemory(**{field: value})


def test_fields_are_given_by_name_and_do_not_change():
    with pytest.raises((TypeError, ValueError)):
        MaxDeviceMemory(True)
    with pytest.raises(AttributeError):
        MaxDeviceMemory().epoch = False


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))]
)
def test_a_copy_has_no_measurements(copied, allocator):
    metric, engine = MaxDeviceMemory(epoch=False, every_iterations=1), engine_of("engine")
    metric.attach(engine)
    engine.run([0])
    twin = copied(metric)
    assert repr(twin) == repr(metric)
    assert twin.result() == dict.fromkeys(metric.names(), 0.0)
    twin.reset()
    assert metric.result() == dict.fromkeys(metric.names(), 10)


@pytest.mark.gpu
@pytest.mark.skipif(memory_in_use() is None, reason="needs a device that tells its figures")
def test_the_peaks_of_a_device():
    device = torch.accelerator.current_accelerator()
    kept = torch.empty(8 * MIB, dtype=torch.uint8, device=device)

    def act(engine):
        if engine.state.iteration == 2:
            torch.empty(256 * MIB, dtype=torch.uint8, device=device)

    engine = engine_of("engine", act)
    MaxDeviceMemory().attach(engine)
    minibatches, epochs, runs = allocated_at_ends(engine)
    engine.run([0] * 2, max_epochs=2)
    base = minibatches[0]
    assert base >= kept.numel() / MIB
    assert minibatches == [base, base + 256, base, base]
    assert epochs == [base + 256, base]
    assert runs == [base + 256]
    metrics = engine.state.metrics
    assert metrics["run_max_device_reserved_mib"] >= metrics["run_max_device_allocated_mib"]
