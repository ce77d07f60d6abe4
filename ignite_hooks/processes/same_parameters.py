"""A check that every rank trains the same model: a difference in a single bit is noticed.

If ranks begin with equal parameters and step with equal gradients, their parameters stay bit for
bit equal. Gradients are averaged only if the model is called through its distributed wrapper, for
example DDP. If code calls the module inside the wrapper instead, each rank trains a different
model, and only the model of rank 0 is saved. torch raises no error in this case.
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
"""The largest relative difference that causes a warning instead of an error.

Differences due to rounding are much smaller.
"""

# A *word* is an integer that is read from the bytes of a tensor. This table maps the size of an
# element in bytes to the dtype of a word. For elements of 4 bytes or more, a word has 4 bytes. The
# sum of words of 8 bytes could miss a change: a changed sign changes the sum by 2**63, so two
# changed signs change it by 2**64, which is 0 in an int64.
_WORD_DTYPES = {1: torch.uint8, 2: torch.int16}
_MODULUS = 2**61 - 1  # a prime that fits into a tensor of int64


class SameParameters:
    """Compares parameters between ranks.

    The digest of a model is computed from the checksums of its tensors. A checksum is the sum of
    the words of a tensor, which are its bytes read as integers. (``torch.hash_tensor`` is not
    used, because it computes an exclusive or. The result is 0 if each value appears an even number
    of times, for example in a tensor of two ones.)
    """

    def __init__(self) -> None:
        self._has_warned = False

    @staticmethod
    def digest(parameters: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        """Returns the number of parameters, and a digest of them. Synchronizes with the device.

        Args:
            parameters: the parameters by name, in the same order on every rank.
        """
        checksums = _checksums(parameters.values())
        digest = functools.reduce(
            lambda so_far, each: (so_far * 31 + each) % _MODULUS, checksums, 0
        )
        return len(checksums), digest

    def compare(
        self, parameters: Mapping[str, torch.Tensor], digests: Iterable[tuple[int, int]]
    ) -> None:
        """Warns once, or raises an error, if parameters differ between ranks.

        If the digests differ, this is a collective call.

        Args:
            parameters: as for ``digest``.
            digests: the digests of all ranks, in the order of the ranks.

        Raises:
            RuntimeError: a parameter differs by more than 1e-3 of its norm on rank 0, or ranks have
                different numbers of parameters.
        """
        of_rank_0, *others = digests
        if all(each == of_rank_0 for each in others):
            return
        counts = [count for count, _ in (of_rank_0, *others)]
        if min(counts) != max(counts):
            raise RuntimeError(
                f"every rank must train the same model, got {counts} parameters on the ranks: "
                "build the model, and modules in functions such as `loss_fn`, in the same way on "
                "every rank"
            )
        largest = 0.0
        for name, parameter in _differing(parameters):
            differences = _differences_from_rank_0(parameter)
            rank = max(range(len(differences)), key=differences.__getitem__)
            largest = max(largest, differences[rank])
            if differences[rank] > MAX_DIFFERENCE:
                raise RuntimeError(
                    f"every rank must train the same model, got another {name} on rank {rank} than "
                    f"on rank 0, with a difference of {differences[rank]:.1e} of its norm. "
                    "Gradients are averaged only where the prepared model is called: a "
                    "`batch_processor` or `model_fn` must call the model that it is given, and not "
                    "model.module; a module outside of `model` must be given as `loss_fn` or "
                    "`batch_processor`, or become a submodule of `model`"
                )
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "the ranks train models that differ in some bits, by up to "
                f"{largest:.1e} of a parameter's norm. The model of rank 0 is saved. Devices of "
                "different kinds round differently. If all devices are of the same kind, some code "
                "changes parameters, or gradients after the backward pass, on one rank only",
                stacklevel=2,
            )


def _differing(parameters: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Returns (name, parameter) for each parameter that differs between ranks.

    A collective call.
    """
    checksums: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(checksums, _checksums(parameters.values()))
    is_equal = [len(set(of_parameter)) == 1 for of_parameter in zip(*checksums, strict=True)]
    named = zip(parameters.items(), is_equal, strict=True)
    return [each for each, is_same in named if not is_same]


def _checksums(parameters: Iterable[torch.Tensor]) -> list[int]:
    """Returns the checksum of each parameter. Synchronizes once with each device."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    # For each parameter: its device, and its index among the parameters of this device.
    places = []
    for parameter in parameters:
        of_device = by_device.setdefault(parameter.device, [])
        places.append((parameter.device, len(of_device)))
        of_device.append(_checksum(parameter))
    numbers = {device: torch.stack(each).tolist() for device, each in by_device.items()}
    return [numbers[device][index] for device, index in places]


def _checksum(parameter: torch.Tensor) -> torch.Tensor:
    """Returns the sum of the words of a parameter, on its device. Does not synchronize."""
    data = parameter.detach().contiguous().view(-1).view(torch.uint8)
    size = parameter.element_size()
    return data.view(_WORD_DTYPES.get(size, torch.int32)).sum(dtype=torch.int64)


def _differences_from_rank_0(parameter: torch.Tensor) -> list[float]:
    """Returns, for each rank, the relative difference of a parameter from rank 0.

    A collective call. The difference is relative to the norm of the parameter on rank 0. If the
    parameter contains NaN, the difference is infinite.
    """
    own = parameter.detach().contiguous()
    own = torch.view_as_real(own) if own.is_complex() else own
    of_rank_0 = own.clone()
    distributed.broadcast(of_rank_0, src=0)
    # The norm is computed in float64, because in half precision the squares of large values
    # overflow.
    norm = torch.linalg.vector_norm(of_rank_0.to(torch.float64))
    distance = torch.linalg.vector_norm(own.to(torch.float64) - of_rank_0)
    relative = (distance / norm.clamp(min=torch.finfo(torch.float64).tiny)).reshape(1)
    gathered = [torch.empty_like(relative) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, relative)
    differences: list[float] = torch.cat(gathered).nan_to_num(nan=torch.inf).tolist()
    return differences
