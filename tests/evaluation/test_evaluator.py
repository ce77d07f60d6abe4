import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import GradientState
from ignite.engine import Engine
from ignite.engine import Events
from ignite.engine import create_supervised_evaluator as create_ignite_evaluator
from ignite.metrics import Loss
from ignite.metrics import MeanSquaredError
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import create_supervised_evaluator
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.versions import needs


class Failure(Exception):
    pass


class Watched(torch.nn.Linear):
    """A model that records the modes in which each forward pass runs."""

    def __init__(self):
        super().__init__(4, 2)
        self.seen = []

    def forward(self, x):
        self.seen.append(
            {
                "training": self.training,
                "grad": torch.is_grad_enabled(),
                "inference": torch.is_inference_mode_enabled(),
                "autocast": torch.is_autocast_enabled("cpu"),
            }
        )
        return super().forward(x)

    def all(self, key):
        return {circumstances[key] for circumstances in self.seen}


class Numbers(Dataset):
    """A data set whose sample i is i, as input and as target."""

    def __init__(self, size=6):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.tensor([float(index)] * 4), torch.tensor([float(index)] * 2)


def cpu(**options):
    return Accelerator(cpu=True, **options)


def noiseless(size=10):
    return Noisy(size, noise=0.0)


def firsts(evaluator):
    """Returns a list that grows by the first number of each evaluated batch."""
    seen = []
    evaluator.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: seen.append(float(engine.state.batch[0][0, 0]))
    )
    return seen


KINDS = {
    "raw loader": lambda accelerator: DataLoader(Numbers(), 2),
    "prepared loader": lambda accelerator: accelerator.prepare(DataLoader(Numbers(), 2)),
    "list": lambda accelerator: list(DataLoader(Numbers(), 2)),
}


@pytest.fixture(params=KINDS)
def numbers_in(request):
    return KINDS[request.param]


def test_metrics_equal_those_of_all_samples_at_once():
    model, data = make_model(), noiseless(10)
    evaluator = create_supervised_evaluator(
        model, {"mse": Loss(F.mse_loss), "mse2": MeanSquaredError()}, accelerator=cpu()
    )
    metrics = evaluator.run(DataLoader(data, 4)).metrics
    with torch.no_grad():
        expected = F.mse_loss(model.eval()(data.x), data.y).item()
    # The mean of means of batches is summed in another order than that over all samples.
    assert metrics["mse"] == pytest.approx(expected, rel=1e-6)
    assert metrics["mse2"] == pytest.approx(
        2 * expected, rel=1e-6
    )  # Ignite's mean divides by the number of samples


@pytest.mark.parametrize(
    "functions",
    [
        {},
        {"prepare_batch": lambda batch, device, non_blocking: (batch[0] + 1, batch[1])},
        {"model_fn": lambda model, x: model(2 * x)},
        {"model_transform": lambda output: output.tanh()},
        {"output_transform": lambda x, y, y_pred: (y_pred + x.sum(), 3 * y)},
        {
            "prepare_batch": lambda batch, device, non_blocking: (batch[0] + 1, batch[1]),
            "model_fn": lambda model, x: (model(x), x),
            "model_transform": lambda output: output[0],
            "output_transform": lambda x, y, y_pred: (y_pred * x.mean(), y),
        },
    ],
)
def test_functions_have_the_same_meaning_as_in_ignite(functions):
    model, data = make_model(), batches_of(3)
    ours = create_supervised_evaluator(
        model, {"mse": MeanSquaredError()}, accelerator=cpu(), **functions
    )
    ignites = create_ignite_evaluator(model, {"mse": MeanSquaredError()}, **functions)
    outputs = {ours: [], ignites: []}
    for evaluator, seen in outputs.items():
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine, seen=seen: seen.append(engine.state.output)
        )
        evaluator.run(data)
    for (our_pred, our_y), (their_pred, their_y) in zip(*outputs.values(), strict=True):
        assert torch.equal(our_pred, their_pred)
        assert torch.equal(our_y, their_y)
    assert ours.state.metrics == ignites.state.metrics


def test_prepare_batch_is_given_device_and_non_blocking_by_name():
    seen = []

    def prepare(batch, *, device, non_blocking):
        seen.append((device, non_blocking))
        return batch

    accelerator = cpu()
    create_supervised_evaluator(make_model(), accelerator=accelerator, prepare_batch=prepare).run(
        batches_of(1)
    )
    assert seen == [(accelerator.device, accelerator.non_blocking)]


