import gc
import logging
import re
import time
import warnings

import pytest
import torch
from accelerate.utils import memory as accelerate_memory
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import CudaGarbageCollector
from ignite_hooks import GarbageCollector
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.core.warn_once import warn_once
from tests.ids import stable_id
from tests.memory.frozen import is_frozen
from tests.memory.test_process_gc import Node
from tests.memory.test_process_gc import objects_to_collect
from tests.memory.test_process_gc import old_cycle
from tests.reference import batches_of
from tests.reference import make_trainer


@pytest.fixture(autouse=True)
def _as_found():
    callbacks = list(gc.callbacks)
    warn_once.cache_clear()
    yield
    assert gc.isenabled()
    assert not is_frozen()
    assert gc.callbacks == callbacks


@pytest.fixture
def collections(monkeypatch):
    """Records the generations that are collected."""
    generations = []
    collect = gc.collect

    def note(generation=2):
        generations.append(generation)
        return collect(generation)

    monkeypatch.setattr(gc, "collect", note)
    return generations


def plain_engine():
    return Engine(lambda engine, batch: None)


def moments_of(engine, monkeypatch, handler, **run):
    iterations = []
    with monkeypatch.context() as patched, handler.attach(engine):
        patched.setattr(
            gc, "collect", lambda generation: iterations.append(engine.state.iteration) or 0
        )
        engine.run(**run)
    return iterations


@pytest.mark.parametrize(
    ("schedules", "expected"),
    [
        ({}, [6, 12]),
        ({"every_epochs": 2}, [12]),
        ({"every_steps": 2}, [4, 8, 12]),
        ({"every_steps": 3, "every_epochs": 1}, [6, 12]),
    ],
    ids=stable_id,
)
def test_garbage_is_collected_on_the_schedules(monkeypatch, schedules, expected):
    trainer = make_trainer(batches_of(6), accumulation=2)
    handler = GarbageCollector(**schedules)
    assert moments_of(trainer, monkeypatch, handler, max_epochs=2) == expected


def test_without_an_optimizer_step_a_step_is_an_iteration(monkeypatch):
    handler = GarbageCollector(every_steps=2)
    assert moments_of(plain_engine(), monkeypatch, handler, data=[0] * 5) == [2, 4]


def test_collector_acts_at_any_event_and_when_called(collections):
    engine = plain_engine()
    engine.add_event_handler(Events.STARTED, GarbageCollector(generation=0))
    GarbageCollector(generation=1).attach(engine, Events.COMPLETED)
    engine.run([0])
    assert collections == [0, 1]


@pytest.mark.parametrize(("generation", "finds"), [(0, False), (1, False), (2, True)])
def test_old_cycles_are_found_by_a_full_collection_only(generation, finds):
    freed = []
    gc.disable()
    try:
        old_cycle(freed)
        trainer = make_trainer()
        GarbageCollector(generation=generation)(trainer)
        assert freed == [True] * finds
        assert (trainer.state.metrics["gc_collected"] >= 1) or not finds
        assert trainer.state.metrics["gc_seconds"] > 0
    finally:
        gc.enable()
        gc.collect()


@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_logs_what_was_collected_and_what_it_took(verbose, caplog):
    trainer = make_trainer()
    gc.collect()
    node = Node()
    node.itself = node
    del node
    with caplog.at_level(logging.INFO, logger="ignite_hooks"):
        GarbageCollector(verbose=verbose)(trainer)
    messages = [record.getMessage() for record in caplog.records]
    metrics = trainer.state.metrics
    assert messages == verbose * [
        f"{metrics['gc_collected']} objects collected in {metrics['gc_seconds']:.3f} s"
    ]


def watched(engine, look):
    """Returns a list of the results of ``look`` within a run."""
    seen = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append(look()))
    return seen


@pytest.mark.parametrize("make", [lambda: make_trainer(), plain_engine])
def test_automatic_collection_is_off_during_a_run_and_on_after_it(make):
    engine = make()
    seen = watched(engine, gc.isenabled)
    with GarbageCollector(disable_automatic=True).attach(engine):
        engine.run(batches_of(2))
        assert gc.isenabled()
    assert seen == [False, False]


@pytest.mark.parametrize("failure", [KeyError, KeyboardInterrupt, SystemExit])
def test_failure_restores_the_garbage_collector_of_the_process(failure):
    trainer = make_trainer(batches_of(3))
    GarbageCollector(disable_automatic=True, freeze_after=1, track_pauses=True).attach(trainer)

    @trainer.on(TrainEvents.MODEL_BACKWARD_STARTED(once=2))
    def fail():
        assert not gc.isenabled()
        assert is_frozen()
        raise failure

    with pytest.raises(failure):
        trainer.run()
    assert gc.isenabled()
    assert not is_frozen()


