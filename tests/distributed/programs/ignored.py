"""Settings that Accelerate ignores, and the timeout of exchanges between processes."""

import warnings
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed.fsdp import fully_shard

from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.ranks import Ranks
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run
from tests.reference import make_model


def train_with(model, ours):
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.nn.functional.mse_loss,
        accelerator=ours,
    )


def split_by_hand():
    ours = accelerator()
    try:
        train_with(fully_shard(make_model()), ours)
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


def with_a_plugin():
    ours = accelerator(fsdp_plugin=FullyShardedDataParallelPlugin())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_with(make_model(), ours)
    return {"said": [str(each.message) for each in caught if "FSDP" in str(each.message)]}


def impatient():
    """Leaves rank 1 out of an exchange; rank 0 must wait for the timeout given to Accelerate."""
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=1))
    ranks, found = Ranks(Accelerator(cpu=True, kwargs_handlers=[patience])), ""
    if ranks.is_rank_0:
        try:
            ranks.gather(None)
        except RuntimeError as error:
            found = str(error)
    torch.distributed.barrier()  # of the other group, where rank 1 is meanwhile
    return {"error": found}


if __name__ == "__main__":
    run(split_by_hand, with_a_plugin, impatient)
