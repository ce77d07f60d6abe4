"""Tests that changed attributes in no state_dict are reported, and no others."""

from collections import deque
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events
from torch.nn.utils import parametrizations
from torch.nn.utils import prune
from torch.nn.utils import spectral_norm

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.unsaved_attributes import unsaved_attributes
from tests.reference import batches_of
from tests.reference import shuffled


class Net(torch.nn.Module):
    """A layer within another module that calls ``action`` at each forward pass."""

    def __init__(self, make=None, action=None):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.action = action
        if make is not None:
            make(self)

    def forward(self, x):
        if self.action is not None:
            self.action(self)
        return self.layer(x)


class Outer(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class Bank:
    def __init__(self):
        self.rows = []


class Saving(Net):
    """A module that saves the counter itself."""

    def __init__(self):
        super().__init__(lambda m: setattr(m, "number", 0), adding)
        self.bank = Bank()

    def get_extra_state(self):
        return {"number": self.number}

    def set_extra_state(self, state):
        self.number = state["number"]

    def forward(self, x):
        self.bank.rows.append(1)
        return super().forward(x)


class Recurrent(torch.nn.LSTM):
    def forward(self, x):
        return super().forward(x[None])[0][0]


def adding(module):
    module.number += 1


def setting(name, make):
    return lambda module: setattr(module, name, make())


def trainer_of(model, loss_fn=F.mse_loss, optimizer=None, **options):
    return create_supervised_trainer(
        model,
        optimizer or torch.optim.SGD(model.parameters(), lr=0.1),
        None if "batch_processor" in options else loss_fn,
        batches_of(3),
        **options,
    )


def after_run(trainer, folder):
    """Returns the message after two steps."""
    SaveCheckpoint(folder, every_steps=9, at_end=False, on_signals=()).attach(trainer)
    trainer.run(max_steps=2)
    return unsaved_attributes(trainer)


def buffer(module):
    module.register_buffer("memory", torch.zeros(3), persistent=False)


def changing_buffer_of_a_library():
    layer = torch.nn.Linear(4, 2)
    layer.register_buffer("memory", torch.zeros(3), persistent=False)
    layer.register_forward_pre_hook(lambda module, _: setattr(module, "memory", torch.ones(3)))
    return torch.nn.Sequential(layer)


def hooked(action):
    net = Net()
    net.layer.register_forward_hook(lambda *_: action())
    return net


NAMED = {
    "number": (setting("number", int), adding),
    "new": (None, setting("new", lambda: 1)),
    "memory": (buffer, lambda m: m.memory.add_(1)),
    "mask": (setting("mask", lambda: None), setting("mask", lambda: torch.ones(2))),
    "tensor": (setting("tensor", lambda: torch.zeros(2)), lambda m: m.tensor.add_(1)),
    "copy": (
        setting("copy", lambda: torch.zeros(2, 4)),
        lambda m: m.copy.copy_(m.layer.weight.detach()),
    ),
    "tensors": (setting("tensors", list), lambda m: m.tensors.append(torch.ones(2))),
    "counts": (setting("counts", dict), lambda m: m.counts.update(a=len(m.counts))),
    "queue": (setting("queue", lambda: deque(maxlen=3)), lambda m: m.queue.append(1.0)),
    "place": (setting("place", count), lambda m: next(m.place)),
    "bank.rows": (setting("bank", Bank), lambda m: m.bank.rows.append(1)),
    "batches": (setting("batches", lambda: iter(shuffled(3))), lambda m: next(m.batches)),
    "mode": (setting("mode", lambda: "warm-up"), setting("mode", lambda: "train")),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_change_of_a_module_is_reported(name, tmp_path):
    message = after_run(trainer_of(Outer(Net(*NAMED[name]))), tmp_path)
    assert f"changed: model.net.{name};" in message["model"]


def test_a_buffer_of_a_library_module_is_reported(tmp_path):
    message = after_run(trainer_of(changing_buffer_of_a_library()), tmp_path)
    assert "changed: model.0.memory;" in message["model"]


def test_values_that_a_module_hook_collects_are_reported(tmp_path):
    seen = []
    message = after_run(trainer_of(hooked(lambda: seen.append(1))), tmp_path)
    assert "changed: model.layer._forward_hooks.0.action.seen;" in message["model"]


def test_a_class_counter_is_reported(tmp_path):
    class Counted(Net):
        steps = 0

        def forward(self, x):
            Counted.steps += 1
            return super().forward(x)

    message = after_run(trainer_of(Counted()), tmp_path)
    assert "changed: model.Counted.steps;" in message["model"]


class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.number = 0

    def forward(self, outputs, y):
        self.number += 1
        return F.mse_loss(outputs, y)


def test_a_counter_of_a_stateless_loss_module_is_reported(tmp_path):
    assert "loss_fn.number" in after_run(trainer_of(Net(), Loss()), tmp_path)["model"]


def test_a_counter_of_batch_processors_module_is_reported(tmp_path):
    loss = Loss()
    loss.scale = torch.nn.Parameter(torch.ones(1))  # it has a state, too

    def process(model, batch):
        outputs = model(batch[0])
        return outputs, loss(outputs, batch[1])

    message = after_run(trainer_of(Net(), batch_processor=process), tmp_path)
    assert "loss.number" in message["model"]


class Holder:
    """A handler with a module that it calls, and changes, at each step."""

    def __init__(self, module):
        self.module = module

    def __call__(self, engine):
        with torch.no_grad():
            self.module(torch.zeros(2, 4))
            for parameter in self.module.parameters():
                parameter.add_(1)


class CountingHolder(Holder):
    calls = 0

    def __call__(self, engine):
        super().__call__(engine)
        self.calls += 1


def reason_of_handlers(module, folder, kind=Holder):
    trainer = trainer_of(Net())
    trainer.add_event_handler(Events.ITERATION_COMPLETED, kind(module))
    SaveCheckpoint(folder, every_steps=1, on_signals=()).attach(trainer)
    trainer.run(max_steps=2)
    other = trainer_of(Net())
    other.add_event_handler(Events.ITERATION_COMPLETED, kind(module))
    ResumeCheckpoint(folder).attach(other)
    assert other.resume_report.parts["model"].level == "exact"
    return other.resume_report.parts["handlers"].reason


def test_a_counter_of_a_handlers_module_is_reported(tmp_path):
    reason = reason_of_handlers(Outer(Net(setting("number", int), adding)), tmp_path)
    assert reason.startswith("in no state_dict(), and changed: Holder.module.net.number; register")


def test_a_handler_and_its_module_are_both_reported(tmp_path):
    module = Net(setting("number", int), adding)
    reason = reason_of_handlers(module, tmp_path, CountingHolder)
    assert reason.startswith("CountingHolder.calls changed")
    assert "in no state_dict(), and changed: CountingHolder.module.number;" in reason


def test_a_module_without_tensors_is_reported_once(tmp_path):
    net = Net(setting("number", int), adding)
    net.layer = torch.nn.Identity()
    reason = reason_of_handlers(net, tmp_path)
    assert reason.startswith("Holder.module.number changed and cannot be saved")
    assert reason.count("number") == 1


def test_saved_attributes_of_a_handlers_module_are_not_reported(tmp_path):
    assert reason_of_handlers(Recurrent(4, 2), tmp_path) == ""


def test_a_module_that_is_added_later_is_compared(tmp_path):
    model = Outer(Net())
    trainer = trainer_of(model)
    SaveCheckpoint(tmp_path, every_steps=1, on_signals=()).attach(trainer)
    trainer.run(max_steps=1)
    model.net = Net(setting("number", int), adding)
    trainer.run(max_steps=2)
    trainer.run(max_steps=3)
    assert "model.net.number" in unsaved_attributes(trainer)["model"]


class Lookahead(torch.optim.SGD):
    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.number = 0

    def step(self, closure=None):
        self.number += 1
        return super().step(closure)


class SavedLookahead(Lookahead):
    def state_dict(self):
        return {**super().state_dict(), "number": self.number}


@pytest.mark.parametrize(
    ("kind", "message"), [(Lookahead, "optimizer.number"), (SavedLookahead, None)]
)
def test_an_optimizer_counter_is_reported_unless_saved(kind, message, tmp_path):
    model = Net()
    found = after_run(trainer_of(model, optimizer=kind(model.parameters())), tmp_path)
    assert message in found["optimizer"] if message else found == {}


def with_weight(kind=torch.nn.Module):
    """A user's module with a parameter that torch's functions replace by an attribute."""

    class Own(Net):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(4, 4))

        def forward(self, x):
            return super().forward(x @ self.weight)

    return Own()


SILENT = {
    "layers": lambda: torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2)),
    "a module of a user": Net,
    "a compiled module": lambda: torch.compile(Net(), backend="eager"),
    "a counter in get_extra_state": Saving,
    "spectral_norm": lambda: spectral_norm(with_weight()),
    "a parametrization": lambda: parametrizations.weight_norm(with_weight()),
    "pruned weights": lambda: prune.l1_unstructured(with_weight(), "weight", 0.5),
    "weights of a recurrent layer": lambda: Recurrent(4, 2),
    "a tied weight": lambda: Net(lambda m: setattr(m, "tied", [m.layer.weight.data])),
    "a mask that stays": lambda: Net(buffer),
    "a parameter that is frozen": lambda: Net(None, lambda m: m.layer.bias.requires_grad_(False)),
    "an inner module in eval mode": lambda: Net(None, lambda m: m.layer.eval()),
}


@pytest.mark.parametrize("make", SILENT.values(), ids=SILENT)
def test_no_change_is_reported_for(make, tmp_path):
    assert after_run(trainer_of(make()), tmp_path) == {}


def test_the_report_names_the_attribute_and_the_remedy(tmp_path):
    def make():
        net = Net(setting("number", int), adding)
        return trainer_of(net, checkpoint=SaveCheckpoint(tmp_path, on_signals=()))

    make().run()
    trainer = make()
    ResumeCheckpoint(tmp_path).attach(trainer)
    part = trainer.resume_report.parts["model"]
    assert part.level == "unknown"
    assert part.reason == (
        "in no state_dict(), and changed: model.number; register tensors as buffers, and return "
        "other values from get_extra_state(); an attribute that each forward() sets before reading "
        "it need not be saved"
    )
