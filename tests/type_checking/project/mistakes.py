"""Mistakes of a user. The comments are the errors that mypy and basedpyright must report."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from pathlib import Path

import torch
from ignite.engine import Events
from torch import nn

import ignite_hooks as ih
from ignite_hooks import GradientCliping  # attr-defined, reportAttributeAccessIssue
from ignite_hooks.checkpoint import checkpoints
from ignite_hooks.checkpoint import load_weights
from ignite_hooks.config import RunSettings
from ignite_hooks.config import load
from ignite_hooks.config import replace
from ignite_hooks.handlers import Attachment
from ignite_hooks.handlers import Every
from ignite_hooks.handlers import Scheduled
from ignite_hooks.handlers import checked_dataclass
from ignite_hooks.observe import read_metrics

print(GradientCliping)
model = nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)


@checked_dataclass
class PrintLoss(Scheduled):
    every_steps: Every | None = None
    every_epochs: Every | None = None
    label: str = "loss"

    def attach_to(self, attachment: Attachment) -> None:
        attachment.on_steps("5", self)  # arg-type, reportArgumentType
        attachment.on_event(Events.STARTED, self)  # attr-defined, reportAttributeAccessIssue
        attachment.on(Events.STARTED, print("started"))  # arg-type, reportArgumentType


PrintLoss(lable="loss")  # call-arg, reportCallIssue
PrintLoss(3)  # call-arg, reportCallIssue
PrintLoss(label=3)  # arg-type, reportArgumentType
PrintLoss().label = "other"  # misc, reportAttributeAccessIssue

ih.GradientClipping(max_nrm=1.0)  # call-arg, reportCallIssue
ih.GradientClipping(max_norm="1")  # arg-type, reportArgumentType
ih.ClearCache(every_steps=2.5)  # arg-type, reportArgumentType
ih.ClearCache().every_steps = 2  # misc, reportAttributeAccessIssue
ih.SaveCheckpoint()  # call-arg, reportCallIssue
ih.SaveCheckpoint("saved", mode="maximum")  # arg-type, reportArgumentType
ih.ResumeCheckpoint("saved", on_missing="ignore")  # arg-type, reportArgumentType
ih.Throughput(items=3)  # arg-type, reportArgumentType
print(ih.TrainEvents.STEP_COMPLETE)  # attr-defined, reportAttributeAccessIssue

trainer = ih.create_supervised_trainer(model, optimizer, nn.MSELoss())
ih.create_supervised_trainer(optimizer, model)  # arg-type, reportArgumentType
ih.create_supervised_trainer(model, optimizer, devices="cpu")  # call-arg, reportCallIssue
ih.create_supervised_trainer(model, optimizer, lr_scheduler=0.1)  # arg-type, reportArgumentType
ih.create_supervised_trainer(model, optimizer, scheduler_at="steps")  # arg-type, reportArgumentType
ih.create_supervised_trainer(model, optimizer, grad_clip=1.0)  # arg-type, reportArgumentType
ih.create_supervised_trainer(model, optimizer, "mse")  # arg-type, reportArgumentType
ih.create_supervised_trainer(model, optimizer, checkpoint="saved")  # arg-type, reportArgumentType
ih.create_supervised_trainer(model, optimizer, validation=trainer)  # arg-type, reportArgumentType
ih.create_supervised_trainer(model, optimizer, handlers=print)  # arg-type, reportArgumentType
trainer.run(10)  # arg-type, reportArgumentType
trainer.run(max_epochs="10")  # arg-type, reportArgumentType
trainer.run(max_step=10)  # call-arg, reportCallIssue
print(trainer.stop_reasons)  # attr-defined, reportAttributeAccessIssue
print(trainer.resume_report.is_exact)  # union-attr, reportOptionalMemberAccess
ih.ClearCache().attach(model)  # arg-type, reportArgumentType
trainer.hooks.register("on_steps", print)  # arg-type, reportArgumentType


@trainer.on(ih.TrainEvents.STEP_COMPLETED)
def label_of(trainer: ih.Trainer) -> str:
    return "label"


print(label_of(trainer) + 1)  # operator, reportOperatorIssue
attachment: Attachment = ih.MeanLoss()  # assignment, reportAssignmentType
settings = replace(RunSettings(), max_epochs=10)
print(settings.max_epoch)  # attr-defined, reportAttributeAccessIssue
print(load("run.yaml", RunSettings).max_epoch)  # attr-defined, reportAttributeAccessIssue
load_weights("saved", model)  # arg-type, reportArgumentType
print(checkpoints("saved")[0].steps)  # attr-defined, reportAttributeAccessIssue
load_weights(model, Path("saved"), witch="best")  # call-arg, reportCallIssue
read_metrics("metrics.jsonl").point("loss")  # attr-defined, reportAttributeAccessIssue
