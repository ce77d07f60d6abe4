"""Tests of loading weights: equal bit for bit, or an error that leaves the module unchanged."""

import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from safetensors import safe_open
from safetensors.torch import load_model
from torch.optim.swa_utils import AveragedModel

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import checkpoints
from ignite_hooks.checkpoint import export_weights
from ignite_hooks.checkpoint import load_weights
from ignite_hooks.checkpoint import weights as weights_module
from ignite_hooks.checkpoint.digest import digest_of
from ignite_hooks.checkpoint.manifest import Manifest
from tests.checkpoint.stored import damaged
from tests.reference import batches_of
from tests.reference import seed

SCORES = (0.1, 0.7, math.nan, 0.7, 0.3)  # of five epochs; of equals the newer is the better
BEST = 16


class Model(torch.nn.Module):
    """A model with tied and complex weights, and buffers."""

    def __init__(self):
        super().__init__()
        self.wave = torch.nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.one, self.other = (torch.nn.Linear(4, 4, bias=False) for _ in range(2))
        self.other.weight = self.one.weight
        self.norm = torch.nn.BatchNorm1d(4)
        self.last = torch.nn.Linear(4, 2)
        self.register_buffer("phase", torch.randn(2, dtype=torch.complex128))

    def forward(self, x):
        return self.last(self.norm(self.other(self.one((x * self.wave).abs()))))


