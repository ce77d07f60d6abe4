"""Trains with a tracker in a process of its own:

python -m tests.observe.programs.tracked TRACKER FOLDER [step|validation]

The last argument says where the run crashes: at step 8, or in the validation after it.

The run saves after every third step, in FOLDER/checkpoints, and resumes from what is there.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from ignite.handlers import MLflowLogger
from ignite.handlers import TensorboardLogger
from ignite.handlers import WandBLogger

from ignite_hooks import MeanLoss
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import SendMetrics
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.reference import batches_of
from tests.reference import make_trainer

EPOCHS, BATCHES = 2, 10
CRASH = 8  # the last save is that of step 6


def destination(tracker, folder):
    """Returns the accelerator and the logger."""
    if tracker == "TensorboardLogger":
        return Accelerator(cpu=True), TensorboardLogger(log_dir=folder / "logs" / "training")
    if tracker == "MLflowLogger":
        # As a user of Ignite continues a run: by an environment variable of MLflow.
        return Accelerator(cpu=True), MLflowLogger()
    if tracker == "WandBLogger":
        return Accelerator(cpu=True), WandBLogger(project="training", id="chosen", resume="allow")
    return Accelerator(cpu=True, log_with=tracker, project_dir=folder / "logs"), None


def main(tracker, folder, crash=None):
    torch.set_num_threads(1)
    accelerator, logger = destination(tracker, folder)

    def crash_in(place):
        if place == crash and trainer.state.optimizer_step == CRASH:
            raise SystemExit(9)

    def evaluate():
        crash_in("validation")
        return {"error (%)": 1 / trainer.state.optimizer_step}

    arguments = {"trackio": {"auto_log_cpu": False}} if tracker == "trackio" else None
    trainer = make_trainer(
        batches_of(BATCHES),
        accelerator=accelerator,
        validation=Validation(evaluate, every_steps=4),
        checkpoint=SaveCheckpoint(folder / "checkpoints", every_steps=3),
        handlers=[
            MeanLoss(every_steps=2),
            SendMetrics(logger, every_steps=1, init_kwargs=arguments),
        ],
    )

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def write(engine):
        step = engine.state.optimizer_step
        engine.state.metrics |= {"pair": [float(step), 2.0 * step], "text": f"at {step}"}
        if step == 7:
            engine.state.metrics["odd*"] = float("nan")
        crash_in("step")

    ResumeCheckpoint(folder / "checkpoints", on_missing="start").attach(trainer)
    for epochs in range(1, EPOCHS + 1):
        trainer.run(max_epochs=epochs)
        accelerator.end_training()
    if logger is not None:
        logger.close()


if __name__ == "__main__":
    name, directory, *place = sys.argv[1:]
    main(name, Path(directory), *place)
