import tempfile
from pathlib import Path

import pytest

from tests.checkpoint.damage.nursery import Nursery
from tests.checkpoint.damage.training import uninterrupted_weights


@pytest.fixture(scope="module")
def nursery():
    """Starts the fork server, and stops it before other tests count child processes."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def quick_path(tmp_path):
    """Returns a folder in memory if possible; a kill leaves the same files behind there."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def final():
    """Returns the weights of the uninterrupted run."""
    return uninterrupted_weights()
