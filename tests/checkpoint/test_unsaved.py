"""Tests that changed values without a state are reported, and no others."""

import argparse
import collections
import enum
import io
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from ignite.handlers import BasicTimeProfiler
from ignite.handlers import Checkpoint
from ignite.handlers import EarlyStopping
from ignite.handlers import EpochOutputStore
from ignite.handlers import HandlersTimeProfiler
from ignite.handlers import LinearCyclicalScheduler
from ignite.handlers import ProgressBar
from ignite.handlers import TerminateOnNan
from ignite.handlers import TimeLimit
from ignite.handlers import Timer
from ignite.handlers import global_step_from_engine
from ignite.handlers.base_logger import BaseLogger
from ignite.handlers.base_logger import BaseOutputHandler
from ignite.metrics import Accuracy
from ignite.metrics import Average
from ignite.metrics import CohenKappa
from ignite.metrics import Frequency
from ignite.metrics import Metric
from ignite.metrics import RunningAverage

from ignite_hooks import EpochMaxRAM
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.checkpoint.handler_objects import HandlerObjects
from ignite_hooks.checkpoint.unsaved import record_initial_values
from ignite_hooks.checkpoint.unsaved import unsaved_changes
from ignite_hooks.handlers import Handler
from tests.reference import Notes
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import shuffled

EACH = Events.ITERATION_COMPLETED


def reason_after_run(attach, tmp_path):
    """Returns the reason after two of three batches, with what ``attach`` has attached."""
    trainer = make_trainer(batches_of(3))
    attach(trainer, tmp_path)
    SaveCheckpoint(tmp_path / "run", every_steps=9, at_end=False, on_signals=()).attach(trainer)
    trainer.run(max_steps=2)
    return unsaved_changes(trainer, HandlerObjects.of(trainer))


class Log(BaseLogger):
    """A logger like Ignite's: a writer, which makes its handlers."""

    def __init__(self):
        self.writer = io.StringIO()

    def close(self):
        self.writer.close()

    def _create_output_handler(self, *args, **kwargs):
        return Output(*args, **kwargs)

    def _create_opt_params_handler(self, *args, **kwargs):
        raise NotImplementedError


class Output(BaseOutputHandler):
    def __call__(self, engine, logger, event_name):
        logger.writer.write(str(self._setup_output_metrics_state_attrs(engine)))


def logger(trainer, tmp_path):
    Log().attach_output_handler(
        trainer,
        EACH,
        tag="training",
        output_transform=lambda loss: {"loss": loss},
        global_step_transform=global_step_from_engine(trainer),
    )


def evaluator(trainer, tmp_path):
    engine = create_supervised_evaluator(
        trainer.model, {"x": Average(output_transform=lambda _: 1.0)}
    )
    EpochOutputStore().attach(engine)
    Validation(engine, batches_of(1), every_steps=1).attach(trainer)


def user_keys(trainer, tmp_path):
    trainer.state.best = 0
    trainer.state_dict_user_keys.append("best")

    @trainer.on(EACH)
    def count(engine):
        engine.state.best += 1


def reset_when_started(trainer, tmp_path):
    class Rows:
        def start(self):
            self.rows = []

        def show(self):
            return len(self.rows)

    rows = Rows()
    trainer.add_event_handler(Events.STARTED, rows.start)
    trainer.add_event_handler(EACH, rows.show)


def settings(trainer, tmp_path):
    arguments = argparse.Namespace(lr=0.1, path=Path("x"), names=["a"], limits={"a": np.zeros(3)})
    trainer.add_event_handler(EACH, lambda: arguments.lr * 2)


def files(tmp_path):
    saver = {"to_save": {"x": torch.nn.Linear(1, 1)}, "save_handler": tmp_path / "files"}
    return Checkpoint(**saver, n_saved=2)


def calling(make, action):
    """Returns a function that attaches a handler with a value in its closure."""

    def attach(trainer, tmp_path):
        value = make()

        @trainer.on(EACH)
        def call(engine):
            action(value)

    return attach


