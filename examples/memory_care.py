"""Measures the memory peaks of each epoch, and finds the batch that causes them.

Sequences of many lengths make batches of many sizes, and the longest batch decides whether the job
fits on its machine. A sample once per second would miss that batch, which takes some tens of
milliseconds. On Linux the kernel records the peak of the memory, so each peak is exact here. In
addition, garbage is collected at fixed steps only, and the device's cache is cleared when much of
it is unused.

    python examples/memory_care.py
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from ignite.engine import Events
from ignite.metrics import Loss
from torch import nn

import ignite_hooks as ih

SEQUENCES, CHANNELS = 8, 16


class Sequences:
    """Batches of random walks of 64 to 1,500 steps. One batch, chosen at random, has 6,000 steps.

    The label of a step is whether it goes up in the mean over the channels.
    """

    def __init__(self, number, seed):
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(64, 1500, (number,), generator=generator)
        self.lengths[torch.randint(number, (1,), generator=generator)] = 6000

    def __len__(self):
        return len(self.lengths)

    def __iter__(self):
        for length in self.lengths.tolist():
            steps = torch.randn(SEQUENCES, CHANNELS, length)
            yield steps.cumsum(dim=2), (steps.mean(dim=1) > 0).float()


def net():
    return nn.Sequential(
        nn.Conv1d(CHANNELS, 128, kernel_size=5, padding=2),
        nn.GELU(),
        nn.Conv1d(128, 128, kernel_size=5, padding=2),
        nn.GELU(),
        nn.Conv1d(128, 1, kernel_size=1),
        nn.Flatten(start_dim=1),
    )


def main():
    args = parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    model = net()
    accelerator = Accelerator(cpu=args.cpu)
    evaluator = ih.create_supervised_evaluator(
        model, {"loss": Loss(F.binary_cross_entropy_with_logits)}, accelerator=accelerator
    )
    trainer = ih.create_supervised_trainer(
        model,
        torch.optim.AdamW(model.parameters(), lr=0.003),
        F.binary_cross_entropy_with_logits,
        Sequences(20, seed=1),
        accelerator=accelerator,
        validation=ih.Validation(evaluator, Sequences(4, seed=2), every_epochs=1),
        handlers=[
            *ih.ram_usage_metrics(minibatch=True, epoch=True, experience=True, stream=True),
            ih.MaxDeviceMemory(),
            ih.ClearCache(every_epochs=1, min_fragmentation=0.3),
            ih.GarbageCollector(every_steps=20, disable_automatic=True, freeze_after=10),
        ],
    )

    minibatches = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def note_peak(trainer):
        mib = trainer.state.metrics["minibatch_max_ram_mib"]
        minibatches.append((mib, trainer.state.batch[0].shape[2]))

    @trainer.on(ih.TrainEvents.VALIDATION_COMPLETED)
    def print_peaks(trainer):
        metrics, (mib, length) = trainer.state.metrics, max(minibatches)
        print(
            f"epoch {trainer.state.epoch}   peak {metrics['epoch_max_ram_mib']:.0f} MiB   "
            f"largest minibatch {mib:.0f} MiB (length {length})   "
            f"last minibatch {minibatches[-1][0]:.0f} MiB   "
            f"validation {metrics['stream_max_ram_mib']:.0f} MiB"
        )
        minibatches.clear()
        if "epoch_max_device_allocated_mib" in metrics:
            allocated = metrics["epoch_max_device_allocated_mib"]
            reserved = metrics["epoch_max_device_reserved_mib"]
            print(f"          device {allocated:.0f} MiB of {reserved:.0f} MiB reserved")

    metrics = trainer.run(max_epochs=args.epochs).metrics
    print(f"the whole run   peak {metrics['experience_max_ram_mib']:.0f} MiB")
    print(f"the last garbage collection took {metrics['gc_seconds'] * 1000:.2f} ms")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
