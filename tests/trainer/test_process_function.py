from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from ignite.engine import create_supervised_trainer as create_ignite_trainer
from ignite.handlers import Timer
from ignite.metrics import RunningAverage
from torch.utils.data import DataLoader

from ignite_hooks import GradientClipping
from ignite_hooks import TrainEvents
from ignite_hooks import create_supervised_trainer
from ignite_hooks.data.batch import apply_model
from ignite_hooks.data.batch import default_prepare_batch
from ignite_hooks.data.batch import identity
from ignite_hooks.trainer.process_function import make_forward
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import weights
from tests.versions import needs

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


def trained_by_ignite(data, loss_fn=F.mse_loss, **functions):
    model = make_model(0.0)
    optimizer = sgd(model, momentum=0.9)
    create_ignite_trainer(model, optimizer, loss_fn, **functions).run(data)
    return weights(model)


def forward_and_loss(model, batch):
    x, y = batch
    outputs = model(x)
    return outputs, F.mse_loss(outputs, y)


@pytest.mark.parametrize("kind", [tuple, list, lambda pair: Pair(*pair)])
def test_a_batch_of_two_is_the_input_and_the_target(kind):
    trainer = make_trainer([kind(pair) for pair in batches_of(3)])
    trainer.run()
    assert torch.equal(weights(trainer.model), trained_by_ignite(batches_of(3)))


@pytest.mark.parametrize(
    ("make_batch", "prepare"),
    [
        (lambda x, y: {"x": x, "y": y}, lambda batch: (batch["x"], batch["y"])),
        (lambda x, y: (x, "label", y), lambda batch: (batch[0], batch[2])),
        (lambda x, y: Pair(x, y), lambda batch: (batch.x, batch.y)),
        (lambda x, y: Batch(x, y), lambda batch: (batch.x, batch.y)),
        (
            lambda x, y: torch.cat([x, y], dim=1),
            lambda batch: (batch[:, :4].contiguous(), batch[:, 4:].contiguous()),
        ),
    ],
    ids=["dict", "triple", "namedtuple", "dataclass", "tensor"],
)
@pytest.mark.parametrize("way", ["prepare_batch", "batch_processor"])
def test_batches_of_any_structure_work(make_batch, prepare, way):
    data = [make_batch(x, y) for x, y in batches_of(3)]
    if way == "prepare_batch":
        options = {"prepare_batch": lambda batch, device, non_blocking: prepare(batch)}
    else:
        options = {"batch_processor": lambda model, batch: forward_and_loss(model, prepare(batch))}
    trainer = make_trainer(data, **options)
    trainer.run()
    assert torch.equal(weights(trainer.model), trained_by_ignite(batches_of(3)))


@pytest.mark.parametrize(
    "collate", [dict, tuple, lambda pairs: Pair(*(value for _, value in pairs))]
)
def test_batches_of_a_prepared_loader_keep_their_form(collate):
    def collated(samples):
        xs, ys = zip(*samples, strict=True)
        pairs = [("x", torch.stack(xs)), ("y", torch.stack(ys))]
        return tuple(v for _, v in pairs) if collate is tuple else collate(pairs)

    seen = []

    def process(model, batch):
        seen.append(batch)
        return forward_and_loss(model, batch.values() if isinstance(batch, dict) else batch)

    loader = DataLoader(Noisy(noise=0.0), 4, collate_fn=collated)
    trainer = make_trainer(loader, batch_processor=process)
    trainer.run()
    assert {type(batch) for batch in seen} == {type(collated([Noisy()[0]]))}


@pytest.mark.parametrize(
    "functions",
    [
        {"prepare_batch": lambda batch, device, non_blocking: (batch[0] + 1, batch[1])},
        {"model_fn": lambda model, x: model(2 * x)},
        {"model_transform": lambda output: output.tanh()},
        {
            "prepare_batch": lambda batch, device, non_blocking: (batch[0] + 1, batch[1]),
            "model_fn": lambda model, x: {"logits": model(x)},
            "model_transform": lambda output: output["logits"],
        },
    ],
)
def test_functions_mean_what_they_mean_in_ignite(functions):
    trainer = make_trainer(batches_of(3), **functions)
    trainer.run()
    assert torch.equal(weights(trainer.model), trained_by_ignite(batches_of(3), **functions))


