"""Ignite's loggers on both engines, with the trackers that they write to, read back from disk."""

import json
import struct

import pytest
import torch
from ignite.contrib.engines import common
from ignite.engine import Events
from ignite.handlers import global_step_from_engine
from ignite.handlers import tensorboard_logger as tensorboard
from ignite.handlers.mlflow_logger import MLflowLogger
from ignite.handlers.tensorboard_logger import TensorboardLogger
from ignite.handlers.wandb_logger import WandBLogger
from ignite.metrics import MeanSquaredError
from ignite.metrics import RunningAverage

from ignite_hooks import MeanLoss
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.as_in_ignite.sides import Side
from tests.as_in_ignite.sides import on_both_sides
from tests.as_in_ignite.sides import outputs
from tests.reference import batches_of

pytestmark = pytest.mark.trackers

STEP = TrainEvents.STEP_COMPLETED
TRAINED, HELD_OUT = batches_of(8)[:4], batches_of(8)[4:]


def with_evaluator(side, **options):
    """Returns a trainer that runs an evaluator after each epoch, and this evaluator."""
    made = side.supervised(**options)
    evaluator = side.evaluator(made.model, {"mse": MeanSquaredError()})
    side.validate(made.engine, evaluator, HELD_OUT)
    return made, evaluator


def smooth_loss(engine):
    # In float64, as Ignite's own trainer has it; from a tensor the average is a float32 tensor.
    RunningAverage(output_transform=float).attach(engine, "smooth")


# How each tracker is opened, and how its scalars are read back: {name: {step: value}}


def read_tensorboard(folder):
    return {
        tag: {each.step: each.value for each in events}
        for tag, events in accumulated(folder, "scalars").items()
    }


def accumulated(folder, kind):
    """Returns the events of one kind in TensorBoard's files, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    read.Reload()
    events = {"scalars": read.Scalars, "histograms": read.Histograms}[kind]
    return {tag: events(tag) for tag in read.Tags()[kind]}


def open_mlflow(folder):
    return MLflowLogger(tracking_uri=folder.as_uri())


def read_mlflow(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(folder.as_uri())
    (run,) = client.search_runs(["0"])
    return {
        key: {each.step: each.value for each in client.get_metric_history(run.info.run_id, key)}
        for key in run.data.metrics
    }


def open_wandb(folder):
    folder.mkdir()
    return WandBLogger(project="tests", mode="offline", dir=folder)


def read_wandb(folder):
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # the process that writes the file may not be done when a run is finished
    (path,) = folder.glob("wandb/offline-run*/*.wandb")
    found = {}
    for data in records_of(path.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            items = {each.key or "/".join(each.nested_key): each for each in record.history.item}
            values = {key: json.loads(each.value_json) for key, each in items.items()}
            for key, value in values.items():
                if not key.startswith("_"):
                    found.setdefault(key, {})[values["_step"]] = value
    return found


def records_of(data, block=32768):
    """Yields the records of a file of W&B, which has LevelDB's format after its own header."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # a header does not fit into the rest of the block
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


TRACKERS = {
    # how to open it, how to read it, and the separator of the parts of a name
    "tensorboard": (TensorboardLogger, read_tensorboard, "/"),
    "mlflow": (open_mlflow, read_mlflow, " "),
    "wandb": (open_wandb, read_wandb, "/"),
}


