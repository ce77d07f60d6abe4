"""Tests of the commands ``check``, ``show`` and ``schema``."""

import json
import subprocess
import sys

import pytest

from ignite_hooks import GradientClipping
from ignite_hooks.config import RunSettings
from ignite_hooks.config import equal
from ignite_hooks.config import load
from ignite_hooks.config import loads
from ignite_hooks.config import save
from ignite_hooks.config.__main__ import main

USER_MODULE = """

from ignite_hooks.config import register
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.checked_dataclass import checked_dataclass


@register("main.{name}")
@checked_dataclass
class UserHandler(Handler):
    rate: float = 0.5
"""


@pytest.fixture
def run_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("type: run\nmax_epochs: 3\ngrad_clip: {max_norm: .inf}\n")
    return path


@pytest.fixture
def list_file(tmp_path):
    path = tmp_path / "several.json"
    save([GradientClipping(max_norm=1.0), GradientClipping(clip_value=1.0)], path)
    return path


@pytest.fixture
def wrong_file(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text('type = "run"\nmax_epochs = 0\ngrad_clip = {max_norms = 1.0}\n')
    return path


def test_check_reports_a_valid_file(capsys, run_file):
    assert main(["check", str(run_file)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{run_file}: nothing is wrong (RunSettings)\n"
    assert captured.err == ""


def test_check_counts_handlers(capsys, list_file):
    assert main(["check", str(list_file)]) == 0
    assert capsys.readouterr().out == f"{list_file}: nothing is wrong (2 handlers)\n"


@pytest.mark.parametrize("command", ["check", "show"])
def test_all_problems_of_a_file_are_listed_with_their_paths(capsys, wrong_file, command):
    assert main([command, str(wrong_file)]) == 1
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first.startswith(f"{wrong_file}: max_epochs: `max_epochs` must be an integer >= 1, got")
    assert second.startswith(f"{wrong_file}: grad_clip.max_norms: ")
    assert "did you mean `max_norm`" in second
    assert captured.out == ""


@pytest.mark.parametrize("command", ["check", "show"])
@pytest.mark.parametrize("name", ["missing.yaml", "run.ini", "folder.json"])
def test_unreadable_file_is_a_usage_error(capsys, tmp_path, command, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(SystemExit) as caught:
        main([command, str(tmp_path / name)])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("usage: python -m ignite_hooks.config")
    assert name in captured.err.splitlines()[-1]
    assert captured.out == ""


def test_show_writes_yaml_with_every_default(capsys, run_file):
    assert main(["show", str(run_file)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("type: run\nseed: null\n")
    assert "scheduler_at: step\n" in text
    assert equal(loads(text, "yaml"), load(run_file))


@pytest.mark.parametrize("format", ["json", "toml", "yaml"])
def test_show_writes_any_format(capsys, run_file, format):
    assert main(["show", str(run_file), "--format", format]) == 0
    assert equal(loads(capsys.readouterr().out, format), load(run_file))


def test_show_reports_what_a_format_cannot_express(capsys, list_file):
    assert main(["show", str(list_file), "--format", "toml"]) == 1
    assert "TOML must have a mapping at its top" in capsys.readouterr().err


def test_schema_prints_the_schema_of_the_settings(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(RunSettings.json_schema()))


@pytest.mark.parametrize(
    "arguments", [[], ["check"], ["train", "a.yaml"], ["show", "a.yaml", "--format", "ini"]]
)
def test_wrong_arguments_are_a_usage_error(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m ignite_hooks.config")


def test_help_describes_each_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    captured = capsys.readouterr().out
    for name in ("check", "show", "schema"):
        assert f"\n    {name} " in captured


def test_classes_of_imported_modules_are_known(tmp_path):
    """Imports two modules in a subprocess, as on a terminal."""
    for name in ("first", "second"):
        (tmp_path / f"own_{name}.py").write_text(USER_MODULE.format(name=name))
    (tmp_path / "run.yaml").write_text("- type: main.first\n- {type: main.second, rate: 1}\n")
    imports = ["--import", "own_first", "--import", "own_second"]
    found = subprocess.run(
        [sys.executable, "-m", "ignite_hooks.config", "show", "run.yaml", *imports],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "- type: main.first\n  rate: 0.5\n- type: main.second\n  rate: 1.0\n"


def test_classes_of_other_modules_are_unknown(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("type: main.first\n")
    assert main(["check", str(tmp_path / "run.yaml")]) == 1
    assert "type: `type` must be a tag that is registered, got 'main.first'" in (
        capsys.readouterr().err
    )


def test_missing_module_is_a_usage_error(capsys, run_file):
    with pytest.raises(SystemExit) as ended:
        main(["check", str(run_file), "--import", "no_such_module"])
    assert ended.value.code == 2
    assert "--import must name a module, got no_such_module" in capsys.readouterr().err


def test_module_that_cannot_be_imported_is_a_usage_error(capsys, run_file, tmp_path, monkeypatch):
    (tmp_path / "registers.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["check", str(run_file), "--import", "registers"])
    assert ended.value.code == 2
    assert (
        "--import must name a module that can be imported, got registers: No module named "
        "'no_such_package'" in capsys.readouterr().err
    )
