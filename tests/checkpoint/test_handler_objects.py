"""Tests of the search for handlers and held objects with a state: names, and resuming."""

import copy
import functools
import sys

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import ConcatScheduler
from ignite.handlers import CosineAnnealingScheduler
from ignite.handlers import EarlyStopping
from ignite.handlers import EMAHandler
from ignite.handlers import EpochOutputStore
from ignite.handlers import ExpStateScheduler
from ignite.handlers import LambdaStateScheduler
from ignite.handlers import LinearCyclicalScheduler
from ignite.handlers import LRScheduler
from ignite.handlers import ParamGroupScheduler
from ignite.handlers import PiecewiseLinear
from ignite.handlers import ReduceLROnPlateauScheduler
from ignite.handlers import create_lr_scheduler_with_warmup
from ignite.metrics import Average
from ignite.metrics import RunningAverage
from torch.optim.lr_scheduler import ChainedScheduler
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.lr_scheduler import MultiStepLR
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import SequentialLR
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import SWALR
from torch.optim.swa_utils import AveragedModel

from ignite_hooks import ClearCache
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.handler_objects import HandlerObjects
from ignite_hooks.checkpoint.handler_objects import handlers_with_state
from ignite_hooks.checkpoint.handler_objects import has_state
from ignite_hooks.core.handler import Handler
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import seed
from tests.reference import shuffled

STEP = TrainEvents.STEP_COMPLETED


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
    """A handler of this package's base class, with a state."""

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


def test_an_object_with_two_bound_methods_is_found_once():
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


def test_names_do_not_depend_on_stateless_handlers():
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


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.out = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.norm(self.hidden(x)).tanh())


class Stepper:
    """A user's handler that holds schedulers and has no state_dict itself."""

    def __init__(self, *schedulers):
        self.first, self.others = schedulers[0], list(schedulers[1:])

    def __call__(self, engine):
        self.step()

    def step(self):
        self.first.step()
        for each in self.others:
            each.step()


class Averager:
    """A user's averaging handler, whose state contains the state of a module."""

    def __init__(self, model):
        self.average, self.model, self.number = copy.deepcopy(model), model, 0

    def __call__(self, engine):
        self.number += 1
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(new, 1 / (self.number + 1))

    def state_dict(self):
        return {"average": self.average.state_dict(), "number": self.number}

    def load_state_dict(self, state_dict):
        self.average.load_state_dict(state_dict["average"])
        self.number = state_dict["number"]


def half(optimizer):
    return StepLR(optimizer, 2, 0.5)


def plateau_in_lambda(trainer, model, optimizer):
    scheduler = ReduceLROnPlateau(optimizer, patience=1)
    trainer.add_event_handler(STEP, lambda engine: scheduler.step(1.0))


def plateau_in_partial(trainer, model, optimizer):
    def step(scheduler, engine):
        scheduler.step(1.0)

    trainer.add_event_handler(
        STEP, functools.partial(step, ReduceLROnPlateau(optimizer, patience=1))
    )


def bound_method_in_a_default(trainer, model, optimizer):
    step = half(optimizer).step
    trainer.add_event_handler(STEP, lambda engine, step=step: step())


def argument_of_a_handler(trainer, model, optimizer):
    trainer.add_event_handler(STEP, lambda engine, each: each.step(), half(optimizer))


def keyword_of_a_handler(trainer, model, optimizer):
    trainer.add_event_handler(STEP, lambda engine, each: each.step(), each=half(optimizer))


def attribute_of_a_handler(trainer, model, optimizer):
    trainer.add_event_handler(STEP, Stepper(half(optimizer)))


def attributes_of_a_bound_method(trainer, model, optimizer):
    stepper = Stepper(half(optimizer), ExponentialLR(optimizer, 0.9), ExponentialLR(optimizer, 0.8))
    trainer.add_event_handler(STEP, stepper.step)


def several_in_a_list(trainer, model, optimizer):
    schedulers = [half(optimizer), StepLR(optimizer, 3, 0.9)]
    trainer.add_event_handler(STEP, lambda: [each.step() for each in schedulers])


def deep_in_closures(trainer, model, optimizer):
    box = {"a": [({"scheduler": half(optimizer)},)]}

    def outer():
        def inner():
            box["a"][0][0]["scheduler"].step()

        return inner

    inner = outer()
    trainer.add_event_handler(STEP, lambda: inner())


