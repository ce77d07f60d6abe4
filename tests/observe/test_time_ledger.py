"""Tests of TimeLedger by a clock that moves only when the test spends time."""

import gc
import weakref
from collections import defaultdict
from contextlib import contextmanager
from contextlib import nullcontext
from threading import Event
from threading import Thread
from threading import current_thread

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers import HandlersTimeProfiler
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import ClearCache
from ignite_hooks import GarbageCollector
from ignite_hooks import OptimizerStep
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TimeLedger
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.handlers import Handler
from tests.reference import FakeScaler
from tests.reference import Notes
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import samples


class Purse:
    """A clock, and the seconds that the test has spent for each part."""

    def __init__(self):
        self.now = 0.0
        self.spent = defaultdict(float)

    def __call__(self):
        return self.now

    def spend(self, part, seconds):
        self.now += seconds
        self.spent[part] += seconds

    def handler(self, name, seconds=1.0):
        """Returns a new handler that spends its time under its own name."""

        def handler(engine):
            self.spend(f"handlers/{name}", seconds)

        handler.__qualname__ = name
        return handler


class SlowSamples(Dataset):
    def __init__(self, purse, count):
        self.purse, self.samples = purse, samples(count)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.purse.spend("data", 2.0)
        return self.samples[index]


def loader_of(purse, count):
    return DataLoader(SlowSamples(purse, count), batch_size=1)


class SlowState:
    """An object whose state takes time to save."""

    def __init__(self, purse):
        self.purse = purse

    def state_dict(self):
        self.purse.spend("checkpoint", 64.0)
        return {}

    def load_state_dict(self, state_dict):
        """Loads nothing."""


def timed(purse, batches=6, **options):
    """Returns a trainer whose parts of an iteration take different times."""
    model = make_model(dropout=0.0)

    def process(model, batch):
        purse.spend("forward", 4.0)
        outputs = model(batch[0])
        outputs.register_hook(lambda gradient: purse.spend("backward", 8.0))
        return outputs, F.mse_loss(outputs, batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *args: purse.spend("optimizer", 16.0))
    data = DataLoader(SlowSamples(purse, 2 * batches), batch_size=2)
    return make_trainer(
        data, model=model, optimizer=optimizer, loss_fn=None, batch_processor=process, **options
    )


def measured(ledger, engine):
    """Returns the seconds of the parts that took time."""
    return {part: seconds for part, seconds in ledger.seconds(engine).items() if seconds}


def shares(engine):
    return {name: share for name, share in engine.state.metrics.items() if name.startswith("time/")}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_part_has_its_own_time(accumulation, tmp_path):
    purse = Purse()
    save = SaveCheckpoint(tmp_path, every_steps=2, also={"slow": SlowState(purse)})
    trainer = timed(purse, accumulation=accumulation, checkpoint=save)

    def validate(model):
        purse.spend("validation", 32.0)
        return {"score": 1.0}

    Validation(validate, every_steps=3, every_epochs=1, at_start=True).attach(trainer)
    for event in (*TrainEvents, *Events):
        if event not in (TrainEvents.VALIDATION_STARTED, Events.EXCEPTION_RAISED):
            trainer.add_event_handler(event, purse.handler(f"at_{event.name}"))
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    trainer.run(max_epochs=2)
    assert measured(ledger, trainer) == purse.spent
    assert sum(ledger.seconds(trainer).values()) == purse.now
    # The last report comes before the other handlers of COMPLETED.
    assert shares(trainer)["time/forward"] == purse.spent["forward"] / (purse.now - 1.0)
    assert sum(shares(trainer).values()) == pytest.approx(1.0)


def test_time_of_the_parts_that_a_handler_runs_is_not_its_own():
    purse = Purse()
    trainer = timed(purse)

    def validate(model):
        purse.spend("validation", 32.0)

    class CollectsAtEnd:
        def __del__(self):
            purse.spend("gc", 5.0)

    validation = Validation(validate)

    @trainer.on(Events.ITERATION_COMPLETED(every=2))
    def check(engine):
        purse.spend("handlers/check", 1.0)
        validation(engine)
        purse.spend("handlers/check", 1.0)
        cycle = CollectsAtEnd()
        cycle.itself = cycle
        del cycle
        gc.collect()
        purse.spend("handlers/check", 1.0)

    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    trainer.run()
    assert purse.spent["gc"] == 15.0
    assert measured(ledger, trainer) == purse.spent


