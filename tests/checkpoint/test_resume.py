"""A resumed run has the same result as one that was never interrupted."""

import logging
import random
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.handlers import LinearCyclicalScheduler
from ignite.metrics import Average
from ignite.metrics import RunningAverage
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.lr_scheduler import LinearLR
from torch.optim.lr_scheduler import MultiStepLR
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import SequentialLR
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import writer as writing
from ignite_hooks.checkpoint.store import read_manifest
from tests.reference import Notes
from tests.reference import augmented
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import seed
from tests.reference import weights

EPOCHS = 2
BATCHES = 4
STEPS = EPOCHS * BATCHES
ALL_EVENTS = [
    Events.STARTED,
    Events.EPOCH_STARTED,
    Events.GET_BATCH_STARTED,
    Events.ITERATION_STARTED,
    Events.ITERATION_COMPLETED,
    Events.EPOCH_COMPLETED,
    Events.TERMINATE,
    Events.COMPLETED,
]


def step_of(number):
    return f"step_{number:08d}"


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adam_in_groups(model):
    first, *rest = model.parameters()
    return torch.optim.Adam([{"params": [first], "lr": 0.02}, {"params": rest}], lr=0.01)


def trainer_of(directory=None, *, number=1, optimizer=sgd, save=None, **options):
    """Returns a trainer as a script makes it, which saves each step if it is given a directory.

    The generators are seeded with ``number``, so that a resumed run can begin with other states
    than the run before.
    """
    seed(number)
    model = make_model(dropout=0.5)
    seed(number)
    options.setdefault("loss_fn", F.mse_loss)
    options.setdefault("data", augmented(BATCHES))
    if directory is not None:
        save = {"every_steps": 1, "keep_last": "all", **(save or {})}
        options["checkpoint"] = SaveCheckpoint(directory, **save)
    accelerator = Accelerator(cpu=True)
    return create_supervised_trainer(model, optimizer(model), accelerator=accelerator, **options)


def losses(trainer):
    seen = Notes()
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: seen.append((engine.state.iteration, float(engine.state.output))),
    )
    return seen


def halved(step):
    return 0.5**step


class Scaled:
    """A callable with attributes, which ``LambdaLR.state_dict`` includes."""

    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, step):
        return self.factor**step


SCHEDULERS = {
    "none": None,
    "StepLR": lambda o: StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: MultiStepLR(o, [2, 5, 5], gamma=0.5),
    "OneCycleLR": lambda o: OneCycleLR(o, 0.2, total_steps=20),
    "LambdaLR of a function": lambda o: LambdaLR(o, halved),
    "LambdaLR of an object": lambda o: LambdaLR(o, Scaled()),
    "SequentialLR": lambda o: SequentialLR(o, [LinearLR(o), StepLR(o, 1)], [3]),
    "warm restarts": lambda o: CosineAnnealingWarmRestarts(o, 3),
}

KINDS = {
    **{name: {"lr_scheduler": each} for name, each in SCHEDULERS.items()},
    "by epoch": {"lr_scheduler": SCHEDULERS["StepLR"], "scheduler_at": "epoch"},
    "Adam in groups": {"lr_scheduler": SCHEDULERS["StepLR"], "optimizer": adam_in_groups},
    "in the background": {"save": {"background": True}, "optimizer": adam_in_groups},
    "by torch.save": {"save": {"safe_serialization": False}},
}


@pytest.mark.grid(5)
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_result_equals_an_uninterrupted_run(tmp_path, kind):
    options = KINDS[kind]
    whole = trainer_of(tmp_path / "whole", **options)
    seen = losses(whole)
    whole.run(max_epochs=EPOCHS)
    for step in (BATCHES - 1, BATCHES):
        source = tmp_path / "whole" / step_of(step)
        trainer = trainer_of(number=2, resume_from=source, **options)
        assert trainer.state.optimizer_step == trainer.state.iteration == step
        resumed = losses(trainer)
        trainer.run(max_epochs=EPOCHS)
        assert resumed == seen[step:]
        assert torch.equal(weights(trainer.model), weights(whole.model))
        assert trainer.resume_report.is_exact
        if whole.lr_scheduler is not None:
            assert trainer.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr()


