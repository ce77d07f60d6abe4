from types import SimpleNamespace

import torch

from ignite_hooks.processes.host_group import broadcast_from_rank_0
from ignite_hooks.processes.host_group import has_host_group
from ignite_hooks.processes.host_group import min_over_ranks


def tpu_accelerator(others):
    """Returns a stub of an accelerator on TPUs, without torch.distributed."""
    return SimpleNamespace(
        num_processes=2,
        device=torch.device("cpu"),
        gather=lambda own: torch.cat([own, torch.tensor([others])]),
    )


def test_without_torch_distributed_the_accelerator_gathers():
    accelerator = tpu_accelerator([4, -9])
    assert not has_host_group(accelerator)
    assert min_over_ranks([5, 1], accelerator) == [4, -9]
    assert min_over_ranks([3, -10], accelerator) == [3, -10]
    assert broadcast_from_rank_0(7, accelerator) == 7
