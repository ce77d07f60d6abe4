import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from math import nan

import pytest
import torch
from ignite.engine import Events
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torch.utils.data import TensorDataset

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint import __main__ as cli
from ignite_hooks.checkpoint.__main__ import main
from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.manifest import with_checksum
from ignite_hooks.checkpoint.store import CheckpointStore

EVIL = "a\x1b[31m\n\u202e\u2028\x07精"
SIZES = {"model.safetensors": 3 * 2**20, "rank_0/rng.pt": 100}


def save(store, step, *, age=0, **fields):
    folder = store.begin(step)
    for name, size in SIZES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    manifest = Manifest(
        number=store.next_number(),
        saved_at=datetime.now(timezone.utc) - timedelta(seconds=age),
        step=step,
        epoch=step // 10,
        iteration=2 * step,
        data_pass=0,
        batches=2 * step,
        world_size=1,
        files={name: file_record(folder / name) for name in SIZES},
        **{"training": "ours", "versions": {"torch": "2.13.0"}, **fields},
    )
    store.commit(folder, manifest)
    return folder


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_list_shows_one_line_per_checkpoint_newest_first(store, capsys):
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
        "run",
        "state",
    ]
    assert [[cell.strip() for cell in row if cell] for row in rows] == [
        ["step_00000030", "30", "3", "-", "3 MiB", "59 s", "ours", "complete"],
        ["step_00000020", "20", "2", "accuracy nan", "3 MiB", "2 h", "ours", "complete"],
        ["step_00000010", "10", "1", "accuracy 0.987654", "3 MiB", "3 d", "ours", "complete"],
    ]


def test_list_shows_broken_folders_without_reading_files(store, capsys):
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


def test_show_prints_the_given_or_newest_checkpoint(store, capsys):
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
            ["model.safetensors", "3", "MiB"],
            ["rank_0/rng.pt", "100", "B"],
        ):
            assert line in shown
    assert ["metric", "loss", "0.5"] in shown


def test_verify_accepts_undamaged_checkpoints(store, capsys):
    save(store, 1)
    folder = save(store, 2)
    assert main(["verify", str(store.directory)]) == 0
    assert lines(capsys) == [
        "step_00000002: all files are intact",
        "step_00000001: all files are intact",
    ]
    assert main(["verify", str(folder)]) == 0
    assert lines(capsys) == ["step_00000002: all files are intact"]


def test_verify_names_a_corrupted_file_and_fails(store, capsys):
    save(store, 1)
    file = save(store, 2) / "rank_0" / "rng.pt"
    file.write_bytes(b"\1" + bytes(99))
    assert main(["verify", str(store.directory)]) == 1
    assert lines(capsys) == [
        "step_00000002: rank_0/rng.pt has changed since it was written",
        "step_00000001: all files are intact",
    ]


def test_verify_reports_an_unfinished_save_and_succeeds(store, capsys):
    save(store, 1)
    store.begin(2)  # it may be in progress
    assert main(["verify", str(store.directory)]) == 0
    said = "not a checkpoint, its save, or its removal, is not finished"
    assert lines(capsys)[0] == f"step_00000002: {said}"


