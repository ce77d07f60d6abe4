import gc
import inspect
import re
import weakref

import pytest
import torch
from accelerate.state import GradientState
from ignite.engine import Engine
from ignite.engine import Events
from ignite.engine import create_supervised_evaluator as ignite_evaluator
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import DataFeed
from ignite_hooks import Trainer
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.ids import stable_id
from tests.reference import NO_DATA
from tests.reference import Repeatable
from tests.reference import augmented
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import record
from tests.reference import seed
from tests.reference import weights
from tests.versions import needs


def seeded_trainer(**options):
    seed()
    return make_trainer(augmented(), dropout=0.5, **options)


def counters(trainer):
    state = trainer.state
    return state.epoch, state.iteration, state.optimizer_step


# The state


def test_trainer_state_is_complete_before_the_first_run():
    trainer = make_trainer(batches_of(3))
    assert isinstance(trainer, Trainer)
    assert isinstance(trainer, Engine)
    names = "epoch iteration optimizer_step step_committed max_epochs max_steps start_epoch "
    names += "start_step epoch_length dataloader batch output model_outputs loss metrics max_iters"
    for name in names.split():
        assert hasattr(trainer.state, name), name
    assert trainer.stop_reason is None


def test_the_docstring_of_the_trainer_lists_its_attributes():
    own = {name for name in vars(make_trainer()) if not name.startswith("_")}
    own -= {*vars(Engine(lambda engine, batch: None)), "hook_channels"}  # of Ignite, and of `hooks`
    listed = inspect.getdoc(Trainer).partition("Attributes:")[2]
    assert {*re.findall(r"^    (\w+): ", listed, re.MULTILINE)} == own | {"ended_by", "hooks"}


def test_the_state_shows_the_batch_while_it_is_trained_on():
    batches = batches_of(2)
    trainer, seen = make_trainer(batches), []
    state = trainer.state

    @trainer.on(Events.GET_BATCH_STARTED)
    def before():
        seen.append((state.batch, state.model_outputs, state.loss))

    @trainer.on(Events.ITERATION_STARTED)
    def no_output_yet():
        assert state.output is None

    @trainer.on(TrainEvents.MODEL_FORWARD_COMPLETED)
    def forward():
        seen.append((state.batch is batches[state.iteration - 1], state.loss.requires_grad))

    @trainer.on(Events.ITERATION_COMPLETED)
    def after():
        seen.append((state.loss.requires_grad, torch.equal(state.output, state.loss)))
        assert state.model_outputs.shape == (2, 2)

    trainer.run()
    assert seen == 2 * [(None, None, None), (True, True), (False, True)]


def test_step_committed_says_whether_this_iteration_made_a_step():
    trainer, seen = make_trainer(batches_of(5), accumulation=2), []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.step_committed)
    )
    trainer.run()
    assert seen == [False, True, False, True, True]


# Limits


def test_without_a_limit_a_run_is_one_epoch():
    trainer = make_trainer(batches_of(3))
    trainer.run()
    assert counters(trainer) == (1, 3, 3)
    assert trainer.state.max_epochs == 1


@pytest.mark.parametrize(
    ("limits", "expected", "reason"),
    [
        ({"max_epochs": 2}, (2, 10, 6), "max_epochs"),
        ({"max_iters": 7}, (2, 7, 4), "max_iters"),
        ({"max_iters": 10}, (2, 10, 6), "max_iters"),
        ({"max_steps": 1}, (1, 2, 1), "max_steps"),
        ({"max_steps": 3}, (1, 5, 3), "max_steps"),
        ({"max_steps": 4}, (2, 7, 4), "max_steps"),
        ({"max_steps": 4, "max_epochs": 1}, (1, 5, 3), "max_epochs"),
        ({"max_steps": 4, "max_epochs": 9}, (2, 7, 4), "max_steps"),
        ({"max_steps": 3, "max_epochs": 1}, (1, 5, 3), "max_steps"),
        ({"max_steps": 4, "max_iters": 6}, (2, 6, 4), "max_steps"),
        ({"max_steps": 9, "max_iters": 8}, (2, 8, 5), "max_iters"),
    ],
    ids=stable_id,
)
@pytest.mark.parametrize("data", [list, Repeatable], ids=["list", "stream"])
def test_the_limit_that_comes_first_ends_the_run(limits, expected, reason, data):
    trainer = make_trainer(data(batches_of(5)), accumulation=2)
    trainer.run(**limits)
    assert counters(trainer) == expected
    assert trainer.stop_reason == reason


