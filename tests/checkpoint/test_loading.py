"""Tests that a checkpoint is loaded as a whole, bit by bit, or the trainer is unchanged."""

import json
import os
import pickle
import random
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.lr_scheduler import SequentialLR
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.loading import LoadedState
from ignite_hooks.checkpoint.loading import rolled_back_on_failure
from ignite_hooks.checkpoint.manifest import with_checksum
from ignite_hooks.checkpoint.state import TrainingState
from tests.reference import batches_of
from tests.reference import seed


class Box:
    """An object with a state, which it loads or refuses."""

    def __init__(self, value=0, refuses=False):
        self.value, self.refuses = value, refuses

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self):
        self.value += 1

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        if self.refuses:
            raise ValueError("this box is full")
        self.value = state_dict["value"]


class OtherBox(Box):
    pass


def frozen(value):
    """Returns a value in a form that can be compared bit by bit."""
    if isinstance(value, torch.Tensor):
        content = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), content
    if isinstance(value, dict):
        return {key: frozen(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(each) for each in value]
    return value.tobytes() if isinstance(value, np.ndarray) else value


def full_state(trainer, *objects):
    """Returns everything that must not change when a checkpoint is refused."""
    shown = ("epoch", "iteration", "optimizer_step", "max_epochs", "max_steps", "epoch_length")
    return frozen(
        {
            "modules": {name: each.state_dict() for name, each in trainer.modules.items()},
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler and trainer.lr_scheduler.state_dict(),
            "state": {name: getattr(trainer.state, name) for name in shown},
            "place": trainer.position_state_dict(),
            "random": [random.getstate(), np.random.get_state(), torch.get_rng_state()],
            "objects": [each.state_dict() for each in objects],
            "report": trainer.resume_report,
        }
    )


class Net(torch.nn.Module):
    def __init__(self, width=8, name="hidden"):
        super().__init__()
        self.parts = torch.nn.ModuleDict({name: torch.nn.Linear(4, width)})
        self.out = torch.nn.Linear(width, 2)

    def forward(self, x):
        for part in self.parts.values():
            x = part(x).tanh()
        return self.out(x)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def grouped(*prefixes):
    """Returns a function that makes Adam with a group for each prefix of parameter names."""

    def make(model):
        named = list(model.named_parameters())
        groups = [[p for name, p in named if name.startswith(prefix)] for prefix in prefixes]
        return torch.optim.Adam([{"params": group} for group in groups], lr=0.01)

    return make


def by_weight_and_bias(*kinds):
    """Returns a function that makes Adam with groups for weights and biases, in this order."""

    def make(model):
        named = list(model.named_parameters())
        groups = [[p for name, p in named if name.endswith(kind)] for kind in kinds]
        return torch.optim.Adam([{"params": group} for group in groups], lr=0.01)

    return make


def trainer_of(
    model=Net, optimizer=adam, scheduler=lambda o: StepLR(o, 2, gamma=0.5), data=None, **options
):
    torch.manual_seed(5)
    model = model()
    options.setdefault("loss_fn", F.mse_loss)
    return create_supervised_trainer(
        model,
        optimizer(model),
        data=data or batches_of(3),
        accelerator=Accelerator(cpu=True),
        lr_scheduler=scheduler,
        **options,
    )


def saved(directory, **options):
    """Returns the folder of a checkpoint after three steps, and the trainer that saved it."""
    checkpoint = SaveCheckpoint(directory, **options.pop("save", {}))
    trainer = trainer_of(checkpoint=checkpoint, **options)
    trainer.run()
    return checkpoint.last_checkpoint, trainer


def set_manifest(folder, **fields):
    """Rewrites the manifest with other values of some fields."""
    path = folder / "manifest.json"
    path.write_bytes(with_checksum(json.dumps({**json.loads(path.read_text()), **fields}).encode()))


def relist_files(folder, *, without=()):
    """Rewrites the manifest for the present files, with right hashes."""
    files = {
        path.name: file_record(path).model_dump()
        for path in folder.iterdir()
        if path.name != "manifest.json" and path.name not in without
    }
    set_manifest(folder, files=files)


def removing(name):
    def change(folder):
        (folder / name).unlink()
        relist_files(folder)

    return change


SEQUENTIAL = {
    count: lambda o, count=count: SequentialLR(
        o, [StepLR(o, 1) for _ in range(count)], list(range(1, count))
    )
    for count in (2, 3)
}

MISFITS = {
    "a newer layout": (
        {},
        {},
        lambda folder: set_manifest(folder, version=3),
        "has the layout 3",
    ),
    "an older layout": (
        {},
        {},
        lambda folder: set_manifest(folder, version=1),
        "has the layout 1, but",
    ),
    "another world size": (
        {},
        {},
        lambda folder: set_manifest(folder, world_size=2),
        "2 processes",
    ),
    "another name": (
        {},
        {"model": lambda: Net(name="other")},
        None,
        r"checkpoint has parts\.hidden\.weight, the model has not; .*has parts\.other\.bias, the",
    ),
    "another shape": (
        {},
        {"model": lambda: Net(width=5)},
        None,
        r"out\.weight had the shape \(2, 8\), it has \(2, 5\); .*parts\.hidden\.bias had the shape",
    ),
    "a parameter more": (
        {},
        {"model": lambda: torch.nn.Sequential(Net())},
        None,
        "the checkpoint has out.bias, the model has not",
    ),
    "another optimizer": (
        {},
        {"optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.1)},
        None,
        "the optimizer was Adam, and is now SGD",
    ),
    "another number of groups": (
        {},
        {"optimizer": grouped("parts", "out")},
        None,
        r"groups of \[4\] parameters, and now has groups of \[2, 2\]",
    ),
    "groups of other sizes": (
        {"optimizer": grouped("parts", "out")},
        {"optimizer": grouped("parts.hidden.weight", "out")},
        None,
        "groups of",
    ),
    "groups in another order": (
        {"optimizer": by_weight_and_bias("weight", "bias")},
        {"optimizer": by_weight_and_bias("bias", "weight")},
        None,
        "optimizer",
    ),
    "another scheduler": (
        {},
        {"scheduler": lambda o: ExponentialLR(o, 0.9)},
        None,
        "the scheduler was StepLR, and is now ExponentialLR",
    ),
    "a scheduler that refuses": (
        {"scheduler": SEQUENTIAL[3]},
        {"scheduler": SEQUENTIAL[2]},
        None,
        None,
    ),
    "a loss function with a state, new": (
        {},
        {"loss_fn": torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(2))},
        None,
        "the loss_fn is not in the checkpoint",
    ),
    "no optimizer": ({}, {}, removing("optimizer.bin"), r"optimizer\.bin is missing"),
    "no handlers": ({}, {}, removing("trainer.pt"), r"trainer\.pt is missing"),
    "no model": ({}, {}, removing("model.safetensors"), "the model is not in the checkpoint"),
    "no counters": ({}, {}, removing("rank_00000.pt"), "counters of this process are missing"),
}


@pytest.mark.grid(3)
@pytest.mark.parametrize("kind", MISFITS)
def test_mismatch_lists_differences_and_changes_nothing(tmp_path, kind):
    then, now, change, message = MISFITS[kind]
    folder, _ = saved(tmp_path, **then)
    if change is not None:
        change(folder)
    box, other = Box(7), Box(8)
    trainer = trainer_of(
        **now, handlers=[box], checkpoint=SaveCheckpoint(tmp_path / "new", also={"other": other})
    )
    trainer.run(max_steps=1)
    seed(3)
    before = full_state(trainer, box, other)
    with pytest.raises(Exception, match=message) as caught:  # a scheduler may raise anything
        ResumeCheckpoint(folder).attach(trainer)
    if kind != "a scheduler that refuses":
        assert type(caught.value) is ValueError
    assert full_state(trainer, box, other) == before


def test_every_difference_is_listed(tmp_path):
    folder, _ = saved(tmp_path)
    with pytest.raises(ValueError, match="does not fit this trainer") as caught:
        trainer_of(
            model=lambda: Net(width=5),
            optimizer=lambda model: torch.optim.SGD([*model.parameters()][:3], lr=0.1),
            scheduler=lambda o: ExponentialLR(o, 0.9),
            resume_from=folder,
        )
    for part in ("the optimizer was", "the scheduler was", "out.weight had", "of [4] parameters"):
        assert part in str(caught.value)


@pytest.mark.parametrize("who", ["a user's object", "a handler"])
def test_refusal_by_an_object_leaves_everything_unloaded(tmp_path, who):
    def make(directory, value, refuses=None):
        boxes = [Box(value, refuses == "a user's object" and name == "e") for name in "abcde"]
        handlers = [Box(value), OtherBox(value, refuses == "a handler")]
        checkpoint = SaveCheckpoint(directory, also=dict(zip("abcde", boxes, strict=True)))
        return trainer_of(checkpoint=checkpoint, handlers=handlers), [*boxes, *handlers]

    make(tmp_path / "old", 1)[0].run()
    trainer, objects = make(tmp_path / "new", 100, who)
    trainer.run(max_steps=1)
    before = full_state(trainer, *objects)
    with pytest.raises(ValueError, match="this box is full"):
        ResumeCheckpoint(tmp_path / "old").attach(trainer)
    assert full_state(trainer, *objects) == before


class RefusesAfterLoading(torch.optim.Adam):
    """Refuses a state after it has loaded it."""

    refuses = False

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if self.refuses and state_dict["state"]:
            raise ValueError("this optimizer is full")


def test_refusal_by_the_optimizer_leaves_everything_unloaded(tmp_path, monkeypatch):
    folder, _ = saved(tmp_path, optimizer=lambda model: RefusesAfterLoading(model.parameters()))
    trainer = trainer_of(optimizer=lambda model: RefusesAfterLoading(model.parameters()))
    before = full_state(trainer.set_data(batches_of(3)) or trainer)
    monkeypatch.setattr(RefusesAfterLoading, "refuses", True)
    with pytest.raises(ValueError, match="this optimizer is full"):
        ResumeCheckpoint(folder).attach(trainer)
    assert full_state(trainer) == before


def test_the_optimizer_keeps_no_file_open(tmp_path):
    folder, _ = saved(tmp_path)
    trainer = trainer_of(resume_from=folder)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what a process has mapped")
    assert trainer.optimizer.state
    assert str(folder / "optimizer.bin") not in maps.read_text()


@pytest.mark.parametrize("safe", [True, False])
def test_all_files_are_open_before_the_trainer_changes(tmp_path, monkeypatch, safe):
    folder, whole = saved(tmp_path, save={"safe_serialization": safe})
    apply = LoadedState.apply

    def pruned_first(loaded):
        shutil.rmtree(folder)
        return apply(loaded)

    monkeypatch.setattr(LoadedState, "apply", pruned_first)
    trainer = trainer_of(resume_from=folder)
    assert full_state(trainer)["modules"] == full_state(whole)["modules"]
    assert full_state(trainer)["optimizer"] == full_state(whole)["optimizer"]


@pytest.mark.parametrize("is_refused", [True, False])
def test_no_file_stays_open_after_a_resume(tmp_path, is_refused):
    folder, _ = saved(tmp_path, **({"model": lambda: Net(width=5)} if is_refused else {}))
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("this system does not tell what a process has open")
    trainer = trainer_of()
    with pytest.raises(ValueError, match="fit") if is_refused else nullcontext():
        ResumeCheckpoint(folder).attach(trainer)
    opened = [os.path.realpath(each) for each in descriptors.iterdir()]
    assert not [path for path in opened if path.startswith(str(folder))]


def test_training_is_unaffected_by_a_refused_checkpoint(tmp_path):
    folder, _ = saved(tmp_path, model=lambda: Net(width=5))
    trainer, control = trainer_of(), trainer_of()
    with pytest.raises(ValueError, match="does not fit"):
        ResumeCheckpoint(folder).attach(trainer)
    for each in (trainer, control):
        each.run(max_epochs=2)
    assert full_state(trainer)["modules"] == full_state(control)["modules"]
    assert trainer.state.iteration == control.state.iteration == 6


def test_loading_while_the_trainer_runs_is_an_error(tmp_path):
    folder, _ = saved(tmp_path)
    trainer = trainer_of()

    @trainer.on(Events.ITERATION_COMPLETED(once=1))
    def load():
        before = full_state(trainer)
        with pytest.raises(RuntimeError, match="while the trainer runs"):
            ResumeCheckpoint(folder).attach(trainer)
        assert full_state(trainer) == before

    trainer.run()


class Versioned(torch.nn.Linear):
    """Reads weights of its first version, which had the other sign."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, metadata, *rest):
        if metadata.get("version", 1) < 2:
            state_dict[f"{prefix}weight"] = -state_dict[f"{prefix}weight"]
        super()._load_from_state_dict(state_dict, prefix, metadata, *rest)


class Remembering(torch.nn.Linear):
    """A layer with an extra state: data, or a tensor that grows."""

    kind = dict

    def __init__(self):
        super().__init__(4, 2)
        self.seen = []

    def forward(self, x):
        self.seen.append(float(x.detach().sum()))
        return super().forward(x)

    def get_extra_state(self):
        return {"seen": self.seen} if self.kind is dict else torch.tensor(self.seen)

    def set_extra_state(self, state):
        self.seen = state["seen"] if self.kind is dict else state.tolist()


class RememberingTensor(Remembering):
    kind = torch.Tensor


class Holding(torch.nn.Linear):
    """A layer with buffers of all kinds."""

    def __init__(self):
        super().__init__(4, 2)
        memory = torch.rand(6)
        for name, tensor in {
            "left": memory[:4],
            "right": memory[2:],
            "turned": torch.rand(2, 3).t(),
            "number": torch.rand(()),
            "empty": torch.rand(0, 3),
            "short": torch.rand(2, dtype=torch.bfloat16),
            "flags": torch.tensor([True, False]),
            "whole": torch.randint(9, (3,)),
            "complex": torch.rand(2, dtype=torch.complex64),
        }.items():
            self.register_buffer(name, tensor)
        self.register_buffer("passing", torch.rand(2), persistent=False)


def tied():
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)), torch.nn.Linear(4, 2))
    model[1].weight = model[0].weight
    model[2].weight = model[0].weight
    return model


MODELS = {
    "plain": Net,
    "tied weights": tied,
    "buffers": Holding,
    "statistics": lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)),
    "not contiguous": lambda: _turned(torch.nn.Linear(4, 2)),
    "extra state": Remembering,
    "extra state that grows": RememberingTensor,
    "a version": lambda: Versioned(4, 2),
}


def _turned(linear):
    linear.weight = torch.nn.Parameter(torch.rand(4, 2).t())
    return linear


@pytest.mark.grid(5)
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_each_model_is_restored_bit_by_bit(tmp_path, kind, safe):
    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    options = {"model": MODELS[kind], "optimizer": sgd}
    folder, trainer = saved(tmp_path, save={"safe_serialization": safe}, **options)
    assert (folder / ("model.safetensors" if safe else "model.bin")).exists()
    before = full_state(trainer)
    other = trainer_of(**options)
    with torch.no_grad():
        for tensor in other.model.state_dict().values():
            if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point():
                tensor.zero_()
    ResumeCheckpoint(folder).attach(other)
    assert other.resume_report.is_exact
    after = full_state(other)
    assert after["modules"] == before["modules"]
    assert after["optimizer"] == before["optimizer"]
    for each in (trainer, other):
        each.run(max_epochs=2)
    assert full_state(other)["modules"] == full_state(trainer)["modules"]


def test_tied_weights_stay_tied(tmp_path):
    folder, _ = saved(tmp_path, model=tied)
    trainer = trainer_of(model=tied, resume_from=folder)
    assert trainer.model[1].weight is trainer.model[0].weight


OPTIMIZERS = {
    "SGD without momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "SGD with momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "Adam": adam,
    "AdamW with amsgrad": lambda m: torch.optim.AdamW(m.parameters(), amsgrad=True),
    "a rate that is a tensor": lambda m: torch.optim.Adam(
        m.parameters(), lr=torch.tensor(0.01), capturable=False, foreach=False
    ),
    "groups": by_weight_and_bias("weight", "bias"),
    "LBFGS's kin": lambda m: torch.optim.Rprop(m.parameters()),
}


@pytest.mark.grid(3)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_each_optimizer_is_restored_bit_by_bit(tmp_path, kind):
    folder, trainer = saved(tmp_path, optimizer=OPTIMIZERS[kind])
    other = trainer_of(optimizer=OPTIMIZERS[kind], resume_from=folder)
    assert full_state(other)["optimizer"] == full_state(trainer)["optimizer"]
    assert full_state(other)["scheduler"] == full_state(trainer)["scheduler"]
    for each in (trainer, other):
        each.run(max_epochs=2)
    assert full_state(other)["modules"] == full_state(trainer)["modules"]


def test_parameter_without_gradient_has_no_state_after_restore(tmp_path):
    def unused():
        model = Net()
        model.unused = torch.nn.Linear(2, 2)
        return model

    folder, trainer = saved(tmp_path, model=unused)
    other = trainer_of(model=unused, resume_from=folder)
    assert full_state(other)["optimizer"] == full_state(trainer)["optimizer"]
    assert len(other.optimizer.state) == 4


def test_parameters_of_a_loss_function_are_restored(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.rand(1))

        def forward(self, y_pred, y):
            return F.mse_loss(self.scale * y_pred, y)

    def make(loss_fn, **options):
        def both(model):
            return torch.optim.Adam([*model.parameters(), *loss_fn.parameters()])

        return trainer_of(optimizer=both, loss_fn=loss_fn, **options)

    first = Scaled()
    make(first, checkpoint=SaveCheckpoint(tmp_path)).run()
    other = Scaled()
    assert not torch.equal(other.scale, first.scale)
    make(other, resume_from=tmp_path)
    assert torch.equal(other.scale, first.scale)


def assert_error_or_reported(about, resume):
    """Asserts that a resume raises an error or reports the part."""
    try:
        message = str(resume().resume_report)
    except ValueError as error:
        message = str(error)
    assert about in message
    assert "missing" in message or "approximate" in message or "does not fit" in message


def test_unused_state_of_a_loss_function_is_reported(tmp_path):
    weighted = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 3.0]))
    saved(tmp_path, loss_fn=weighted)
    assert_error_or_reported("loss_fn", lambda: trainer_of(resume_from=tmp_path))


def test_the_scaler_is_restored(tmp_path):
    def make(scale, **options):
        trainer = trainer_of()
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return trainer

    trainer = make(64.0)
    SaveCheckpoint(tmp_path).attach(trainer)
    trainer.run()
    other = make(1024.0)
    ResumeCheckpoint(tmp_path).attach(other)
    assert other.accelerator.scaler.get_scale() == 64.0
    assert str(other.resume_report.parts["scaler"]) == "exact"


def test_float32_into_bfloat16_is_reported_as_approximate(tmp_path):
    saved(tmp_path)
    trainer = trainer_of(
        model=lambda: Net().to(torch.bfloat16),
        data=[(x.bfloat16(), y.bfloat16()) for x, y in batches_of(3)],
        resume_from=tmp_path,
    )
    assert trainer.resume_report.parts["model"].level == "approximate"
    assert {each.dtype for each in trainer.model.parameters()} == {torch.bfloat16}
    with pytest.warns(UserWarning, match=r"model: approximate .*other dtypes"):
        trainer.run(max_epochs=2)


class CreatesFolderWhenUnpickled:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.grid(7)
@pytest.mark.parametrize("way", ["torch.save", "pickle"])
@pytest.mark.parametrize(
    "name",
    [
        "optimizer.bin",
        "scheduler.bin",
        "scaler.pt",
        "trainer.pt",
        "rank_00000.pt",
        "model.bin",
        "model.safetensors",
        "custom_checkpoint_0.pkl",
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_code_in_any_file_is_refused_and_does_not_run(tmp_path, name, way, verify):
    folder, _ = saved(tmp_path, save={"safe_serialization": name != "model.bin"})
    mark = tmp_path / "ran"
    content = {"state": {0: CreatesFolderWhenUnpickled(mark)}, "param_groups": []}
    if way == "pickle":
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, folder / name)
    relist_files(folder)
    trainer = trainer_of()
    trainer.accelerator.register_for_checkpointing(Box())
    before = full_state(trainer)
    with (
        pytest.warns(UserWarning, match=f"skipped, .*{name}"),
        pytest.raises(ValueError, match=name),
    ):
        ResumeCheckpoint(folder, verify=verify).attach(trainer)
    assert not mark.exists()
    assert full_state(trainer) == before


def test_files_missing_from_the_manifest_are_ignored(tmp_path):
    folder, _ = saved(tmp_path)
    mark = tmp_path / "ran"
    for name in ("custom_checkpoint_0.pkl", "scaler.pt", "model.bin", "random_states_0.pkl"):
        (folder / name).write_bytes(pickle.dumps(CreatesFolderWhenUnpickled(mark)))
    trainer = trainer_of(resume_from=ResumeCheckpoint(folder, trust_pickle=True))
    assert trainer.state.iteration == 3
    assert not mark.exists()


def registering(*objects, **options):
    trainer = trainer_of()
    trainer.accelerator.register_for_checkpointing(*objects)
    if "directory" in options:
        SaveCheckpoint(options["directory"], trust_pickle=True).attach(trainer)
    return trainer


class Opaque(Box):
    """A box whose state has to be unpickled."""

    def state_dict(self):
        return {"value": self.value, "what": pytest.approx}


def test_registered_objects_are_restored_with_trust_pickle(tmp_path):
    registering(*map(Opaque, range(12)), directory=tmp_path).run()
    objects = [Opaque() for _ in range(12)]
    trainer = registering(*objects)
    ResumeCheckpoint(tmp_path, trust_pickle=True).attach(trainer)
    assert [each.value for each in objects] == list(range(12))
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"custom_checkpoint_0\.pkl.* trust_pickle=True"),
    ):
        ResumeCheckpoint(tmp_path).attach(registering(*objects))


@pytest.mark.parametrize(("then", "now"), [(2, 1), (1, 2), (0, 1), (1, 0)])
def test_different_number_of_registered_objects_is_reported(tmp_path, then, now):
    registering(*map(Opaque, range(then)), directory=tmp_path).run()
    trainer = registering(*map(Opaque, range(now)))
    resume = ResumeCheckpoint(tmp_path, trust_pickle=True)
    assert_error_or_reported("register", lambda: resume.attach(trainer).engine)


def test_code_in_files_that_accelerate_reads_is_refused(tmp_path, monkeypatch):
    # Where a model is split over processes; that needs GPUs, and this part of it does not.
    monkeypatch.setattr(TrainingState, "is_sharded", True)
    folder, _ = saved(tmp_path)
    mark = tmp_path / "ran"
    torch.save(
        {"value": CreatesFolderWhenUnpickled(mark)}, folder / "sharded" / "custom_checkpoint_0.pkl"
    )
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    records = {path.relative_to(folder).as_posix(): file_record(path) for path in paths}
    set_manifest(folder, files={name: record.model_dump() for name, record in records.items()})
    trainer = trainer_of()
    trainer.accelerator.register_for_checkpointing(Box())
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match="trust_pickle=True"),
    ):
        ResumeCheckpoint(folder).attach(trainer)
    assert not mark.exists()


# The way back after a failure


def fill(boxes, state, failure=None):
    for box in boxes:
        box.value += 1
    state.metrics["a"] = 2
    state.metrics["b"] = 3
    state.alpha, state.beta = 5, 6
    if failure is not None:
        raise failure


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_failure_rolls_back_all_even_if_one_object_refuses(failure):
    boxes = [Box(torch.zeros(2)), Box(1, refuses=True), Box(3)]
    state = SimpleNamespace(metrics={"a": 1}, alpha=4)
    metrics = state.metrics
    with pytest.raises(failure), rolled_back_on_failure(boxes, state):
        fill(boxes, state, failure)
    assert torch.equal(boxes[0].value, torch.zeros(2))
    assert boxes[2].value == 3
    assert vars(state) == {"metrics": {"a": 1}, "alpha": 4}
    assert state.metrics is metrics


def test_without_a_failure_loaded_states_are_kept():
    boxes = [Box(torch.zeros(2)), Box(3)]
    state = SimpleNamespace(metrics={"a": 1}, alpha=4)
    with rolled_back_on_failure(boxes, state):
        fill(boxes, state)
    assert torch.equal(boxes[0].value, torch.ones(2))
    assert boxes[1].value == 4
    assert vars(state) == {"metrics": {"a": 2, "b": 3}, "alpha": 5, "beta": 6}
