"""Trains to the same weights, however often the script is stopped and started again.

Stop it with Ctrl-C or SIGTERM, and run the same command again:

    python examples/resume.py
    python examples/resume.py   # continues the run; trains nothing if training is complete

The last line of the output is a hash of all parameters, by which runs can be compared.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import digits
from digits import small_net
from ignite.metrics import Accuracy
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from xxhash import xxh3_64_hexdigest

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer


def make_trainer(checkpoints, *, cpu):
    set_seed(0)
    accelerator = Accelerator(cpu=cpu)
    train_part, held_out_part = digits()
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    evaluator = create_supervised_evaluator(
        model, {"accuracy": Accuracy()}, accelerator=accelerator
    )
    return create_supervised_trainer(
        model,
        optimizer,
        F.cross_entropy,
        DataLoader(train_part, 32, shuffle=True),
        accelerator=accelerator,
        lr_scheduler=ExponentialLR(optimizer, gamma=0.99),
        validation=Validation(evaluator, DataLoader(held_out_part, 120), every_epochs=1),
        checkpoint=SaveCheckpoint(
            checkpoints, every_seconds=2, on_signals=("SIGINT", "SIGTERM"), background=True
        ),
        resume_from=ResumeCheckpoint(checkpoints, on_missing="start"),
    )


def main():
    args = parse_args()
    torch.set_num_threads(1)
    trainer = make_trainer(args.checkpoints, cpu=args.cpu)
    print_once = trainer.accelerator.print  # on one process of several
    if trainer.resume_report is not None:
        print_once(trainer.resume_report)

    @trainer.on(TrainEvents.VALIDATION_COMPLETED)
    def print_accuracy():
        state = trainer.state
        print_once(f"epoch {state.epoch:3}   accuracy {state.metrics['val_accuracy']:.2%}")

    trainer.run(max_epochs=args.epochs)
    if trainer.stop_reason.startswith(("SIGINT", "SIGTERM")):  # or "SIGTERM on rank 1"
        step = trainer.state.optimizer_step
        print_once(f"stopped at step {step}; the same command continues from there")
        return
    weights = torch.cat([each.detach().flatten().cpu() for each in trainer.model.parameters()])
    print_once(f"held out accuracy   {trainer.state.metrics['val_accuracy']:.4f}")
    print_once(f"hash of the weights {xxh3_64_hexdigest(weights.numpy().tobytes())}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/resume"))
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
