import math
import os
import random
import shutil
import signal
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.engine import Events
from pydantic import TypeAdapter

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.lock import LOCK_NAME
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.ids import stable_id
from tests.reference import augmented
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import seed
from tests.reference import weights


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch):
    """Skips fsync: these tests do not ask whether a checkpoint survives a power cut."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def trainer_of(checkpoint=None, batches=4, **options):
    return make_trainer(batches_of(batches), checkpoint=checkpoint, **options)


def all_checkpoints(directory):
    """Returns the checkpoints in the order of their commits."""
    return CheckpointStore(directory).checkpoints()[::-1]


def saved(directory):
    return [checkpoint.manifest for checkpoint in all_checkpoints(directory)]


def steps(directory):
    return [manifest.step for manifest in saved(directory)]


class Counter:
    """A user's object with a state."""

    def __init__(self, content=None):
        self.content = content

    def state_dict(self):
        return {"content": self.content}

    def load_state_dict(self, state_dict):
        self.content = state_dict["content"]


# Arguments


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("every_steps", 0, "an integer >= 1"),
        ("every_epochs", 1.5, "an integer >= 1"),
        ("every_seconds", 0, "a finite number of seconds > 0"),
        ("every_seconds", math.inf, "a finite number of seconds > 0"),
        ("every_seconds", "60", "a finite number of seconds > 0"),
        ("at_end", 1, "True or False"),
        ("keep_last", 0, 'an integer >= 1, or "all"'),
        ("keep_last", True, 'an integer >= 1, or "all"'),
        ("keep_last", None, 'an integer >= 1, or "all"'),
        ("keep_last", "none", 'an integer >= 1, or "all"'),
        ("keep_best", -1, "an integer >= 0"),
        ("keep_best", None, "an integer >= 0"),
        ("metric", "", "a string that is not empty"),
        ("mode", "best", '"max" or "min"'),
        ("on_signals", ("TERM",), "a tuple of names of signals"),
        ("safe_serialization", None, "True or False"),
        ("background", "yes", "True or False"),
        ("trust_pickle", 0, "True or False"),
    ],
)
def test_invalid_argument_error_names_rule_and_remedy(tmp_path, argument, value, rule):
    with pytest.raises(ValueError, match=argument) as caught:
        SaveCheckpoint(tmp_path, **{argument: value})
    assert f"`{argument}` must be {rule}" in str(caught.value)
    assert f"got {value!r}" in str(caught.value) or value == ("TERM",)


@pytest.mark.parametrize(
    "value", ["SIGTERM", None, (15,), ("SIGKILL",), ("SIGSTOP",)], ids=stable_id
)
def test_signals_that_cannot_be_handled_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="`on_signals` must be a tuple of names of signals that"):
        SaveCheckpoint(tmp_path, on_signals=value)


@pytest.mark.parametrize("directory", [None, 5])
def test_a_directory_that_is_not_a_path_is_refused(directory):
    with pytest.raises(ValueError, match="`directory` must be"):
        SaveCheckpoint(directory)


def test_an_unknown_argument_is_refused(tmp_path):
    with pytest.raises((TypeError, ValueError), match="every_step"):
        SaveCheckpoint(tmp_path, every_step=1)


def test_keep_best_needs_a_metric(tmp_path):
    message = r"`metric` must be given with keep_best=2, got None: name one of"
    with pytest.raises(ValueError, match=message):
        SaveCheckpoint(tmp_path, keep_best=2)


@pytest.mark.parametrize(
    ("also", "shown"),
    [
        ([Counter()], "list"),
        (Counter(), "Counter"),
        ({"count": 3}, "int for 'count'"),
        ({"count": Counter(), "class": Counter}, "the class Counter for 'class'"),
    ],
)
def test_objects_without_a_state_are_refused_by_name(tmp_path, also, shown):
    message = f"`also` must be a dict of objects with state_dict.*, got {shown}: give such"
    with pytest.raises(TypeError, match=message):
        SaveCheckpoint(tmp_path, also=also)


