"""PyTorch-Ignite handlers, and a supervised trainer on Accelerate with all of them wired in."""

from ignite_hooks.evaluator import create_supervised_evaluator
from ignite_hooks.events import TrainEvents
from ignite_hooks.factory import create_supervised_trainer
from ignite_hooks.feed import DataFeed
from ignite_hooks.handlers.gradient_clipping import GradientClipping
from ignite_hooks.handlers.optimizer_step import OptimizerStep
from ignite_hooks.handlers.validation import Validation
from ignite_hooks.hook_context import HookContext
from ignite_hooks.hooks import Hooks
from ignite_hooks.memory.clear_cache import ClearCache
from ignite_hooks.memory.garbage_collection import CudaGarbageCollector
from ignite_hooks.memory.garbage_collection import GarbageCollector
from ignite_hooks.trainer import Trainer

__all__ = [
    "ClearCache",
    "CudaGarbageCollector",
    "DataFeed",
    "GarbageCollector",
    "GradientClipping",
    "HookContext",
    "Hooks",
    "OptimizerStep",
    "TrainEvents",
    "Trainer",
    "Validation",
    "create_supervised_evaluator",
    "create_supervised_trainer",
]
