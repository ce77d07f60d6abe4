import ignite.distributed as idist
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import DataLoaderConfiguration
from accelerate.utils import GradientAccumulationPlugin
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.core.accelerators import ITERATION_FLAGS
from ignite_hooks.core.accelerators import accelerator_or_default
from ignite_hooks.core.accelerators import is_prepared
from ignite_hooks.core.accelerators import prepared_models
from ignite_hooks.core.accelerators import registered_objects
from ignite_hooks.core.accelerators import shared_mixed_precision
from tests.reference import batches_of
from tests.reference import make_model
from tests.versions import needs


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


def test_the_default_accelerator_does_not_accumulate():
    assert accelerator_or_default(None).gradient_accumulation_steps == 1


def test_a_new_accelerator_has_the_settings_of_existing_ones():
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


def test_evaluator_without_accelerator_keeps_accumulation():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    trainer = trainer_without_accelerator(accelerator=accelerator)
    create_supervised_evaluator(make_model()).run(batches_of(2))
    assert trainer.run().optimizer_step == 1


def test_a_trainer_can_be_created_without_an_accelerator():
    assert trainer_without_accelerator().run().optimizer_step == 4


@pytest.mark.parametrize(("processes", "synchronizations"), [(1, 0), (2, 1)])
def test_ignite_is_synchronized_if_there_are_several_ranks(
    synchronized, monkeypatch, processes, synchronizations
):
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    accelerator_or_default(accelerator)
    assert len(synchronized) == synchronizations


# Accelerate's private members, on real objects of Accelerate.


def loader_of(loader_class):
    """Returns a prepared loader of three batches."""
    dispatches = DataLoaderConfiguration(dispatch_batches=loader_class is DataLoaderDispatcher)
    loader = Accelerator(cpu=True, dataloader_config=dispatches).prepare(DataLoader(range(5), 2))
    assert isinstance(loader, loader_class)
    return loader


@needs("accelerate>=1.14")
def test_prepared_models_are_those_that_prepare_returned():
    accelerator, other = Accelerator(cpu=True), Accelerator(cpu=True)
    assert prepared_models(accelerator) == []
    models = accelerator.prepare(make_model(), make_model())
    assert prepared_models(accelerator) == [*models]
    accelerator.prepare(models[0], DataLoader([1]))
    assert prepared_models(accelerator) == [*models]
    assert prepared_models(other) == []


def test_the_list_of_prepared_models_is_a_copy():
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(make_model())
    prepared_models(accelerator).clear()
    assert prepared_models(accelerator) == [model]


@needs("accelerate>=1.14")
@pytest.mark.parametrize("method", ["prepare", "prepare_model"])
def test_is_prepared_is_true_after_a_model_was_prepared(method):
    model = make_model()
    assert not is_prepared(model)
    assert is_prepared(getattr(Accelerator(cpu=True), method)(model))


def test_optimizers_schedulers_and_loaders_are_prepared_by_prepare():
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    objects = optimizer, StepLR(optimizer, 1), DataLoader([1])
    assert not any(map(is_prepared, objects))
    assert all(map(is_prepared, Accelerator(cpu=True).prepare(*objects)))


@pytest.mark.parametrize(
    ("loader_class", "flags"),
    [
        (DataLoaderShard, {*ITERATION_FLAGS} - {"_stop_iteration"}),
        (DataLoaderDispatcher, {*ITERATION_FLAGS}),
    ],
)
def test_an_iteration_changes_the_iteration_flags_alone(loader_class, flags):
    loader, missing = loader_of(loader_class), object()
    snapshots = [dict(vars(loader))]
    for _ in loader:
        snapshots.append(dict(vars(loader)))
    snapshots.append(dict(vars(loader)))
    names = {name for snapshot in snapshots for name in snapshot}
    values = {name: [each.get(name, missing) for each in snapshots] for name in names}
    changed = {name for name in names if any(value != values[name][0] for value in values[name])}
    assert changed == flags


def test_dispatching_loader_marks_the_end_of_the_data():
    loader = loader_of(DataLoaderDispatcher)
    assert [loader._stop_iteration for _ in loader] == [False, False, True]
    next(batches := iter(loader))
    assert not loader._stop_iteration
    batches.close()
    loader.end()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_shared_precision_is_that_of_the_first_accelerator(precision):
    assert shared_mixed_precision() is None
    first = Accelerator(cpu=True, mixed_precision=precision)
    assert shared_mixed_precision() == first.mixed_precision == precision
    assert Accelerator().mixed_precision == precision


def test_registered_objects_come_in_order_of_registration():
    accelerator, other = Accelerator(cpu=True), Accelerator(cpu=True)
    objects = [Stateful(), Stateful()]
    accelerator.register_for_checkpointing(*objects)
    assert registered_objects(accelerator) == objects
    assert registered_objects(other) == []


class Stateful:
    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict):
        pass
