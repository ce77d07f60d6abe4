"""The number of batches per step, which all accelerators share, and short windows."""

import itertools
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import OptimizerStep
from ignite_hooks import TrainEvents
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.optim import accumulation
from ignite_hooks.optim import optimizer_step
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import weights


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


# Losses that users back-propagate themselves


def penalty(model):
    return model[0].weight.pow(2).sum()


def add_in_batch_processor(accelerator):
    def process(model, batch):
        accelerator.backward(penalty(model))
        return (outputs := model(batch[0])), F.mse_loss(outputs, batch[1])

    return {"loss_fn": None, "batch_processor": process}, lambda trainer: None


def add_at(event):
    def way(accelerator):
        def attach(trainer):
            trainer.add_event_handler(event, lambda t: accelerator.backward(penalty(t.model)))

        return {}, attach

    return way


def add_in_hook(accelerator):
    def after_backward(engine):
        yield
        accelerator.backward(penalty(engine.model))

    return {}, lambda trainer: trainer.hooks.register("on_batch", after_backward)


WAYS = {
    "batch_processor": add_in_batch_processor,
    "handler": add_at(TrainEvents.MODEL_BACKWARD_COMPLETED),
    "hook": add_in_hook,
}


def plain_loop(batches, accumulation, *, is_first=False, is_once=False, precision="no"):
    """Trains in a plain loop in which each loss, the penalty included, has its share."""
    model = make_model(dropout=0)
    optimizer = sgd(model)
    for first in range(0, len(batches), accumulation):
        window = batches[first : first + accumulation]
        for index, (x, y) in enumerate(window):
            if is_first:
                (penalty(model) / len(window)).backward()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                outputs = model(x)
            (F.mse_loss(outputs.float(), y) / len(window)).backward()
            if not is_first and (not is_once or index + 1 == len(window)):
                (penalty(model) / len(window)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def trained(way, data, accumulation, *, is_plain=True, precision="no", is_left_at=None):
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=accumulation, mixed_precision=precision
    )
    model = make_model(dropout=0)
    options, attach = way(accelerator)
    trainer = create_supervised_trainer(
        model, sgd(model), data=data, accelerator=accelerator, **{"loss_fn": F.mse_loss, **options}
    )
    trainer._optimizer_step.prepared.calls_torch_directly = is_plain
    attach(trainer)
    trainer.run()
    assert accelerator.gradient_accumulation_steps == (is_left_at or accumulation)
    return weights(trainer.model)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize(("accumulation", "number"), [(4, 6), (3, 5), (4, 3), (3, 4)])
@pytest.mark.parametrize("way", WAYS)
def test_another_loss_counts_as_much_as_the_first(way, accumulation, number, is_plain, precision):
    data = batches_of(number)
    found = trained(WAYS[way], data, accumulation, is_plain=is_plain, precision=precision)
    is_first = way == "batch_processor"
    assert torch.equal(
        found, plain_loop(data, accumulation, is_first=is_first, precision=precision)
    )


@pytest.mark.parametrize(("accumulation", "number"), [(4, 6), (3, 5)])
@pytest.mark.parametrize("way", WAYS)
def test_another_loss_counts_as_much_without_a_known_end(way, accumulation, number):
    data = batches_of(number)
    found = trained(WAYS[way], Repeatable(data), accumulation)
    expected = plain_loop(data, accumulation, is_first=way == "batch_processor")
    # Divided by 3 and multiplied by 3 / 2 is rounded twice more than divided by 2; 4 is exact.
    tolerance = {"rtol": 0, "atol": 0} if accumulation == 4 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize("kind", [list, Repeatable])
def test_a_loss_added_before_the_step_belongs_to_the_window(kind):
    data = batches_of(6)
    way = add_at(TrainEvents.OPTIMIZER_STEP_STARTED)
    assert torch.equal(trained(way, kind(data), 4), plain_loop(data, 4, is_once=True))


def test_evaluator_in_a_short_window_keeps_the_number_of_batches():
    def way(accelerator):
        options, attach = WAYS["handler"](accelerator)

        def attach_both(trainer):
            trainer.add_event_handler(
                Events.ITERATION_STARTED, lambda t: create_supervised_evaluator(t.model)
            )
            attach(trainer)

        return options, attach_both

    data = batches_of(6)
    assert torch.equal(trained(way, data, 4), plain_loop(data, 4))


def test_a_number_set_by_a_handler_in_a_short_window_stays():
    trainer = make_trainer(batches_of(6), accumulation=4)

    @trainer.on(Events.ITERATION_STARTED(once=5))
    def change(trainer):
        trainer.accelerator.gradient_accumulation_steps = 3

    trainer.run(max_epochs=2)
    assert trainer.accelerator.gradient_accumulation_steps == 3
    assert trainer.state.optimizer_step == 2 + 2


def test_a_window_that_ends_early_divides_by_its_batches():
    trainer = make_trainer(accumulation=4)
    step, seen = trainer._optimizer_step, []

    def note(*_):
        seen.append(trainer.accelerator.gradient_accumulation_steps)

    trainer.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, note)
    for left in (3, 1):
        step.take_batch(lambda left=left: left)
        note()
    step.close_window(trainer)
    note()
    assert seen == [3, 3, 2, 4]


def test_epochs_are_counted_in_full_windows_within_a_short_one():
    trainer, seen = make_trainer(batches_of(6), accumulation=4), []
    for event in (Events.EPOCH_STARTED, Events.ITERATION_STARTED(once=5)):
        trainer.add_event_handler(event, lambda t: seen.append(t._position.epochs_needed))
    trainer.run(max_steps=20)
    assert set(seen) == {10}


