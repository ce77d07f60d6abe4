"""The optimizer step, gradient clipping and learning rate schedulers."""

from typing import TYPE_CHECKING

from ignite_hooks.core.lazy import lazy_names

if TYPE_CHECKING:
    from ignite_hooks.optim.gradient_clipping import GradientClipping as GradientClipping
    from ignite_hooks.optim.optimizer_step import OptimizerStep as OptimizerStep

_MODULES = {
    "GradientClipping": "gradient_clipping",
    "OptimizerStep": "optimizer_step",
}

if not TYPE_CHECKING:  # a type checker reads the imports above instead
    __all__ = [*_MODULES]
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