def test_saving_without_any_trigger_is_refused(tmp_path):
    handler = SaveCheckpoint(tmp_path, at_end=False, on_signals=())
    with pytest.raises(ValueError, match=r"must have a trigger, got none .*: every_epochs=1 is"):
        handler.attach(trainer_of())
    handler.attach(trainer_of(), Events.EPOCH_COMPLETED)
    for alone in ({"at_end": True}, {"on_signals": ("SIGTERM",)}, {"every_seconds": 60.0}):
        SaveCheckpoint(tmp_path, **{"at_end": False, "on_signals": (), **alone}).attach(
            trainer_of()
        )


def test_attaching_at_exception_raised_is_refused(tmp_path):
    trainer, handler = trainer_of(), SaveCheckpoint(tmp_path)
    for add in (
        lambda: handler.attach(trainer, Events.EXCEPTION_RAISED),
        lambda: trainer.add_event_handler(Events.EXCEPTION_RAISED, handler),
    ):
        with pytest.raises(ValueError, match=r"not failed, got .*EXCEPTION_RAISED: after .*SIGINT"):
            add()


def test_call_after_a_failure_warns_and_saves_nothing(tmp_path):
    handler = SaveCheckpoint(tmp_path, at_end=False)
    trainer = trainer_of(handler)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: 1 / 0)
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: handler(trainer))
    with pytest.warns(UserWarning, match="nothing is saved at EXCEPTION_RAISED: after a failure"):
        trainer.run()
    assert steps(tmp_path) == []
    handler(trainer)  # after the failure the run is back at its last whole step
    assert steps(tmp_path) == [2]


def test_factory_refuses_other_values_of_checkpoint():
    with pytest.raises(TypeError, match=r"`checkpoint` must be a SaveCheckpoint, got str: pass"):
        trainer_of("checkpoints")


def test_save_checkpoint_round_trips_through_json(tmp_path):
    handler = SaveCheckpoint(
        tmp_path, every_steps=5, every_seconds=60.0, keep_best=2, metric="val_mse", mode="min"
    )
    adapter = TypeAdapter(SaveCheckpoint)
    again = adapter.validate_json(adapter.dump_json(handler))
    assert adapter.dump_python(again, mode="json") == adapter.dump_python(handler, mode="json")
    assert (again.every_steps, again.metric, again.on_signals) == (5, "val_mse", ("SIGTERM",))


# Ways of use


@pytest.mark.parametrize("path", [str, lambda path: path], ids=["str", "Path"])
def test_attached_save_checkpoint_follows_its_schedule(tmp_path, path):
    trainer = trainer_of()
    SaveCheckpoint(path(tmp_path / "a" / "b"), every_steps=3).attach(trainer)
    trainer.run()
    assert steps(tmp_path / "a" / "b") == [3, 4]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Events.ITERATION_COMPLETED(every=2), [2, 4, 6, 8]),
        (Events.EPOCH_COMPLETED, [4, 8]),
        (TrainEvents.OPTIMIZER_STEP_COMPLETED(once=3), [3]),
        (Events.ITERATION_STARTED(once=2), [2]),
        (Events.EPOCH_STARTED(once=2), [5]),
        (Events.STARTED, []),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_attached_at_an_event_it_saves_after_that_event(tmp_path, event, expected):
    trainer = trainer_of()
    SaveCheckpoint(tmp_path, keep_last="all", at_end=False).attach(trainer, event)
    trainer.run(max_epochs=2)
    assert steps(tmp_path) == expected


def test_attached_at_an_event_it_saves_at_the_end_and_on_signals(tmp_path):
    trainer = trainer_of()
    SaveCheckpoint(tmp_path, keep_last="all").attach(trainer, Events.ITERATION_COMPLETED(once=2))
    trainer.run()
    assert steps(tmp_path) == [2, 4]

    found = signal.getsignal(signal.SIGTERM)
    event = Events.ITERATION_STARTED(once=6)
    trainer.add_event_handler(event, lambda: os.kill(os.getpid(), signal.SIGTERM))
    trainer.run(max_epochs=3)
    assert steps(tmp_path) == [2, 4, 6]
    assert signal.getsignal(signal.SIGTERM) == found


