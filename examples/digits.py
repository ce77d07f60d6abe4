"""Trains a small convolutional net on the handwritten digits that come with scikit-learn.

In one process, on the GPU if there is one, or in several:

    python examples/digits.py
    python examples/digits.py --output runs/digits --resume  # goes on where that was stopped
    torchrun --nproc_per_node 2 examples/digits.py --cpu
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from ignite.handlers import ProgressBar
from ignite.metrics import Accuracy
from ignite.metrics import RunningAverage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer


def digits():
    """1,437 images of 8x8 pixels to train on and 360 held out, whatever the seed."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    train, held_out = train_test_split(range(len(y)), test_size=360, stratify=y, random_state=0)
    return TensorDataset(x[train], y[train]), TensorDataset(x[held_out], y[held_out])


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 4 * 4, 10),
    )


def train(args, accelerator):
    train_part, held_out_part = digits()
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)

    checkpoint = resume = None
    if args.output is not None:
        checkpoint = SaveCheckpoint(
            args.output / "checkpoints",
            every_epochs=1,
            keep_last=2,
            keep_best=1,
            metric="val_accuracy",
        )
    if args.resume:
        resume = ResumeCheckpoint(args.output / "checkpoints", on_missing="start")

    evaluator = create_supervised_evaluator(
        model, {"accuracy": Accuracy()}, accelerator=accelerator
    )
    trainer = create_supervised_trainer(
        model,
        optimizer,
        F.cross_entropy,
        DataLoader(train_part, args.batch_size, shuffle=True),
        accelerator=accelerator,
        lr_scheduler=ExponentialLR(optimizer, gamma=0.985),
        grad_clip=GradientClipping(max_norm=1.0),
        validation=Validation(evaluator, DataLoader(held_out_part, 120), every_epochs=1),
        checkpoint=checkpoint,
        resume_from=resume,
    )
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    ProgressBar(disable=not accelerator.is_main_process).attach(trainer, ["loss"])

    @trainer.on(TrainEvents.VALIDATION_COMPLETED)
    def print_accuracy(trainer):
        state = trainer.state
        accelerator.print(f"epoch {state.epoch:3}   accuracy {state.metrics['val_accuracy']:.2%}")

    trainer.run(max_epochs=args.epochs)
    return trainer


def summary_of(trainer):
    state, accelerator = trainer.state, trainer.accelerator
    return {
        "held_out_accuracy": round(state.metrics["val_accuracy"], 4),
        "training_loss": round(float(state.metrics["loss"]), 4),
        "epochs": state.epoch,
        "optimizer_steps": state.optimizer_step,
        "seconds": round(state.times["COMPLETED"] or 0, 1),
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
    }


def main():
    args = parse_args()
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a net gains nothing from more, and loses when they wait
    set_seed(args.seed)
    accelerator = Accelerator(cpu=args.cpu, gradient_accumulation_steps=2)
    trainer = train(args, accelerator)
    summary = summary_of(trainer)

    accelerator.print()
    for name, value in summary.items():
        accelerator.print(f"{name.replace('_', ' '):20}{value}")
    if args.output is not None:
        accelerator.save_model(trainer.model, args.output)
        if accelerator.is_main_process:
            (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    accelerator.free_memory()  # gloo's threads let go of their tensors; torch 2.13 may hang else
    accelerator.end_training()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch and process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, help="folder for the weights, summary.json and checkpoints"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint in --output"
    )
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    args = parser.parse_args()
    if args.resume and args.output is None:
        parser.error("--resume needs --output, the folder of the run to go on with")
    return args


if __name__ == "__main__":
    main()
