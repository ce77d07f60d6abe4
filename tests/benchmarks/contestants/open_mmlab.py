"""MMEngine's Runner, without its timers, logs and checkpoints."""

import tempfile

from mmengine.hooks import ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.optim import StepLR
from mmengine.runner import Runner

from tests.benchmarks.work import DECAY
from tests.benchmarks.work import MAX_NORM

__all__ = ["mmengine"]

UNUSED = ("runtime_info", "timer", "sampler_seed", "logger", "checkpoint")


class Model(BaseModel):
    def __init__(self, work):
        super().__init__()
        self.model = work.model
        self.loss_fn = work.loss_fn

    def forward(self, x, y, mode="tensor"):
        outputs = self.model(x)
        return {"loss": self.loss_fn(outputs, y)} if mode == "loss" else outputs


def mmengine(work):
    """Trains with a StepLR, because MMEngine moves schedulers with each batch of a window."""
    optimizer = OptimWrapper(
        work.optimizer,
        accumulative_counts=work.accumulation,
        clip_grad={"max_norm": MAX_NORM},
    )
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            Model(work),
            folder,
            train_dataloader=work.loader,
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper=optimizer,
            param_scheduler=StepLR(work.optimizer, work.accumulation, gamma=DECAY, by_epoch=False),
            default_hooks={
                **dict.fromkeys(UNUSED),
                "param_scheduler": ParamSchedulerHook(),
            },
            log_level="ERROR",
        )
        runner.train()
