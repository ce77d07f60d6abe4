"""What a loader is made of."""

from typing import Any

__all__ = ["parts_of"]


def parts_of(loader: Any) -> list[Any]:
    """The data set and the samplers, nested ones too."""
    parts = [loader.dataset]
    samplers = [loader.batch_sampler, loader.sampler]
    while samplers:
        sampler = samplers.pop()
        if sampler is not None and all(sampler is not part for part in parts):
            parts.append(sampler)
            samplers += [getattr(sampler, name, None) for name in ("batch_sampler", "sampler")]
    return parts
