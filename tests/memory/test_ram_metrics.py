import copy
import io
import pickle
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import Checkpoint
from ignite.handlers import DiskSaver
from ignite.handlers import ProgressBar
from ignite.handlers import global_step_from_engine
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import EpochMaxRAM
from ignite_hooks import ExperienceMaxRAM
from ignite_hooks import MinibatchMaxRAM
from ignite_hooks import StreamMaxRAM
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks import ram_usage_metrics
from ignite_hooks.memory.ram_backends import _CHILDREN_MARKS
from ignite_hooks.memory.ram_backends import _PROCESS_MARKS
from ignite_hooks.memory.sampled import resident_bytes
from tests.ids import stable_id
from tests.memory.spikes import spike as spike_of
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer

MIB = 2**20
SPIKE = 64

MINIBATCH = "minibatch_max_ram_mib"
EPOCH = "epoch_max_ram_mib"
EXPERIENCE = "experience_max_ram_mib"
STREAM = "stream_max_ram_mib"

METRICS = [MinibatchMaxRAM, EpochMaxRAM, ExperienceMaxRAM, StreamMaxRAM]
ALL = {"minibatch": True, "epoch": True, "experience": True, "stream": True}


def spike(height=1):
    """Takes ``height`` times SPIKE MiB, and frees them at once."""
    spike_of(height * SPIKE)


def heights(peaks):
    """Returns the height of each peak above the resident memory, in spikes, within 2 %."""
    floor = resident_bytes() / MIB
    found = [(peak - floor) / SPIKE for peak in peaks]
    whole = [round(height) for height in found]
    assert found == pytest.approx(whole, abs=0.02)
    return whole


def height(peak):
    return heights([peak])[0]


def peaks_at(engine, event, name):
    """Returns a list that grows by the value of the metric at each ``event``."""
    peaks = []
    engine.add_event_handler(event, lambda engine: peaks.append(engine.state.metrics[name]))
    return peaks


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


def in_iterations(*iterations, act=spike):
    def act_if_due(engine):
        if engine.state.iteration in iterations:
            act()

    return act_if_due


@pytest.fixture(autouse=True, scope="module")
def _warm():
    """Runs a step first, so that modules loaded by it are in no test's peaks."""
    trainer = make_trainer(batches_of(2))
    Validation(create_supervised_evaluator(make_model()), batches_of(1), every_epochs=1).attach(
        trainer
    )
    trainer.run()
    spike()


# MinibatchMaxRAM


class InBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, act):
        ctx.act = act
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.act()
        return gradient, None


class InStep(torch.optim.SGD):
    act = None

    def step(self, closure=None):
        self.act()
        return super().step(closure)


def spiking_trainer(part, iteration, accumulation):
    """Returns a trainer with a spike in one part of one iteration."""

    def act(present):
        if present == part and trainer.state.iteration == iteration:
            spike()

    class Model(torch.nn.Sequential):
        def forward(self, x):
            act("forward")
            return InBackward.apply(super().forward(x), lambda: act("backward"))

    model = Model(*make_model(0.0))
    optimizer = InStep(model.parameters(), lr=0.1)
    optimizer.act = lambda: act("step")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    trainer = create_supervised_trainer(
        model, optimizer, F.mse_loss, batches_of(6), accelerator=accelerator
    )
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("part", ["forward", "backward", "step"])
def test_spike_within_an_iteration_is_only_in_its_own_peak(part, accumulation):
    trainer = spiking_trainer(part, 4, accumulation)
    MinibatchMaxRAM().attach(trainer)
    peaks = peaks_at(trainer, Events.ITERATION_COMPLETED, MINIBATCH)
    trainer.run()
    assert heights(peaks) == [0, 0, 0, 1, 0, 0]


def test_spike_in_a_plain_process_function_is_in_its_iteration():
    engine = engine_of("engine", in_iterations(2, 5))
    MinibatchMaxRAM().attach(engine)
    peaks = peaks_at(engine, Events.ITERATION_COMPLETED, MINIBATCH)
    engine.run([0] * 3, max_epochs=2)
    assert heights(peaks) == [0, 1, 0, 0, 1, 0]


