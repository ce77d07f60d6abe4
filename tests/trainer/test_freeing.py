"""Unused loaders, models and trainers are freed while their accelerator and engines live."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ignite_hooks import DataFeed
from ignite_hooks import OptimizerStep
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from tests.reference import Noisy
from tests.reference import make_model
from tests.reference import weights
from tests.versions import needs


class Halved(DataLoader):
    """A loader of another class, which is iterated without preparation."""

    def __iter__(self):
        return ((x / 2, y) for x, y in super().__iter__())


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def trainer_of(accelerator, model=None, data=None, **options):
    model = make_model() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return create_supervised_trainer(
        model, optimizer, F.mse_loss, data, accelerator=accelerator, **options
    )


def loader_of(size=4, **options):
    return DataLoader(Noisy(size), 2, shuffle=True, **options)


def alive(references):
    gc.collect()
    gc.collect()  # classes, whose instances had finalizers
    return [number for number, each in enumerate(references) if each() is not None]


def lists_of(accelerator):
    names = ("_models", "_optimizers", "_dataloaders")
    return [len(getattr(accelerator, name)) for name in names]


def run_on_new_loaders(engine, make, number=5):
    """Returns weak references to the loaders and the data sets."""
    gone = []
    for _ in range(number):
        loader = make()
        gone.append((weakref.ref(loader), weakref.ref(loader.dataset)))
        engine.run(loader)
        del loader
    return [list(each) for each in zip(*gone, strict=True)]


@pytest.mark.parametrize("kind", [loader_of, lambda: Halved(Noisy(4), 2)], ids=["raw", "own"])
@pytest.mark.parametrize("engine", ["trainer", "evaluator"])
def test_only_the_newest_loader_of_an_engine_is_kept(accelerator, kind, engine):
    engine = {
        "trainer": lambda: trainer_of(accelerator),
        "evaluator": lambda: create_supervised_evaluator(make_model(), accelerator=accelerator),
    }[engine]()
    for references in run_on_new_loaders(engine, kind, 12):
        assert alive(references) == [11]
    assert len(accelerator._dataloaders) == (kind is loader_of)


def test_a_trainer_that_saves_keeps_only_the_newest_loader(accelerator, tmp_path):
    trainer = trainer_of(accelerator, checkpoint=SaveCheckpoint(tmp_path, every_epochs=1))
    for references in run_on_new_loaders(trainer, loader_of):
        assert alive(references) == [4]


def test_twelve_trainers_on_one_accelerator_are_all_freed(accelerator, tmp_path):
    gone = []
    for number in range(12):
        data, held_out = loader_of(), loader_of()
        model = make_model()
        evaluator = create_supervised_evaluator(model, accelerator=accelerator)
        trainer = trainer_of(
            accelerator,
            model,
            data,
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
            validation=Validation(evaluator, held_out, every_epochs=1),
            checkpoint=SaveCheckpoint(tmp_path / str(number), every_epochs=1),
            resume_from=ResumeCheckpoint(tmp_path / str(number - 1), on_missing="start"),
        )
        trainer.run(max_epochs=number + 1)
        inner = trainer.optimizer.optimizer
        held = [trainer, model, trainer.optimizer, inner, evaluator, data.dataset, held_out.dataset]
        gone.append([weakref.ref(each) for each in held])
    assert alive([references[0] for references in gone]) == [11]
    assert lists_of(accelerator) == [1, 1, 2]
    del data, held_out, model, evaluator, trainer, inner, held
    for references in zip(*gone, strict=True):
        assert alive(references) == []
    assert lists_of(accelerator) == [0, 0, 0]


def test_classes_redefined_in_a_notebook_cell_are_freed(accelerator):
    def cell():
        class Local(Noisy):
            def __getitem__(self, index):
                return held_in_closure[index]

        held_in_closure = Noisy()
        trainer_of(accelerator, data=DataLoader(Local(4), 2)).run()
        return weakref.ref(held_in_closure), weakref.ref(Local)

    gone = [each for _ in range(3) for each in cell()]
    assert alive(gone) == []


@needs("accelerate>=1.14")
def test_objects_the_user_prepared_stay_with_the_accelerator(accelerator):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    prepared = accelerator.prepare(model, optimizer, scheduler, loader_of())
    trainer = create_supervised_trainer(
        prepared[0],
        prepared[1],
        F.mse_loss,
        prepared[3],
        accelerator=accelerator,
        lr_scheduler=prepared[2],
    )
    evaluator = create_supervised_evaluator(prepared[0], accelerator=accelerator)
    for engine in (trainer, evaluator):
        engine.run(prepared[3])
        engine.run(loader_of())
    assert lists_of(accelerator) == [1, 1, 3]
    gone = weakref.ref(trainer)
    del trainer, evaluator, engine
    assert alive([gone]) == []
    assert accelerator._models == [prepared[0]]
    assert accelerator._optimizers == [prepared[1]]
    assert accelerator._schedulers == [prepared[2]]
    assert accelerator._dataloaders == [prepared[3]]


@needs("accelerate>=1.14")
def test_accelerator_lists_a_model_while_a_trainer_uses_it(accelerator):
    model = make_model()
    first, second = trainer_of(accelerator, model), trainer_of(accelerator, model)
    assert accelerator._optimizers == [first.optimizer, second.optimizer]
    del first
    gc.collect()
    assert accelerator._models == [model]
    assert accelerator._optimizers == [second.optimizer]
    del second
    gc.collect()
    assert lists_of(accelerator) == [0, 0, 0]


def test_accelerator_lists_hold_only_objects_in_use(accelerator):
    loader = loader_of()
    trainer = trainer_of(accelerator, data=loader)
    accelerator.free_memory()
    trainer.run(loader_of())
    trainer.run(loader)
    assert accelerator._dataloaders == [trainer.state.dataloader]
    mine = accelerator.prepare(loader_of())
    del trainer
    gc.collect()
    assert accelerator._dataloaders == [mine]


def test_an_accelerator_is_freed_with_its_engines():
    accelerator = Accelerator(cpu=True)
    trainer, gone = trainer_of(accelerator, data=loader_of()), weakref.ref(accelerator)
    trainer.run()
    trainer.model.trained_by = trainer  # which keeps it with the accelerator
    del trainer, accelerator
    assert alive([gone]) == []


def test_parts_used_without_a_trainer_are_freed(accelerator):
    loader, model = loader_of(), make_model()
    feed = DataFeed(loader, accelerator)
    step = OptimizerStep(accelerator, torch.optim.SGD(model.parameters(), lr=0.1))
    assert lists_of(accelerator) == [0, 1, 1]
    gone = [weakref.ref(each) for each in (loader.dataset, step.optimizer, feed)]
    del loader, feed, step
    assert alive(gone) == []
    assert lists_of(accelerator) == [0, 0, 0]


@pytest.mark.parametrize("which", ["raw", "prepared by the trainer", "prepared by its user"])
def test_a_loader_that_is_kept_continues_where_it_stopped(accelerator, which):
    loader = loader_of(8)
    if which == "prepared by its user":
        loader = accelerator.prepare(loader)
    trainer = trainer_of(accelerator, data=loader)
    trainer.run(max_steps=2)
    feed, prepared = trainer.feed, trainer.state.dataloader
    loader = prepared if which == "prepared by the trainer" else loader
    expected = weakref.ref(feed)
    del feed, prepared
    trainer.run(loader_of(), max_steps=3)
    gc.collect()
    assert trainer.feed is not expected()
    trainer.set_data(loader)
    assert trainer.feed is expected()
    assert trainer.feed.position == (0, 2)


def test_a_copy_of_a_loader_has_its_own_position(accelerator):
    loader = loader_of(8)
    trainer = trainer_of(accelerator, data=loader)
    trainer.run(max_steps=1)
    for other in (copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        feed = trainer.feed
        trainer.set_data(other)
        assert trainer.feed is not feed
        assert trainer.feed.position == (0, 0)


def test_trainers_of_one_loader_have_separate_positions(accelerator):
    loader = loader_of(8)
    first, second = (trainer_of(accelerator, data=loader) for _ in range(2))
    first.run(max_steps=3)
    second.run(max_steps=1)
    assert [each.feed.position.batches for each in (first, second)] == [3, 1]
    gone = weakref.ref(first.feed)
    del first
    assert alive([gone]) == []


def test_accelerate_checkpoints_hold_the_objects_in_use(accelerator, tmp_path):
    model = make_model()
    trainer = trainer_of(accelerator, model, loader_of())
    trainer.run(max_steps=1)
    accelerator.save_state(tmp_path / "used")
    before = weights(model)
    trainer.run(max_steps=2)
    accelerator.load_state(tmp_path / "used")
    assert torch.equal(weights(model), before)
    assert (tmp_path / "used/optimizer.bin").exists()
    del trainer
    gc.collect()
    accelerator.save_state(tmp_path / "freed")
    assert not list((tmp_path / "freed").glob("*.safetensors"))
    assert not (tmp_path / "freed/optimizer.bin").exists()
