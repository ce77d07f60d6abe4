"""Trains a small convolutional net on the handwritten digits that come with scikit-learn.

Runs in one process, on the GPU if there is one, or in several processes:

    python examples/digits.py --output runs/digits
    python examples/digits.py --output runs/digits --resume --epochs 12  # two epochs more
    python examples/digits.py --config examples/run.yaml
    torchrun --nproc_per_node 2 examples/digits.py --cpu
"""

import argparse
import json
from pathlib import Path

import torch
from ignite import metrics
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

import ignite_hooks as ih
from ignite_hooks import config

DEFAULTS = config.RunSettings(
    seed=0,
    gradient_accumulation_steps=2,
    max_epochs=10,
    grad_clip=ih.GradientClipping(max_norm=1.0),
    validation=config.ValidationSchedule(every_epochs=1),
    handlers=(ih.Console(metric="val_accuracy"),),
)


def digits():
    """Returns 1,437 images of 8x8 pixels for training and 360 held out, the same for every seed."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    train, held_out = train_test_split(range(len(y)), test_size=360, stratify=y, random_state=0)
    return TensorDataset(x[train], y[train]), TensorDataset(x[held_out], y[held_out])


def small_net():
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 4 * 4, 10))


def settings_of(args):
    """Returns the settings of --config; the other options override them."""
    settings = DEFAULTS if args.config is None else config.load(args.config, config.RunSettings)
    given = {"seed": args.seed, "max_epochs": args.epochs}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.output:
        folder, report = args.output / "checkpoints", ih.TrainingReport(args.output / "report.html")
        save = ih.SaveCheckpoint(folder, every_epochs=1, keep_best=1, metric="val_accuracy")
        changes |= {"checkpoint": save, "handlers": (*settings.handlers, ih.TimeLedger(), report)}
        resume = ih.ResumeCheckpoint(folder, on_missing="start") if args.resume else None
        changes["resume_from"] = resume  # never from the folder that --config names
    return config.replace(settings, **changes)


def main():
    args, settings = parse_args()
    torch.set_num_threads(1)  # so small a net is faster with one thread
    accelerator = settings.set_up(cpu=args.cpu)
    if args.save_config and accelerator.is_main_process:
        config.save(settings, args.save_config, exclude_defaults=True)
    (train_part, held_out_part), model = digits(), small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    measured = {"accuracy": metrics.Accuracy(), "loss": metrics.Loss(nn.functional.cross_entropy)}
    trainer = settings.build(
        model,
        optimizer,
        nn.functional.cross_entropy,
        DataLoader(train_part, args.batch_size, shuffle=True),
        accelerator=accelerator,
        lr_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.985),
        evaluator=ih.create_supervised_evaluator(model, measured, accelerator=accelerator),
        validation_data=DataLoader(held_out_part, 120),
    )
    state = trainer.run()
    summary = {"epochs": state.epoch, "optimizer_steps": state.optimizer_step}
    summary["processes"] = accelerator.num_processes
    if "val_accuracy" in state.metrics:  # not without a validation in the settings
        summary["held_out_accuracy"] = round(state.metrics["val_accuracy"], 4)
    rows = [f"{name.replace('_', ' '):20}{value}" for name, value in summary.items()]
    accelerator.print("", *rows, sep="\n")
    if args.output:
        accelerator.save_model(trainer.model, args.output)
    if args.output and accelerator.is_main_process:
        (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    accelerator.free_memory()  # otherwise gloo's threads keep tensors, and torch 2.13 may hang
    accelerator.end_training()


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", metavar="FILE", help="settings: .yaml, .toml or .json")
    parser.add_argument("--epochs", type=int, help="default: 10")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--output", type=Path, help="folder for all files of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--save-config", metavar="FILE", help="write the settings to it")
    parser.add_argument("--batch-size", type=int, default=32, help="per process")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    args = parser.parse_args()
    args.output = args.output and args.output.expanduser()  # for --output=~/x
    if args.resume and args.output is None:
        parser.error("--resume needs --output, the folder of the run to continue")
    try:
        return args, settings_of(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
