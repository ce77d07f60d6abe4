import gc
import os
import threading
import weakref

import pytest
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import EpochMaxRAM
from ignite_hooks import ExperienceMaxRAM
from ignite_hooks import MaxDeviceMemory
from ignite_hooks import MinibatchMaxRAM
from ignite_hooks import StreamMaxRAM
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import ram_usage_metrics
from ignite_hooks.memory.max_device_memory import _shared_mark
from ignite_hooks.memory.ram_backends import _CHILDREN_MARKS
from ignite_hooks.memory.ram_backends import _PROCESS_MARKS
from tests.memory.test_ram_metrics import EPOCH
from tests.memory.test_ram_metrics import EXPERIENCE
from tests.memory.test_ram_metrics import METRICS
from tests.memory.test_ram_metrics import MINIBATCH
from tests.memory.test_ram_metrics import STREAM
from tests.memory.test_ram_metrics import _warm  # noqa: F401
from tests.memory.test_ram_metrics import child_with
from tests.memory.test_ram_metrics import engine_of
from tests.memory.test_ram_metrics import height
from tests.memory.test_ram_metrics import heights
from tests.memory.test_ram_metrics import in_iterations
from tests.memory.test_ram_metrics import peaks_at
from tests.memory.test_ram_metrics import spike
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer

KINDS = ["engine", "trainer"]
NAMES = {MINIBATCH, EPOCH, EXPERIENCE}
MARKS = [_shared_mark, *_PROCESS_MARKS.values(), *_CHILDREN_MARKS.values()]


def in_process():
    """Returns counts of resources that a measurement must release."""
    return threading.enumerate(), len(os.listdir("/proc/self/fd"))


def is_idle(shared_mark):
    return not (
        shared_mark.running or shared_mark._holders or shared_mark._is_open or shared_mark._sampling
    )


@pytest.fixture(autouse=True)
def _as_found():
    found = in_process()
    yield
    running = [shared_mark for shared_mark in MARKS if not is_idle(shared_mark)]
    for shared_mark in running:
        for left in tuple(shared_mark.running):
            left.stop()
    assert running == []
    assert in_process() == found


def attach_all(engine, **options):
    metrics = ram_usage_metrics(minibatch=True, epoch=True, experience=True, **options)
    return [metric.attach(engine) for metric in (*metrics, MaxDeviceMemory())]


# The ways out


def fail(failure):
    def act(engine):
        raise failure

    return act


WAYS = {
    "completed": lambda engine: None,
    "exception": fail(ZeroDivisionError()),
    "ctrl-c": fail(KeyboardInterrupt()),
    "exit": fail(SystemExit()),
    "terminate": lambda engine: engine.terminate(),
    "terminate, no COMPLETED": lambda engine: engine.terminate(skip_completed=True),
    "terminate_epoch": lambda engine: engine.terminate_epoch(),
    "interrupt": lambda engine: engine.interrupt(),
    "max_steps": lambda engine: None,
}


WAYS_OF_KINDS = [(kind, way) for kind in KINDS for way in WAYS]
WAYS_OF_KINDS.remove(("engine", "max_steps"))  # an option of trainers


def run_out(engine, way):
    limits = {"max_steps": 2} if way == "max_steps" else {"max_epochs": 1}
    try:
        engine.run(batches_of(4), **limits)
    except (ZeroDivisionError, KeyboardInterrupt, SystemExit):
        assert way in ("exception", "ctrl-c", "exit")
    else:
        assert way not in ("exception", "ctrl-c", "exit")


@pytest.mark.parametrize(("kind", "way"), WAYS_OF_KINDS)
def test_every_way_out_reports_open_spans_and_leaves_nothing(kind, way):
    def act(engine):
        if engine.state.iteration == 2:
            spike()
            WAYS[way](engine)

    engine = engine_of(kind, act)
    within = []
    for metric in ram_usage_metrics(epoch=True, experience=True):
        metric.attach(engine)
    MinibatchMaxRAM(every_iterations=2).attach(engine)  # so that none comes after
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: within.append(in_process()))
    found = in_process()
    run_out(engine, way)
    assert is_idle(_PROCESS_MARKS["kernel"])
    assert in_process() == found
    assert within[0][0] == found[0]
    assert within[0][1] > found[1]
    metrics = engine.state.metrics
    assert heights([metrics[EPOCH], metrics[EXPERIENCE]]) == [1, 1]
    # The fourth iteration is measured too, where there is one.
    assert height(metrics[MINIBATCH]) == (engine.state.iteration != 4)