def test_resumed_run_saves_in_place_and_can_resume_again(tmp_path):
    whole = trainer_of()
    whole.run(max_epochs=EPOCHS)
    for _ in range(STEPS):
        resume = ResumeCheckpoint(tmp_path / "parts", on_missing="start")
        number = 1 if not (tmp_path / "parts").exists() else 2
        trainer = trainer_of(tmp_path / "parts", number=number, resume_from=resume)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: engine.terminate(resumable=True)
        )
        trainer.run(max_epochs=EPOCHS)
    assert torch.equal(weights(trainer.model), weights(whole.model))
    names = sorted(path.name for path in (tmp_path / "parts").glob("step_*"))
    assert names == [step_of(step) for step in range(1, STEPS + 1)]


def test_random_draws_before_the_run_do_not_matter(tmp_path):
    whole = trainer_of(tmp_path / "whole")
    whole.run(max_epochs=EPOCHS)
    source = tmp_path / "whole" / step_of(BATCHES + 1)
    trainer = trainer_of(resume_from=source)
    for _ in range(7):
        torch.rand(3), np.random.rand(), random.random()
    seed(99)
    trainer.add_event_handler(Events.STARTED, lambda: (torch.rand(1), random.random()))
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: (torch.rand(1), np.random.rand()))
    trainer.run(max_epochs=EPOCHS)
    assert torch.equal(weights(trainer.model), weights(whole.model))


def test_resuming_draws_no_random_numbers(tmp_path):
    trainer_of(tmp_path).run()
    seed(5)
    expected = torch.rand(2), np.random.rand(), random.random()
    trainer = make_trainer(augmented(BATCHES))
    seed(5)
    ResumeCheckpoint(tmp_path).attach(trainer)
    found = torch.rand(2), np.random.rand(), random.random()
    assert torch.equal(found[0], expected[0])
    assert found[1:] == expected[1:]


def test_a_finished_run_runs_nothing(tmp_path):
    whole = trainer_of(tmp_path / "whole")
    whole.run(max_epochs=EPOCHS)
    trainer = trainer_of(tmp_path / "new", resume_from=tmp_path / "whole")
    fired = record(trainer, ALL_EVENTS)
    for run in ({"max_epochs": EPOCHS}, {"max_epochs": 1}, {}, {"max_steps": 3}):
        state = trainer.run(**run)
        assert (state.epoch, state.iteration, state.optimizer_step) == (EPOCHS, STEPS, STEPS)
    assert fired == []
    assert torch.equal(weights(trainer.model), weights(whole.model))
    assert not any((tmp_path / "new").glob("step_*"))


def test_more_epochs_continue_in_the_right_order(tmp_path):
    trainer_of(tmp_path, save={"every_steps": None}).run(max_epochs=EPOCHS)
    whole = trainer_of()
    whole.run(max_epochs=EPOCHS + 1)
    trainer = trainer_of(number=3, resume_from=tmp_path)
    trainer.run(max_epochs=EPOCHS + 1)
    assert trainer.state.epoch == EPOCHS + 1
    assert torch.equal(weights(trainer.model), weights(whole.model))


def test_data_given_to_run_continue_in_the_middle(tmp_path):
    whole = trainer_of(tmp_path / "whole")
    whole.run(max_epochs=EPOCHS)
    source = tmp_path / "whole" / step_of(BATCHES + 2)
    trainer = trainer_of(number=2, data=None, resume_from=source)
    trainer.run(augmented(BATCHES), max_epochs=EPOCHS)
    assert torch.equal(weights(trainer.model), weights(whole.model))


@pytest.mark.parametrize("kind", [str, Path, ResumeCheckpoint])
def test_the_factory_takes_a_path_and_a_handler(tmp_path, kind):
    trainer_of(tmp_path).run()
    trainer = make_trainer(augmented(BATCHES), resume_from=kind(tmp_path))
    assert trainer.state.iteration == BATCHES
    assert trainer.resume_report.checkpoint == tmp_path / step_of(BATCHES)
    assert trainer.resume_report.step == BATCHES


