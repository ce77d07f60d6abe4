"""Leaks that GrowthWatch must name, and healthy runs of which it must not warn."""

import functools
import gc
import json
import os
import re
import resource
import subprocess
import sys
import threading
import traceback
import warnings
import weakref
from collections import deque
from mmap import MAP_ANONYMOUS
from mmap import MAP_PRIVATE
from mmap import mmap
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import EpochMetric
from torch.utils.data import DataLoader
from torch.utils.data import Dataset

from ignite_hooks import Console
from ignite_hooks import EpochMaxRAM
from ignite_hooks import GarbageCollector
from ignite_hooks import GrowthWatch
from ignite_hooks import MeanLoss
from ignite_hooks import MetricsLog
from ignite_hooks import SaveCheckpoint
from ignite_hooks import Throughput
from ignite_hooks import TimeLedger
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks.observe import read_metrics
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_model
from tests.reference import make_trainer
from tests.reference import samples

MIB = 2**20
BATCHES = 4  # of an epoch
HISTORY = []
KEPT = []  # what keeps the leaks of a test, emptied after it


@pytest.fixture(autouse=True)
def _hide_objects_of_libraries():
    """Makes looks ten times as fast: a look does not see frozen objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    for each in KEPT:
        if hasattr(each, "close"):
            each.close()
    HISTORY.clear()
    KEPT.clear()


@pytest.fixture
def all_objects():
    gc.unfreeze()


def new_pages(size):
    """Returns memory that was not in use before, as the allocator may have free memory."""
    block = mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS)
    block.write(b"1" * size)
    return block


class Growing(Dataset):
    """A data set with a cache that has a new key for each sample that it gives."""

    def __init__(self, size=0):
        self.samples, self.cache, self.size = samples(2 * BATCHES), {}, size

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        number = len(self.cache) + 0.5
        self.cache[number] = new_pages(self.size) if self.size else number
        return self.samples[index]


def loader_of(data=None, **options):
    return DataLoader(samples(2 * BATCHES) if data is None else data, batch_size=2, **options)


def run_watched(trainer, epochs=14, every=BATCHES, **limits):
    """Runs a trainer, and returns the result of the watch and the texts of its warnings."""
    watch = GrowthWatch(every_steps=every)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with watch.attach(trainer):
            trainer.run(**(limits or {"max_epochs": epochs}))
    return watch.result(trainer), [str(each.message) for each in caught]


def keep_losses(trainer):
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: HISTORY.append(engine.state.loss)
    )


def keep_outputs(trainer):
    kept = {"val": []}

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep(engine):
        kept["val"].append({"out": engine.state.model_outputs})


def keep_batches(trainer):
    trainer.model.seen = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep(engine):
        engine.model.seen.append(engine.state.batch[0])


def register_hooks(trainer):
    @trainer.on(Events.ITERATION_STARTED)
    def register(engine):
        engine.model.register_forward_hook(lambda module, inputs, output: None)


def register_one_hook_again(trainer):
    def look(module, inputs, output):
        pass

    @trainer.on(Events.ITERATION_STARTED)
    def register(engine):
        engine.model[0].register_forward_hook(look)


def attach_handlers(trainer):
    @trainer.on(Events.EPOCH_STARTED)
    def register(engine):
        engine.add_event_handler(Events.COMPLETED, lambda: None)


def attach_own_handlers(trainer):
    @trainer.on(Events.EPOCH_STARTED)
    def attach(engine):
        GarbageCollector().attach(engine, Events.COMPLETED)


def open_files(trainer):
    @trainer.on(Events.EPOCH_COMPLETED)
    def read(engine):
        KEPT.append(open("/dev/null"))  # noqa: SIM115


def start_threads(trainer):
    stop = threading.Event()

    @trainer.on(Events.EPOCH_COMPLETED)
    def start(engine):
        threading.Thread(target=stop.wait, name="prefetch", daemon=True).start()

    trainer.add_event_handler(Events.COMPLETED, stop.set)


def start_workers(trainer):
    @trainer.on(Events.EPOCH_COMPLETED)
    def iterate(engine):
        iterator = iter(DataLoader(samples(4), batch_size=2, num_workers=1))
        next(iterator)
        KEPT.append(iterator)


def make_callbacks(trainer):
    @trainer.on(Events.ITERATION_COMPLETED)
    def add(engine):
        iteration = engine.state.iteration
        HISTORY.append(lambda: iteration)


def never_reset_a_metric(trainer):
    mean = EpochMetric(lambda predicted, expected: 0.0, check_compute_fn=False)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, mean.iteration_completed)


LEAKS = {
    keep_losses: ("tensors () float32|Tensor", "test_watch.HISTORY"),
    keep_outputs: ("tensors (2, 2) float32 cpu, with its graph", "kept['val']"),
    keep_batches: ("tensors (2, 4) float32 cpu", "trainer.model.seen"),
    register_hooks: ("function|entries of trainer.model", "trainer.model._forward_hooks"),
    register_one_hook_again: (
        "entries of trainer.model",
        "trainer.model._modules['0']._forward_hooks",
    ),
    attach_handlers: ("function", "trainer._callbacks['COMPLETED']|_event_handlers"),
    attach_own_handlers: (
        "GarbageCollector|EventHandle|Attachment",
        "trainer._ignite_hooks['attachments']|_callbacks",
    ),
    open_files: ("open files", f"{__name__}.KEPT"),
    start_threads: ("threads", "threading._active"),
    start_workers: ("worker processes", "test_watch.KEPT"),
    make_callbacks: ("function|entries", "test_watch.HISTORY"),
    never_reset_a_metric: ("tensors", "_updates[<tuple>].__self__|_predictions|_targets|mean"),
}
BY_EPOCH = (attach_handlers, attach_own_handlers, open_files, start_threads, start_workers)


def matches(text, alternatives):
    return any(each in text for each in alternatives.split("|"))


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.__name__)
def test_leak_is_named_with_its_holder(leak):
    trainer = make_trainer(loader_of(), output_transform=lambda x, y, y_pred, loss: (y_pred, y))
    leak(trainer)
    result, texts = run_watched(trainer)
    finding = result["growing"][0]
    kind, holder = LEAKS[leak]
    assert matches(finding["class"], kind), finding
    assert matches(finding["holder"], holder), finding
    # Each event of a leak may make several objects of a class.
    share = finding["classes"][finding["class"]] / (1000 / BATCHES if leak in BY_EPOCH else 1000)
    assert share == pytest.approx(round(share), rel=0.1)
    assert share >= 0.9
    assert f"{finding['class']} grow by " in texts[0]
    assert finding["holder"] in texts[0]
    assert leak is not start_threads or "(the thread 'prefetch'); " in texts[0]
    assert leak is not open_files or "(an open file, '/dev/null'); " in texts[0]


def test_new_objects_are_told_from_older_ones_of_a_common_type(all_objects):
    """A process has tens of thousands of functions, and collections change their order."""
    trainer = make_trainer(loader_of())

    @trainer.on(Events.EPOCH_STARTED)
    def register(engine):
        gc.collect()
        engine.model[0].register_forward_hook(lambda module, inputs, output: None)

    result, _ = run_watched(trainer, epochs=16)
    (finding,) = result["growing"]
    assert finding["class"] == "objects of type function"
    assert finding["holder"] == "trainer.model._modules['0']._forward_hooks"


def test_long_chain_is_shortened():
    class Node:
        def __init__(self, before):
            self.before = before

    KEPT.append(None)
    trainer = make_trainer(batches_of(20))

    @trainer.on(Events.ITERATION_COMPLETED)
    def add(engine):
        KEPT[0] = Node(KEPT[0])

    result, (text,) = run_watched(trainer, epochs=16, every=20)
    assert "test_watch.KEPT[0].before.before" in text
    assert "….before" in text
    assert len(text) < 800
    assert len(result["growing"]) == 1


def test_leak_in_a_value_of_a_cache_with_a_limit_is_named():
    remembered = functools.lru_cache(maxsize=4)(lambda: {"losses": []})
    trainer = make_trainer(loader_of())
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: remembered()["losses"].append(engine.state.loss),
    )
    result, _ = run_watched(trainer)
    (finding,) = result["growing"]
    assert finding["holder"].endswith("['losses']")


def test_files_without_a_python_object_are_named_once():
    trainer = make_trainer(loader_of())
    descriptors = []
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: descriptors.append(os.open(os.devnull, os.O_RDONLY))
    )
    try:
        result, texts = run_watched(trainer, epochs=20)
    finally:
        for each in descriptors:
            os.close(each)
    assert [each["class"] for each in result["growing"]] == ["open files"]
    assert result["growing"][0]["chain"] is None
    assert len(texts) == 1


def test_memory_that_no_object_explains_is_named():
    # Above 32 MiB, so that malloc gets it from the kernel, and not from what other tests gave back.
    trainer, kept = make_trainer(loader_of()), [torch.ones(10 * 2**20)]

    @trainer.on(Events.EPOCH_COMPLETED)
    def lengthen(engine):
        kept[0] = torch.cat([kept[0], torch.ones(2**19)])  # 2 MiB more

    result, (text,) = run_watched(trainer, epochs=40)
    (finding,) = result["growing"]
    assert (finding["class"], finding["chain"]) == ("resident memory", None)
    assert text.startswith("resident memory grows by ")
    assert text.endswith(" and at extensions in C")


def test_dict_of_numbers_is_named(all_objects):
    trainer, values = make_trainer(loader_of()), {}

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine):
        for number in range(32):
            values[engine.state.iteration + number / 32] = engine.state.output.item()

    result, _ = run_watched(trainer, epochs=40)
    (finding,) = result["growing"]
    assert finding["class"] == f"entries of {finding['holder']}"
    assert finding["holder"].endswith("values")
    assert finding["classes"][finding["class"]] == pytest.approx(32_000)


def test_cache_of_a_data_set_is_named():
    trainer = make_trainer(loader_of(Growing()))
    result, _ = run_watched(trainer, epochs=70)
    assert result["growing"][0]["holder"].endswith("dataset.cache")


def test_cache_in_loader_workers_leads_to_the_data_set():
    data = loader_of(Growing(400_000), num_workers=1, persistent_workers=True)
    result, (text,) = run_watched(make_trainer(data))
    (finding,) = result["growing"]
    assert finding["class"] == "memory of worker processes"
    assert finding["holder"].endswith("dataset")
    assert finding["holder_is"].endswith("test_watch.Growing")
    assert finding["seconds_left"] > 0
    assert text.startswith("memory of worker processes grows by ")
    assert "; memory ends in " in text
    assert ". Their data set is " in text


def test_growth_of_a_device_is_reported_with_its_end(monkeypatch):
    used = [0]

    def take(engine, batch):
        used[0] += MIB

    device = SimpleNamespace(
        is_available=lambda: True,
        current_device=lambda: 0,
        memory_reserved=lambda: 2 * used[0],
        memory_allocated=lambda: used[0],
        get_device_properties=lambda index: SimpleNamespace(total_memory=1000 * MIB),
    )
    monkeypatch.setattr(torch, "accelerator", device)
    monkeypatch.setattr(torch, "get_device_module", lambda: device)
    engine = Engine(take)
    watch = GrowthWatch(every_steps=BATCHES)
    watch.attach(engine)
    with pytest.warns(UserWarning, match="device memory") as caught:
        engine.run(range(BATCHES), max_epochs=24)
    text = str(caught[0].message)
    assert text.startswith(
        "device memory grows by 1,000.0 MiB per 1,000 steps since step 8; device"
    )
    assert "; device memory ends in " in text
    assert engine.state.metrics["growth/device_mib"] == used[0] / MIB - BATCHES
    (finding,) = watch.result(engine)["growing"]
    assert (finding["limit"], finding["chain"]) == ("device memory", None)


def test_limit_that_comes_within_the_first_epoch_is_reported_in_it():
    trainer = make_trainer(loader_of(samples(300)))

    @trainer.on(Events.ITERATION_COMPLETED)
    def read(engine):
        if engine.state.iteration < 60:
            KEPT.append(open("/dev/null"))  # noqa: SIM115

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 80, hard))
        result, (text,) = run_watched(trainer, epochs=1, every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (finding,) = result["growing"]
    assert (finding["class"], finding["holder"]) == ("open files", f"{__name__}.KEPT")
    assert finding["step"] < 30
    assert "; open files reach their limit in " in text


def train_of_everything(epochs, batches, tmp_path):
    """Returns a trainer with handlers that take and give back memory."""
    model = make_model()
    evaluator = create_supervised_evaluator(
        model, {"score": EpochMetric(lambda predicted, expected: 0.0, check_compute_fn=False)}
    )
    trainer = make_trainer(
        DataLoader(samples(2 * batches), batch_size=2, shuffle=True),
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        output_transform=lambda x, y, y_pred, loss: (y_pred, y),
        validation=Validation(evaluator, batches_of(20), every_steps=3 * batches // 2),
        checkpoint=SaveCheckpoint(
            tmp_path, every_steps=max(2, epochs * batches // 16), keep_last="all"
        ),
        handlers=[
            MeanLoss(),
            Throughput(),
            TimeLedger(),
            Console(),
            MetricsLog(tmp_path / "metrics.jsonl"),
            GarbageCollector(every_steps=2 * batches, disable_automatic=True),
            EpochMaxRAM(),
        ],
    )
    EpochMetric(lambda predicted, expected: 0.0, check_compute_fn=False).attach(trainer, "epoch")
    remembered = functools.lru_cache(maxsize=50)(lambda number: [number])
    losses = []

    @trainer.on(Events.EPOCH_STARTED)
    def begin(engine):
        losses.clear()

    @trainer.on(Events.ITERATION_COMPLETED)
    def work(engine):
        losses.append(engine.state.output[0].sum().item())
        remembered(engine.state.iteration)
        cycle = [torch.zeros(4)]
        cycle.append(cycle)  # garbage until the next collection

    return trainer


@pytest.mark.parametrize(
    ("epochs", "batches", "every"),
    [
        pytest.param(40, 4, 4, id="short epochs"),
        pytest.param(4, 60, 4, id="long epochs"),
        pytest.param(10, 5000, 500, id="50,000 iterations", marks=pytest.mark.slow),
    ],
)
def test_healthy_run_gives_no_warning(epochs, batches, every, tmp_path):
    if epochs * batches > 10_000:
        gc.unfreeze()
    trainer = train_of_everything(epochs, batches, tmp_path)
    result, texts = run_watched(trainer, epochs, every)
    assert texts == []
    assert result["growing"] == []
    assert result["looks"] >= 40


def test_loader_workers_give_no_warning():
    """torch keeps an entry for each shared tensor, and drops dead ones when there are 128."""
    trainer = make_trainer(loader_of(num_workers=1, persistent_workers=True))
    result, texts = run_watched(trainer)
    assert (result["growing"], texts) == ([], [])


def test_cache_with_a_limit_gives_no_warning():
    trainer = make_trainer(loader_of())
    remembered = functools.lru_cache(maxsize=10**6)(lambda number: [number])
    replayed = deque(maxlen=10**6)

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep(engine):
        remembered(engine.state.iteration)
        replayed.append(engine.state.batch)
        re.compile(f"{engine.state.iteration} of [a-z]")  # Python keeps the last 512

    result, texts = run_watched(trainer)
    assert (result["growing"], texts) == ([], [])


def test_objects_of_the_package_are_not_named(tmp_path):
    """A checkpoint searches the user's objects, and keeps what it has found."""

    class Growing(Dataset):
        def __init__(self):
            self.samples, self.cache = samples(2 * BATCHES), {}

        def __len__(self):
            return len(self.samples)

        def __getitem__(self, index):
            self.cache[len(self.cache)] = Thing()
            return self.samples[index]

    class Thing:
        def __init__(self):
            self.values = [1]

    checkpoint = SaveCheckpoint(tmp_path, every_epochs=1, keep_last="all")
    trainer = make_trainer(loader_of(Growing()), checkpoint=checkpoint)
    result, _ = run_watched(trainer, epochs=20)
    (finding,) = result["growing"]
    assert finding["holder"].endswith("dataset.cache")
    assert finding["class"].endswith("Thing")