def test_added_as_a_handler_it_saves_only_at_its_event(tmp_path):
    trainer, handler = trainer_of(), SaveCheckpoint(tmp_path, keep_last="all")
    handle = trainer.add_event_handler(Events.ITERATION_COMPLETED(every=3), handler)
    trainer.run(max_epochs=2)
    assert steps(tmp_path) == [3, 6]
    handle.remove()
    trainer.run(max_epochs=4)
    assert steps(tmp_path) == [3, 6]


def test_two_on_one_trainer_keep_separate_schedules(tmp_path):
    one = SaveCheckpoint(tmp_path / "one", every_steps=1, at_end=False)
    other = SaveCheckpoint(tmp_path / "other", every_epochs=1)
    trainer = trainer_of(handlers=[one, other])
    trainer.run()
    assert (steps(tmp_path / "one"), steps(tmp_path / "other")) == ([2, 3, 4], [4])
    assert one.last_checkpoint == tmp_path / "one" / "step_00000004"
    assert other.last_checkpoint == tmp_path / "other" / "step_00000004"


def test_one_save_checkpoint_serves_two_trainers(tmp_path):
    handler = SaveCheckpoint(tmp_path, keep_last="all")
    for steps_of_run in (3, 2):
        trainer = trainer_of(handler)
        is_second = steps_of_run == 2
        with pytest.warns(UserWarning, match="of other runs") if is_second else nullcontext():
            trainer.run(max_steps=steps_of_run)
        assert handler.last_checkpoint == tmp_path / f"step_{steps_of_run:08d}"
    assert steps(tmp_path) == [3, 2]


@pytest.mark.parametrize("event", [None, Events.ITERATION_COMPLETED])
def test_removed_save_checkpoint_saves_nothing(tmp_path, event):
    trainer, found = trainer_of(), signal.getsignal(signal.SIGTERM)
    options = {"every_steps": 1, "every_epochs": 1, "every_seconds": 1e-9, "keep_last": "all"}
    with SaveCheckpoint(tmp_path, **options).attach(trainer, event):
        trainer.run(max_steps=2)
        assert steps(tmp_path) == [1, 2]
    trainer.add_event_handler(
        Events.STARTED, lambda: noted.append(signal.getsignal(signal.SIGTERM) == found)
    )
    noted = []
    trainer.run(max_epochs=2)
    assert noted == [True]
    assert steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_removal_within_a_run_stops_saving(tmp_path, accumulation):
    found, noted = signal.getsignal(signal.SIGTERM), []
    trainer = trainer_of(accumulation=accumulation, batches=6)
    attachment = SaveCheckpoint(tmp_path).attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def remove():
        attachment.remove()
        noted.append(signal.getsignal(signal.SIGTERM) == found)

    trainer.run()
    assert (noted, steps(tmp_path)) == ([True], [])


def test_a_plain_ignite_engine_is_refused(tmp_path):
    engine, message = (
        Engine(lambda engine, batch: None),
        r"`engine` must be a trainer, .*got Engine",
    )
    for event in (None, Events.EPOCH_COMPLETED):
        with pytest.raises(ValueError, match=message):
            SaveCheckpoint(tmp_path, every_epochs=1).attach(engine, event)
    engine.add_event_handler(Events.EPOCH_COMPLETED, SaveCheckpoint(tmp_path))
    with pytest.raises(ValueError, match=message):
        engine.run([1])


# Events


@pytest.mark.parametrize("background", [False, True])
def test_each_save_is_announced_once_when_it_is_complete(tmp_path, background):
    handler = SaveCheckpoint(tmp_path, every_steps=2, every_epochs=1, background=background)
    trainer, seen = trainer_of(handler), []

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def look():
        folder = handler.last_checkpoint
        seen.append((folder.name, (folder / "manifest.json").exists()))

    assert handler.last_checkpoint is None
    trainer.run(max_epochs=2)
    assert seen == [(f"step_{step:08d}", True) for step in (2, 4, 6, 8)]


