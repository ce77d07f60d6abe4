"""Tests that contexts which change a state after the save of their step are reported."""

import time

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from ignite_hooks import HookContext
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.reference import batches_of
from tests.reference import make_trainer


def unknown_after(register, tmp_path):
    """Returns the reason for handlers in the last checkpoint of two epochs of two batches."""
    trainer = make_trainer(batches_of(2))
    register(trainer)
    options = {"at_end": False, "on_signals": (), "keep_last": "all"}
    SaveCheckpoint(tmp_path, every_steps=1, **options).attach(trainer)
    trainer.run(max_epochs=2)
    found = CheckpointStore(tmp_path).checkpoints()
    return {each.manifest.step: each.manifest.contents.get("unknown", []) for each in found}


def clamping(channel):
    def register(trainer):
        @trainer.hooks.on(channel)
        def clamp(engine):
            yield
            for each in engine.model.parameters():
                each.data.clamp_(-1, 1)

    return register


def averaging(trainer):
    average = AveragedModel(trainer.model)

    @trainer.hooks.on("on_step")
    def move(engine):
        try:
            yield
        finally:
            average.update_parameters(engine.model)


def of_two_functions(trainer):
    average = AveragedModel(trainer.model)
    after = HookContext(after=lambda engine: average.update_parameters(engine.model))
    trainer.hooks.register("on_step", after)


def helping(trainer):
    def halve(engine):
        engine.optimizer.param_groups[0]["lr"] /= 2

    @trainer.hooks.on("on_step")
    def change(engine):
        yield
        halve(engine)


def scaling_in_place(trainer):
    @trainer.hooks.on("on_step")
    def scale(engine):
        weight = next(engine.model.parameters()).data
        yield
        weight *= 0.5


def forgetting(trainer):
    @trainer.hooks.on("on_step")
    def forget(engine):
        state, first = engine.optimizer.state, next(engine.model.parameters())
        state[first] = {}
        yield
        del state[first]


NAMED = {
    "an operator": (scaling_in_place, "scale on on_step"),
    "a deletion": (forgetting, "forget on on_step"),
    "weights": (clamping("on_step"), "clamp on on_step"),
    "an average": (averaging, "move on on_step"),
    "a HookContext": (of_two_functions, "HookContext"),
    "a function that is called": (helping, "change on on_step"),
}


@pytest.mark.parametrize(("register", "name"), NAMED.values(), ids=NAMED)
def test_a_context_of_a_step_is_reported(register, name, tmp_path):
    said = unknown_after(register, tmp_path)
    assert all(name in said[step][0] for step in (1, 3))
    assert "may change a saved state on exit, which comes after the save" in said[1][0]


def test_a_context_of_an_epoch_is_reported_at_its_end(tmp_path):
    said = unknown_after(clamping("on_epoch"), tmp_path)
    assert [bool(said[step]) for step in (1, 2, 3, 4)] == [False, True, False, True]
    assert "clamp on on_epoch" in said[2][0]


def timer(trainer):
    @trainer.hooks.on("on_step")
    def timed(engine):
        start = time.perf_counter()
        yield
        engine.state.metrics["seconds"] = time.perf_counter() - start


def before_the_step(trainer):
    average = AveragedModel(trainer.model)

    @trainer.hooks.on("on_step")
    def move(engine):
        average.update_parameters(engine.model)
        yield


def subtracting_locally(trainer):
    @trainer.hooks.on("on_step")
    def subtract(engine):
        weight = next(engine.model.parameters())
        yield
        rest = weight - 1
        del rest


SILENT = {
    "local variables": subtracting_locally,
    "a timer": timer,
    "what comes before the yield": before_the_step,
    "a range of a profiler": lambda trainer: trainer.hooks.register(
        "on_step", lambda engine: torch.profiler.record_function("step")
    ),
    "a context that closes before": clamping("on_optimizer_step"),
}


@pytest.mark.parametrize("register", SILENT.values(), ids=SILENT)
def test_no_context_is_reported_for(register, tmp_path):
    assert unknown_after(register, tmp_path) == {step: [] for step in (1, 2, 3, 4)}