def test_handlers_by_step_are_named():
    purse = Purse()

    class Slow(ClearCache):
        def __call__(self, engine):
            purse.spend("handlers/Slow", 1.0)

    for engine in (timed(purse), plain(purse)):
        purse.now, purse.spent = 0.0, defaultdict(float)
        ledger = TimeLedger(clock=purse)
        ledger.attach(engine)
        Slow(every_steps=2).attach(engine)
        engine.run() if hasattr(engine, "model") else engine.run(loader_of(purse, 6))
        assert measured(ledger, engine) == purse.spent


def plain(purse):
    return Engine(lambda engine, batch: purse.spend("process", 4.0))


@pytest.mark.parametrize("is_trainer", [True, False])
def test_handlers_that_come_and_go_in_a_run_are_seen(is_trainer):
    purse = Purse()
    engine = timed(purse) if is_trainer else plain(purse)
    early, late, kept = (purse.handler(name) for name in ("early", "late", "kept"))
    engine.add_event_handler(Events.ITERATION_STARTED, kept)
    ledger = TimeLedger(clock=purse)
    attachment = ledger.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), early)

    @engine.on(Events.ITERATION_STARTED(once=4))
    def change(engine):
        assert engine.has_event_handler(early, Events.ITERATION_COMPLETED)
        engine.remove_event_handler(early, Events.ITERATION_COMPLETED)
        engine.add_event_handler(Events.ITERATION_COMPLETED, late)

    engine.run() if is_trainer else engine.run(loader_of(purse, 6))
    assert purse.spent["handlers/early"] == 1.0
    assert purse.spent["handlers/late"] == 3.0
    assert measured(ledger, engine) == purse.spent
    attachment.remove()
    assert engine.has_event_handler(kept, Events.ITERATION_STARTED)
    engine.remove_event_handler(kept, Events.ITERATION_STARTED)


@pytest.mark.parametrize("is_trainer", [True, False])
def test_handler_that_is_added_to_its_own_event_is_seen(is_trainer):
    purse = Purse()
    engine = timed(purse) if is_trainer else plain(purse)
    ledger = TimeLedger(clock=purse)
    ledger.attach(engine)
    late = purse.handler("late")
    engine.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda engine: engine.add_event_handler(Events.EPOCH_COMPLETED, late),
    )
    engine.run() if is_trainer else engine.run(loader_of(purse, 6))
    assert purse.spent["handlers/late"] == 1.0
    assert measured(ledger, engine) == purse.spent


def test_collection_in_another_thread_is_charged_to_what_this_thread_does():
    purse, trainer = Purse(), make_trainer(batches_of(2))

    class CollectsAtEnd:
        def __del__(self):
            purse.spend("handlers/wait", 5.0)

    @trainer.on(Events.EPOCH_COMPLETED)
    def wait(engine):
        cycle = CollectsAtEnd()
        cycle.itself = cycle
        del cycle
        thread = Thread(target=gc.collect)
        thread.start()
        thread.join()

    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    trainer.run()
    assert measured(ledger, trainer) == {"handlers/wait": 5.0}


def test_reading_in_another_thread_moves_no_time():
    purse, has_begun, may_end = Purse(), Event(), Event()

    def clock():
        if current_thread() is reader:
            has_begun.set()
            may_end.wait()
        return purse()

    trainer, ledger = timed(purse), TimeLedger(clock=clock)
    ledger.attach(trainer)
    reader = Thread(target=lambda: ledger.table(trainer))

    @trainer.on(Events.ITERATION_STARTED(once=2))
    def read(engine):
        reader.start()
        has_begun.wait()

    def end_reading(*args):
        if reader.is_alive():
            may_end.set()
            reader.join()
        purse.spend("forward", 4.0)

    trainer.model.register_forward_pre_hook(end_reading)
    trainer.run()
    assert measured(ledger, trainer) == purse.spent


