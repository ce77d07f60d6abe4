import ignite.distributed as idist
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.core.accelerators import accelerator_or_default
from tests.reference import batches_of
from tests.reference import make_model


def trainer_without_accelerator(**options):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return create_supervised_trainer(model, optimizer, F.mse_loss, batches_of(4), **options)


@pytest.fixture
def synchronized(monkeypatch):
    calls = []
    monkeypatch.setattr(idist, "sync", lambda: calls.append(None))
    return calls


def test_an_accelerator_that_is_given_is_used():
    accelerator = Accelerator(cpu=True)
    assert accelerator_or_default(accelerator) is accelerator


def test_the_first_accelerator_accumulates_nothing():
    assert accelerator_or_default(None).gradient_accumulation_steps == 1


def test_a_new_accelerator_has_the_settings_of_those_there_are():
    first = Accelerator(
        cpu=True,
        mixed_precision="bf16",
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=4, adjust_scheduler=False, sync_with_dataloader=False, sync_each_batch=True
        ),
    )
    settings = dict(first.gradient_state.plugin_kwargs)
    second = accelerator_or_default(None)
    assert second.gradient_state.plugin_kwargs == settings
    assert second.mixed_precision == "bf16"
    assert second.device.type == "cpu"
    for accelerator in (first, second):
        assert accelerator.gradient_accumulation_steps == 4


@pytest.mark.parametrize(
    "make",
    [lambda: create_supervised_evaluator(make_model()), trainer_without_accelerator],
    ids=["evaluator", "trainer"],
)
def test_the_factories_keep_the_accumulation_of_others(make):
    first = Accelerator(cpu=True, gradient_accumulation_steps=4)
    engine = make()
    assert first.gradient_accumulation_steps == 4
    assert engine.accelerator.gradient_accumulation_steps == 4


def test_a_trainer_accumulates_on_although_an_evaluator_was_made_without_accelerator():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    trainer = trainer_without_accelerator(accelerator=accelerator)
    create_supervised_evaluator(make_model()).run(batches_of(2))
    assert trainer.run().optimizer_step == 1


def test_a_trainer_can_be_had_without_accelerator():
    assert trainer_without_accelerator().run().optimizer_step == 4


@pytest.mark.parametrize(("processes", "synchronizations"), [(1, 0), (2, 1)])
def test_ignite_is_told_of_the_processes_where_all_of_them_are(
    synchronized, monkeypatch, processes, synchronizations
):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    accelerator_or_default(accelerator)
    assert len(synchronized) == synchronizations