def test_save_comes_after_validation_and_all_event_handlers(tmp_path):
    """The order of attachment does not matter; the save has the state that the handlers left."""
    handler = SaveCheckpoint(tmp_path, every_steps=2, keep_last="all")
    trainer = trainer_of(handler)
    Validation(lambda: None, every_steps=2).attach(trainer)
    events = [
        TrainEvents.CHECKPOINT_SAVED,
        TrainEvents.VALIDATION_COMPLETED,
        Events.EPOCH_COMPLETED,
        Events.ITERATION_COMPLETED(once=2),
        TrainEvents.STEP_COMPLETED(once=2),
        Events.TERMINATE,
        Events.COMPLETED,
    ]
    names = record(trainer, events)
    trainer.run(max_steps=4)
    assert [name for name, *_ in names] == [
        "ITERATION_COMPLETED",
        "STEP_COMPLETED",
        "VALIDATION_COMPLETED",
        "CHECKPOINT_SAVED",
        "VALIDATION_COMPLETED",
        "EPOCH_COMPLETED",
        "CHECKPOINT_SAVED",
        "TERMINATE",
        "COMPLETED",
    ]


def test_failing_checkpoint_saved_handler_keeps_the_checkpoint(tmp_path):
    trainer = trainer_of(SaveCheckpoint(tmp_path, every_steps=2))

    @trainer.on(TrainEvents.CHECKPOINT_SAVED)
    def fail():
        raise KeyError("told")

    with pytest.raises(KeyError, match="told"):
        trainer.run()
    assert steps(tmp_path) == [2]


# The metric, and which stay


def with_values(directory, values, **options):
    """Returns a trainer that validates and saves after each step, with the given metric values."""
    given = iter(values)
    validation = Validation(lambda: {"score": next(given)}, every_steps=1)
    options = {"every_steps": 1, "metric": "val_score", **options}
    return trainer_of(SaveCheckpoint(directory, **options), len(values), validation=validation)


def test_saved_metric_value_belongs_to_its_step(tmp_path):
    values = [0.5, torch.tensor(0.25), 3, np.float32(0.125)]
    with_values(tmp_path, values, keep_last="all").run()
    assert [each.metric_value for each in saved(tmp_path)] == [0.5, 0.25, 3.0, 0.125]
    assert {each.metric for each in saved(tmp_path)} == {"val_score"}


NAN = math.nan


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({"keep_last": 2}, [1, 2, 3, 4], [3, 4]),
        ({"keep_last": "all", "keep_best": 1}, [1, 2, 3, 4], [1, 2, 3, 4]),
        ({"keep_last": 1, "keep_best": 1}, [1, 4, 3, 2], [2, 4]),
        ({"keep_last": 1, "keep_best": 2}, [3, 1, 4, 2], [1, 3, 4]),
        ({"keep_last": 1, "keep_best": 1, "mode": "min"}, [3, 1, 4, 2], [2, 4]),
        ({"keep_last": 1, "keep_best": 1}, [NAN, 1, NAN, 0], [2, 4]),
        ({"keep_last": 1, "keep_best": 1, "mode": "min"}, [NAN, 1, NAN, NAN], [2, 4]),
        ({"keep_last": 1, "keep_best": 1}, [-math.inf, NAN, NAN, NAN], [1, 4]),
        ({"keep_last": 1, "keep_best": 1}, [2, 2, 1, 0], [2, 4]),
        ({"keep_last": 2, "keep_best": 2}, [1, 2, 3, 4], [3, 4]),
    ],
    ids=stable_id,
)
def test_newest_and_best_checkpoints_are_kept(tmp_path, options, values, expected):
    with_values(tmp_path, values, **options).run()
    assert steps(tmp_path) == expected
    assert len(list(tmp_path.glob("step_*"))) == len(expected)


