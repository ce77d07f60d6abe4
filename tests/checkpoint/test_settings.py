"""The settings of a run as plain data, as the script gave them."""

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.lr_scheduler import LinearLR
from torch.optim.lr_scheduler import MultiStepLR
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import SequentialLR

from ignite_hooks import GradientClipping
from ignite_hooks import TrainEvents
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.settings import plain
from ignite_hooks.checkpoint.settings import settings_of
from tests.checkpoint.trained import LENGTH
from tests.checkpoint.trained import make_trainer
from tests.checkpoint.trained import trained

SCALE = 3


def manifest_of(directory):
    (path,) = Path(directory).glob("step_*/manifest.json")
    return Manifest.loads(path.read_bytes())


def test_manifest_has_the_settings_of_the_run(tmp_path):
    schedule = lambda optimizer: CosineAnnealingLR(optimizer, 20)  # noqa: E731
    arguments = {"grad_clip": GradientClipping(max_norm=1.0, norm_type=float("inf"))}
    trained(tmp_path, schedule=schedule, frozen=["0.bias"], accumulate=2, arguments=arguments)
    settings = manifest_of(tmp_path).settings
    (group,) = settings["optimizer"]["groups"]
    assert settings["optimizer"]["class"] == "AdamW"
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.1, 0.01, [0.9, 0.999])
    assert settings["scheduler"] == {"class": "CosineAnnealingLR", "T_max": 20, "eta_min": 0.0}
    assert settings["scheduler_at"] == "step"
    assert settings["clipping"]["max_norm"] == 1.0
    assert settings["accumulation"] == 2
    assert settings["mixed_precision"] == "no"
    assert settings["frozen"] == ["model.0.bias"]
    assert settings["data"]["samples a batch"] == 4
    assert settings["data"]["batches a pass"] == LENGTH


def test_clipping_added_to_an_event_is_a_setting(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.add_event_handler(TrainEvents.OPTIMIZER_STEP_STARTED, GradientClipping(clip_value=0.5))
    assert settings_of(trainer)["clipping"]["clip_value"] == 0.5


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            lambda o: MultiStepLR(o, [5, 5, 2]),
            {"class": "MultiStepLR", "milestones": [2, 5, 5], "gamma": 0.1},
        ),
        (
            lambda o: SequentialLR(o, [LinearLR(o, 0.5), CosineAnnealingLR(o, 9)], [4]),
            {
                "class": "SequentialLR",
                "milestones": [4],
                "schedulers": [
                    {
                        "class": "LinearLR",
                        "start_factor": 0.5,
                        "end_factor": 1.0,
                        "total_iters": 5,
                    },
                    {"class": "CosineAnnealingLR", "T_max": 9, "eta_min": 0.0},
                ],
            },
        ),
    ],
    ids=["milestones", "sequence"],
)
def test_constants_of_a_schedule_do_not_change_as_it_moves(tmp_path, schedule, expected):
    trainer = make_trainer(tmp_path, schedule=schedule)
    assert settings_of(trainer)["scheduler"] == expected
    trainer.run(max_steps=7)
    assert settings_of(trainer)["scheduler"] == expected


@pytest.mark.parametrize("kind", [torch.optim.AdamW, functools.partial(SGD, momentum=0.9)])
def test_settings_do_not_change_with_a_cyclic_momentum(tmp_path, kind):
    schedule = lambda o: OneCycleLR(o, 0.1, total_steps=30)  # noqa: E731
    trainer = make_trainer(tmp_path, kind=kind, schedule=schedule)
    before = settings_of(trainer)
    trainer.run(max_steps=7)
    assert settings_of(trainer) == before
    assert before["scheduler"]["max_lr"] == [0.1]
    assert before["scheduler"]["pct_start"] == 0.3


DESCRIBE = """
from ignite_hooks.checkpoint.settings import plain
print(plain(lambda step: step in {"warm-up", "train", "cool-down", "end"}))
"""


def test_set_order_does_not_change_a_function_description():
    described = {
        subprocess.run(
            [sys.executable, "-c", DESCRIBE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in "12"
    }
    assert len(described) == 1


def make_function(offset):
    def scaled(step):
        return SCALE * step + offset

    return scaled


class Rule:
    """A callable with a state."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, step):
        return self.factor * step

    def method(self, step):
        return step


def test_functions_are_compared_by_code_and_used_values(monkeypatch):
    one, same, other = make_function(1), make_function(1), make_function(2)
    assert plain(one) == plain(same) != plain(other)
    assert plain(other)["offset"] == 2
    assert plain(one)["SCALE"] == 3
    before = plain(one)
    monkeypatch.setitem(globals(), "SCALE", 4)
    assert plain(one) != before
    assert plain(lambda step: step + 1)["code"] != plain(lambda step: step + 2)["code"]
    assert plain(lambda step: step + 1)["code"] == plain(lambda step: step + 1)["code"]
    nested = [lambda x, n=n: (lambda y: y in {"a", "b", n})(x) for n in (1, 2)]
    assert plain(nested[0])["code"] == plain(nested[1])["code"]
    assert plain(nested[0]) != plain(nested[1])


def test_partials_and_callable_objects_show_their_values():
    assert plain(functools.partial(make_function(1), 5, warmup=9))["warmup"] == 9
    assert plain(Rule(2)) == {"function": "Rule", "factor": 2}
    assert plain(Rule(2).method)["function"].endswith("Rule.method")
    assert plain(max) == {"function": "max"}


class Kind(Enum):
    """An enum."""

    COS = 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (torch.tensor(0.25), 0.25),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.zeros(9, 9), "a tensor of shape [9, 9]"),
        (torch.zeros(2, device="meta"), "a tensor of shape [2]"),
        ((1, "a", None, True), [1, "a", None, True]),
        ({1: {2, 1}}, {"1": [1, 2]}),
        (Counter({5: 2, 1: 1}), [1, 5, 5]),
        (Kind.COS, "COS"),
        (Path("a/b"), "a/b"),
        ("\ud800", "\\ud800"),
        pytest.param(object(), "object", id="object"),
        (Rule, {"function": "Rule"}),
    ],
    ids=str,
)
def test_any_value_becomes_plain_data(value, expected):
    result = plain(value)
    assert result == expected
    assert type(result) is type(expected)
    json.dumps(result).encode()


def test_values_that_contain_themselves_are_cut():
    endless = []
    endless.append(endless)

    def recursive(step):
        return recursive(step)

    json.dumps([plain(endless), plain(recursive)])


def test_record_keeps_settings_from_before_handlers_ran(tmp_path):
    trainer = make_trainer(tmp_path)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=3))
    def change(engine):
        engine.optimizer.param_groups[0].update(lr=0.5, weight_decay=0.5)
        engine.model[0].weight.requires_grad_(False)
        engine.accelerator.gradient_accumulation_steps = 2

    trainer.run(max_steps=5)
    settings = manifest_of(tmp_path).settings
    (group,) = settings["optimizer"]["groups"]
    assert (group["lr"], group["weight_decay"], settings["frozen"]) == (0.1, 0.01, [])
    assert settings["accumulation"] == 2  # it is in no state: the run continues with this value


def test_a_lambda_of_each_group_is_described(tmp_path):
    lambdas = [lambda step: 1.0, lambda step: 0.5]
    trainer = make_trainer(tmp_path, groups=[0.1, 0.2], schedule=lambda o: LambdaLR(o, lambdas))
    first, second = settings_of(trainer)["scheduler"]["lr_lambdas"]
    assert first["code"] != second["code"]