def test_garbage_that_waits_for_a_collection_gives_no_warning():
    collector = GarbageCollector(every_epochs=100, disable_automatic=True)
    trainer = make_trainer(loader_of(), handlers=[collector])

    @trainer.on(Events.ITERATION_COMPLETED)
    def make_cycle(engine):
        cycle = [torch.zeros(4)]
        cycle.append(cycle)

    result, texts = run_watched(trainer)
    assert (result["growing"], texts) == ([], [])


@pytest.mark.parametrize("has_length", [True, False], ids=["with a length", "without a length"])
def test_first_epoch_may_collect_what_it_likes(has_length):
    data = batches_of(40) if has_length else Repeatable(batches_of(40))
    trainer = make_trainer(data)

    @trainer.on(Events.ITERATION_COMPLETED)
    def fill_cache(engine):
        if engine.state.epoch == 1:
            HISTORY.append(engine.state.loss)

    result, texts = run_watched(trainer, epochs=2, every=2)
    assert (result["growing"], texts) == ([], [])
    assert result["looks"] >= 40


def test_data_without_epochs_are_watched_from_the_start():
    def stream():
        while True:
            yield from batches_of(BATCHES)

    trainer = make_trainer(stream())
    keep_losses(trainer)
    result, _ = run_watched(trainer, max_steps=14 * BATCHES)
    assert result["growing"][0]["holder"] == f"{__name__}.HISTORY"


