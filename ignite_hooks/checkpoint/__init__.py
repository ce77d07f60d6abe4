"""Handlers that save and resume a run, and functions that list, load and export saved weights.

``assert_resumable`` is for the tests of a user: it checks that an interrupted and resumed run has
the same result as an uninterrupted run.
"""

from typing import TYPE_CHECKING

from ignite_hooks.core.lazy import lazy_names

if TYPE_CHECKING:  # type checkers do not run `__getattr__`
    from ignite_hooks.checkpoint.resume import ResumeCheckpoint as ResumeCheckpoint
    from ignite_hooks.checkpoint.save import SaveCheckpoint as SaveCheckpoint
    from ignite_hooks.checkpoint.testing import assert_resumable as assert_resumable
    from ignite_hooks.checkpoint.weights import checkpoints as checkpoints
    from ignite_hooks.checkpoint.weights import export_weights as export_weights
    from ignite_hooks.checkpoint.weights import load_weights as load_weights

# Maps each public name to the module that defines it, relative to this package.
_MODULES = {
    "ResumeCheckpoint": "resume",
    "SaveCheckpoint": "save",
    "assert_resumable": "testing",
    "checkpoints": "weights",
    "export_weights": "weights",
    "load_weights": "weights",
}

if not TYPE_CHECKING:  # a type checker takes the public names from the imports above
    __all__ = [*_MODULES]
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