def in_a_filter(trainer, model, optimizer):
    count, scheduler = Count(), half(optimizer)

    def is_due(engine, event):
        count()
        return count.number % 3 == 0

    trainer.add_event_handler(STEP(event_filter=is_due), lambda: scheduler.step())


def in_a_hook(trainer, model, optimizer):
    scheduler = half(optimizer)

    @trainer.hooks.on("on_batch")
    def step_after_batch(engine):
        yield
        scheduler.step()


def of_a_module(trainer, model, optimizer):
    global module_scheduler
    module_scheduler = half(optimizer)
    trainer.add_event_handler(STEP, step_of_a_module)


def step_of_a_module():
    module_scheduler.step()


def sequential(trainer, model, optimizer):
    inner = [half(optimizer), MultiStepLR(optimizer, [1, 3], 0.5)]
    scheduler = SequentialLR(optimizer, inner, [3])
    trainer.add_event_handler(STEP, lambda: scheduler.step())


def chained(trainer, model, optimizer):
    scheduler = ChainedScheduler([half(optimizer), LambdaLR(optimizer, lambda step: 0.9**step)])
    trainer.add_event_handler(STEP, lambda: scheduler.step())


def averaged_model(trainer, model, optimizer):
    average, scheduler = AveragedModel(model), SWALR(optimizer, 0.01, anneal_epochs=5)

    def update(engine):
        average.update_parameters(model)
        scheduler.step()

    trainer.add_event_handler(STEP, update)
    return average.state_dict


def user_average(trainer, model, optimizer):
    averager = Averager(model)
    trainer.add_event_handler(STEP, lambda engine: averager(engine))
    return averager.state_dict


def ema(every=1, name="ema_momentum", **options):
    def attach(trainer, model, optimizer):
        handler = EMAHandler(model, **options)
        handler.attach(trainer, name, event=Events.ITERATION_COMPLETED(every=every))
        return lambda: [handler.ema_model.state_dict(), getattr(trainer.state, name)]

    return attach


def two_emas(trainer, model, optimizer):
    one, two = EMAHandler(model.hidden, momentum=0.1), EMAHandler(model.out, momentum=0.3)
    one.attach(trainer, "one")
    two.attach(trainer, "two", event=STEP)
    return lambda: [one.ema_model.state_dict(), two.ema_model.state_dict()]


def driven_at(event, make):
    """Returns a function that attaches a scheduler of Ignite to ``event``."""

    def attach(trainer, model, optimizer):
        scheduler = make(optimizer)
        trainer.add_event_handler(event, scheduler)
        return lambda: getattr(trainer.state, "param_history", None)

    return attach


def concat(optimizer):
    linear = LinearCyclicalScheduler(optimizer, "lr", 0.1, 0.01, 6)
    cosine = CosineAnnealingScheduler(optimizer, "lr", 0.1, 0.02, 4)
    return ConcatScheduler([linear, cosine], [4])


def grouped(optimizer):
    return ParamGroupScheduler(
        [
            LinearCyclicalScheduler(optimizer, "lr", 0.1, 0.01, 6, param_group_index=0),
            PiecewiseLinear(optimizer, "lr", [(1, 0.1), (6, 0.02)], param_group_index=1),
        ]
    )


def warmed_up(scheduler):
    return lambda optimizer: create_lr_scheduler_with_warmup(scheduler(optimizer), 0.0, 4, 0.1)


def ignite_plateau(trainer, model, optimizer):
    @trainer.on(STEP)
    def measure(engine):
        engine.state.metrics["x"] = 1.0

    trainer.add_event_handler(STEP, ReduceLROnPlateauScheduler(optimizer, "x", patience=1))


def state_scheduler(event, make):
    def attach(trainer, model, optimizer):
        make().attach(trainer, event)
        return lambda: trainer.state.temperature

    return attach


def second_optimizer(trainer, model, optimizer):
    head = torch.nn.Linear(4, 2)
    other = torch.optim.Adam(head.parameters(), lr=0.01)
    scheduler = half(other)

    def train_head(engine):
        x, y = engine.state.batch
        other.zero_grad()
        F.mse_loss(head(x), y).backward()
        other.step()
        scheduler.step()

    trainer.add_event_handler(STEP, train_head)
    return lambda: [head.state_dict(), other.state_dict()]


def outputs_of_an_epoch(trainer, model, optimizer):
    store = EpochOutputStore()
    store.attach(trainer, "outputs")
    return lambda: store.data