def test_interrupted_run_restores_automatic_gc_until_continued():
    trainer = make_trainer(batches_of(4))
    seen = watched(trainer, gc.isenabled)
    GarbageCollector(disable_automatic=True).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.interrupt)
    trainer.run()
    assert gc.isenabled()
    trainer.run()
    assert seen == [False] * 4


def test_nested_evaluator_keeps_automatic_collection_off():
    trainer = make_trainer(batches_of(2))
    evaluator = create_supervised_evaluator(trainer.model, accelerator=trainer.accelerator)
    for engine in (trainer, evaluator):
        GarbageCollector(disable_automatic=True).attach(engine)
    Validation(evaluator, batches_of(1), every_steps=1).attach(trainer)
    seen = watched(trainer, gc.isenabled)
    trainer.add_event_handler(TrainEvents.VALIDATION_COMPLETED, lambda: seen.append(gc.isenabled()))
    trainer.run()
    assert seen == [False] * 4


def test_removal_within_a_run_restores_the_process_at_once():
    trainer = make_trainer(batches_of(3))
    attachment = GarbageCollector(disable_automatic=True, freeze_after=1).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), attachment.remove)
    seen = watched(trainer, lambda: (gc.isenabled(), is_frozen()))
    trainer.run()
    assert seen == [(False, False), (False, True), (True, False)]


def numbers_of_handlers(engine):
    return {event: len(each) for event, each in engine._event_handlers.items() if each}


def test_objects_are_frozen_from_warm_up_to_the_end_of_each_run():
    trainer = make_trainer(batches_of(4))
    seen = watched(trainer, is_frozen)
    attached = GarbageCollector(every_epochs=9, freeze_after=2).attach(trainer)
    handlers = numbers_of_handlers(trainer)
    trainer.run(max_steps=3)
    assert not is_frozen()
    trainer.run(max_steps=6)  # continues
    assert seen == [False, False, True, False, False, True]
    assert numbers_of_handlers(trainer) == handlers
    attached.remove()


def test_too_short_run_freezes_nothing_and_leaves_no_handler():
    trainer = make_trainer(batches_of(2))
    seen = watched(trainer, is_frozen)
    GarbageCollector(every_epochs=9, freeze_after=3).attach(trainer)
    handlers = numbers_of_handlers(trainer)
    for _ in range(2):
        trainer.run()
    assert seen == [False] * 4
    assert numbers_of_handlers(trainer) == handlers


def test_pauses_are_added_up_in_the_metrics():
    trainer = make_trainer(batches_of(2))
    GarbageCollector(every_epochs=9, track_pauses=True).attach(trainer)
    seen = watched(trainer, lambda: trainer.state.metrics["gc_pause_seconds"])
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: len(objects_to_collect()))
    trainer.run()
    after = trainer.state.metrics["gc_pause_seconds"]
    assert 0 <= seen[0] < seen[1] < after
    objects_to_collect()
    assert trainer.state.metrics["gc_pause_seconds"] == after


def test_the_cache_of_the_device_is_cleared_after_the_collection(monkeypatch, collections, caplog):
    class Device:
        @staticmethod
        def memory_summary():
            return "all of it"

    calls = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda: Device)

    def clear():
        calls.append(list(collections))
        until = time.perf_counter() + 0.01
        while time.perf_counter() < until:
            pass

    monkeypatch.setattr(accelerate_memory, "clear_device_cache", clear)
    trainer = make_trainer()
    with caplog.at_level(logging.INFO, logger="ignite_hooks"):
        CudaGarbageCollector(generation=1, verbose=True)(trainer)
        CudaGarbageCollector()(trainer)
    assert calls == [[1], [1, 2]]
    first, second = (record.getMessage() for record in caplog.records)
    assert "objects collected in" in first
    took = re.fullmatch(r"device cache cleared in (\d+\.\d{3}) s\nall of it", second)
    assert float(took[1]) >= 0.01


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a device")
def test_without_a_device_it_collects_python_and_warns_once(collections, monkeypatch):
    monkeypatch.setattr(accelerate_memory, "clear_device_cache", None)  # it is not called
    trainer = make_trainer(batches_of(2))
    CudaGarbageCollector(every_steps=1).attach(trainer)
    with pytest.warns(UserWarning, match="CudaGarbageCollector finds no device") as caught:
        trainer.run()
    assert len(caught) == 1
    assert collections == [2, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CudaGarbageCollector()(trainer)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_of_tensors_in_cycles_is_freed_on_the_device():
    trainer = make_trainer()
    node = Node()
    node.itself, node.tensor = node, torch.empty(2**28, dtype=torch.uint8, device="cuda")
    before = torch.cuda.memory_reserved()
    del node
    CudaGarbageCollector(verbose=True)(trainer)
    assert torch.cuda.memory_reserved() <= before - 2**28


@pytest.mark.parametrize("kind", [GarbageCollector, CudaGarbageCollector])
@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        *(("every_steps", value, "an integer >= 1") for value in (0, -1, True, 1.0)),
        *(("every_epochs", value, "an integer >= 1") for value in (0, -1, False, 1.5)),
        *(("freeze_after", value, "an integer >= 1") for value in (0, True, 1.0)),
        *(("generation", value, "0, 1 or 2") for value in (-1, 3, True, False, 1.0, None)),
        *(
            (field, 1, "True or False")
            for field in ("disable_automatic", "track_pauses", "verbose")
        ),
    ],
)
def test_wrong_fields_are_named_with_their_rule(kind, field, value, rule):
    with pytest.raises(ValueError, match=f"`{field}` must be {rule}, got {value!r}[;,] "):
        kind(**{field: value})


