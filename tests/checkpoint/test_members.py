"""Which handlers have a state, and by what names they are found again."""

import torch
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.metrics import RunningAverage
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import ClearCache
from ignite_hooks.checkpoint.members import handlers_with_state
from ignite_hooks.checkpoint.members import has_state
from ignite_hooks.core.handler import Handler
from tests.reference import batches_of
from tests.reference import make_trainer


class Count:
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


class OtherCount(Count):
    pass


class CountingHandler(Handler):
    """One of this package's kind, with a state."""

    def __call__(self, engine):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass


def test_has_state_needs_an_instance_with_both_state_methods():
    assert has_state(Count())
    assert has_state(torch.nn.Linear(1, 1))
    assert not has_state(Count)
    assert not has_state(print)
    assert not has_state(None)
    half = type("Half", (), {"state_dict": lambda self: {}})()
    assert not has_state(half)


def test_new_trainer_has_no_handlers_with_state():
    assert handlers_with_state(make_trainer(batches_of(2))) == {}


def test_handlers_with_state_are_found_by_class_name():
    trainer = make_trainer(
        batches_of(2), lr_scheduler=lambda o: StepLR(o, 1), handlers=[ClearCache(every_steps=1)]
    )
    count, handler, average = Count(), CountingHandler(), RunningAverage(output_transform=float)
    stopping = EarlyStopping(3, lambda engine: 0.0, trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), count)
    handler.attach(trainer, Events.COMPLETED)
    average.attach(trainer, "loss")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, stopping)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: None)
    found = handlers_with_state(trainer)
    assert found == {
        "Count": count,
        "CountingHandler": handler,
        "RunningAverage": average,
        "EarlyStopping": stopping,
    }


def test_a_method_stands_for_the_object_it_is_bound_to_once():
    trainer, count = make_trainer(batches_of(2)), Count()
    trainer.add_event_handler(Events.STARTED, count.__call__)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, count)
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=2), count.__call__)
    assert handlers_with_state(trainer) == {"Count": count}


def test_checkpoint_parts_and_other_engines_are_left_out():
    trainer = make_trainer(batches_of(2), lr_scheduler=lambda o: StepLR(o, 1))
    evaluator = Engine(lambda engine, batch: None)
    for act in (
        trainer.lr_scheduler.step,
        trainer.optimizer.zero_grad,
        trainer.model.eval,
        evaluator.terminate,
        trainer.terminate,
    ):
        trainer.add_event_handler(Events.COMPLETED, act)
    assert handlers_with_state(trainer) == {}


def test_handlers_of_one_class_are_numbered_by_attachment_order():
    trainer = make_trainer(batches_of(2))
    one, two, other, three = Count(), Count(), OtherCount(), Count()
    trainer.add_event_handler(Events.COMPLETED, one)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, two)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, other)
    trainer.add_event_handler(Events.STARTED, three)
    assert handlers_with_state(trainer) == {
        "Count": one,
        "Count-2": two,
        "OtherCount": other,
        "Count-3": three,
    }


def test_the_names_do_not_depend_on_handlers_without_a_state():
    named = []
    for is_noted in (False, True):
        trainer, one, two = make_trainer(batches_of(2)), Count(), Count()
        if is_noted:
            trainer.add_event_handler(Events.COMPLETED, lambda: None)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, one)
        trainer.add_event_handler(Events.COMPLETED, two)
        named.append({name: each is one for name, each in handlers_with_state(trainer).items()})
    assert named[0] == named[1]


def test_removed_handlers_are_not_found():
    trainer, count = make_trainer(batches_of(2)), Count()
    handle = trainer.add_event_handler(Events.COMPLETED, count)
    attachment = CountingHandler().attach(trainer, Events.COMPLETED)
    assert len(handlers_with_state(trainer)) == 2
    handle.remove()
    attachment.remove()
    assert handlers_with_state(trainer) == {}
