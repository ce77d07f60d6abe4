import pytest

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.resuming import CHECKS

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("resuming", tmp_path_factory.mktemp("resuming"), limit=120)


@pytest.mark.exhaustive
@pytest.mark.parametrize("check", CHECKS)
def test_resuming_from_every_step_is_exact_on_every_process(findings, check):
    for finding in findings.of(check):
        assert len(finding["exact"]) >= 6
        assert all(finding["exact"])
        assert finding["references"]
