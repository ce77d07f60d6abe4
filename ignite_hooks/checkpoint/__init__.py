"""Checkpoints: saving, resuming, and a test that a training can be resumed."""

from typing import TYPE_CHECKING

from ignite_hooks.core.lazy import lazy_names

if TYPE_CHECKING:
    from ignite_hooks.checkpoint.resume import ResumeCheckpoint as ResumeCheckpoint
    from ignite_hooks.checkpoint.save import SaveCheckpoint as SaveCheckpoint
    from ignite_hooks.checkpoint.testing import assert_resumable as assert_resumable

_MODULES = {
    "ResumeCheckpoint": "resume",
    "SaveCheckpoint": "save",
    "assert_resumable": "testing",
}

if not TYPE_CHECKING:  # to a type checker the names imported above are the public ones
    __all__ = [*_MODULES]
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
