import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.module_state import fit_of_module
from ignite_hooks.checkpoint.module_state import flags_of
from ignite_hooks.checkpoint.module_state import give_to_module
from ignite_hooks.checkpoint.module_state import module_file
from ignite_hooks.checkpoint.module_state import read_module
from ignite_hooks.checkpoint.module_state import set_flags
from tests.reference import batches_of
from tests.reference import seed
from tests.reference import weights


class Odd(torch.nn.Module):
    """Buffers that safetensors can not hold, beside one that it can."""

    def __init__(self):
        super().__init__()
        self.register_buffer("plain", torch.arange(3.0))
        self.register_buffer("wave", torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
        self.register_buffer("sparse", torch.tensor([0.0, 4.0]).to_sparse())


def through_a_file(folder, module, **options):
    name, content, about = module_file("model", module, **options)
    content.write(folder / name)
    return read_module(folder, "model", [name], about), about


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_tensors_of_every_kind_come_back(tmp_path, safe_serialization):
    state, about = through_a_file(tmp_path, Odd(), safe_serialization=safe_serialization)
    other = Odd()
    other.plain.zero_()
    other.wave.zero_()
    assert fit_of_module("model", state, about, other).differences == []
    assert give_to_module(other, state, about)[:2] == (set(), set())
    assert torch.equal(other.plain, torch.arange(3.0))
    assert torch.equal(other.wave, torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
    assert torch.equal(other.sparse.to_dense(), torch.tensor([0.0, 4.0]))


def test_missing_module_is_read_as_none_and_reported(tmp_path):
    assert read_module(tmp_path, "loss_fn", ["model.safetensors"], {}) is None
    assert fit_of_module("loss_fn", None, {}, Odd()).differences == [
        "the loss_fn is not in the checkpoint"
    ]


def test_each_module_difference_is_reported(tmp_path):
    state, about = through_a_file(tmp_path, torch.nn.Linear(2, 3), safe_serialization=True)
    other = torch.nn.Linear(2, 4, bias=False)
    other.register_buffer("more", torch.ones(1))
    assert fit_of_module("model", state, about, other).differences == [
        "the model has no bias, the checkpoint has",
        "the model has more, the checkpoint has not",
        "weight had the shape (3, 2), it has (4, 2)",
    ]


def test_parameters_of_another_dtype_are_reported(tmp_path):
    state, about = through_a_file(tmp_path, torch.nn.Linear(2, 3), safe_serialization=True)
    assert give_to_module(torch.nn.Linear(2, 3).bfloat16(), state, about).converted == {
        "weight",
        "bias",
    }


# Frozen parameters and eval mode


def make_model():
    """Its first layer is frozen, and its batch norm keeps its statistics."""
    seed()
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)
    )
    model[0].requires_grad_(False)
    model[1].eval()
    return model


def test_flags_are_those_of_parameters_and_submodules():
    model = make_model()
    flags = flags_of(model)
    assert flags == {"frozen": ["0.weight", "0.bias"], "eval": ["1"]}
    other = make_model().requires_grad_(True).train()
    set_flags(other, flags)
    assert flags_of(other) == flags
    model.requires_grad_(True).train()
    set_flags(other, flags_of(model))
    assert flags_of(other) == {"frozen": [], "eval": []}


def test_a_tensor_that_can_not_be_trained_is_left_alone():
    model = torch.nn.Linear(2, 2)
    model.count = torch.nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    set_flags(model, flags_of(model))
    assert not model.count.requires_grad


def thaw(trainer):
    """Fine-tuning in two phases: from the second epoch on all is trained."""
    if trainer.state.epoch == 2:
        trainer.model[0].requires_grad_(True)
        trainer.model[1].train()


def freeze_again(trainer):
    """What a script may do whenever a run begins."""
    trainer.model[0].requires_grad_(False)
    trainer.model[1].eval()


def trainer_of(event, *, is_frozen_at_start, **options):
    model = make_model()
    trainer = create_supervised_trainer(
        model,
        torch.optim.Adam(model.parameters(), lr=0.01),
        F.mse_loss,
        batches_of(4),
        accelerator=Accelerator(cpu=True),
        **options,
    )
    trainer.add_event_handler(event, thaw)
    if is_frozen_at_start:
        trainer.add_event_handler(Events.STARTED, freeze_again)
    seed(3)
    return trainer


@pytest.mark.parametrize("is_frozen_at_start", [False, True])
@pytest.mark.parametrize(
    ("event", "steps"),
    [(Events.EPOCH_STARTED, (3, 4, 5, 7, 8)), (Events.EPOCH_COMPLETED, (7, 8, 9, 11))],
)
def test_what_a_handler_has_thawed_is_not_frozen_after_a_resume(
    tmp_path, event, steps, is_frozen_at_start
):
    save = SaveCheckpoint(tmp_path, every_steps=1, keep_last="all")
    options = {"is_frozen_at_start": is_frozen_at_start}
    whole = trainer_of(event, checkpoint=save, **options)
    whole.run(max_epochs=3)
    assert flags_of(whole.model) == {"frozen": [], "eval": []}
    for step in steps:
        resumed = trainer_of(event, resume_from=tmp_path / f"step_{step:08d}", **options)
        if step == steps[-1]:  # in the third epoch
            assert flags_of(resumed.model) == {"frozen": [], "eval": []}
        resumed.run()
        assert resumed.resume_report.is_exact
        assert torch.equal(weights(resumed.model), weights(whole.model))


def evaluate_all(trainer):
    for child in trainer.model.children():
        child.eval()


def in_train_mode(**options):
    return trainer_of(Events.EPOCH_STARTED(once=9), is_frozen_at_start=False, **options)


def in_eval_mode_at_start(*, event=Events.STARTED, **options):
    trainer = in_train_mode(**options)
    trainer.add_event_handler(event, evaluate_all)
    return trainer


def test_eval_mode_set_during_a_run_is_restored_on_resume(tmp_path):
    save = SaveCheckpoint(tmp_path, every_steps=1, keep_last="all")
    event = Events.EPOCH_STARTED(once=1)
    whole = in_eval_mode_at_start(event=event, checkpoint=save)
    whole.run(max_epochs=2)
    resumed = in_eval_mode_at_start(event=event, resume_from=tmp_path / "step_00000005")
    resumed.run()
    assert flags_of(resumed.model)["eval"] == ["0", "1", "2", "3"]
    assert torch.equal(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("make", [in_train_mode, in_eval_mode_at_start])
def test_model_saved_in_eval_mode_resumes_like_a_second_run(tmp_path, make):
    save = SaveCheckpoint(tmp_path, at_end=False)
    whole = make(checkpoint=save)
    whole.run(max_epochs=1)
    whole.model.eval()  # to look at what it has learned
    save(whole)
    whole.run(max_epochs=2)
    resumed = make(resume_from=tmp_path)
    resumed.run(max_epochs=2)
    assert resumed.resume_report.is_exact
    assert (resumed.model[0].training, whole.model[0].training) == 2 * (make is in_train_mode,)
    assert flags_of(resumed.model) == flags_of(whole.model)
    assert torch.equal(weights(resumed.model), weights(whole.model))