def test_plain_engine_is_watched():
    engine = Engine(lambda engine, batch: HISTORY.append(torch.zeros(3)))
    watch = GrowthWatch(every_steps=BATCHES)
    watch.attach(engine)
    with pytest.warns(UserWarning, match=r"test_watch.HISTORY"):
        engine.run(range(BATCHES), max_epochs=14)
    assert watch.result(engine)["looks"] == 14
    assert engine.state.metrics["growth/growing"] == 1


def test_plain_engine_may_drop_what_an_epoch_collects_in_any_handler():
    engine = Engine(lambda engine, batch: HISTORY.append(torch.zeros(3)))
    watch = GrowthWatch(every_steps=2)
    watch.attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED, HISTORY.clear)
    engine.run(range(80), max_epochs=3)
    assert watch.result(engine)["growing"] == []


def test_frozen_objects_are_found():
    HISTORY.append(0)
    gc.freeze()
    trainer = make_trainer(loader_of())
    keep_losses(trainer)
    result, _ = run_watched(trainer)
    assert result["growing"][0]["holder"] == f"{__name__}.HISTORY"


def test_record_has_the_values_of_each_look(tmp_path):
    path = tmp_path / "metrics.jsonl"
    trainer = make_trainer(loader_of(), handlers=[MetricsLog(path, every_steps=BATCHES)])
    result, _ = run_watched(trainer, epochs=5)
    steps, counts = read_metrics(path).points("growth/worker_processes")
    assert (len(steps), {*counts}) == (result["looks"], {0.0})