class CountWithOutputs:
    """Counts steps, and collects outputs in a handler that has no state_dict of its own."""

    def __init__(self):
        self.count = 0
        self.store = EpochOutputStore()

    def attach(self, engine):
        engine.add_event_handler(STEP, self)

    def __call__(self, engine):
        self.count += 1
        self.store.update(engine)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def outputs_within_a_handler(trainer, model, optimizer):
    handler = CountWithOutputs()
    handler.attach(trainer)
    return lambda: [handler.count, handler.store.data]


def metrics(trainer, model, optimizer):
    RunningAverage(output_transform=float).attach(trainer, "running")
    mean = Average()
    trainer.add_event_handler(STEP, lambda engine: mean.update(float(engine.state.loss)))
    return lambda: [trainer.state.metrics, mean.compute()]


def evaluator_run_by_a_handler(trainer, model, optimizer):
    evaluator = create_supervised_evaluator(model, accelerator=trainer.accelerator)
    stopping = EarlyStopping(9, lambda engine: 1.0, trainer)
    evaluator.add_event_handler(Events.COMPLETED, stopping)
    data = batches_of(1)
    trainer.add_event_handler(STEP, lambda: evaluator.run(data))
    return stopping.state_dict


def evaluator_and_callable_by_name(trainer, model, optimizer):
    evaluator = create_supervised_evaluator(model, accelerator=trainer.accelerator)
    stopping, count = EarlyStopping(9, lambda engine: 1.0, trainer), Count()
    evaluator.add_event_handler(Events.COMPLETED, stopping)
    several = {"a": evaluator, "b": lambda model: count()}
    Validation(several, batches_of(1), every_steps=1).attach(trainer)
    return lambda: [stopping.state_dict(), count.number]


AT_START, AT_EPOCH = Events.ITERATION_STARTED, Events.EPOCH_STARTED
CASES = {
    plateau_in_lambda: ["ReduceLROnPlateau"],
    plateau_in_partial: ["ReduceLROnPlateau"],
    bound_method_in_a_default: ["StepLR"],
    argument_of_a_handler: ["StepLR"],
    keyword_of_a_handler: ["StepLR"],
    attribute_of_a_handler: ["Stepper"],
    attributes_of_a_bound_method: ["Stepper.first", "Stepper.others.0", "Stepper.others.1"],
    several_in_a_list: ["StepLR-schedulers.0", "StepLR-schedulers.1"],
    deep_in_closures: ["StepLR"],
    in_a_filter: ["Count", "StepLR"],
    in_a_hook: ["StepLR"],
    of_a_module: ["StepLR"],
    sequential: ["SequentialLR"],
    chained: ["ChainedScheduler"],
    averaged_model: ["AveragedModel", "SWALR"],
    user_average: ["Averager"],
    ema(momentum=0.1): ["EMAHandler"],
    ema(every=3, momentum=0.1): ["EMAHandler"],
    ema(every=2, momentum=0.1, handle_buffers="update", name="other"): ["EMAHandler"],
    ema(every=2, momentum=0.1, handle_buffers="ema_train"): ["EMAHandler"],
    ema(momentum=0.01, momentum_warmup=0.2, warmup_iters=6): ["EMAHandler", "LambdaStateScheduler"],
    two_emas: ["EMAHandler", "EMAHandler-2"],
    driven_at(AT_START, concat): ["ConcatScheduler"],
    driven_at(AT_START, grouped): ["ParamGroupScheduler"],
    driven_at(AT_START, warmed_up(half)): ["ConcatScheduler"],
    driven_at(AT_START, warmed_up(lambda o: CosineAnnealingWarmRestarts(o, 3))): [
        "ConcatScheduler",
        "ConcatScheduler.CosineAnnealingWarmRestarts",
    ],
    driven_at(AT_START, lambda o: LRScheduler(half(o), save_history=True)): ["LRScheduler"],
    driven_at(AT_EPOCH, lambda o: PiecewiseLinear(o, "lr", [(0, 0.1), (2, 0.01)])): [
        "PiecewiseLinear"
    ],
    ignite_plateau: ["ReduceLROnPlateauScheduler"],
    state_scheduler(
        AT_EPOCH, lambda: ExpStateScheduler(1.0, 0.5, "temperature", create_new=True)
    ): ["ExpStateScheduler"],
    state_scheduler(
        STEP(every=3), lambda: LambdaStateScheduler(float, "temperature", create_new=True)
    ): ["LambdaStateScheduler"],
    second_optimizer: ["Adam", "Linear", "StepLR"],
    outputs_of_an_epoch: ["EpochOutputStore"],
    outputs_within_a_handler: ["CountWithOutputs", "CountWithOutputs.store"],
    metrics: ["Average", "RunningAverage"],
    evaluator_run_by_a_handler: ["EarlyStopping"],
    evaluator_and_callable_by_name: ["Count", "EarlyStopping"],
}
ENDS = (2, 3, 7)  # in an epoch, at its end, and in a later one


