import math
import os

import numpy as np
import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.reference import batches_of
from tests.reference import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:`metric` must be one of state.metrics")
"""It is said once in a process, and not asked here."""


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def trainer_of(directory, values, kind=float, event=Events.EPOCH_COMPLETED, **options):
    """Returns a trainer with epochs of three steps; after each one a handler writes a value."""
    given = iter(values)
    options = {"metric": "score", "keep_last": "all", **options}
    trainer = make_trainer(batches_of(3), checkpoint=SaveCheckpoint(directory, **options))

    @trainer.on(event)
    def measure():
        trainer.state.metrics["score"] = kind(next(given))

    return trainer


def new_float(value):
    """Returns a new object, as a computation does; ``float(value)`` would return the same one."""
    return value * 1.0


def saved(directory):
    found = [each.manifest for each in CheckpointStore(directory).checkpoints()]
    return {each.step: each.metric_value for each in found}


@pytest.mark.parametrize(
    "kind", [new_float, torch.tensor, np.float32], ids=["float", "tensor", "numpy"]
)
def test_stale_metric_value_is_not_saved(tmp_path, kind):
    values = [0.5, 0.5, 0.5]
    trainer_of(tmp_path, values, kind, every_steps=1, every_epochs=1).run(max_epochs=3)
    assert saved(tmp_path) == {
        **dict.fromkeys(range(1, 10), None),
        3: 0.5,
        6: 0.5,
        9: 0.5,
    }


@pytest.mark.parametrize(
    "kind",
    [new_float, torch.tensor, np.float64, lambda value: 1000 * int(value)],
    ids=["float", "tensor", "numpy", "int"],
)
def test_newer_of_two_equally_good_checkpoints_is_kept(tmp_path, kind):
    options = {"every_epochs": 1, "keep_last": 1, "keep_best": 1}
    trainer_of(tmp_path, [5.0, 5.0, 3.0], kind, **options).run(max_epochs=3)
    assert saved(tmp_path) == {6: float(kind(5.0)), 9: float(kind(3.0))}


@pytest.mark.parametrize("value", [5.0, 5, True, torch.tensor(5.0), np.float64(5)])
def test_same_object_stored_again_counts_as_stale(tmp_path, value):
    trainer = trainer_of(tmp_path, [value, value, 3.0], lambda found: found, every_epochs=1)
    trainer.run(max_epochs=3)
    assert saved(tmp_path) == {3: float(value), 6: None, 9: 3.0}


@pytest.mark.parametrize("value", [0.5, 5, 10**20, torch.tensor(0.5), np.float32(0.5), np.ones(())])
def test_values_in_metrics_are_never_replaced(tmp_path, value):
    trainer = trainer_of(tmp_path, [value], lambda found: found, Events.STARTED, every_steps=1)
    metrics = trainer.state.metrics
    trainer.run(max_epochs=2)
    assert trainer.state.metrics is metrics
    assert metrics["score"] is value


def in_inference_mode():
    with torch.inference_mode():
        return torch.zeros(())


def written_in_place(total):
    """Writes a value into the object in place."""

    def add(value):
        with torch.inference_mode(isinstance(total, torch.Tensor) and total.is_inference()):
            total[...] += value
            return total

    return add


@pytest.mark.parametrize(
    "make",
    [lambda: torch.zeros(()), lambda: torch.zeros(1), in_inference_mode, lambda: np.zeros(())],
    ids=["tensor", "one element", "inference tensor", "array"],
)
def test_number_written_in_place_counts_as_a_new_value(tmp_path, make):
    options = {"every_steps": 1, "every_epochs": 1}
    trainer_of(tmp_path, [1.0, 2.0, 3.0], written_in_place(make()), **options).run(max_epochs=3)
    assert saved(tmp_path) == {**dict.fromkeys(range(1, 10), None), 3: 1.0, 6: 3.0, 9: 6.0}


@pytest.mark.parametrize("value", [-0.0, math.inf, math.nan])
def test_metric_value_stays_unchanged_for_users(tmp_path, value):
    trainer = trainer_of(tmp_path, [value, value], every_epochs=1)
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=5), lambda: seen.append(trainer.state.metrics["score"])
    )
    trainer.run(max_epochs=2)
    assert str(seen) == str([value])


def test_best_checkpoint_has_a_measured_value(tmp_path):
    options = {"every_steps": 1, "keep_last": 1, "keep_best": 1}
    trainer_of(tmp_path, [0.9, 0.1, 0.2], **options).run(max_epochs=3)
    assert saved(tmp_path) == {3: 0.9, 9: 0.2}


def test_first_save_takes_no_stale_value(tmp_path):
    trainer_of(tmp_path, [0.5, 0.6], every_steps=4, at_end=False).run(max_epochs=2)
    assert saved(tmp_path) == {4: None}


def test_restored_metric_value_is_stale(tmp_path):
    trainer_of(tmp_path, [0.9], at_end=True).run()
    resumed = trainer_of(tmp_path, [0.1], every_steps=1)
    ResumeCheckpoint(tmp_path).attach(resumed)
    resumed.run(max_epochs=2)
    assert saved(tmp_path) == {3: 0.9, 4: None, 5: None, 6: 0.1}


@pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED])
def test_handler_added_to_an_event_saves_the_current_value(tmp_path, event):
    trainer = make_trainer(batches_of(3))
    Average(output_transform=float).attach(trainer, "score")
    handler = SaveCheckpoint(tmp_path, metric="score", keep_last="all")
    trainer.add_event_handler(event, handler)
    seen = {}
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda: seen.update({trainer.state.optimizer_step: trainer.state.metrics["score"]}),
    )
    trainer.run(max_epochs=2)
    found = saved(tmp_path)
    assert {step: found[step] for step in seen} == seen
    assert [step for step, value in sorted(found.items()) if value is not None] == [3, 6]


def test_without_a_metric_nothing_is_noted(tmp_path):
    plain, asked = make_trainer(batches_of(3)), make_trainer(batches_of(3))
    event = Events.ITERATION_STARTED
    before = len([*plain._event_handlers[event]])
    SaveCheckpoint(tmp_path / "plain", every_steps=1).attach(plain)
    assert len(plain._event_handlers[event]) == before
    SaveCheckpoint(tmp_path / "asked", every_steps=1, metric="score").attach(asked)
    assert len(asked._event_handlers[event]) == before + 1


def test_tensor_only_changed_in_place_counts_as_a_new_value(tmp_path):
    trainer = trainer_of(tmp_path, [torch.zeros(())], lambda value: value, Events.STARTED)
    SaveCheckpoint(tmp_path / "each", every_steps=1, keep_last="all", metric="score").attach(
        trainer
    )
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: trainer.state.metrics["score"].add_(1.0)
    )
    trainer.run(max_epochs=2)
    found = saved(tmp_path / "each")
    assert {step for step, value in found.items() if value is not None} <= {3, 6}
    assert found[6] == 2.0
