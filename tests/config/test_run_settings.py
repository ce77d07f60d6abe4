import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Events
from ignite.metrics import MeanSquaredError
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from ignite_hooks import ClearCache
from ignite_hooks import EpochMaxRAM
from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import MaxRAM
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.config import ConfigError
from ignite_hooks.config import RunSettings
from ignite_hooks.config import ValidationSchedule
from ignite_hooks.config import dumps
from ignite_hooks.config import equal
from ignite_hooks.config import loads
from ignite_hooks.config import register
from ignite_hooks.config import replace
from ignite_hooks.config import to_dict
from ignite_hooks.core.checked_dataclass import checked_dataclass
from tests.reference import Noisy
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import weights


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def decaying(optimizer):
    return ExponentialLR(optimizer, gamma=0.9)


def loader():
    return DataLoader(Noisy(10), 2, shuffle=True)


def built(settings, **options):
    """Builds a trainer of settings, on the CPU."""
    accelerator = settings.set_up(cpu=True)
    model = make_model(dropout=0.5)
    options = {"loss_fn": F.mse_loss, "data": loader(), **options}
    return settings.build(model, sgd(model), accelerator=accelerator, **options)


FULL = {
    "seed": 3,
    "gradient_accumulation_steps": 2,
    "max_epochs": 3,
    "max_steps": 8,
    "grad_clip": GradientClipping(max_norm=0.5),
    "scheduler_at": "epoch",
    "on_peer_failure": "wait",
    "validation": ValidationSchedule(every_steps=2, every_epochs=1, at_start=True, prefix="t_"),
    "handlers": [ClearCache(every_steps=2), GarbageCollector(), EpochMaxRAM()],
}


@pytest.mark.grid(3)
@pytest.mark.parametrize("format", ["json", "yaml", "toml"])
def test_run_from_settings_equals_a_run_from_the_factory(tmp_path, format):
    settings = RunSettings(**FULL, checkpoint=SaveCheckpoint(tmp_path / "a", every_steps=3))
    settings = loads(dumps(settings, format), format)
    accelerator = settings.set_up(cpu=True)
    model = make_model(dropout=0.5)
    evaluator = create_supervised_evaluator(
        model, {"mse": MeanSquaredError()}, accelerator=accelerator
    )
    trainer = settings.build(
        model,
        sgd(model),
        F.mse_loss,
        loader(),
        accelerator=accelerator,
        lr_scheduler=decaying,
        evaluator=evaluator,
        validation_data=batches_of(3),
    )
    trainer.run()

    RunSettings(seed=3).set_up()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = make_model(dropout=0.5)
    evaluator = create_supervised_evaluator(
        model, {"mse": MeanSquaredError()}, accelerator=accelerator
    )
    reference = create_supervised_trainer(
        model,
        sgd(model),
        F.mse_loss,
        loader(),
        accelerator=accelerator,
        lr_scheduler=decaying,
        scheduler_at="epoch",
        grad_clip=GradientClipping(max_norm=0.5),
        validation=Validation(
            evaluator, batches_of(3), every_steps=2, every_epochs=1, at_start=True, prefix="t_"
        ),
        checkpoint=SaveCheckpoint(tmp_path / "b", every_steps=3),
        handlers=[ClearCache(every_steps=2), GarbageCollector(), EpochMaxRAM()],
    )
    reference.run(max_epochs=3, max_steps=8)

    assert torch.equal(weights(trainer.model), weights(reference.model))
    assert trainer.state.optimizer_step == reference.state.optimizer_step == 8
    assert trainer.stop_reason == reference.stop_reason == "max_steps"
    assert trainer.state.validation == reference.state.validation
    assert trainer.state.metrics.keys() == reference.state.metrics.keys()
    assert trainer.state.metrics["t_mse"] == reference.state.metrics["t_mse"]
    assert trainer.lr_scheduler.state_dict() == reference.lr_scheduler.state_dict()
    names = [sorted(each.name for each in (tmp_path / run).glob("step_*")) for run in "ab"]
    assert names[0] == names[1] == ["step_00000003", "step_00000006", "step_00000008"]


def test_run_of_settings_can_be_stopped_and_resumed(tmp_path):
    settings = RunSettings(seed=3, max_epochs=3, checkpoint=SaveCheckpoint(tmp_path / "whole"))
    whole = built(settings)
    whole.run()
    settings = replace(
        settings,
        max_epochs=2,
        checkpoint=SaveCheckpoint(tmp_path / "parts"),
        resume_from=ResumeCheckpoint(tmp_path / "parts", on_missing="start"),
    )
    first = built(settings)
    first.add_event_handler(
        Events.ITERATION_COMPLETED(once=7), lambda: first.terminate(resumable=True)
    )
    first.run()
    second = built(replace(settings, max_epochs=3))
    second.run()
    assert second.resume_report.is_exact
    assert (second.state.start_step, second.state.epoch) == (7, 3)
    assert torch.equal(weights(second.model), weights(whole.model))
    third = built(replace(settings, max_epochs=3))
    third.run()
    assert third.state.iteration == second.state.iteration
    assert torch.equal(weights(third.model), weights(whole.model))


