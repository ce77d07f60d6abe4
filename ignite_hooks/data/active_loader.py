"""Context managers that protect Accelerate's list of the loaders that are being iterated.

The list belongs to Accelerate's ``GradientState``. The last loader of the list is the active
loader. When the active loader reaches its end, Accelerate closes the accumulation window early. The
window is the batches whose gradients are accumulated for one optimizer step.
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
    """Pauses the iteration of ``loader``: Accelerate has no active loader during the body.

    The body may iterate any loader, including ``loader``. After the body, Accelerate's list of
    loaders, ``sync_gradients`` and the iteration flags of ``loader`` (attributes such as
    ``end_of_dataloader``) are restored.

    Args:
        loader: the loader whose iteration is paused.
        out_of_order: whether the body may end while scopes that were entered within it are still
            open; see ``undo_on_exit``.
    """
    state = GradientState()
    before = state.dataloader_references, state.sync_gradients
    flags = _iteration_flags(loader)

    def restore() -> None:
        state.dataloader_references, state.sync_gradients = before
        _set_flags(loader, flags)

    with undo_on_exit(restore, out_of_order=out_of_order):
        state.dataloader_references = [None]  # Accelerate's value while no loader is iterated
        with _without_persistent_workers(loader, out_of_order=out_of_order):
            yield


@contextmanager
def activated(loader: Any) -> Iterator[None]:
    """Ends the iteration of ``loader`` after the body, and restores Accelerate's list of loaders.

    The body begins the iteration, possibly during an outer iteration of the same loader. For
    example, a handler runs an evaluator on the training data. In this case ``loader.end()`` alone
    would remove the outer iteration from the list, too.
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

    # `out_of_order=True`, because this scope may be entered in the generator of a feed, which gives
    # a run its batches. A feed can be closed at any time, while scopes that were entered later are
    # still open.
    with (
        undo_on_exit(restore, out_of_order=True),
        _without_persistent_workers(loader, out_of_order=True) if is_nested else nullcontext(),
    ):
        yield


@contextmanager
def _without_persistent_workers(loader: Any, *, out_of_order: bool) -> Iterator[None]:
    """Hides the persistent workers from ``loader`` during the body.

    Persistent workers serve one iteration at a time. While they are hidden, an iteration of
    ``loader`` starts new workers.
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
