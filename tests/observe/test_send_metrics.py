"""Tests of SendMetrics with small trackers: one of Accelerate's interface, one of Ignite's."""

import math

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import ProgressBar
from ignite.handlers.base_logger import BaseLogger
from ignite.handlers.base_logger import BaseOutputHandler

from ignite_hooks import GradientClipping
from ignite_hooks import MeanLoss
from ignite_hooks import OptimizerStep
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import SendMetrics
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from tests.reference import FakeScaler
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import samples


class Record:
    """A run in the store of a tracker."""

    def __init__(self):
        self.points, self.settings, self.starts, self.ends = [], [], 0, 0

    @property
    def curves(self):
        curves = {}
        for step, values in self.points:
            for name, value in values.items():
                curves.setdefault(name, []).append((step, value))
        return curves


class StoredTracker(GeneralTracker):
    """A tracker whose runs are kept in a dict, as those of a server."""

    name = "stored"
    requires_logging_directory = False
    runs = {}  # noqa: RUF012  (a test replaces it)

    def __init__(self, project, run_id=None):
        super().__init__()
        self.run_id = run_id or f"{project}-{len(self.runs)}"

    @property
    def tracker(self):
        return self.runs.setdefault(self.run_id, Record())

    def start(self):
        self.tracker.starts += 1
        if self.run_id.startswith("offline"):
            raise OSError("no network")

    def store_init_configuration(self, values):
        self.tracker.settings.append(values)

    def log(self, values, step=None, **kwargs):
        if values.get("fails", 0) > 0:
            raise OSError("no space left")
        self.tracker.points.append((step, values))

    def finish(self):
        self.tracker.ends += 1


class Numbers(BaseLogger):
    """A logger of Ignite that keeps what it gets."""

    def __init__(self):
        self.points = []

    def _create_output_handler(self, *args, **kwargs):
        return _NumbersHandler(*args, **kwargs)

    def _create_opt_params_handler(self, *args, **kwargs):
        raise NotImplementedError


class _NumbersHandler(BaseOutputHandler):
    def __call__(self, engine, logger, event_name):
        step = self.global_step_transform(engine, event_name)
        values = self._setup_output_metrics_state_attrs(engine, key_tuple=False)
        logger.points.append((step, values))


@pytest.fixture
def runs(monkeypatch):
    """Returns the store of StoredTracker, which Accelerate knows as "stored"."""
    if not hasattr(tracking, "register_tracker_class"):
        pytest.skip("this version of Accelerate has no trackers of users by name")
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "stored", StoredTracker)
    monkeypatch.setattr(StoredTracker, "runs", {})
    return StoredTracker.runs


def stored(accumulation=1):
    return Accelerator(cpu=True, gradient_accumulation_steps=accumulation, log_with="stored")


def watched(data=None, *, send=None, mean_steps=2, handlers=(), accelerator=None, **options):
    """Returns a trainer with MeanLoss and SendMetrics."""
    return make_trainer(
        batches_of(7) if data is None else data,
        accelerator=accelerator or stored(),
        handlers=[
            *handlers,
            MeanLoss(every_steps=mean_steps),
            send or SendMetrics(every_steps=2),
        ],
        **options,
    )


def test_metrics_are_sent_by_optimizer_step(runs):
    losses = {}
    trainer = watched(
        batches_of(12),
        accelerator=stored(accumulation=2),
        validation=Validation(lambda: {"error": 0.5}, every_steps=3),
    )

    @trainer.on(TrainEvents.STEP_COMPLETED(every=2))
    def note(engine):
        losses[engine.state.optimizer_step] = engine.state.metrics["loss"]

    trainer.run(max_epochs=1)
    assert list(losses) == [2, 4, 6]
    (run,) = runs.values()
    assert run.curves == {"loss": [*losses.items()], "val_error": [(3, 0.5), (6, 0.5)]}


def test_steps_that_are_skipped_do_not_count(runs):
    accelerator = stored()
    accelerator.scaler = FakeScaler(2, 3)
    watched(batches_of(6), accelerator=accelerator).run(max_epochs=1)
    assert [step for step, _ in runs["training-0"].curves["loss"]] == [2, 4]