@pytest.fixture(params=TRACKERS)
def tracker(request, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return TRACKERS[request.param]


# On both sides


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_tracker_gets_what_it_gets_in_ignite(tracker, tmp_path, accumulation):
    make, read, separator = tracker

    def script(side):
        made, evaluator = with_evaluator(side, accumulation=accumulation)
        smooth_loss(made.engine)
        folder = tmp_path / str(side.is_ours)
        with make(folder) as logger:
            logger.attach_output_handler(
                made.engine,
                Events.ITERATION_COMPLETED,
                tag="training",
                metric_names=["smooth"],
                output_transform=lambda loss: {"loss": loss},
            )
            logger.attach_opt_params_handler(
                made.engine, Events.ITERATION_STARTED, optimizer=made.optimizer
            )
            logger.attach_output_handler(
                evaluator,
                Events.COMPLETED,
                tag="validation",
                metric_names="all",
                global_step_transform=global_step_from_engine(
                    made.engine, Events.ITERATION_COMPLETED
                ),
            )
            made.engine.run(TRAINED, max_epochs=2)
        return read(folder)

    found = on_both_sides(script)
    steps = {name: [*values] for name, values in found.items()}
    assert steps == {
        f"training{separator}loss": [*range(1, 9)],
        f"training{separator}smooth": [*range(1, 9)],
        f"lr{separator}group_0": [*range(1, 9)],
        f"validation{separator}mse": [4, 8],
    }


@pytest.mark.parametrize("accumulation", [1, 2])
def test_tensorboards_handlers_write_what_they_write_in_ignite(tmp_path, accumulation):
    def script(side):
        made = side.supervised(accumulation=accumulation)
        folder = tmp_path / str(side.is_ours)
        with TensorboardLogger(folder) as logger:
            for make in (
                tensorboard.WeightsScalarHandler,
                tensorboard.WeightsHistHandler,
                tensorboard.GradsScalarHandler,
                tensorboard.GradsHistHandler,
            ):
                logger.attach(made.engine, make(made.model), Events.ITERATION_COMPLETED)
            rate = tensorboard.OptimizerParamsHandler(made.optimizer, tag="tag")
            logger.attach(made.engine, rate, Events.ITERATION_STARTED)
            made.engine.run(TRAINED)
        histograms = {
            tag: [(each.step, each.histogram_value) for each in events]
            for tag, events in accumulated(folder, "histograms").items()
        }
        return read_tensorboard(folder), histograms

    scalars, histograms = on_both_sides(script)
    names = [f"{layer}/{kind}" for layer in (0, 3) for kind in ("weight", "bias")]
    norms = {f"{kind}_norm/{name}" for kind in ("weights", "grads") for name in names}
    assert scalars.keys() == {"tag/lr/group_0", *norms}
    assert histograms.keys() == {f"{kind}/{n}" for kind in ("weights", "grads") for n in names}
    assert {len(each) for each in (*scalars.values(), *histograms.values())} == {4}


SET_UP = {
    "tensorboard": (common.setup_tb_logging, read_tensorboard, "output_path"),
    "mlflow": (common.setup_mlflow_logging, read_mlflow, "tracking_uri"),
    "wandb": (common.setup_wandb_logging, read_wandb, "dir"),
}


@pytest.mark.parametrize("name", SET_UP)
def test_the_common_set_up_of_trackers_is_that_of_ignite(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")
    set_up, read, argument = SET_UP[name]

    def script(side):
        made, evaluator = with_evaluator(side)
        smooth_loss(made.engine)
        folder = tmp_path / str(side.is_ours)
        options = {argument: folder.as_uri() if argument == "tracking_uri" else folder}
        if name == "wandb":
            folder.mkdir()
            options |= {"project": "tests", "mode": "offline"}
        logger = set_up(
            trainer=made.engine,
            optimizers=made.optimizer,
            evaluators={"validation": evaluator},
            log_every_iters=1,
            trainer_metric_names=["smooth"],
            **options,
        )
        made.engine.run(TRAINED, max_epochs=2)
        logger.close()
        return read(folder)

    assert len(on_both_sides(script)) == 3


# By steps, on the trainer


def test_a_tracker_gets_metrics_rates_and_validations_by_step(tracker, tmp_path):
    make, read, separator = tracker
    made = Side("trainer").supervised(accumulation=2)
    evaluator = Side("trainer").evaluator(made.model, {"mse": MeanSquaredError()})
    Validation(evaluator, HELD_OUT, every_steps=2).attach(made.engine)
    MeanLoss(every_steps=1).attach(made.engine)
    losses, errors = outputs(made.engine), []
    evaluator.add_event_handler(
        Events.COMPLETED, lambda engine: errors.append(engine.state.metrics["mse"])
    )
    with make(tmp_path / "run") as logger:
        logger.attach_output_handler(made.engine, STEP, tag="training", metric_names=["loss"])
        logger.attach_opt_params_handler(made.engine, STEP(every=2), optimizer=made.optimizer)
        logger.attach_output_handler(
            evaluator,
            Events.COMPLETED,
            tag="validation",
            metric_names="all",
            global_step_transform=global_step_from_engine(made.engine, STEP),
        )
        made.engine.run(TRAINED, max_epochs=2)
    means = torch.stack(losses).double().view(4, 2).mean(dim=1)
    found = read(tmp_path / "run")
    assert found == {
        f"training{separator}loss": pytest.approx(dict(enumerate(means.tolist(), 1)), rel=1e-6),
        f"lr{separator}group_0": pytest.approx({2: 0.1, 4: 0.1}),
        f"validation{separator}mse": pytest.approx({2: errors[0], 4: errors[1]}, rel=1e-6),
    }


def test_tensorboard_gets_weights_and_whole_gradients_by_step(tmp_path):
    made = Side("trainer").supervised(accumulation=2)
    weights, gradients = [], []

    @made.engine.on(TrainEvents.OPTIMIZER_STEP_COMPLETED)
    def note_gradient(engine):
        gradients.append(made.model[0].weight.grad.norm().item())

    @made.engine.on(STEP)
    def note_weight(engine):
        weights.append(made.model[0].weight.norm().item())

    with TensorboardLogger(tmp_path) as logger:
        for make, event in (
            (tensorboard.WeightsScalarHandler, STEP),
            (tensorboard.GradsScalarHandler, TrainEvents.OPTIMIZER_STEP_COMPLETED),
        ):
            logger.attach(made.engine, make(made.model, whitelist=["0.weight"]), event)
        made.engine.run(TRAINED)
    assert read_tensorboard(tmp_path) == {
        "weights_norm/0/weight": {1: weights[0], 2: weights[1]},
        "grads_norm/0/weight": {1: gradients[0], 2: gradients[1]},
    }