class SpikesWhenFetched(Dataset):
    def __init__(self, *indices):
        self.indices = indices

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index in self.indices:
            spike()
        return torch.zeros(4), torch.zeros(2)


@pytest.mark.parametrize("kind", ["engine", "trainer"])
def test_data_fetching_counts_for_epoch_and_run_not_iteration(kind):
    engine = engine_of(kind)
    for metric in ram_usage_metrics(minibatch=True, epoch=True, experience=True):
        metric.attach(engine)
    peaks = peaks_at(engine, Events.ITERATION_COMPLETED, MINIBATCH)
    engine.run(DataLoader(SpikesWhenFetched(0, 3), batch_size=2), max_epochs=1)
    assert heights(peaks) == [0, 0, 0]
    assert height(engine.state.metrics[EPOCH]) == 1
    assert height(engine.state.metrics[EXPERIENCE]) == 1


@pytest.mark.parametrize("kind", ["engine", "trainer"])
def test_each_third_iteration_is_measured_and_its_value_stays(kind):
    engine = engine_of(kind, in_iterations(2, 6, 7, 10))
    MinibatchMaxRAM(every_iterations=3).attach(engine)
    peaks = {}

    @engine.on(Events.ITERATION_COMPLETED)
    def note():
        peaks[engine.state.iteration] = engine.state.metrics.get(MINIBATCH)

    engine.run(batches_of(5), max_epochs=2)
    assert [peaks.pop(1), peaks.pop(2)] == [None, None]
    assert heights(peaks.values()) == [0, 0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("metric", "began", "ended", "name"),
    [
        (MinibatchMaxRAM, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED, MINIBATCH),
        (EpochMaxRAM, Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, EPOCH),
        (StreamMaxRAM, Events.STARTED, Events.COMPLETED, STREAM),
        (ExperienceMaxRAM, Events.STARTED, Events.COMPLETED, EXPERIENCE),
    ],
)
def test_peak_includes_handlers_between_the_events_of_its_span(metric, began, ended, name):
    engine = engine_of("engine")
    spiking = []

    def handler(point):
        return lambda: spike() if point in spiking else None

    engine.add_event_handler(began, handler("before"))
    engine.add_event_handler(ended, handler("within, at the end"))
    metric().attach(engine)
    engine.add_event_handler(began, handler("within, at the beginning"))
    engine.add_event_handler(ended, handler("after"))
    found = []
    for point in ("before", "within, at the beginning", "within, at the end", "after"):
        spiking[:] = [point]
        engine.run([0])
        found.append(height(engine.state.metrics[name]))
    assert found == [metric is ExperienceMaxRAM, 1, 1, 0]  # a run begins with the call of run()


# EpochMaxRAM


def validated(trainer, data=None, **schedule):
    """Attaches a validation, with a spike in the evaluation of each batch of zeros."""
    model = make_model(0.0)

    def spike_if_zero(model, x):
        if not x.any():
            spike()
        return model(x)

    evaluator = create_supervised_evaluator(model, model_fn=spike_if_zero)
    Validation(evaluator, data or [ZEROS], **schedule).attach(trainer)
    return evaluator


ZEROS = torch.zeros(2, 4), torch.zeros(2, 2)


def test_each_epoch_has_its_own_peak():
    trainer = engine_of("trainer", in_iterations(3))
    EpochMaxRAM().attach(trainer)
    peaks = peaks_at(trainer, Events.EPOCH_COMPLETED, EPOCH)
    trainer.run(batches_of(2), max_epochs=3)
    assert heights(peaks) == [0, 1, 0]


def test_epoch_includes_validation_in_its_middle_but_not_at_end():
    trainer = make_trainer()
    validated(trainer, every_epochs=1)
    EpochMaxRAM().attach(trainer)
    peaks = peaks_at(trainer, Events.EPOCH_COMPLETED, EPOCH)
    trainer.run(batches_of(4), max_epochs=2)
    assert heights(peaks) == [0, 0]
    validated(trainer, every_steps=2)
    trainer.run(batches_of(4), max_epochs=2)
    assert heights(peaks) == [0, 0, 1, 1]


