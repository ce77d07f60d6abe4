import tempfile
from pathlib import Path

import pytest

from tests.checkpoint.damage.nursery import Nursery
from tests.checkpoint.damage.training import unbroken


@pytest.fixture(scope="module")
def nursery():
    """It is a child, which must be gone when other tests count the children there are."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def quick_path(tmp_path):
    """In memory if there is such a place: what a kill leaves behind is the same there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def final():
    """The weights of the run that nothing happens to."""
    return unbroken()
