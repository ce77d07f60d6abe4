import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedType
from ignite.engine import Events
from ignite.handlers import Timer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from ignite_hooks import GradientClipping
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import assert_resumable
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.optim.optimizer_step import OptimizerStep
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import seed
from tests.reference import weights
from tests.versions import needs


def make_trainer(data=None, **options):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"loss_fn": F.mse_loss, "accelerator": Accelerator(cpu=True), **options}
    return create_supervised_trainer(model, optimizer, data=data, **options)


def no_metrics():
    return {}


class Noting:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def attach(self, engine):
        engine.add_event_handler(
            TrainEvents.OPTIMIZER_STEP_STARTED,
            lambda engine: self.log.append((self.name, "grad_norm" in engine.state.metrics)),
        )


@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_handlers_come_in_order_and_clipping_after_them(kind):
    log = []
    handlers = kind([Noting(log, "a"), Noting(log, "b")])
    trainer = make_trainer(
        DataLoader(Noisy(4), 2), grad_clip=GradientClipping(max_norm=1.0), handlers=handlers
    )
    trainer.run(max_steps=1)
    assert log == [("a", False), ("b", False)]
    assert "grad_norm" in trainer.state.metrics


def test_handlers_of_this_package_are_attached():
    clip, validation = GradientClipping(max_norm=1.0), Validation(no_metrics, every_epochs=1)
    trainer = make_trainer(grad_clip=clip, validation=validation, handlers=[Timer()])
    assert attached_handlers(trainer, GradientClipping) == [clip]
    assert attached_handlers(trainer, Validation) == [validation]
    assert len(attached_handlers(trainer, OptimizerStep)) == 1


def test_the_step_comes_before_every_handler_of_the_iteration():
    seen = []
    timer = Timer()
    trainer = make_trainer([(torch.ones(2, 4), torch.ones(2, 2))], handlers=[timer])
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.optimizer_step)
    )
    trainer.run()
    assert seen == [1]


@needs("accelerate>=1.14")
def test_prepared_objects_are_used_unchanged():
    accelerator = Accelerator(cpu=True)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = StepLR(optimizer, 1)
    loader = DataLoader(Noisy(4), 2)
    prepared = accelerator.prepare(model, optimizer, loader, scheduler)
    trainer = create_supervised_trainer(
        prepared[0],
        prepared[1],
        F.mse_loss,
        prepared[2],
        accelerator=accelerator,
        lr_scheduler=prepared[3],
    )
    trainer.run()
    assert trainer.model is prepared[0]
    assert trainer.optimizer is prepared[1]
    assert trainer.state.dataloader is prepared[2]
    assert trainer.lr_scheduler is prepared[3]
    for known in ("_models", "_optimizers", "_dataloaders", "_schedulers"):
        assert len(getattr(accelerator, known)) == 1


def test_loader_given_to_factory_and_run_is_prepared_once():
    loader = DataLoader(Noisy(4), 2)
    trainer = make_trainer(loader)
    for _ in range(2):
        trainer.run(loader)
    trainer.run(trainer.state.dataloader)
    assert len(trainer.accelerator._dataloaders) == 1
    assert trainer.feed.position.data_pass == 3


def test_scheduler_callable_receives_the_trainers_optimizer():
    given = []
    trainer = make_trainer(
        lr_scheduler=lambda optimizer: given.append(optimizer) or StepLR(optimizer, 1)
    )
    assert given == [trainer.optimizer]
    assert trainer.lr_scheduler.optimizer is trainer.optimizer


# Arguments that are checked before anything is prepared


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)


def check(model=None, optimizer=None, loss_fn=F.mse_loss, **options):
    model = make_model() if model is None else model
    optimizer = sgd(model) if optimizer is None else optimizer
    create_supervised_trainer(
        model, optimizer, loss_fn, accelerator=Accelerator(cpu=True), **options
    )


def test_valid_arguments_pass_the_check():
    check()
    check(loss_fn=torch.nn.MSELoss())
    check(loss_fn=None, batch_processor=lambda model, batch: None)
    check(handlers=[GradientClipping(max_norm=1.0)])