# ExperienceMaxRAM


def test_each_loader_of_an_evaluator_is_an_experience():
    trainer = make_trainer(batches_of(2))
    evaluator = validated(
        trainer, {"a": batches_of(2), "b": [ZEROS], "c": batches_of(2)}, every_epochs=1
    )
    ExperienceMaxRAM().attach(evaluator)
    trainer.run()
    metrics = trainer.state.metrics
    assert heights(metrics[f"val_{loader}_{EXPERIENCE}"] for loader in "abc") == [0, 1, 0]


@pytest.mark.parametrize("kind", ["engine", "trainer"])
def test_each_run_has_its_own_peak_from_started_handlers_on(kind):
    engine = engine_of(kind)
    ExperienceMaxRAM().attach(engine)
    peaks = peaks_at(engine, Events.COMPLETED, EXPERIENCE)
    engine.add_event_handler(Events.STARTED, in_runs(2))
    for _ in range(3):
        spike(3)  # in between
        engine.run(batches_of(2), max_epochs=1)
    assert heights(peaks) == [0, 1, 0]


def in_runs(*numbers):
    runs = []

    def act():
        runs.append(None)
        if len(runs) in numbers:
            spike()

    return act


def test_evaluator_run_after_an_interruption_is_a_new_one():
    evaluator = create_supervised_evaluator(make_model())
    ExperienceMaxRAM().attach(evaluator)

    def spike_and_interrupt():
        spike()
        evaluator.interrupt()

    with evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), spike_and_interrupt):
        evaluator.run(batches_of(2))
    assert height(evaluator.state.metrics[EXPERIENCE]) == 1
    evaluator.run(batches_of(2))
    assert height(evaluator.state.metrics[EXPERIENCE]) == 0


# StreamMaxRAM


@pytest.mark.parametrize("spiking", ["a", "b", None])
def test_trainer_stream_is_a_whole_validation_over_all_loaders(spiking):
    trainer = engine_of("trainer", in_iterations(1, 2))
    data = {name: [*batches_of(1), ZEROS] if name == spiking else batches_of(2) for name in "ab"}
    validated(trainer, data, every_epochs=1)
    StreamMaxRAM().attach(trainer)
    peaks = peaks_at(trainer, TrainEvents.VALIDATION_COMPLETED, STREAM)
    trainer.run(batches_of(2), max_epochs=2)
    assert heights(peaks) == [spiking is not None] * 2


def test_each_validation_has_its_own_peak():
    trainer = make_trainer()
    acts = iter([nothing, spike, nothing])
    Validation(lambda: next(acts)(1), every_epochs=1).attach(trainer)
    StreamMaxRAM().attach(trainer)
    peaks = peaks_at(trainer, TrainEvents.VALIDATION_COMPLETED, STREAM)
    trainer.run(batches_of(2), max_epochs=3)
    assert heights(peaks) == [0, 1, 0]


def test_without_a_validation_a_trainer_has_no_stream():
    trainer = make_trainer(batches_of(2))
    StreamMaxRAM().attach(trainer)
    trainer.run()
    assert STREAM not in trainer.state.metrics


@pytest.mark.parametrize("point", [Events.STARTED, Events.GET_BATCH_STARTED, Events.COMPLETED])
def test_on_an_evaluator_a_stream_is_from_started_to_completed(point):
    evaluator = create_supervised_evaluator(make_model())
    StreamMaxRAM().attach(evaluator)
    with evaluator.add_event_handler(point, spike_now):
        evaluator.run(batches_of(2))
    assert height(evaluator.state.metrics[STREAM]) == (point != Events.COMPLETED)
    evaluator.run(batches_of(2))
    assert height(evaluator.state.metrics[STREAM]) == 0


def spike_now():
    spike()


