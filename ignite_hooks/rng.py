"""The state of the random generators: taken at one moment, put back at another."""

import random
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["RandomState"]


@dataclass(frozen=True)
class RandomState:
    """The states of Python's, numpy's and torch's global generators, of a device's, and of others.

    Reading and setting them waits for no device: torch keeps a device generator's seed and offset
    on the host.
    """

    python: Any
    numpy: Any
    cpu: torch.Tensor
    device: tuple[torch.device, torch.Tensor] | None
    generators: tuple[tuple[torch.Generator, torch.Tensor], ...]

    @classmethod
    def capture(
        cls, device: torch.device | None = None, generators: Iterable[torch.Generator] = ()
    ) -> "RandomState":
        """Takes the states of now.

        Args:
            device: whose generator to take in addition to the CPU's.
            generators: further generators, those of a data loader for instance.
        """
        of_device = None
        if device is not None and device.type not in ("cpu", "meta"):
            of_device = (device, torch.get_device_module(device).get_rng_state(device))
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),
            cpu=torch.get_rng_state(),
            device=of_device,
            generators=tuple((generator, generator.get_state()) for generator in generators),
        )

    def restore(self) -> None:
        """Puts every generator back to what was taken."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            device, state = self.device
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self.generators:
            generator.set_state(state)

    def state_dict(self, without: Sequence[torch.Generator] = ()) -> dict[str, Any]:
        """The same as numbers, lists and tensors, which ``torch.load`` takes without pickle.

        Args:
            without: generators to leave out.
        """
        version, words, gauss = self.python
        name, keys, position, has_gauss, cached_gauss = self.numpy
        return {
            "python": [version, list(words), gauss],
            "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached_gauss)],
            "cpu": self.cpu,
            "device": None if self.device is None else self.device[1],
            "generators": [state for each, state in self.generators if each not in without],
        }

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        device: torch.device | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> "RandomState":
        """What ``state_dict`` says, for the device and as many generators of this process."""
        version, words, gauss = state_dict["python"]
        name, keys, *rest = state_dict["numpy"]
        of_device = state_dict["device"]
        return cls(
            python=(version, tuple(words), gauss),
            numpy=(name, np.array(keys, dtype=np.uint32), *rest),
            cpu=state_dict["cpu"],
            device=None if of_device is None or device is None else (device, of_device),
            generators=tuple(zip(generators, state_dict["generators"], strict=True)),
        )

    @classmethod
    @contextmanager
    def preserved(
        cls, device: torch.device | None = None, generators: Iterable[torch.Generator] = ()
    ) -> Iterator[None]:
        """Whatever the body draws, the generators are afterwards where they were before."""
        before = cls.capture(device, generators)
        try:
            yield
        finally:
            before.restore()
