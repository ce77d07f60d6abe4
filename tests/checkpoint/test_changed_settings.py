"""A script that resumes with other settings: each is reported, and the right one is used."""

import functools
import re

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import CosineAnnealingScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.lr_scheduler import SequentialLR
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import TrainEvents
from tests.checkpoint.trained import make_trainer
from tests.checkpoint.trained import rates
from tests.checkpoint.trained import resumed
from tests.checkpoint.trained import trained

SGD = {"kind": torch.optim.SGD}


def scaled(factor):
    return lambda optimizer: LambdaLR(optimizer, lambda step: factor / (step + 1))


def in_partial(warmup):
    def rise(step, warmup):
        return min(1.0, (step + 1) / warmup)

    return lambda optimizer: LambdaLR(optimizer, functools.partial(rise, warmup=warmup))


def cosine(steps, **settings):
    return lambda optimizer: CosineAnnealingLR(optimizer, steps, **settings)


def by_milestone(optimizer, gamma=0.5):
    schedulers = [CosineAnnealingLR(optimizer, 5), StepLR(optimizer, 3, gamma)]
    return SequentialLR(optimizer, schedulers, [5])


def clipping(**limits):
    return {"arguments": {"grad_clip": GradientClipping(**limits)}}


def at(scheduler_at):
    return {"schedule": cosine(20), "arguments": {"scheduler_at": scheduler_at}}


# Settings that the checkpoint replaces: the script before and now, and the sentence of the report.
REPLACED = {
    "lr": ({}, {"lr": 0.01}, "optimizer: lr is 0.01 in the script, 0.1 in the checkpoint"),
    "lr of a schedule": (
        {"schedule": cosine(20)},
        {"schedule": cosine(20), "lr": 0.01},
        "optimizer: lr is 0.01 in the script, 0.1 in the checkpoint: the checkpoint",
    ),
    "weight decay": (
        {},
        {"weight_decay": 0.3},
        "optimizer: weight_decay is 0.3 in the script, 0.01 in the checkpoint",
    ),
    "betas": (
        {},
        {"betas": (0.8, 0.9)},
        "optimizer: betas is [0.8, 0.9] in the script, [0.9, 0.999] in",
    ),
    "momentum": (
        SGD,
        {**SGD, "momentum": 0.9},
        "optimizer: momentum is 0.9 in the script, 0 in the checkpoint",
    ),
    "nesterov": (
        {**SGD, "momentum": 0.9},
        {**SGD, "momentum": 0.9, "nesterov": True},
        "optimizer: nesterov is True in the script, False in the checkpoint: the checkpoint's",
    ),
    "amsgrad": (
        {},
        {"amsgrad": True},
        "optimizer: amsgrad is True in the script, False in the checkpoint",
    ),
    "one group": (
        {"groups": [0.1, 0.2]},
        {"groups": [0.1, 0.3]},
        "optimizer: lr of group 1 is 0.3 in the script, 0.2 in the checkpoint: the checkpoint",
    ),
    "all groups": (
        {"groups": [0.1, 0.1]},
        {"groups": [0.3, 0.3]},
        "optimizer: lr is 0.3 in the script, 0.1 in the checkpoint: the checkpoint's value is used",
    ),
    "T_max": (
        {"schedule": cosine(20)},
        {"schedule": cosine(40)},
        "scheduler: T_max is 40 in the script, 20 in the checkpoint: the checkpoint",
    ),
    "eta_min": (
        {"schedule": cosine(20)},
        {"schedule": cosine(20, eta_min=0.01)},
        "scheduler: eta_min is 0.01 in the script, 0.0 in the checkpoint: the checkpoint",
    ),
    "total_steps": (
        {"schedule": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=30)},
        {"schedule": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=60)},
        "scheduler: total_steps is 60 in the script, 30 in the checkpoint: the checkpoint",
    ),
    "max_lr": (
        {"schedule": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=30)},
        {"schedule": lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=30)},
        "scheduler: max_lr is [0.2] in the script, [0.1] in the checkpoint: the checkpoint",
    ),
    "pct_start": (
        {"schedule": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=30)},
        {"schedule": lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=30, pct_start=0.5)},
        "scheduler: pct_start is 0.5 in the script, 0.3 in the checkpoint: the checkpoint",
    ),
    "a schedule within": (
        {"schedule": by_milestone},
        {"schedule": lambda optimizer: by_milestone(optimizer, gamma=0.1)},
        "scheduler: schedulers[1].gamma is 0.1 in the script, 0.5 in the checkpoint",
    ),
    "frozen": (
        {},
        {"frozen": ["0.weight"]},
        "frozen parameters are model.0.weight in the script, none in the checkpoint",
    ),
    "no longer frozen": (
        {"frozen": ["0.weight"]},
        {},
        "frozen parameters are none in the script, model.0.weight in the checkpoint",
    ),
}
# Settings of the script that no state replaces.
KEPT = {
    "accumulation": ({}, {"accumulate": 2}, "accumulation is 2 in the script, 1 in the checkpoint"),
    "clipping": (
        clipping(max_norm=1.0),
        clipping(max_norm=2.0),
        "clipping: max_norm is 2.0 in the script, 1.0 in the checkpoint: the script",
    ),
    "no clipping": (
        clipping(clip_value=1.0),
        {},
        "clipping is none in the script, clip_value=1.0, norm_type=2.0",
    ),
    "scheduler_at": (
        at("step"),
        at("epoch"),
        "scheduler_at is epoch in the script, step in the checkpoint",
    ),
    "code": (
        {"schedule": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (step + 1))},
        {"schedule": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (step + 2))},
        "scheduler: lr_lambdas[0] has other code than the one in the checkpoint",
    ),
    "closure": (
        {"schedule": scaled(1.0)},
        {"schedule": scaled(0.5)},
        "scheduler: lr_lambdas[0].factor is 0.5 in the script, 1.0 in the checkpoint: the script",
    ),
    "partial": (
        {"schedule": in_partial(10)},
        {"schedule": in_partial(20)},
        "scheduler: lr_lambdas[0].warmup is 20 in the script, 10 in the checkpoint: the script",
    ),
}


