"""Ignite's checkpoints of both engines: file names, what is kept, and what is resumed from them."""

import pytest
import torch
from ignite.contrib.engines import common
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import Checkpoint
from ignite.handlers import CosineAnnealingScheduler
from ignite.handlers import DiskSaver
from ignite.handlers import ModelCheckpoint
from ignite.handlers import global_step_from_engine
from ignite.metrics import Average
from ignite.metrics import MeanSquaredError
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.as_in_ignite.sides import Side
from tests.as_in_ignite.sides import counters
from tests.as_in_ignite.sides import listen
from tests.reference import batches_of
from tests.reference import weights


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


SAVES = [
    # when it saves, how many are kept, then the files after 3 epochs of 4 batches
    (Events.EPOCH_COMPLETED, None, ["model_1.pt", "model_2.pt", "model_3.pt"]),
    (Events.EPOCH_COMPLETED, 2, ["model_2.pt", "model_3.pt"]),
    (Events.ITERATION_COMPLETED(every=5), None, ["model_10.pt", "model_5.pt"]),
    (Events.ITERATION_COMPLETED(once=7), 1, ["model_7.pt"]),
    (Events.COMPLETED, 1, ["model_3.pt"]),
]


@pytest.mark.parametrize(("event", "n_saved", "expected"), SAVES, ids=range(len(SAVES)))
def test_files_are_named_by_the_step_of_their_event(side, tmp_path, event, n_saved, expected):
    made = side.supervised()
    checkpoint = Checkpoint(
        {"model": made.model},
        DiskSaver(tmp_path),
        n_saved=n_saved,
        global_step_transform=global_step_from_engine(made.engine),
    )
    made.engine.add_event_handler(event, checkpoint)
    made.engine.run(batches_of(4), max_epochs=3)
    assert names_in(tmp_path) == expected


def test_without_a_transform_the_engines_own_step_counts(side, tmp_path):
    made = side.supervised()
    checkpoint = Checkpoint({"model": made.model}, DiskSaver(tmp_path), n_saved=None)
    made.engine.add_event_handler(Events.ITERATION_COMPLETED(every=3), checkpoint)
    made.engine.run(batches_of(4), max_epochs=2)
    assert names_in(tmp_path) == ["model_3.pt", "model_6.pt"]


def test_the_best_by_an_evaluators_score_are_kept(side, tmp_path):
    made, scores = side.supervised(), iter([0.5, 0.9, 0.7, 0.8])
    evaluator = Engine(lambda engine, batch: next(scores))
    made.engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    checkpoint = Checkpoint(
        {"model": made.model},
        DiskSaver(tmp_path),
        n_saved=2,
        filename_prefix="best",
        score_function=lambda engine: engine.state.output,
        score_name="accuracy",
        global_step_transform=global_step_from_engine(made.engine),
    )
    evaluator.add_event_handler(Events.COMPLETED, checkpoint)
    made.engine.run(batches_of(2), max_epochs=4)
    assert names_in(tmp_path) == [
        "best_model_2_accuracy=0.9000.pt",
        "best_model_4_accuracy=0.8000.pt",
    ]
    assert checkpoint.last_checkpoint == tmp_path / "best_model_2_accuracy=0.9000.pt"


def test_model_checkpoint_is_called_with_what_it_saves(side, tmp_path):
    made = side.supervised()
    saver = ModelCheckpoint(tmp_path, "run", n_saved=1, create_dir=True)
    made.engine.add_event_handler(Events.EPOCH_COMPLETED, saver, {"model": made.model})
    made.engine.run(batches_of(2), max_epochs=2)
    assert names_in(tmp_path) == ["run_model_4.pt"]
    saved = torch.load(saver.last_checkpoint, weights_only=True)
    assert saved.keys() == made.model.state_dict().keys()


def test_a_checkpoint_that_saves_itself_resumes_its_list(side, tmp_path):
    made = side.supervised()

    def checkpoint():
        saver = DiskSaver(tmp_path, require_empty=False)
        return Checkpoint({"model": made.model}, saver, n_saved=2, include_self=True)

    with made.engine.add_event_handler(Events.EPOCH_COMPLETED, checkpoint()):
        made.engine.run(batches_of(2), max_epochs=3)
    assert names_in(tmp_path) == ["model_4.pt", "model_6.pt"]
    again = checkpoint()
    again.load_state_dict(torch.load(tmp_path / "model_6.pt")["checkpointer"])
    made.engine.add_event_handler(Events.EPOCH_COMPLETED, again)
    made.engine.run(batches_of(2), max_epochs=4)
    assert names_in(tmp_path) == ["model_6.pt", "model_8.pt"]


def test_the_saved_event_fires_with_each_save(side, tmp_path):
    made = side.supervised()
    checkpoint = Checkpoint({"model": made.model}, DiskSaver(tmp_path), n_saved=1)
    made.engine.register_events(Checkpoint.SAVED_CHECKPOINT)
    made.engine.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)
    seen = listen(made.engine, Checkpoint.SAVED_CHECKPOINT)
    made.engine.run(batches_of(2), max_epochs=2)
    assert seen == [("SAVED_CHECKPOINT", 1, 2), ("SAVED_CHECKPOINT", 2, 4)]


