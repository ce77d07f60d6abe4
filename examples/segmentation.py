"""Finds squares and discs in noisy pictures: batches are dicts, and two losses are minimized.

Cross entropy and Dice loss are reported by name, in the table and in the record of the metrics. The
learning rate is halved when the mean IoU of the held-out pictures no longer rises.

    python examples/segmentation.py
    torchrun --nproc_per_node 2 examples/segmentation.py --cpu
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from ignite.metrics import ConfusionMatrix
from ignite.metrics import mIoU
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

import ignite_hooks as ih

CLASSES = " #o"  # background, square, disc


class Shapes(Dataset):
    """Pictures of 24x24 pixels with a square and a disc, which may hide a part of the square."""

    def __init__(self, indices):
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, position):
        generator = torch.Generator().manual_seed(self.indices[position])
        (top, left), center = torch.randint(0, 16, (2, 2), generator=generator).tolist()
        row, column = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
        mask = torch.zeros(24, 24, dtype=torch.long)
        mask[top : top + 8, left : left + 8] = 1
        mask[(row - center[0] - 4) ** 2 + (column - center[1] - 4) ** 2 <= 16] = 2
        noise = 0.5 * torch.randn(24, 24, generator=generator)
        return {"image": ((mask > 0) + noise).unsqueeze(0), "mask": mask}


def make_model():
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    for dilation in (1, 2, 4):  # each pixel sees its surroundings
        convolution = nn.Conv2d(16, 16, 3, padding=dilation, dilation=dilation)
        layers += [convolution, nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, len(CLASSES), 1))


def dice_loss(logits, mask):
    predicted, true = logits.softmax(1), F.one_hot(mask, len(CLASSES)).movedim(-1, 1)
    overlap = (predicted * true).sum((0, 2, 3))
    return 1 - (2 * overlap / (predicted + true).sum((0, 2, 3))).mean()


def losses(model, batch):
    """The batch processor: returns the outputs and the loss to minimize."""
    logits = model(batch["image"])
    cross_entropy = F.cross_entropy(logits, batch["mask"])
    dice = dice_loss(logits, batch["mask"])
    # Losses are returned detached: otherwise they would keep the graph of the batch alive.
    return {"cross_entropy": cross_entropy.detach(), "dice": dice.detach()}, cross_entropy + dice


def image_and_mask(batch, device, non_blocking):
    return batch["image"], batch["mask"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/segmentation"))
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    args = parser.parse_args()
    torch.set_num_threads(1)  # so small a net is faster with one thread
    set_seed(0)
    accelerator, model = Accelerator(cpu=args.cpu), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    metrics = {"iou": mIoU(ConfusionMatrix(len(CLASSES)))}
    evaluator = ih.create_supervised_evaluator(
        model, metrics, accelerator=accelerator, prepare_batch=image_and_mask
    )
    held_out = Shapes(range(512, 640))
    trainer = ih.create_supervised_trainer(
        model,
        optimizer,
        data=DataLoader(Shapes(range(512)), 16, shuffle=True),
        accelerator=accelerator,
        batch_processor=losses,
        lr_scheduler=ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1),
        scheduler_at="validation",
        scheduler_metric="val_iou",
        validation=ih.Validation(evaluator, DataLoader(held_out, 64), every_epochs=1),
        handlers=[
            ih.MeanLoss(keys=("cross_entropy", "dice")),
            ih.MetricsLog(args.output / "metrics.jsonl"),
            ih.Console(metric="val_iou"),
        ],
    )
    trainer.run(max_epochs=args.epochs)

    picture = held_out[0]
    model.eval()
    predicted = model(picture["image"].unsqueeze(0).to(accelerator.device)).argmax(1)[0]
    for true_row, row in zip(picture["mask"], predicted, strict=True):
        both = ("".join(CLASSES[label] for label in each) for each in (true_row, row))
        accelerator.print(" | ".join(both))


if __name__ == "__main__":
    main()