def test_limits_of_run_override_those_of_the_settings():
    trainer = built(RunSettings())
    trainer.run()
    assert trainer.state.epoch == 1
    trainer = built(RunSettings(max_epochs=3))
    trainer.run(max_steps=2)
    assert trainer.state.optimizer_step == 2


def test_set_up_seeds_the_generators():
    drawn = []
    for _ in range(2):
        RunSettings(seed=5).set_up(cpu=True)
        drawn.append((random.random(), float(np.random.rand()), torch.rand(3).tolist()))
    assert drawn[0] == drawn[1]
    before = torch.get_rng_state()
    RunSettings().set_up(cpu=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_set_up_makes_the_accelerator_of_the_settings():
    accelerator = RunSettings(gradient_accumulation_steps=3).set_up(cpu=True)
    assert accelerator.gradient_accumulation_steps == 3
    assert accelerator.device.type == "cpu"
    assert RunSettings(mixed_precision="no").set_up(cpu=True).mixed_precision == "no"


def test_mixed_precision_is_that_of_the_settings():
    seen = set()

    def record_dtype(module, args, output):
        seen.add(output.dtype)

    trainer = built(RunSettings(mixed_precision="bf16"))
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(record_dtype)
    trainer.run()
    assert seen == {torch.bfloat16}


def test_build_calls_set_up_without_an_accelerator():
    first, second = torch.rand(1), None
    settings = RunSettings(seed=9, gradient_accumulation_steps=2)
    model = make_model()
    trainer = settings.build(model, sgd(model), F.mse_loss, batches_of(4))
    second = torch.rand(1)
    RunSettings(seed=9).set_up()
    assert torch.equal(second, torch.rand(1))
    assert not torch.equal(first, second)
    trainer.run()
    assert trainer.state.optimizer_step == 2


def test_an_option_that_is_a_setting_is_refused():
    with pytest.raises(ValueError, match="`mixed_precision` must not be given, because it is"):
        RunSettings().set_up(mixed_precision="bf16")
    with pytest.raises(ValueError, match=r"replace\(settings, gradient_accumulation_steps=2\)"):
        RunSettings().set_up(gradient_accumulation_steps=2)


def test_precision_differing_from_the_accelerator_is_refused():
    Accelerator(cpu=True)
    with pytest.raises(ValueError, match=r"`mixed_precision` must be 'no', as for .* got 'bf16'"):
        RunSettings(mixed_precision="bf16").set_up()


@pytest.mark.parametrize(
    ("name", "value", "has"),
    [("gradient_accumulation_steps", 2, "1"), ("mixed_precision", "bf16", "'no'")],
)
def test_accelerator_with_other_settings_is_refused(name, value, has):
    model = make_model()
    settings = RunSettings(**{name: value})
    with pytest.raises(ValueError, match=rf"must have {name}={value!r}, as in .*, got {has}"):
        settings.build(model, sgd(model), F.mse_loss, accelerator=Accelerator(cpu=True))


def test_accelerator_decides_what_the_settings_leave_out():
    model = make_model()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=5)
    trainer = RunSettings().build(
        model, sgd(model), F.mse_loss, batches_of(5), accelerator=accelerator
    )
    trainer.run()
    assert trainer.state.optimizer_step == 1


@pytest.mark.parametrize(
    "name", ["grad_clip", "validation", "checkpoint", "resume_from", "scheduler_at", "seed"]
)
def test_setting_cannot_be_given_to_build(name):
    with pytest.raises(ValueError, match=rf"`{name}` must not be given, because it is a setting"):
        built(RunSettings(), **{name: None})


def test_build_takes_the_functions_of_the_factory():
    trainer = built(
        RunSettings(),
        loss_fn=None,
        batch_processor=lambda model, batch: (None, model(batch[0]).square().mean()),
        output_transform=lambda x, y, y_pred, loss: "output",
    )
    trainer.run()
    assert trainer.state.output == "output"
    with pytest.raises(TypeError, match="nonsense"):
        built(RunSettings(), nonsense=1)


def test_validation_needs_an_evaluator_with_data():
    settings = RunSettings(validation=ValidationSchedule(every_epochs=1))
    with pytest.raises(ValueError, match="`evaluator` must be given with settings that have a"):
        built(settings)
    evaluator = create_supervised_evaluator(make_model(), accelerator=Accelerator(cpu=True))
    with pytest.raises(ValueError, match="`validation_data` must be given with an engine"):
        built(settings, evaluator=evaluator)
    trainer = built(settings, evaluator=lambda model: {"x": 3})
    trainer.run()
    assert trainer.state.metrics["val_x"] == 3


def test_evaluator_is_unused_without_validation_settings():
    trainer = built(RunSettings(), evaluator=lambda model: pytest.fail("not asked for"))
    trainer.run()
    assert trainer.state.validation == 0


