import importlib.metadata
import json
import platform
import sys

import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import description
from ignite_hooks.checkpoint.command_line import command_line
from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.description import contents_of
from ignite_hooks.checkpoint.description import versions
from ignite_hooks.checkpoint.store import read_manifest

DATA = TensorDataset(torch.randn(16, 3), torch.randn(16, 2))


def saved(directory, data=None, **options):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoint = SaveCheckpoint(directory, also={"ema": torch.nn.Linear(1, 1)})
    trainer = create_supervised_trainer(
        model,
        optimizer,
        torch.nn.functional.mse_loss,
        DataLoader(DATA, 4) if data is None else data,
        lr_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 3),
        checkpoint=checkpoint,
        **options,
    )
    trainer.state.note = 3
    trainer.state_dict_user_keys.append("note")
    trainer.run(max_steps=2)
    return read_manifest(checkpoint.last_checkpoint)


@pytest.fixture
def no_caches():
    versions.cache_clear()
    command_line.cache_clear()
    yield
    versions.cache_clear()
    command_line.cache_clear()


def test_manifest_names_the_contents(tmp_path):
    stop = EarlyStopping(3, lambda engine: 0.0, torch_engine())
    manifest = saved(tmp_path, handlers=[Attaching(stop)])
    assert manifest.contents == {
        "modules": ["model"],
        "optimizer": ["SGD"],
        "scheduler": ["StepLR"],
        "handlers": ["EarlyStopping"],
        "also": ["ema"],
        "user state": ["note"],
        "random generators": ["python", "numpy", "cpu"],
    }


class Attaching:
    """Attaches a handler of Ignite in the way of the trainer's own handlers."""

    def __init__(self, handler):
        self._handler = handler

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._handler)


def torch_engine():
    return Engine(lambda engine, batch: None)


def test_manifest_has_versions_and_command_line(tmp_path, no_caches, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py", "--token", "abc", "\udcff"])
    manifest = saved(tmp_path)
    assert manifest.command_line == ["python", "train.py", "--token", "***", "\\udcff"]
    assert manifest.versions == {
        "python": platform.python_version(),
        **{
            name: importlib.metadata.version(name)
            for name in (
                "ignite-hooks",
                "torch",
                "accelerate",
                "pytorch-ignite",
                "numpy",
                "safetensors",
            )
        },
        "platform": platform.platform(),
    }


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (lambda: DataLoader(DATA, 4), 4),
        (lambda: [(torch.randn(4, 3), torch.randn(4, 2))] * 4, None),
    ],
)
def test_manifest_has_the_global_batch_size(tmp_path, data, size):
    accelerator = Accelerator(gradient_accumulation_steps=2)
    assert saved(tmp_path, data(), accelerator=accelerator).global_batch == size


def test_a_loader_whose_batch_size_fails_is_no_obstacle(tmp_path):
    class Sampler(torch.utils.data.SequentialSampler):
        def __iter__(self):
            return iter([[0, 1], [2, 3]] * 4)

        def __len__(self):
            return 8

        @property
        def batch_size(self):
            raise RuntimeError("not now")

    loader = DataLoader(DATA, batch_size=None, sampler=Sampler(DATA))
    assert saved(tmp_path, loader).global_batch is None


def test_a_package_without_metadata_is_no_obstacle(tmp_path, no_caches, monkeypatch):
    real = importlib.metadata.version

    def version(name):  # Accelerate asks for others
        if name == "ignite-hooks":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert saved(tmp_path).versions["ignite-hooks"] == "unknown"


def test_versions_and_command_line_are_found_once(tmp_path, no_caches, monkeypatch):
    asked = []
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda n: asked.append(n) or real(n))
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    assert asked.count("ignite-hooks") == 1


def objects(**kinds):
    return {"trainer.pt": Objects({"objects": kinds}, "it")}


def test_names_of_any_kind_and_number_are_bounded_texts():
    names = {3: 1, "\ud800": 1, "x" * 10**5: 1, **{f"m{i}": 1 for i in range(1000)}}
    found = contents_of(objects(metrics=names))["metrics"]
    assert found[:2] == ["3", "\\ud800"]
    assert found[-1] == f"... {1003 - description.MAX_NAMES} more"
    assert len(json.dumps(found)) < 10_000


def test_uncertain_parts_and_registered_objects_are_named():
    about = {
        "kinds": {"optimizer": "SGD", "scheduler": None, "scaler": "GradScaler"},
        "objects": {},
        "unknown": {"handlers": "Counter has no state_dict"},
        "uncertain": {"random generators": "a failure"},
    }
    files = {
        "trainer.pt": Objects(about, "it"),
        "rank_00000.pt": Objects(
            {
                "random": {"python": 1, "device": None, "generators": {"mine": 1}},
                "data": {"source": {"generators": {"data.sampler": 1, "mine": 2}}},
            },
            "it",
        ),
        "custom_checkpoint_0.pkl": Objects({}, "Counter", may_pickle=True),
    }
    assert contents_of(files) == {
        "modules": ["model"],
        "optimizer": ["SGD"],
        "scaler": ["GradScaler"],
        "registered with the accelerator": ["Counter"],
        "random generators": ["python", "mine", "data.sampler"],
        "unknown": [
            "handlers: Counter has no state_dict",
            "random generators: a failure",
        ],
    }
