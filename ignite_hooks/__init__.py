"""PyTorch-Ignite handlers, and a supervised trainer on Accelerate with all of them wired in."""

from ignite_hooks.checkpoint.resume import ResumeCheckpoint
from ignite_hooks.checkpoint.save import SaveCheckpoint
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
from ignite_hooks.memory.max_device_memory import MaxDeviceMemory
from ignite_hooks.memory.max_ram import MaxRAM
from ignite_hooks.memory.ram_metrics import EpochMaxRAM
from ignite_hooks.memory.ram_metrics import ExperienceMaxRAM
from ignite_hooks.memory.ram_metrics import MinibatchMaxRAM
from ignite_hooks.memory.ram_metrics import StreamMaxRAM
from ignite_hooks.memory.ram_metrics import ram_usage_metrics
from ignite_hooks.trainer import Trainer

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