@pytest.mark.parametrize(("kind", "way"), WAYS_OF_KINDS)
def test_after_any_way_out_no_thread_is_left(kind, way):
    act = in_iterations(2, act=lambda: WAYS[way](engine))
    engine = engine_of(kind, act)
    attach_all(engine, backend="sampler", include_children=True, every=60.0)
    within = []
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda: within.append(threading.active_count())
    )
    threads = threading.active_count()
    for _ in range(2):
        run_out(engine, way)
        assert threading.active_count() == threads
        assert engine.state.metrics.keys() == NAMES
        if way == "interrupt":
            engine.run()
            assert threading.active_count() == threads
        engine.state.max_epochs = engine.state.max_iters = None  # the next run is a new one
        engine._internal_run_generator = None
        if kind == "trainer":
            engine.state.max_steps = None
    assert set(within) == {threads + 2}  # one for this process, one for its children


@pytest.mark.parametrize("event", [Events.STARTED, Events.EPOCH_STARTED, Events.GET_BATCH_STARTED])
@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_before_a_span_reports_nothing_of_it(kind, event):
    engine = engine_of(kind)
    attach_all(engine)
    engine.add_event_handler(event, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.run(batches_of(2))
    expected = {EXPERIENCE} if event == Events.STARTED else {EXPERIENCE, EPOCH}
    assert engine.state.metrics.keys() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_span_ended_by_a_failure_does_not_continue_in_next_run(kind):
    def act(engine):
        if engine.state.iteration == 2 and not failed:
            failed.append(True)
            spike()
            raise ZeroDivisionError

    failed = []
    engine = engine_of(kind, act)
    attach_all(engine)
    peaks = peaks_at(engine, Events.ITERATION_COMPLETED, MINIBATCH)
    with pytest.raises(ZeroDivisionError):
        engine.run(batches_of(3), max_epochs=1)
    engine._internal_run_generator = None  # otherwise Ignite's next run would do nothing
    engine.run(batches_of(3), max_epochs=1)
    assert set(heights(peaks)) == {0}
    assert heights(engine.state.metrics.values()) == [0, 0, 0]


def test_failed_validation_is_reported_and_next_starts_fresh():
    def evaluate():
        if not failed:
            failed.append(True)
            spike()
            raise ZeroDivisionError

    failed = []
    trainer = make_trainer(batches_of(2))
    Validation(evaluate, every_epochs=1).attach(trainer)
    StreamMaxRAM().attach(trainer)
    with pytest.raises(ZeroDivisionError):
        trainer.run(max_epochs=1)
    assert height(trainer.state.metrics[STREAM]) == 1
    trainer.run(max_epochs=2)
    assert height(trainer.state.metrics[STREAM]) == 0


def test_a_failure_in_an_evaluator_is_reported_in_both():
    trainer = make_trainer(batches_of(2))
    evaluator = create_supervised_evaluator(make_model())
    Validation(evaluator, batches_of(2), every_epochs=1).attach(trainer)
    for engine in (trainer, evaluator):
        attach_all(engine)
        StreamMaxRAM().attach(engine)

    @evaluator.on(Events.ITERATION_STARTED(once=2))
    def spike_and_fail():
        spike()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trainer.run()
    metrics = trainer.state.metrics
    peaks = [metrics[name] for name in (MINIBATCH, EPOCH, EXPERIENCE, STREAM)]
    assert heights(peaks) == [0, 0, 1, 1]
    assert heights(evaluator.state.metrics.values()) == [1, 1, 1, 1]


def swallowing(act):
    """Returns an Ignite engine with a handler that swallows failures, so that the run continues."""
    engine = engine_of("engine", act)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda *failure: None)
    return engine


def test_span_after_a_swallowed_failure_starts_fresh():
    def act(engine):
        if engine.state.iteration == 2:
            spike()
            raise ZeroDivisionError

    engine = swallowing(act)
    attach_all(engine)
    peaks = peaks_at(engine, Events.ITERATION_COMPLETED, MINIBATCH)
    epochs = peaks_at(engine, Events.EPOCH_COMPLETED, EPOCH)
    engine.run([0] * 3, max_epochs=2)
    assert set(heights(peaks)) == {0}
    assert heights(epochs)[-1] == 0
    assert height(engine.state.metrics[EXPERIENCE]) == 1


