"""Values of rank 0 on other ranks, and parameters that differ between three of them."""

import warnings

import torch
from torch import distributed

from ignite_hooks.processes.broadcast import broadcast_values
from ignite_hooks.processes.same_parameters import SameParameters
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run

CPU = torch.device("cpu")


def tensors_of(rank):
    """Tensors of many kinds; the first begins where a float64 may not, those after it too."""
    with torch.inference_mode():
        frozen = torch.full((2,), rank + 1.0)
    tensors = {
        "flags": torch.tensor([rank == 0] * 3),
        "doubles": torch.full((2, 2), rank + 1.0, dtype=torch.float64),
        "transposed": torch.arange(6.0).view(2, 3).add(rank).t(),
        "parameter": torch.nn.Parameter(torch.full((2,), rank + 1.0)),
        "scalar": torch.tensor(rank + 1),
        "empty": torch.empty(0, 3),
        "another shape": torch.full((rank + 1,), rank + 1.0),
        "another dtype": torch.full((2,), rank + 1.0).to([torch.float32, torch.int32][rank > 0]),
        "made in inference mode": frozen,
        "of this rank": torch.tensor([rank + 1.0]),
    }
    tensors[f"of rank {rank}"] = tensors.pop("of this rank")
    return tensors if rank else {**tensors, "last": torch.ones(1)}


def broadcast():
    rank = accelerator().process_index
    tensors = tensors_of(rank)
    broadcast_values(tensors, CPU)
    return {name: each.tolist() for name, each in tensors.items()}


def broadcast_of_nothing():
    """Broadcasts no tensors, for which no rank waits."""
    rank = accelerator().process_index
    tensors = {"of others": torch.ones(1)} if rank else {}
    broadcast_values(tensors, CPU)
    broadcast_values({"empty": torch.empty(0)}, CPU)
    return {"left": [each.tolist() for each in tensors.values()]}


def compared(same, **tensors):
    """Returns the text of the error and of the warnings."""
    digests = [None] * distributed.get_world_size()
    distributed.all_gather_object(digests, same.digest(tensors))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            same.compare(tensors, digests)
            error = ""
        except RuntimeError as failure:
            error = str(failure)
    return {"error": error, "said": [str(each.message) for each in caught]}


def compare():
    rank = accelerator().process_index
    same, ones = SameParameters(), torch.ones(4, dtype=torch.float64)
    small, smaller = ones * (1 + 1e-6 * (rank == 1)), ones * (1 + 1e-9 * (rank == 2))
    compared_twice = [compared(same, a=small, b=ones, c=smaller) for _ in range(2)]
    return {
        "the last rank": compared(SameParameters(), a=ones, b=ones * (1 + (rank == 2))),
        "the farthest rank": compared(SameParameters(), a=ones * (1 + rank)),
        "by its norm": compared(SameParameters(), a=1e-9 * ones * (1 + (rank == 1))),
        "of zeros": compared(SameParameters(), a=0 * ones + (rank == 1)),
        "complex": compared(SameParameters(), a=torch.complex(ones, ones * (1 + (rank == 1)))),
        "half precision": compared(
            SameParameters(), a=torch.full((4,), 6e4 - 32 * (rank == 1), dtype=torch.float16)
        ),
        "largest": compared_twice[0],
        "again": compared_twice[1],
    }


if __name__ == "__main__":
    run(broadcast, broadcast_of_nothing, compare)