@pytest.mark.parametrize("case", [*REPLACED, *KEPT])
def test_each_changed_setting_is_reported_with_both_values(tmp_path, case):
    before, now, sentence = {**REPLACED, **KEPT}[case]
    trained(tmp_path, **before)
    trainer, told = resumed(tmp_path, 17, **now)
    part = trainer.resume_report.parts["settings"]
    assert part.level == "changed"
    assert sentence in part.reason
    assert not trainer.resume_report.is_exact
    assert len(told) == 1
    assert sentence in told[0]
    assert ("uses the script's values" in part.reason) == (case in REPLACED)
    assert ("the run differs from an uninterrupted" in part.reason) == (case in KEPT)
    # A replaced setting is reported at each resume, until the script gives the same value.
    trainer, told = resumed(tmp_path, 18, **now)
    assert bool(told) == (case in REPLACED)


@pytest.mark.parametrize("case", [*REPLACED, *KEPT])
def test_the_same_script_resumes_exactly(tmp_path, case):
    before, *_ = {**REPLACED, **KEPT}[case]
    trained(tmp_path, **before)
    for steps in (17, 19):
        trainer, told = resumed(tmp_path, steps, **before)
        assert not told
        assert trainer.resume_report.is_exact


@pytest.mark.parametrize("name", ["foreach", "fused"])
def test_implementation_options_are_no_difference(tmp_path, name):
    trained(tmp_path)
    trainer, told = resumed(tmp_path, 17, **{name: True})
    assert not told
    assert trainer.resume_report.is_exact


# Override