@pytest.mark.parametrize("wrong", [True, 3, b"path", ["path"], SaveCheckpoint])
def test_the_factory_takes_nothing_else(wrong):
    with pytest.raises(TypeError, match="`resume_from` must be a ResumeCheckpoint, got"):
        make_trainer(batches_of(2), resume_from=wrong)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"on_missing": "begin"}, "on_missing"),
        ({"on_missing": None}, "on_missing"),
        ({"verify": "yes"}, "verify"),
        ({"trust_pickle": 1}, "trust_pickle"),
        ({"cache_dir": 3}, "cache_dir"),
        ({"source": None}, "source"),
        ({"sauce": 1}, "sauce"),
    ],
)
def test_a_wrong_field_is_named(fields, said):
    with pytest.raises((TypeError, ValueError), match=said):
        ResumeCheckpoint(**{"source": "checkpoints", **fields})


def test_resume_needs_a_trainer_and_no_event(tmp_path):
    trainer_of(tmp_path).run()
    resume = ResumeCheckpoint(tmp_path)
    with pytest.raises(ValueError, match="`engine` must be a trainer, got Engine"):
        resume.attach(Engine(lambda engine, batch: None))
    trainer = make_trainer(batches_of(2))
    for attach in (
        lambda: resume.attach(trainer, Events.STARTED),
        lambda: trainer.add_event_handler(Events.EPOCH_STARTED, resume),
    ):
        with pytest.raises(ValueError, match="`event` must be left out"):
            attach()
    assert trainer.state.iteration == 0
    with pytest.raises(TypeError, match="ResumeCheckpoint acts on its own schedule"):
        resume(trainer)


@pytest.fixture(params=["missing", "empty", "not finished", "a checkpoint that is missing"])
def without_any(request, tmp_path):
    """A source without a checkpoint."""
    place = tmp_path / "checkpoints"
    if request.param == "empty":
        place.mkdir()
    elif request.param == "not finished":
        folder = place / step_of(3)
        folder.mkdir(parents=True)
        (folder / "incomplete.json").touch()
        (folder / "model.safetensors").write_bytes(b"half")
    elif request.param == "a checkpoint that is missing":
        return place / step_of(3)
    return place


def test_missing_checkpoint_is_an_error(without_any):
    with pytest.raises(FileNotFoundError, match=r'(no checkpoint|not exist): .*="start"') as caught:
        make_trainer(batches_of(2), resume_from=without_any)
    assert str(without_any) in str(caught.value)


def test_without_checkpoint_on_missing_start_starts_from_scratch(without_any, caplog):
    with caplog.at_level(logging.INFO, "ignite_hooks"):
        trainer = make_trainer(
            batches_of(2), resume_from=ResumeCheckpoint(without_any, on_missing="start")
        )
    assert "no checkpoint" in caplog.text
    control = make_trainer(batches_of(2))
    for each in (trainer, control):
        each.run(max_epochs=1)
    assert trainer.resume_report is None
    assert torch.equal(weights(trainer.model), weights(control.model))


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


DAMAGES = {"truncated": cut, "flipped": flip, "deleted": Path.unlink}
FILES = ["model.safetensors", "optimizer.bin", "trainer.pt", "rank_00000.pt"]


@pytest.mark.grid(5)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, file, damage):
    trainer_of(tmp_path).run()
    DAMAGES[damage](tmp_path / step_of(BATCHES) / file)
    said = f"a checkpoint is skipped, .*{step_of(BATCHES)}: {file} (cannot|has)"
    with pytest.warns(UserWarning, match=said):
        trainer = make_trainer(augmented(BATCHES), resume_from=tmp_path)
    assert trainer.state.optimizer_step == BATCHES - 1


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped"])
def test_damaged_manifest_is_skipped_with_a_warning(tmp_path, damage):
    trainer_of(tmp_path).run()
    manifest = tmp_path / step_of(BATCHES) / "manifest.json"
    {**DAMAGES, "emptied": lambda path: path.write_text("")}[damage](manifest)
    with pytest.warns(UserWarning, match=f"skipped, .*{step_of(BATCHES)}.*manifest"):
        trainer = make_trainer(augmented(BATCHES), resume_from=tmp_path)
    assert trainer.state.optimizer_step == BATCHES - 1


