"""Evaluators, and validation within a training run."""

from typing import TYPE_CHECKING

from ignite_hooks.core.lazy import lazy_names

if TYPE_CHECKING:
    from ignite_hooks.evaluation.evaluator import (
        create_supervised_evaluator as create_supervised_evaluator,
    )
    from ignite_hooks.evaluation.validation import Validation as Validation

_MODULES = {
    "Validation": "validation",
    "create_supervised_evaluator": "evaluator",
}

# A name is imported on first use. A type checker sees the imports above instead.
if not TYPE_CHECKING:
    __all__ = [*_MODULES]
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
