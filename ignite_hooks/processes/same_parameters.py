"""Checks that every rank trains the same model: parameters are compared bit by bit.

Ranks that begin with the same parameters and step with the same gradients keep the same bits. What
calls a model past its wrapper is not averaged, and nothing else would tell: each rank trains a
model of its own, and the one of rank 0 is saved.
"""

import functools
import warnings
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed

__all__ = ["SameParameters"]

MAX_DIFFERENCE = 1e-3
"""The largest relative difference that is a warning; rounding of other devices is far below."""

# By the size of an element in bytes; of 8 bytes an even number of changed signs would cancel out.
_WORDS = {1: torch.uint8, 2: torch.int16}
_MODULUS = 2**61 - 1


class SameParameters:
    """Compares parameters over the ranks.

    A digest is made of the sum over the words of each tensor. (``torch.hash_tensor`` is an
    exclusive or, which is 0 for any tensor that has each value twice: all ones, all zeros.)
    """

    def __init__(self) -> None:
        self._has_warned = False

    @staticmethod
    def digest(parameters: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        """Returns the number of parameters, and one number for all. Synchronizes with the device.

        Args:
            parameters: by name, in the same order on every rank.
        """
        sums = _sums(parameters.values())
        digest = functools.reduce(lambda so_far, each: (so_far * 31 + each) % _MODULUS, sums, 0)
        return len(sums), digest

    def compare(
        self, parameters: Mapping[str, torch.Tensor], digests: Iterable[tuple[int, int]]
    ) -> None:
        """Warns once, or raises, if parameters differ. Collective if the digests do.

        Args:
            parameters: as for ``digest``.
            digests: those of all ranks, in their order.

        Raises:
            RuntimeError: a parameter differs by more than 1e-3 of its norm on rank 0, or a rank has
                another number of them.
        """
        of_rank_0, *others = digests
        if all(each == of_rank_0 for each in others):
            return
        counts = [count for count, _ in (of_rank_0, *others)]
        if min(counts) != max(counts):
            raise RuntimeError(
                f"every rank must train the same model, got {counts} parameters on the ranks: "
                "make the model and the functions alike on every rank"
            )
        largest = 0.0
        for name, parameter in _differing(parameters):
            differences = _differences_from_rank_0(parameter)
            rank = max(range(len(differences)), key=differences.__getitem__)
            largest = max(largest, differences[rank])
            if differences[rank] > MAX_DIFFERENCE:
                raise RuntimeError(
                    f"every rank must train the same model, got another {name} on rank {rank}, "
                    f"which differs from that on rank 0 by {differences[rank]:.1e} of its norm. "
                    "Gradients are averaged where the model is called as it was prepared: a "
                    "`batch_processor` or `model_fn` must call the model that it is given, and not "
                    "model.module; a module outside of it must be given as `loss_fn` or "
                    "`batch_processor`, or be a submodule of `model`"
                )
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "the ranks train models that differ in some bits, by up to "
                f"{largest:.1e} of a parameter's norm. The model of rank 0 is saved. Devices of "
                "several kinds round differently; if these are alike, something changes "
                "parameters, or gradients after the backward pass, on one rank alone",
                stacklevel=2,
            )


def _differing(parameters: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Returns the parameters that are not the same on all ranks. Collective."""
    sums: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(sums, _sums(parameters.values()))
    same = [len(set(of_parameter)) == 1 for of_parameter in zip(*sums, strict=True)]
    named = zip(parameters.items(), same, strict=True)
    return [each for each, is_same in named if not is_same]


def _sums(parameters: Iterable[torch.Tensor]) -> list[int]:
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    places = []
    for parameter in parameters:
        of_device = by_device.setdefault(parameter.device, [])
        places.append((parameter.device, len(of_device)))
        of_device.append(_sum_of(parameter))
    numbers = {device: torch.stack(each).tolist() for device, each in by_device.items()}
    return [numbers[device][index] for device, index in places]


def _sum_of(parameter: torch.Tensor) -> torch.Tensor:
    words = parameter.detach().contiguous().view(-1).view(torch.uint8)
    size = parameter.element_size()
    return words.view(_WORDS.get(size, torch.int32)).sum(dtype=torch.int64)


def _differences_from_rank_0(parameter: torch.Tensor) -> list[float]:
    """Returns the distance of each rank's parameter from rank 0's, by its norm. Collective."""
    own = parameter.detach().contiguous()
    own = torch.view_as_real(own) if own.is_complex() else own
    of_rank_0 = own.clone()
    distributed.broadcast(of_rank_0, src=0)
    norm = torch.linalg.vector_norm(of_rank_0.to(torch.float64))
    distance = torch.linalg.vector_norm(own.to(torch.float64) - of_rank_0)
    relative = (distance / norm.clamp(min=torch.finfo(torch.float64).tiny)).reshape(1)
    gathered = [torch.empty_like(relative) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, relative)
    differences: list[float] = torch.cat(gathered).nan_to_num(nan=torch.inf).tolist()
    return differences
