from contextlib import suppress

import pytest
from accelerate import Accelerator
from accelerate.state import GradientState
from torch.utils.data import DataLoader

from ignite_hooks.data.active_loader import activated
from ignite_hooks.data.active_loader import deactivated
from ignite_hooks.data.feed import DataFeed


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True, gradient_accumulation_steps=3)


@pytest.fixture
def loader(accelerator):
    return accelerator.prepare(DataLoader(range(7), batch_size=1))


def synchronizing_batches(accelerator, loader, nested=None):
    """Returns for each batch of two passes whether it synchronizes; ``nested`` runs after each."""
    synced = []
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate():
                synced.append(int(accelerator.sync_gradients))
            if nested is not None:
                nested(int(batch))
    return synced


def abandon(batches, kept):
    kept.append(iter(batches))
    next(kept[-1])


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("broken_off", [True, False])
def test_nested_iteration_in_set_aside_changes_no_window(same, broken_off, accelerator, loader):
    plain = synchronizing_batches(accelerator, loader)
    assert plain == [0, 0, 1, 0, 0, 1, 1] * 2
    other = loader if same else accelerator.prepare(DataLoader(range(3), batch_size=1))
    kept = []

    def nested(batch):
        with deactivated(loader):
            assert GradientState().dataloader_references == [None]
            if broken_off:
                abandon(other, kept)
            else:
                list(other)
        assert GradientState().active_dataloader is loader

    assert synchronizing_batches(accelerator, loader, nested) == plain
    with deactivated(loader):
        kept.clear()


@pytest.mark.parametrize("at_the_end", [True, False])
def test_flags_are_restored_after_a_failure_in_set_aside(at_the_end, accelerator, loader):
    state = GradientState()
    for batch in loader:
        if int(batch) != 6 and at_the_end:
            continue
        accelerator.sync_gradients = True
        with suppress(ArithmeticError), deactivated(loader):
            list(loader)
            loader.end_of_dataloader, loader.remainder = not at_the_end, 77
            accelerator.sync_gradients = False
            raise ArithmeticError
        assert loader.end_of_dataloader is state.end_of_dataloader is at_the_end
        assert (loader.remainder, loader.iteration) == (0, 0)
        assert accelerator.sync_gradients
        assert state.active_dataloader is loader
        if not at_the_end:
            break
    loader.end()


@pytest.mark.parametrize("data", [None, [1], "a list has no flags"])
def test_any_data_can_be_set_aside(data, accelerator, loader):
    loader.begin()
    with deactivated(data):
        assert not GradientState().in_dataloader
    assert GradientState().active_dataloader is loader
    loader.end()


def test_loader_is_inactive_after_the_body(accelerator, loader):
    with activated(loader):
        loader.begin()
        assert GradientState().active_dataloader is loader
    assert GradientState().dataloader_references == [None]
    with suppress(ArithmeticError), activated(loader):
        loader.begin()
        raise ArithmeticError
    assert GradientState().dataloader_references == [None]


def test_nested_iteration_restores_the_outer_one(accelerator, loader):
    with activated(loader):
        loader.begin()
        loader.end_of_dataloader, loader.remainder = True, 3
        before = GradientState().dataloader_references
        with activated(loader):
            loader.begin()
            assert not loader.end_of_dataloader
        assert GradientState().dataloader_references == before
        assert (loader.end_of_dataloader, loader.remainder) == (True, 3)
    assert GradientState().dataloader_references == [None]


def test_outer_loader_stays_active_after_an_inner_one(accelerator, loader):
    other = accelerator.prepare(DataLoader(range(3)))
    with activated(loader):
        loader.begin()
        with activated(other):
            other.begin()
        assert GradientState().active_dataloader is loader


def test_nested_iteration_leaves_persistent_workers_alone():
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(range(8), batch_size=2, num_workers=1, persistent_workers=True)
    loader = accelerator.prepare(loader)
    feed, inner = DataFeed(loader, accelerator), DataFeed(loader, accelerator)
    seen = []
    for batch in feed:
        seen.append(batch.tolist())
        with deactivated(loader):
            assert len(list(loader)) == 4
        assert len(list(inner)) == 4
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7]]