def test_output_transform_makes_the_output_as_in_ignite():
    seen = []

    def transform(x, y, y_pred, loss):
        seen.append((x, y, y_pred, loss))
        return {"y_pred": y_pred, "loss": loss}

    data = batches_of(2)
    trainer = make_trainer(data, output_transform=transform)
    state = trainer.run()
    (x, y, y_pred, loss) = seen[-1]
    assert (x is data[-1][0], y is data[-1][1]) == (True, True)
    assert state.output == {"y_pred": y_pred, "loss": loss}
    assert torch.equal(loss, F.mse_loss(y_pred, y))
    assert loss.requires_grad


def test_output_transform_of_a_batch_processor_gets_no_target():
    data = batches_of(1)
    trainer = make_trainer(
        data,
        batch_processor=forward_and_loss,
        output_transform=lambda x, y, y_pred, loss: (x, y, y_pred, loss),
    )
    batch, target, outputs, loss = trainer.run().output
    assert batch is data[0]
    assert target is None
    assert torch.equal(loss, F.mse_loss(outputs, data[0][1]))


def test_a_trainer_can_be_made_and_run_in_one_expression():
    state = make_trainer(batches_of(2)).run()
    assert state.optimizer_step == 2


def test_the_default_output_is_the_detached_loss():
    trainer = make_trainer(batches_of(2))
    state = trainer.run()
    assert isinstance(state.output, torch.Tensor)
    assert not state.output.requires_grad
    assert state.output.shape == ()


def test_the_output_is_what_ignites_metrics_and_handlers_need():
    trainer = make_trainer(batches_of(3))
    losses = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output.item())
    )
    RunningAverage(alpha=0.5, output_transform=lambda loss: loss).attach(trainer, "loss")
    metrics = trainer.run().metrics
    expected = losses[0]
    for loss in losses[1:]:
        expected = 0.5 * expected + 0.5 * loss
    assert float(metrics["loss"]) == pytest.approx(expected)


def test_state_holds_outputs_and_loss_as_long_as_the_batch():
    trainer = make_trainer(batches_of(2))
    seen = []

    def note(engine):
        state = engine.state
        seen.append((state.model_outputs, state.loss))

    for event in (
        Events.ITERATION_STARTED,
        TrainEvents.MODEL_FORWARD_COMPLETED,
        TrainEvents.MODEL_BACKWARD_COMPLETED,
        Events.ITERATION_COMPLETED,
    ):
        trainer.add_event_handler(event, note)
    trainer.run()
    for before, after_forward, after_backward, at_end in (seen[:4], seen[4:]):
        assert before == (None, None)
        outputs, loss = after_forward
        assert outputs.shape == (2, 2)
        assert loss.requires_grad
        assert after_backward[0] is at_end[0] is outputs
        assert not after_backward[1].requires_grad
        assert torch.equal(after_backward[1], loss)
        assert at_end[1] is after_backward[1]


def test_model_outputs_are_those_after_the_model_transform():
    trainer = make_trainer(batches_of(1), model_transform=lambda output: output.tanh())
    assert trainer.run().model_outputs.abs().max() < 1


def test_model_outputs_of_a_batch_processor_can_be_anything():
    trainer = make_trainer(
        batches_of(1), batch_processor=lambda model, b: ("anything", forward_and_loss(model, b)[1])
    )
    assert trainer.run().model_outputs == "anything"


def test_a_loss_of_one_element_is_a_scalar():
    trainer = make_trainer(batches_of(3), loss_fn=lambda a, b: F.mse_loss(a, b).reshape(1, 1))
    trainer.run()
    assert torch.equal(weights(trainer.model), trained_by_ignite(batches_of(3)))


class LearnedScale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(2))

    def forward(self, y_pred, y):
        return F.mse_loss(self.scale * y_pred, y)


def test_parameters_of_a_loss_module_are_trained():
    def train(make):
        model, loss_fn = make_model(0.0), LearnedScale()
        optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.1)
        trainer = make(model, optimizer, loss_fn)
        trainer.run(batches_of(3))
        return torch.cat([weights(model), weights(loss_fn)])

    ours = train(lambda *args: create_supervised_trainer(*args, accelerator=Accelerator(cpu=True)))
    assert torch.equal(ours, train(create_ignite_trainer))


