"""Which loader Accelerate takes for the active one, and keeping it that way."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import nullcontext
from typing import Any

from accelerate.state import GradientState

from ignite_hooks.core.accelerators import ITERATION_FLAGS
from ignite_hooks.core.restoring import restored

__all__ = ["activated", "set_aside"]


@contextmanager
def set_aside(loader: Any, *, alone: bool = False) -> Iterator[None]:
    """While the body runs ``loader`` is not Accelerate's active one.

    The body may iterate any loader, this one too, and leave it in any state: what Accelerate takes
    for the active loader, its end and the end of the window is then what it was.

    Args:
        loader: the loader.
        alone: as in ``restored``.
    """
    state = GradientState()
    before = state.dataloader_references, state.sync_gradients
    flags = _flags_of(loader)

    def restore() -> None:
        state.dataloader_references, state.sync_gradients = before
        _restore(loader, flags)

    with restored(restore, alone=alone):
        state.dataloader_references = [None]
        with _workers_set_aside(loader, alone=alone):
            yield


@contextmanager
def activated(loader: Any) -> Iterator[None]:
    """However the body leaves ``loader``, Accelerate's references are then what they were.

    ``loader.end()`` alone would take off an outer iteration of the same loader as well.
    """
    state = loader.gradient_state
    references = state.dataloader_references
    is_nested = any(reference is loader for reference in references)
    flags = _flags_of(loader)

    def restore() -> None:
        loader.end()
        if is_nested:
            state.dataloader_references = references
            _restore(loader, flags)

    # Alone: a feed, whose generator this is in, can be closed at any time.
    with (
        restored(restore, alone=True),
        _workers_set_aside(loader, alone=True) if is_nested else nullcontext(),
    ):
        yield


@contextmanager
def _workers_set_aside(loader: Any, *, alone: bool) -> Iterator[None]:
    """Persistent workers serve one iteration at a time: a second one gets others."""
    base = getattr(loader, "base_dataloader", loader)
    iterator = getattr(base, "_iterator", None)
    if iterator is None:
        yield
        return

    def restore() -> None:
        base._iterator = iterator

    with restored(restore, alone=alone):
        base._iterator = None
        yield


def _flags_of(loader: Any) -> dict[str, Any]:
    return {name: getattr(loader, name) for name in ITERATION_FLAGS if hasattr(loader, name)}


def _restore(loader: Any, flags: dict[str, Any]) -> None:
    for name, value in flags.items():
        setattr(loader, name, value)
