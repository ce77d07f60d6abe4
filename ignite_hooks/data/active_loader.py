"""Scopes that protect Accelerate's notion of the active loader.

Accelerate's ``GradientState`` lists the loaders that are being iterated. The last of them is the
active one, whose end closes an accumulation window early.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import nullcontext
from typing import Any

from accelerate.state import GradientState

from ignite_hooks.core.accelerators import ITERATION_FLAGS
from ignite_hooks.core.undo_stack import undo_on_exit

__all__ = ["activated", "deactivated"]


@contextmanager
def deactivated(loader: Any, *, out_of_order: bool = False) -> Iterator[None]:
    """Leaves Accelerate without an active loader during the body, while ``loader`` is paused.

    The body may iterate any loader, ``loader`` included, and leave it in any state. Afterwards
    Accelerate's active loader, that loader's flags and the end of the window are restored.

    Args:
        loader: the loader whose iteration is paused.
        out_of_order: see ``undo_on_exit``.
    """
    state = GradientState()
    before = state.dataloader_references, state.sync_gradients
    flags = _iteration_flags(loader)

    def restore() -> None:
        state.dataloader_references, state.sync_gradients = before
        _set_flags(loader, flags)

    with undo_on_exit(restore, out_of_order=out_of_order):
        state.dataloader_references = [None]  # as Accelerate has it while no loader is iterated
        with _without_persistent_workers(loader, out_of_order=out_of_order):
            yield


@contextmanager
def activated(loader: Any) -> Iterator[None]:
    """Ends the iteration of ``loader`` after the body, and restores Accelerate's active loaders.

    ``loader.end()`` alone would also remove an outer iteration of the same loader.
    """
    state = loader.gradient_state
    references = state.dataloader_references
    is_nested = any(reference is loader for reference in references)
    flags = _iteration_flags(loader)

    def restore() -> None:
        loader.end()
        if is_nested:
            state.dataloader_references = references
            _set_flags(loader, flags)

    # out_of_order: this runs in the generator of a feed, which can be closed at any time, while
    # changes that were made later are still in use.
    with (
        undo_on_exit(restore, out_of_order=True),
        _without_persistent_workers(loader, out_of_order=True) if is_nested else nullcontext(),
    ):
        yield


@contextmanager
def _without_persistent_workers(loader: Any, *, out_of_order: bool) -> Iterator[None]:
    """Detaches the persistent workers of ``loader``, so that the body starts workers of its own.

    Persistent workers serve one iteration at a time.
    """
    base = getattr(loader, "base_dataloader", loader)
    iterator = getattr(base, "_iterator", None)
    if iterator is None:
        yield
        return

    def restore() -> None:
        base._iterator = iterator

    with undo_on_exit(restore, out_of_order=out_of_order):
        base._iterator = None
        yield


def _iteration_flags(loader: Any) -> dict[str, Any]:
    return {name: getattr(loader, name) for name in ITERATION_FLAGS if hasattr(loader, name)}


def _set_flags(loader: Any, flags: dict[str, Any]) -> None:
    for name, value in flags.items():
        setattr(loader, name, value)
