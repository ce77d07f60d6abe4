import subprocess
import sys
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from math import nan

import pytest

from ignite_hooks.checkpoint import __main__ as cli
from ignite_hooks.checkpoint.__main__ import main
from ignite_hooks.checkpoint.durable import record_of
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.store import CheckpointStore

SIZES = {"model.safetensors": 3 * 2**20, "rank_0/rng.pt": 100}


def save(store, step, *, age=0, **fields):
    folder = store.begin(step)
    for name, size in SIZES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    manifest = Manifest(
        number=store.next_number(),
        training="ours",
        saved_at=datetime.now(timezone.utc) - timedelta(seconds=age),
        step=step,
        epoch=step // 10,
        iteration=2 * step,
        data_pass=0,
        batches=2 * step,
        world_size=1,
        versions={"torch": "2.13.0"},
        files={name: record_of(folder / name) for name in SIZES},
        **fields,
    )
    store.commit(folder, manifest)
    return folder


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_list_has_a_line_for_each_the_newest_first(store, capsys):
    save(store, 10, age=3 * 86400, metric="accuracy", metric_value=0.98765432)
    save(store, 20, age=7300, metric="accuracy", metric_value=nan)
    save(store, 30, age=59)
    assert main(["list", str(store.directory)]) == 0
    head, *rows = [line.split("  ") for line in lines(capsys)]
    assert [cell.strip() for cell in head if cell] == [
        "checkpoint",
        "step",
        "epoch",
        "metric",
        "size",
        "age",
        "state",
    ]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["step_00000030", "30", "3", "-", "3 MiB", "59 s", "complete"],
        ["step_00000020", "20", "2", "accuracy nan", "3 MiB", "2 h", "complete"],
        ["step_00000010", "10", "1", "accuracy 0.987654", "3 MiB", "3 d", "complete"],
    ]


def test_a_list_shows_what_is_broken_as_far_as_a_look_tells(store, capsys):
    (save(store, 1) / "model.safetensors").write_bytes(b"")
    (save(store, 2) / "rank_0" / "rng.pt").unlink()
    (save(store, 3) / "manifest.json").write_bytes(b"{")
    store.begin(5)
    (store.directory / "step_00000004").mkdir()
    (store.directory / "step_00000004" / "trainer.pt").touch()
    assert main(["list", str(store.directory)]) == 0
    assert [(line.split()[0], line.split("  ")[-1].strip()) for line in lines(capsys)[1:]] == [
        ("step_00000002", "damaged"),
        ("step_00000001", "damaged"),
        ("step_00000003", "its manifest is damaged"),
        ("step_00000004", "no manifest"),
        ("step_00000005", "its save, or its removal, is not finished"),
    ]


def test_show_prints_the_named_or_the_newest_checkpoint(store, capsys):
    first = save(store, 10)
    save(store, 20, metric="loss", metric_value=0.5)
    for path, step in ((first, 10), (store.directory, 20)):
        assert main(["show", str(path)]) == 0
        head, *rest = lines(capsys)
        assert head.endswith(f"step_{step:08d}")
        shown = [line.split() for line in rest]
        for line in (
            ["step", str(step)],
            ["torch", "2.13.0"],
            ["3", "MiB", "model.safetensors"],
            ["100", "B", "rank_0/rng.pt"],
        ):
            assert line in shown
    assert ["metric_value", "0.5"] in shown


def test_verify_accepts_undamaged_checkpoints(store, capsys):
    save(store, 1)
    folder = save(store, 2)
    assert main(["verify", str(store.directory)]) == 0
    assert lines(capsys) == [
        "step_00000002: every file is as it was written",
        "step_00000001: every file is as it was written",
    ]
    assert main(["verify", str(folder)]) == 0
    assert lines(capsys) == ["step_00000002: every file is as it was written"]


def test_verify_names_a_corrupted_file_and_exits_with_an_error(store, capsys):
    save(store, 1)
    file = save(store, 2) / "rank_0" / "rng.pt"
    file.write_bytes(b"\1" + bytes(99))
    assert main(["verify", str(store.directory)]) == 1
    assert lines(capsys) == [
        "step_00000002: rank_0/rng.pt has changed since it was written",
        "step_00000001: every file is as it was written",
    ]


def test_verify_names_a_save_that_is_not_finished(store, capsys):
    save(store, 1)
    store.begin(2)  # it may be in progress
    assert main(["verify", str(store.directory)]) == 0
    said = "no checkpoint, its save, or its removal, is not finished"
    assert lines(capsys)[0] == f"step_00000002: {said}"


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [
        ("list", "has_its_files", "  removed meanwhile"),
        ("verify", "find_problems", "step_00000001: removed meanwhile"),
    ],
)
def test_checkpoint_that_is_removed_meanwhile_is_not_damaged(
    store, monkeypatch, capsys, command, name, said
):
    folder = save(store, 1)
    save(store, 2)
    real = getattr(cli, name)

    def looked_at(checkpoint):
        if checkpoint.folder == folder:
            store.remove(folder)
        return real(checkpoint)

    monkeypatch.setattr(cli, name, looked_at)
    assert main([command, str(store.directory)]) == 0
    shown = capsys.readouterr().out
    assert said in shown
    assert "damaged" not in shown


@pytest.mark.parametrize("command", ["show", "verify"])
def test_every_command_reports_an_empty_directory(tmp_path, command, capsys):
    assert main([command, str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"no checkpoint in {tmp_path}\n"


@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_path_that_is_no_directory_is_refused_with_a_remedy(tmp_path, command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path / "none")])
    assert ended.value.code == 2
    assert "`path` must be a directory, got" in capsys.readouterr().err


def test_commands_leave_the_directory_unchanged(store):
    save(store, 1)
    store.begin(2)
    before = sorted(store.directory.rglob("*"))
    for command in ("list", "show", "verify"):
        main([command, str(store.directory)])
    assert sorted(store.directory.rglob("*")) == before


def test_verify_can_be_run_with_python_m(store):
    (save(store, 1) / "model.safetensors").unlink()
    command = [sys.executable, "-m", "ignite_hooks.checkpoint", "verify", str(store.directory)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "model.safetensors can not be read (No such file" in ended.stdout
