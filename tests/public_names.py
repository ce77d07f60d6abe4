"""The public names with their arguments and defaults, one a line.

``python -m tests.public_names`` writes the lines to ``public_names.txt``. Types are left out,
because Python's versions print them in different ways.
"""

import inspect
import re
from enum import Enum
from functools import cached_property
from importlib import import_module
from pathlib import Path

from ignite_hooks.checkpoint.report import ResumedPart
from ignite_hooks.checkpoint.report import ResumeReport
from ignite_hooks.checkpoint.weights import CheckpointEntry
from ignite_hooks.checkpoint.weights import LoadedWeights
from ignite_hooks.config.problems import Problem

FILE = Path(__file__).with_suffix(".txt")
PACKAGES = (
    "ignite_hooks",
    "ignite_hooks.checkpoint",
    "ignite_hooks.config",
    "ignite_hooks.evaluation",
    "ignite_hooks.handlers",
    "ignite_hooks.observe",
    "ignite_hooks.optim",
)

# Users get objects of these classes, although no package exports the classes.
RETURNED = (CheckpointEntry, LoadedWeights, Problem, ResumeReport, ResumedPart)

# The other members of these classes are for the modules of this package.
DOCUMENTED = {
    "DataFeed": {"length", "load_state_dict", "loader", "state_dict"},
    "OptimizerStep": {"backward", "gradient_sync", "lr_scheduler", "optimizer", "zero_grad"},
    "ResumeReport": {"checkpoint", "is_exact", "parts", "step"},
    "ResumedPart": {"level", "names", "reason"},
    "Trainer": {
        *("accelerator", "ended_by", "hooks", "load_best", "load_state_dict", "lr_scheduler"),
        *("model", "modules", "on", "optimizer", "resume_report", "run", "seed_ranks", "set_data"),
        *("set_limits", "state_dict", "stop_reason", "terminate"),
    },
}


class Shown:
    """A default value, with a ``repr`` that is the same in each process."""

    def __init__(self, value):
        if isinstance(value, Enum):
            self.text = f"{type(value).__name__}.{value.name}"
        elif inspect.isfunction(value):
            self.text = f"<{value.__name__.strip('<>')}>"
        else:
            self.text = repr(value)

    def __repr__(self):
        return self.text


def arguments_of(function, skipped=0):
    kept = []
    for each in list(inspect.signature(function).parameters.values())[skipped:]:
        default = each.default if each.default is each.empty else Shown(each.default)
        kept.append(each.replace(annotation=each.empty, default=default))
    return str(inspect.Signature(kept))


def members_of(cls, public_classes):
    """Yields the public methods, properties, documented attributes and events of a class.

    A member is left out if a public base class has it with the same arguments.
    """
    bases = [each for each in cls.__mro__ if each.__module__.startswith("ignite_hooks")]
    inherited = {
        line
        for base in bases
        if base is not cls and base in public_classes
        for line in members_of(base, public_classes)
    }
    attributes = attributes_of(cls)
    for name in sorted({*attributes, *(name for base in bases for name in vars(base))}):
        member = inspect.getattr_static(cls, name, None)
        line = f".{name}" if name in attributes else member_line(name, member)
        is_documented = name[0] != "_" and name in DOCUMENTED.get(cls.__name__, {name})
        if line and line not in inherited and is_documented:
            yield line


def attributes_of(cls):
    """Returns the names that the section "Attributes" of the docstring describes."""
    section = re.search(r"^Attributes:\n((?: .*\n|\n)*)", inspect.getdoc(cls) + "\n", re.MULTILINE)
    return re.findall(r"^    (\w+): ", section[1], re.MULTILINE) if section else []


def member_line(name, member):
    """Returns the line about a member; None for a field, which is an argument of the class."""
    if isinstance(member, Enum):
        return f".{name} = {member.value!r}"
    if isinstance(member, property | cached_property):
        return f".{name}"
    if isinstance(member, classmethod):
        member = member.__func__
    return f".{name}{arguments_of(member, skipped=1)}" if inspect.isfunction(member) else None


def public_names():
    """Yields the lines. A name that several packages have is described once."""
    names = [
        (f"{package}.{name}", getattr(import_module(package), name))
        for package in PACKAGES
        for name in import_module(package).__all__
    ]
    classes = [value for _, value in names if inspect.isclass(value)]
    for cls in RETURNED:
        yield from (f"{cls.__module__}.{cls.__name__}{each}" for each in members_of(cls, classes))
    first_names = {}
    for name, value in names:
        first = first_names.setdefault(id(value), name)
        if first != name:
            yield f"{name} is {first}"
        elif inspect.isclass(value):
            yield name if issubclass(value, Enum) else name + arguments_of(value)
            yield from (name + each for each in members_of(value, classes))
        else:
            yield name + arguments_of(value) if inspect.isfunction(value) else name


def main():
    FILE.write_text("".join(f"{line}\n" for line in public_names()))


if __name__ == "__main__":
    main()