class SlowAround(Handler):
    """Takes time when a run is entered, and when it is left."""

    def __init__(self, purse):
        self.purse = purse

    def attach_to(self, attachment):
        @contextmanager
        def around(engine):
            self.purse.spend("other", 3.0)
            yield
            self.purse.spend("other", 5.0)

        attachment.during_run(around)


@pytest.mark.parametrize("is_trainer", [True, False])
def test_scopes_of_earlier_handlers_count(is_trainer):
    purse = Purse()
    engine = timed(purse) if is_trainer else plain(purse)
    SlowAround(purse).attach(engine)
    ledger = TimeLedger(clock=purse)
    ledger.attach(engine)
    engine.run() if is_trainer else engine.run(loader_of(purse, 6))
    assert purse.spent["other"] == 8.0
    assert measured(ledger, engine) == purse.spent


@pytest.mark.parametrize("end", ["completes", "fails", "is terminated"])
def test_wait_for_the_background_writer_is_part_of_checkpoint(tmp_path, monkeypatch, end):
    purse, join = Purse(), Thread.join

    def slow_join(thread, timeout=None):
        if thread.name == "ignite_hooks.checkpoint":
            purse.spend("checkpoint", 64.0)
        join(thread, timeout)

    save = SaveCheckpoint(tmp_path, every_steps=1, at_end=False, background=True)
    trainer = timed(purse, checkpoint=save)
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    monkeypatch.setattr(Thread, "join", slow_join)

    @trainer.on(Events.ITERATION_STARTED(once=3))
    def end_run(engine):
        if end == "is terminated":
            engine.terminate()
        elif end == "fails":
            raise OSError("once")

    with pytest.raises(OSError, match="once") if end == "fails" else nullcontext():
        trainer.run()
    assert purse.spent["checkpoint"] >= 64.0
    assert measured(ledger, trainer) == purse.spent


@pytest.mark.parametrize("is_trainer", [True, False])
def test_removed_ledger_counts_no_more(is_trainer):
    purse = Purse()
    engine = timed(purse) if is_trainer else plain(purse)
    ledger, spent = TimeLedger(clock=purse), Notes()
    attachment = ledger.attach(engine)

    @engine.on(Events.ITERATION_STARTED(once=3))
    def stop_measuring(engine):
        purse.spend("handlers/stop_measuring", 1.0)
        attachment.remove()
        spent.append(dict(purse.spent))
        purse.spend("handlers/stop_measuring", 1.0)

    engine.run() if is_trainer else engine.run(loader_of(purse, 6))
    assert measured(ledger, engine) == spent[0]
    assert "stop_measuring" in ledger.table(engine)


def test_failed_and_continued_run_adds_up():
    purse = Purse()
    trainer = timed(purse)
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED(once=3))
    def fail(engine):
        raise OSError("once")

    with pytest.raises(OSError, match="once"):
        trainer.run()
    assert measured(ledger, trainer) == purse.spent
    purse.now += 1000.0
    trainer.run()
    assert measured(ledger, trainer) == purse.spent


@pytest.mark.parametrize("event", [Events.GET_BATCH_STARTED, Events.ITERATION_COMPLETED])
def test_time_within_an_interruption_does_not_count(event):
    purse = Purse()
    trainer = timed(purse)
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    trainer.add_event_handler(event(once=3), lambda engine: engine.interrupt())
    trainer.run(max_epochs=2)
    purse.now += 1000.0
    trainer.run()
    assert measured(ledger, trainer) == purse.spent


@pytest.mark.parametrize("event", [Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED])
def test_terminated_run_charges_its_end_to_the_rest(event):
    purse = Purse()
    trainer = timed(purse)
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    trainer.add_event_handler(event(once=3), lambda engine: engine.terminate())

    def take_time(engine):
        purse.spend("other", 7.0)
        yield
        purse.spend("other", 7.0)

    trainer.hooks.register("on_loop", take_time)
    trainer.run()
    assert measured(ledger, trainer) == purse.spent