def test_a_validation_at_the_start_is_sent_at_step_0(runs):
    validation = Validation(lambda: {"error": 0.5}, at_start=True, every_epochs=1)
    watched(validation=validation).run(max_epochs=1)
    (run,) = runs.values()
    assert run.curves["val_error"] == [(0, 0.5), (7, 0.5)]
    assert run.starts == 1


def stop_at(step, how):
    def stop(engine):
        if engine.state.optimizer_step == step:
            how(engine)

    return stop


class Crash(Exception):
    pass


def crash(engine):
    raise Crash


def resumed_curves(runs, folder, stop, *, every_steps=2, mean_steps=2):
    """Returns the curves of a run that stops and is resumed by another trainer, and its runs."""

    def build(**options):
        return watched(
            batches_of(7),
            send=SendMetrics(every_steps=every_steps),
            validation=Validation(lambda: {"error": 0.5}, every_steps=7),
            checkpoint=SaveCheckpoint(folder, every_steps=3),
            mean_steps=mean_steps,
            **options,
        )

    first = build()
    if stop is not None:
        first.add_event_handler(TrainEvents.STEP_COMPLETED, stop_at(5, stop))
    try:
        first.run(max_epochs=2)
    except Crash:
        pass
    else:
        if stop is not None:
            assert first.state.optimizer_step == 5
    if stop is not None:
        build(resume_from=folder).run(max_epochs=2)
    return runs


def test_a_resumed_run_continues_the_curves(runs, tmp_path):
    unbroken = dict(resumed_curves(runs, tmp_path / "unbroken", None))
    (expected,) = [run.curves for run in unbroken.values()]
    runs.clear()
    resumed_curves(runs, tmp_path / "stopped", lambda engine: engine.terminate(resumable=True))
    (run,) = runs.values()
    assert run.curves == expected
    assert run.starts == 2
    assert len(run.settings) == 1  # those of the run that began the tracker run


def test_values_that_were_not_sent_at_the_save_are_sent(runs, tmp_path):
    # MeanLoss writes after step 4, SendMetrics sends after step 6, and the save is between.
    stop = lambda engine: engine.terminate(resumable=True)  # noqa: E731
    expected = dict(resumed_curves(runs, tmp_path / "unbroken", None, every_steps=3, mean_steps=4))
    (expected,) = [run.curves for run in expected.values()]
    runs.clear()
    resumed_curves(runs, tmp_path / "stopped", stop, every_steps=3, mean_steps=4)
    assert expected["loss"][0][0] == 6
    (run,) = runs.values()
    assert run.curves == expected


def test_a_checkpoint_is_resumed_twice_in_one_process(runs, tmp_path):
    accelerator = stored()
    watched(accelerator=accelerator, checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=1)
    trainer = watched(accelerator=accelerator)
    for times in (1, 2):
        ResumeCheckpoint(tmp_path).attach(trainer)
        trainer.run(max_epochs=2)
        assert [*runs] == ["training-0"]
        assert runs["training-0"].starts == 1 + times
        assert [s for s, _ in runs["training-0"].curves["loss"]] == [2, 4, 6, 7] + times * [
            *(8, 10, 12, 14)
        ]


def test_a_report_that_waits_is_dropped_by_a_resume(runs, tmp_path):
    accelerator = stored()
    watched(accelerator=accelerator, checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=1)
    trainer = watched(accelerator=accelerator, send=SendMetrics(every_steps=7))
    stop = stop_at(9, lambda engine: engine.terminate(resumable=True))
    ResumeCheckpoint(tmp_path).attach(trainer)
    with trainer.add_event_handler(TrainEvents.STEP_COMPLETED, stop):
        trainer.run(max_epochs=2)
    ResumeCheckpoint(tmp_path).attach(trainer)
    trainer.run(max_epochs=2)
    assert [s for s, _ in runs["training-0"].curves["loss"]] == [2, 4, 6, 7, 14]


def test_a_resume_into_the_same_run_of_the_user_does_not_warn(runs, tmp_path):
    accelerator = stored()
    accelerator.init_trackers("mine")
    watched(accelerator=accelerator, checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=1)
    watched(accelerator=accelerator, resume_from=tmp_path).run(max_epochs=2)
    (run,) = runs.values()
    assert [s for s, _ in run.curves["loss"]] == [2, 4, 6, 7, 8, 10, 12, 14]
    assert (run.starts, run.ends, len(run.settings)) == (1, 0, 1)


