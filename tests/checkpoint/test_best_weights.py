"""Tests of load_best, and of saving, resuming and training after it."""

import math
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import checkpoints
from ignite_hooks.checkpoint.digest import digest_of
from tests.checkpoint.stored import damaged
from tests.reference import batches_of
from tests.reference import seed

SCORES = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.2, 5: 0.1}


class Weighted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, output, y):
        return F.mse_loss(output, y) * self.scale


def make_trainer(*handlers, scores=SCORES, **options):
    seed()
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
    )
    loss_fn = Weighted()
    trainer = create_supervised_trainer(
        torch.compile(model, backend="eager"),
        torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.01),
        loss_fn,
        batches_of(4),
        accelerator=Accelerator(cpu=True),
        handlers=handlers,
        **options,
    )
    trainer.digests = {}

    @trainer.on(Events.EPOCH_COMPLETED)
    def note(engine):
        engine.state.metrics["score"] = scores[engine.state.epoch]
        engine.digests[engine.state.optimizer_step] = digest(engine)

    return trainer


def digest(trainer):
    return digest_of({name: module.state_dict() for name, module in trainer.modules.items()})


def save_best(folder, **options):
    usual = {"every_epochs": 1, "keep_last": 1, "keep_best": 1, "metric": "score"}
    return SaveCheckpoint(folder, **{**usual, **options})


def trained(folder, **options):
    trainer = make_trainer(checkpoint=save_best(folder, **options))
    trainer.run(max_epochs=3)
    return trainer


@pytest.mark.parametrize(("mode", "step"), [("max", 8), ("min", 4)])
def test_best_weights_of_the_run_are_loaded(tmp_path, mode, step):
    trainer = trained(tmp_path, mode=mode)
    metrics, counters = dict(trainer.state.metrics), trainer.place
    optimizer = digest_of(trainer.optimizer.state_dict())
    assert digest(trainer) == trainer.digests[12]
    entry = trainer.load_best()
    assert (entry.step, entry.is_best) == (step, True)
    assert digest(trainer) == trainer.digests[step]
    assert trainer.state.metrics == metrics
    assert trainer.place == counters
    assert digest_of(trainer.optimizer.state_dict()) == optimizer


def test_save_is_allowed_with_the_best_weights_of_the_present_step(tmp_path):
    trainer = trained(tmp_path)
    shutil.rmtree(trainer.load_best().path)
    assert trainer.load_best().step == 12  # the last step
    assert digest(trainer) == trainer.digests[12]
    trainer.run(max_epochs=4)
    assert sorted(each.step for each in checkpoints(tmp_path)) == [12, 16]


def test_save_is_refused_until_training_continues(tmp_path):
    save = save_best(tmp_path, at_end=False, every_epochs=2, every_steps=8)
    trainer = make_trainer(checkpoint=save)
    trainer.run(max_epochs=3)
    trainer.load_best()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="the weights of step 8, which load_best"):
        save(trainer)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.warns(UserWarning, match="starts from the weights of step 8, .*of step 12"):
        trainer.run(max_epochs=4)
    assert checkpoints(tmp_path)[0].step == 16
    save(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run(max_epochs=5)


def test_run_whose_last_step_is_best_can_be_saved_and_continued(tmp_path):
    trainer = make_trainer(checkpoint=save_best(tmp_path), scores={1: 0.1, 2: 0.9, 3: 1.0})
    trainer.run(max_epochs=2)
    assert trainer.load_best().step == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run(max_epochs=3)
    assert digest(trainer) == trainer.digests[12]


def test_resume_restores_the_latest_weights_after_load_best(tmp_path):
    trainer = trained(tmp_path)
    trainer.load_best()
    ResumeCheckpoint(tmp_path).attach(trainer)
    assert digest(trainer) == trainer.digests[12]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run(max_epochs=4)


def test_best_of_another_run_in_the_directory_is_ignored(tmp_path):
    trained(tmp_path)
    trainer = make_trainer(checkpoint=save_best(tmp_path), scores={1: 0.01, 2: 0.02, 3: 0.001})
    with pytest.warns(UserWarning, match="checkpoints of other runs"):
        trainer.run(max_epochs=3)
    assert trainer.load_best().metric_value == 0.02


def test_run_without_a_best_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"needs one SaveCheckpoint that keeps the best.*got none"):
        make_trainer().load_best()
    with pytest.raises(ValueError, match=r"needs one SaveCheckpoint that keeps the best.*got none"):
        make_trainer(checkpoint=SaveCheckpoint(tmp_path / "0")).load_best()
    two = [save_best(tmp_path / name) for name in "12"]
    with pytest.raises(ValueError, match=r"got 2 .*/1, .*/2"):
        make_trainer(*two).load_best()
    with pytest.raises(ValueError, match=r"has 0 checkpoint\(s\) of the run: none was saved"):
        make_trainer(checkpoint=save_best(tmp_path / "3")).load_best()
    never = make_trainer(checkpoint=save_best(tmp_path / "4"), scores={1: math.nan})
    never.run()
    with pytest.raises(ValueError, match="none of them has a value of score"):
        never.load_best()


def test_weights_stay_if_the_best_checkpoint_is_damaged(tmp_path):
    trainer = trained(tmp_path)
    damaged(tmp_path / "step_00000008", "a bit flipped")
    with pytest.raises(ValueError, match="step_00000008 is damaged"):
        trainer.load_best()
    assert digest(trainer) == trainer.digests[12]


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_load_best_within_a_run_is_an_error(tmp_path, is_interrupted):
    trainer = make_trainer(checkpoint=save_best(tmp_path))

    @trainer.on(Events.EPOCH_COMPLETED(once=2))
    def in_a_run(engine):
        if is_interrupted:
            engine.interrupt()
            return
        with pytest.raises(RuntimeError, match="between runs"):
            engine.load_best()

    trainer.run(max_epochs=2)
    if is_interrupted:
        with pytest.raises(RuntimeError, match="between runs"):
            trainer.load_best()


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "step"), [(1, 0, None), (2, 0, None), ("all", 0, 8), (1, 1, 8)]
)
def test_load_best_needs_a_save_that_keeps_the_best(tmp_path, keep_last, keep_best, step):
    trainer = trained(tmp_path, keep_last=keep_last, keep_best=keep_best)
    if step is not None:
        assert trainer.load_best().step == step
        return
    with pytest.raises(ValueError, match="that keeps the best by a metric, got none"):
        trainer.load_best()
    assert digest(trainer) == trainer.digests[12]