@pytest.mark.parametrize("on_missing", ["error", "start"])
def test_error_lists_every_damaged_checkpoint(tmp_path, on_missing):
    checkpoint = SaveCheckpoint(tmp_path, every_steps=1)
    make_trainer(batches_of(3), checkpoint=checkpoint).run()
    cut(tmp_path / step_of(1) / "optimizer.bin")
    (tmp_path / step_of(2) / "manifest.json").write_text("{")
    (tmp_path / step_of(3) / "model.safetensors").unlink()
    resume = ResumeCheckpoint(tmp_path, on_missing=on_missing)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match="all checkpoints are damaged") as caught,
    ):
        make_trainer(batches_of(3), resume_from=resume)
    for step, part in enumerate(["optimizer.bin has", "manifest", "model.safetensors cannot"], 1):
        assert f"{step_of(step)}: " in str(caught.value)
        assert part in str(caught.value)


def test_a_damaged_checkpoint_given_by_name_is_an_error(tmp_path):
    trainer_of(tmp_path).run()
    flip(tmp_path / step_of(3) / "model.safetensors")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"model\.safetensors has changed"),
    ):
        make_trainer(augmented(BATCHES), resume_from=tmp_path / step_of(3))


def test_without_verification_a_changed_weight_is_loaded(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.run()
    flip(tmp_path / step_of(BATCHES) / "model.safetensors")
    resume = ResumeCheckpoint(tmp_path, verify=False)
    other = make_trainer(augmented(BATCHES), resume_from=resume)
    assert other.state.optimizer_step == BATCHES
    assert not torch.equal(weights(other.model), weights(trainer.model))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "deleted"])
def test_unreadable_file_is_skipped_even_without_verification(tmp_path, file, damage):
    trainer_of(tmp_path).run()
    DAMAGES[damage](tmp_path / step_of(BATCHES) / file)
    with pytest.warns(UserWarning, match=f"skipped, .*{step_of(BATCHES)}.*{file}"):
        trainer = make_trainer(
            augmented(BATCHES), resume_from=ResumeCheckpoint(tmp_path, verify=False)
        )
    assert trainer.state.optimizer_step == BATCHES - 1


class Counting:
    """A user's handler with a state."""

    def __init__(self):
        self.number = 0

    def __call__(self):
        self.number += 1

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state_dict):
        self.number = state_dict["number"]


def stopped_early(directory=None, *, resume_from=None, is_attached_late, number):
    """Trains with an EarlyStopping whose score never rises, so that it ends the run."""
    trainer = trainer_of(directory, number=number, data=augmented(2))
    stopping = EarlyStopping(3, lambda engine: -engine.state.epoch, trainer)
    stopping.logger.disabled = True
    if resume_from is not None and is_attached_late:
        ResumeCheckpoint(resume_from).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, stopping)
    if resume_from is not None and not is_attached_late:
        ResumeCheckpoint(resume_from).attach(trainer)
    trainer.run(max_epochs=9)
    return trainer


@pytest.mark.parametrize("is_attached_late", [False, True])
def test_early_stopping_continues_its_count(tmp_path, is_attached_late):
    whole = stopped_early(tmp_path / "whole", is_attached_late=False, number=1)
    assert whole.state.epoch == 4
    for step in (4, 5):
        trainer = stopped_early(
            resume_from=tmp_path / "whole" / step_of(step),
            is_attached_late=is_attached_late,
            number=2,
        )
        assert trainer.state.epoch == 4
        assert trainer.resume_report.is_exact
        assert torch.equal(weights(trainer.model), weights(whole.model))


def test_early_stopping_on_the_evaluator_continues_its_count(tmp_path):
    def make(directory, **options):
        evaluator = create_supervised_evaluator(torch.nn.Linear(4, 2), accelerator=Accelerator())
        validation = Validation(evaluator, batches_of(1), every_epochs=1)
        checkpoint = SaveCheckpoint(directory, every_epochs=1, keep_last="all")
        trainer = make_trainer(
            batches_of(2), checkpoint=checkpoint, validation=validation, **options
        )
        scores = lambda engine: -trainer.state.epoch  # noqa: E731
        stopping = EarlyStopping(3, scores, trainer)
        stopping.logger.disabled = True
        evaluator.add_event_handler(Events.COMPLETED, stopping)  # as Ignite's documentation has it
        trainer.run(max_epochs=9)
        return trainer

    assert make(tmp_path / "whole").state.epoch == 4
    assert make(tmp_path / "new", resume_from=tmp_path / "whole" / step_of(4)).state.epoch == 4