def test_handlers_of_the_settings_are_attached_first():
    order = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def attach(self, engine):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.look)

        def look(self, engine):
            order.append((self.name, "gc_seconds" in engine.state.metrics))

    built(
        RunSettings(handlers=[GarbageCollector()]), handlers=iter([Recorder(1), Recorder(2)])
    ).run()
    assert order == [(1, True), (2, True)]


def test_objects_in_also_are_in_the_checkpoints(tmp_path):
    ema = torch.nn.Linear(1, 1)
    settings = RunSettings(seed=1, checkpoint=SaveCheckpoint(tmp_path))
    built(settings, also={"ema": ema}).run()
    other = torch.nn.Linear(1, 1)
    again = replace(settings, resume_from=ResumeCheckpoint(tmp_path))
    built(again, also={"ema": other})
    assert torch.equal(other.weight, ema.weight)


def test_paths_are_checked_when_the_trainer_is_built(tmp_path):
    (tmp_path / "file").write_text("")
    settings = RunSettings(checkpoint=SaveCheckpoint(tmp_path / "file"))
    assert equal(loads(dumps(settings, "yaml"), "yaml"), settings)
    with pytest.raises(ValueError, match="`directory` must be"):
        built(settings)
    settings = RunSettings(resume_from=ResumeCheckpoint(tmp_path / "none"))
    assert equal(loads(dumps(settings, "yaml"), "yaml"), settings)
    with pytest.raises(FileNotFoundError, match="`source` must be a checkpoint"):
        built(settings)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("trust_pickle", "{type: resume_checkpoint, source: 's3://b', trust_pickle: true}"),
        (
            "resume_from.trust_pickle",
            "{type: run, resume_from: {source: 's3://b', trust_pickle: true}}",
        ),
    ],
)
def test_a_file_cannot_trust_the_pickles_of_a_checkpoint(path, text):
    with pytest.raises(ConfigError, match=r"stranger, got True; .* set it with") as raised:
        loads(text, "yaml")
    assert [problem.path for problem in raised.value.problems] == [path]
    loads(text.replace("true", "false"), "yaml")


def test_code_can_trust_the_pickles_of_a_checkpoint_that_a_file_names():
    settings = loads("{type: run, resume_from: {source: 's3://b'}}", "yaml")
    resume = replace(settings.resume_from, trust_pickle=True)
    trusting = replace(settings, resume_from=resume, seed=1)
    assert trusting.resume_from.trust_pickle
    with pytest.raises(ConfigError, match=r"resume_from\.trust_pickle: .* must be set in code"):
        dumps(trusting)


@pytest.mark.parametrize("handler", [MaxRAM(), 3, ClearCache])
def test_handlers_setting_accepts_only_handlers(handler):
    with pytest.raises(ValueError, match="handlers"):
        RunSettings(handlers=[handler])


def test_handlers_holding_objects_can_be_built_but_not_written():
    settings = RunSettings(handlers=[Validation(lambda: {"x": 1}, every_epochs=1)])
    trainer = built(settings)
    trainer.run()
    assert trainer.state.metrics["val_x"] == 1
    with pytest.raises(ValueError, match=r"handlers\[0\]: a Validation cannot be written"):
        to_dict(settings)


def test_subclass_adds_settings():
    @register("run_settings.mine")
    @checked_dataclass
    class MySettings(RunSettings):
        learning_rate: float = 0.1

    settings = loads("type: run_settings.mine\nlearning_rate: 1e-3\nmax_epochs: 2", "yaml")
    assert type(settings) is MySettings
    assert settings.learning_rate == 1e-3
    trainer = built(settings)
    trainer.run()
    assert trainer.state.epoch == 2
    assert "learning_rate" in MySettings.json_schema()["properties"]


# Values of the fields.


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("seed", -1, "an integer from 0 to 2**32 - 1, got -1"),
        ("seed", 2**32, "an integer from 0 to 2**32 - 1"),
        ("seed", True, "an integer from 0 to 2**32 - 1"),
        ("mixed_precision", "fp32", "one of no, fp16, bf16, fp8, got 'fp32'"),
        ("mixed_precision", False, "one of no, fp16, bf16, fp8, got False"),
        ("gradient_accumulation_steps", 0, "an integer >= 1"),
        ("agree_every", 0, "an integer >= 1"),
        ("max_epochs", 0, "an integer >= 1"),
        ("max_steps", math.inf, "an integer >= 1"),
        ("on_peer_failure", "stay", '"exit" or "wait", got \'stay\''),
        ("scheduler_at", None, '"step", "epoch" or "validation", got None'),
    ],
)
def test_error_for_a_wrong_value_has_the_rule(name, value, rule):
    with pytest.raises(ValueError, match="must be") as raised:
        RunSettings(**{name: value})
    assert f"`{name}` must be {rule}" in str(raised.value)