def test_a_checkpoint_at_a_failure(side, tmp_path):
    made = side.supervised()
    checkpoint = Checkpoint({"model": made.model}, DiskSaver(tmp_path))
    made.engine.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: 1 / 0)
    made.engine.add_event_handler(Events.EXCEPTION_RAISED, checkpoint)

    @made.engine.on(Events.EXCEPTION_RAISED)
    def raise_again(error):
        raise error

    with pytest.raises(ZeroDivisionError):
        made.engine.run(batches_of(4))
    assert len(names_in(tmp_path)) == 1


def test_the_common_handlers_of_ignite(side, tmp_path):
    made, rates = side.supervised(lr=1.0), []
    evaluator = Engine(lambda engine, batch: batch)
    Average().attach(evaluator, "score")
    common.setup_common_training_handlers(
        made.engine,
        to_save={"trainer": made.engine, "model": made.model},
        save_every_iters=3,
        output_path=str(tmp_path),
        lr_scheduler=StepLR(made.optimizer, step_size=4, gamma=0.5),
        with_pbars=False,
        with_gpu_stats=False,
    )
    common.add_early_stopping_by_val_score(2, evaluator, made.engine, "score")
    common.save_best_model_by_val_score(
        str(tmp_path), evaluator, made.model, "score", n_saved=1, trainer=made.engine
    )
    scores = iter([0.5, 0.75, 0.25, 0.25, 0.25])
    made.engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: evaluator.run([torch.tensor(next(scores))])
    )
    made.engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: rates.append(made.optimizer.param_groups[0]["lr"])
    )
    made.engine.run(batches_of(4), max_epochs=5)
    assert counters(made.engine) == (4, 16)
    assert names_in(tmp_path) == ["best_model_2_val_score=0.7500.pt", "training_checkpoint_15.pt"]
    assert rates == [0.5, 0.25, 0.125, 0.0625]


def test_the_common_handlers_with_bars_and_best_models(tmp_path):
    def script(side):
        made, folder = side.supervised(), tmp_path / str(side.is_ours)
        evaluator = side.evaluator(made.model, {"mse": MeanSquaredError()})
        common.setup_common_training_handlers(
            made.engine,
            lr_scheduler=CosineAnnealingScheduler(made.optimizer, "lr", 0.5, 0.1, cycle_size=8),
            output_names=["loss"],
            log_every_iters=1,
        )
        common.gen_save_best_models_by_val_score(
            DiskSaver(folder), evaluator, made.model, "mse", 2, made.engine, score_sign=-1.0
        )
        side.validate(made.engine, evaluator, batches_of(6)[4:])
        made.engine.run(batches_of(4), max_epochs=4)
        return names_in(folder), float(made.engine.state.metrics["loss"])

    (names, loss), (same_names, same_loss) = (script(Side(name)) for name in ("ignite", "trainer"))
    assert names == same_names
    assert len(names) == 2
    assert loss == pytest.approx(same_loss, rel=1e-6)  # from tensors, the mean is in float32


@pytest.mark.parametrize("event", [TrainEvents.STEP_COMPLETED, TrainEvents.VALIDATION_COMPLETED])
def test_files_are_named_by_steps_and_validations(tmp_path, event):
    made = Side("trainer").supervised(accumulation=2)
    Validation(lambda engine: {"score": 1.0}, every_steps=1).attach(made.engine)
    saver = ModelCheckpoint(tmp_path, "run", n_saved=None, require_empty=False)
    saver.global_step_transform = global_step_from_engine(made.engine)
    made.engine.add_event_handler(event(every=2), saver, {"model": made.model})
    made.engine.run(batches_of(4), max_epochs=2)
    assert names_in(tmp_path) == ["run_model_2.pt", "run_model_4.pt"]


def test_engine_model_and_optimizer_are_resumed(side, tmp_path):
    unbroken = side.supervised()
    unbroken.engine.run(batches_of(4), max_epochs=3)

    made = side.supervised()
    to_save = {"engine": made.engine, "model": made.model, "optimizer": made.optimizer}
    made.engine.add_event_handler(
        Events.EPOCH_COMPLETED(once=2), Checkpoint(to_save, DiskSaver(tmp_path))
    )
    made.engine.run(batches_of(4), max_epochs=3)
    assert names_in(tmp_path) == ["checkpoint_8.pt"]

    other = side.supervised()
    to_load = {"engine": other.engine, "model": other.model, "optimizer": other.optimizer}
    Checkpoint.load_objects(to_load, checkpoint=tmp_path / "checkpoint_8.pt")
    assert counters(other.engine) == (2, 8)
    other.engine.run(batches_of(4))
    assert counters(other.engine) == (3, 12)
    assert torch.equal(weights(other.model), weights(unbroken.model))
