"""The rest of a pass in batches of another size, on two processes."""

import re
from itertools import chain

import pytest

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.changed_data import BATCHES
from tests.distributed.programs.changed_data import SIZE

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("changed_data", tmp_path_factory.mktemp("changed_data"), limit=120)


@pytest.mark.parametrize("size", [2, 5, 20])
@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("check", ["in_batches", "in_parts_of_batches"])
def test_each_remaining_sample_comes_on_one_process(findings, check, batches, size):
    of_ranks = [found[f"{batches} {size}"] for found in findings.of(check)]
    before = {*chain(*(chain(*found["before"]) for found in of_ranks))}
    rest = [*chain(*(chain(*found["rest"]) for found in of_ranks))]
    assert len(before) == 6 * batches
    assert {*rest} >= {*range(SIZE)} - before
    assert len(rest) - (SIZE - 6 * batches) < 2 * size  # what makes the batches even
    for found in of_ranks:
        assert len(found["rest"]) == found["left"]
        assert found["next"] == -(-SIZE // (2 * size))
        (said,) = found["said"]
        assert re.search(rf"the {SIZE - 6 * batches} samples? left of this pass come in", said)
    assert of_ranks[0]["said"] == of_ranks[1]["said"]


def test_workers_of_each_process_continue(findings):
    for found in findings.of("workers"):
        assert (found["wrong"], found["differences"]) == ([], [])