def test_metric_value_of_an_earlier_step_is_not_saved(tmp_path):
    """Between two validations ``state.metrics`` still has the values of the last one."""
    values = iter([0.9, 0.5])
    validation = Validation(lambda: {"score": next(values)}, every_steps=2)
    options = {"every_steps": 1, "keep_last": 1, "keep_best": 1, "metric": "val_score"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first step has no value at all
        trainer_of(SaveCheckpoint(tmp_path, **options), validation=validation).run()
    assert steps(tmp_path) == [2, 4]


@pytest.mark.filterwarnings("ignore:resumed from")  # the iterator of the values begins again
def test_resumed_run_keeps_the_best_checkpoint_so_far(tmp_path):
    options = {"keep_last": 1, "keep_best": 1}
    with_values(tmp_path, [1, 5, 2, 3], **options).run()
    assert steps(tmp_path) == [2, 4]
    for last, values, best in ((8, [4, 3, 2, 1], (2, 5.0)), (12, [4, 6, 2, 1], (10, 6.0))):
        trainer = with_values(tmp_path, values, **options)
        ResumeCheckpoint(tmp_path).attach(trainer)
        trainer.run(max_steps=last)
        found = [(each.step, each.metric_value) for each in saved(tmp_path)]
        assert found == [best, (last, 1.0)]


def test_new_run_keeps_checkpoints_of_another_run_and_warns(tmp_path):
    options = {"keep_last": 1, "keep_best": 1}
    with_values(tmp_path, [1, 5, 2, 3], **options).run()
    with pytest.warns(
        UserWarning, match="has 2 checkpoints of other runs, the newest of step 4: they"
    ):
        with_values(tmp_path, [9, 0, 0], **options).run()
    found = [(each.folder.name, each.manifest.metric_value) for each in all_checkpoints(tmp_path)]
    assert found == [
        ("step_00000002", 5.0),
        ("step_00000004", 3.0),
        ("step_00000001", 9.0),
        ("step_00000003", 0.0),
    ]


def test_restarted_trainer_prunes_its_own_old_checkpoints(tmp_path):
    trainer = with_values(tmp_path, [1, 5, 2, 3], keep_last=2)
    for _ in range(2):
        trainer.run(max_steps=2)
    assert [each.folder.name for each in all_checkpoints(tmp_path)] == [
        "step_00000001-2",
        "step_00000002-2",
    ]


def test_missing_metric_warns_once_and_still_saves(tmp_path):
    options = {"every_steps": 1, "keep_best": 1, "keep_last": 2, "metric": "of_no_handler"}
    trainer = trainer_of(SaveCheckpoint(tmp_path, **options))
    trainer.state.metrics["other"] = 1
    message = r"`metric` must be one of state.metrics .*'of_no_handler'.*: attach"
    with pytest.warns(UserWarning, match=message) as caught:
        trainer.run(max_epochs=2)
    assert len(caught) == 1
    assert steps(tmp_path) == [7, 8]
    assert [each.metric_value for each in saved(tmp_path)] == [None, None]


@pytest.mark.parametrize("schedule", [{"every_steps": 1}, {"every_epochs": 1}])
def test_metric_that_no_validation_gives_fails_the_first_save(tmp_path, schedule):
    save = SaveCheckpoint(tmp_path, **schedule, keep_best=1, metric="val_acuracy")
    trainer = trainer_of(save)
    Validation(lambda: {"accuracy": 1.0}, **schedule).attach(trainer)
    message = r"`metric` .* first checkpoint is saved, got 'val_acuracy': did you mean `val_accur"
    with pytest.raises(ValueError, match=message):
        trainer.run(max_epochs=2)
    assert trainer.state.validation == 1
    assert steps(tmp_path) == []


def test_metric_without_the_prefix_is_an_error_after_an_epoch(tmp_path):
    trainer = trainer_of(SaveCheckpoint(tmp_path, every_steps=1, keep_best=1, metric="accuracy"))
    Validation(lambda: {"accuracy": 1.0}, every_steps=1).attach(trainer)
    with pytest.raises(ValueError, match="did you mean `val_accuracy`"):
        trainer.run(max_epochs=2)
    assert trainer.state.epoch == 1


@pytest.mark.parametrize("later", [{"every_epochs": 1}, {"every_epochs": 2}])
def test_metric_of_a_later_validation_is_no_error_yet(tmp_path, later):
    trainer = trainer_of(SaveCheckpoint(tmp_path, every_steps=1, keep_best=1, metric="late_x"))
    Validation(lambda: {"x": 1.0}, every_steps=1).attach(trainer)
    Validation(lambda: {"x": 2.0}, prefix="late_", **later).attach(trainer)
    trainer.run(max_epochs=2)
    assert [each.metric_value for each in saved(tmp_path)][-1] == 2.0


def test_metric_of_a_handler_may_begin_as_nan(tmp_path):
    trainer = trainer_of(SaveCheckpoint(tmp_path, every_epochs=1, keep_best=1, metric="score"))
    Validation(lambda: {"x": 1.0}, every_epochs=1).attach(trainer)
    metrics = trainer.state.metrics
    trainer.add_event_handler(Events.STARTED, lambda: metrics.update(score=float("nan")))
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda: metrics.update(score=3.0))
    trainer.run(max_epochs=3)
    best = [each for each in saved(tmp_path) if each.metric_value == 3.0]
    assert [each.epoch for each in best] == [2]