def test_default_limits_hold_for_a_run_without_limits():
    trainer = make_trainer(batches_of(5))
    trainer.set_limits(max_epochs=2, max_steps=7)
    trainer.run()
    assert counters(trainer) == (2, 7, 7)
    trainer.run(max_epochs=1)  # a new run, as after any finished run
    assert counters(trainer) == (1, 5, 5)
    trainer.run(max_epochs=3)
    trainer.run()
    assert counters(trainer) == (2, 7, 7)
    trainer.set_limits()
    trainer.run()
    assert counters(trainer) == (1, 5, 5)


def test_stopped_run_continues_to_its_own_limits():
    trainer = make_trainer(batches_of(5))
    trainer.set_limits(max_epochs=3)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), trainer.terminate)
    trainer.run(max_epochs=2)
    trainer.run()
    assert counters(trainer) == (2, 10, 10)


@pytest.mark.parametrize(
    ("usual", "expected"),
    [
        ({}, (2, 10, 10)),  # the limits of the run that continues
        ({"max_epochs": 3}, (3, 15, 15)),
        ({"max_steps": 9}, (2, 9, 9)),
        ({"max_epochs": 1}, (1, 7, 7)),
    ],
    ids=stable_id,
)
def test_a_resumed_run_continues_to_the_default_limits(usual, expected):
    first = make_trainer(batches_of(5))
    first.add_event_handler(Events.ITERATION_COMPLETED(once=7), first.terminate)
    first.run(max_epochs=2)
    trainer = make_trainer(batches_of(5))
    trainer.load_position_state_dict(first.position_state_dict())
    trainer.set_limits(**usual)
    trainer.run()
    assert counters(trainer) == expected


@pytest.mark.parametrize("name", ["max_steps", "max_epochs", "max_iters"])
@pytest.mark.parametrize("value", [0, True, 2.0, "2"], ids=stable_id)
def test_default_limits_must_be_positive_integers(name, value):
    trainer = make_trainer(batches_of(3))
    with pytest.raises(ValueError, match=rf"`{name}` must be an integer >= 1, got {value!r}"):
        trainer.set_limits(**{name: value})
    with pytest.raises(ValueError, match="only one of `max_epochs` and `max_iters`"):
        trainer.set_limits(max_epochs=1, max_iters=1)
    trainer.run()
    assert counters(trainer) == (1, 3, 3)


@pytest.mark.parametrize("name", ["max_steps", "max_epochs", "max_iters", "epoch_length"])
@pytest.mark.parametrize("value", [0, -3, True, 2.0, "2"], ids=stable_id)
def test_invalid_limit_is_an_error_before_anything_happens(name, value):
    trainer = make_trainer(batches_of(3))
    events = record(trainer, [*Events, *TrainEvents])
    with pytest.raises(ValueError, match=rf"`{name}` must be an integer >= 1, got {value!r}"):
        trainer.run(**{name: value})
    assert events == []
    trainer.run()
    assert counters(trainer) == (1, 3, 3)


def test_epochs_and_iterations_together_are_an_error():
    trainer = make_trainer(batches_of(3))
    with pytest.raises(ValueError, match="only one of `max_epochs` and `max_iters`"):
        trainer.run(max_epochs=1, max_iters=2)


@pytest.mark.parametrize("limit", [{"max_epochs": 1}, {"max_iters": 4}], ids=stable_id)
def test_a_limit_in_the_past_is_an_error_that_changes_nothing(limit):
    trainer = make_trainer(batches_of(3))
    trainer.run(max_steps=5)
    trainer.run(max_steps=6)
    (name,) = limit
    with pytest.raises(ValueError, match=rf"`{name}` must be at least what is done already"):
        trainer.run(**limit)
    assert counters(trainer) == (2, 6, 6)
    trainer.run(max_steps=8)
    assert counters(trainer) == (3, 8, 8)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("first", range(1, 6))
