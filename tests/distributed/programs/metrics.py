"""Evaluation on two processes."""

import torch
from ignite.engine import Events
from ignite.metrics import Average
from ignite.metrics import MeanSquaredError
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset
from torch.utils.data import TensorDataset

from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run

SIZES = (1, 2, 3, 5, 8, 9)


def samples(size):
    """The target is the number of the sample: 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 1, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.arange(float(size), dtype=torch.float64)[:, None])


class Stream(IterableDataset):
    def __init__(self, size):
        self.samples = samples(size)

    def __iter__(self):
        return iter(self.samples)


def raw(ours, size):
    return DataLoader(samples(size), batch_size=2)


def shuffled(ours, size):
    return DataLoader(samples(size), batch_size=2, shuffle=True)


def prepared(ours, size):
    assert ours.even_batches
    return ours.prepare(raw(ours, size))


def stream(ours, size):
    return DataLoader(Stream(size), batch_size=2)


def prepared_stream(ours, size):
    return ours.prepare(stream(ours, size))


def dispatched(ours, size):
    return ours.prepare_data_loader(raw(ours, size))


KINDS = (raw, shuffled, prepared, stream, prepared_stream, dispatched)


def own_model():
    return torch.nn.Linear(1, 1, dtype=torch.float64)


def evaluated(evaluator, loader):
    seen = []

    def look(engine):
        seen.extend(engine.state.output[1].flatten().tolist())

    with evaluator.add_event_handler(Events.ITERATION_COMPLETED, look):
        evaluator.run(loader)
    metrics = {name: float(value) for name, value in evaluator.state.metrics.items()}
    return {"seen": seen, **metrics}


def evaluate(kind):
    """Metrics and the samples seen, twice for each size, on a loader of ``kind``."""
    found = {}
    for size in SIZES:
        ours = accelerator()
        ours.dataloader_config.dispatch_batches = True if kind is dispatched else None
        torch.manual_seed(0)
        evaluator = create_supervised_evaluator(
            own_model(),
            {
                "mse": MeanSquaredError(),
                "mean": Average(output_transform=lambda output: output[1]),
            },
            accelerator=ours,
        )
        loader = kind(ours, size)
        found[str(size)] = [evaluated(evaluator, loader) for _ in range(2)]
    return found


def of_kind(kind):
    def check():
        return evaluate(kind)

    check.__name__ = f"of_{kind.__name__}"
    return check


def validation():
    """The metrics of a validation within training."""
    ours = accelerator(2)
    torch.manual_seed(0)
    model = own_model()
    evaluator = create_supervised_evaluator(
        model,
        {"mean": Average(output_transform=lambda output: output[1])},
        accelerator=ours,
    )
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.001),
        torch.nn.functional.mse_loss,
        raw(ours, 9),
        accelerator=ours,
        validation=Validation(
            evaluator,
            {"raw": raw(ours, 5), "stream": stream(ours, 3), "long": stream(ours, 7)},
            every_steps=1,
            max_batches=99,
        ),
    )
    means = []

    @trainer.on(Events.EPOCH_COMPLETED | Events.ITERATION_STARTED)
    def look(engine):
        metrics = engine.state.metrics
        names = ("val_raw_mean", "val_stream_mean", "val_long_mean")
        means.append([float(metrics[name]) if name in metrics else None for name in names])

    trainer.run(max_epochs=2)
    return {"means": means, "steps": trainer.state.optimizer_step}


if __name__ == "__main__":
    run(*(of_kind(kind) for kind in KINDS[:3]), validation, *(of_kind(kind) for kind in KINDS[3:]))
