"""The report on a resume is given once: logged if the resume is exact, else as a warning."""

import logging
import warnings
from pathlib import Path

import pytest
import torch
from ignite.engine import Events
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset

from ignite_hooks import DataFeed
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks.checkpoint.report import EXACT
from ignite_hooks.checkpoint.report import ResumedPart
from ignite_hooks.checkpoint.report import ResumeReport
from ignite_hooks.checkpoint.report import merge_reasons
from tests.reference import Noisy
from tests.reference import Repeatable
from tests.reference import batches_of
from tests.reference import make_trainer
from tests.reference import samples
from tests.reference import shuffled


class Box:
    def __init__(self, value=0):
        self.value = value

    def attach(self, engine):
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self):
        self.value += 1

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


def step_lr(optimizer):
    return StepLR(optimizer, 2)


def loader(size=8, batch=2, **options):
    return DataLoader(Noisy(size), batch, shuffle=True, **options)


def saved(directory, data=shuffled, *, steps=2, **options):
    also = options.pop("also", None)
    checkpoint = SaveCheckpoint(directory, also=also)
    make_trainer(data(), checkpoint=checkpoint, **options).run(max_steps=steps)


def resumed(directory, data=shuffled, **options):
    """Returns the report after it was given; warnings are not caught."""
    trainer = make_trainer(data and data(), resume_from=directory, **options)
    trainer.run(max_steps=6)
    return trainer.resume_report


def test_report_prints_a_line_for_each_part():
    parts = {
        "model": ResumedPart("exact"),
        "data": ResumedPart("approximate", "it is other data"),
        "counters": ResumedPart("exact"),
        "also": ResumedPart("missing", "it is gone"),
    }
    report = ResumeReport(Path("runs/step_00000007"), 7, parts)
    assert str(report).splitlines() == [
        "resumed from runs/step_00000007, step 7",
        "  data: approximate (it is other data)",
        "  also: missing (it is gone)",
        "  model: exact",
        "  counters: exact",
    ]
    assert not report.is_exact


@pytest.mark.parametrize(
    ("levels", "is_exact"),
    [
        ([], True),
        (["exact", "exact"], True),
        (["exact", "approximate"], False),
        (["missing"], False),
    ],
)
def test_report_is_exact_if_every_part_is(levels, is_exact):
    parts = {str(number): ResumedPart(level) for number, level in enumerate(levels)}
    assert ResumeReport(Path("x"), 1, parts).is_exact is is_exact


def test_without_a_resumed_checkpoint_there_is_no_report(tmp_path):
    trainer = make_trainer(batches_of(2))
    assert trainer.resume_report is None
    ResumeCheckpoint(tmp_path, on_missing="start").attach(trainer)
    trainer.run()
    assert trainer.resume_report is None


def test_exact_resume_is_logged_once_without_a_warning(tmp_path, caplog):
    saved(tmp_path, lr_scheduler=step_lr, handlers=[Box()], also={"box": Box()})
    with caplog.at_level(logging.INFO, "ignite_hooks"), warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make_trainer(
            shuffled(),
            lr_scheduler=step_lr,
            handlers=[Box()],
            checkpoint=SaveCheckpoint(tmp_path / "new", also={"box": Box()}),
            resume_from=tmp_path,
        )
        before = trainer.resume_report
        trainer.run(max_epochs=1)
        trainer.run(max_epochs=2)
    assert before.is_exact
    assert set(before.parts) == {
        "also",
        "handlers",
        "model",
        "optimizer",
        "scheduler",
        "data",
        "random generators",
        "counters",
        "settings",
    }
    told = [each for each in caplog.records if "counters: exact" in each.getMessage()]
    assert [each.levelno for each in told] == [logging.INFO]
    assert told[0].getMessage() == str(trainer.resume_report)