def test_evaluates_without_gradients_and_not_in_inference_mode():
    model = Watched()
    state = create_supervised_evaluator(model, accelerator=cpu()).run(batches_of(2))
    assert model.all("grad") == {False}
    assert model.all("inference") == {False}
    assert not state.output[0].requires_grad
    assert not state.output[0].is_inference()
    assert torch.is_grad_enabled()


def test_functions_of_the_user_run_without_gradients():
    seen = []

    def note(value):
        seen.append(torch.is_grad_enabled())
        return value

    create_supervised_evaluator(
        make_model(),
        accelerator=cpu(),
        prepare_batch=lambda batch, **_: note(batch),
        model_transform=note,
        output_transform=lambda x, y, y_pred: note((y_pred, y)),
    ).run(batches_of(1))
    assert seen == [False] * 3


def test_inference_mode_is_an_option():
    model = Watched()
    evaluator = create_supervised_evaluator(
        model, {"mse": MeanSquaredError()}, accelerator=cpu(), inference_mode=True
    )
    data = batches_of(2)
    state = evaluator.run(data)
    assert model.all("inference") == {True}
    assert state.output[0].is_inference()
    assert not torch.is_inference_mode_enabled()
    plain = create_supervised_evaluator(model, {"mse": MeanSquaredError()}, accelerator=cpu())
    assert state.metrics == plain.run(data).metrics


@pytest.mark.parametrize("prepared", [False, True])
def test_mixed_precision_applies_and_outputs_are_float32(prepared):
    accelerator = cpu(mixed_precision="bf16")
    model = Watched()
    data = batches_of(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(data[-1][0]).float()
    assert not torch.equal(expected, model(data[-1][0]))
    model.seen.clear()
    evaluator = create_supervised_evaluator(
        accelerator.prepare(model) if prepared else model, accelerator=accelerator
    )
    y_pred, _ = evaluator.run(data).output
    assert model.all("autocast") == {True}
    assert y_pred.dtype == torch.float32
    assert torch.equal(y_pred, expected)
    assert not torch.is_autocast_enabled("cpu")


def test_model_transform_gets_full_precision_output():
    seen = []
    create_supervised_evaluator(
        make_model(),
        accelerator=cpu(mixed_precision="bf16"),
        model_fn=lambda model, x: {"logits": model(x), "labels": torch.tensor([1])},
        model_transform=lambda output: seen.append(output) or output["logits"],
    ).run(batches_of(1))
    assert seen[0]["logits"].dtype == torch.float32
    assert seen[0]["labels"].dtype == torch.int64


def test_no_autocast_without_mixed_precision():
    model = Watched()
    create_supervised_evaluator(model, accelerator=cpu()).run(batches_of(1))
    assert model.all("autocast") == {False}


def test_loaders_of_each_kind_give_the_same_metrics(numbers_in):
    accelerator = cpu()
    evaluator = create_supervised_evaluator(
        make_model(), {"mse": MeanSquaredError()}, accelerator=accelerator
    )
    reference = create_ignite_evaluator(make_model(), {"mse": MeanSquaredError()})
    expected = reference.run(list(DataLoader(Numbers(), 2))).metrics
    assert evaluator.run(numbers_in(accelerator)).metrics == expected


@pytest.mark.parametrize("length_known", [False, True])
def test_generators_and_iterables_without_length_work(length_known):
    evaluator = create_supervised_evaluator(
        make_model(), {"mse": MeanSquaredError()}, accelerator=cpu()
    )
    data = batches_of(3)
    expected = evaluator.run(data).metrics
    state = evaluator.run(iter(data), epoch_length=3 if length_known else None)
    assert (state.iteration, state.metrics) == (3, expected)


def test_a_raw_loader_is_prepared_once():
    accelerator = cpu()
    evaluator = create_supervised_evaluator(make_model(), accelerator=accelerator)
    loaders = [DataLoader(Numbers(), 2), DataLoader(Numbers(), 3)]
    prepared = set()
    for _ in range(3):
        for loader in loaders:
            evaluator.run(loader)
            prepared |= {*accelerator._dataloaders}
            assert len(accelerator._dataloaders) == 1
    assert len(prepared) == 2


def test_a_prepared_loader_is_not_prepared_again():
    accelerator = cpu()
    loader = accelerator.prepare(DataLoader(Numbers(), 2))
    evaluator = create_supervised_evaluator(make_model(), accelerator=accelerator)
    evaluator.run(loader)
    evaluator.run(loader)
    assert accelerator._dataloaders == [loader]


def test_model_is_not_prepared_for_training():
    accelerator = cpu()
    model = make_model()
    evaluator = create_supervised_evaluator(model, accelerator=accelerator)
    assert accelerator._models == []
    assert evaluator.model is model


def test_a_prepared_model_is_not_prepared_again():
    accelerator = cpu()
    model = accelerator.prepare(make_model())
    evaluator = create_supervised_evaluator(model, accelerator=accelerator)
    evaluator.run(batches_of(1))
    assert evaluator.model is model
    assert accelerator._models == [model]


def test_prepared_and_raw_model_give_the_same_metrics():
    results = []
    for prepare in (False, True):
        accelerator, model = cpu(), make_model()
        evaluator = create_supervised_evaluator(
            accelerator.prepare(model) if prepare else model,
            {"mse": MeanSquaredError()},
            accelerator=accelerator,
        )
        results.append(evaluator.run(batches_of(3)).metrics)
    assert results[0] == results[1]


@pytest.mark.parametrize("stop", ["completed", "terminate", "terminate_epoch", "failure"])
def test_each_run_begins_at_the_first_batch(numbers_in, stop):
    accelerator = cpu()
    data = numbers_in(accelerator)
    evaluator = create_supervised_evaluator(
        make_model(), {"mse": MeanSquaredError()}, accelerator=accelerator
    )
    seen = firsts(evaluator)

    @evaluator.on(Events.ITERATION_COMPLETED(once=2))
    def stop_early(engine):
        if stop == "failure":
            raise Failure
        if stop != "completed":
            getattr(engine, stop)()

    try:
        evaluator.run(data)
    except Failure:
        assert stop == "failure"
    assert seen == ([0.0, 2.0, 4.0] if stop == "completed" else [0.0, 2.0])
    assert GradientState().dataloader_references == [None]

    evaluator.remove_event_handler(stop_early, Events.ITERATION_COMPLETED(once=2))
    seen.clear()
    state = evaluator.run(data)
    assert seen == [0.0, 2.0, 4.0]
    assert (state.iteration, state.epoch) == (3, 1)
    fresh = create_supervised_evaluator(
        make_model(), {"mse": MeanSquaredError()}, accelerator=accelerator
    )
    assert state.metrics == fresh.run(data).metrics
    assert GradientState().dataloader_references == [None]


def test_an_interrupted_run_starts_from_scratch():
    evaluator = create_supervised_evaluator(make_model(), accelerator=cpu())
    seen = firsts(evaluator)
    data = DataLoader(Numbers(), 2)
    with evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), Engine.interrupt):
        evaluator.run(data)
    assert GradientState().dataloader_references == [None]
    evaluator.run(data)
    assert seen == [0.0, 0.0, 2.0, 4.0]