def test_new_run_starts_from_zero():
    purse = Purse()
    trainer = timed(purse)
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    first = trainer.add_event_handler(Events.EPOCH_COMPLETED, purse.handler("first"))
    trainer.run(max_epochs=1)
    first.remove()
    trainer.add_event_handler(Events.STARTED, lambda engine: found.append(shares(engine)))
    purse.now, purse.spent, found = 0.0, defaultdict(float), Notes()
    trainer.run(max_epochs=1)
    assert measured(ledger, trainer) == purse.spent
    assert found == [{}]


def test_handlers_of_before_a_resume_have_no_share(tmp_path):
    save, ledger = SaveCheckpoint(tmp_path, every_epochs=1), TimeLedger()
    trainer = make_trainer(batches_of(4), checkpoint=save, handlers=[ledger])

    @trainer.on(Events.ITERATION_STARTED)
    def first(engine):
        """Takes the time of a call."""

    trainer.run(max_epochs=1)
    assert "time/handlers/first" in shares(trainer)
    resumed = make_trainer(batches_of(4), resume_from=tmp_path, handlers=[TimeLedger()])
    resumed.run(max_epochs=2)
    assert "time/handlers/first" not in shares(resumed)
    assert sum(shares(resumed).values()) == pytest.approx(1.0)


def test_ledger_of_a_subclass_measures_the_same():
    class MyLedger(TimeLedger):
        pass

    purse = Purse()
    trainer = timed(purse)
    ledger = MyLedger(clock=purse)
    ledger.attach(trainer)

    def take_time(engine):
        yield
        purse.spend("other", 7.0)

    trainer.hooks.register("on_step", take_time)
    trainer.run()
    assert measured(ledger, trainer) == purse.spent


def test_skipped_steps_count():
    purse, accelerator = Purse(), Accelerator(cpu=True)
    accelerator.scaler = FakeScaler(2, 6)
    trainer = timed(purse, accelerator=accelerator)
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    trainer.run(max_epochs=2)
    assert measured(ledger, trainer) == purse.spent


def test_report_comes_every_so_many_steps_and_before_other_handlers():
    purse, seen = Purse(), Notes()
    trainer = timed(purse)

    @trainer.on(TrainEvents.STEP_COMPLETED)
    def note(engine):
        if found := shares(engine):
            seen.append((engine.state.optimizer_step, found))
            engine.state.metrics.clear()

    TimeLedger(every_steps=2, clock=purse).attach(trainer)
    trainer.run()
    assert [step for step, _ in seen] == [2, 4, 6]
    assert all(sum(each.values()) == pytest.approx(1.0) for _, each in seen)
    assert seen[0][1]["time/optimizer"] == 16.0 / (4.0 + 4.0 + 8.0 + 16.0)


def test_plain_engine_with_steps_has_an_optimizer_part():
    purse, accelerator = Purse(), Accelerator(cpu=True)
    model = accelerator.prepare(make_model(0.0))

    def train(engine, batch):
        purse.spend("process", 4.0)
        accelerator.backward(F.mse_loss(model(batch[0]), batch[1]))

    engine, optimizer = Engine(train), torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *args: purse.spend("optimizer", 16.0))
    OptimizerStep(accelerator, optimizer).attach(engine)
    engine.add_event_handler(TrainEvents.STEP_COMPLETED, purse.handler("after_step"))
    ledger = TimeLedger(every_steps=2, clock=purse)
    ledger.attach(engine)
    engine.run(batches_of(4))
    assert measured(ledger, engine) == purse.spent
    assert sum(shares(engine).values()) == pytest.approx(1.0)


def test_one_ledger_measures_several_engines():
    purse = Purse()
    ledger, engines = TimeLedger(clock=purse), [plain(purse), plain(purse)]
    for engine in engines:
        ledger.attach(engine)
    engines[0].run([1, 2, 3])
    engines[1].run([1])
    assert [measured(ledger, engine) for engine in engines] == [{"process": 12.0}, {"process": 4.0}]


