"""Transfers a net that reads the digits 0 to 4 to the digits 5 to 9, with 100 samples of these.

First only a new head is trained, then the body too, with a lower learning rate. A moving average of
the weights is validated in each epoch, and its best state is tested with digits that were neither
trained nor validated on. The same training from scratch shows what the transfer is worth.

    python examples/transfer.py
    tensorboard --logdir runs/transfer
    torchrun --nproc_per_node 2 examples/transfer.py --cpu --output runs/two_processes
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate import DistributedDataParallelKwargs
from accelerate.utils import set_seed
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.handlers import EMAHandler
from ignite.metrics import Accuracy
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset
from torch.utils.data import random_split

import ignite_hooks as ih
from ignite_hooks.checkpoint import load_weights


def five_digits(first, copies=1):
    """Returns the digits from ``first`` on, each copied to random places of 16x16 pixels."""
    images, labels = map(torch.tensor, load_digits(return_X_y=True))
    kept = ((labels >= first) & (labels < first + 5)).nonzero().flatten().repeat(copies)
    places = torch.randint(0, 9, (len(kept), 2), generator=torch.Generator().manual_seed(0))
    x = torch.zeros(len(kept), 1, 16, 16)
    for picture, image, (top, left) in zip(x, images[kept].view(-1, 8, 8), places, strict=True):
        picture[0, top : top + 8, left : left + 8] = image / 16
    return TensorDataset(x, labels[kept] - first)


def make_net():
    body = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    body += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    body += [nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.ReLU()]
    return nn.Sequential(nn.Sequential(*body), nn.Linear(64, 5))  # body and head


def pretrain(net, accelerator):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.002)
    data = DataLoader(five_digits(0, copies=4), 32, shuffle=True)
    ih.create_supervised_trainer(
        net, optimizer, F.cross_entropy, data, accelerator=accelerator
    ).run(max_epochs=5)


def train(name, net, args, accelerator, body_lr=0.003, frozen_epochs=0):
    """Trains with 100 digits, keeps the best weights for 200 others, and returns a test result."""
    body, head = net
    parts = random_split(five_digits(5), [100, 200, 596], torch.Generator().manual_seed(0))
    few, held_out, test = (DataLoader(part, 10, shuffle=part is parts[0]) for part in parts)
    groups = [{"params": body.parameters(), "lr": body_lr}, {"params": head.parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.003)
    ema = EMAHandler(net, momentum=0.1)
    evaluator = ih.create_supervised_evaluator(
        ema.ema_model, {"accuracy": Accuracy()}, accelerator=accelerator
    )
    saved = args.output / name / "checkpoints"
    trainer = ih.create_supervised_trainer(
        net,
        optimizer,
        F.cross_entropy,
        few,
        accelerator=accelerator,
        lr_scheduler=LinearLR(optimizer, start_factor=0.1, total_iters=20),  # warm-up, in 20 steps
        validation=ih.Validation(evaluator, held_out, every_epochs=1),
        checkpoint=ih.SaveCheckpoint(saved, every_epochs=1, keep_best=1, metric="val_accuracy"),
        handlers=[ih.Console(), ih.SendMetrics(project=name)],
    )
    ema.attach(trainer, event=ih.TrainEvents.STEP_COMPLETED)
    stopping = EarlyStopping(6, lambda _: trainer.state.metrics["val_accuracy"], trainer)
    trainer.add_event_handler(ih.TrainEvents.VALIDATION_COMPLETED, stopping)
    if frozen_epochs:
        body.requires_grad_(False)
        then = Events.EPOCH_STARTED(once=frozen_epochs + 1)
        trainer.add_event_handler(then, lambda: body.requires_grad_(True))
    trainer.run(max_epochs=args.epochs)
    load_weights(ema.ema_model, saved, "best", part="handlers/EMAHandler")
    return evaluator.run(test).metrics["accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"), help="a new folder")
    parser.add_argument("--epochs", type=int, default=30, help="at most; default: 30")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    args = parser.parse_args()
    args.output = args.output.expanduser()  # for --output=~/x
    torch.set_num_threads(1)  # so small a net is faster with one thread
    set_seed(0)
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)  # of which some are frozen
    accelerator = Accelerator(
        cpu=args.cpu, log_with="tensorboard", project_dir=args.output, kwargs_handlers=[ddp]
    )
    scratch = train("scratch", make_net(), args, accelerator)
    net = make_net()
    pretrain(net, accelerator)
    net[1].reset_parameters()  # the other digits need a head of their own
    transferred = train("transfer", net, args, accelerator, body_lr=0.001, frozen_epochs=5)
    accelerator.print(f"test accuracy   {scratch:.4f} from scratch   {transferred:.4f} transferred")
    accelerator.end_training()


if __name__ == "__main__":
    main()