def test_metrics_result_and_findings_are_plain_data(all_objects):
    trainer = make_trainer(loader_of())
    watch = GrowthWatch(every_steps=BATCHES)
    with pytest.raises(ValueError, match="never attached to it: call attach"):
        watch.result(trainer)
    assert watch.findings(trainer) == {}
    keep_losses(trainer)
    with watch.attach(trainer), pytest.warns(UserWarning, match="HISTORY"):
        trainer.run(max_epochs=14)
    result = watch.result(trainer)
    assert json.loads(json.dumps(result)) == result
    assert watch.findings(trainer) == {"growing": result["growing"]}
    assert 0 < result["look_seconds"] < 60
    result["growing"][0]["classes"].clear()
    assert watch.result(trainer)["growing"][0]["classes"]
    metrics = {k: v for k, v in trainer.state.metrics.items() if k.startswith("growth/")}
    assert {type(value) for value in metrics.values()} == {float}
    assert metrics["growth/ram_mib"] > 10
    assert metrics["growth/peak_ram_mib"] >= metrics["growth/ram_mib"]
    assert metrics["growth/objects"] > 10_000 > metrics["growth/tensors"] > BATCHES
    assert metrics["growth/open_files"] > 2
    assert metrics["growth/worker_processes"] == 0


def test_looks_leave_nothing_behind():
    trainer = make_trainer(loader_of())
    keep_losses(trainer)
    kept = torch.nn.Linear(2, 2)
    HISTORY.append(kept)
    counts, automatic = gc.get_threshold(), gc.isenabled()
    handlers = [*filter(None, trainer._event_handlers.values())]
    result, _ = run_watched(trainer)
    assert result["growing"]
    assert (gc.get_threshold(), gc.isenabled()) == (counts, automatic)
    assert [*filter(None, trainer._event_handlers.values())] == handlers
    reference = weakref.ref(kept)
    HISTORY.clear()
    del kept
    assert reference() is None


