"""Which loader Accelerate takes for the active one, and keeping it that way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.state import GradientState

__all__ = ["activated", "set_aside"]


@contextmanager
def set_aside(loader: Any) -> Iterator[None]:
    """While the body runs ``loader`` is not Accelerate's active one.

    The body may iterate any loader, this one too, and leave it in any state: what Accelerate takes
    for the active loader, its end and the end of the window is then what it was.
    """
    state = GradientState()
    before = state.dataloader_references, state.sync_gradients
    names = ("end_of_dataloader", "remainder", "iteration")
    flags = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    state.dataloader_references = [None]
    try:
        yield
    finally:
        state.dataloader_references, state.sync_gradients = before
        for name, value in flags.items():
            setattr(loader, name, value)


@contextmanager
def activated(loader: Any) -> Iterator[None]:
    """However the body leaves ``loader``, Accelerate's references are then what they were.

    ``loader.end()`` alone would take off an outer iteration of the same loader as well.
    """
    state = loader.gradient_state
    references = state.dataloader_references
    outer = any(reference is loader for reference in references)
    flags = loader.end_of_dataloader, loader.remainder
    try:
        yield
    finally:
        loader.end()
        if outer:
            state.dataloader_references = references
            loader.end_of_dataloader, loader.remainder = flags