def test_failures_leave_run_unchanged():
    failure = Failure()

    def fail(model, x):
        raise failure

    evaluator = create_supervised_evaluator(make_model(), accelerator=cpu(), model_fn=fail)
    for _ in range(2):
        with pytest.raises(Failure) as raised:
            evaluator.run(DataLoader(Numbers(), 2))
        assert raised.value is failure


@pytest.mark.parametrize("failing", [False, True])
def test_eval_mode_applies_and_submodule_modes_are_restored(failing):
    model = torch.nn.Sequential(make_model(), torch.nn.Linear(2, 2), torch.nn.Dropout())
    model.train()
    model[0].eval()
    model[0][2].train()
    before = [module.training for module in model.modules()]
    seen = []

    def model_fn(model, x):
        seen.append({module.training for module in model.modules()})
        if failing:
            raise Failure
        return model(x)

    evaluator = create_supervised_evaluator(model, accelerator=cpu(), model_fn=model_fn)
    try:
        evaluator.run(batches_of(1))
    except Failure:
        assert failing
    assert seen == [{False}]
    assert [module.training for module in model.modules()] == before


def test_a_model_in_eval_mode_stays_in_it():
    model = make_model().eval()
    create_supervised_evaluator(model, accelerator=cpu()).run(batches_of(1))
    assert not any(module.training for module in model.modules())