def test_another_project_begins_another_tracker_run(runs, tmp_path):
    for project, options in (("one", {}), ("two", {"resume_from": tmp_path})):
        watched(
            send=SendMetrics(every_steps=2, project=project),
            checkpoint=SaveCheckpoint(tmp_path),
            **options,
        ).run(max_epochs=2 if options else 1)
    assert [*runs] == ["one-0", "two-1"]
    assert [step for step, _ in runs["two-1"].curves["loss"]] == [8, 10, 12, 14]
    assert len(runs["two-1"].settings) == 1


def test_the_last_report_of_a_stopped_run_waits_for_the_next(runs):
    trainer = watched(batches_of(7))
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, stop_at(3, lambda engine: engine.terminate(resumable=True))
    )
    trainer.run(max_epochs=1)
    (run,) = runs.values()
    assert [step for step, _ in run.curves["loss"]] == [2]
    trainer.run()
    assert [step for step, _ in run.curves["loss"]] == [2, 3, 4, 6, 7]
    assert run.starts == 1


@pytest.mark.parametrize("end", ["limit", "terminate"])
def test_the_last_report_of_a_finished_run_is_sent(runs, end):
    trainer = watched(batches_of(7))
    if end == "terminate":
        trainer.add_event_handler(TrainEvents.STEP_COMPLETED, stop_at(3, Engine.terminate))
    trainer.run(**{"max_steps": 3} if end == "limit" else {"max_epochs": 1})
    assert [step for step, _ in runs["training-0"].curves["loss"]] == [2, 3]


def test_a_failed_run_goes_on_in_the_same_process(runs):
    trainer = watched(batches_of(7))
    crashing = trainer.add_event_handler(TrainEvents.STEP_COMPLETED, stop_at(4, crash))
    with crashing, pytest.raises(Crash):
        trainer.run(max_epochs=1)
    trainer.run()
    (run,) = runs.values()
    assert [step for step, _ in run.curves["loss"]] == [2, 4, 6, 7]
    assert run.starts == 1


def test_each_new_run_gets_a_tracker_run(runs):
    accelerator = stored()
    first = watched(accelerator=accelerator)
    first.run(max_epochs=1)
    assert runs["training-0"].ends == 0  # further values can be logged
    first.run(max_epochs=1)
    watched(accelerator=accelerator).run(max_epochs=1)  # the next fold
    assert [*runs] == ["training-0", "training-1", "training-2"]
    assert [(run.starts, run.ends) for run in runs.values()] == [(1, 1), (1, 1), (1, 0)]
    assert all([s for s, _ in run.curves["loss"]] == [2, 4, 6, 7] for run in runs.values())
    accelerator.end_training()
    assert runs["training-2"].ends == 1


def test_a_run_that_continues_stays_in_its_tracker_run(runs):
    trainer = watched()
    trainer.run(max_epochs=1)
    trainer.run(max_epochs=2)
    (run,) = runs.values()
    assert [s for s, _ in run.curves["loss"]] == [2, 4, 6, 7, 8, 10, 12, 14]


def test_two_trainers_take_turns_with_one_accelerator(runs):
    accelerator = stored()
    trainers = [watched(accelerator=accelerator) for _ in range(2)]
    stop = stop_at(3, lambda engine: engine.terminate(resumable=True))
    with trainers[0].add_event_handler(TrainEvents.STEP_COMPLETED, stop):
        trainers[0].run(max_epochs=1)
    trainers[1].run(max_epochs=1)
    trainers[0].run(max_epochs=1)
    trainers[1].run(max_epochs=2)
    curves = [[step for step, _ in run.curves["loss"]] for run in runs.values()]
    assert curves == [[2, 3, 4, 6, 7], [2, 4, 6, 7, 8, 10, 12, 14]]
    assert [(run.starts, run.ends, len(run.settings)) for run in runs.values()] == [
        (2, 2, 1),
        (2, 1, 1),
    ]