def test_inexact_resume_is_warned_about_once(tmp_path):
    saved(tmp_path, lr_scheduler=step_lr)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = make_trainer(shuffled(), resume_from=tmp_path)  # more may come until it runs
    with pytest.warns(UserWarning, match="scheduler: missing") as caught:
        trainer.run(max_epochs=2)
    assert [str(each.message) for each in caught] == [str(trainer.resume_report)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.run(max_epochs=3)


DIFFERENCES = {
    "another size of batches": (
        loader,
        lambda: loader(batch=4),
        {},
        r"data: changed \(2 samples a batch then, 4 now: the 4 samples left of this pass come in 1 "
        r"batch \(1 step\), and from the next pass on a pass has 2 batches \(2 steps\), and had 4 "
        r"batches \(4 steps\)\)",
    ),
    "another number of samples": (
        loader,
        lambda: loader(size=12),
        {},
        r"data: changed \(8 samples a pass then, 12 now: the current pass is dropped after 2 "
        r"batches and the next pass starts; if each epoch is one pass, the current epoch starts",
    ),
    "a list of another length": (
        lambda: batches_of(4),
        lambda: batches_of(5),
        {},
        r"data: changed \(4 batches a pass then, 5 now: the current pass is dropped after 2 ",
    ),
    "other workers": (
        loader,
        lambda: loader(num_workers=1),
        {},
        r"data: changed \(0 workers then, 1 now: if the data set draws random numbers",
    ),
    "workers in any order, in the middle of a pass": (
        lambda: loader(num_workers=1, in_order=False),
        lambda: loader(num_workers=1, in_order=False),
        {},
        r"data: approximate \(workers give batches in any order \(in_order=False\), and the",
    ),
    "an iterator": (
        lambda: iter(batches_of(9)),
        lambda: iter(batches_of(9)),
        {},
        r"data: approximate \(an iterator cannot be moved",
    ),
    "no scheduler then": (
        shuffled,
        shuffled,
        {"lr_scheduler": (None, step_lr)},
        r"scheduler: missing \(the checkpoint has none, and the present one starts from scratch\)",
    ),
    "no scheduler now": (
        shuffled,
        shuffled,
        {"lr_scheduler": (step_lr, None)},
        r"scheduler: missing \(the checkpoint has one, this run has none\)",
    ),
    "a new handler": (
        shuffled,
        shuffled,
        {"handlers": ([Box()], [Box(), Box()])},
        r"handlers: missing \(not in the checkpoint: Box-2\)",
    ),
    "a handler less": (
        shuffled,
        shuffled,
        {"handlers": ([Box(), Box()], [])},
        r"handlers: missing \(not in the trainer any more: Box, Box-2\)",
    ),
    "many handlers": (
        shuffled,
        shuffled,
        {"handlers": ([], [Box() for _ in range(5)])},
        r"handlers: missing \(not in the checkpoint: Box and 4 more\)",
    ),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_each_difference_is_reported_with_its_reason(tmp_path, kind):
    data_then, data_now, options, said = DIFFERENCES[kind]
    saved(tmp_path, data_then, **{name: then for name, (then, _) in options.items()})
    with pytest.warns(UserWarning, match=said):
        report = resumed(tmp_path, data_now, **{name: now for name, (_, now) in options.items()})
    assert not report.is_exact
    other = {name for name, part in report.parts.items() if part.level != "exact"}
    assert other == {said.partition(":")[0]}


def test_different_objects_in_also_are_reported(tmp_path):
    saved(tmp_path, also={"one": Box(), "two": Box()})
    now = SaveCheckpoint(tmp_path / "new", also={"two": Box(), "three": Box()})
    said = r"also: missing \(not in the checkpoint: three; not in `also` any more: one\)"
    with pytest.warns(UserWarning, match=said):
        resumed(tmp_path, checkpoint=now)


@pytest.mark.parametrize(
    "make",
    [
        lambda: batches_of(4),
        shuffled,
        lambda: DataLoader(samples(8), batch_size=None),
        lambda: DataLoader(samples(7), 2, drop_last=True),
    ],
)
def test_the_same_data_are_exact_in_the_middle_of_a_pass(tmp_path, make):
    saved(tmp_path, make)
    assert str(resumed(tmp_path, make).parts["data"]) == "exact"


class LazilyDrawn(IterableDataset):
    def __iter__(self):
        return (torch.rand(4) for _ in range(8))


@pytest.mark.parametrize(
    "make", [lambda: Repeatable(batches_of(4)), lambda: DataLoader(LazilyDrawn(), 2)]
)
def test_data_that_may_draw_during_a_pass_is_not_exact(make):
    feed = DataFeed(make())
    given = iter(feed)
    assert feed.differences(feed.state_dict()) == []
    next(given)
    (difference,) = feed.differences(feed.state_dict())
    assert "random numbers during a pass, these numbers differ until this pass ends" in difference
    feed.close()


def test_unordered_persistent_workers_are_not_exact_at_pass_end():
    options = {"num_workers": 1, "persistent_workers": True, "in_order": False}
    feed = DataFeed(DataLoader(samples(4), 2, **options))
    assert feed.differences(feed.state_dict()) == []
    assert len(list(feed)) == 2
    (difference,) = feed.differences(feed.state_dict())
    assert "random numbers that the data set draws in persistent workers differ" in difference


def test_workers_are_exact_at_the_end_of_a_pass(tmp_path):
    def make():
        return loader(num_workers=1)

    saved(tmp_path, make, steps=4)
    assert resumed(tmp_path, make).is_exact


def test_data_given_to_run_are_compared_at_its_start(tmp_path):
    saved(tmp_path, loader)
    trainer = make_trainer(None, resume_from=tmp_path)
    assert "data" not in trainer.resume_report.parts
    trainer.run(loader(), max_epochs=2)
    assert str(trainer.resume_report.parts["data"]) == "exact"

    trainer = make_trainer(None, resume_from=tmp_path)
    with pytest.warns(UserWarning, match="2 samples a batch then, 4 now: the 4 samples left of"):
        trainer.run(loader(batch=4), max_epochs=2)


def test_late_handler_is_restored_and_reported_at_run_start(tmp_path):
    saved(tmp_path, handlers=[Box(5)])
    trainer, box = make_trainer(shuffled(), resume_from=tmp_path), Box()
    assert trainer.resume_report.parts["handlers"].level == "missing"
    box.attach(trainer)
    trainer.run(max_epochs=1)
    assert str(trainer.resume_report.parts["handlers"]) == "exact (Box)"
    assert box.value == 5 + 1


def test_a_removed_generator_of_the_data_is_reported(tmp_path):
    saved(tmp_path, lambda: DataLoader(samples(8), 2, shuffle=True, generator=torch.Generator()))
    trainer = make_trainer(shuffled(4), resume_from=tmp_path)
    part = trainer.resume_report.parts["data"]
    assert part.level == "approximate"
    assert "the random generator generator (torch.Generator, cpu) was saved, but" in part.reason


def test_inexact_resume_of_a_finished_run_is_reported(tmp_path):
    saved(tmp_path, steps=5, lr_scheduler=step_lr)
    with pytest.warns(UserWarning, match="scheduler: missing"):
        make_trainer(shuffled(), resume_from=tmp_path).run(max_epochs=1)


@pytest.mark.parametrize(
    ("event", "is_exact"),
    [
        (Events.ITERATION_COMPLETED(once=4), True),
        (Events.ITERATION_COMPLETED(once=3), False),
        (Events.GET_BATCH_COMPLETED(once=4), False),
        (Events.ITERATION_STARTED(once=3), False),
    ],
)
def test_numbers_drawn_for_dropped_batches_are_reported(tmp_path, event, is_exact):
    trainer = make_trainer(batches_of(6), accumulation=2, checkpoint=SaveCheckpoint(tmp_path))
    trainer.add_event_handler(event, lambda: trainer.terminate())
    trainer.run()
    resumed = make_trainer(batches_of(6), accumulation=2, resume_from=tmp_path)
    part = resumed.resume_report.parts["random generators"]
    assert (part.level == "exact") == is_exact
    assert is_exact or "batches that no step has used" in part.reason


def test_a_reason_is_added_once_and_not_taken_for_part_of_another():
    part = EXACT.with_reason("unknown", "rank 10: a list changed").with_reason(
        "x", "a list changed"
    )
    assert part == ResumedPart("unknown", "rank 10: a list changed; a list changed")
    assert part.with_reason("x", "a list changed") == part


def test_reasons_of_all_ranks_are_merged_with_their_rank():
    of_ranks = [{"data": "a"}, {"data": "a", "model": "b"}, {"data": "c"}]
    assert merge_reasons(of_ranks) == {
        "data": "a; on process 2: c",
        "model": "on process 1: b",
    }


def test_inexact_parts_of_another_rank_are_in_the_report():
    exact, doubted = (
        ResumeReport(Path("x"), 3, {"model": EXACT, "data": part})
        for part in (EXACT, ResumedPart("approximate", "a"))
    )
    reports = [exact, doubted]
    first, second = (each.with_others(reports) for each in reports)
    assert (str(first.parts["data"]), first.parts["model"]) == (
        "approximate (on process 1: a)",
        EXACT,
    )
    assert second == doubted
    assert exact.with_others([exact, exact]) == exact