def test_weights_buffers_and_gradients_are_left_alone():
    model = torch.nn.Sequential(make_model(), torch.nn.BatchNorm1d(2))
    model(torch.randn(3, 4)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    create_supervised_evaluator(model, accelerator=cpu()).run(batches_of(2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_accelerate_state_survives_evaluation_within_a_loop(numbers_in, batches):
    accelerator = cpu(gradient_accumulation_steps=2)
    evaluator = create_supervised_evaluator(make_model(), accelerator=accelerator)
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED(once=batches), lambda engine: engine.terminate()
    )
    data = numbers_in(accelerator)
    train = accelerator.prepare(DataLoader(Numbers(10), 2))
    syncs = []
    for index, _ in enumerate(train):
        with accelerator.accumulate():
            syncs.append(accelerator.sync_gradients)
        if index < 3:
            evaluator.run(data)
            assert accelerator.gradient_state.active_dataloader is train
            assert not accelerator.gradient_state.end_of_dataloader
    assert syncs == [False, True, False, True, True]


@pytest.mark.parametrize("batches", [1, 99])
def test_evaluating_on_the_training_loader_leaves_its_loop_alone(batches):
    accelerator = cpu()
    evaluator = create_supervised_evaluator(make_model(), accelerator=accelerator)
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED(once=batches), lambda engine: engine.terminate()
    )
    loader = accelerator.prepare(DataLoader(Numbers(), 2))
    seen = []
    for x, _ in loader:
        ended = accelerator.gradient_state.end_of_dataloader
        evaluator.run(loader)
        assert accelerator.gradient_state.active_dataloader is loader
        assert accelerator.gradient_state.end_of_dataloader is ended
        seen.append(float(x[0, 0]))
    assert seen == [0.0, 2.0, 4.0]


def test_the_length_of_the_epoch_can_be_given(numbers_in):
    accelerator = cpu()
    evaluator = create_supervised_evaluator(make_model(), accelerator=accelerator)
    seen = firsts(evaluator)
    data = numbers_in(accelerator)
    evaluator.run(data, epoch_length=2)
    evaluator.run(data)
    evaluator.run(data, epoch_length=4)
    assert seen == [0.0, 2.0, 0.0, 2.0, 4.0, 0.0, 2.0, 4.0, 0.0]


@needs("pytorch-ignite>=0.5.5")
def test_max_iters_ends_the_run(numbers_in):
    accelerator = cpu()
    evaluator = create_supervised_evaluator(make_model(), accelerator=accelerator)
    assert evaluator.run(numbers_in(accelerator), max_iters=2).iteration == 2


def test_several_epochs_see_each_batch_several_times(numbers_in):
    accelerator = cpu()
    evaluator = create_supervised_evaluator(make_model(), accelerator=accelerator)
    seen = firsts(evaluator)
    evaluator.run(numbers_in(accelerator), max_epochs=2)
    assert seen == [0.0, 2.0, 4.0] * 2


@pytest.mark.parametrize(
    "empty", [[], iter([]), DataLoader(Numbers(0), 2)], ids=["list", "iterator", "loader"]
)
def test_empty_data_is_an_error(empty):
    evaluator = create_supervised_evaluator(make_model(), accelerator=cpu())
    with pytest.raises(ValueError, match="`data` gave no batch"):
        evaluator.run(empty)
    assert all(module.training for module in evaluator.model.modules())


def test_a_used_up_iterator_is_an_error():
    evaluator = create_supervised_evaluator(make_model(), accelerator=cpu())
    batches = iter(batches_of(2))
    evaluator.run(batches)
    with pytest.raises(ValueError, match="an iterator is used up after one pass"):
        evaluator.run(batches)


def test_missing_data_is_an_error():
    evaluator = create_supervised_evaluator(make_model(), accelerator=cpu())
    with pytest.raises(ValueError, match=r"`data` must be given, got None: run\(loader\)"):
        evaluator.run()


def test_the_default_accelerator_keeps_the_accumulation_of_others():
    accelerator = cpu(gradient_accumulation_steps=4)
    create_supervised_evaluator(make_model()).run(batches_of(1))
    assert accelerator.gradient_accumulation_steps == 4


def test_metrics_of_ignite_can_be_attached_later():
    evaluator = create_supervised_evaluator(make_model(), accelerator=cpu())
    MeanSquaredError().attach(evaluator, "later")
    assert evaluator.run(batches_of(2)).metrics["later"] > 0


def test_evaluates_a_trainers_model_with_current_weights():
    trainer = make_trainer(batches_of(4))
    evaluator = create_supervised_evaluator(
        trainer.model, {"mse": MeanSquaredError()}, accelerator=trainer.accelerator
    )
    before = evaluator.run(batches_of(2)).metrics["mse"]
    trainer.run()
    by_hand = create_ignite_evaluator(trainer.model, {"mse": MeanSquaredError()})
    after = evaluator.run(batches_of(2)).metrics["mse"]
    assert after == by_hand.run(batches_of(2)).metrics["mse"] != before


def test_evaluator_can_be_created_and_run_in_one_expression():
    state = create_supervised_evaluator(make_model(), accelerator=cpu()).run(batches_of(2))
    assert state.iteration == 2
