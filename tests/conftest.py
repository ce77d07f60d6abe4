import logging
from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.state import PartialState


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """All accelerators of a process share one state: each test begins without it."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    GradientState()  # whole, whatever an engine of an earlier test, freed only now, writes to it
    yield
    assert GradientState().dataloader_references == [None]
    for state in (AcceleratorState, GradientState):
        state._reset_state()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_configure():
    torch.set_num_threads(1)
    PartialState(cpu=True)
    # Engines log the failures that these tests provoke.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items):
    """Of a test with ``@pytest.mark.grid(n)`` each n-th case is run always, the others are
    ``exhaustive``. With an n that divides none of its axes the sample meets every value."""
    seen = Counter()
    for item in items:
        if (grid := item.get_closest_marker("grid")) is not None:
            test = item.nodeid.partition("[")[0]
            if seen[test] % grid.args[0]:
                item.add_marker("exhaustive")
            seen[test] += 1