def test_a_manual_stream_spans_several_runs():
    stream = StreamMaxRAM()
    acts = [nothing, nothing, spike]
    stream.start()
    for act in acts:
        engine_of("engine", lambda engine, act=act: act(1)).run([0])
    assert height(stream.result()) == 1  # and the measurement continues
    spike(2)
    stream.stop()
    spike(3)
    assert height(stream.result()) == 2


def test_start_after_stop_restarts_and_second_start_continues():
    stream = StreamMaxRAM()
    stream.start()
    spike(2)
    stream.stop()
    stream.start()
    spike()
    stream.start()
    stream.stop()
    assert height(stream.result()) == 1


def test_a_stop_without_a_start_and_a_second_stop_are_harmless():
    stream = StreamMaxRAM()
    stream.stop()
    assert stream.result() == 0.0
    stream.start()
    spike()
    stream.stop()
    spike(2)
    stream.stop()
    assert height(stream.result()) == 1
    assert not _PROCESS_MARKS["kernel"].running


def test_a_manual_stream_includes_children_if_requested():
    alone, stream = StreamMaxRAM(), StreamMaxRAM(include_children=True)
    with child_with(100):
        for each in (alone, stream):
            each.start()
            each.stop()
    assert 100 <= stream.result() - alone.result() <= 112
    assert not _CHILDREN_MARKS["kernel"].running


def test_a_manual_stream_that_is_dropped_ends():
    stream = StreamMaxRAM()
    stream.start()
    try:
        del stream
        assert not _PROCESS_MARKS["kernel"].running
    finally:
        for left in tuple(_PROCESS_MARKS["kernel"].running):
            left.stop()


def test_attaching_ends_a_manual_measurement():
    stream = StreamMaxRAM()
    stream.start()
    engine = engine_of("engine")
    try:
        stream.attach(engine).remove()
        stream.stop()
        assert not _PROCESS_MARKS["kernel"].running
    finally:
        for left in tuple(_PROCESS_MARKS["kernel"].running):
            left.stop()


# Together

SPANS = {
    MINIBATCH: Events.ITERATION_COMPLETED,
    EPOCH: Events.EPOCH_COMPLETED,
    EXPERIENCE: Events.COMPLETED,
    STREAM: TrainEvents.VALIDATION_COMPLETED,
}


@pytest.mark.parametrize(
    ("event", "iteration", "shown"),
    [
        (Events.STARTED, 0, [(EXPERIENCE, 1)]),
        (Events.EPOCH_STARTED, 3, [(EPOCH, 2), (EXPERIENCE, 1)]),
        (Events.GET_BATCH_STARTED, 4, [(EPOCH, 2), (EXPERIENCE, 1)]),
        (Events.ITERATION_STARTED, 2, [(MINIBATCH, 2), (EPOCH, 1), (EXPERIENCE, 1)]),
        (
            TrainEvents.MODEL_BACKWARD_STARTED,
            5,
            [(MINIBATCH, 5), (EPOCH, 2), (EXPERIENCE, 1)],
        ),
        (Events.ITERATION_COMPLETED, 2, [(EPOCH, 1), (EXPERIENCE, 1)]),  # after the metrics
        (Events.EPOCH_COMPLETED, 3, [(EXPERIENCE, 1)]),
        (TrainEvents.VALIDATION_STARTED, 6, [(EXPERIENCE, 1), (STREAM, 2)]),
        (TrainEvents.VALIDATION_COMPLETED, 3, [(EXPERIENCE, 1)]),
        (Events.COMPLETED, 6, []),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_metrics_attached_together_have_their_own_spikes(event, iteration, shown):
    trainer = make_trainer()
    validated(trainer, batches_of(2), every_epochs=1)
    for metric in ram_usage_metrics(**ALL):
        metric.attach(trainer)
    peaks = {name: peaks_at(trainer, ended, name) for name, ended in SPANS.items()}

    @trainer.on(event)
    def spike_in_time():
        if trainer.state.iteration == iteration:
            spike()

    trainer.run(batches_of(3), max_epochs=2)
    numbers = {MINIBATCH: 6, EPOCH: 2, EXPERIENCE: 1, STREAM: 2}
    expected = {
        name: [int((name, number) in shown) for number in range(1, of_kind + 1)]
        for name, of_kind in numbers.items()
    }
    assert {name: heights(of_kind) for name, of_kind in peaks.items()} == expected


def test_lower_inner_and_higher_outer_spikes_are_distinguished():
    trainer = engine_of("trainer", in_iterations(2))
    for metric in ram_usage_metrics(minibatch=True, epoch=True, experience=True):
        metric.attach(trainer)
    peaks = peaks_at(trainer, Events.ITERATION_COMPLETED, MINIBATCH)
    epochs = peaks_at(trainer, Events.EPOCH_COMPLETED, EPOCH)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: spike(2))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: spike(3))
    trainer.run(batches_of(3), max_epochs=2)
    assert heights(peaks) == [0, 1, 0, 0, 0, 0]
    assert heights(epochs) == [2, 0]
    assert height(trainer.state.metrics[EXPERIENCE]) == 3