@pytest.mark.parametrize("make", [make_trainer, lambda: Engine(lambda engine, batch: None)])
def test_kept_attachment_does_not_keep_the_engine(make):
    ledger, engine = TimeLedger(), make()
    attachment, freed = ledger.attach(engine), weakref.ref(engine)
    del engine
    gc.collect()
    assert freed() is None
    attachment.remove()


def test_evaluator_is_measured_like_any_engine():
    purse, model = Purse(), make_model(0.0)
    evaluator = create_supervised_evaluator(model, accelerator=Accelerator(cpu=True))
    model.register_forward_hook(lambda *args: purse.spend("process", 4.0))
    ledger = TimeLedger(clock=purse)
    ledger.attach(evaluator)
    evaluator.run(DataLoader(SlowSamples(purse, 4), batch_size=2))
    assert measured(ledger, evaluator) == purse.spent


def test_profiler_of_ignite_works_beside_the_ledger():
    purse = Purse()
    trainer = timed(purse)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, purse.handler("slow"))
    profiler, ledger = HandlersTimeProfiler(), TimeLedger(clock=purse)
    profiler.attach(trainer)
    ledger.attach(trainer)
    trainer.run()
    assert measured(ledger, trainer) == purse.spent
    assert ["slow", "EPOCH_COMPLETED"] in [row[:2] for row in profiler.get_results()]


# -- the table and the advice --------------------------------------------------------------------


def test_table_lists_the_parts_and_what_to_do():
    purse = Purse()
    engine = plain(purse)
    engine.add_event_handler(Events.EPOCH_COMPLETED, purse.handler("save_images", 12.0))
    ledger = TimeLedger(clock=purse)
    ledger.attach(engine)
    engine.run([1, 2])
    assert ledger.table(engine).splitlines() == [
        "handlers/save_images      12.000 s   60.0%",
        "process                    8.000 s   40.0%",
        "data                       0.000 s    0.0%",
        "other                      0.000 s    0.0%",
        "validation                 0.000 s    0.0%",
        "checkpoint                 0.000 s    0.0%",
        "gc                         0.000 s    0.0%",
        "------------------------------------------",
        "total                     20.000 s  100.0%",
        "save_images: 60% of the time. Call this handler less often, with an event such as "
        "STEP_COMPLETED(every=10).",
    ]


def test_table_before_the_first_run_is_empty():
    engine, ledger = Engine(lambda engine, batch: None), TimeLedger()
    ledger.attach(engine)
    assert ledger.table(engine).endswith(" 0.000 s    0.0%")
    assert ledger.advice(engine) is None


def test_time_of_a_background_save_is_beside_the_run(tmp_path):
    save = SaveCheckpoint(tmp_path, every_steps=2, background=True)
    trainer = make_trainer(batches_of(4), checkpoint=save)
    ledger = TimeLedger()
    ledger.attach(trainer)
    trainer.run()
    assert "beside the run, in the background: checkpoint 0." in ledger.table(trainer)
    assert sum(shares(trainer).values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"num_workers": 0}, "data: 67% of the time. `num_workers` of the DataLoader is 0"),
        ({"num_workers": 1}, "`persistent_workers` of the DataLoader is False"),
        ({"num_workers": 1, "persistent_workers": True}, "`num_workers` is 1: set it higher"),
    ],
)
def test_advice_on_data_follows_the_loader(options, advice):
    purse = Purse()
    engine = Engine(lambda engine, batch: purse.spend("process", 1.0))
    ledger = TimeLedger(clock=purse)
    ledger.attach(engine)

    engine.run(SlowLoader(purse, samples(2), **options), max_epochs=2)
    assert advice in ledger.advice(engine)


def test_advice_on_a_loader_that_only_knows_its_workers():
    purse = Purse()
    engine, loader = plain(purse), SlowIterable(purse)
    loader.num_workers = 2
    ledger = TimeLedger(clock=purse)
    ledger.attach(engine)
    engine.run(loader, max_epochs=2)
    assert "`num_workers` is 2: set it higher" in ledger.advice(engine)


