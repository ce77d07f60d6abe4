"""A small run of 15 steps that is trained with some settings and resumed with others."""

import warnings

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer

LENGTH = 10  # batches a pass


def make_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * LENGTH, 1, generator=generator)
    return DataLoader(TensorDataset(x, 2 * x), 4)


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))


def make_trainer(
    directory,
    resume_from=None,
    *,
    kind=torch.optim.AdamW,
    lr=0.1,
    schedule=None,
    accumulate=1,
    frozen=(),
    groups=None,
    prepare=lambda trainer: None,
    arguments=None,
    **settings,
):
    """Returns a trainer; ``prepare`` is called as a script would, between the factory and run()."""
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    parameters = model.parameters()
    if groups is not None:
        parameters = [
            {"params": part.parameters(), "lr": rate}
            for part, rate in zip(model, groups, strict=True)
        ]
    trainer = create_supervised_trainer(
        model,
        kind(parameters, lr=lr, **settings),
        F.mse_loss,
        make_data(),
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=accumulate),
        lr_scheduler=schedule,
        checkpoint=SaveCheckpoint(directory),
        resume_from=resume_from,
        **(arguments or {}),
    )
    prepare(trainer)
    return trainer


def trained(directory, steps=15, **script):
    """Trains a number of steps with the settings of a script, and saves the run."""
    make_trainer(directory, **script).run(max_steps=steps)


def resumed(directory, steps=None, override=(), **script):
    """Resumes with the settings of a script; returns the trainer and the warnings on the resume."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        source = ResumeCheckpoint(directory, override=override)
        trainer = make_trainer(directory, source, **script)
        if steps is not None:
            trainer.run(max_steps=steps)
    return trainer, [str(each.message) for each in told if "resumed from" in str(each.message)]


def rates(trainer, name="lr"):
    return [group[name] for group in trainer.optimizer.param_groups]