def test_a_trainer_and_its_evaluator_are_measured_at_once():
    trainer = engine_of("trainer", in_iterations(2, act=lambda: spike(2)))
    evaluator = validated(
        trainer, {"a": [*batches_of(1), ZEROS], "b": batches_of(2)}, every_steps=3
    )
    for engine in (trainer, evaluator):
        for metric in ram_usage_metrics(**ALL):
            metric.attach(engine)
    peaks = {
        (engine, name): peaks_at(engine, SPANS[name], name)
        for engine in (trainer, evaluator)
        for name in (MINIBATCH, EPOCH, EXPERIENCE)
    }
    streams = peaks_at(trainer, TrainEvents.VALIDATION_COMPLETED, STREAM)
    trainer.run(batches_of(4), max_epochs=1)
    assert heights(peaks[trainer, MINIBATCH]) == [0, 2, 0, 0]
    assert heights(peaks[trainer, EPOCH]) == heights(peaks[trainer, EXPERIENCE]) == [2]
    assert heights(streams) == [1]
    assert heights(peaks[evaluator, MINIBATCH]) == [0, 1, 0, 0]
    assert heights(peaks[evaluator, EPOCH]) == heights(peaks[evaluator, EXPERIENCE]) == [1, 0]
    metrics = trainer.state.metrics
    assert heights([metrics[f"val_a_{STREAM}"], metrics[f"val_b_{STREAM}"]]) == [1, 0]


def test_two_engines_keep_own_values_and_result_is_last_attached():
    metric = ExperienceMaxRAM()
    first, second = engine_of("engine", in_iterations(1)), engine_of("engine")
    metric.attach(first)
    metric.attach(second)
    second.run([0])
    first.run([0])
    assert height(first.state.metrics[EXPERIENCE]) == 1
    assert height(second.state.metrics[EXPERIENCE]) == 0
    assert height(metric.result()) == 0


def test_two_engines_with_one_handler_run_one_within_the_other():
    metric = ExperienceMaxRAM()
    inner = engine_of("engine", in_iterations(1))
    outer = engine_of("engine", in_iterations(2, act=lambda: inner.run([0])))
    metric.attach(outer)
    metric.attach(inner)
    outer.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: spike(2))
    outer.run([0] * 2)
    assert height(outer.state.metrics[EXPERIENCE]) == 2
    assert height(inner.state.metrics[EXPERIENCE]) == 1


# result and reset


@pytest.mark.parametrize("metric", METRICS)
def test_the_result_is_the_peak_so_far_or_the_last_one(metric):
    metric = metric()
    assert metric.result() == 0.0
    engine = engine_of("engine", in_iterations(1))
    metric.attach(engine)
    assert metric.result() == 0.0
    within = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: within.append(metric.result()))
    engine.add_event_handler(Events.ITERATION_STARTED, spike_now)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: within.append(metric.result()))
    engine.run([0])
    assert heights(within) == [0, 1]
    assert metric.result() == engine.state.metrics[metric.name]
    assert height(metric.result()) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_reset_restarts_within_a_span_and_clears_after_it(metric):
    metric = metric()
    metric.reset()
    engine = engine_of("engine")
    metric.attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED, spike_now)
    engine.add_event_handler(Events.ITERATION_STARTED, metric.reset)
    engine.run([0])
    assert height(engine.state.metrics[metric.name]) == 0
    metric.reset()
    assert metric.result() == 0.0
    assert height(engine.state.metrics[metric.name]) == 0