SILENT = {
    "ProgressBar": lambda t, p: ProgressBar(file=io.StringIO()).attach(t),
    "Timer": lambda t, p: Timer(average=True).attach(t, resume=EACH, step=EACH),
    "BasicTimeProfiler": lambda t, p: BasicTimeProfiler().attach(t),
    "HandlersTimeProfiler": lambda t, p: HandlersTimeProfiler().attach(t),
    "TerminateOnNan": lambda t, p: t.add_event_handler(EACH, TerminateOnNan()),
    "TimeLimit": lambda t, p: t.add_event_handler(EACH, TimeLimit(1000)),
    "EpochOutputStore": lambda t, p: EpochOutputStore().attach(t, "outputs"),
    "EarlyStopping": lambda t, p: t.add_event_handler(EACH, EarlyStopping(9, lambda e: 1.0, t)),
    "Checkpoint": lambda t, p: t.add_event_handler(EACH, files(p)),
    "RunningAverage": lambda t, p: RunningAverage(output_transform=float).attach(t, "loss"),
    "a logger": logger,
    "an evaluator": evaluator,
    "a callable": lambda t, p: Validation(lambda model: {"x": 1}, every_steps=1).attach(t),
    "handlers of this package": lambda t, p: [
        each.attach(t)
        for each in (GarbageCollector(every_steps=1), EpochMaxRAM(), GradientClipping(max_norm=1.0))
    ],
    "an attribute of the state that is saved": user_keys,
    "what STARTED sets again": reset_when_started,
    "settings": settings,
    "a list of a class with a state": calling(Notes, lambda value: value.append(1)),
    "a file": lambda t, p: calling(io.StringIO, lambda file: file.write("x"))(t, p),
}


@pytest.mark.parametrize("attach", SILENT.values(), ids=SILENT)
def test_no_change_is_reported_for(attach, tmp_path):
    assert reason_after_run(attach, tmp_path) == ""


class Counter:
    number = 0

    def __init__(self):
        self.inner = {"a": [self.Inner()]}

    class Inner:
        def __init__(self):
            self.number = 0

    def count(self, engine):
        self.number += 1

    def count_inside(self, engine):
        self.inner["a"][0].number += 1

    def count_on_the_class(self, engine):
        Counter.number += 1


class Slotted:
    __slots__ = ("__weakref__", "number")

    def __init__(self):
        self.number = 0

    def __call__(self, engine):
        self.number += 1


@dataclass
class Data:
    last: object = None

    def __call__(self, engine):
        self.last = engine.state.loss


class Phase(enum.Enum):
    FIRST = 1
    SECOND = 2


class Counting(Handler):
    number = 0

    def __call__(self, engine):
        self.number += 1


class CountingInside(Handler):
    def attach_to(self, attachment):
        number = 0

        def count(engine):
            nonlocal number
            number += 1

        attachment.on(EACH, count)


def nonlocal_number(trainer, tmp_path):
    number = 0

    @trainer.on(EACH)
    def count():
        nonlocal number
        number += 1


def add_at(key):
    def add(value):
        value[key] = value[key] + 1

    return add


numbers_of_module = []


def module_global(trainer, tmp_path):
    trainer.add_event_handler(EACH, count_globally)


def count_globally(engine):
    numbers_of_module.append(1)


def attribute_of_a_function(trainer, tmp_path):
    def count():
        count.number += 1

    count.number = 0
    trainer.add_event_handler(EACH, count)


def default(trainer, tmp_path):
    def count(engine, seen=[]):  # noqa: B006
        seen.append(1)

    trainer.add_event_handler(EACH, count)


def attribute_of_the_state(trainer, tmp_path):
    @trainer.on(EACH)
    def count(engine):
        engine.state.number = getattr(engine.state, "number", 0) + 1


def callable_of_a_validation(trainer, tmp_path):
    seen = []
    Validation(lambda model: seen.append(1), every_steps=1).attach(trainer)


def hook(trainer, tmp_path):
    seen = []

    @trainer.hooks.on("on_batch")
    def note(engine):
        seen.append(1)
        yield


def phase(trainer, tmp_path):
    class Phases:
        phase = Phase.FIRST

        def go_on(self):
            self.phase = Phase.SECOND

    trainer.add_event_handler(EACH, Phases().go_on)


class Rows(list):
    """A list of a user's class, without a state."""


def on(handler):
    return lambda trainer, tmp_path: trainer.add_event_handler(EACH, handler)