def test_two_short_runs_see_the_batches_of_one_long_run(first, accumulation):
    whole = seeded_trainer(accumulation=accumulation)
    whole.run(max_steps=6)
    trainer = seeded_trainer(accumulation=accumulation)
    trainer.run(max_steps=first)
    assert trainer.state.optimizer_step == first
    trainer.run(max_steps=6)
    assert trainer.state.start_step == first
    assert counters(trainer) == counters(whole)
    assert torch.equal(weights(trainer.model), weights(whole.model))


@pytest.mark.parametrize("limit", [{"max_steps": 3}, {"max_epochs": 1}, {"max_iters": 3}, {}])
def test_the_same_limit_again_starts_over_with_the_next_pass(limit):
    batches, first_batches = batches_of(5), []
    trainer = make_trainer(batches)
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda e: first_batches.append(e.state.batch)
    )
    trainer.run(**limit)
    before = counters(trainer)
    passes = trainer.feed.position.data_pass
    events = record(trainer, [Events.STARTED])
    trainer.run(**limit)
    assert events == [("STARTED", 0, 0)]
    assert all(batch is batches[0] for batch in first_batches)
    assert len(first_batches) == 2
    assert counters(trainer) == before
    assert trainer.feed.position.data_pass == passes + 1
    assert (trainer.state.start_epoch, trainer.state.start_step) == (0, 0)


def test_a_higher_limit_of_another_type_continues_too():
    trainer = make_trainer(batches_of(5))
    trainer.run(max_epochs=1)
    trainer.run(max_steps=8)
    assert trainer.state.start_step == 5
    assert counters(trainer) == (2, 8, 8)
    trainer.run(max_epochs=3)
    assert trainer.state.start_step == 8
    assert counters(trainer) == (3, 15, 15)


def test_a_limit_set_to_none_on_the_state_starts_over():
    trainer = make_trainer(batches_of(3))
    trainer.run(max_epochs=3)
    trainer.state.max_epochs = None
    trainer.run(max_epochs=1)
    assert counters(trainer) == (1, 3, 3)


def test_a_limit_moved_on_the_state_between_runs_counts():
    trainer = make_trainer(batches_of(3))
    trainer.run(max_epochs=1)
    trainer.state.max_epochs = 3
    trainer.run()
    assert counters(trainer) == (3, 9, 9)


def test_max_iters_closes_the_open_window_with_its_mean_loss():
    batches = batches_of(4)
    trainer = make_trainer(batches, accumulation=4)
    trainer.run(max_iters=3)
    reference = make_model(0.0)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches[:3]:
        (torch.nn.functional.mse_loss(reference(x), y) / 3).backward()
    optimizer.step()
    assert torch.equal(weights(trainer.model), weights(reference))
    assert trainer.state.optimizer_step == 1
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_max_steps_leaves_no_half_window():
    trainer = make_trainer(batches_of(5), accumulation=2)
    trainer.run(max_steps=1)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.state.iteration == 2


def test_start_epoch_and_start_step_say_where_the_run_began():
    trainer, seen = make_trainer(batches_of(4), accumulation=2), []
    trainer.add_event_handler(
        Events.STARTED, lambda e: seen.append((e.state.start_epoch, e.state.start_step))
    )
    trainer.run(max_steps=3)
    trainer.run(max_steps=4)
    trainer.run(max_steps=5)
    trainer.run(max_steps=5)
    assert seen == [(0, 0), (1, 3), (2, 4), (0, 0)]


# Why it ended


def stopped_by_exception(trainer):
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()


def stopped_by_swallowed_exception(trainer):
    trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda: 1 / 0)
    trainer.run()


def stopped_at(event, **limits):
    def stop(trainer):
        trainer.add_event_handler(event, Engine.terminate)
        trainer.run(**limits)

    return stop


