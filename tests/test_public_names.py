import inspect
import subprocess
import sys
import typing
from dataclasses import is_dataclass
from difflib import ndiff
from importlib.metadata import requires
from importlib.resources import files

import pytest

import ignite_hooks
from ignite_hooks import config
from ignite_hooks import handlers
from ignite_hooks.core import fields
from ignite_hooks.hooks.channels import CHANNELS
from tests import public_names

OPTIONAL = ("sklearn", "tqdm", "matplotlib", "transformers", "pandas", "IPython", "jinja2")


def test_the_public_names_are_sorted_and_each_is_there_once():
    assert ignite_hooks.__all__ == sorted(set(ignite_hooks.__all__))


def test_public_names_arguments_and_defaults_are_frozen():
    listed, found = public_names.FILE.read_text().splitlines(), [*public_names.public_names()]
    changes = [line for line in ndiff(listed, found) if line[0] in "+-"]
    assert not changes, (
        "\n".join(["public names have changed:", *changes])
        + "\nIf a script of a user can break, keep the old name or argument for one more version, "
        "and let it warn (core/deprecated.py). Describe the change in CHANGELOG.md, and write the "
        "new list: python -m tests.public_names"
    )


def test_only_listed_names_are_public():
    for name in ignite_hooks.__all__:
        assert name in dir(ignite_hooks)
        assert getattr(ignite_hooks, name) is vars(ignite_hooks)[name]
    for name in ("__getattr__", "import_module", "TYPE_CHECKING", "Any"):
        assert name not in ignite_hooks.__all__
    assert list(ignite_hooks._MODULES) == ignite_hooks.__all__
    with pytest.raises(AttributeError, match="module 'ignite_hooks' has no attribute 'Nonsense'"):
        _ = ignite_hooks.Nonsense


def test_a_name_is_imported_when_it_is_asked_for():
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, ignite_hooks\n"
            "own = lambda: {name for name in sys.modules if name.startswith('ignite_hooks')}\n"
            "assert own() == {'ignite_hooks', 'ignite_hooks.core', 'ignite_hooks.core.lazy'}\n"
            "ignite_hooks.ClearCache\n"
            "assert 'ignite_hooks.memory.clear_cache' in own()\n"
            "assert not any('checkpoint' in name or 'factory' in name for name in own())\n"
            "ignite_hooks.create_supervised_trainer\n"
            "assert not any('checkpoint.' in name for name in own())\n"
            "assert 'torch' in sys.modules\n",
        ],
        check=True,
    )


def test_trainer_without_handlers_does_not_import_pydantic():
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, accelerate, torch, ignite_hooks\n"
            "before = set(sys.modules)\n"
            "model = torch.nn.Linear(2, 2)\n"
            "trainer = ignite_hooks.create_supervised_trainer(\n"
            "    model, torch.optim.SGD(model.parameters(), 0.1), torch.nn.MSELoss(),\n"
            "    [tuple(torch.ones(2, 3, 2))] * 2, accelerator=accelerate.Accelerator(cpu=True))\n"
            "trainer.run()\n"
            "assert trainer.state.optimizer_step == 2\n"
            "assert not {name.split('.')[0] for name in set(sys.modules) - before} & {'pydantic'}\n"
            "assert 'ignite_hooks.evaluation.validation' not in sys.modules\n",
        ],
        check=True,
    )


@pytest.mark.parametrize("name", ignite_hooks.__all__)
def test_each_name_can_be_imported_and_has_a_docstring(name):
    value = getattr(__import__("ignite_hooks", fromlist=[name]), name)
    assert len(inspect.cleandoc(value.__doc__).splitlines()[0]) > 20
    assert value.__module__.startswith("ignite_hooks.")


@pytest.mark.parametrize("name", ignite_hooks.__all__)
def test_the_docstring_of_a_name_says_what_each_argument_is(name):
    value = getattr(ignite_hooks, name)
    if name in ("TrainEvents", "Trainer"):
        return
    arguments = [each for each in inspect.signature(value).parameters if each != "_"]
    documented = inspect.getdoc(value)
    assert [each for each in arguments if f"\n    {each}: " not in documented] == []


@pytest.mark.parametrize("name", ignite_hooks.__all__)
def test_public_methods_have_docstrings_and_annotations(name):
    value = getattr(ignite_hooks, name)
    if not inspect.isclass(value):
        methods = [value]
    else:
        own = [(each, getattr(value, each)) for each in vars(value) if not each.startswith("_")]
        methods = [method for _, method in own if inspect.isroutine(method)]
    for method in methods:
        assert inspect.getdoc(method), method
        assert "return" in method.__annotations__, method


def test_every_module_has_a_docstring_and_names_what_is_public():
    for path in files("ignite_hooks").rglob("*.py"):
        source = path.read_text()
        assert source.startswith('"""'), path
        assert "__all__" in source or path.name == "__init__.py", path