@pytest.mark.parametrize("name", ["lr", "weight_decay", "betas", "eps"])
def test_an_override_applies_the_script_value_once(tmp_path, name):
    values = {"lr": 0.01, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-5}
    script = {name: values[name]}
    trained(tmp_path)
    trainer, (told,) = resumed(tmp_path, 17, override=(name,), **script)
    assert f"optimizer: {name} is {values[name]}".replace("(", "[").rstrip(")") in told
    assert rates(trainer, name) == [values[name]]
    for override in ((name,), ()):
        trainer, told = resumed(tmp_path, trainer.state.optimizer_step + 2, override, **script)
        assert not told
        assert trainer.resume_report.is_exact
        assert rates(trainer, name) == [values[name]]


def test_settings_not_overridden_stay_those_of_the_checkpoint(tmp_path):
    trained(tmp_path)
    trainer, (told,) = resumed(tmp_path, 17, ("lr",), lr=0.01, weight_decay=0.3)
    assert rates(trainer) == [0.01]
    assert rates(trainer, "weight_decay") == [0.01]
    assert 'ResumeCheckpoint(override=("weight_decay",)) uses the script' in told


def test_an_overridden_run_equals_a_hand_written_loop(tmp_path):
    trained(tmp_path, weight_decay=0.0)
    trainer, _ = resumed(tmp_path, 20, ("lr", "weight_decay"), lr=0.01, weight_decay=0.3)

    reference = make_trainer(tmp_path / "reference", weight_decay=0.0)

    @reference.on(TrainEvents.STEP_COMPLETED(once=15))
    def change(engine):
        for group in engine.optimizer.param_groups:
            group.update(lr=0.01, weight_decay=0.3)

    reference.run(max_steps=20)
    for ours, theirs in zip(trainer.model.parameters(), reference.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("lr", [0.2, 0.01])
def test_overridden_rate_of_a_schedule_is_scaled_in_proportion(tmp_path, lr):
    script = {"schedule": cosine(20, eta_min=0.001)}
    trained(tmp_path, **script)
    before, _ = resumed(tmp_path, **script)
    trainer, _ = resumed(tmp_path, override=("lr",), lr=lr, **script)
    assert rates(trainer) == [lr * (rates(before)[0] / 0.1)]
    assert rates(trainer, "initial_lr") == trainer.lr_scheduler.base_lrs == [lr]
    with pytest.warns(UserWarning, match=f"optimizer: lr is {lr} in the script, .*: the script"):
        trainer.run(max_steps=17)
    once = rates(trainer)
    again, told = resumed(tmp_path, override=("lr",), lr=lr, **script)
    assert not told
    assert rates(again) == once


def test_rates_within_a_sequential_schedule_are_overridden(tmp_path):
    trained(tmp_path, schedule=by_milestone)
    trainer, _ = resumed(tmp_path, 17, ("lr",), lr=0.01, schedule=by_milestone)
    assert [each.base_lrs for each in trainer.lr_scheduler._schedulers] == [[0.01], [0.01]]


def test_an_override_without_a_change_keeps_what_a_handler_wrote(tmp_path):
    def halve_once(trainer):
        @trainer.on(TrainEvents.STEP_COMPLETED(once=5))
        def halve(engine):
            engine.optimizer.param_groups[0]["lr"] /= 2

    trained(tmp_path, prepare=halve_once)
    for steps in (17, 19):
        trainer, told = resumed(tmp_path, steps, ("lr", "weight_decay"), prepare=halve_once)
        assert rates(trainer) == [0.05]
        assert not told


def test_overridden_requires_grad_freezes_as_the_script_does(tmp_path):
    def flags(trainer):
        return [each.requires_grad for each in trainer.model.parameters()]

    trained(tmp_path)
    kept, _ = resumed(tmp_path, 17, frozen=["0.weight"])
    assert flags(kept) == [True, True, True, True]
    trainer, _ = resumed(tmp_path, 19, ("requires_grad",), frozen=["0.weight"])
    assert flags(trainer) == [False, True, True, True]
    trainer, told = resumed(tmp_path, 20, frozen=["0.weight"])
    assert flags(trainer) == [False, True, True, True]
    assert not told
    trainer, _ = resumed(tmp_path, 21, ("requires_grad",))
    assert flags(trainer) == [True, True, True, True]


def test_layers_unfrozen_by_a_handler_stay_unfrozen(tmp_path):
    def unfreeze_later(trainer):
        @trainer.on(Events.EPOCH_STARTED(once=2))
        def unfreeze(engine):
            engine.model[0].weight.requires_grad_(True)

    script = {"frozen": ["0.weight"], "prepare": unfreeze_later}
    trained(tmp_path, **script)
    trainer, told = resumed(tmp_path, 17, ("requires_grad",), **script)
    assert trainer.model[0].weight.requires_grad
    assert not told


# Handlers, and code between the factory and the run


def writing_at(event, rate):
    def prepare(trainer):
        @trainer.on(event)
        def write(engine):
            for group in engine.optimizer.param_groups:
                group["lr"] = rate(group["lr"], engine.state.epoch)

    return prepare


def writing_before_run(rate):
    def prepare(trainer):
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate(group["lr"], 0)

    return prepare


WRITES = {
    "STARTED, a value": (writing_at(Events.STARTED, lambda lr, epoch: 0.05), 0.05),
    "STARTED, a factor": (writing_at(Events.STARTED, lambda lr, epoch: lr / 2), 0.05),
    "before run(), a value": (writing_before_run(lambda lr, epoch: 0.05), 0.05),
    "before run(), a factor": (writing_before_run(lambda lr, epoch: lr / 2), 0.05),
    "EPOCH_STARTED, by number": (writing_at(Events.EPOCH_STARTED, lambda lr, n: 0.1 / n), 0.05),
    "EPOCH_STARTED, a factor": (writing_at(Events.EPOCH_STARTED, lambda lr, n: lr / 4), 0.1 / 16),
}


@pytest.mark.parametrize("case", WRITES)
def test_a_write_repeated_from_the_first_run_is_no_change(tmp_path, case):
    prepare, rate = WRITES[case]
    trained(tmp_path, prepare=prepare)
    for steps in (17, 19):
        trainer, told = resumed(tmp_path, steps, prepare=prepare)
        assert rates(trainer) == [rate]
        assert not told


@pytest.mark.parametrize("case", WRITES)
@pytest.mark.parametrize("override", [(), ("lr",)])
def test_a_write_of_another_value_is_reported(tmp_path, case, override):
    first, rate = WRITES[case]
    trained(tmp_path, prepare=first)
    event = Events.EPOCH_STARTED if "EPOCH" in case else Events.STARTED
    now = writing_at(event, lambda lr, epoch: 0.003)
    if "before" in case:
        now = writing_before_run(lambda lr, epoch: 0.003)
    trainer, told = resumed(tmp_path, 17, override, prepare=now)
    assert rates(trainer) == [0.003 if override else rate]
    assert f"written before the handlers of {event.name} had returned" in told[-1]
    assert "optimizer: lr is 0.003" in told[-1]
    again, told = resumed(tmp_path, 18, override, prepare=now)
    assert rates(again) == rates(trainer)
    assert bool(told) == (not override)  # an unused value is reported each time


def test_writes_of_an_ignite_scheduler_are_no_change(tmp_path):
    def prepare(trainer):
        scheduler = CosineAnnealingScheduler(trainer.optimizer.optimizer, "lr", 0.1, 0.0, 9)
        trainer.add_event_handler(Events.EPOCH_STARTED, scheduler)

    trained(tmp_path, prepare=prepare)
    trainer, told = resumed(tmp_path, 25, prepare=prepare)
    trained(tmp_path / "whole", 25, prepare=prepare)
    whole, _ = resumed(tmp_path / "whole", prepare=prepare)
    assert rates(trainer) == rates(whole)
    assert not told


# Errors


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("lrr",), "did you mean `lr`?"),
        (("learning_rate",), "there are"),
        ("lr", 'for example ("lr", "weight_decay")'),
        (("lr", "lr"), "each once"),
        ((1,), "must be names of settings"),
        (None, "must be names of settings"),
        ([["lr"]], "must be names of settings"),
    ],
)
def test_override_of_an_unknown_setting_is_an_error(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ResumeCheckpoint("checkpoints", override=override)


def test_settings_of_a_custom_optimizer_can_be_overridden():
    class Own(torch.optim.SGD):
        def __init__(self, params, lr, trust=1.0):
            super().__init__(params, lr)

    assert ResumeCheckpoint("checkpoints", override=("trust",)).override == ("trust",)


@pytest.mark.parametrize("on_missing", ["error", "start"])
def test_override_of_a_setting_the_optimizer_lacks_is_an_error(tmp_path, on_missing):
    trained(tmp_path)
    source = tmp_path if on_missing == "error" else tmp_path / "none"
    resume = ResumeCheckpoint(source, override=("momentum",), on_missing=on_missing)
    trainer = make_trainer(tmp_path, lr=0.01)
    with pytest.raises(ValueError, match=r"`override` must name .* 'momentum' with AdamW: there"):
        resume.attach(trainer)
    assert rates(trainer) == [0.01]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (torch.optim.AdamW, "amsgrad", True),
        (torch.optim.RMSprop, "centered", True),
        (torch.optim.RMSprop, "momentum", 0.9),
    ],
)
def test_a_setting_whose_state_is_missing_cannot_be_overridden(tmp_path, kind, name, value):
    trained(tmp_path, kind=kind)
    trainer = make_trainer(tmp_path, kind=kind, **{name: value})
    with pytest.raises(ValueError, match=f"leave '{name}' out of `override`"):
        ResumeCheckpoint(tmp_path, override=(name,)).attach(trainer)
    assert trainer.state.optimizer_step == 0