def test_no_undue_iteration_is_measured_after_swallowed_failure():
    def act(engine):
        if engine.state.iteration == 3:
            raise ZeroDivisionError
        if engine.state.iteration == 4:
            spike()

    engine = swallowing(act)
    MinibatchMaxRAM(every_iterations=3).attach(engine)
    peaks = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: peaks.append(engine.state.metrics.get(MINIBATCH, 0.0))
    )
    engine.run([0] * 3, max_epochs=2)
    assert heights(peak for peak in peaks if peak) in ([], [0])


# Interruptions


def interrupted(kind, event, **filters):
    """Returns an engine with a spike at an event, after which it is interrupted."""
    engine = engine_of(kind)
    attach_all(engine)

    def spike_and_interrupt():
        spike()
        engine.interrupt()

    engine.add_event_handler(event(**filters), spike_and_interrupt)
    return engine


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_span_continues_without_the_pause_peak(kind):
    engine = interrupted(kind, Events.ITERATION_STARTED, once=2)
    peaks = peaks_at(engine, Events.ITERATION_COMPLETED, MINIBATCH)
    engine.run(batches_of(3), max_epochs=1)
    assert engine.state.iteration == 2
    assert heights(engine.state.metrics.values()) == [1, 1, 1]
    spike(3)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: spike(2))
    engine.run()
    assert heights(peaks) == [0, 1, 0]
    assert heights([engine.state.metrics[EPOCH], engine.state.metrics[EXPERIENCE]]) == [2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_peak_from_before_an_interruption_is_kept(kind):
    engine = interrupted(kind, Events.ITERATION_COMPLETED, once=1)
    engine.run(batches_of(3), max_epochs=1)
    engine.run()
    assert heights([engine.state.metrics[EPOCH], engine.state.metrics[EXPERIENCE]]) == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_span_can_be_interrupted_again_and_again(kind):
    engine = interrupted(kind, Events.ITERATION_STARTED, once=1)
    engine.add_event_handler(Events.ITERATION_STARTED(after=1), lambda: engine.interrupt())
    engine.run(batches_of(4), max_epochs=1)
    for iteration in (2, 3, 4):
        spike(3)
        engine.run()
        assert engine.state.iteration == iteration
    assert height(engine.state.metrics[EPOCH]) == 1
    engine.run()
    assert heights([engine.state.metrics[EPOCH], engine.state.metrics[EXPERIENCE]]) == [1, 1]
    assert height(engine.state.metrics[MINIBATCH]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_next_interruption_does_not_continue_an_earlier_span(kind):
    engine = engine_of(kind)
    MinibatchMaxRAM().attach(engine)
    events = [Events.ITERATION_STARTED, Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED]

    def interrupt_if_due(engine):
        if events and engine.last_event_name == events[0]:
            events.pop(0)
            engine.interrupt()

    for event in tuple(events):
        engine.add_event_handler(event, interrupt_if_due)
    engine.run(batches_of(2), max_epochs=1)
    assert MINIBATCH in engine.state.metrics
    engine.run()
    engine.state.metrics.clear()
    engine.run()
    assert (events, engine.state.iteration) == ([], 1)
    assert not engine.state.metrics
    engine.run()
    assert MINIBATCH in engine.state.metrics


def test_a_validation_that_was_not_open_is_not_resumed():
    trainer = make_trainer(batches_of(2))
    StreamMaxRAM().attach(trainer)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: trainer.interrupt())
    trainer.run()
    trainer.run()
    assert STREAM not in trainer.state.metrics


def test_the_span_after_a_resumed_one_starts_from_scratch():
    engine = interrupted("engine", Events.ITERATION_STARTED, once=1)
    epochs = peaks_at(engine, Events.EPOCH_COMPLETED, EPOCH)
    peaks = peaks_at(engine, Events.ITERATION_COMPLETED, MINIBATCH)
    engine.run([0] * 2, max_epochs=2)
    engine.run()
    assert heights(peaks) == [1, 0, 0, 0]
    assert heights(epochs) == [1, 0]


def test_an_abandoned_interrupted_run_is_not_resumed():
    trainer = interrupted("trainer", Events.ITERATION_COMPLETED, once=2)
    trainer.run(batches_of(3), max_epochs=1)
    assert heights(trainer.state.metrics.values()) == [0, 1, 1]
    trainer.load_state_dict({"iteration": 2, "epoch_length": 2, "max_epochs": 2})
    trainer.run(batches_of(2))
    assert heights(trainer.state.metrics.values()) == [0, 0, 0]


@pytest.mark.parametrize("backend", ["kernel", "sampler"])
def test_children_are_measured_after_an_interruption_too(backend):
    engine = engine_of("engine")
    ExperienceMaxRAM(include_children=True, backend=backend).attach(engine)
    engine.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: engine.interrupt())
    engine.run([0] * 2)
    before = engine.state.metrics[EXPERIENCE]
    with child_with(100):
        engine.run()
    assert engine.state.metrics[EXPERIENCE] - before >= 99