@pytest.mark.parametrize("metric", ["RunningAverage", "Average"])
@pytest.mark.parametrize("step", [BATCHES - 1, BATCHES, BATCHES + 1])
def test_running_metrics_are_continued(tmp_path, metric, step):
    def run(directory=None, **options):
        trainer = trainer_of(directory, **options)
        if metric == "Average":
            Average().attach(trainer, "loss")
        else:
            RunningAverage(output_transform=lambda output: output).attach(trainer, "loss")
        values, state = Notes(), trainer.state
        event = Events.EPOCH_COMPLETED if metric == "Average" else Events.ITERATION_COMPLETED
        trainer.add_event_handler(
            event, lambda: values.append((state.iteration, float(state.metrics["loss"])))
        )
        trainer.run(max_epochs=EPOCHS)
        return values

    whole = run(tmp_path / "whole")
    values = run(number=2, resume_from=tmp_path / "whole" / step_of(step))
    assert values == [(iteration, each) for iteration, each in whole if iteration > step]
    assert values


def test_metrics_of_the_state_are_restored(tmp_path):
    whole = trainer_of(tmp_path)

    @whole.on(Events.ITERATION_COMPLETED(once=1))
    def measure():
        whole.state.metrics.update(val_accuracy=0.5, table=torch.ones(2), what=object())
        whole.state.metrics[3] = 0.25  # Ignite allows names that are no strings

    whole.run(max_epochs=1)
    trainer = trainer_of(resume_from=tmp_path)
    metrics = trainer.state.metrics
    assert metrics["val_accuracy"] == 0.5
    assert torch.equal(metrics["table"], torch.ones(2))
    assert metrics[3] == 0.25
    assert "what" not in metrics


def test_ignite_parameter_scheduler_is_continued(tmp_path):
    def run(directory=None, **options):
        trainer, rates = trainer_of(directory, **options), Notes()
        scheduler = LinearCyclicalScheduler(trainer.optimizer, "lr", 0.1, 0.01, 6)
        trainer.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, scheduler)
        trainer.add_event_handler(
            TrainEvents.OPTIMIZER_STEP_STARTED,
            lambda: rates.append(trainer.optimizer.param_groups[0]["lr"]),
        )
        trainer.run(max_epochs=EPOCHS)
        return trainer, rates

    whole, rates = run(tmp_path / "whole")
    for step in (3, 4):
        trainer, later = run(resume_from=tmp_path / "whole" / step_of(step))
        assert later == rates[step:]
        assert torch.equal(weights(trainer.model), weights(whole.model))


def test_two_handlers_of_one_class_each_get_their_own_state_back(tmp_path):
    def run(directory=None, **options):
        early, late, last = Counting(), Counting(), Counting()
        trainer = trainer_of(directory, handlers=[early], **options)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, late)
        trainer.add_event_handler(Events.STARTED, last.__call__)
        trainer.run(max_epochs=EPOCHS)
        return [early.number, late.number]

    assert run(tmp_path / "whole") == [EPOCHS, STEPS]
    source = tmp_path / "whole" / step_of(BATCHES + 1)
    assert run(resume_from=source) == [EPOCHS, STEPS]


def test_two_handlers_keep_their_states_if_one_has_more_keys(tmp_path):
    def run(directory, is_noted, **options):
        trainer, one, two = trainer_of(directory, **options), Counting(), Counting()
        if is_noted:
            trainer.add_event_handler(Events.GET_BATCH_STARTED, lambda: None)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, one)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, two)
        trainer.run(max_epochs=EPOCHS)
        return [one.number, two.number]

    assert run(tmp_path / "whole", False) == [EPOCHS, STEPS]
    source = tmp_path / "whole" / step_of(BATCHES + 1)
    assert run(None, True, resume_from=source) == [EPOCHS, STEPS]