def test_an_optimizer_of_a_part_of_the_model_passes():
    model = make_model()
    check(model, sgd(model[0]))


def test_an_optimizer_of_a_loss_module_too_passes():
    model, loss_fn = make_model(), torch.nn.BCEWithLogitsLoss()
    loss_fn.scale = torch.nn.Parameter(torch.ones(1))
    check(model, sgd(model, loss_fn), loss_fn)


def test_parameters_of_a_loss_function_are_refused():
    model, other = make_model(), make_model()
    with pytest.raises(
        ValueError, match="`optimizer` must hold only parameters of `model`"
    ) as raised:
        check(model, sgd(model, other), lambda y_pred, y: F.mse_loss(other(y_pred), y))
    assert "4 of 8 parameters from elsewhere" in str(raised.value)


def test_a_model_with_one_trainable_parameter_passes():
    model = make_model().requires_grad_(False)
    model[0].bias.requires_grad_(True)
    check(model)


def test_a_trainable_loss_does_not_make_a_frozen_model_trainable():
    loss_fn = torch.nn.BCEWithLogitsLoss()
    loss_fn.scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="`model` must have trainable parameters"):
        check(make_model().requires_grad_(False), sgd(loss_fn), loss_fn)


def test_a_prepared_optimizer_passes():
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model := make_model(), sgd(model))
    check(model, optimizer)


def test_parameter_replaced_after_optimizer_creation_is_noticed():
    model = make_model()
    optimizer = sgd(model)
    model[3] = torch.nn.Linear(8, 2)
    with pytest.raises(ValueError, match=r"2 of 4 parameters from elsewhere"):
        check(model, optimizer)


def test_a_handler_without_attach_is_named():
    with pytest.raises(TypeError, match=r"handlers\[1\] is a function") as raised:
        check(handlers=[GradientClipping(max_norm=1.0), test_valid_arguments_pass_the_check])
    assert "trainer.add_event_handler(event, function)" in str(raised.value)


def test_nothing_is_prepared_when_an_argument_is_wrong():
    accelerator, model = Accelerator(cpu=True), make_model()
    with pytest.raises(ValueError, match="`loss_fn`"):
        create_supervised_trainer(
            model, sgd(model), data=DataLoader(Noisy(), 2), accelerator=accelerator
        )
    assert accelerator._models == accelerator._optimizers == accelerator._dataloaders == []


@pytest.mark.parametrize("name", ["prepare_batch", "model_fn", "model_transform"])
def test_functions_unused_by_a_batch_processor_are_refused(name):
    check(**{name: lambda *given: given})
    with pytest.raises(ValueError, match=f"`{name}` must not be given with `batch_processor`"):
        check(loss_fn=None, batch_processor=lambda model, batch: None, **{name: print})


def test_the_first_wrong_argument_is_named():
    with pytest.raises(TypeError, match="`grad_clip` must be a GradientClipping"):
        check(grad_clip=1.0, handlers=5)


# Functions that are modules


class Head(torch.nn.Module):
    """A module for each of the functions: multiplies by a parameter, with dropout."""

    def __init__(self, model=None):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((1,), 1.5))
        self.dropout = torch.nn.Dropout(0.2)
        self.model = model

    def forward(self, *given):
        return self.dropout(self.scale * given[0])


class LossHead(Head):
    def forward(self, y_pred, y):
        return F.mse_loss(super().forward(y_pred), y)


class ProcessorHead(Head):
    def forward(self, model, batch):
        outputs = super().forward(model(batch[0]))
        return outputs, F.mse_loss(outputs, batch[1])