def test_a_trainer_within_a_short_window_has_full_windows():
    data = batches_of(6)
    alone = make_trainer(data, accumulation=4)
    alone.run()
    inner = make_trainer(data, accelerator=alone.accelerator)
    outer = make_trainer(data, accelerator=alone.accelerator)
    outer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda _: inner.run())
    outer.run()
    assert torch.equal(weights(inner.model), weights(alone.model))
    assert torch.equal(weights(outer.model), weights(alone.model))
    assert alone.accelerator.gradient_accumulation_steps == 4


def make_interruption():
    """Interrupts a run at the n-th line of the package that sets the number."""
    files = {accumulation.__file__, optimizer_step.__file__}

    class Interruption:
        def __init__(self, at):
            self.left = at

        def __call__(self, frame, event, argument):
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                self.left -= 1
                if self.left == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return self

    return Interruption


def test_an_interruption_restores_the_number_of_batches():
    interruption_of, before = make_interruption(), sys.gettrace()
    for at in itertools.count(1):
        trainer = make_trainer(batches_of(2), accumulation=4)
        interruption = interruption_of(at)
        sys.settrace(interruption)
        try:
            trainer.run(max_epochs=1)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert trainer.accelerator.gradient_accumulation_steps == 4
        if interruption.left > 0:
            break
    assert at > 60


def test_a_number_left_behind_is_restored_by_the_next_run():
    trainer = make_trainer(batches_of(4), accumulation=4)
    trainer._optimizer_step.accumulation.shorten(2)  # as two interruptions can leave it
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda trainer: seen.append(trainer.accelerator.gradient_accumulation_steps),
    )
    trainer.run()
    assert (seen, trainer.state.optimizer_step) == ([4] * 4, 1)


# A second accelerator


def warnings_of(action):
    """Returns the warnings of ``action`` about accelerators."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(each.message) for each in caught if "accelerators" in str(each.message)]


def test_a_second_accelerator_with_another_number_warns_once():
    data = batches_of(8)
    first = make_trainer(data, accumulation=4)
    first.run()
    second = make_trainer(data, accumulation=8)
    assert warnings_of(second.run) == []
    (message,) = warnings_of(first.run)
    assert "built with 4, and a later Accelerator has 8" in message
    assert "so this run now takes 8 batches a step" in message
    assert "accelerator.gradient_accumulation_steps = 4 before" in message
    assert warnings_of(first.run) == warnings_of(second.run) == []
    assert first.state.optimizer_step == 1


def test_an_accelerator_made_during_a_run_warns_in_it():
    trainer = make_trainer(batches_of(8), accumulation=4)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda _: Accelerator(cpu=True))
    (message,) = warnings_of(trainer.run)
    assert "built with 4, and a later Accelerator has 1" in message


def test_accelerator_made_in_a_short_window_warns_and_counts():
    def way(accelerator):
        options, attach = WAYS["handler"](accelerator)

        def attach_both(trainer):
            trainer.add_event_handler(
                Events.ITERATION_COMPLETED(once=5),
                lambda _: Accelerator(cpu=True, gradient_accumulation_steps=8),
            )
            attach(trainer)

        return options, attach_both

    data, found = batches_of(6), []
    (message,) = warnings_of(lambda: found.append(trained(way, data, 4, is_left_at=8)))
    assert "built with 4, and a later Accelerator has 8" in message
    assert torch.equal(*found, plain_loop(data, 4))


def test_accelerator_made_on_the_last_batch_warns_in_next_run():
    trainer = make_trainer(batches_of(6), accumulation=4)
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=6),
        lambda _: Accelerator(cpu=True, gradient_accumulation_steps=8),
    )
    assert warnings_of(trainer.run) == []
    assert trainer.accelerator.gradient_accumulation_steps == 8
    assert len(warnings_of(trainer.run)) == 1


def test_an_evaluators_accelerator_warns_on_a_plain_engine_too():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(dropout=0)
    engine = Engine(lambda engine, batch: accelerator.backward(model(batch[0]).sum()))
    OptimizerStep(accelerator, sgd(model)).attach(engine)
    create_supervised_evaluator(model, accelerator=Accelerator(cpu=True))
    assert len(warnings_of(lambda: engine.run(batches_of(2)))) == 1


@pytest.mark.parametrize("number", [7, 8])
@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda trainer: setattr(trainer.accelerator, "gradient_accumulation_steps", 8),
        lambda trainer: Accelerator(cpu=True, gradient_accumulation_steps=4),
        lambda trainer: create_supervised_evaluator(trainer.model),
    ],
    ids=["set by the user", "same number", "default"],
)
def test_setting_the_number_on_purpose_does_not_warn(meanwhile, number):
    trainer = make_trainer(batches_of(number), accumulation=4)
    trainer.run()
    meanwhile(trainer)
    assert warnings_of(trainer.run) == []


def test_resetting_the_number_does_not_warn():
    trainer = make_trainer(batches_of(8), accumulation=4)
    other = make_trainer(batches_of(8), accumulation=8)
    assert warnings_of(other.run) == []
    trainer.accelerator.gradient_accumulation_steps = 4
    assert warnings_of(trainer.run) == []


def test_consecutive_trainers_do_not_warn():
    for number in (1, 4, 2):
        trainer = make_trainer(batches_of(4), accumulation=number)
        assert warnings_of(trainer.run) == []
