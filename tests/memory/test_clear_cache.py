import gc

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import memory as accelerate_memory
from ignite.engine import Events

from ignite_hooks import ClearCache
from ignite_hooks import TrainEvents
from ignite_hooks import create_supervised_trainer
from ignite_hooks.memory import clear_cache
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer

MIB = 2**20


@pytest.fixture
def clearings(monkeypatch):
    """Records the arguments of Accelerate's ``clear_device_cache``."""
    calls = []
    monkeypatch.setattr(
        accelerate_memory, "clear_device_cache", lambda **arguments: calls.append(arguments)
    )
    return calls


def test_clears_at_any_event_and_when_called(clearings):
    trainer = make_trainer(batches_of(4))
    ClearCache(every_steps=100).attach(trainer, Events.ITERATION_COMPLETED(every=2))
    trainer.add_event_handler(Events.COMPLETED, ClearCache(garbage_collection=True))
    trainer.run()
    one = {"garbage_collection": False}
    assert clearings == [one, one, {"garbage_collection": True}]


def test_on_a_schedule_by_step_the_gradients_are_zeroed(monkeypatch):
    trainer = make_trainer(batches_of(2))
    gradients = []

    def look(garbage_collection):
        gradients.extend(parameter.grad for parameter in trainer.model.parameters())

    monkeypatch.setattr(accelerate_memory, "clear_device_cache", look)
    ClearCache(every_steps=1).attach(trainer)
    trainer.run()
    assert gradients == [None] * 8


def test_nothing_is_cleared_for_a_skipped_step_or_after_a_failure(clearings):
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    batches = batches_of(3)
    batches[1] = (batches[1][0], batches[1][1] * torch.inf)
    model = make_model(dropout=0)
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        F.mse_loss,
        batches,
        accelerator=accelerator,
    )
    ClearCache(every_steps=1, every_epochs=1).attach(trainer)
    trainer.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_STARTED(event_filter=lambda e, n: e.state.iteration == 3),
        lambda: 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    assert trainer.state.optimizer_step == 1
    assert len(clearings) == 1


def test_after_remove_nothing_is_cleared(clearings):
    trainer = make_trainer(batches_of(3))
    attachment = ClearCache(every_steps=1).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), attachment.remove)
    trainer.run()
    assert len(clearings) == 1


def test_garbage_is_collected_first_if_requested():
    class Node:
        pass

    def leak():
        node = Node()
        node.itself = node
        return node

    trainer = make_trainer(batches_of(1))
    for collects in (False, True):
        gc.collect()
        gc.disable()
        try:
            freed = []
            node = leak()
            node.finalizer = Finalizer(freed)
            del node
            ClearCache(garbage_collection=collects)(trainer)
            assert freed == [True] * collects
        finally:
            gc.enable()


class Finalizer:
    def __init__(self, freed):
        self.freed = freed

    def __del__(self):
        self.freed.append(True)


@pytest.mark.parametrize(
    ("min_fragmentation", "in_use", "clears"),
    [
        (None, (100, 100), True),
        (0.5, (100, 51), False),
        (0.5, (100, 50), False),
        (0.5, (100, 49), True),
        (0.0, (100, 100), False),
        (0.0, (100, 99), True),
        (0.5, (0, 0), False),
        (0.5, None, True),
    ],
)
def test_clears_when_the_free_reserved_fraction_is_exceeded(
    clearings, monkeypatch, min_fragmentation, in_use, clears
):
    monkeypatch.setattr(clear_cache, "memory_in_use", lambda: in_use)
    trainer = make_trainer()
    ClearCache(min_fragmentation=min_fragmentation)(trainer)
    assert len(clearings) == clears


def test_freed_memory_is_a_metric_if_the_device_reports_it(clearings, monkeypatch):
    trainer = make_trainer()
    ClearCache()(trainer)
    assert "cleared_cache_mib" not in trainer.state.metrics
    in_use = iter([(300 * MIB, 100 * MIB), (120 * MIB, 100 * MIB)])
    monkeypatch.setattr(clear_cache, "memory_in_use", lambda: next(in_use))
    ClearCache()(trainer)
    assert trainer.state.metrics["cleared_cache_mib"] == 180.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cached_memory_is_returned_to_the_device():
    trainer = make_trainer()
    kept = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    free = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    del free
    ClearCache(min_fragmentation=0.5)(trainer)
    assert trainer.state.metrics["cleared_cache_mib"] >= 256
    assert kept.numel() == 64 * MIB


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        *(("every_steps", value, "an integer >= 1") for value in (0, -1, True, 1.0, "1")),
        *(("every_epochs", value, "an integer >= 1") for value in (0, -1, True, 1.0)),
        *(("garbage_collection", value, "True or False") for value in (1, None, "yes")),
        *(("min_fragmentation", v, "a number from 0 to 1") for v in (-0.1, 1.1, True, "0.5")),
    ],
)
def test_wrong_fields_are_named_with_their_rule(field, value, rule):
    with pytest.raises(ValueError, match=f"`{field}` must be {rule}, got {value!r}[;,] "):
        ClearCache(**{field: value})


def test_fields_are_given_by_name():
    with pytest.raises((TypeError, ValueError)):
        ClearCache(1)