def interrupted(trainer):
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.interrupt)
    trainer.run()
    assert trainer.stop_reason is None
    trainer.run()


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (Trainer.run, "max_epochs"),
        (lambda trainer: trainer.run(max_iters=2), "max_iters"),
        (lambda trainer: trainer.run(max_iters=4), "max_iters"),
        (lambda trainer: trainer.run(max_steps=2), "max_steps"),
        (stopped_at(Events.STARTED), "terminate"),
        (stopped_at(Events.ITERATION_COMPLETED(once=2)), "terminate"),
        (stopped_at(Events.ITERATION_COMPLETED(once=4)), "terminate"),
        (stopped_at(Events.EPOCH_COMPLETED), "terminate"),
        (stopped_at(Events.ITERATION_COMPLETED(once=2), max_steps=2), "terminate"),
        (stopped_at(Events.COMPLETED), "max_epochs"),
        (stopped_by_exception, "exception"),
        (stopped_by_swallowed_exception, "exception"),
        (interrupted, "max_epochs"),
    ],
)
def test_stop_reason_says_why_the_run_ended(run, reason):
    trainer = make_trainer(batches_of(4))
    run(trainer)
    assert trainer.stop_reason == reason


def test_stop_reason_is_current_in_end_handlers():
    trainer, seen = make_trainer(batches_of(4)), []
    ends = Events.STARTED | Events.TERMINATE | Events.COMPLETED
    trainer.add_event_handler(ends, lambda engine: seen.append(engine.stop_reason))
    trainer.run(max_steps=2)
    trainer.run(max_steps=3, max_epochs=1)
    assert seen == [None, "max_steps", "max_steps"] * 2


# Runs after runs


@pytest.mark.parametrize("limits", [[1, 1], [2], [1, None]], ids=stable_id)
def test_two_runs_of_one_epoch_see_the_batches_of_one_run_of_two(limits):
    whole = seeded_trainer()
    whole.run(max_epochs=2)
    trainer = seeded_trainer()
    for limit in limits:
        trainer.run(max_epochs=limit)
    assert torch.equal(weights(trainer.model), weights(whole.model))


def test_a_finished_run_continues_with_more_epochs():
    whole = seeded_trainer()
    whole.run(max_epochs=3)
    trainer = seeded_trainer()
    trainer.run(max_epochs=1)
    trainer.run(max_epochs=3)
    assert counters(trainer) == (3, 15, 15)
    assert torch.equal(weights(trainer.model), weights(whole.model))


@pytest.mark.parametrize("training", [True, False])
def test_root_trains_and_frozen_submodules_keep_their_mode(training):
    trainer = make_trainer(batches_of(2))
    trainer.model.train(training)
    trainer.model[2].eval()
    modes = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: modes.append((engine.model.training, engine.model[2].training)),
    )
    trainer.run()
    assert modes == [(True, not training)] * 2


def test_run_within_a_run_is_an_error_and_the_run_continues():
    trainer, errors = make_trainer(batches_of(4)), []

    @trainer.on(Events.ITERATION_COMPLETED(once=2))
    def run_again():
        with pytest.raises(
            RuntimeError, match=r"run\(\) must not be called while the trainer runs"
        ) as e:
            trainer.run(max_epochs=7)
        errors.append(e)

    trainer.run(max_epochs=2)
    assert len(errors) == 1
    assert counters(trainer) == (2, 8, 8)


def test_other_data_for_a_later_run():
    trainer, sizes = make_trainer(batches_of(3)), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: sizes.append(len(engine.state.batch[0]))
    )
    trainer.run()
    trainer.run(batches_of(2, size=5))
    trainer.run()
    assert sizes == [2] * 3 + [5] * 4
    assert trainer.state.epoch_length == 2


def test_other_data_for_a_continued_run_restarts_the_epoch():
    trainer, sizes = make_trainer(batches_of(3)), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: sizes.append(len(engine.state.batch[0]))
    )
    trainer.run(max_steps=2)
    trainer.run(batches_of(4, size=5), max_steps=6)
    assert sizes == [2] * 2 + [5] * 4
    assert trainer.state.epoch == 1


def test_another_epoch_length_for_a_continued_run_is_an_error():
    trainer = make_trainer(batches_of(4))
    trainer.run(max_steps=2, epoch_length=3)
    with pytest.raises(
        ValueError, match="`epoch_length` must stay 3 when training continues, got 2"
    ):
        trainer.run(max_steps=5, epoch_length=2)
    trainer.run(max_steps=5)
    assert counters(trainer) == (2, 5, 5)


