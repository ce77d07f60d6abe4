"""What a loader is made of."""

from typing import Any

__all__ = ["data_parts", "order_parts", "parts_of"]


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


def data_parts(loader: Any) -> dict[str, Any]:
    """What a batch of samples comes from, once it is known which samples."""
    return {"dataset": loader.dataset, "collate_fn": loader.collate_fn}


def order_parts(loader: Any) -> dict[str, Any]:
    """What the order of the samples comes from."""
    names = ("generator", "sampler", "batch_sampler")
    return {name: getattr(loader, name, None) for name in names}
