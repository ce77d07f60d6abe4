"""The house: imports run down its floors, without circles, and private members have one room."""

import ast
import io
import tokenize
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ignite_hooks
from ignite_hooks.core import accelerators
from ignite_hooks.core import engine
from ignite_hooks.core import torch_schedulers

ROOT = Path(ignite_hooks.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# From the ground up. A file imports from its own room and from lower floors.
FLOORS = [
    {"core", "events"},
    {"processes"},
    {"data", "hooks", "memory"},
    {"optim"},
    {"evaluation"},
    {"checkpoint"},
    {"observe"},
    {"trainer"},
    {"factory"},
    {"config", "handlers", "ignite_hooks"},
]


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(module):
    return ([*module.split("."), "ignite_hooks"])[1]


def floor_of(module):
    (floor,) = [number for number, rooms in enumerate(FLOORS) if room_of(module) in rooms]
    return floor


def imports_of(path):
    """Every import counts: at the top, within functions, and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


GRAPH = {
    module: {each for each in imports_of(path) if each in MODULES}
    for module, path in MODULES.items()
}


def test_no_imports_go_in_a_circle():
    list(TopologicalSorter(GRAPH).static_order())  # raises a CycleError that names the circle


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down_the_floors(module):
    for imported in GRAPH[module] - {module}:
        same_room = room_of(imported) == room_of(module)
        assert same_room or floor_of(imported) < floor_of(module), f"{module} -> {imported}"


PRIVATE = {
    "core/engine.py": {
        "_event_handlers",
        "_allowed_events",
        "_fire_event",
        "_handler_wrapper",
        "_parent",
        "_name_",
        "_internal_run_generator",
        "_process_function",
        "_init_timers",
        "_setup_output_metrics_state_attrs",
        "_state_dict_user_keys",
    },
    "core/accelerators.py": {
        "_models",
        "_optimizers",
        "_dataloaders",
        "_custom_objects",
        "_shared_state",
        "_is_accelerate_prepared",
        "_stop_iteration",
    },
    "core/torch_schedulers.py": {
        "_anneal_func_type",
        "_milestones",
        "_schedule_phases",
        "_schedulers",
    },
}


def names_in(path):
    """Names, and the words of strings, for getattr and setattr; not those of docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.NAME:
            yield token.string
        elif token.type == tokenize.STRING and "\n" not in token.string:
            yield token.string.strip("\"'")


@pytest.mark.parametrize("home", PRIVATE)
def test_private_members_of_libraries_are_used_in_one_file(home):
    for path in FILES:
        used = PRIVATE[home] & set(names_in(path))
        assert not used or path == ROOT / home, f"{path} uses {used}"


@pytest.mark.parametrize("module", [engine, accelerators, torch_schedulers])
def test_each_private_member_in_use_is_listed_in_the_docstring(module):
    home = Path(module.__file__)
    used = PRIVATE[home.relative_to(ROOT).as_posix()] & set(names_in(home))
    assert {name for name in used if f"{name}``" not in module.__doc__} == set()