def test_a_trainer_may_be_made_and_run_in_one_expression():
    state = make_trainer(batches_of(3)).run()  # an assert would keep the trainer
    assert state.iteration == 3


def test_no_data_is_an_error():
    trainer = make_trainer()
    with pytest.raises(ValueError, match="`data` must be given to the factory or to run"):
        trainer.run()


@pytest.mark.parametrize("data", [[], iter([]), Repeatable([])], ids=["list", "iterator", "stream"])
def test_empty_data_is_an_error(data):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="`data` gave no batch"):
        trainer.run(data)
    assert GradientState().dataloader_references == [None]


def test_data_that_cannot_be_iterated_is_an_error():
    trainer = make_trainer()
    with pytest.raises(TypeError, match="`data` must be an iterable of batches, got 3: for 3"):
        trainer.run(3)
    with pytest.raises(TypeError, match="`data` must be an iterable of batches, got float: pass"):
        trainer.run(3.0)


def test_without_data_batches_are_none_for_any_number_of_epochs():
    trainer, batches = make_trainer(**NO_DATA), []
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: batches.append(engine.state.batch)
    )
    trainer.run(epoch_length=3, max_epochs=2)
    assert batches == [None] * 6
    trainer.run(max_epochs=3)
    assert counters(trainer) == (3, 9, 9)
    trainer.run(epoch_length=2)
    assert counters(trainer) == (1, 2, 2)


def test_a_feed_may_be_given_as_data():
    whole = seeded_trainer()
    whole.run(max_epochs=2)
    seed()
    trainer = make_trainer(dropout=0.5)
    trainer.run(DataFeed(augmented(), trainer.accelerator), max_steps=3)
    trainer.run(max_epochs=2, max_steps=99)
    assert counters(trainer) == counters(whole)
    assert torch.equal(weights(trainer.model), weights(whole.model))


def test_a_trainer_that_is_dropped_is_freed():
    trainer = make_trainer(augmented())
    trainer.run(max_steps=2)
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


# Ignite's state_dict


def test_the_state_dict_is_ignites_and_holds_the_steps():
    trainer = make_trainer(batches_of(4), accumulation=2)
    trainer.run(max_epochs=2)
    assert dict(trainer.state_dict()) == {
        "epoch_length": 4,
        "iteration": 8,
        "max_epochs": 2,
        "optimizer_step": 4,
    }


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stop", range(1, 9))
def test_a_loaded_state_continues_at_the_same_batch(stop, accumulation):
    batches = batches_of(4)
    first = make_trainer(batches, accumulation=accumulation)
    order = []
    for trainer in (first, second := make_trainer(batches, accumulation=accumulation)):
        trainer.add_event_handler(
            Events.ITERATION_STARTED,
            lambda engine: order.append(
                next(i for i, each in enumerate(batches) if each is engine.state.batch)
            ),
        )
    first.add_event_handler(Events.ITERATION_COMPLETED(once=stop), Engine.terminate)
    first.run(max_epochs=3)
    dropped = stop % accumulation
    order = order[: stop - dropped]
    second.load_state_dict(first.state_dict())
    second.run()
    assert order == [0, 1, 2, 3] * 3
    assert counters(second) == (3, 12, 12 // accumulation)


def test_a_state_of_epochs_can_be_loaded():
    trainer = make_trainer(batches_of(4))
    trainer.load_state_dict({"epoch": 2, "epoch_length": 4, "max_epochs": 3})
    trainer.run()
    assert (trainer.state.epoch, trainer.state.iteration) == (3, 12)
    assert trainer.state.start_epoch == 2


def test_failure_before_the_first_loaded_batch_moves_nothing():
    batches = batches_of(4)
    trainer, order = make_trainer(batches), []
    trainer.load_state_dict({"iteration": 2, "epoch_length": 4, "max_epochs": 1})
    handler = trainer.add_event_handler(Events.STARTED, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run()
    handler.remove()
    trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: order.append(
            next(i for i, each in enumerate(batches) if each is engine.state.batch)
        ),
    )
    trainer.run()
    assert order == [2, 3]


@needs("pytorch-ignite>=0.5.5")
@pytest.mark.parametrize(
    "limits",
    [{"max_epochs": 1}, {"max_iters": 3}, {"max_steps": 2}, {"max_steps": 5}],
    ids=stable_id,
)
@pytest.mark.parametrize("loaded", [{"max_epochs": 3}, {"max_iters": 9}], ids=stable_id)
def test_a_trainer_that_has_run_can_load_a_state(limits, loaded):
    trainer = make_trainer(batches_of(4))
    trainer.run(**limits)
    trainer.load_state_dict({"iteration": 6, "epoch_length": 4, "optimizer_step": 6, **loaded})
    trainer.run()
    expected = {"max_epochs": (3, 12, 12), "max_iters": (3, 9, 9)}
    assert counters(trainer) == expected[next(iter(loaded))]
    assert (trainer.state.start_epoch, trainer.state.start_step) == (1, 6)


def test_new_run_forgets_the_position_of_a_loaded_finished_run():
    batches, order = batches_of(4), []
    trainer = make_trainer(batches)
    trainer.load_state_dict({"iteration": 8, "epoch_length": 4, "max_epochs": 2})
    trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: order.append(
            next(i for i, each in enumerate(batches) if each is engine.state.batch)
        ),
    )
    trainer.run(max_steps=2, max_epochs=2)
    trainer.run(max_steps=4)
    assert order == [0, 1, 2, 3]


