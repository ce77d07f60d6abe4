"""Uses the handlers on a plain Ignite engine, whose process function is your own.

The process function computes the gradient of each batch: here with mixup, where each image is
mixed with another image, and the loss is the mean over both labels. The handlers do the rest:
gradient accumulation, optimizer step, scheduler, clipping, validation, the mean of the loss and the
display. Only ``SaveCheckpoint`` and ``ResumeCheckpoint`` need the trainer of
``create_supervised_trainer``, because they save and restore the position in the data.

    python examples/plain_engine.py
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import digits
from digits import small_net
from ignite.engine import Engine
from ignite.metrics import Accuracy
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

import ignite_hooks as ih


def main():
    args = parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    accelerator = Accelerator(cpu=args.cpu, gradient_accumulation_steps=2)
    train_part, held_out_part = digits()
    model = small_net()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.005))

    def process(engine, batch):
        model.train()
        images, labels = batch
        share, other = torch.rand(()).item(), torch.randperm(len(images), device=images.device)
        logits = model(share * images + (1 - share) * images[other])
        loss = share * F.cross_entropy(logits, labels)
        loss = loss + (1 - share) * F.cross_entropy(logits, labels[other])
        accelerator.backward(loss)
        return loss.detach()

    engine = Engine(process)
    evaluator = ih.create_supervised_evaluator(
        model, {"accuracy": Accuracy()}, accelerator=accelerator
    )
    handlers = [
        ih.OptimizerStep(accelerator, optimizer, ExponentialLR(optimizer, gamma=0.985)),  # first
        ih.GradientClipping(max_norm=1.0),
        ih.MeanLoss(),
        ih.Validation(evaluator, DataLoader(held_out_part, 120), every_epochs=1),
        ih.Console(metric="val_accuracy"),
    ]
    for handler in handlers:
        handler.attach(engine)
    # A DataFeed prepares the loader with Accelerate, and shuffles each epoch in another order.
    feed = ih.DataFeed(DataLoader(train_part, 32, shuffle=True), accelerator)
    engine.run(feed, max_epochs=args.epochs)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
