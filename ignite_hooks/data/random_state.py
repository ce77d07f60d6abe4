"""The state of the random generators: taken at one moment, put back at another."""

import random
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ignite_hooks.data.random_generators import RandomGenerator
from ignite_hooks.data.random_generators import set_state
from ignite_hooks.data.random_generators import state_of

__all__ = ["RandomState"]

_NONE: Mapping[str, RandomGenerator] = MappingProxyType({})


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
    generators: Mapping[str, tuple[RandomGenerator, Any]]

    @classmethod
    def capture(
        cls, device: torch.device | None = None, generators: Mapping[str, RandomGenerator] = _NONE
    ) -> "RandomState":
        """Takes the states of now.

        Args:
            device: whose generator to take in addition to the CPU's.
            generators: further generators by name, those of a data loader for instance.
        """
        of_device = None
        if device is not None and device.type not in ("cpu", "meta"):
            of_device = (device, torch.get_device_module(device).get_rng_state(device))
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),
            cpu=torch.get_rng_state(),
            device=of_device,
            generators={name: (each, state_of(each)) for name, each in generators.items()},
        )

    def restore(self) -> None:
        """Puts every generator back to what was taken."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            device, state = self.device
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self.generators.values():
            set_state(generator, state)

    def state_dict(self) -> dict[str, Any]:
        """The same as numbers, lists and tensors, which ``torch.load`` takes without pickle."""
        version, words, gauss = self.python
        name, keys, position, has_gauss, cached_gauss = self.numpy
        return {
            "python": [version, list(words), gauss],
            "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached_gauss)],
            "cpu": self.cpu,
            "device": None if self.device is None else self.device[1],
            "generators": {name: state for name, (_, state) in self.generators.items()},
        }

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        device: torch.device | None = None,
        generators: Mapping[str, RandomGenerator] = _NONE,
    ) -> "RandomState":
        """What ``state_dict`` says, for the device and those generators that have a state in it."""
        version, words, gauss = state_dict["python"]
        name, keys, *rest = state_dict["numpy"]
        of_device, states = state_dict["device"], state_dict["generators"]
        return cls(
            python=(version, tuple(words), gauss),
            numpy=(name, np.array(keys, dtype=np.uint32), *rest),
            cpu=state_dict["cpu"],
            device=None if of_device is None or device is None else (device, of_device),
            generators={
                name: (each, states[name]) for name, each in generators.items() if name in states
            },
        )

    @classmethod
    @contextmanager
    def preserved(
        cls, device: torch.device | None = None, generators: Mapping[str, RandomGenerator] = _NONE
    ) -> Iterator[None]:
        """Whatever the body draws, the generators are afterwards where they were before."""
        before = cls.capture(device, generators)
        try:
            yield
        finally:
            before.restore()