NAMED = {
    "an attribute": (lambda t, p: on(Counter().count)(t, p), "Counter.number"),
    "an object in an attribute": (
        lambda t, p: on(Counter().count_inside)(t, p),
        "Counter.inner.a.0.number",
    ),
    "a class": (lambda t, p: on(Counter().count_on_the_class)(t, p), "Counter.Counter.number"),
    "slots": (lambda t, p: on(Slotted())(t, p), "Slotted.number"),
    "the last loss": (lambda t, p: on(Data())(t, p), "Data.last"),
    "an enum": (phase, "Phases.phase"),
    "a Handler": (lambda t, p: Counting().attach(t, EACH), "Counting.number"),
    "a closure of a Handler": (lambda t, p: CountingInside().attach(t), "handler.number"),
    "a nonlocal number": (nonlocal_number, "count.number"),
    "a list": (calling(list, lambda value: value.append(1.0)), "call.value"),
    "a method of a list": (lambda t, p: on([].append)(t, p), "list"),
    "an element of a long list": (calling(lambda: [0] * 50_000, add_at(33_333)), "call.value"),
    "a list in a dict": (calling(lambda: {"a": [0]}, lambda v: add_at(0)(v["a"])), "call.value"),
    "a list of a user's class": (calling(lambda: [Rows()], lambda v: v[0].append(1)), "call.value"),
    "a deque": (calling(collections.deque, lambda value: value.append("a")), "call.value"),
    "a Counter": (calling(collections.Counter, lambda value: value.update("a")), "call.value"),
    "a set": (calling(set, lambda value: value.add(len(value))), "call.value"),
    "a tensor": (calling(lambda: torch.zeros(3), lambda value: value.add_(1)), "call.value"),
    "an array": (calling(lambda: np.zeros((300, 300)), add_at((3, 200))), "call.value"),
    "a count": (calling(itertools.count, next), "call.value"),
    "a cycle": (calling(lambda: itertools.cycle([1, 2]), next), "call.value"),
    "an iterator": (calling(lambda: iter([1, 2, 3]), next), "call.value"),
    "a generator": (calling(lambda: (each for each in range(9)), next), "call.value"),
    "an iterator of a loader": (calling(lambda: iter(shuffled(5)), next), "call.value"),
    "a global": (module_global, "count_globally.numbers_of_module"),
    "an attribute of a function": (attribute_of_a_function, "count.number"),
    "a default": (default, "count.seen"),
    "a hook": (hook, "Hooks._hooks.0.context.seen"),
    "a callable that validates": (callable_of_a_validation, "<lambda>.seen"),
    "an attribute of the trainer's state": (attribute_of_the_state, "trainer.state.number"),
}


@pytest.mark.parametrize(("attach", "path"), NAMED.values(), ids=NAMED)
def test_a_change_is_reported_for(attach, path, tmp_path):
    assert f"{path} changed" in reason_after_run(attach, tmp_path)


class Total(Metric):
    """A metric whose author has not named its state."""

    def reset(self):
        self.total = 0.0

    def update(self, output):
        self.total += float(output)

    def compute(self):
        return self.total


class NamedTotal(Total):
    _state_dict_all_req_keys = ("total",)


class OwnAccuracy(Accuracy):
    """A metric that knows the type of its data from the first batch on, like Ignite's."""


class Impatient(EarlyStopping):
    """A handler that counts something its base class does not save."""

    calls = 0

    def __call__(self, engine):
        self.calls += 1


class Countdown(LinearCyclicalScheduler):
    def get_param(self):
        self.calls = getattr(self, "calls", 0) + 1
        return super().get_param()


def metric(make, usage="epoch_wise"):
    return lambda trainer, tmp_path: make().attach(trainer, "metric", usage=usage)


def labels(output):
    return torch.tensor([1, 0]), torch.tensor([1, 1])


def countdown(trainer, tmp_path):
    trainer.add_event_handler(EACH, Countdown(trainer.optimizer.optimizer, "lr", 0.1, 0.0, 20))


def in_closure(trainer, tmp_path):
    total = Total()
    trainer.add_event_handler(EACH, lambda engine: total.update(1.0))


BESIDE_STATES = {
    "a metric": (metric(lambda: Total(float)), "Total.total"),
    "a metric that nobody attaches": (in_closure, "Total.total"),
    "a metric of Ignite": (
        metric(lambda: CohenKappa(labels)),
        "CohenKappa._impl._predictions, CohenKappa._impl._targets",
    ),
    "a handler": (lambda t, p: on(Impatient(1, float, t))(t, p), "Impatient.calls"),
    "a scheduler of parameters": (countdown, "Countdown.calls"),
    "a metric that names it": (metric(lambda: NamedTotal(float)), ""),
    "a metric of one batch": (metric(lambda: Total(float), "batch_wise"), ""),
    "what a metric finds out": (metric(lambda: OwnAccuracy(labels)), ""),
    "a clock": (lambda t, p: Frequency(lambda output: 2).attach(t, "rate"), ""),
}


@pytest.mark.parametrize("what", BESIDE_STATES)
def test_attributes_beside_ignites_state_are_reported(what, tmp_path):
    attach, path = BESIDE_STATES[what]
    reason = reason_after_run(attach, tmp_path)
    assert reason.startswith(f"{path} changed and is in no state_dict()") if path else not reason