def test_trackers_of_the_user_are_used(runs):
    accelerator = stored()
    accelerator.init_trackers("mine", config={"a": 1})
    trainer = watched(accelerator=accelerator)
    trainer.run(max_epochs=1)
    assert [*runs] == ["mine-0"]
    assert runs["mine-0"].starts == 1
    assert len(runs["mine-0"].settings) == 2
    with pytest.warns(UserWarning, match="stored: a new run .* go back to step 0; let SendMetrics"):
        trainer.run(max_epochs=1)
    assert runs["mine-0"].ends == 0


def test_a_resume_into_another_tracker_run_warns(runs, tmp_path):
    watched(checkpoint=SaveCheckpoint(tmp_path)).run(max_epochs=1)
    accelerator = stored()
    accelerator.init_trackers("training")
    trainer = watched(accelerator=accelerator, resume_from=tmp_path)
    with pytest.warns(UserWarning, match="tracker run training-0, and .* now sent to training-1"):
        trainer.run(max_epochs=2)
    assert [s for s, _ in runs["training-1"].curves["loss"]] == [8, 10, 12, 14]


def test_arguments_of_the_user_choose_the_tracker_run(runs):
    send = SendMetrics(project="a", init_kwargs={"stored": {"run_id": "chosen"}})
    watched(send=send).run(max_epochs=1)
    assert [*runs] == ["chosen"]


def failing_metric(values):
    def write(engine):
        # A new object, because the same object counts as the same value.
        engine.state.metrics["fails"] = values[engine.state.optimizer_step - 1] * 1.0

    return write


def test_a_failure_to_send_is_a_warning_and_training_goes_on(runs):
    trainer = watched(batches_of(6), send=SendMetrics(every_steps=1))
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, failing_metric([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    )
    with pytest.warns(
        UserWarning, match="metrics of step 2 .*OSError: no space left.* gap"
    ) as all_:
        trainer.run(max_epochs=1)
    assert len(all_) == 1
    assert trainer.state.optimizer_step == 6
    assert [step for step, _ in runs["training-0"].curves["fails"]] == [1, 3, 5, 6]


def test_a_tracker_that_cannot_start_fails_before_the_first_batch(runs):
    accelerator = stored()
    trainer = watched(accelerator=accelerator, send=SendMetrics(project="offline"))
    with pytest.raises(OSError, match="no network"):
        trainer.run(max_epochs=1)
    assert trainer.state.iteration == 0
    assert accelerator.trackers == []
    assert runs["offline-0"].ends == 1
    watched(accelerator=accelerator).run(max_epochs=1)
    assert runs["training-1"].starts == 1


def test_settings_that_cannot_be_stored_are_a_warning(runs, monkeypatch):
    def store(self, values):
        raise OSError("no space left")

    monkeypatch.setattr(StoredTracker, "store_init_configuration", store)
    with pytest.warns(UserWarning, match="stored: the settings .* no space left.* missing"):
        watched().run(max_epochs=1)
    assert runs["training-0"].points


def test_ctrl_c_while_a_value_is_sent_loses_no_value(runs, monkeypatch):
    trainer = watched(batches_of(6))
    log = StoredTracker.log

    def log_interrupted(self, values, step=None, **kwargs):
        if step == 4:
            monkeypatch.setattr(StoredTracker, "log", log)
            raise KeyboardInterrupt
        log(self, values, step, **kwargs)

    monkeypatch.setattr(StoredTracker, "log", log_interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(max_epochs=1)
    trainer.run()
    assert [step for step, _ in runs["training-0"].curves["loss"]] == [2, 4, 6]


VALUES = [
    (torch.tensor(2.0), {"value": 2.0}),
    (torch.tensor([1, 2]), {"value/0": 1, "value/1": 2}),
    ([[1.0], {"a": 2.0}], {"value/0/0": 1.0, "value/1/a": 2.0}),
    ({"a": 1, 2: True}, {"value/a": 1, "value/2": True}),
    ("up", {"value": "up"}),
    (object, {"value": "<class 'object'>"}),
    (None, {}),
    ([], {}),
    (math.inf, {"value": math.inf}),
    (10**400, {"value": f"1{'0' * 37}...{'0' * 39}"}),
]


@pytest.mark.parametrize(("value", "sent"), VALUES, ids=str)
def test_values_are_sent_as_numbers_and_texts(runs, value, sent):
    trainer = make_trainer(batches_of(2), accelerator=stored(), handlers=[SendMetrics()])

    @trainer.on(Events.EPOCH_STARTED)
    def write(engine):
        engine.state.metrics["value"] = value

    trainer.run(max_epochs=1)
    assert [values for _, values in runs["training-0"].points] == ([sent] if sent else [])


def test_a_tracker_of_numbers_gets_no_texts():
    logger = Numbers()
    trainer = make_trainer(batches_of(3), handlers=[SendMetrics(logger, every_steps=1)])

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def write(engine):
        step = float(engine.state.iteration)
        engine.state.metrics |= {"text": f"{step}", "number": math.nan * step}

    with pytest.warns(UserWarning, match="Numbers takes only numbers: the metric 'text'") as caught:
        trainer.run(max_epochs=1)
    assert len(caught) == 1
    assert [(step, [*values]) for step, values in logger.points] == [
        (step, ["metrics/number"]) for step in (1, 2, 3)
    ]


def test_the_settings_of_the_run_are_hyperparameters(runs):
    trainer = make_trainer(
        torch.utils.data.DataLoader(samples(12), 2),
        accelerator=stored(accumulation=3),
        handlers=[
            GradientClipping(max_norm=1.5),
            MeanLoss(every_steps=4, keys=()),
            MeanLoss(prefix="train_"),
            SendMetrics(config={"dataset": {"name": "digits"}, "sizes": [3, 5], "seed": None}),
        ],
        validation=Validation(lambda model: {}, every_epochs=1),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 7),
    )
    trainer.add_event_handler(Events.STARTED, lambda e: e.optimizer.param_groups[0].update(lr=0.5))
    trainer.run(max_epochs=2)
    (settings,) = runs["training-0"].settings
    assert (
        settings.items()
        >= {
            "accumulation": 3,
            "batch_size": 2,
            "dataset/name": "digits",
            "frozen_parameters": 0,
            "handlers/GradientClipping/max_norm": 1.5,
            "handlers/MeanLoss/every_steps": 4,
            "handlers/MeanLoss_2/prefix": "train_",
            "max_epochs": 2,
            "mixed_precision": "no",
            "model/class": "Sequential",
            "model/parameters": 58,
            "optimizer/class": "SGD",
            "optimizer/momentum": 0.9,
            "processes": 1,
            "scheduler/class": "StepLR",
            "scheduler/step_size": 7,
            "sizes": "[3, 5]",
        }.items()
    )
    # Functions and objects are left out.
    assert not any("Validation/evaluate" in name for name in settings)
    assert "seed" not in settings
    assert "max_steps" not in settings
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())


