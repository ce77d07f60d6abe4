import logging
from collections import Counter

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.state import PartialState


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Resets Accelerate before and after each test, because its state is global to the process."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    # An engine of an earlier test may be freed only now and write to this state, so it must be
    # complete.
    GradientState()
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
    # Engines log the failures that tests cause on purpose.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)


@pytest.hookimpl(tryfirst=True)  # before -m deselects tests
def pytest_collection_modifyitems(items):
    """Marks all but every n-th case of a test with ``@pytest.mark.grid(n)`` as ``exhaustive``.

    If n divides the length of none of the axes, the remaining cases contain every value.
    """
    seen = Counter()
    for item in items:
        if (grid := item.get_closest_marker("grid")) is not None:
            test = item.nodeid.partition("[")[0]
            if seen[test] % grid.args[0]:
                item.add_marker("exhaustive")
            seen[test] += 1
