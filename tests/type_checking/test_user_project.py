"""Type checkers accept the script of a user, and find the mistakes in another one."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ignite_hooks
from ignite_hooks import checkpoint
from ignite_hooks import config
from ignite_hooks import evaluation
from ignite_hooks import handlers
from ignite_hooks import observe
from ignite_hooks import optim

PROJECT = Path(__file__).parent / "project"
PACKAGES = (ignite_hooks, checkpoint, config, evaluation, handlers, observe, optim)


def checked(*command, folder):
    command = [sys.executable, "-m", *command]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout


def errors_of_mypy(folder):
    lines = checked("mypy", "--output", "json", ".", folder=folder).splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {
        (each["file"], each["line"], each["code"]) for each in found if each["severity"] == "error"
    }


def errors_of_basedpyright(folder):
    command = "basedpyright", "--outputjson", "--pythonpath", sys.executable
    found = json.loads(checked(*command, folder=folder))["generalDiagnostics"]
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["rule"])
        for each in found
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("checker", "errors_of"), [("mypy", errors_of_mypy), ("basedpyright", errors_of_basedpyright)]
)
def test_type_checkers_find_the_mistakes_and_nothing_else(checker, errors_of, tmp_path):
    pytest.importorskip(checker, reason=f"{checker} comes with the extra types")
    project = shutil.copytree(PROJECT, tmp_path / "project")
    names = [
        f"from {package.__name__} import {name} as _{number}_{name}\nprint(_{number}_{name})\n"
        for number, package in enumerate(PACKAGES)
        for name in package.__all__
    ]
    (project / "names.py").write_text("".join(names))  # every public name
    expected = set()
    for number, line in enumerate((project / "mistakes.py").read_text().splitlines(), 1):
        if comment := re.search(r"  # ([\w-]+), (report\w+)$", line):
            expected.add(("mistakes.py", number, comment[1 if checker == "mypy" else 2]))
    assert errors_of(project) == expected