def trained(attach, *handlers):
    """Returns a trainer with three batches an epoch, and a function that returns its full state."""
    seed()
    model = Net()
    groups = [model.hidden, torch.nn.ModuleList([model.norm, model.out])]
    optimizer = torch.optim.SGD([{"params": g.parameters()} for g in groups], lr=0.1, momentum=0.9)
    trainer = create_supervised_trainer(
        model, optimizer, F.mse_loss, shuffled(3), accelerator=Accelerator(cpu=True)
    )
    probe = attach(trainer, model, optimizer) or (lambda: None)
    for handler in handlers:
        handler.attach(trainer)

    def full_state():
        rates = [group["lr"] for group in optimizer.param_groups]
        return digest_of([model.state_dict(), optimizer.state_dict(), rates, probe()])

    return trainer, full_state


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
@pytest.mark.filterwarnings("ignore:Attribute 'ema_momentum'")
@pytest.mark.parametrize(("attach", "names"), CASES.items(), ids=lambda each: each)
def test_objects_held_by_handlers_are_resumed_bit_by_bit(attach, names, tmp_path):
    expected = []
    for end in ENDS:
        trainer, full_state = trained(attach)
        trainer.run(max_steps=end)
        expected.append(full_state())
    save = functools.partial(SaveCheckpoint, tmp_path, on_signals=())
    trainer, full_state = trained(attach, save())
    trainer.run(max_steps=ENDS[0])
    assert full_state() == expected[0]
    for end, value in zip(ENDS[1:], expected[1:], strict=True):
        trainer, full_state = trained(attach, save(), ResumeCheckpoint(tmp_path))
        trainer.run(max_steps=end)
        part = trainer.resume_report.parts["handlers"]
        assert str(part) == f"exact ({', '.join(names)})"
        assert trainer.resume_report.is_exact
        assert full_state() == value


@pytest.mark.filterwarnings("error")
def test_handlers_that_add_state_attributes_can_be_attached_late(tmp_path):
    def make(**options):
        trainer, model = make_trainer(batches_of(2), **options), torch.nn.Linear(1, 1)
        ExpStateScheduler(1.0, 0.5, "temperature", create_new=True).attach(trainer, AT_EPOCH)
        EMAHandler(model).attach(trainer)
        trainer.add_event_handler(AT_EPOCH, LRScheduler(half(trainer.optimizer), save_history=True))
        SaveCheckpoint(tmp_path, on_signals=()).attach(trainer)
        return trainer

    make().run(max_epochs=2)
    trainer = make(resume_from=tmp_path)
    seen = []
    trainer.add_event_handler(STEP, lambda: seen.append(trainer.state.temperature))
    trainer.run(max_epochs=3)
    assert seen == [0.125, 0.125]
    assert len(trainer.state.param_history["lr"]) == 3


def test_an_output_that_cannot_be_saved_is_named(tmp_path):
    def make():
        trainer = make_trainer(batches_of(2))
        EpochOutputStore(lambda output: object()).attach(trainer)
        SaveCheckpoint(tmp_path).attach(trainer)
        return trainer

    make().run(max_steps=1)
    trainer = make()
    ResumeCheckpoint(tmp_path).attach(trainer)
    assert "EpochOutputStore could not be saved" in str(trainer.resume_report)


def test_names_are_kept_with_a_further_stateless_handler():
    def two_in_a_handler(trainer, model, optimizer):
        a, b = StepLR(optimizer, 2), StepLR(optimizer, 3)
        trainer.add_event_handler(STEP, lambda: (a.step(), b.step()))
        return lambda: (a, b)

    def logged_too(trainer, model, optimizer):
        trainer.add_event_handler(Events.COMPLETED, lambda: None)
        probe = two_in_a_handler(trainer, model, optimizer)
        _, b = probe()
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: b.get_last_lr())
        return probe

    for attach in (two_in_a_handler, logged_too):
        trainer, _ = trained(attach)
        found = handlers_with_state(trainer)
        assert {name: each.step_size for name, each in found.items()} == {
            "StepLR-a": 2,
            "StepLR-b": 3,
        }