def test_config_replaces_a_setting_of_the_same_name(runs):
    watched(send=SendMetrics(config={"optimizer": {"lr": "tuned"}})).run(max_epochs=1)
    (settings,) = runs["training-0"].settings
    assert settings["optimizer/lr"] == "tuned"
    assert settings["optimizer/momentum"] == 0.9


def two_groups():
    model = make_model()
    groups = [{"params": list(layer.parameters())} for layer in (model[0], model[3])]
    groups[1]["lr"] = 0.2
    return {"model": model, "optimizer": torch.optim.SGD(groups, lr=0.1)}


def test_each_parameter_group_has_its_settings(runs):
    watched(**two_groups()).run(max_epochs=1)
    (settings,) = runs["training-0"].settings
    assert (settings["optimizer/groups/0/lr"], settings["optimizer/groups/1/lr"]) == (0.1, 0.2)


def test_a_plain_engine_sends_to_a_logger_by_iteration():
    logger = Numbers()
    engine = Engine(lambda engine, batch: batch)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: e.state.metrics.update(twice=2.0 * e.state.output)
    )
    with SendMetrics(logger, every_steps=2).attach(engine):
        engine.run([1, 2, 3, 4, 5], max_epochs=1)
        assert logger.points == [
            (2, {"metrics/twice": 4.0}),
            (4, {"metrics/twice": 8.0}),
            (5, {"metrics/twice": 10.0}),
        ]
        with pytest.warns(UserWarning, match="Numbers: a new run sends its metrics"):
            engine.run([1], max_epochs=1)
    engine.run([1], max_epochs=1)
    assert len(logger.points) == 4


