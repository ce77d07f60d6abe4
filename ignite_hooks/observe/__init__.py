"""Shows a run to the people who wait for it: losses, speed, remaining time, and a record.

``read_metrics`` reads the record that ``MetricsLog`` writes, ``plot_metrics`` draws it, and
``make_report`` makes a page of it. ``python -m ignite_hooks.observe report`` makes the page, too.
"""

from typing import TYPE_CHECKING

from ignite_hooks.core.lazy import lazy_names

if TYPE_CHECKING:  # type checkers do not run `__getattr__`
    from ignite_hooks.observe.mean_loss import MeanLoss as MeanLoss
    from ignite_hooks.observe.metrics_log import MetricsLog as MetricsLog
    from ignite_hooks.observe.plots import plot_metrics as plot_metrics
    from ignite_hooks.observe.progress_bar import ProgressBar as ProgressBar
    from ignite_hooks.observe.record import MetricsRecord as MetricsRecord
    from ignite_hooks.observe.record import read_metrics as read_metrics
    from ignite_hooks.observe.report.make import make_report as make_report
    from ignite_hooks.observe.throughput import Throughput as Throughput

# Maps each public name to the module that defines it, relative to this package.
_MODULES = {
    "MeanLoss": "mean_loss",
    "MetricsLog": "metrics_log",
    "MetricsRecord": "record",
    "ProgressBar": "progress_bar",
    "Throughput": "throughput",
    "make_report": "report.make",
    "plot_metrics": "plots",
    "read_metrics": "record",
}

if not TYPE_CHECKING:  # a type checker takes the public names from the imports above
    __all__ = [*_MODULES]
    __getattr__, __dir__ = lazy_names(__name__, _MODULES)