def test_warning_as_error_keeps_no_objects(all_objects):
    trainer = make_trainer(loader_of())
    keep_losses(trainer)
    GrowthWatch(every_steps=BATCHES).attach(trainer)
    with pytest.raises(UserWarning) as caught:
        trainer.run(max_epochs=14)
    for frame, _ in traceback.walk_tb(caught.tb):
        large = [v for v in frame.f_locals.values() if type(v) is list and len(v) > 10_000]
        assert large == []
    trainer.run(max_epochs=14)  # the warning is not repeated


def test_interrupt_within_a_look_keeps_no_objects_and_counts_no_look(all_objects):
    class Interrupting(type):
        armed = False

        def __hash__(cls):
            if Interrupting.armed:
                Interrupting.armed = False
                raise KeyboardInterrupt
            return 1

    class Thing(metaclass=Interrupting):
        pass

    HISTORY.append(Thing())
    trainer = make_trainer(loader_of())
    watch = GrowthWatch(every_steps=BATCHES)
    watch.attach(trainer)
    trainer.run(max_epochs=2)
    Interrupting.armed = True
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.run(max_epochs=4)
    for frame, _ in traceback.walk_tb(caught.tb):
        nested = [v for v in frame.f_locals.values() if type(v) is list]
        assert all(type(each) is not list or len(each) < 10_000 for v in nested for each in v)
    trainer.run(max_epochs=4)
    assert watch.result(trainer)["looks"] == 3


