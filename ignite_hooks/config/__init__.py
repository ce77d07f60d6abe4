"""Converts handlers and the settings of runs to plain data (dicts, JSON, YAML, TOML) and back."""

from ignite_hooks.config.conversion import from_dict
from ignite_hooks.config.conversion import replace
from ignite_hooks.config.conversion import to_dict
from ignite_hooks.config.encoding import equal
from ignite_hooks.config.files import dumps
from ignite_hooks.config.files import load
from ignite_hooks.config.files import loads
from ignite_hooks.config.files import save
from ignite_hooks.config.problems import ConfigError
from ignite_hooks.config.registry import register
from ignite_hooks.config.run_settings import RunSettings
from ignite_hooks.evaluation.validation import ValidationSchedule

__all__ = [
    "ConfigError",
    "RunSettings",
    "ValidationSchedule",
    "dumps",
    "equal",
    "from_dict",
    "load",
    "loads",
    "register",
    "replace",
    "save",
    "to_dict",
]
