"""torchtnt's AutoUnit and ``train``."""

import torch
from torchtnt.framework.auto_unit import AutoUnit
from torchtnt.framework.train import train

from tests.benchmarks.work import MAX_NORM

__all__ = ["torchtnt"]


class Unit(AutoUnit):
    def __init__(self, work, **settings):
        super().__init__(module=work.model, device=torch.device("cpu"), **settings)
        self.work = work

    def compute_loss(self, state, data):
        x, y = data
        outputs = self.module(x)
        return self.work.loss_fn(outputs, y), outputs

    def configure_optimizers_and_lr_scheduler(self, module):
        return self.work.optimizer, self.work.scheduler()


def torchtnt(work):
    unit = Unit(
        work,
        step_lr_interval="step",
        clip_grad_norm=MAX_NORM,
        gradient_accumulation_steps=work.accumulation,
    )
    train(unit, work.loader, max_epochs=1)
