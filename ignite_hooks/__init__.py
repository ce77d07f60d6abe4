"""PyTorch-Ignite handlers, and a supervised trainer on Accelerate that works with all of them.

The public names are imported lazily, on first use. For example, a script that uses ``ClearCache``
alone does not spend time on importing the checkpoint modules.
"""

from typing import TYPE_CHECKING

from ignite_hooks.core.lazy import lazy_names

if TYPE_CHECKING:  # type checkers do not run `__getattr__`
    from ignite_hooks.checkpoint.resume import ResumeCheckpoint as ResumeCheckpoint
    from ignite_hooks.checkpoint.save import SaveCheckpoint as SaveCheckpoint
    from ignite_hooks.data.feed import DataFeed as DataFeed
    from ignite_hooks.evaluation.evaluator import (
        create_supervised_evaluator as create_supervised_evaluator,
    )
    from ignite_hooks.evaluation.validation import Validation as Validation
    from ignite_hooks.events import TrainEvents as TrainEvents
    from ignite_hooks.factory import create_supervised_trainer as create_supervised_trainer
    from ignite_hooks.hooks.context import HookContext as HookContext
    from ignite_hooks.hooks.hooks import Hooks as Hooks
    from ignite_hooks.memory.clear_cache import ClearCache as ClearCache
    from ignite_hooks.memory.garbage_collection import CudaGarbageCollector as CudaGarbageCollector
    from ignite_hooks.memory.garbage_collection import GarbageCollector as GarbageCollector
    from ignite_hooks.memory.max_device_memory import MaxDeviceMemory as MaxDeviceMemory
    from ignite_hooks.memory.max_ram import MaxRAM as MaxRAM
    from ignite_hooks.memory.ram_metrics import EpochMaxRAM as EpochMaxRAM
    from ignite_hooks.memory.ram_metrics import ExperienceMaxRAM as ExperienceMaxRAM
    from ignite_hooks.memory.ram_metrics import MinibatchMaxRAM as MinibatchMaxRAM
    from ignite_hooks.memory.ram_metrics import StreamMaxRAM as StreamMaxRAM
    from ignite_hooks.memory.ram_metrics import ram_usage_metrics as ram_usage_metrics
    from ignite_hooks.observe.console import Console as Console
    from ignite_hooks.observe.growth.watch import GrowthWatch as GrowthWatch
    from ignite_hooks.observe.mean_loss import MeanLoss as MeanLoss
    from ignite_hooks.observe.metrics_log import MetricsLog as MetricsLog
    from ignite_hooks.observe.progress_bar import ProgressBar as ProgressBar
    from ignite_hooks.observe.report.training_report import TrainingReport as TrainingReport
    from ignite_hooks.observe.send_metrics import SendMetrics as SendMetrics
    from ignite_hooks.observe.throughput import Throughput as Throughput
    from ignite_hooks.observe.time_ledger import TimeLedger as TimeLedger
    from ignite_hooks.optim.gradient_clipping import GradientClipping as GradientClipping
    from ignite_hooks.optim.optimizer_step import OptimizerStep as OptimizerStep
    from ignite_hooks.trainer.trainer import Trainer as Trainer

# Maps each public name to the module that defines it, relative to this package.
_MODULES = {
    "ClearCache": "memory.clear_cache",
    "Console": "observe.console",
    "CudaGarbageCollector": "memory.garbage_collection",
    "DataFeed": "data.feed",
    "EpochMaxRAM": "memory.ram_metrics",
    "ExperienceMaxRAM": "memory.ram_metrics",
    "GarbageCollector": "memory.garbage_collection",
    "GradientClipping": "optim.gradient_clipping",
    "GrowthWatch": "observe.growth.watch",
    "HookContext": "hooks.context",
    "Hooks": "hooks.hooks",
    "MaxDeviceMemory": "memory.max_device_memory",
    "MaxRAM": "memory.max_ram",
    "MeanLoss": "observe.mean_loss",
    "MetricsLog": "observe.metrics_log",
    "MinibatchMaxRAM": "memory.ram_metrics",
    "OptimizerStep": "optim.optimizer_step",
    "ProgressBar": "observe.progress_bar",
    "ResumeCheckpoint": "checkpoint.resume",
    "SaveCheckpoint": "checkpoint.save",
    "SendMetrics": "observe.send_metrics",
    "StreamMaxRAM": "memory.ram_metrics",
    "Throughput": "observe.throughput",
    "TimeLedger": "observe.time_ledger",
    "TrainEvents": "events",
    "Trainer": "trainer.trainer",
    "TrainingReport": "observe.report.training_report",
    "Validation": "evaluation.validation",
    "create_supervised_evaluator": "evaluation.evaluator",
    "create_supervised_trainer": "factory",
    "ram_usage_metrics": "memory.ram_metrics",
}

if not TYPE_CHECKING:  # a type checker takes the public names from the imports above
    __all__ = [*_MODULES]
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