def test_objects_saved_elsewhere_are_left_out():
    def attach(trainer, model, optimizer):
        wrapped, loss = torch.nn.Sequential(model.hidden, model.out), torch.nn.MSELoss()
        loader, scaler = trainer.feed.loader, trainer.accelerator.scaler
        held = [wrapped, model.norm, loss, optimizer, trainer.optimizer, loader, scaler, trainer]
        held += [trainer.accelerator, loader.dataset, count]
        trainer.add_event_handler(STEP, lambda: held)

    count = Count()
    trainer, _ = trained(attach)
    assert handlers_with_state(trainer) == {"Count": count}
    assert handlers_with_state(trainer, [count]) == {}


def test_objects_in_a_set_have_no_names():
    def attach(trainer, model, optimizer):
        several, one = {Count(), Count()}, {OtherCount()}
        trainer.add_event_handler(STEP, lambda: (several, one))

    trainer, _ = trained(attach)
    members = HandlerObjects.of(trainer)
    assert [*members.with_state] == ["OtherCount"]
    assert members.unnamed == ["<lambda>.several.{Count}"]


def test_search_runs_no_code_of_the_objects():
    class Touchy:
        @property
        def state_dict(self):
            raise AssertionError

        def __getattr__(self, name):
            raise AssertionError(name)

    trainer, touchy = make_trainer(batches_of(1)), Touchy()
    trainer.add_event_handler(STEP, lambda: touchy)
    assert handlers_with_state(trainer) == {}


