"""Tests of SendMetrics with real trackers: what they have stored is read back.

A run crashes after a step that it has sent and not saved. Another process resumes the run. The
curves must be those of a run that did not crash, with each step once. Between the two epochs, the
program ends the trackers.
"""

import json
import math
import os
import shutil
import struct
import subprocess
import sys

import pytest
from ignite.handlers import WandBLogger

from ignite_hooks import SendMetrics
from tests.pages import ROOT
from tests.pages import Page
from tests.reference import batches_of
from tests.reference import make_trainer

pytestmark = pytest.mark.trackers


@pytest.fixture(scope="module", autouse=True)
def mlflow_file_store():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        yield


def train(tracker, folder, *crash, **variables):
    """Trains in another process, and returns what it has written to stderr."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_DIR": str(folder),
        "WANDB_MODE": "offline",
        **variables,
    }
    command = [sys.executable, "-m", "tests.observe.programs.tracked", tracker, str(folder), *crash]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (9 if crash else 0), done.stderr
    return done.stderr


def numbers_of(points):
    """Returns points that can be compared: NaN as a text, and floats rounded."""

    def comparable(value):
        if isinstance(value, str):
            return value
        return "nan" if math.isnan(value) else round(value, 4)

    return [(step, comparable(value)) for step, value in points]


def tensorboard_curves(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stored = EventAccumulator(
        str(folder / "logs" / "training"), size_guidance={"scalars": 0, "tensors": 0}
    )
    stored.Reload()
    tags = stored.Tags()
    curves = {t: [(p.step, p.value) for p in stored.Scalars(t)] for t in tags["scalars"]}
    texts = stored.Tensors("text/text_summary")
    # TensorBoard hides repeated numbers, and shows repeated texts.
    curves["text"] = sorted({(p.step, p.tensor_proto.string_val[0].decode()) for p in texts})
    assert list((folder / "logs" / "training").glob("*/"))  # the folder of the hyperparameters
    return curves


def mlflow_runs(folder):
    import mlflow

    client = mlflow.MlflowClient((folder / "mlruns").as_uri())
    experiments = [each.experiment_id for each in client.search_experiments()]
    return client, client.search_runs(experiments)


def mlflow_curves(folder):
    client, (run,) = mlflow_runs(folder)
    assert run.data.params["optimizer/lr"] == "0.1"
    assert run.data.params["max_epochs"] == "1"
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(p.step, p.value) for p in points] for name, points in history.items()}


def trackio_curves(folder):
    script = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S;"
        "(name,) = S.get_runs('training');"
        "print(json.dumps([S.get_logs('training', name), S.get_run_config('training', name)]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRACKIO_DIR": str(folder / "trackio")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows, config = json.loads(printed)
    assert config["optimizer/lr"] == 0.1
    return curves_of(rows, "step", hidden=("timestamp",))


def curves_of(rows, axis, hidden=()):
    curves = {}
    for row in rows:
        for name, value in row.items():
            if name not in (axis, *hidden):
                curves.setdefault(name, []).append((row[axis], value))
    return curves


def wandb_records(path):
    """Yields the records of a file of an offline run, which has the format of LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    block, data, at, whole = 32768, path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # the rest of a block is empty
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def wandb_curves(folder):
    """Returns the curves by the x axis of the metrics, of all parts of the one run."""
    rows, runs, axes, config = {}, set(), set(), {}
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    for file in files:
        seen = []
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                runs.add(record.run.run_id)
            elif kind == "metric":
                axes.add((record.metric.name, record.metric.step_metric))
            elif kind == "config":
                config |= {each.key: each.value_json for each in record.config.update}
            elif kind == "history":
                items = record.history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                assert row["_step"] == row["optimizer_step"]
                seen.append(row["_step"])
                # An offline run does not know its former parts. W&B drops a step that it has.
                rows.setdefault(row["_step"], row)
        assert seen == sorted(set(seen))
    assert len(runs) == 1
    assert config["optimizer/lr"] == "0.1"
    assert {("loss", "optimizer_step"), ("val_error (%)", "optimizer_step")} <= axes
    hidden = ("_step", "_runtime", "_timestamp")
    return curves_of([rows[step] for step in sorted(rows)], "optimizer_step", hidden)


READERS = {
    "tensorboard": tensorboard_curves,
    "TensorboardLogger": tensorboard_curves,
    "mlflow": mlflow_curves,
    "MLflowLogger": mlflow_curves,
    "trackio": trackio_curves,
    "wandb": wandb_curves,
    "WandBLogger": wandb_curves,
}


@pytest.fixture(scope="module", params=READERS)
def curves(request, tmp_path_factory):
    """Returns the tracker, and the curves of an unbroken run and of a resumed run."""
    tracker, folder = request.param, tmp_path_factory.mktemp(request.param)
    unbroken, stopped = folder / "unbroken", folder / "stopped"
    train(tracker, unbroken)
    # W&B and trackio do not tell which curves have a point of the last step.
    are_curves_known = READERS[tracker] in (tensorboard_curves, mlflow_curves)
    train(tracker, stopped, "validation" if are_curves_known else "step")
    variables = {}
    if tracker == "MLflowLogger":
        (run,) = mlflow_runs(stopped)[1]
        variables["MLFLOW_RUN_ID"] = run.info.run_id
    warned = train(tracker, stopped, **variables)
    assert "SendMetrics" not in warned
    read = READERS[tracker]
    return tracker, read(unbroken), read(stopped)


def test_the_curves_of_a_resumed_run_are_those_of_an_unbroken_run(curves):
    _, unbroken, resumed = curves
    assert {name: numbers_of(points) for name, points in resumed.items()} == {
        name: numbers_of(points) for name, points in unbroken.items()
    }


def test_each_step_is_there_once_with_its_values(curves):
    tracker, _, resumed = curves
    renamed = "mlflow" in tracker.lower()
    error, odd = ("val_error ___", "odd_") if renamed else ("val_error (%)", "odd*")
    steps = {name: [step for step, _ in points] for name, points in resumed.items()}
    expected = {
        "loss": [*range(2, 21, 2)],
        "pair/0": [*range(1, 21)],
        "pair/1": [*range(1, 21)],
        error: [4, 8, 12, 16, 20],
        odd: [7],
    }
    if not renamed:
        expected["text"] = [*range(1, 21)]
    assert steps == expected
    assert numbers_of(resumed[error]) == [(step, round(1 / step, 4)) for step in steps[error]]
    assert numbers_of(resumed["pair/1"]) == [(step, 2.0 * step) for step in steps["pair/1"]]
    assert numbers_of(resumed[odd]) == [(7, "nan")]


def test_a_used_folder_of_tensorboard_is_a_warning(tmp_path):
    train("tensorboard", tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert "draws the curves of both runs as one" in train("tensorboard", tmp_path)


def test_an_ended_run_of_wandb_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logger = WandBLogger(project="training")
    trainer = make_trainer(batches_of(2), handlers=[SendMetrics(logger)])
    trainer.run(max_epochs=1)
    logger.close()
    with pytest.raises(ValueError, match="the run of wandb has ended: start the tracker again"):
        trainer.run(max_epochs=2)
    assert trainer.state.iteration == 2


def test_the_guide_of_trackers_prints_what_it_shows(tmp_path):
    guide = ROOT / "docs" / "guides" / "log_to_trackers.md"
    page = Page(guide)
    # The page ends where a package is missing.
    assert page.steps[-1].code.startswith("trackio ")
    assert page.differences(page.run(tmp_path)) == []