@pytest.mark.parametrize("make", [lambda: make_trainer(), plain_engine])
def test_attached_to_an_event_it_changes_the_process_too(make, collections):
    engine = make()
    handler = GarbageCollector(disable_automatic=True, freeze_after=1, track_pauses=True)
    seen = []
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda: seen.append((gc.isenabled(), is_frozen()))
    )
    with handler.attach(engine, Events.COMPLETED):
        engine.run(batches_of(2))
    assert seen == [(False, False), (False, True)]
    assert engine.state.metrics["gc_pause_seconds"] == 0.0
    assert collections == [2, 2]  # before freezing, and at the event


def pauses_of(engine, **run):
    """Runs the engine; returns the sum of its automatic collections, timed independently."""
    began, pauses = [], []

    def listen(phase, info):
        if info["generation"] < 2:
            began.append(time.perf_counter()) if phase == "start" else pauses.append(
                time.perf_counter() - began.pop()
            )

    gc.callbacks.append(listen)
    try:
        engine.run(**run)
    finally:
        gc.callbacks.remove(listen)
    return sum(pauses)


def test_two_collectors_measure_the_same_pauses():
    engine = Engine(lambda engine, batch: objects_to_collect() and None)
    told = []
    for _ in range(2):
        GarbageCollector(every_epochs=9, track_pauses=True).attach(engine)
    for _ in range(2):
        paused = pauses_of(engine, data=[0] * 5)
        told.append(engine.state.metrics["gc_pause_seconds"])
        assert 0 < told[-1] < 1.5 * paused + 0.005


def test_pauses_add_up_over_an_interruption_but_not_over_runs():
    engine = Engine(lambda engine, batch: objects_to_collect() and None)
    GarbageCollector(every_epochs=9, track_pauses=True).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.interrupt)
    metrics = engine.state.metrics
    engine.run([0] * 3)
    before, at_first = metrics["gc_pause_seconds"], []
    assert before > 0
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda: at_first.append(metrics["gc_pause_seconds"])
    )
    engine.run()
    assert at_first[0] >= before
    del at_first[:]
    engine.run([0])
    assert at_first[0] < before


def test_removal_while_firing_prevents_freezing_and_collecting(collections):
    engine = plain_engine()
    attachments = []

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def remove():
        for attachment in attachments:
            attachment.remove()

    handlers = [GarbageCollector(every_steps=2), GarbageCollector(every_epochs=9, freeze_after=2)]
    attachments += [handler.attach(engine) for handler in handlers]
    engine.run([0] * 3)
    assert collections == []
    assert not is_frozen()


def test_removal_by_an_earlier_due_handler_prevents_collecting(collections):
    trainer = make_trainer(batches_of(3))

    class Removing(GarbageCollector):
        def __call__(self, engine):
            attachment.remove()

    Removing(every_steps=2).attach(trainer)
    attachment = GarbageCollector(every_steps=2).attach(trainer)
    trainer.run()
    assert collections == []


@pytest.mark.parametrize("first_is_removed_first", [False, True])
def test_the_last_of_two_collectors_restores_the_settings(first_is_removed_first):
    engine, seen = plain_engine(), []
    handler = GarbageCollector(every_epochs=9, disable_automatic=True, freeze_after=1)
    attachments = [handler.attach(engine) for _ in range(2)]

    @engine.on(Events.ITERATION_STARTED)
    def remove_one():
        if engine.state.iteration > 1:  # both have frozen the objects
            attachments.pop(0 if first_is_removed_first else -1).remove()
            seen.append((gc.isenabled(), is_frozen()))

    engine.run([0] * 3)
    assert seen == [(False, True), (True, False)]


def test_with_automatic_collection_off_there_are_no_pauses():
    engine = Engine(lambda engine, batch: objects_to_collect() and None)
    GarbageCollector(every_epochs=9, disable_automatic=True, track_pauses=True).attach(engine)
    engine.run([0] * 3)
    assert engine.state.metrics["gc_pause_seconds"] == 0.0