def test_missing_metric_warns_once_as_other_metrics_appear(tmp_path):
    trainer = trainer_of(SaveCheckpoint(tmp_path, every_steps=1, metric="of_nobody"))
    names = iter("abcd")
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: trainer.state.metrics.update({next(names): 1})
    )
    with pytest.warns(UserWarning, match="`metric` must be one of") as caught:
        trainer.run()
    assert len(caught) == 1


@pytest.mark.parametrize("value", [torch.ones(2, 2), "good", {"mse": 1.0}], ids=stable_id)
def test_a_metric_that_is_not_a_number_is_an_error(tmp_path, value):
    trainer = with_values(tmp_path, [value] * 4)
    with pytest.raises((TypeError, ValueError), match=r"`metric`.*val_score"):
        trainer.run()


def test_other_files_in_the_directory_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("step_1", "best", "step_00000001.bak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    trainer_of(SaveCheckpoint(tmp_path, every_steps=1, keep_last=1)).run()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [LOCK_NAME, "best", "notes.txt", "step_00000001.bak", "step_00000004", "step_1"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "best" / "manifest.json").read_text() == "{}"


def test_user_file_survives_removal_of_its_checkpoint(tmp_path):
    handler = SaveCheckpoint(tmp_path, every_steps=1, keep_last=1)
    trainer = trainer_of(handler)
    event = TrainEvents.CHECKPOINT_SAVED(once=2)
    trainer.add_event_handler(event, lambda: (handler.last_checkpoint / "plot.png").touch())
    trainer.run()
    assert steps(tmp_path) == [4]
    assert [path.name for path in (tmp_path / "step_00000002").iterdir()] == ["plot.png"]


def test_a_directory_removed_during_a_run_is_created_again(tmp_path):
    trainer = trainer_of(SaveCheckpoint(tmp_path / "one", every_steps=2))
    event = TrainEvents.CHECKPOINT_SAVED(once=2)
    trainer.add_event_handler(event, lambda: shutil.rmtree(tmp_path / "one"))
    trainer.run()
    assert steps(tmp_path / "one") == [4]


# What is saved


class Other:
    """An object that would have to be unpickled."""


@pytest.mark.parametrize("background", [False, True])
def test_unsupported_object_in_state_is_refused_by_name(tmp_path, background):
    also = {"fine": Counter(1), "odd": Counter([Other()])}
    options = {"every_steps": 2, "background": background}
    trainer = trainer_of(SaveCheckpoint(tmp_path, also=also, **options))
    with pytest.raises(TypeError, match=r"must be made of tensors, numbers.*got.*:") as caught:
        trainer.run()
    assert "odd" in str(caught.value)
    assert "Other" in str(caught.value)
    assert list(tmp_path.glob("step_*")) == []


def test_unsupported_handler_state_is_refused_by_name(tmp_path):
    class Odd(Counter):
        def attach(self, engine):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.note)

        def note(self):
            pass

    trainer = trainer_of(SaveCheckpoint(tmp_path), handlers=[Odd(Other())])
    with pytest.raises(TypeError, match="must be made of tensors") as caught:
        trainer.run()
    assert "Odd" in str(caught.value)


