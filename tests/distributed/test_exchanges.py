"""Exchanges of parameters and buffers between three ranks."""

import pytest

from tests.distributed.launch import on_processes
from tests.distributed.programs.exchanges import tensors_of

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_processes("exchanges", tmp_path_factory.mktemp("exchanges"), count=3)


def test_all_ranks_get_the_values_of_rank_0(findings):
    own = [{name: each.tolist() for name, each in tensors_of(rank).items()} for rank in range(3)]
    sent = {"flags", "doubles", "transposed", "parameter", "scalar", "empty"}
    for rank, found in enumerate(findings.of("broadcast")):
        assert found.pop("references")
        assert found == {
            name: own[0][name] if name in sent else value for name, value in own[rank].items()
        }


def test_ranks_keep_their_values_if_nothing_is_sent(findings):
    assert [found["left"] for found in findings.of("broadcast_of_nothing")] == [[], [[1]], [[1]]]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("the last rank", "another b on rank 2 than on rank 0, with a difference of 1.0e+00"),
        ("the farthest rank", "another a on rank 2 than on rank 0, with a difference of 2.0e+00"),
        ("by its norm", "another a on rank 1 than on rank 0, with a difference of 1.0e+00"),
        ("of zeros", "another a on rank 1 than on rank 0"),
        ("complex", "another a on rank 1 than on rank 0, with a difference of 7.1e-01"),
    ],
)
def test_error_names_the_most_different_rank_and_parameter(findings, name, told):
    for found in findings.of("compare"):
        assert told in found[name]["error"]


def test_small_differences_warn_once_with_the_largest(findings):
    for found in findings.of("compare"):
        (said,) = found["largest"]["said"]
        assert "by up to 1.0e-06 of" in said
        assert found["again"] == {"error": "", "said": []}
        (said,) = found["half precision"]["said"]  # whose norm is beyond its largest number
        assert "by up to 5.3e-04 of" in said