class OnlyModel(torch.nn.Module):
    """Has the model for its only part."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, model, batch):
        return self.model(batch[0])


class InputHead(Head):
    def forward(self, batch, device, non_blocking):
        return super().forward(batch[0]), batch[1]


class ModelHead(Head):
    def forward(self, model, x):
        return super().forward(model(x))


HEADS = {
    "loss_fn": LossHead,
    "batch_processor": ProcessorHead,
    "prepare_batch": InputHead,
    "model_fn": ModelHead,
    "model_transform": Head,
}


def trainer_with(name, head, data=None, model=None, **options):
    model = make_model() if model is None else model
    if name == "batch_processor":
        options["loss_fn"] = None
    given = {"loss_fn": F.mse_loss, "accelerator": Accelerator(cpu=True), **options}
    given.setdefault(name, head)
    if name == "loss_fn":
        given["loss_fn"] = head
    return create_supervised_trainer(model, sgd(model, head), data=data, **given)


@pytest.mark.parametrize("name", HEADS)
def test_a_function_with_parameters_is_trained_and_resumed(name):
    made = []

    def make():
        seed()
        model, head = make_model(), HEADS[name]()
        data = DataLoader(Noisy(10), 2, shuffle=True)
        made.append(head)
        return trainer_with(
            name,
            head,
            data,
            model,
            accelerator=Accelerator(cpu=True, gradient_accumulation_steps=2),
        )

    assert list(make().modules) == ["model", name]
    assert_resumable(make, max_steps=4, stops=[1, 3])
    assert len({head.scale.item() for head in made[1:]}) == 1
    assert made[1].scale.item() != 1.5


def test_a_function_is_trained_as_by_a_plain_loop():
    model, head = make_model(), ProcessorHead()
    optimizer = sgd(model, head)
    data = batches_of(3)
    seed()
    for batch in data:
        head(model, batch)[1].backward()
        optimizer.step()
        optimizer.zero_grad()
    other = ProcessorHead()
    trainer = trainer_with("batch_processor", other, data)
    seed()
    trainer.run()
    assert torch.equal(weights(trainer.model), weights(model))
    assert torch.equal(other.scale, head.scale)


def test_the_method_of_a_module_counts_as_the_module():
    head = ProcessorHead()
    trainer = trainer_with("batch_processor", head, batch_processor=head.forward)
    assert list(trainer.modules.values())[1] is head


@pytest.mark.parametrize("is_own", [False, True])
def test_a_function_holding_the_model_counts_if_it_has_more(is_own):
    model = make_model()
    head = ProcessorHead(model) if is_own else OnlyModel(model)
    function = head if is_own else lambda *given: None
    options = {"batch_processor": function if is_own else head}
    trainer = create_supervised_trainer(
        model, sgd(*([head] if is_own else [model])), accelerator=Accelerator(cpu=True), **options
    )
    assert list(trainer.modules) == (["model", "batch_processor"] if is_own else ["model"])


def test_a_frozen_function_needs_no_optimizer():
    model, head = make_model(), InputHead().requires_grad_(False)
    trainer = create_supervised_trainer(
        model, sgd(model), F.mse_loss, prepare_batch=head, accelerator=Accelerator(cpu=True)
    )
    assert trainer.modules["prepare_batch"] is head


def test_a_function_on_the_cpu_is_moved_to_the_device(monkeypatch):
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    head = ModelHead()
    trainer_with("model_fn", head)
    assert head.scale.device.type == "meta"


@pytest.mark.parametrize(("start", "placement"), [("meta", True), ("cpu", False)])
def test_a_function_that_the_user_moved_stays_there(start, placement, monkeypatch):
    accelerator = Accelerator(cpu=True, device_placement=placement)
    monkeypatch.setattr(Accelerator, "device", torch.device("cpu" if placement else "meta"))
    head = ModelHead().to(start)
    trainer_with("model_fn", head, accelerator=accelerator)
    assert head.scale.device.type == start


@pytest.mark.parametrize("name", HEADS)
def test_a_sharded_model_refuses_separate_parameters(name, monkeypatch):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    message = rf"`{name}` must not be trained with FSDP.*a submodule of `model`"
    with pytest.raises(ValueError, match=message):
        trainer_with(name, HEADS[name](), accelerator=accelerator)