def test_gradients_of_a_loss_module_are_clipped_and_cleared():
    model, loss_fn = make_model(0.0), LearnedScale()
    optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.1)
    trainer = create_supervised_trainer(
        model,
        optimizer,
        loss_fn,
        batches_of(1),
        accelerator=Accelerator(cpu=True),
        grad_clip=GradientClipping(max_norm=0.01),
    )
    norms = []
    parameters = [*model.parameters(), *loss_fn.parameters()]
    trainer.add_event_handler(
        TrainEvents.OPTIMIZER_STEP_COMPLETED,
        lambda engine: norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters])),
    )
    trainer.run()
    assert norms[0] == pytest.approx(0.01, rel=1e-3)  # torch adds 1e-6 to the norm
    assert all(p.grad is None for p in parameters)


@needs("accelerate>=1.14")
def test_objects_prepared_before_are_used_unchanged():
    accelerator = Accelerator(cpu=True)
    model = make_model(0.0)
    model, optimizer, loader = accelerator.prepare(
        model, sgd(model, momentum=0.9), DataLoader(Noisy(noise=0.0), 4)
    )
    trainer = create_supervised_trainer(
        model, optimizer, F.mse_loss, loader, accelerator=accelerator
    )
    trainer.run(max_epochs=2)
    trainer.run(loader)
    assert trainer.model is model
    assert trainer.optimizer is optimizer
    assert trainer.state.dataloader is loader
    assert accelerator._models == [model]
    assert accelerator._optimizers == [optimizer]
    assert accelerator._dataloaders == [loader]


@needs("accelerate>=1.14")
def test_a_prepared_model_with_a_raw_optimizer_and_loader_works():
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(make_model(0.0))
    trainer = create_supervised_trainer(
        model, sgd(model, momentum=0.9), F.mse_loss, batches_of(3), accelerator=accelerator
    )
    trainer.run()
    assert accelerator._models == [model]
    assert torch.equal(weights(model), trained_by_ignite(batches_of(3)))


def test_raw_objects_are_prepared_once():
    model = make_model(0.0)
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(Noisy(noise=0.0), 4)
    trainer = create_supervised_trainer(
        model, sgd(model), F.mse_loss, loader, accelerator=accelerator
    )
    for data in (None, loader, trainer.state.dataloader):
        trainer.run(data)
    assert accelerator._models == [model]
    assert accelerator._optimizers == [trainer.optimizer]
    assert accelerator._dataloaders == [trainer.state.dataloader]


def test_handlers_are_anything_with_attach():
    class Noting:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, lambda: seen.append(self))

    seen = []
    noting, timer = Noting(), Timer()
    trainer = make_trainer(batches_of(2), handlers=(each for each in (noting, timer)))
    trainer.run()
    assert seen == [noting]
    assert timer.value() > 0


def test_clipping_comes_after_all_other_handlers():
    class Noting:
        def attach(self, engine):
            engine.add_event_handler(
                TrainEvents.OPTIMIZER_STEP_STARTED,
                lambda engine: seen.append("grad_norm" in engine.state.metrics),
            )

    seen = []
    trainer = make_trainer(
        batches_of(1), handlers=[Noting()], grad_clip=GradientClipping(max_norm=1.0)
    )
    trainer.run()
    assert seen == [False]
    assert "grad_norm" in trainer.state.metrics


def test_a_clipper_among_the_handlers_works_as_grad_clip():
    results = []
    for name in ("handlers", "grad_clip"):
        clip = GradientClipping(max_norm=0.1)
        trainer = make_trainer(batches_of(3), **{name: [clip] if name == "handlers" else clip})
        trainer.run()
        results.append(weights(trainer.model))
    assert torch.equal(*results)


def modes_while_training(model, runs=1):
    seen = []
    trainer = create_supervised_trainer(
        model,
        sgd(model),
        F.mse_loss,
        batches_of(2),
        accelerator=Accelerator(cpu=True),
        model_fn=lambda model, x: (
            seen.append([module.training for module in model.modules()]) or model(x)
        ),
    )
    for _ in range(runs):
        trainer.run()
    return trainer, seen