def test_a_plain_engine_with_an_optimizer_step_has_the_trackers_of_its_accelerator(runs):
    accelerator, model = stored(accumulation=2), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = OptimizerStep(accelerator, optimizer)

    def process(engine, batch):
        loss = F.mse_loss(model(batch[0]), batch[1])
        step.backward(loss)
        return loss.item()

    engine = Engine(process)
    step.attach(engine)
    MeanLoss(every_steps=1).attach(engine)
    SendMetrics(every_steps=1).attach(engine)
    engine.run(batches_of(4), max_epochs=1)
    assert [step for step, _ in runs["training-0"].curves["loss"]] == [1, 2]


def test_removal_in_a_run_ends_the_sending(runs):
    trainer = make_trainer(batches_of(6), accelerator=stored(), handlers=[MeanLoss(every_steps=1)])
    attachment = SendMetrics(every_steps=1).attach(trainer)
    trainer.add_event_handler(
        TrainEvents.STEP_COMPLETED, stop_at(3, lambda engine: attachment.remove())
    )
    trainer.run(max_epochs=1)
    assert [step for step, _ in runs["training-0"].curves["loss"]] == [1, 2]
    send = attachment.handler
    with send.attach(trainer):
        trainer.run(max_epochs=1)
    assert [step for step, _ in runs["training-1"].curves["loss"]] == [1, 2, 3, 4, 5, 6]


def test_two_running_engines_must_not_share_an_accelerator(runs):
    accelerator = stored()
    inner = make_trainer(batches_of(2), accelerator=accelerator, handlers=[SendMetrics()])
    outer = watched(accelerator=accelerator)
    outer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: inner.run(max_epochs=1))
    with pytest.raises(ValueError, match="give one of them another Accelerator"):
        outer.run(max_epochs=1)


def started():
    """Returns an accelerator whose trackers a user has started."""
    accelerator = stored()
    accelerator.init_trackers("mine")
    return accelerator


def unlogged():
    return make_trainer(batches_of(1))


BAD = [
    (lambda: SendMetrics("wandb"), TypeError, "`to` must be an Accelerator, .* got str"),
    (lambda: SendMetrics(ProgressBar()), TypeError, "`to` must be .* got ProgressBar"),
    (lambda: SendMetrics(project=""), ValueError, "`project` must be a string that is not empty"),
    (lambda: SendMetrics(every_steps=0), ValueError, "`every_steps` must be an integer >= 1"),
    (lambda: SendMetrics(config=[1]), ValueError, "`config`"),
    (lambda: SendMetrics(init_kwargs={"wandb": 1}), ValueError, "`init_kwargs"),
    (lambda: SendMetrics().attach(unlogged()), ValueError, "make it with `log_with`"),
    (
        lambda: SendMetrics(Accelerator(cpu=True)).attach(unlogged()),
        ValueError,
        "make it with `log_with`",
    ),
    (
        lambda: SendMetrics(init_kwargs={"store": {}}).attach(make_trainer(accelerator=stored())),
        ValueError,
        "`init_kwargs` must name trackers .* got arguments for 'store': did you mean `stored`",
    ),
    (
        lambda: SendMetrics(started(), init_kwargs={"stored": {}}).attach(unlogged()),
        ValueError,
        "`init_kwargs` must name trackers that SendMetrics starts, .* there are none",
    ),
    (
        lambda: SendMetrics(Numbers(), init_kwargs={"wandb": {}}).attach(unlogged()),
        ValueError,
        "`init_kwargs` must name trackers .* 'wandb': there are none",
    ),
    (lambda: SendMetrics().attach(Engine(lambda e, b: None)), ValueError, "`to` must be given"),
    (
        lambda: SendMetrics(Numbers()).attach(unlogged(), Events.STARTED),
        ValueError,
        "`event` must be left out",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_wrong_arguments_are_errors(runs, make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_same_values_are_not_sent_twice():
    logger, trainer = Numbers(), unlogged()
    send = SendMetrics(logger)
    send.attach(trainer)
    with pytest.raises(ValueError, match="would get each value twice: remove"):
        SendMetrics(logger).attach(trainer)
    with pytest.raises(ValueError, match="make another SendMetrics"):
        send.attach(unlogged())
    SendMetrics(Numbers()).attach(trainer)