def test_metaclass_without_a_hash_does_no_harm():
    class Unhashable(type):
        __hash__ = None

    class Thing(metaclass=Unhashable):
        pass

    HISTORY.extend([Thing(), Thing()])
    result, _ = run_watched(make_trainer(loader_of()))
    assert result["looks"] == 14


PEAKS = """
from ignite.engine import Engine, Events
from ignite_hooks import GrowthWatch, MaxRAM

objects = [[] for _ in range(1_000_000)]  # a look lists them all, in 8 MiB
engine = Engine(lambda engine, batch: None)
with MaxRAM() as ram:
    GrowthWatch(every_steps=1).attach(engine)
    engine.run(range(4), max_epochs=2)  # the watch records the ids of the objects
    ram.reset()
    before = ram.result()
    engine.run(range(4), max_epochs=4)
    print(ram.result() - before)
"""


def test_look_is_left_out_of_the_peaks_of_others():
    # With this setting the allocator returns the list of all objects to the system at once.
    # Otherwise it may keep the list's memory for later use, which then counts as resident memory.
    fixed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", PEAKS], env=os.environ | fixed, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 4


def test_continued_run_adds_to_the_looks_and_a_new_run_does_not():
    trainer = make_trainer(loader_of())
    keep_losses(trainer)
    watch = GrowthWatch(every_steps=BATCHES)
    watch.attach(trainer)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=7 * BATCHES + 2))
    def fail(engine):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        trainer.run(max_epochs=14)
    assert (watch.result(trainer)["looks"], watch.findings(trainer)) == (8, {})
    with pytest.warns(UserWarning, match="HISTORY"):
        trainer.run(max_epochs=14)
    assert watch.result(trainer)["looks"] == 14
    assert len(watch.findings(trainer)["growing"]) == 1
    trainer.state.max_epochs = None
    trainer.run(max_epochs=3)
    assert (watch.result(trainer)["looks"], watch.findings(trainer)) == (3, {})