def test_a_model_given_in_eval_mode_trains_in_train_mode():
    model = make_model().eval()
    _, seen = modes_while_training(model)
    assert seen == [[True] * 5] * 2


def test_eval_mode_set_between_runs_is_reset_to_train_mode():
    trainer, seen = modes_while_training(make_model())
    trainer.model.eval()
    trainer.run()
    assert all(all(modes) for modes in seen)


def test_a_submodule_frozen_in_eval_mode_stays_so():
    model = make_model()
    model[2].eval()
    _, seen = modes_while_training(model, runs=2)
    assert seen == [[True, True, True, False, True]] * 4


def test_the_model_is_left_in_train_mode_after_a_run():
    trainer, _ = modes_while_training(make_model().eval())
    assert all(module.training for module in trainer.model.modules())


def test_modes_set_by_a_handler_of_the_user_stay():
    model = make_model()
    trainer, seen = modes_while_training(model)
    seen.clear()
    trainer.add_event_handler(Events.STARTED, lambda: model[2].eval())
    trainer.run()
    assert seen == [[True, True, True, False, True]] * 2


def test_mixed_precision_of_the_accelerator_is_used():
    dtypes = []
    model = make_model(0.0)
    model[0].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    trainer = create_supervised_trainer(
        model,
        sgd(model),
        F.mse_loss,
        batches_of(1),
        accelerator=Accelerator(cpu=True, mixed_precision="bf16"),
    )
    state = trainer.run()
    assert dtypes == [torch.bfloat16]
    assert state.model_outputs.dtype == state.loss.dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"loss_fn": F.mse_loss, "model_fn": lambda model, x: model[3](model[0](x))},
        {
            "batch_processor": lambda model, batch: (
                (outputs := model[3](model[0](batch[0]))),
                F.mse_loss(outputs.float(), batch[1]),
            )
        },
    ],
    ids=["model_fn", "batch_processor"],
)
def test_mixed_precision_covers_other_methods_than_forward(options):
    dtypes = []
    model = make_model(0.0)
    model[3].register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    trainer = create_supervised_trainer(
        model,
        sgd(model),
        data=batches_of(1),
        accelerator=Accelerator(cpu=True, mixed_precision="bf16"),
        **options,
    )
    outputs = trainer.run().model_outputs
    assert dtypes == [torch.bfloat16]
    of_user = "batch_processor" in options  # whose outputs are as they are
    assert outputs.dtype == (torch.bfloat16 if of_user else torch.float32)


def test_unmoved_pair_is_moved_to_the_accelerator_device():
    device, model = torch.device("meta"), torch.nn.Linear(2, 2, device="meta")
    accelerator = SimpleNamespace(device=device, non_blocking=False, native_amp=False)
    forward = make_forward(
        F.mse_loss, None, default_prepare_batch, apply_model, identity, accelerator
    )
    x, y, y_pred, loss = forward(model, (torch.ones(3, 2), torch.ones(3, 2)))
    assert x.device == y.device == y_pred.device == loss.device == device


def test_a_batch_processor_may_change_weights_between_two_forwards():
    seen = []

    def double_between(model, batch):
        first = model(batch[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        second = model(batch[0])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.div_(2)
        seen.append((first, second))
        return first, F.mse_loss(first, batch[1]) + F.mse_loss(second, batch[1])

    model = torch.nn.Linear(4, 2)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    trainer = make_trainer(
        batches_of(2), model=model, accelerator=accelerator, batch_processor=double_between
    )
    trainer.run()
    assert all(torch.equal(2 * first, second) for first, second in seen)


def test_the_loss_function_is_not_in_autocast():
    seen = []

    def loss_fn(y_pred, y):
        seen.append((torch.is_autocast_enabled("cpu"), y_pred.dtype))
        return F.mse_loss(y_pred, y)

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    make_trainer(batches_of(1), accelerator=accelerator, loss_fn=loss_fn).run()
    model_fn = lambda model, x: model(x)  # noqa: E731
    make_trainer(batches_of(1), accelerator=accelerator, loss_fn=loss_fn, model_fn=model_fn).run()
    assert seen == [(False, torch.float32), (False, torch.float32)]
