"""``override=("scheduler",)`` moves the script's schedule to the checkpoint's step, exactly."""

import warnings

import pytest
import torch
from torch.optim.lr_scheduler import ChainedScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts
from torch.optim.lr_scheduler import CyclicLR
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.lr_scheduler import LinearLR
from torch.optim.lr_scheduler import MultiStepLR
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.lr_scheduler import PolynomialLR
from torch.optim.lr_scheduler import SequentialLR
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks.core.torch_schedulers import nested_schedulers
from tests.checkpoint.trained import LENGTH
from tests.checkpoint.trained import make_trainer
from tests.checkpoint.trained import rates
from tests.checkpoint.trained import resumed
from tests.checkpoint.trained import trained

SETTINGS = ("lr", "initial_lr", "max_lr", "betas", "weight_decay")


def sequence(start, steps):
    return lambda o: SequentialLR(o, [LinearLR(o, start), CosineAnnealingLR(o, steps)], [5])


def chain(steps):
    return lambda o: ChainedScheduler([LinearLR(o, 0.5), StepLR(o, steps)])


SCHEDULES = {  # in the checkpoint's run, and in the script that resumes
    "cosine": (lambda o: CosineAnnealingLR(o, 20), lambda o: CosineAnnealingLR(o, 40)),
    "one cycle": (
        lambda o: OneCycleLR(o, 0.1, total_steps=25),
        lambda o: OneCycleLR(o, 0.2, total_steps=60),
    ),
    "lambda": (
        lambda o: LambdaLR(o, lambda step: 1 / (step + 1)),
        lambda o: LambdaLR(o, lambda step: 1 / (step + 2)),
    ),
    "milestones": (lambda o: MultiStepLR(o, [5, 30]), lambda o: MultiStepLR(o, [10, 17, 30])),
    "polynomial": (lambda o: PolynomialLR(o, 20), lambda o: PolynomialLR(o, 40, power=2)),
    "sequence": (sequence(0.3, 15), sequence(0.1, 40)),
    "warm restarts": (
        lambda o: CosineAnnealingWarmRestarts(o, 5),
        lambda o: CosineAnnealingWarmRestarts(o, 7, 2),
    ),
    "chain": (chain(20), chain(7)),
    "cyclic": (
        lambda o: CyclicLR(o, 0.1, 0.2, 5, cycle_momentum=False),
        lambda o: CyclicLR(o, 0.05, 0.3, 7, cycle_momentum=False),
    ),
    "another class": (lambda o: CosineAnnealingLR(o, 20), lambda o: StepLR(o, 7)),
    "from one cycle": (
        lambda o: OneCycleLR(o, 0.1, total_steps=25),
        lambda o: CosineAnnealingLR(o, 40),
    ),
    "to one cycle": (
        lambda o: CosineAnnealingLR(o, 40),
        lambda o: OneCycleLR(o, 0.1, total_steps=60),
    ),
    "none then": (None, lambda o: StepLR(o, 7)),
}