def test_each_new_run_writes_the_metrics():
    trainer = make_trainer(loader_of(), handlers=[GrowthWatch()])
    for _ in range(2):
        trainer.run(max_epochs=1)
        assert trainer.state.metrics.pop("growth/threads") >= 1
        trainer.state.max_epochs = None


def test_stop_within_an_epoch_changes_no_look():
    trainer = make_trainer(batches_of(20))
    watch = GrowthWatch(every_steps=2)
    watch.attach(trainer)

    @trainer.on(TrainEvents.STEP_COMPLETED(once=31))
    def fail(engine):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        trainer.run(max_epochs=3)
    trainer.run(max_epochs=3)
    assert watch.result(trainer)["looks"] == 30


def test_resumed_run_is_watched_from_its_first_whole_epoch(tmp_path):
    first = make_trainer(
        loader_of(), checkpoint=SaveCheckpoint(tmp_path, at_end=True), handlers=[GrowthWatch()]
    )
    first.run(max_steps=5 * BATCHES + 2)
    trainer = make_trainer(loader_of(), resume_from=tmp_path)
    keep_losses(trainer)
    result, texts = run_watched(trainer, epochs=18)
    assert result["looks"] == 13
    (finding,) = result["growing"]
    assert finding["holder"] == f"{__name__}.HISTORY"
    assert finding["since_step"] == 7 * BATCHES
    assert len(texts) == 1


def test_removal_within_a_run_ends_the_looks():
    trainer = make_trainer(loader_of())
    watch = GrowthWatch(every_steps=2)
    attachment = watch.attach(trainer)
    trainer.add_event_handler(TrainEvents.STEP_COMPLETED(once=5), lambda: attachment.remove())
    trainer.run(max_epochs=3)
    assert watch.result(trainer)["looks"] == 3
    assert threading.active_count() == len(threading.enumerate())


def test_one_watch_serves_several_engines():
    watch, trainers = GrowthWatch(every_steps=2), [make_trainer(loader_of()) for _ in range(2)]
    for epochs, trainer in enumerate(trainers, start=1):
        watch.attach(trainer)
        trainer.run(max_epochs=epochs)
    assert [watch.result(each)["looks"] for each in trainers] == [2, 4]


def test_wrong_use_is_an_error():
    with pytest.raises(ValueError, match="`every_steps` must be an integer >= 1, got 0"):
        GrowthWatch(every_steps=0)
    trainer = make_trainer(loader_of())
    with pytest.raises(ValueError, match=r"`event` must be left out.*every_steps"):
        GrowthWatch().attach(trainer, Events.EPOCH_COMPLETED)
    GrowthWatch().attach(trainer)
    with pytest.raises(ValueError, match="must not write to one name, got 'growth/ram_mib'"):
        GrowthWatch().attach(trainer)
    GrowthWatch(prefix="other/").attach(trainer)