def test_importing_imports_nothing_that_is_optional():
    # Accelerate may import some of them by itself.
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, accelerate, ignite.engine, pydantic, torch\n"
            "before = set(sys.modules)\n"
            "from ignite_hooks import *\n"
            f"print([name for name in {OPTIONAL} if name in set(sys.modules) - before])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "lazy",
    [
        ("yaml", "tomllib", "tomli", "tomli_w", "ignite_hooks.config"),
        ("torch._dynamo",),  # takes half a second; the first optimizer of a process imports it
    ],
)
def test_importing_imports_nothing_that_is_used_later(lazy):
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, accelerate, ignite.engine, pydantic, torch\n"
            "before = set(sys.modules)\n"
            "from ignite_hooks import *\n"
            f"assert not {set(lazy)} & (set(sys.modules) - before)\n",
        ],
        check=True,
    )


def test_the_names_of_configurations_have_docstrings():
    for name in config.__all__:
        assert len(inspect.cleandoc(getattr(config, name).__doc__).splitlines()[0]) > 20


def test_import_touches_no_accelerate_state_or_random_generator():
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import random, numpy, torch\n"
            "before = random.getstate(), torch.get_rng_state()\n"
            "from ignite_hooks import *\n"
            "from accelerate.state import AcceleratorState, GradientState, PartialState\n"
            "assert before[0] == random.getstate()\n"
            "assert torch.equal(before[1], torch.get_rng_state())\n"
            "for state in AcceleratorState, GradientState, PartialState:\n"
            "    assert not state._shared_state, state\n",
        ],
        check=True,
    )


def test_imported_packages_are_dependencies():
    needed = {each.lower() for each in requires("ignite-hooks") if "extra" not in each}
    used = ("accelerate", "psutil", "pydantic", "pytorch-ignite", "pyyaml", "tomli-w", "torch")
    for name in (*used, "typing", "xxhash"):
        assert any(each.startswith(name) for each in needed)


def test_the_package_says_that_it_is_typed():
    assert files("ignite_hooks").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", ignite_hooks.__all__)
def test_the_types_of_arguments_can_be_read_by_tools(name):
    value = getattr(ignite_hooks, name)
    is_plain_class = inspect.isclass(value) and "__init__" in vars(value)
    hints = typing.get_type_hints(
        value.__init__ if is_plain_class and not is_dataclass(value) else value
    )
    assert not any(isinstance(each, str) for each in hints.values())


def test_the_factory_names_the_classes_of_its_handlers():
    hints = typing.get_type_hints(ignite_hooks.create_supervised_trainer)
    assert hints["grad_clip"] == ignite_hooks.GradientClipping | None
    assert hints["validation"] == ignite_hooks.Validation | None
    assert hints["checkpoint"] == ignite_hooks.SaveCheckpoint | None
    assert ignite_hooks.ResumeCheckpoint in typing.get_args(hints["resume_from"])


@pytest.mark.parametrize(
    ("function", "argument", "values"),
    [
        (ignite_hooks.create_supervised_trainer, "scheduler_at", ("step", "epoch", "validation")),
        (ignite_hooks.OptimizerStep.__init__, "scheduler_at", ("step", "epoch", "validation")),
        (ignite_hooks.Hooks.register, "channel", CHANNELS),
        (ignite_hooks.Hooks.on, "channel", CHANNELS),
        (ignite_hooks.Hooks.begin, "channel", CHANNELS),
    ],
)
def test_a_type_checker_finds_a_typo_in_a_choice(function, argument, values):
    hint = typing.get_type_hints(function)[argument]
    assert typing.get_origin(hint) is typing.Literal
    assert typing.get_args(hint) == values


def test_what_a_handler_of_ones_own_needs_has_a_public_face():
    assert {"Handler", "Scheduled", "Attachment", "checked_dataclass", "handler_config"} < set(
        handlers.__all__
    )
    assert set(fields.__all__) < set(handlers.__all__)
    for name in handlers.__all__:
        assert getattr(handlers, name).__class__ is not None
    own = {name for name, value in vars(handlers).items() if not name.startswith("_")}
    assert own - {"annotations"} == set(handlers.__all__)


def test_a_room_lists_its_public_names_without_importing_them():
    program = (
        "import sys\n"
        "from ignite_hooks import checkpoint, evaluation, observe, optim\n"
        "rooms = (checkpoint, evaluation, observe, optim)\n"
        "assert all(set(room.__all__) <= set(dir(room)) for room in rooms)\n"
        "assert 'torch' not in sys.modules\n"
        "for room in rooms:\n"
        "    assert all(getattr(room, name).__name__ == name for name in room.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_handlers_need_no_accelerate_until_they_meet_it():
    program = (
        "import sys, ignite_hooks.core.engine, ignite_hooks.core.handler, ignite_hooks.handlers\n"
        "assert ignite_hooks.Hooks().attach\n"
        "assert 'accelerate' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