# Backends


@contextmanager
def child_with(mib):
    """Keeps a child process with ``mib`` MiB of memory running for the body."""
    code = f"b = bytearray(b'x') * ({mib} << 20); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=pipe, stdout=pipe) as child:
        child.stdout.readline()
        yield
        child.communicate(b"\n")


@pytest.mark.parametrize("backend", ["auto", "kernel", "sampler"])
@pytest.mark.parametrize("metric", METRICS)
def test_peak_includes_children_if_requested(metric, backend):
    with child_with(100):
        peaks = []
        for include_children in (False, True):
            engine = engine_of("engine")
            measured = metric(include_children=include_children, backend=backend)
            measured.attach(engine)
            engine.run([0])
            peaks.append(engine.state.metrics[measured.name])
            assert measured.result() == peaks[-1]
            measured.reset()
            assert measured.result() == 0.0
    assert 100 <= peaks[1] - peaks[0] <= 112  # and what Python takes


@pytest.mark.parametrize("metric", METRICS)
def test_the_sampler_runs_during_a_run_with_its_period(metric):
    engine = engine_of("engine")
    metric(backend="sampler", every=123.0).attach(engine)
    periods = []
    shared_mark = _PROCESS_MARKS["sampler"]
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda: periods.append(shared_mark._sampling.every)
    )
    engine.run([0])
    assert periods == [123.0]
    assert shared_mark._sampling is None
    assert engine.state.metrics.keys() == {metric().name}
    assert height(engine.state.metrics[metric().name]) == 0


def test_a_kernel_that_refuses_is_an_error_when_attached(monkeypatch):
    monkeypatch.setattr(
        "ignite_hooks.memory.ram_backends.why_no_kernel_mark", lambda: "PermissionError: no"
    )
    engine = engine_of("engine")
    for metric in METRICS:
        with pytest.raises(ValueError, match="`backend` must be one that works here"):
            metric(backend="kernel").attach(engine)
        metric(backend="auto").attach(engine).remove()
    assert "run" not in vars(engine)
    engine.run([0])
    assert not engine.state.metrics


# With Ignite's handlers


def test_a_checkpoint_score_can_be_the_peak(tmp_path):
    trainer = engine_of("trainer", in_iterations(1, 5))
    EpochMaxRAM().attach(trainer)
    checkpoint = Checkpoint(
        {"model": trainer.model},
        DiskSaver(tmp_path),
        n_saved=1,
        score_function=Checkpoint.get_default_score_fn(EPOCH, -1.0),
        score_name=EPOCH,
        global_step_transform=global_step_from_engine(trainer),
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)
    trainer.run(batches_of(2), max_epochs=3)
    (best,) = tmp_path.iterdir()
    assert best.name.startswith(f"model_2_{EPOCH}=-")


def test_progress_bar_shows_the_peak():
    pytest.importorskip("tqdm")
    engine, shown = engine_of("engine"), io.StringIO()
    MinibatchMaxRAM().attach(engine)
    ProgressBar(file=shown, persist=True).attach(engine, metric_names=[MINIBATCH])
    engine.run([0] * 2)
    assert f"{MINIBATCH}=" in shown.getvalue()


# Fields and copies


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        *(("name", value, "a string that is not empty") for value in ("", None, 1, b"x")),
        *(
            ("every", value, "a finite number of seconds > 0")
            for value in (0, -1.0, float("inf"), True, None)
        ),
        *(("include_children", value, "True or False") for value in (1, None, "yes")),
        *(
            ("backend", value, 'one of "auto", "kernel" and "sampler"')
            for value in ("cpu", "", None, True)
        ),
    ],
)
def test_wrong_fields_are_named_with_their_rule(metric, field, value, rule):
    with pytest.raises(ValueError, match=f"`{field}` must be {rule}, got {value!r}; "):
        metric(**{field: value})


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "2"])
def test_a_wrong_number_of_iterations_is_named_with_its_rule(value):
    with pytest.raises(
        ValueError, match=f"`every_iterations` must be an integer >= 1, got {value!r}[;,] "
    ):
        MinibatchMaxRAM(every_iterations=value)