def test_a_state_can_be_loaded_while_interrupted():
    trainer = make_trainer(augmented(4))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), Engine.interrupt)
    trainer.run(max_epochs=3)
    trainer.load_state_dict({"iteration": 6, "epoch_length": 4, "max_epochs": 2})
    trainer.run()
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 8)


@pytest.mark.parametrize("missing", ["iteration", "epoch_length", "max_epochs"])
def test_a_state_that_lacks_something_is_an_error(missing):
    state = {"iteration": 6, "epoch_length": 4, "max_epochs": 3}
    del state[missing]
    trainer = make_trainer(batches_of(4))
    with pytest.raises(ValueError, match=missing):
        trainer.load_state_dict(state)


def test_a_scheduler_that_no_validation_moves_warns():
    options = {"lr_scheduler": lambda o: StepLR(o, 1), "scheduler_at": "validation"}
    trainer = make_trainer(batches_of(1), **options)
    with pytest.warns(UserWarning, match="no Validation is attached, .* rate will not change"):
        trainer.run()
    trainer = make_trainer(batches_of(1), **options)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, Validation(lambda: None))
    trainer.run()
    assert trainer.lr_scheduler.last_epoch == 1


def test_submodule_modes_survive_an_evaluator_of_ignite():
    """Tests with an evaluator that leaves the whole model in eval mode."""
    model = make_model(0.5)
    model[2].eval()
    trainer, modes = make_trainer(batches_of(2), model=model), []
    evaluator = ignite_evaluator(model)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(batches_of(1)))

    @trainer.on(Events.EPOCH_STARTED(once=3))
    def thaw(engine):
        model[2].train()

    @trainer.on(TrainEvents.MODEL_FORWARD_STARTED)
    def note(engine):
        modes.append((model.training, model[0].training, model[2].training))

    trainer.run(max_epochs=5)
    frozen, thawed = (True, True, False), (True, True, True)
    assert modes == 4 * [frozen] + 6 * [thawed]


def test_the_model_is_unwrapped_once(monkeypatch):
    trainer, unwrapped = make_trainer(batches_of(1)), []
    unwrap = trainer.accelerator.unwrap_model

    def noted(model, **options):
        unwrapped.append(model)
        return unwrap(model, **options)

    monkeypatch.setattr(trainer.accelerator, "unwrap_model", noted)
    plain = trainer.modules["model"]
    assert trainer.modules["model"] is plain
    trainer.model = torch.compile(plain, backend="eager")
    assert trainer.modules["model"] is plain
    other = trainer.model = make_model()
    assert trainer.modules["model"] is other
    assert len(unwrapped) == 3


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "1", None])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer from 0 to 2\*\*32 - 1, got"):
        make_trainer(batches_of(2)).seed_ranks(seed)
