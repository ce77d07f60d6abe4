"""The public names for writing a handler of your own.

A handler is an object that is attached to an engine, and acts at events. ``Handler`` and
``Scheduled`` are the base classes; a ``Scheduled`` handler has the schedules ``every_steps`` and
``every_epochs``. The method ``attach`` returns an ``Attachment``, which can be removed.

``checked_dataclass`` makes a class a frozen dataclass, whose constructor checks each argument by
the type of its field. Most of the other names are types for fields, for example ``Every``, an
integer of at least 1::

    @checked_dataclass
    class LogLoss(Scheduled):
        every_steps: Every | None = None
        every_epochs: Every | None = None

        def __call__(self, engine):
            print(engine.state.iteration, float(engine.state.output))

``must_be`` makes a validator for a field type with a rule of your own. ``handler_config`` is the
pydantic configuration that ``checked_dataclass`` uses. If your class is a pydantic dataclass
already, give it this configuration, and do not use ``checked_dataclass``.
"""

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.checked_dataclass import handler_config
from ignite_hooks.core.fields import AfterTerminate
from ignite_hooks.core.fields import Backend
from ignite_hooks.core.fields import Batches
from ignite_hooks.core.fields import Count
from ignite_hooks.core.fields import Directory
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import FilePath
from ignite_hooks.core.fields import Flag
from ignite_hooks.core.fields import FlagInCode
from ignite_hooks.core.fields import Fraction
from ignite_hooks.core.fields import Function
from ignite_hooks.core.fields import Generation
from ignite_hooks.core.fields import GraceSeconds
from ignite_hooks.core.fields import Iterations
from ignite_hooks.core.fields import Kept
from ignite_hooks.core.fields import Limit
from ignite_hooks.core.fields import MetricName
from ignite_hooks.core.fields import MetricNames
from ignite_hooks.core.fields import Mode
from ignite_hooks.core.fields import NormType
from ignite_hooks.core.fields import OnBusy
from ignite_hooks.core.fields import OnMissing
from ignite_hooks.core.fields import Prefix
from ignite_hooks.core.fields import ProjectName
from ignite_hooks.core.fields import Runtime
from ignite_hooks.core.fields import Seconds
from ignite_hooks.core.fields import SettingNames
from ignite_hooks.core.fields import SignalNames
from ignite_hooks.core.fields import SourcePath
from ignite_hooks.core.fields import must_be
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import Scheduled

__all__ = [
    "AfterTerminate",
    "Attachment",
    "Backend",
    "Batches",
    "Count",
    "Directory",
    "Every",
    "FilePath",
    "Flag",
    "FlagInCode",
    "Fraction",
    "Function",
    "Generation",
    "GraceSeconds",
    "Handler",
    "Iterations",
    "Kept",
    "Limit",
    "MetricName",
    "MetricNames",
    "Mode",
    "NormType",
    "OnBusy",
    "OnMissing",
    "Prefix",
    "ProjectName",
    "Runtime",
    "Scheduled",
    "Seconds",
    "SettingNames",
    "SignalNames",
    "SourcePath",
    "checked_dataclass",
    "handler_config",
    "must_be",
]