# Attached and removed


@pytest.mark.parametrize("backend", ["kernel", "sampler"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_removal_within_a_run_reports_only_the_open_span(kind, metric, backend):
    engine = engine_of(kind)
    Validation(lambda: None, at_start=True, every_steps=1).attach(engine)
    attachment = metric(backend=backend).attach(engine)
    found, shared_mark = in_process(), _PROCESS_MARKS[backend]
    trains = kind == "trainer"
    within = TrainEvents.VALIDATION_STARTED(once=2) if metric is StreamMaxRAM and trains else None
    after = []

    @engine.on(within or Events.ITERATION_STARTED(once=2))
    def remove():
        assert shared_mark.running
        engine.state.metrics.clear()
        attachment.remove()
        after.append((is_idle(shared_mark), in_process() == found, list(engine.state.metrics)))
        engine.state.metrics.clear()

    engine.run(batches_of(3), max_epochs=2)
    assert after == [(True, True, [metric().name])]
    assert metric().name not in engine.state.metrics
    assert is_idle(shared_mark)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_removal_outside_a_run_stops_measuring(kind, metric):
    engine = engine_of(kind)
    with metric().attach(engine):
        engine.run(batches_of(2), max_epochs=1)
    engine.state.metrics.clear()
    engine.run(batches_of(2), max_epochs=1)
    assert not engine.state.metrics
    assert "run" not in vars(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_removal_while_interrupted_ends_the_measurement(kind):
    engine = engine_of(kind)
    attachments = attach_all(engine)
    engine.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: engine.interrupt())
    engine.run(batches_of(2), max_epochs=1)
    for attachment in attachments:
        attachment.remove()
    engine.state.metrics.clear()
    engine.run()
    assert not engine.state.metrics


@pytest.mark.parametrize("kind", KINDS)
def test_attached_while_interrupted_it_measures_later_spans(kind):
    engine = engine_of(kind)
    engine.add_event_handler(Events.ITERATION_STARTED(once=1), lambda: engine.interrupt())
    engine.run(batches_of(2), max_epochs=1)
    attach_all(engine)
    with engine.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: engine.interrupt()):
        engine.run()
    assert engine.state.metrics.keys() == {EXPERIENCE, MINIBATCH}
    engine.run()
    assert engine.state.metrics.keys() == {EXPERIENCE, MINIBATCH}


@pytest.mark.parametrize("metric", METRICS)
def test_first_attachment_within_a_run_can_be_removed_in_it(metric):
    engine = engine_of("engine", in_iterations(4, act=lambda: attachments[0].remove()))
    attachments = []
    engine.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda: attachments.append(metric().attach(engine))
    )
    engine.run([0] * 2, max_epochs=3)
    assert is_idle(_PROCESS_MARKS["kernel"])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_removal_by_an_earlier_handler_prevents_the_span(kind, metric):
    engine = engine_of(kind)
    Validation(lambda: None, every_steps=1).attach(engine)
    attachments = []
    events = {
        MinibatchMaxRAM: Events.ITERATION_STARTED,
        EpochMaxRAM: Events.EPOCH_STARTED,
        ExperienceMaxRAM: Events.STARTED,
        StreamMaxRAM: TrainEvents.VALIDATION_STARTED if kind == "trainer" else Events.STARTED,
    }
    engine.add_event_handler(events[metric], lambda: attachments[0].remove())
    attachments.append(metric().attach(engine))
    engine.run(batches_of(2), max_epochs=1)
    assert is_idle(_PROCESS_MARKS["kernel"])