def test_data_without_workers_get_other_advice():
    purse = Purse()
    engine = Engine(lambda engine, batch: purse.spend("process", 1.0))
    ledger = TimeLedger(clock=purse)
    ledger.attach(engine)
    engine.run(SlowIterable(purse))
    assert "The data are a SlowIterable, which gives each batch when" in ledger.advice(engine)


def test_advice_on_a_handler_names_its_interval():
    purse = Purse()

    class TakesLong(Handler):
        every_steps = 1

        def attach_to(self, attachment):
            attachment.on_steps(self.every_steps, lambda engine: purse.spend("handlers", 9.0))

    trainer = make_trainer(batches_of(2), handlers=[TakesLong()])
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    trainer.run()
    assert ledger.advice(trainer).endswith(
        "% of the time. Give this handler a larger `every_steps`."
    )


@pytest.mark.parametrize(
    ("handlers", "part", "seconds", "advice"),
    [
        ([], "gc", 50.0, "GarbageCollector(every_steps=1000, disable_automatic=True"),
        ([], "gc", 0.9, None),  # a single full collection may take as long
        ([GarbageCollector(every_epochs=9)], "gc", 50.0, "Let the GarbageCollector collect less"),
        ([], "validation", 50.0, "Validate less often"),
        ([], "forward", 50.0, None),
    ],
)
def test_advice_is_on_the_largest_avoidable_part(handlers, part, seconds, advice):
    purse = Purse()
    trainer = make_trainer(batches_of(2), handlers=handlers)
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)

    class CollectsAtEnd:
        def __del__(self):
            purse.now += seconds

    def take_time(engine):
        if part == "gc":
            cycle = CollectsAtEnd()
            cycle.itself = cycle
            del cycle
            gc.collect()
        elif part == "validation":
            Validation(lambda: purse.spend("validation", seconds))(engine)

    trainer.add_event_handler(Events.EPOCH_COMPLETED, take_time)
    trainer.model.register_forward_hook(lambda *args: purse.spend("forward", 1.0))
    trainer.run()
    found = ledger.advice(trainer)
    assert found is None if advice is None else advice in found


@pytest.mark.parametrize("is_background", [False, True])
def test_advice_on_checkpoints_follows_the_handler(tmp_path, is_background):
    purse = Purse()
    save = SaveCheckpoint(
        tmp_path, every_steps=1, background=is_background, also={"slow": SlowState(purse)}
    )
    trainer = make_trainer(batches_of(2), checkpoint=save)
    ledger = TimeLedger(clock=purse)
    ledger.attach(trainer)
    trainer.run()
    assert ("background=True" in ledger.advice(trainer)) is not is_background


class SlowLoader(DataLoader):
    """A loader for whose batches this process waits two seconds each."""

    def __init__(self, purse, data, **options):
        super().__init__(data, **options)
        self.purse = purse

    def __iter__(self):
        for batch in super().__iter__():
            self.purse.now += 2.0
            yield batch


class SlowIterable:
    def __init__(self, purse):
        self.purse = purse

    def __iter__(self):
        for number in range(2):
            self.purse.now += 2.0
            yield number


# -- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clock": 3}, TypeError, "`clock` must be a function, got int"),
        ({"every_steps": 0}, ValueError, "`every_steps` must be an integer >= 1"),
        ({"prefix": None}, ValueError, "`prefix` must be a string"),
    ],
)
def test_wrong_argument_is_an_error(arguments, error, message):
    with pytest.raises(error, match=message):
        TimeLedger(**arguments)


def test_wrong_use_is_an_error():
    trainer, ledger = make_trainer(handlers=[TimeLedger()]), TimeLedger(prefix="b/")
    with pytest.raises(ValueError, match="must have one TimeLedger, and it has one already"):
        ledger.attach(trainer)
    with pytest.raises(ValueError, match="`event` must be left out"):
        ledger.attach(make_trainer(), Events.EPOCH_COMPLETED)
    with pytest.raises(ValueError, match="was never attached to it"):
        ledger.table(trainer)