def test_a_metric_is_not_reported_where_it_is_reset(tmp_path):
    trainer, total = make_trainer(batches_of(3)), Total(float)
    total.attach(trainer, "total")
    SaveCheckpoint(tmp_path, every_steps=9, at_end=False, on_signals=()).attach(trainer)
    trainer.run(max_epochs=1)
    assert total.total > 0.0
    assert unsaved_changes(trainer, HandlerObjects.of(trainer)) == ""


def test_too_many_objects_are_reported(tmp_path):
    many = [Data() for _ in range(11_000)]
    reason = reason_after_run(calling(lambda: many, len), tmp_path)
    assert "handlers hold too many objects to examine all of them" in reason


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1, True),
        (0.0, -0.0),
        (None, "None"),
        (1, 1.0),
        (2**70, 2**70 + 1),
        (10**5000, 10**5000 + 1),  # more digits than Python writes
        ("a" * 1000, "a" * 999 + "b"),
        (b"a", "a"),
    ],
    ids=["bool", "zero", "None", "float", "integer", "long integer", "text", "bytes"],
)
def test_values_that_differ_in_bits_or_type_are_reported(before, after):
    trainer, holder = make_trainer(batches_of(1)), Counter()
    trainer.add_event_handler(EACH, holder.count)
    holder.number = before
    record_initial_values(trainer)
    assert unsaved_changes(trainer, HandlerObjects.of(trainer)) == ""
    holder.number = after
    assert "Counter.number changed" in unsaved_changes(trainer, HandlerObjects.of(trainer))


def test_an_unchanged_value_is_not_reported():
    trainer, values = make_trainer(batches_of(3)), [1, float("nan"), "a", [None], {1, 2}, iter([1])]
    trainer.add_event_handler(EACH, lambda: len(values))
    record_initial_values(trainer)
    values[3] = [None]
    assert unsaved_changes(trainer, HandlerObjects.of(trainer)) == ""
    values[3] = [0]
    assert "<lambda>.values changed" in unsaved_changes(trainer, HandlerObjects.of(trainer))


@pytest.mark.parametrize("make", [int, lambda number: (number, (number,))], ids=["int", "tuple"])
def test_another_order_of_a_set_is_no_change(make):
    before, after = next(
        (pair, pair[::-1])
        for pair in itertools.combinations(map(make, range(99)), 2)
        if [*set(pair)] != [*{pair[1], pair[0]}]  # as Python lays them out
    )
    trainer, holder = make_trainer(batches_of(1)), Counter()
    trainer.add_event_handler(EACH, holder.count)
    holder.number = set(before)
    record_initial_values(trainer)
    holder.number = set(after)
    assert unsaved_changes(trainer, HandlerObjects.of(trainer)) == ""


def test_objects_without_an_order_are_reported(tmp_path):
    several = {Timer(), Timer()}
    reason = reason_after_run(on(lambda: several), tmp_path)
    assert "they are in a set" not in reason  # they have no state

    stores = {EarlyStopping(1, float, make_trainer(batches_of(1))) for _ in range(2)}
    reason = reason_after_run(on(lambda: stores), tmp_path)
    assert "<lambda>.stores.{EarlyStopping} are not saved, because they are in a set" in reason


def test_values_are_compared_with_the_first_run_of_the_process(tmp_path):
    trainer, counter = make_trainer(batches_of(2)), Counter()
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), counter.count)
    SaveCheckpoint(tmp_path, on_signals=()).attach(trainer)
    trainer.run(max_epochs=1)
    trainer.run(max_epochs=2)
    assert "Counter.number changed" in unsaved_changes(trainer, HandlerObjects.of(trainer))


def test_the_report_names_unsaved_and_saved_objects(tmp_path):
    def make():
        trainer, counter = make_trainer(batches_of(2)), Counter()
        trainer.add_event_handler(EACH, counter.count)
        trainer.add_event_handler(EACH, EarlyStopping(9, lambda engine: 1.0, trainer))
        SaveCheckpoint(tmp_path, on_signals=()).attach(trainer)
        return trainer

    make().run()
    trainer = make()
    ResumeCheckpoint(tmp_path).attach(trainer)
    part = trainer.resume_report.parts["handlers"]
    assert part.level == "unknown"
    assert part.reason == (
        "Counter.number changed and cannot be saved: define state_dict() and load_state_dict() in "
        "the class of the object that holds the value, or keep the value in an object that has "
        "these methods"
    )
    assert part.names == ("EarlyStopping",)
