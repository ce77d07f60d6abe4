import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from safetensors.torch import load_file

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import module_state
from ignite_hooks.checkpoint.contents import load_objects
from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.module_state import check_module_fit
from ignite_hooks.checkpoint.module_state import flags_of
from ignite_hooks.checkpoint.module_state import load_into_module
from ignite_hooks.checkpoint.module_state import module_file
from ignite_hooks.checkpoint.module_state import read_module
from ignite_hooks.checkpoint.module_state import set_flags
from ignite_hooks.checkpoint.module_trial import restored_on_exit
from tests.reference import batches_of
from tests.reference import seed
from tests.reference import weights

# What torch.compile itself warns of while it reads torch's own code.
IGNORING_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


class UnusualBuffers(torch.nn.Module):
    """Buffers that safetensors cannot hold, beside one that it can."""

    def __init__(self):
        super().__init__()
        self.register_buffer("plain", torch.arange(3.0))
        self.register_buffer("wave", torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
        self.register_buffer("sparse", torch.tensor([0.0, 4.0]).to_sparse())


def write_and_read(folder, module, **options):
    name, content, about = module_file("model", module, **options)
    content.write(folder / name)
    return read_module(folder, "model", [name], about), about


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_tensors_safetensors_cannot_hold_are_restored(tmp_path, safe_serialization):
    state, about = write_and_read(tmp_path, UnusualBuffers(), safe_serialization=safe_serialization)
    other = UnusualBuffers()
    other.plain.zero_()
    other.wave.zero_()
    assert check_module_fit("model", state, about, other).differences == []
    assert load_into_module(other, state, about)[:2] == (set(), set())
    assert torch.equal(other.plain, torch.arange(3.0))
    assert torch.equal(other.wave, torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
    assert torch.equal(other.sparse.to_dense(), torch.tensor([0.0, 4.0]))


def test_missing_module_is_read_as_none_and_reported(tmp_path):
    assert read_module(tmp_path, "loss_fn", ["model.safetensors"], {}) is None
    assert check_module_fit("loss_fn", None, {}, UnusualBuffers()).differences == [
        "the loss_fn is not in the checkpoint"
    ]


def test_each_module_difference_is_reported(tmp_path):
    state, about = write_and_read(tmp_path, torch.nn.Linear(2, 3), safe_serialization=True)
    other = torch.nn.Linear(2, 4, bias=False)
    other.register_buffer("more", torch.ones(1))
    assert check_module_fit("model", state, about, other).differences == [
        "the checkpoint has bias, the model has not",
        "the model has more, the checkpoint has not",
        "weight had the shape (3, 2), it has (4, 2)",
    ]


def test_parameters_of_another_dtype_are_reported(tmp_path):
    state, about = write_and_read(tmp_path, torch.nn.Linear(2, 3), safe_serialization=True)
    assert load_into_module(torch.nn.Linear(2, 3).bfloat16(), state, about).converted == {
        "weight",
        "bias",
    }


def test_lossy_dtype_conversions_are_refused(tmp_path):
    for value, dtype in ((torch.ones(2) * 1j, torch.float32), (torch.ones(2), torch.int64)):
        module, other = torch.nn.Module(), torch.nn.Module()
        module.register_buffer("value", value)
        other.register_buffer("value", torch.zeros(2, dtype=dtype))
        state, about = write_and_read(tmp_path, module, safe_serialization=True)
        assert check_module_fit("model", state, about, other).differences == [
            f"value had the dtype {value.dtype}, it has {dtype}"
        ]


DTYPES = (
    *("float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "complex128", "bool", "uint8", "uint16"),
    *("uint32", "uint64", "int8", "int16", "int32", "int64"),
)
DTYPES = tuple(each for each in DTYPES if hasattr(torch, each))  # torch 2.6 lacks one


class AllBuffers(torch.nn.Module):
    """Buffers of all dtypes and layouts, some of them in one storage."""

    def __init__(self, start=0.0):
        super().__init__()
        base = torch.arange(start, start + 6)
        wave = torch.complex(base, base + 1)
        for dtype in DTYPES:
            self.register_buffer(f"of_{dtype}", base.abs().to(getattr(torch, dtype)))
        for name, value in {
            "empty": torch.empty(0, 3),
            "scalar": torch.tensor(start),
            "sparse": base.to_sparse(),
            "csr": base.view(2, 3).to_sparse_csr(),
            "wave": wave,
            "conjugate": wave.conj(),
            "negated": wave.conj().imag,
            "view": base[1:4],
            "transposed": base.view(2, 3).t(),
            "channels_last": base.view(1, 3, 2, 1).contiguous(memory_format=torch.channels_last),
            "of_base": base,
            "tied": base,
        }.items():
            self.register_buffer(name, value)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("safe_serialization", [True, False])
def test_buffers_of_each_dtype_are_restored_bit_by_bit(tmp_path, safe_serialization):
    module, other = AllBuffers(3.0), AllBuffers(9.0)
    state, about = write_and_read(tmp_path, module, safe_serialization=safe_serialization)
    before = digest_of(other.state_dict())
    assert check_module_fit("model", state, about, other).differences == []
    assert digest_of(other.state_dict()) == before != digest_of(module.state_dict())
    load_into_module(other, state, about)
    for name, value in module.state_dict().items():
        # The state too: buffers of one memory put each other right when they are loaded.
        assert digest_of(state[name]) == digest_of(value) == digest_of(other.state_dict()[name])
        assert other.state_dict()[name].layout == value.layout


# Modules with a say in how they are loaded


class Growing(torch.nn.Module):
    """A memory that grows with each batch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.register_buffer("seen", torch.empty(0))

    def forward(self, x):
        self.seen = torch.cat([self.seen, x.detach().mean().view(1)])
        return self.layer(x) * (1 + self.seen.mean() / 100)

    def _load_from_state_dict(self, state, prefix, *rest):
        self.seen = torch.empty_like(state[f"{prefix}seen"])
        super()._load_from_state_dict(state, prefix, *rest)


class LazyBuffer(Growing):
    """A buffer that is None until the first batch; torch itself does not load it."""

    def __init__(self):
        super().__init__()
        self.seen = None

    def forward(self, x):
        self.seen = x.detach().mean() if self.seen is None else self.seen + x.detach().mean()
        return self.layer(x) * (1 + self.seen / 100)

    _load_from_state_dict = torch.nn.Module._load_from_state_dict


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.batches = torch.nn.Linear(4, 2), 0

    def forward(self, x):
        self.batches += 1
        return self.layer(x) / self.batches

    def get_extra_state(self):
        return {"batches": self.batches}

    def set_extra_state(self, state):
        self.batches = state["batches"]


class Renaming(torch.nn.Module):
    """A module whose layers had other names in an older version."""

    def __init__(self, name="layer_"):
        super().__init__()
        self.name = name
        for number in range(3):
            setattr(self, f"{name}{number}", torch.nn.Linear(4, 4))
        self.last = torch.nn.Linear(4, 2)
        self.register_load_state_dict_pre_hook(self.rename)

    @staticmethod
    def rename(module, state, prefix, *rest):
        for key in [key for key in state if key.startswith(f"{prefix}old_")]:
            state[key.replace("old_", module.name)] = state.pop(key)

    def forward(self, x):
        for number in range(3):
            x = getattr(self, f"{self.name}{number}")(x)
        return self.last(x)


class Partial(torch.nn.Module):
    """A base that is left out of the state, as with adapters."""

    def __init__(self):
        super().__init__()
        self.base = torch.nn.Linear(4, 4).requires_grad_(False)
        self.last = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.base(x))

    def state_dict(self, *args, **options):
        state = super().state_dict(*args, **options)
        return {name: value for name, value in state.items() if not name.startswith("base.")}

    def load_state_dict(self, state, strict=True):
        return super().load_state_dict(state, strict=False)


def observed():
    """Returns a module for quantization-aware training; observers resize buffers when loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao import quantization

        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        return quantization.prepare_qat(model.train())


def lazy():
    return torch.nn.Sequential(torch.nn.LazyLinear(3), torch.nn.LazyLinear(2))


def half_lazy():
    """Returns a module of which a part has seen no batch when it is saved."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    model[0].never = torch.nn.LazyLinear(2)
    return model


def normed():
    norms = torch.nn.utils.parametrizations
    return torch.nn.Sequential(
        norms.weight_norm(torch.nn.Linear(4, 4)), norms.spectral_norm(torch.nn.Linear(4, 2))
    )


def tied_with_hook():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(3)))
    model[1].weight = model[0].weight
    model.register_load_state_dict_pre_hook(lambda *args: None)
    return torch.nn.Sequential(model, torch.nn.Linear(4, 2))


def compiled(module):
    return torch.compile(module, backend="eager")


def plain():
    return torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
    )


def compiled_layers():
    model = plain()
    model[0], model[1] = compiled(model[0]), compiled(model[1])
    return model


def compiled_lazily():
    return torch.nn.Sequential(compiled(LazyBuffer()))


def any_trainer(model, **options):
    trainer = create_supervised_trainer(
        model,
        torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.01),
        F.mse_loss,
        batches_of(4),
        accelerator=Accelerator(cpu=True),
        **options,
    )
    seed(3)
    return trainer


def resumed(folder, make_first, make_second, **options):
    """Returns two trainers: one that trained eight steps, and one that resumed after four."""
    seed()
    first = make_first()
    any_trainer(
        first, checkpoint=SaveCheckpoint(folder, every_steps=4, keep_last="all", **options)
    ).run(max_epochs=2)
    seed(2)
    trainer = any_trainer(make_second(), resume_from=folder / "step_00000004")
    trainer.run(max_epochs=2)
    return first, trainer


MODELS = {
    "growing": (Growing, Growing),
    "lazily": (LazyBuffer, LazyBuffer),
    "extra state": (Counting, Counting),
    "renamed": (lambda: Renaming("old_"), Renaming),
    "observed": (observed, observed),
    "lazy": (lazy, lazy),
    "half lazy": (half_lazy, half_lazy),
    "normed": (normed, normed),
    "tied": (tied_with_hook, tied_with_hook),
    "compiled": (lambda: compiled(plain()), plain),
    "not compiled": (plain, compiled_layers),
    "layers compiled": (compiled_layers, lambda: compiled(plain())),
    "lazily, compiled": (compiled_lazily, compiled_lazily),
    "not compiled, lazily": (lambda: torch.nn.Sequential(LazyBuffer()), compiled_lazily),
}


@IGNORING_DYNAMO
@pytest.mark.parametrize("safe_serialization", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_modules_with_custom_loading_are_resumed(tmp_path, name, safe_serialization):
    first, trainer = resumed(tmp_path, *MODELS[name], safe_serialization=safe_serialization)
    assert trainer.resume_report.is_exact
    states = [each.state_dict() for each in (first, trainer.model)]
    assert len(states[0]) == len(states[1])
    for value, other in zip(*(state.values() for state in states), strict=True):
        assert digest_of(value) == digest_of(other)


@IGNORING_DYNAMO
@pytest.mark.parametrize("name", ["compiled", "layers compiled"])
def test_names_in_files_have_no_wrapper_names(tmp_path, name):
    resumed(tmp_path, *MODELS[name])
    folder = tmp_path / "step_00000008"
    assert sorted(load_file(folder / "model.safetensors")) == sorted(plain().state_dict())
    about = load_objects(folder / "trainer.pt")
    assert "_orig_mod" not in str(about["groups"])
    assert "_orig_mod" not in str(about["modules"])


def test_flags_cross_between_compiled_and_plain_models():
    model = compiled_layers()
    model[0].requires_grad_(False)
    model[1].eval()
    assert flags_of(model) == {"frozen": ["0.weight", "0.bias"], "eval": ["1"]}
    other = compiled(plain())
    set_flags(other, flags_of(model))
    assert flags_of(other) == flags_of(model)
    third = compiled_layers()
    set_flags(third, flags_of(other))
    assert flags_of(third) == flags_of(model)


def test_flags_follow_renamed_layers(tmp_path):
    def old():
        model = Renaming("old_")
        model.old_1.requires_grad_(False)
        model.old_2.eval()
        return model

    def new():
        model = Renaming()
        model.layer_1.requires_grad_(False)
        return model

    _, trainer = resumed(tmp_path, old, new)
    assert flags_of(trainer.model) == {
        "frozen": ["layer_1.weight", "layer_1.bias"],
        "eval": ["layer_2"],
    }


def test_tensors_left_out_of_the_state_are_not_called_exact(tmp_path):
    with pytest.warns(UserWarning, match="resumed from"):
        _, trainer = resumed(tmp_path, Partial, Partial)
    assert str(trainer.resume_report.parts["model"]) == (
        "unknown (left out of the state_dict(): model.base.bias, model.base.weight; "
        "build these with the same values as in the saved run)"
    )


class Ignoring(Growing):
    """Loads all but one of its parameters."""

    def _load_from_state_dict(self, state, prefix, *rest):
        state[f"{prefix}layer.bias"] = state[f"{prefix}layer.bias"] * 0
        super()._load_from_state_dict(state, prefix, *rest)


def test_tensors_changed_by_loading_are_not_called_exact(tmp_path):
    def make():
        return torch.nn.Sequential(Ignoring())

    with pytest.warns(UserWarning, match="resumed from"):
        _, trainer = resumed(tmp_path, make, make)
    assert trainer.resume_report.parts["model"].level == "approximate"
    assert "left out by the module's own loading: 0.layer.bias" in str(trainer.resume_report)


class Failing(Growing):
    """Raises when half of it is loaded."""

    def __init__(self):
        super().__init__()
        self.register_load_state_dict_post_hook(self.fail)

    @staticmethod
    def fail(module, keys):
        raise OverflowError("no more of this")


class Replacing(Growing):
    def _load_from_state_dict(self, state, prefix, *rest):
        super()._load_from_state_dict(state, prefix, *rest)
        self.layer = torch.nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Failing, r"cannot load the state \(OverflowError: no more of this\)"),
        (Replacing, "loading the model replaces layer.weight, layer.bias, which the optimizer"),
        (lambda: torch.nn.Sequential(Failing()), "has 0.layer.bias, the checkpoint has not"),
        (lambda: Renaming("other_"), "the checkpoint has seen, the model has not"),
    ],
)
def test_a_module_that_refuses_its_state_is_unchanged(tmp_path, make, message):
    seed()
    any_trainer(Growing(), checkpoint=SaveCheckpoint(tmp_path)).run()
    model = make()
    model.eval()
    before = digest_of(model.state_dict()), [id(each) for each in model.parameters()]
    randomness = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        any_trainer_unseeded(model, resume_from=tmp_path)
    assert (digest_of(model.state_dict()), [id(each) for each in model.parameters()]) == before
    assert torch.equal(torch.get_rng_state(), randomness)
    assert not model.training


def any_trainer_unseeded(model, **options):
    return create_supervised_trainer(
        model,
        torch.optim.Adam(model.parameters()),
        F.mse_loss,
        batches_of(4),
        accelerator=Accelerator(cpu=True),
        **options,
    )


def test_swapped_parameter_names_are_refused(tmp_path):
    """The optimizer would have the states of the other layer."""

    def swapping():
        def swap(module, state, prefix, *rest):
            for key in ("weight", "bias"):
                one, other = f"{prefix}0.{key}", f"{prefix}1.{key}"
                state[one], state[other] = state[other], state[one]

        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), Growing())
        model.register_load_state_dict_pre_hook(swap)
        return model

    with pytest.raises(ValueError, match="parameters in another order"):
        resumed(tmp_path, swapping, swapping)


def test_only_modules_with_custom_loading_are_copied(monkeypatch):
    copied = []

    @contextmanager
    def restored_and_noted(module):
        copied.append(module)
        with restored_on_exit(module):
            yield

    monkeypatch.setattr(module_state, "restored_on_exit", restored_and_noted)
    model = torch.nn.Sequential(plain(), Growing())
    _, _, about = module_file("model", model, safe_serialization=True)
    assert check_module_fit("model", model.state_dict(), about, model).differences == []
    assert copied == [model[1]]


# Frozen parameters and eval mode


def make_model():
    """Returns a model with a frozen first layer and a batch norm in eval mode."""
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


def test_flags_of_integer_parameters_are_not_set():
    model = torch.nn.Linear(2, 2)
    model.count = torch.nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    set_flags(model, flags_of(model))
    assert not model.count.requires_grad


def thaw(trainer):
    """Unfreezes all parameters, as fine-tuning in two phases does from the second epoch."""
    if trainer.state.epoch == 2:
        trainer.model[0].requires_grad_(True)
        trainer.model[1].train()


def freeze_again(trainer):
    """Freezes parameters, as a script may do whenever a run begins."""
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
def test_parameters_thawed_by_a_handler_stay_thawed(tmp_path, event, steps, is_frozen_at_start):
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