@pytest.mark.parametrize("kind", KINDS)
def test_attached_within_a_run_measures_from_then_on(kind):
    engine = engine_of(kind, in_iterations(3))
    EpochMaxRAM(name="first").attach(engine)  # from now on Ignite's engine has run scopes
    peaks = []

    @engine.on(Events.ITERATION_STARTED(once=2))
    def attach():
        spike(2)
        attach_all(engine)
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: peaks.append(engine.state.metrics.get(MINIBATCH))
        )

    engine.run(batches_of(3), max_epochs=2)
    assert heights(peaks[-4:]) == [1, 0, 0, 0]
    assert height(engine.state.metrics[EXPERIENCE]) == 1
    assert height(engine.state.metrics[EPOCH]) == 0


def test_failure_after_attaching_within_a_run_leaves_nothing():
    engine = engine_of("engine", in_iterations(2, act=lambda: 1 / 0))
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: attach_all(engine))
    with pytest.raises(ZeroDivisionError):
        engine.run([0] * 2)


def test_a_failed_manual_validation_leaves_nothing():
    trainer = make_trainer(batches_of(2))
    StreamMaxRAM().attach(trainer)
    with pytest.raises(ZeroDivisionError):
        Validation(lambda: 1 / 0, every_epochs=1)(trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_keep_no_engine_alive(kind):
    engine = engine_of(kind)
    metrics = [metric() for metric in (*METRICS, MaxDeviceMemory)]
    attachments = [metric.attach(engine) for metric in metrics]
    engine.run(batches_of(2), max_epochs=1)
    kept = weakref.ref(engine)
    del engine
    gc.collect()
    assert kept() is None
    for attachment in attachments:
        attachment.remove()
    assert metrics[0].result() > 0.0


@pytest.mark.parametrize("metric", [*METRICS, MaxDeviceMemory])
def test_metrics_are_not_kept_alive(metric):
    engine, metric = engine_of("engine"), metric()
    metric.attach(engine)
    engine.run([0])
    kept = weakref.ref(metric)
    del engine, metric
    gc.collect()
    assert kept() is None


# Open files and threads


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_files_are_opened_once_a_run(kind, monkeypatch):
    opened, open_file = [], os.open

    def note(path, *arguments, **options):
        opened.append(path)
        return open_file(path, *arguments, **options)

    engine = engine_of(kind)
    attachment = MinibatchMaxRAM().attach(engine)
    monkeypatch.setattr(os, "open", note)
    for runs in (1, 2):
        engine.run(batches_of(10), max_epochs=1)
        assert opened.count("/proc/self/clear_refs") == runs
        assert len(opened) == runs * len(set(opened))
    attachment.remove()


@pytest.mark.parametrize(("include_children", "threads"), [(False, 1), (True, 2)])
def test_the_samplers_threads_are_started_once_a_run(include_children, threads, monkeypatch):
    started, start = [], threading.Thread.start

    def note(thread):
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    engine = engine_of("engine")
    MinibatchMaxRAM(backend="sampler", include_children=include_children).attach(engine)
    engine.run([0] * 10)
    assert len(started) == threads
    assert not any(thread.is_alive() for thread in started)


def test_iterations_that_are_not_due_read_nothing(monkeypatch):
    reads = []
    mark = _PROCESS_MARKS["kernel"]._mark
    engine = engine_of("engine")
    MinibatchMaxRAM(every_iterations=5).attach(engine)
    read = mark.read
    monkeypatch.setattr(mark, "read", lambda: reads.append(engine.state.iteration) or read())
    engine.run([0] * 12)
    assert reads == [5, 10]


def test_without_a_run_nothing_is_open():
    engine = Engine(lambda engine, batch: None)
    attach_all(engine, backend="sampler", include_children=True)
    StreamMaxRAM().attach(engine)
    assert all(map(is_idle, MARKS))


def test_a_span_that_could_not_begin_reports_nothing(monkeypatch):
    engine = engine_of("engine", lambda *rest: None)
    MinibatchMaxRAM().attach(engine)
    engine.run([0])
    engine.state.metrics.clear()
    with monkeypatch.context() as patched:
        patched.setattr(_PROCESS_MARKS["kernel"]._mark, "reset", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.run([0])
    assert engine.state.metrics == {}