@pytest.mark.parametrize(
    ("command", "name", "said"),
    [
        ("list", "has_all_files", "  removed meanwhile"),
        ("verify", "find_problems", "step_00000001: removed meanwhile"),
    ],
)
def test_checkpoint_removed_during_a_command_is_not_damaged(
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


@pytest.mark.parametrize("command", ["list", "show", "verify", "diff", "export"])
def test_path_that_is_not_a_directory_is_an_error(tmp_path, command, capsys):
    none = str(tmp_path / "none")
    more = {"diff": [none], "export": [str(tmp_path / "out.safetensors")]}.get(command, [])
    assert main([command, none, *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.match("error: `source` must be a (checkpoint or a )?directory", said.err)


def test_commands_leave_the_directory_unchanged(store):
    save(store, 1)
    store.begin(2)
    before = sorted(store.directory.rglob("*"))
    for command in ("list", "show", "verify"):
        main([command, str(store.directory)])
    main(["diff", str(store.directory), str(store.directory)])
    assert sorted(store.directory.rglob("*")) == before


def edit(folder, **fields):
    """Changes fields of a manifest, with a valid checksum."""
    path = folder / "manifest.json"
    text = json.dumps({**json.loads(path.read_bytes()), **fields})
    path.write_bytes(with_checksum(text.encode()))


def test_list_marks_the_best_of_each_run(store, capsys):
    accuracy = {"metric": "acc", "metric_mode": "max"}
    loss = {"metric": "loss", "metric_mode": "min"}
    first, second = "0123456789abcdef", "0123456789bcdefa"
    for step, run, fields in (
        (10, first, {**accuracy, "metric_value": 0.9}),
        (20, first, {**accuracy, "metric_value": nan}),
        (30, first, {**accuracy, "metric_value": 0.8}),
        (40, second, {**loss, "metric_value": 0.5}),
        (50, second, {**loss, "metric_value": 0.7}),
        (60, "short", {"metric": "acc", "metric_value": 0.7}),  # layout 1 has no mode
    ):
        save(store, step, training=run, **fields)
    main(["list", str(store.directory)])
    rows = [re.split("  +", line) for line in lines(capsys)[1:]]
    assert [(row[0][-2:], row[3], row[6]) for row in rows] == [
        ("60", "acc 0.7", "short"),
        ("50", "loss 0.7", "0123456789b"),
        ("40", "loss 0.5 (best)", "0123456789b"),
        ("30", "acc 0.8", "0123456789a"),
        ("20", "acc nan", "0123456789a"),
        ("10", "acc 0.9 (best)", "0123456789a"),
    ]


def test_show_prints_settings_contents_and_command_line(store, capsys):
    save(
        store,
        10,
        age=7300,
        global_batch=64,
        settings={"optimizer": {"class": "AdamW", "groups": [{"lr": 0.1, "betas": [0.9, 0.99]}]}},
        contents={"modules": ["model"], "handlers": ["EMAHandler", "EarlyStopping"]},
        command_line=["python", "train me.py", "--lr=0.1"],
    )
    assert main(["show", str(store.directory)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"  saved +20\d\d-\S+ \S+ \(2 h ago\)\n", text)
    for line in (
        "  processes     1",
        "  global batch  64",
        "  optimizer.class           AdamW",
        "  optimizer.groups.0.lr     0.1",
        "  optimizer.groups.0.betas  [0.9, 0.99]",
        "  modules   model",
        "  handlers  EMAHandler, EarlyStopping",
        "  python 'train me.py' --lr=0.1",
    ):
        assert f"{line}\n" in text


def test_show_wraps_long_lines_at_the_width_of_the_terminal(store, monkeypatch, capsys):
    names = [f"Handler{i}" for i in range(50)]
    save(store, 10, contents={"handlers": names}, command_line=names)
    monkeypatch.setenv("COLUMNS", "80")
    main(["show", str(store.directory)])
    shown = lines(capsys)
    assert max(map(len, shown[1:])) in range(70, 81)
    monkeypatch.delenv("COLUMNS")
    main(["show", str(store.directory)])  # into a pipe: not wrapped
    assert "  " + " ".join(names) in lines(capsys)


@pytest.mark.parametrize(
    "fields",
    [
        {"saved_at": "2026-01-02T03:04:05"},
        {"saved_at": "0001-01-01T00:00:00+14:00"},
        {"saved_at": "9999-12-31T23:59:59-12:00"},
        {"files": {"x": {"size": 10**30, "checksum": "0"}}},
        {"files": {"x": {"size": 10**400, "checksum": "0"}}},
        {"step": 10**30, "epoch": 10**30, "global_batch": 10**30},
        {"step": int("9" * 4000)},
        {"metric": "m", "metric_value": "NaN", "metric_mode": "max"},
        {"metric": "m", "metric_value": "-Infinity", "metric_mode": "min"},
        {"metric": "m", "metric_value": 10**400},
        {"metric": "m" * 10**5, "metric_value": 1e308},
        {"metric": EVIL, "metric_value": 1.0},
        {"training": EVIL},
        {"training": "x" * 10**5},
        {"ended_by": EVIL},
        {"versions": {EVIL: EVIL}},
        {"contents": {EVIL: [EVIL]}},
        {"settings": {EVIL: {"deep": [[[[[[[[[EVIL]]]]]]]]], "list": [EVIL, {"a": None}]}}},
        {"settings": {"x": "y" * 10**6}},
        {"command_line": [EVIL, "\ud800"]},
        {"command_line": []},
        {"files": {EVIL: {"size": 1, "checksum": EVIL}}},
        {"version": 99},
    ],
    ids=lambda fields: ascii(fields)[:60],
)
def test_unusual_values_are_printed_escaped(store, capsys, fields):
    folder = save(store, 1)
    edit(folder, **fields)
    for arguments in (["list"], ["show"], ["verify"]):
        assert main([*arguments, str(store.directory)]) in (0, 1)
    main(["diff", str(folder), str(folder)])
    said = capsys.readouterr()
    for line in (said.out + said.err).split("\n"):
        assert line.isprintable()
    assert "Traceback" not in said.err


def test_names_of_folders_are_printed_escaped(tmp_path, capsys):
    store = CheckpointStore(tmp_path / "a\x1b[31m\n\u202e")
    save(store, 1)
    (store.directory / "step_00000009").symlink_to("\x1b[2J")
    for command in ("list", "show", "verify"):
        main([command, str(store.directory)])
    main(["show", str(store.directory / "none\x1b")])
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))
    assert "a link to \\x1b[2J" in said.out


@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_source_may_be_a_url(store, tmp_path, capsys, command):
    save(store, 1)
    cache = ["--cache-dir", str(tmp_path / "cache")] if command == "verify" else []
    assert main([command, store.directory.as_uri(), *cache]) == 0
    assert "step_00000001" in capsys.readouterr().out
    assert (tmp_path / "cache").exists() == bool(cache)


def test_verify_of_a_url_needs_a_cache_dir(store, capsys):
    save(store, 1)
    assert main(["verify", store.directory.as_uri()]) == 2
    assert "`--cache-dir` must be given for a URL" in capsys.readouterr().err


def test_verify_of_a_url_names_a_damaged_file(store, tmp_path, capsys):
    file = save(store, 1) / "rank_0" / "rng.pt"
    file.write_bytes(b"\1" + bytes(99))
    url, cache = store.directory.as_uri(), str(tmp_path / "cache")
    assert main(["verify", url, "--cache-dir", cache]) == 1
    assert lines(capsys) == ["step_00000001: rank_0/rng.pt has changed since it was written"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directories of two runs of three epochs with different learning rates."""
    found = []
    for lr in (0.1, 0.2):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        data = TensorDataset(torch.randn(16, 3), torch.randn(16, 2))
        directory = tmp_path_factory.mktemp("runs")
        trainer = create_supervised_trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=lr),
            torch.nn.functional.mse_loss,
            DataLoader(data, 4),
            checkpoint=SaveCheckpoint(
                directory, every_epochs=1, metric="acc", also={"copy": torch.nn.Linear(1, 1)}
            ),
        )

        @trainer.on(Events.EPOCH_COMPLETED)
        def measure(engine):
            engine.state.metrics["acc"] = [0, 0.5, 0.9, 0.7][engine.state.epoch]

        trainer.run(max_epochs=3)
        found.append(directory)
    return found


@pytest.mark.parametrize(
    ("options", "step"), [([], 8), (["--which", "last"], 12), (["--which", "4"], 4)]
)
def test_export_writes_the_selected_weights(trained, tmp_path, capsys, options, step):
    out = tmp_path / "out.safetensors"
    assert main(["export", str(trained[0]), str(out), *options]) == 0
    assert f"step_{step:08d} (step {step}, epoch {step // 4}, acc" in capsys.readouterr().out
    saved = load_file(trained[0] / f"step_{step:08d}" / "model.safetensors")
    exported = load_file(out)
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name], saved[name]) for name in saved)


def test_export_replaces_a_file_only_with_force(trained, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    arguments = ["export", str(trained[0]), str(out), "--part", "also/copy"]
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main([*arguments, "--force"]) == 0
    assert load_file(out)["weight"].shape == (1, 1)


@pytest.mark.parametrize("options", [["--which", "7"], ["--which", "no"], ["--part", "no"]])
def test_export_of_an_unknown_part_or_step_is_an_error(trained, tmp_path, capsys, options):
    out = tmp_path / "out.safetensors"
    assert main(["export", str(trained[0]), str(out), *options]) == 2
    assert capsys.readouterr().err.startswith("error: `")
    assert not out.exists()


def test_diff_of_equal_checkpoints_says_so(trained, capsys):
    assert main(["diff", str(trained[0]), str(trained[0] / "step_00000012")]) == 0
    text = capsys.readouterr().out
    assert "model: 2 values, bit for bit equal\n" in text
    assert text.endswith("\nno difference\n")


def test_diff_names_parameters_settings_and_counters(trained, capsys):
    assert main(["diff", *map(str, trained)]) == 1
    text = capsys.readouterr().out
    assert re.search(r"model: 2 of 2 values differ\n  relative +absolute +name\n", text)
    norms = [float(n) for n in re.findall(r"  [\d.e-]+ +([\d.e-]+) +(?:weight|bias)\n", text)]
    a, b = (load_file(run / "step_00000012" / "model.safetensors") for run in trained)
    real = sorted((float((a[name] - b[name]).norm()) for name in a), reverse=True)
    assert norms == pytest.approx(real, rel=1e-3)
    assert re.search(r"param_groups/0/lr +0\.1 \| 0\.2\n", text)
    assert main(["diff", *map(str, trained), "--which", "best"]) == 1
    assert "step_00000008" in capsys.readouterr().out
    steps = [str(trained[0] / f"step_{step:08d}") for step in (4, 8)]
    assert main(["diff", *steps]) == 1
    assert "\ncounters\n                A    B\n  step          4    8\n" in capsys.readouterr().out


def test_diff_counts_the_settings_that_are_not_shown(store, capsys, monkeypatch):
    for step in (1, 2):
        save(store, step, settings={f"s{i}": step for i in range(13)})
    steps = [str(store.directory / f"step_{step:08d}") for step in (1, 2)]
    assert main(["diff", *steps]) == 1
    short = lines(capsys)
    assert "  and 3 more (--all)" in short
    assert main(["diff", *steps, "--all"]) == 1
    assert len(lines(capsys)) == len(short) + 2


def test_diff_of_a_damaged_checkpoint_is_an_error(trained, tmp_path, capsys):
    copy = shutil.copytree(trained[0], tmp_path / "copy")
    (copy / "step_00000012" / "optimizer.bin").write_bytes(b"")
    assert main(["diff", str(copy), str(trained[0])]) == 2
    assert "step_00000012 is damaged: optimizer.bin has 0 bytes" in capsys.readouterr().err


def run(*arguments, **options):
    command = [sys.executable, "-m", "ignite_hooks.checkpoint", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **options)


def test_output_is_escaped_for_an_ascii_stdout(store):
    save(store, 1, metric="精度", metric_value=1.0)
    ended = run("list", store.directory, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0
    assert b"\\u7cbe\\u5ea6 1" in ended.stdout


def test_closed_pipe_ends_the_command_without_an_error(store):
    save(store, 1, contents={f"kind{i}": ["name" * 100] * 10 for i in range(200)})
    command = [sys.executable, "-m", "ignite_hooks.checkpoint", "show", str(store.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_output_that_cannot_be_written_is_an_error(store):
    save(store, 1)
    command = shlex.join([sys.executable, "-m", "ignite_hooks.checkpoint", "list"])
    command += f" {shlex.quote(str(store.directory))}"
    for redirection, status, said in ((">/dev/full", 2, b"error: "), (">&-", 0, b"")):
        ended = subprocess.run(
            ["sh", "-c", f"{command} {redirection}"], capture_output=True, check=False
        )
        assert (ended.returncode, ended.stderr[:7]) == (status, said)


@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_commands_that_load_no_tensor_do_not_import_torch(store, command):
    save(store, 1)
    program = (
        "import sys; from ignite_hooks.checkpoint.__main__ import main; "
        "status = main(sys.argv[1:]); sys.exit(status or 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, command, str(store.directory)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_verify_can_be_run_with_python_m(store):
    (save(store, 1) / "model.safetensors").unlink()
    command = [sys.executable, "-m", "ignite_hooks.checkpoint", "verify", str(store.directory)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "model.safetensors cannot be read (No such file" in ended.stdout
