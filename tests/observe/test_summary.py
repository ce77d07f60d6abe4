import logging
import re

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import BatchSampler
from torch.utils.data import DataLoader
from torch.utils.data import SequentialSampler
from torch.utils.data import TensorDataset

from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from tests.distributed.forked import on_ranks


def trainer_of(model=None, data="loader", accumulation=1, **options):
    model = torch.nn.Linear(4, 2) if model is None else model
    if data == "loader":
        data = DataLoader(TensorDataset(torch.zeros(30, 4), torch.zeros(30).long()), batch_size=4)
    return create_supervised_trainer(
        model,
        torch.optim.SGD([*model.parameters()] or [torch.zeros(1)], lr=0.1),
        torch.nn.functional.cross_entropy,
        data,
        accelerator=Accelerator(cpu=True, gradient_accumulation_steps=accumulation),
        **options,
    )


def test_a_trainer_shows_what_it_trains_with():
    assert repr(trainer_of()) == (
        "<Trainer: Linear with 10 parameters; 8 steps an epoch, 4 samples a step; "
        "float32, 1 process on cpu>"
    )


def test_accumulated_batches_are_one_step():
    assert "; 3 steps an epoch, 12 samples a step (3 × 4); " in repr(trainer_of(accumulation=3))


def test_frozen_parameters_are_counted_apart():
    model = torch.nn.Linear(1000, 2)
    model.weight.requires_grad_(False)
    assert "Linear with 2,002 parameters, 2 of them trained;" in repr(trainer_of(model))


def test_shared_parameters_count_once():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert "with 8 parameters;" in repr(trainer_of(model))


def test_a_loss_with_weights_counts():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3))

        def forward(self, y_pred, y):
            return torch.nn.functional.cross_entropy(y_pred, y) * self.scale.sum()

    model, loss = torch.nn.Linear(4, 2), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, loss, accelerator=Accelerator(cpu=True))
    assert "Linear with 13 parameters;" in repr(trainer)


def test_lazy_parameters_are_not_counted():
    assert "with parameters that are not initialized yet" in repr(
        trainer_of(torch.nn.LazyLinear(2))
    )


def test_dtypes_are_named_without_mixed_precision():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2).double())
    assert "; float32 and float64, 1 process on cpu" in repr(trainer_of(model))


def test_mixed_precision_is_named():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(
        model, optimizer, torch.nn.functional.cross_entropy, accelerator=accelerator
    )
    assert "; mixed precision bf16, 1 process on cpu>" in repr(trainer)


def batches(count):
    return ((torch.zeros(2, 4), torch.zeros(2).long()) for _ in range(count))


@pytest.mark.parametrize(
    ("data", "accumulation", "steps"),
    [
        (None, 1, ""),
        ([*batches(3)], 1, " 3 steps an epoch;"),
        ([*batches(1)], 1, " 1 step an epoch;"),
        ([*batches(3)], 2, " 2 steps an epoch, 2 batches a step;"),
        (batches(3), 1, ""),
        (batches(3), 2, " 2 batches a step;"),
    ],
    ids=["none", "list", "one batch", "accumulated list", "generator", "accumulated generator"],
)
def test_what_the_data_do_not_tell_is_left_out(data, accumulation, steps):
    shown = repr(trainer_of(data=data, accumulation=accumulation))
    assert f"parameters;{steps} float32" in shown


def test_a_property_that_fails_in_a_sampler_is_no_error():
    class Failing(BatchSampler):
        @property
        def batch_size(self):
            raise RuntimeError("no size")

        @batch_size.setter
        def batch_size(self, size):
            pass

        def __iter__(self):
            return iter([[0, 1], [2, 3]])

        def __len__(self):
            return 2

    data = TensorDataset(torch.zeros(4, 4), torch.zeros(4).long())
    sampler = Failing(SequentialSampler(data), 2, drop_last=False)
    trainer = trainer_of(data=DataLoader(data, batch_size=None, sampler=sampler))
    assert (
        repr(trainer)
        == "<Trainer: Linear with 10 parameters; 2 steps an epoch; float32, 1 process on cpu>"
    )


def test_an_epoch_length_decides_the_steps_of_an_epoch():
    trainer = trainer_of(data=None)
    trainer.run([*batches(6)], max_epochs=2, epoch_length=5)
    assert " 5 steps an epoch;" in repr(trainer)


def test_the_folder_and_what_was_resumed_are_named(tmp_path):
    trainer = trainer_of(checkpoint=SaveCheckpoint(tmp_path, every_steps=3))
    assert repr(trainer).endswith(f"; checkpoints in {tmp_path}>")
    trainer.run(max_steps=3)
    resumed = trainer_of(resume_from=ResumeCheckpoint(tmp_path))
    assert repr(resumed).endswith(f"; resumed from {tmp_path}/step_00000003, step 3>")


def test_the_first_line_of_the_log_is_the_summary(caplog):
    trainer = trainer_of()
    with caplog.at_level(logging.INFO, trainer.logger.name):
        trainer.run(max_steps=2)
    assert caplog.messages[0] == f"Engine run starting with max_steps=2: {trainer!r}"
    caplog.clear()
    with caplog.at_level(logging.INFO, trainer.logger.name):
        trainer.run(max_epochs=3, max_steps=5)
    assert re.match("Engine run starting with max_epochs=3, max_steps=5: <", caplog.messages[0])


@pytest.mark.distributed
def test_samples_of_a_step_are_those_of_all_processes(tmp_path):
    def shown(rank):
        before, trainer = repr(trainer_of(accumulation=2)), trainer_of(accumulation=2)
        trainer.run(max_steps=1)
        return [before, repr(trainer)]

    for outcome in on_ranks(shown, tmp_path):
        for text in outcome.found:
            assert "; 2 steps an epoch, 16 samples a step (2 × 8); " in text
            assert re.search(r"; float32, 2 processes, this one on cpu(:\d)?>$", text)