def test_another_scheduler_is_an_error_naming_the_override(tmp_path):
    trained(tmp_path, schedule=cosine(20))
    with pytest.raises(ValueError, match=re.escape('override=("scheduler",) takes the new one')):
        make_trainer(tmp_path, tmp_path, schedule=lambda optimizer: StepLR(optimizer, 5))


@pytest.mark.parametrize(("then", "now"), [(None, cosine(20)), (cosine(20), None)])
def test_a_new_or_removed_scheduler_is_reported_once(tmp_path, then, now):
    trained(tmp_path, schedule=then)
    _, (told,) = resumed(tmp_path, 17, ("scheduler",), schedule=now)
    assert "CosineAnnealingLR" in told
    assert "scheduler_at" not in told


def test_another_optimizer_is_an_error_despite_an_override(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match="the optimizer was AdamW, and is now SGD"):
        resumed(tmp_path, override=("lr", "scheduler"), kind=torch.optim.SGD)


def test_too_short_a_schedule_is_an_error_that_changes_nothing(tmp_path):
    trained(tmp_path, schedule=cosine(20))
    short = lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=10)  # noqa: E731
    trainer = make_trainer(tmp_path, schedule=short)
    before = rates(trainer), trainer.lr_scheduler.state_dict()
    with pytest.raises(ValueError, match="the OneCycleLR of the script cannot be moved 15 times"):
        ResumeCheckpoint(tmp_path, override=("scheduler",)).attach(trainer)
    assert (rates(trainer), trainer.lr_scheduler.state_dict()) == before
    assert trainer.state.optimizer_step == 0


def test_overridden_plateau_starts_with_the_script_constants(tmp_path):
    def plateau(patience):
        arguments = {"scheduler_at": "epoch", "scheduler_metric": "loss"}

        def measure(trainer):
            @trainer.on(Events.EPOCH_COMPLETED)
            def write(engine):
                engine.state.metrics["loss"] = 1.0

        schedule = lambda optimizer: ReduceLROnPlateau(optimizer, patience=patience)  # noqa: E731
        return {"schedule": schedule, "arguments": arguments, "prepare": measure}

    trained(tmp_path, 30, **plateau(1))
    trainer, (told,) = resumed(tmp_path, 31, ("scheduler",), **plateau(5))
    assert (trainer.lr_scheduler.patience, trainer.lr_scheduler.num_bad_epochs) == (5, 0)
    assert rates(trainer) == [pytest.approx(0.01)]  # what the run had come down to
    assert "scheduler: patience is 5 in the script, 1 in the checkpoint: the script" in told