class Weighted(torch.nn.Module):
    """A loss function with a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.rand(()) + 1)

    def forward(self, output, y):
        return F.mse_loss(output, y) * self.scale


def compiled(module):
    return torch.compile(module, backend="eager")


def train(folder, *, scores=SCORES, wrap=compiled, **options):
    """Trains five epochs of four steps; returns digests of the weights by step and part."""
    seed()
    model, loss_fn = Model(), Weighted()
    averaged = AveragedModel(model)
    usual = {"every_epochs": 1, "keep_last": "all", "metric": "score", "also": {"ema": averaged}}
    trainer = create_supervised_trainer(
        wrap(model),
        torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], lr=0.01),
        loss_fn,
        batches_of(4),
        accelerator=Accelerator(cpu=True),
        checkpoint=SaveCheckpoint(folder, **{**usual, **options}),
    )
    found = {}

    @trainer.on(Events.EPOCH_COMPLETED)
    def note(engine):
        engine.state.metrics["score"] = scores[engine.state.epoch - 1]
        averaged.update_parameters(model)
        parts = {
            "model": model,
            "loss_fn": loss_fn,
            "also/ema": averaged,
            "in ema": averaged.module,
        }
        digests = {part: digest_of(module.state_dict()) for part, module in parts.items()}
        found[engine.state.optimizer_step] = digests

    trainer.run(max_epochs=len(scores))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, train(folder)


def digest(module):
    return digest_of(module.state_dict())


# The list of checkpoints


def test_checkpoints_are_listed_the_newest_first(run):
    folder, _ = run
    found = checkpoints(folder)
    assert [(each.step, each.epoch, each.number) for each in found] == [
        (20, 5, 5),
        (16, 4, 4),
        (12, 3, 3),
        (8, 2, 2),
        (4, 1, 1),
    ]
    assert [each.is_best for each in found] == [False, True, False, False, False]
    assert found[0].metric == "score"
    assert found[0].metric_value == 0.3
    assert found[0].path == folder / "step_00000020"
    assert len({each.run for each in found}) == 1
    assert found[0].saved_at > found[1].saved_at


def test_single_checkpoint_and_url_are_sources(run, tmp_path):
    folder, _ = run
    assert [each.step for each in checkpoints(str(folder / "step_00000008"))] == [8]
    found = checkpoints(folder.as_uri())
    assert [each.path for each in found][:1] == [f"{folder.as_uri()}/step_00000020"]
    assert [each.step for each in checkpoints(found[3].path)] == [8]
    assert checkpoints(tmp_path) == []


def test_source_that_is_not_a_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="`source` must be a checkpoint or a directory of"):
        checkpoints(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="got the file"):
        checkpoints(tmp_path / "file")
    with pytest.raises(ValueError, match=r"^`source` must be a path or a URL, got 5"):
        checkpoints(5)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_mode_of_the_run_decides_which_is_best(tmp_path, mode):
    train(tmp_path, scores=(3.0, 1.0, math.nan), mode=mode)
    with pytest.warns(UserWarning, match="checkpoints of other runs"):
        train(tmp_path, scores=(2.0, 5.0), mode="max")
    best = [each.metric_value for each in checkpoints(tmp_path) if each.is_best]
    assert best == [5.0, 3.0 if mode == "max" else 1.0]
    assert load_weights(Model(), tmp_path).metric_value == 5.0


def test_damaged_checkpoint_is_skipped_with_a_warning(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    (folder / "step_00000016" / "manifest.json").write_text("{")
    for call in (lambda: checkpoints(folder), lambda: load_weights(Model(), folder, "last")):
        with pytest.warns(UserWarning, match="skipped, .*its manifest is damaged") as caught:
            call()
        assert [each.filename for each in caught] == [__file__]  # the warning points here
    with pytest.warns(UserWarning, match="skipped"):
        assert [each.step for each in checkpoints(folder)] == [20, 12, 8, 4]


# Loading


@pytest.mark.parametrize(
    ("which", "step"),
    [
        ("best", BEST),
        ("last", 20),
        (8, 8),
        ("step_00000012", 12),
        (lambda folder: folder / "step_00000004", 4),
        (lambda folder: str(folder / "step_00000004"), 4),
    ],
)
@pytest.mark.parametrize("is_url", [False, True])
def test_weights_of_the_selected_checkpoint_are_loaded(run, tmp_path, which, step, is_url):
    folder, digests = run
    which = which(folder) if callable(which) else which
    if is_url and "/" in str(which):
        which = f"{folder.as_uri()}/{Path(which).name}"
    module = Model()
    source = folder.as_uri() if is_url else folder
    found = load_weights(module, source, which, cache_dir=tmp_path if is_url else None)
    assert found.step == step
    assert digest(module) == digests[step]["model"]
    assert module.other.weight is module.one.weight
    downloaded = {each.name for each in tmp_path.rglob("*") if each.is_file()} - {".lock"}
    assert downloaded == ({"model.safetensors", "trainer.pt", "manifest.json"} if is_url else set())


def test_a_single_checkpoint_need_not_be_the_best(run):
    module = Model()
    assert load_weights(module, run[0] / "step_00000004").step == 4
    assert digest(module) == run[1][4]["model"]


@pytest.mark.parametrize(
    ("part", "make", "of"),
    [
        ("loss_fn", Weighted, "loss_fn"),
        ("also/ema", lambda: AveragedModel(Model()), "also/ema"),
        ("also/ema", lambda: AveragedModel(compiled(Model())), "also/ema"),
        ("also/ema", Model, "in ema"),
        ("model", lambda: compiled(Model()), "model"),
        ("model", lambda: torch.nn.DataParallel(Model()), "model"),
        ("model", lambda: Accelerator(cpu=True).prepare(compiled(Model())), "model"),
    ],
)
def test_each_part_loads_into_a_module_wrapped_or_not(run, part, make, of):
    module = make()
    load_weights(module, run[0], part=part)
    assert digest_of(list(module.state_dict().values())) == digest_of_values(run, part, of)


def digest_of_values(run, part, of):
    module = {"loss_fn": Weighted, "also/ema": lambda: AveragedModel(Model())}.get(of, Model)()
    load_weights(module, run[0], part=part)
    assert digest(module) == run[1][BEST][of]
    return digest_of(list(module.state_dict().values()))


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_weights_do_not_depend_on_how_they_are_stored(tmp_path, safe_serialization):
    digests = train(
        tmp_path, wrap=lambda model: model, safe_serialization=safe_serialization, scores=(1.0,)
    )
    module = Model()
    load_weights(module, tmp_path)
    assert digest(module) == digests[4]["model"]


def test_module_keeps_its_flags_and_devices(run):
    module = Model().requires_grad_(False).eval()
    load_weights(module, run[0], map_location=torch.device("cpu"))
    assert not module.training
    assert not any(each.requires_grad for each in module.parameters())


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        (5, TypeError, "`map_location` must be a device, .* got 5"),
        ("nowhere", ValueError, "`map_location` must be an available device, got 'nowhere'"),
        ("cuda:99", ValueError, "`map_location` must be an available device, got 'cuda:99'"),
        (
            {"cpu": "cuda:99"},
            ValueError,
            "`map_location` must be an available .*, got {'cpu': 'cuda",
        ),
    ],
)
def test_unavailable_map_location_is_an_error(run, place, error, said):
    module = Model()
    before = digest(module)
    with pytest.raises(error, match=said):
        load_weights(module, run[0], map_location=place)
    assert digest(module) == before


@pytest.mark.parametrize(
    "map_location",
    [
        None,
        "cpu",
        torch.device("cpu"),
        {"cpu": "cpu"},
        {},
        lambda storage, location: storage,
        lambda storage, location: None,
    ],
)
def test_map_location_is_as_in_torch_load(run, map_location):
    module = Model()
    load_weights(module, run[0], map_location=map_location)
    assert digest(module) == run[1][BEST]["model"]


def test_another_dtype_is_converted_with_a_warning(run):
    module = Model()
    module.last.to(torch.bfloat16)
    with pytest.warns(UserWarning, match="converted: last.bias, last.weight"):
        load_weights(module, run[0])
    exact = Model()
    load_weights(exact, run[0])
    assert torch.equal(module.last.weight, exact.last.weight.bfloat16())


def another_head():
    module = Model()
    module.last = torch.nn.Linear(4, 3)
    module.more = torch.nn.Linear(2, 2)
    return module


def real_wave():
    module = Model()
    module.wave = torch.nn.Parameter(torch.randn(4))
    return module


def on_meta():
    with torch.device("meta"):
        return Model()


def with_post_hook():
    def fail(module, keys):
        raise OverflowError("no more of this")

    module = Model()
    module.register_load_state_dict_post_hook(fail)
    return module


MISFITS = {
    "names": (
        another_head,
        "last.bias had the shape .2,., it has .3,.; .*has more.bias, the checkpoint has not",
        {},
    ),
    "shapes": (another_head, "last.weight had the shape .2, 4., it has .3, 4.", {"strict": False}),
    "complex": (real_wave, "wave had the dtype torch.complex64, it has torch.float32", {}),
    "meta": (on_meta, r"on the meta device: call its to_empty\(\)", {}),
    "a hook": (with_post_hook, "cannot load the state .OverflowError", {}),
    "nothing": (
        lambda: torch.nn.Conv1d(1, 1, 1),
        "no name in common with the module",
        {"strict": False},
    ),
    "many": (
        lambda: torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(9))),
        "; and 21 more: build the module",
        {},
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_leave_the_module_as_it_was(run, name):
    make, message, options = MISFITS[name]
    module = make()
    before = None if name == "meta" else digest(module)
    with pytest.raises(ValueError, match=message):
        load_weights(module, run[0], **options)
    assert before is None or digest(module) == before


def test_strict_false_loads_the_common_names(run):
    module = Model()
    del module.norm
    module.more = torch.nn.Linear(2, 2)
    found = load_weights(module, run[0], strict=False)
    assert sorted(found.missing) == ["more.bias", "more.weight"]
    assert len(found.unexpected) == 5
    exact = Model()
    load_weights(exact, run[0])
    assert torch.equal(module.last.weight, exact.last.weight)


@pytest.mark.parametrize(
    ("which", "part", "error", "message"),
    [
        (7, "model", ValueError, "a step that was saved, got 7; .* has 4, 8, 12, 16, 20: name"),
        ("step_7", "model", ValueError, "the name or path of a checkpoint in `source`, got"),
        (True, "model", TypeError, "`which` must be"),
        (None, "model", TypeError, "`which` must be"),
        ("best", "ema", ValueError, "has model, loss_fn, also/ema"),
        ("best", "also/teacher", ValueError, "`part` must name an object that was saved"),
        ("best", "also", ValueError, "`part` must name an object that was saved"),
        ("best", "../model", ValueError, "`part` must name an object that was saved"),
        ("best", "", TypeError, "`part` must be a name"),
    ],
)
def test_absent_checkpoint_or_part_is_an_error_that_lists_all(run, which, part, error, message):
    module = Model()
    before = digest(module)
    with pytest.raises(error, match=message):
        load_weights(module, run[0], which, part)
    assert digest(module) == before


def test_arguments_are_checked_before_anything_is_read(run, tmp_path):
    with pytest.raises(TypeError, match="`module` must be a torch"):
        load_weights({}, run[0])
    with pytest.raises(ValueError, match="`cache_dir` must be given for a URL"):
        load_weights(Model(), run[0].as_uri())
    with pytest.raises(FileNotFoundError, match="which has none"):
        load_weights(Model(), tmp_path)


@pytest.mark.parametrize(
    ("scores", "options", "why"),
    [
        ((1.0,), {"metric": None}, "they were saved without a metric"),
        ((math.nan,), {}, "none of them has a value of score"),
    ],
)
def test_without_a_metric_there_is_no_best(tmp_path, scores, options, why):
    train(tmp_path, scores=scores, **options)
    assert not any(each.is_best for each in checkpoints(tmp_path))
    with pytest.raises(ValueError, match=why):
        load_weights(Model(), tmp_path)
    assert load_weights(Model(), tmp_path, "last").step == 4


def test_checkpoints_without_a_mode_have_no_best(run, tmp_path):
    """Checkpoints of layout 1 have no mode; their weights can be loaded by step."""
    folder = shutil.copytree(run[0], tmp_path / "copy")
    for path in folder.glob("*/manifest.json"):
        manifest = Manifest.loads(path.read_bytes())
        path.write_bytes(manifest.model_copy(update={"version": 1, "metric_mode": None}).dumps())
    with pytest.raises(ValueError, match="whether a high or a low score is better"):
        load_weights(Model(), folder)
    module = Model()
    load_weights(module, folder, 8)
    assert digest(module) == run[1][8]["model"]


def test_damaged_file_is_an_error_unless_which_is_last(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    for step in (16, 20):
        damaged(folder / f"step_{step:08d}", "a bit flipped")
    module = Model()
    before = digest(module)
    for which in ("best", 20, "step_00000020"):
        with pytest.raises(ValueError, match="is damaged: model"):
            load_weights(module, folder, which)
    assert digest(module) == before
    with pytest.warns(UserWarning, match="skipped, .* is damaged") as told:
        assert load_weights(module, folder, "last").step == 12
    assert [each.filename for each in told] == [__file__] * 2
    assert digest(module) == run[1][12]["model"]


def test_only_the_files_of_the_part_are_verified(run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    (folder / f"step_{BEST:08d}" / "optimizer.bin").unlink()
    assert load_weights(Model(), folder).step == BEST


@pytest.mark.parametrize("is_read", [False, True], ids=["before it is read", "after it"])
def test_checkpoint_pruned_during_a_load_is_not_damaged(run, tmp_path, monkeypatch, is_read):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    read = weights_module.read_module

    def remove(path, *args):
        state = read(path, *args) if is_read else None
        if path.name == "step_00000020":
            shutil.rmtree(path)
        return state or read(path, *args)

    monkeypatch.setattr(weights_module, "read_module", remove)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_weights(Model(), folder, "last").step == 16


def test_sharded_model_is_an_error(run, tmp_path):
    folder = shutil.copytree(run[0] / "step_00000004", tmp_path / "step_00000004")
    manifest = Manifest.loads((folder / "manifest.json").read_bytes())
    files = {"sharded/model.distcp": next(iter(manifest.files.values())), **manifest.files}
    text = manifest.model_copy(update={"files": files}).dumps()
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(ValueError, match="split over processes"):
        load_weights(Model(), tmp_path, "last")


@pytest.mark.parametrize("wrap", [lambda module: module, compiled], ids=["plain", "compiled"])
def test_nested_state_is_found_by_its_path(tmp_path, wrap):
    class Teacher:
        def __init__(self):
            self.net = torch.nn.Linear(2, 2)

        def state_dict(self):
            return {"net": wrap(self.net).state_dict(), "age": 3}

        def load_state_dict(self, state):
            pass

    teacher, module = Teacher(), torch.nn.Linear(2, 2)
    train(tmp_path, scores=(1.0,), also={"teacher": teacher})
    load_weights(module, tmp_path, part="also/teacher/net")
    assert digest(module) == digest(teacher.net)


# Export


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = (torch.nn.Linear(4, 4, bias=False) for _ in range(2))
        self.other.weight = self.one.weight
        self.last = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.other(self.one(x)))


def test_exported_file_can_be_read_by_load_model(tmp_path):
    seed()
    model = Plain()
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01),
        F.mse_loss,
        batches_of(4),
        accelerator=Accelerator(cpu=True),
        checkpoint=SaveCheckpoint(tmp_path / "run"),
    )
    trainer.run()
    target = tmp_path / "out" / "model.safetensors"
    target.parent.mkdir()
    target.write_text("former")
    entry = export_weights(tmp_path / "run", target, "last")
    assert entry.step == 4
    assert [each.name for each in target.parent.iterdir()] == ["model.safetensors"]
    other = Plain()
    load_model(other, target)
    assert digest(other) == digest(model)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert metadata["step"] == "4"
    assert metadata["format"] == "pt"
    assert "version of torch" in metadata
    (tmp_path / "usual").touch()
    assert target.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_failed_export_keeps_the_existing_file(run, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_text("former")
    with pytest.raises(ValueError, match=r"got phase \(torch.complex128\)"):
        export_weights(run[0], target)
    assert target.read_text() == "former"
    with pytest.raises(ValueError, match="must be a file that ends in"):
        export_weights(run[0], tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match="in a folder that exists"):
        export_weights(run[0], tmp_path / "nowhere" / "model.safetensors")
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]
