"""Handlers that save and resume a run, functions for saved weights, and ``assert_resumable``."""

from typing import TYPE_CHECKING

from ignite_hooks.core.lazy import lazy_names

if TYPE_CHECKING:
    from ignite_hooks.checkpoint.resume import ResumeCheckpoint as ResumeCheckpoint
    from ignite_hooks.checkpoint.save import SaveCheckpoint as SaveCheckpoint
    from ignite_hooks.checkpoint.testing import assert_resumable as assert_resumable
    from ignite_hooks.checkpoint.weights import checkpoints as checkpoints
    from ignite_hooks.checkpoint.weights import export_weights as export_weights
    from ignite_hooks.checkpoint.weights import load_weights as load_weights

_MODULES = {
    "ResumeCheckpoint": "resume",
    "SaveCheckpoint": "save",
    "assert_resumable": "testing",
    "checkpoints": "weights",
    "export_weights": "weights",
    "load_weights": "weights",
}

if not TYPE_CHECKING:  # a type checker reads the imports above instead
    __all__ = [*_MODULES]
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