@pytest.mark.parametrize("is_set_again", [False, True])
def test_state_dict_user_keys_are_restored(tmp_path, is_set_again):
    def make(directory, **options):
        trainer = trainer_of(directory, **options)
        if is_set_again or not options:
            trainer.state_dict_user_keys.append("alpha")
            trainer.state.alpha = 1.0

        @trainer.on(Events.ITERATION_COMPLETED)
        def double():
            trainer.state.alpha *= 2

        return trainer

    whole = make(tmp_path / "whole")
    whole.run(max_epochs=EPOCHS)
    assert whole.state.alpha == 2.0**STEPS
    trainer = make(tmp_path / "new", resume_from=tmp_path / "whole" / step_of(3))
    trainer.run(max_epochs=EPOCHS)
    assert trainer.state.alpha == whole.state.alpha


def test_objects_in_also_are_restored_at_construction(tmp_path):
    def make(directory, **options):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        plateau = ReduceLROnPlateau(optimizer, patience=0)
        ema, also = torch.nn.Linear(4, 2), Counting()
        named = {"plateau": plateau, "ema": ema, "count": also}
        trainer = create_supervised_trainer(
            model,
            optimizer,
            F.mse_loss,
            batches_of(BATCHES),
            accelerator=Accelerator(cpu=True),
            checkpoint=SaveCheckpoint(directory, every_steps=1, keep_last="all", also=named),
            **options,
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: plateau.step(1.0))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: also())
        return trainer, named

    whole, named = make(tmp_path / "whole")
    with torch.no_grad():
        named["ema"].weight.fill_(3.0)
    whole.run(max_epochs=5)
    source = tmp_path / "whole" / step_of(2 * BATCHES + 1)
    trainer, others = make(tmp_path / "new", resume_from=source)
    assert others["count"].number == 2 * BATCHES + 1
    assert torch.equal(others["ema"].weight, named["ema"].weight)
    trainer.run(max_epochs=5)
    assert torch.equal(weights(trainer.model), weights(whole.model))
    assert others["plateau"].state_dict() == named["plateau"].state_dict()
    assert trainer.resume_report.is_exact


def test_background_save_does_not_follow_later_training(tmp_path, monkeypatch):
    plain = trainer_of(tmp_path / "plain", optimizer=adam_in_groups)
    plain.run(max_steps=1)
    trainer = trainer_of(tmp_path / "new", optimizer=adam_in_groups, save={"background": True})
    has_moved, write = Event(), writing._write_files

    def write_later(*args):
        assert has_moved.wait(60)
        return write(*args)

    monkeypatch.setattr(writing, "_write_files", write_later)
    trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=2), has_moved.set)
    trainer.run(max_steps=2)
    first, second = (
        {name: record.checksum for name, record in read_manifest(folder).files.items()}
        for folder in (tmp_path / "plain" / step_of(1), tmp_path / "new" / step_of(1))
    )
    for name in ("model.safetensors", "optimizer.bin", "trainer.pt"):
        assert first[name] == second[name]


@pytest.mark.parametrize("scheduler_at", ["epoch", "validation"])
def test_plateau_scheduler_is_resumed_from_every_step(tmp_path, scheduler_at):
    def make():
        trainer = make_trainer(
            batches_of(5),
            accumulation=2,
            lr_scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
            scheduler_at=scheduler_at,
            scheduler_metric="val_loss",
        )
        schedule = {"every_epochs": 1} if scheduler_at == "epoch" else {"every_steps": 2}
        values = [3.0, 2.0, 2.5, 2.5, 1.0, 4.0, 5.0]
        evaluate = lambda: {"loss": values[trainer.state.validation]}  # noqa: E731
        Validation(evaluate, **schedule).attach(trainer)
        return trainer

    unbroken = make()
    SaveCheckpoint(tmp_path, every_steps=1, keep_last="all").attach(unbroken)
    unbroken.run(max_epochs=4)
    assert unbroken.optimizer.param_groups[0]["lr"] < 0.1
    for folder in sorted(tmp_path.glob("step_*")):
        resumed = make()
        ResumeCheckpoint(folder).attach(resumed)
        resumed.run()
        assert torch.equal(weights(resumed.model), weights(unbroken.model))
        assert resumed.lr_scheduler.state_dict() == unbroken.lr_scheduler.state_dict()
    assert len(list(tmp_path.glob("step_*"))) == 12