class Holding:
    """A handler without a state, with any attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __call__(self):
        pass


def changes(trainer):
    """Returns functions that change held objects, each with the objects found and lost then."""
    first = trainer.model[0]
    shared, own, lacking = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), torch.nn.ReLU()
    shared.weight, shared.bias = first.weight, first.bias
    evaluator = create_supervised_evaluator(trainer.model)
    holder = Holding(
        held=Count(),
        empty=[],
        deep={"a": [{}]},
        number=1,
        bare=Holding(),
        modules=[shared, own, lacking],
        evaluator=evaluator,
    )
    new, handler = OtherCount(), trainer.add_event_handler(STEP, holder)
    own_then = torch.nn.Parameter(torch.zeros(8, 4))

    def give_away():
        own.weight, own.bias = first.weight, first.bias

    def hold_state():
        holder.bare.state_dict, holder.bare.load_state_dict = dict, print

    return {
        "an attribute": (lambda: setattr(holder, "held", new), [new], [holder.held]),
        "an empty list": (lambda: holder.empty.append(new), [new], []),
        "a dict deep within": (lambda: holder.deep["a"][0].update(b=new), [new], []),
        "a number before": (lambda: setattr(holder, "number", new), [new], []),
        "methods": (hold_state, [holder.bare], []),
        "a parameter": (lambda: setattr(shared, "weight", own_then), [shared], []),
        "the first parameter": (lambda: setattr(lacking, "p", own_then), [lacking], []),
        "parameters of the model": (give_away, [], [own]),
        "a handler of an evaluator": (
            lambda: evaluator.add_event_handler(Events.STARTED, new),
            [new],
            [],
        ),
        "a removed handler": (handler.remove, [], [holder.held, own]),
        "another handler": (lambda: trainer.add_event_handler(STEP, new), [new], []),
    }


@pytest.mark.parametrize("change", changes(make_trainer(batches_of(1))))
def test_a_change_of_held_objects_causes_a_new_search(change):
    trainer = make_trainer(batches_of(1))
    act, new, gone = changes(trainer)[change]

    def found():
        return {*map(id, handlers_with_state(trainer).values())}

    before = found()
    assert len(before) == 2  # the count, and the module with its own parameters
    act()
    assert found() == (before | {*map(id, new)}) - {*map(id, gone)}


def test_a_module_that_lost_its_tensors_is_not_the_trainers():
    class Counting(torch.nn.Module):
        number = 0

    trainer, module = make_trainer(batches_of(1)), Counting()
    module.weight = trainer.model[0].weight
    trainer.add_event_handler(STEP, Holding(module=module))
    assert not any(each is module for _, each in HandlerObjects.of(trainer).stateless)
    del module.weight
    assert any(each is module for _, each in HandlerObjects.of(trainer).stateless)


def test_another_search_is_made_only_after_a_change():
    trainer = make_trainer(batches_of(1))
    held = [Holding(count=Count(), texts=["a"], number=1) for _ in range(100)]
    holder = Holding(held=held)
    trainer.add_event_handler(STEP, holder)
    first, calls = HandlerObjects.of(trainer), []
    held[0].number, held[0].texts[0] = 2, "b"  # what is stored itself is read at each save
    sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
    try:
        again = HandlerObjects.of(trainer)
    finally:
        sys.setprofile(None)
    assert again == first
    # A search takes some for each of the hundred.
    assert len([each for each in calls if "object_graph" in each.f_code.co_filename]) < 100
    held[99].count = OtherCount()
    assert OtherCount in map(type, handlers_with_state(trainer).values())


def test_states_equal_by_chance_are_distinguished_later():
    """Both count from 0, so containment of states has to be decided at each save."""
    owner = Count()
    owner.part = OtherCount()
    trainer = make_trainer(batches_of(1))
    trainer.add_event_handler(STEP, Holding(owner=owner))
    assert [*map(type, handlers_with_state(trainer).values())] == [Count]
    owner.part.number = 5
    assert {*map(type, handlers_with_state(trainer).values())} == {Count, OtherCount}


def adversarial(directory, resumes):
    """Returns a trainer of a GAN, whose discriminator is trained by ``batch_processor``."""
    seed(1)
    generator, discriminator = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.01)
    schedule = StepLR(optimizer, 3)

    def step(model, batch):
        optimizer.zero_grad()
        fake = model(batch[0])
        (discriminator(batch[0]).mean() - discriminator(fake.detach()).mean()).backward()
        optimizer.step()
        schedule.step()
        return None, -discriminator(fake).mean()

    trainer = create_supervised_trainer(
        generator,
        torch.optim.Adam(generator.parameters()),
        data=shuffled(10),
        batch_processor=step,
        checkpoint=SaveCheckpoint(directory, on_signals=()),
        resume_from=directory if resumes else None,
    )
    return trainer, discriminator, optimizer, schedule


def test_objects_of_batch_processor_are_resumed_bit_by_bit(tmp_path):
    whole, *expected = adversarial(tmp_path / "whole", resumes=False)
    whole.run(max_steps=12)
    adversarial(tmp_path / "stopped", resumes=False)[0].run(max_steps=7)
    trainer, *found = adversarial(tmp_path / "stopped", resumes=True)
    assert trainer.resume_report.is_exact
    assert trainer.resume_report.parts["handlers"].names == ("Adam", "Linear", "StepLR")
    trainer.run(max_steps=12)
    assert digest_of(trainer.model.state_dict()) == digest_of(whole.model.state_dict())
    for one, other in zip(found, expected, strict=True):
        assert digest_of(one.state_dict()) == digest_of(other.state_dict())


class Weighted:
    """A loss as a plain object, which weights later steps more."""

    def __init__(self):
        self.weight = 1.0

    def __call__(self, outputs, y):
        self.weight += 0.5
        return self.weight * F.mse_loss(outputs, y)


class SavedWeighted(Weighted):
    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state_dict):
        self.weight = state_dict["weight"]


def counting_outputs():
    seen = []

    def transform(x, y, y_pred, loss):
        seen.append(1)
        return loss

    return transform


FUNCTIONS = {
    "a loss with a state": (lambda: {"loss_fn": SavedWeighted()}, None),
    "a method of one": (lambda: {"loss_fn": SavedWeighted().__call__}, None),
    "a loss without": (lambda: {"loss_fn": Weighted()}, "Weighted.weight"),
    "a partial of one": (
        lambda: {"loss_fn": functools.partial(Weighted())},
        "partial.func.weight",
    ),
    "output_transform": (lambda: {"output_transform": counting_outputs()}, "transform.seen"),
}


@pytest.mark.parametrize(("options", "named"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_of_a_step_are_resumed_or_named(options, named, tmp_path):
    def make(directory, resumes=False):
        seed(1)
        model = torch.nn.Linear(4, 2)
        return create_supervised_trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            data=shuffled(4),
            checkpoint=SaveCheckpoint(directory, on_signals=()),
            resume_from=directory if resumes else None,
            **{"loss_fn": F.mse_loss, **options()},
        )

    whole = make(tmp_path / "whole")
    whole.run(max_steps=6)
    make(tmp_path / "stopped").run(max_steps=3)
    trainer = make(tmp_path / "stopped", resumes=True)
    if named:
        assert f"{named} changed" in trainer.resume_report.parts["handlers"].reason
        return
    assert trainer.resume_report.is_exact
    trainer.run(max_steps=6)
    assert torch.equal(trainer.model.weight, whole.model.weight)