def test_registered_objects_need_trust_pickle(tmp_path):
    def trainer_with(**options):
        trainer = trainer_of(SaveCheckpoint(tmp_path, **options))
        trainer.accelerator.register_for_checkpointing(Counter(Other()))
        return trainer

    message = r"registered with .*got Counter: .*also={name: object}\), or set trust_pickle=True"
    with pytest.raises(ValueError, match=message):
        trainer_with().run()
    assert steps(tmp_path) == []
    trainer_with(trust_pickle=True).run()
    assert steps(tmp_path) == [4]


def test_registered_objects_are_refused_before_training(tmp_path):
    trainer = trainer_of()
    trainer.accelerator.register_for_checkpointing(Counter())
    with pytest.raises(ValueError, match=r"registered with .*got Counter"):
        SaveCheckpoint(tmp_path).attach(trainer)


def test_model_can_be_written_by_torch_save(tmp_path):
    trainer_of(SaveCheckpoint(tmp_path, safe_serialization=False)).run()
    folder = tmp_path / "step_00000004"
    assert not (folder / "model.safetensors").exists()
    assert (
        torch.load(folder / "model.bin", weights_only=True).keys()
        == make_model().state_dict().keys()
    )


def test_a_loss_function_with_a_state_is_saved_too(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, y_pred, y):
            return (self.scale * (y_pred - y).pow(2)).mean()

    model, loss_fn = make_model(), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.1)
    checkpoint = SaveCheckpoint(tmp_path)
    create_supervised_trainer(model, optimizer, loss_fn, batches_of(2), checkpoint=checkpoint).run()
    assert (tmp_path / "step_00000002" / "loss_fn.safetensors").exists()


# What training is like with it


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("safe_serialization", [False, True])
def test_saving_changes_no_bit_of_the_training(tmp_path, background, safe_serialization):
    """The run has dropout, shuffling and augmentation from all generators."""

    def trained(checkpoint):
        seed()
        trainer = make_trainer(augmented(), accumulation=2, dropout=0.5, checkpoint=checkpoint)
        losses = []
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda: losses.append(float(trainer.state.output))
        )
        trainer.run(max_epochs=2)
        state = trainer.state
        counters = (state.epoch, state.iteration, state.optimizer_step, trainer.stop_reason)
        return weights(trainer.model), losses, counters, generators()

    options = {"background": background, "safe_serialization": safe_serialization}
    without, with_it = trained(None), trained(SaveCheckpoint(tmp_path, every_steps=1, **options))
    assert torch.equal(without[0], with_it[0])
    assert without[1:] == with_it[1:]
    assert steps(tmp_path) == [4, 5, 6]


def test_call_after_the_run_saves_at_once(tmp_path):
    trainer = make_trainer(batches_of(3))
    trainer.run()
    save = SaveCheckpoint(tmp_path)
    save(trainer)
    assert save.last_checkpoint == tmp_path / "step_00000003"
    save(trainer)  # nothing has moved
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000003"]


# Paths


@pytest.mark.parametrize("background", [False, True])
def test_checkpoints_stay_when_the_working_directory_changes(tmp_path, monkeypatch, background):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    handler = SaveCheckpoint("runs", every_steps=1, keep_last=2, background=background)
    source = ResumeCheckpoint("runs")
    trainer = trainer_of(handler)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: os.chdir("elsewhere"))
    trainer.run()
    assert steps(tmp_path / "runs") == [3, 4]
    assert handler.last_checkpoint == tmp_path / "runs" / "step_00000004"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    again = trainer_of(handler)
    source.attach(again)
    assert again.resume_report.step == 4


def test_a_linked_directory_is_reported_by_its_given_path(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    handler = SaveCheckpoint(tmp_path / "runs")
    trainer_of(handler).run()
    assert handler.last_checkpoint == tmp_path / "runs" / "step_00000004"
    assert steps(tmp_path / "disk") == [4]