@pytest.mark.parametrize("metric", METRICS)
def test_fields_are_given_by_name_and_those_unknown_are_refused(metric):
    with pytest.raises((TypeError, ValueError)):
        metric("x")
    with pytest.raises((TypeError, ValueError)):
        metric(every_iteration=1)
    with pytest.raises(AttributeError):
        metric().name = "x"


@pytest.mark.parametrize("metric", [*METRICS[1:], MinibatchMaxRAM])
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))]
)
def test_a_copy_has_no_measurements(metric, copied):
    options = {"every_iterations": 1} if metric is MinibatchMaxRAM else {}
    metric = metric(name="x", every=2.0, include_children=True, backend="kernel", **options)
    engine = engine_of("engine")
    metric.attach(engine)
    copies = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: copies.append(copied(metric)))
    engine.run([0])
    for twin in (*copies, copied(metric)):
        assert twin is not metric
        assert repr(twin) == repr(metric)
        assert twin.result() == 0.0
        twin.reset()
        assert metric.result() > 0.0
        other = engine_of("engine")
        twin.attach(other)
        other.run([0])
        assert other.state.metrics["x"] > 0.0


# ram_usage_metrics


@pytest.mark.parametrize(
    ("asked", "metrics"),
    [
        (["minibatch"], [MinibatchMaxRAM]),
        (["epoch"], [EpochMaxRAM]),
        (["experience"], [ExperienceMaxRAM]),
        (["stream"], [StreamMaxRAM]),
        (["stream", "minibatch"], [MinibatchMaxRAM, StreamMaxRAM]),
        (["stream", "experience", "epoch", "minibatch"], METRICS),
    ],
    ids=stable_id,
)
def test_requested_metrics_come_from_shortest_to_longest(asked, metrics):
    given = ram_usage_metrics(**dict.fromkeys(asked, True))
    assert [type(metric) for metric in given] == metrics
    assert [repr(metric) for metric in given] == [repr(metric()) for metric in metrics]


def test_all_arguments_are_passed_on():
    for metric in ram_usage_metrics(**ALL, every=0.5, include_children=True, backend="sampler"):
        assert (metric.every, metric.include_children, metric.backend) == (0.5, True, "sampler")


def test_ram_metrics_are_handlers_for_the_factory():
    trainer = make_trainer(batches_of(2), handlers=ram_usage_metrics(epoch=True, experience=True))
    trainer.run()
    assert heights(trainer.state.metrics.values()) == [0, 0]


def test_requesting_no_metric_is_an_error():
    with pytest.raises(
        ValueError, match="`minibatch`, `epoch`, `experience` and `stream` must be True, got none"
    ):
        ram_usage_metrics()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("every", 0),
        ("include_children", 1),
        ("backend", "cpu"),
        *((kind, "no") for kind in ALL),
    ],
)
def test_wrong_arguments_are_named(argument, value):
    arguments = {"epoch" if argument != "epoch" else "stream": True, argument: value}
    with pytest.raises(ValueError, match=f"`{argument}` must be .*, got {value!r}"):
        ram_usage_metrics(**arguments)


def test_arguments_are_given_by_name():
    with pytest.raises(TypeError, match="`ram_usage_metrics` takes no argument by position"):
        ram_usage_metrics(1.0)


def test_the_result_is_of_the_measurement_that_began_last():
    stream, engine = StreamMaxRAM(), Engine(lambda engine, batch: spike())
    stream.attach(engine)
    engine.run([0])
    attached = stream.result()
    stream.start()
    assert stream.result() < attached - SPIKE / 2
    stream.stop()
    engine.run([0])
    assert engine.state.metrics["stream_max_ram_mib"] > stream.result() + SPIKE / 2
