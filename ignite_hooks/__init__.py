"""PyTorch-Ignite handlers, and a supervised trainer on Accelerate with all of them wired in.

A name is imported when it is first asked for: who clears a cache waits for no checkpoints.
"""

from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from ignite_hooks.checkpoint.resume import ResumeCheckpoint
    from ignite_hooks.checkpoint.save import SaveCheckpoint
    from ignite_hooks.data.feed import DataFeed
    from ignite_hooks.evaluation.evaluator import create_supervised_evaluator
    from ignite_hooks.evaluation.validation import Validation
    from ignite_hooks.events import TrainEvents
    from ignite_hooks.factory import create_supervised_trainer
    from ignite_hooks.hooks.context import HookContext
    from ignite_hooks.hooks.hooks import Hooks
    from ignite_hooks.memory.clear_cache import ClearCache
    from ignite_hooks.memory.garbage_collection import CudaGarbageCollector
    from ignite_hooks.memory.garbage_collection import GarbageCollector
    from ignite_hooks.memory.max_device_memory import MaxDeviceMemory
    from ignite_hooks.memory.max_ram import MaxRAM
    from ignite_hooks.memory.ram_metrics import EpochMaxRAM
    from ignite_hooks.memory.ram_metrics import ExperienceMaxRAM
    from ignite_hooks.memory.ram_metrics import MinibatchMaxRAM
    from ignite_hooks.memory.ram_metrics import StreamMaxRAM
    from ignite_hooks.memory.ram_metrics import ram_usage_metrics
    from ignite_hooks.optim.gradient_clipping import GradientClipping
    from ignite_hooks.optim.optimizer_step import OptimizerStep
    from ignite_hooks.trainer.trainer import Trainer

__all__ = [
    "ClearCache",
    "CudaGarbageCollector",
    "DataFeed",
    "EpochMaxRAM",
    "ExperienceMaxRAM",
    "GarbageCollector",
    "GradientClipping",
    "HookContext",
    "Hooks",
    "MaxDeviceMemory",
    "MaxRAM",
    "MinibatchMaxRAM",
    "OptimizerStep",
    "ResumeCheckpoint",
    "SaveCheckpoint",
    "StreamMaxRAM",
    "TrainEvents",
    "Trainer",
    "Validation",
    "create_supervised_evaluator",
    "create_supervised_trainer",
    "ram_usage_metrics",
]

_MODULES = {
    "ClearCache": "memory.clear_cache",
    "CudaGarbageCollector": "memory.garbage_collection",
    "DataFeed": "data.feed",
    "EpochMaxRAM": "memory.ram_metrics",
    "ExperienceMaxRAM": "memory.ram_metrics",
    "GarbageCollector": "memory.garbage_collection",
    "GradientClipping": "optim.gradient_clipping",
    "HookContext": "hooks.context",
    "Hooks": "hooks.hooks",
    "MaxDeviceMemory": "memory.max_device_memory",
    "MaxRAM": "memory.max_ram",
    "MinibatchMaxRAM": "memory.ram_metrics",
    "OptimizerStep": "optim.optimizer_step",
    "ResumeCheckpoint": "checkpoint.resume",
    "SaveCheckpoint": "checkpoint.save",
    "StreamMaxRAM": "memory.ram_metrics",
    "TrainEvents": "events",
    "Trainer": "trainer.trainer",
    "Validation": "evaluation.validation",
    "create_supervised_evaluator": "evaluation.evaluator",
    "create_supervised_trainer": "factory",
    "ram_usage_metrics": "memory.ram_metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
