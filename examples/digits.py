"""Trains a small convolutional net on the handwritten digits that come with scikit-learn.

Runs in one process, on the GPU if there is one, or in several processes:

    python examples/digits.py
    python examples/digits.py --output runs/digits --resume  # continues the run in runs/digits
    python examples/digits.py --config examples/run.yaml
    torchrun --nproc_per_node 2 examples/digits.py --cpu
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from ignite.metrics import Accuracy
from ignite.metrics import Loss
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import Console
from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TimeLedger
from ignite_hooks import TrainingReport
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.config import RunSettings
from ignite_hooks.config import ValidationSchedule
from ignite_hooks.config import load
from ignite_hooks.config import replace
from ignite_hooks.config import save


def digits():
    """Returns 1,437 images of 8x8 pixels for training and 360 held out, the same for every seed."""
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


DEFAULTS = RunSettings(
    seed=0,
    gradient_accumulation_steps=2,
    max_epochs=10,
    grad_clip=GradientClipping(max_norm=1.0),
    validation=ValidationSchedule(every_epochs=1),
    handlers=(Console(metric="val_accuracy"),),
)


def settings_in(file):
    try:
        settings = load(file)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not isinstance(settings, RunSettings):
        raise argparse.ArgumentTypeError(f"{file} must begin with `type: run`")
    return settings


def settings_of(args):
    """Returns the settings of --config; options of the command line override them."""
    settings = args.config
    if args.seed is not None:
        settings = replace(settings, seed=args.seed)
    if args.epochs is not None:
        settings = replace(settings, max_epochs=args.epochs)
    if args.output is not None:
        checkpoint = SaveCheckpoint(
            args.output / "checkpoints",
            every_epochs=1,
            keep_last=2,
            keep_best=1,
            metric="val_accuracy",
        )
        handlers = (*settings.handlers, TimeLedger(), TrainingReport(args.output / "report.html"))
        settings = replace(settings, checkpoint=checkpoint, handlers=handlers)
    if args.resume:
        source = ResumeCheckpoint(args.output / "checkpoints", on_missing="start")
        settings = replace(settings, resume_from=source)
    return settings


def train(settings, batch_size, accelerator):
    train_part, held_out_part = digits()
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    metrics = {"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)}
    evaluator = create_supervised_evaluator(model, metrics, accelerator=accelerator)
    trainer = settings.build(
        model,
        optimizer,
        F.cross_entropy,
        DataLoader(train_part, batch_size, shuffle=True),
        accelerator=accelerator,
        lr_scheduler=ExponentialLR(optimizer, gamma=0.985),
        evaluator=evaluator,
        validation_data=DataLoader(held_out_part, 120),
    )
    trainer.run()
    return trainer


def summary_of(trainer):
    state, accelerator = trainer.state, trainer.accelerator
    accuracy = state.metrics.get("val_accuracy")  # None without a validation
    return {
        "held_out_accuracy": accuracy and round(accuracy, 4),
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
    torch.set_num_threads(1)  # so small a net is faster with one thread
    settings = settings_of(args)
    accelerator = settings.set_up(cpu=args.cpu)
    if args.save_config is not None and accelerator.is_main_process:
        save(settings, args.save_config, exclude_defaults=True)
    trainer = train(settings, args.batch_size, accelerator)
    summary = summary_of(trainer)

    accelerator.print()
    for name, value in summary.items():
        accelerator.print(f"{name.replace('_', ' '):20}{value}")
    if args.output is not None:
        accelerator.save_model(trainer.model, args.output)
        if accelerator.is_main_process:
            (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    accelerator.free_memory()  # otherwise gloo's threads keep tensors, and torch 2.13 may hang
    accelerator.end_training()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config",
        type=settings_in,
        default=DEFAULTS,
        metavar="FILE",
        help="settings of the run, .yaml, .toml or .json; the options below override them",
    )
    parser.add_argument("--epochs", type=int, help="default: 10")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument(
        "--output",
        type=lambda text: Path(text).expanduser(),
        help="folder for weights, checkpoints, summary.json, metrics.jsonl and report.html",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in --output"
    )
    parser.add_argument("--save-config", type=Path, metavar="FILE", help="write the settings to it")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch and process")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    args = parser.parse_args()
    if args.resume and args.output is None:
        parser.error("--resume needs --output, the folder of the run to continue")
    return args


if __name__ == "__main__":
    main()