def moved_by_hand(schedule, moves, lr=0.1):
    """Returns an optimizer whose schedule a plain PyTorch loop has moved a number of times."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule(optimizer)
    move(optimizer, scheduler, moves)
    return optimizer, scheduler


def move(optimizer, scheduler, moves):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of a SequentialLR
        for _ in range(moves):
            optimizer.step()
            scheduler.step()


def settings(optimizer):
    return [{n: g[n] for n in SETTINGS if n in g} for g in optimizer.param_groups]


@pytest.mark.parametrize("case", SCHEDULES)
def test_script_schedule_is_where_a_fresh_run_would_have_it(tmp_path, case):
    then, now = SCHEDULES[case]
    trained(tmp_path, 20, schedule=then)
    optimizer, scheduler = moved_by_hand(now, 20)
    trainer, _ = resumed(tmp_path, override=("scheduler",), schedule=now)
    assert settings(trainer.optimizer) == settings(optimizer)
    seen, expected = [], []

    @trainer.on(TrainEvents.OPTIMIZER_STEP_STARTED)
    def see(engine):
        seen.append(settings(engine.optimizer))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.run(max_steps=24)
    for _ in range(4):
        expected.append(settings(optimizer))
        move(optimizer, scheduler, 1)
    assert seen == expected
    assert not [each for each in told if "`lr_scheduler.step()`" in str(each.message)]
    # The next job, with or without the override, continues like an uninterrupted run.
    for steps, override in ((26, ("scheduler",)), (28, ())):
        trainer, _ = resumed(tmp_path, steps, override, schedule=now)
        move(optimizer, scheduler, 2)
        parts = trainer.resume_report.parts
        # A handler of the first of these runs has filled a list, which no checkpoint has.
        assert {name for name, part in parts.items() if part.level != "exact"} <= {"handlers"}
        assert settings(trainer.optimizer) == settings(optimizer)


@pytest.mark.parametrize("case", SCHEDULES)
def test_every_schedule_is_resumed_unchanged(tmp_path, case):
    schedule, _ = SCHEDULES[case]
    trained(tmp_path, 15, schedule=schedule)
    trainer, told = resumed(tmp_path, 20, schedule=schedule)
    assert not told
    trained(tmp_path / "whole", 20, schedule=schedule)
    whole, _ = resumed(tmp_path / "whole", schedule=schedule)
    assert settings(trainer.optimizer) == settings(whole.optimizer)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: ChainedScheduler([LinearLR(o, 0.5), ExponentialLR(o, 0.8)]),
        lambda o: LambdaLR(o, lambda step: 1 / (step + 1)),
    ],
    ids=["from the present rate", "from the base rate"],
)
@pytest.mark.parametrize(("override", "base"), [(("scheduler",), 0.1), (("scheduler", "lr"), 0.02)])
def test_schedule_uses_script_rate_only_if_overridden(tmp_path, override, base, schedule):
    trained(tmp_path, 20, schedule=lambda o: ExponentialLR(o, 0.9))
    trainer, _ = resumed(tmp_path, override=override, schedule=schedule, lr=0.02)
    optimizer, _ = moved_by_hand(schedule, 20, base)
    assert settings(trainer.optimizer) == settings(optimizer)


@pytest.mark.parametrize(
    ("before", "now", "moves"), [("epoch", "epoch", 2), ("step", "epoch", 2), ("epoch", "step", 25)]
)
@pytest.mark.parametrize("gamma", [0.8, 0.9], ids=["another schedule", "the same schedule"])
def test_a_schedule_by_epoch_moves_once_an_epoch(tmp_path, before, now, moves, gamma):
    script = {"schedule": lambda o: ExponentialLR(o, 0.9)}
    trained(tmp_path, 2 * LENGTH + 5, **script, arguments={"scheduler_at": before})
    script = {"schedule": lambda o: ExponentialLR(o, gamma), "arguments": {"scheduler_at": now}}
    trainer, _ = resumed(tmp_path, override=("scheduler",), **script)
    assert trainer.lr_scheduler.last_epoch == moves
    assert rates(trainer) == rates_of_optimizer(moved_by_hand(script["schedule"], moves)[0])


def rates_of_optimizer(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def test_a_removed_schedule_leaves_its_rate(tmp_path):
    trained(tmp_path, 15, schedule=lambda o: OneCycleLR(o, 0.1, total_steps=25))
    before, _ = resumed(tmp_path, schedule=lambda o: OneCycleLR(o, 0.1, total_steps=25))
    trainer, _ = resumed(tmp_path, 17, ("scheduler",))
    assert rates(trainer) == rates(before)
    # The script's momentum replaces the one that the checkpoint's schedule cycled.
    assert rates(trainer, "betas") == [(0.9, 0.999)]
    assert trainer.resume_report.parts["settings"].level == "changed"


def test_a_tensor_rate_is_moved_like_a_number(tmp_path):
    def script(steps):
        return {"schedule": lambda o: CosineAnnealingLR(o, steps), "lr": torch.tensor(0.1)}

    trained(tmp_path, 15, **script(20))
    trainer, _ = resumed(tmp_path, 16, ("scheduler",), **script(40))
    optimizer, _ = moved_by_hand(script(40)["schedule"], 16, torch.tensor(0.1))
    assert rates(trainer) == rates_of_optimizer(optimizer)
    trainer, _ = resumed(tmp_path, override=("lr",), **{**script(40), "lr": torch.tensor(0.2)})
    assert float(*rates(trainer)) == pytest.approx(2 * float(*rates_of_optimizer(optimizer)))


def test_a_tensor_rate_stays_a_tensor_from_another_start(tmp_path):
    trained(tmp_path, 15, schedule=lambda o: ExponentialLR(o, 0.9), lr=torch.tensor(0.1))
    script = {"schedule": lambda o: ExponentialLR(o, 0.8), "lr": torch.tensor(0.2)}
    trainer, _ = resumed(tmp_path, override=("scheduler",), **script)
    (rate,) = rates(trainer)
    optimizer, _ = moved_by_hand(script["schedule"], 15, torch.tensor(0.1))
    assert torch.equal(rate, *rates_of_optimizer(optimizer))


class Marking(ExponentialLR):
    """A scheduler whose state has no base rates, and that writes other keys to the groups."""

    def __init__(self, optimizer):
        super().__init__(optimizer, 0.9)

    def get_lr(self):
        if self.last_epoch > 0:
            self.optimizer.param_groups[0]["mark"] = self.last_epoch
        return super().get_lr()

    def state_dict(self):
        return {"last_epoch": self.last_epoch}


@pytest.mark.parametrize("now", [SCHEDULES["sequence"][1], Marking], ids=["sequence", "own"])
@pytest.mark.parametrize("override", [("scheduler",), ("scheduler", "lr")])
def test_a_failure_while_loading_leaves_the_schedule_as_it_was(
    tmp_path, monkeypatch, now, override
):
    trained(tmp_path, 15, schedule=SCHEDULES["sequence"][0])
    trainer = make_trainer(tmp_path, schedule=now, lr=0.02)

    def shown():
        (group,) = trainer.optimizer.param_groups
        (first, *_) = nested_schedulers(trainer.lr_scheduler)
        state = trainer.lr_scheduler.state_dict()
        return settings(trainer.optimizer), {*group}, getattr(first, "base_lrs", None), state

    before = shown()

    def refuse(self, state):
        raise MemoryError("no room")

    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", refuse)
    with pytest.raises(MemoryError):
        ResumeCheckpoint(tmp_path, override=override).attach(trainer)
    assert shown() == before
