from types import SimpleNamespace

import torch

from ignite_hooks.processes.host_group import has_host_group
from ignite_hooks.processes.host_group import of_rank_0
from ignite_hooks.processes.host_group import smallest_of_all


def of_tpus(others):
    """Stands for an accelerator whose processes torch does not connect; it gathers itself."""
    return SimpleNamespace(
        num_processes=2,
        device=torch.device("cpu"),
        gather=lambda own: torch.cat([own, torch.tensor([others])]),
    )


def test_processes_that_torch_does_not_connect_are_asked_by_the_accelerator():
    accelerator = of_tpus([4, -9])
    assert not has_host_group(accelerator)
    assert smallest_of_all([5, 1], accelerator) == [4, -9]
    assert smallest_of_all([3, -10], accelerator) == [3, -10]
    assert of_rank_0(7, accelerator) == 7
