import pytest

from tests.distributed.launch import on_two_processes
from tests.distributed.programs.rank_seeds import KINDS
from tests.distributed.programs.rank_seeds import SIZE

pytestmark = pytest.mark.distributed

FROM_GLOBAL = {
    "weighted, seedable": "a WeightedRandomSampler",
    "sampler": "a Shuffled",
    "stream": "a Stream",
}
"""Data whose order may come from a global generator, and what draws it."""


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return on_two_processes("rank_seeds", tmp_path_factory.mktemp("rank_seeds"))


def are_shared(one, other):
    """Returns whether both ranks together got each sample once in each epoch."""
    both = zip(one["epochs"], other["epochs"], strict=True)
    return all(sorted(mine + theirs) == list(range(SIZE)) for mine, theirs in both)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_have_one_model_and_one_order(findings, kind):
    one, other = (found[kind] for found in findings.of("kinds"))
    assert one["initial"] == other["initial"]
    assert are_shared(one, other)
    assert (one["epochs"][0] == one["epochs"][1]) == (kind == "list")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FROM_GLOBAL])
def test_ranks_draw_different_numbers(findings, kind):
    one, other = (found[kind] for found in findings.of("kinds"))
    assert set(one["draws"]).isdisjoint(other["draws"])
    assert one["told"] == other["told"] == []


@pytest.mark.parametrize(("kind", "named"), FROM_GLOBAL.items())
def test_possibly_global_order_makes_ranks_draw_equal_numbers(findings, kind, named):
    for found in findings.of("kinds"):
        (told,) = found[kind]["told"]
        assert told.startswith("dropout and augmentation draw the same random numbers on all ranks")
        assert named in told
    one, other = (found[kind] for found in findings.of("kinds"))
    assert one["draws"] == other["draws"]


def test_resumed_run_continues_the_numbers_of_each_rank(findings):
    for found in findings.of("resumed"):
        assert found["equal"]
        assert found["continues"]


def test_loader_that_is_already_divided_is_reported(findings):
    one, other = findings.of("divided_twice")
    assert not are_shared(one, other)
    for found in (one, other):
        (told,) = found["told"]
        assert told.startswith("`data` has a DistributedSampler, and Accelerate divides the loader")


def test_seedable_sampler_has_one_seed_on_all_ranks(findings):
    one, other = (found["seedable"] for found in findings.of("seeded_by_hand"))
    assert are_shared(one, other)


def test_possibly_global_order_is_reported(findings):
    one, other = (found["sampler"] for found in findings.of("seeded_by_hand"))
    assert not are_shared(one, other)
    for found in (one, other):
        (told,) = found["told"]  # once, not in each epoch
        assert told.startswith("the global random generators differ between ranks, and a Shuffled")
