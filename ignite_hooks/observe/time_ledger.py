"""A ledger that shows where the time of a run went."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from time import perf_counter
from typing import Any
from typing import ClassVar

import torch
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.engine import call_handlers_through
from ignite_hooks.core.engine import engine_storage
from ignite_hooks.core.engine import handler_name
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.fields import Every
from ignite_hooks.core.fields import Prefix
from ignite_hooks.core.fields import Runtime
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.metric_writer import MetricWriter
from ignite_hooks.core.rules import check_function
from ignite_hooks.core.time_accounts import OTHER
from ignite_hooks.core.time_accounts import TimeAccounts
from ignite_hooks.core.time_accounts import account_of
from ignite_hooks.core.time_accounts import set_time_accounts
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.events import TrainEvents
from ignite_hooks.memory.garbage_collection import GarbageCollector
from ignite_hooks.memory.process_gc import observed_collections
from ignite_hooks.observe.steps import Steps

__all__ = ["TimeLedger"]

# The events of a trainer at which another part of an iteration begins. The part that begins at
# OPTIMIZER_STEP_STARTED ends at STEP_COMPLETED, when the gradients have been zeroed.
_PARTS_OF_TRAINER = {
    Events.GET_BATCH_STARTED: "data",
    Events.GET_BATCH_COMPLETED: OTHER,
    TrainEvents.MODEL_FORWARD_STARTED: "forward",
    TrainEvents.MODEL_FORWARD_COMPLETED: OTHER,
    TrainEvents.MODEL_BACKWARD_STARTED: "backward",
    TrainEvents.MODEL_BACKWARD_COMPLETED: OTHER,
    TrainEvents.OPTIMIZER_STEP_STARTED: "optimizer",
}
_PARTS_OF_PLAIN_ENGINE = {
    Events.GET_BATCH_STARTED: "data",
    Events.GET_BATCH_COMPLETED: OTHER,
    Events.ITERATION_STARTED: "process",
    Events.ITERATION_COMPLETED: OTHER,
}
# A run may leave its loop before the event that ends a part is fired.
_ENDS = (
    Events.TERMINATE_SINGLE_EPOCH,
    Events.EPOCH_COMPLETED,
    Events.TERMINATE,
    Events.COMPLETED,
)
_ALWAYS_SHOWN = ("validation", "checkpoint", "gc", OTHER)

_MIN_AVOIDABLE_SHARE = 0.05
# The full collection that `freeze_after` needs takes up to half a second. Below this time it would
# cost more than it saves.
_MIN_COLLECTION_SECONDS = 1.0


@checked_dataclass
class TimeLedger(MetricWriter):
    """Shows where the time of a run went, by parts that add up to 100 %.

    ::

        ledger = TimeLedger()
        with ledger.attach(trainer):
            trainer.run(data, max_epochs=3)
        print(ledger.table(trainer))

    Each moment from the entry into ``run`` until its end is charged to exactly one part. A report
    writes the share of each part in the time of the run so far to ``state.metrics``, as a number
    from 0 to 1. The shares add up to 1:

    - ``time/data``: waiting for batches.
    - ``time/forward``, ``time/backward``: model and loss; the backward pass. On an engine that is
      not a trainer they cannot be separated: ``time/process`` is its process function.
    - ``time/optimizer``: clipping, the step, the scheduler, and zeroing the gradients.
    - ``time/validation``: validations, with everything that the evaluators do.
    - ``time/checkpoint``: the time that training waits for the saves of checkpoints. The time that
      ``SaveCheckpoint(background=True)`` spends in its thread is no part of the 100 %. ``table``
      shows it separately.
    - ``time/gc``: Python's garbage collections in the thread of the run, whatever part they
      interrupt.
    - ``time/handlers/NAME``: any other handler, by the name of its class or function. The time of a
      validation or a save that the handler starts is not included.
    - ``time/other``: the rest, such as the loop itself, its events, this ledger, and the contexts
      of ``Hooks``. But the contexts of ``on_validation``, and the ends of those of
      ``on_optimizer_step``, belong to these parts.

    The times are those of the host. On an accelerator, an operation returns before the device has
    computed its result. The time of the device is then charged to the part that synchronizes with
    it, for example a handler that calls ``loss.item()``. The ledger itself never synchronizes.

    A run that continues after a stop or a failure in the same process adds to its earlier times. A
    new run, and a run that resumes from a checkpoint in a new process, start from zero. The time
    between two calls of ``run`` does not count. With several processes, each process measures its
    own time, and nothing is exchanged. A process that waits for a slower one usually waits in the
    backward pass.

    Args:
        every_steps: the number of committed steps from one report to the next. At the end of an
            epoch or of a run, there is a report too.
        prefix: is put before each name in ``state.metrics``.
        clock: a function that returns seconds, for tests. Default: ``time.perf_counter``.

    Raises:
        ValueError: an argument is out of its range. When attached: an event is given, or the engine
            has a ``TimeLedger`` already.
        TypeError: ``clock`` is not a function.
    """

    no_event: ClassVar[str] = "reports every `every_steps` steps"

    every_steps: Every = 50
    prefix: Prefix = "time/"
    clock: Runtime = None

    def __post_init__(self) -> None:
        """Checks that ``clock`` is a function."""
        check_function("clock", self.clock, "clock=time.monotonic")

    def names(self) -> list[str]:
        """Returns the keys that the handler writes in ``state.metrics``, without its handlers'."""
        parts = {*_PARTS_OF_TRAINER.values(), *_PARTS_OF_PLAIN_ENGINE.values(), *_ALWAYS_SHOWN}
        return [f"{self.prefix}{part}" for part in sorted(parts)]

    def seconds(self, engine: Engine) -> dict[str, float]:
        """Returns the seconds of each part of the present or last run, the largest first.

        Raises:
            ValueError: the handler was never attached to ``engine``.
        """
        seconds = _parts_of(engine) | self._accounts_of(engine).seconds
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))

    def table(self, engine: Engine) -> str:
        """Returns a table of the time of each part, and advice on the largest avoidable part.

        The table can be printed in a run, after a run, and after the handler was removed.

        Raises:
            ValueError: the handler was never attached to ``engine``.
        """
        seconds = self.seconds(engine)
        total = sum(seconds.values())
        rows = [(part, each, each / total if total else 0.0) for part, each in seconds.items()]
        rows.append(("total", total, float(total > 0)))
        width = max(len(part) for part, *_ in rows)
        lines = [f"{part:<{width}}  {each:>10.3f} s  {share:>6.1%}" for part, each, share in rows]
        lines.insert(-1, "-" * len(lines[-1]))
        for part, each in sorted(self._accounts_of(engine).background.items()):
            lines.append(f"beside the run, in the background: {part} {each:.3f} s")
        advice = self.advice(engine)
        return "\n".join([*lines, *([advice] if advice else [])])

    def advice(self, engine: Engine) -> str | None:
        """Returns what to do about the largest part that can be avoided.

        The result is None if no such part takes 5 % of the time. Forward pass, backward pass,
        optimizer and the rest do not count as avoidable.

        Raises:
            ValueError: the handler was never attached to ``engine``.
        """
        seconds = self.seconds(engine)
        total = sum(seconds.values())
        for part, each in seconds.items():  # the largest comes first
            remedy = _remedy(part, each, engine)
            if remedy is not None and each >= _MIN_AVOIDABLE_SHARE * total > 0:
                name = part.removeprefix("handlers/")
                return f"{name}: {each / total:.0%} of the time. {remedy}"
        return None

    def findings(self, engine: Engine) -> dict[str, Any]:
        """Returns the seconds of the parts and of the background, and the advice.

        The result is empty before the first measurement.

        Raises:
            ValueError: the handler was never attached to ``engine``.
        """
        seconds = self.seconds(engine)
        if not any(seconds.values()):
            return {}
        background = {**self._accounts_of(engine).background}  # a thread may add a part
        return {
            "seconds": {part: round(each, 3) for part, each in seconds.items()},
            "background": {part: round(each, 3) for part, each in background.items()},
            "advice": self.advice(engine),
        }

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that no event is given, and that the engine has no other TimeLedger."""
        super().check(engine, event)
        if attached_handlers(engine, TimeLedger):
            raise ValueError(
                "`engine` must have one TimeLedger, and it has one already: remove() the earlier "
                "attachment first"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Charges the time of each run to the parts, and reports the shares."""
        engine = attachment.engine
        steps = Steps(attachment, self.every_steps)
        accounts = TimeAccounts(perf_counter if self.clock is None else self.clock)
        _ledgers(engine)[self] = accounts

        def begin_run(engine: Engine) -> None:
            if engine.state.iteration == 0:
                accounts.forget_earlier()
                self._remove_shares(engine)

        def report(engine: Engine) -> None:
            seconds = _parts_of(engine) | accounts.seconds
            total = sum(seconds.values())
            if total:
                shares = {f"{self.prefix}{name}": each / total for name, each in seconds.items()}
                self._remove_shares(engine, but=shares)
                engine.state.metrics.update(shares)

        attachment.during_run(lambda engine: _counted(engine, accounts), outermost=True)
        attachment.on_removal(set_time_accounts(engine, accounts))
        attachment.on(Events.STARTED, begin_run)
        for event in _ENDS:
            attachment.on(event, lambda engine: accounts.switch(OTHER), turn=Turn.NOTE)
        for event, part in _parts_by_event(engine).items():
            attachment.add(event, _switching(accounts, part))
        unmeasured = {"TimeAccounts", type(self).__name__}  # the ledger's own handlers
        if is_trainer(engine):
            steps.call(_switching(accounts, OTHER), report)
            # The only handler of an OptimizerStep that a trainer calls after each step calls the
            # handlers that are due, and they charge their time themselves.
            unmeasured.add("OptimizerStep")
        else:
            steps.call(lambda engine: None, report)
        attachment.on_removal(call_handlers_through(engine, _charging(accounts, unmeasured)))

    def _remove_shares(self, engine: Engine, but: Collection[str] = ()) -> None:
        """Removes the shares of earlier runs, also those from a checkpoint, from the metrics.

        Args:
            engine: the engine.
            but: the names of the shares to keep.
        """
        own, handlers = self.names(), f"{self.prefix}handlers/"
        for name in [*engine.state.metrics]:
            if name not in but and (name in own or str(name).startswith(handlers)):
                del engine.state.metrics[name]

    def _accounts_of(self, engine: Engine) -> TimeAccounts:
        accounts = _ledgers(engine).get(self)
        if accounts is None:
            raise ValueError(
                "`engine` must be one that the TimeLedger has measured, and the TimeLedger was "
                "never attached to it: call attach(engine) before the run"
            )
        return accounts


def _ledgers(engine: Engine) -> dict[TimeLedger, TimeAccounts]:
    """Returns the accounts of all ledgers that were ever attached to ``engine``."""
    ledgers: dict[TimeLedger, TimeAccounts] = engine_storage(engine).setdefault("time_ledgers", {})
    return ledgers


def _parts_by_event(engine: Engine) -> dict[Any, str]:
    return _PARTS_OF_TRAINER if is_trainer(engine) else _PARTS_OF_PLAIN_ENGINE


def _parts_of(engine: Engine) -> dict[str, float]:
    """Returns the parts that are shown in any case, with 0 seconds."""
    return dict.fromkeys([*_parts_by_event(engine).values(), *_ALWAYS_SHOWN], 0.0)


def _switching(accounts: TimeAccounts, part: str) -> Callable[[Engine], Any]:
    """Returns a new handler that charges the time from now on to ``part``."""
    # A partial is called faster than a function that calls `switch`.
    return partial(accounts.switch, part)


def _charging(
    accounts: TimeAccounts, unmeasured: Collection[str]
) -> Callable[[Callable[..., Any], Callable[..., Any]], Callable[..., Any]]:
    """Returns a function that wraps the call of a handler, to charge its time to the handler.

    Args:
        accounts: the accounts.
        unmeasured: the names of the handlers that are called directly.
    """
    switch = accounts.switch

    def wrap(function: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
        name = handler_name(function)
        if name in unmeasured:
            return call
        account = account_of(name)

        def charged(*args: Any, **kwargs: Any) -> Any:
            previous = switch(account)
            try:
                return call(*args, **kwargs)
            finally:
                switch(previous)

        return charged

    return wrap


@contextmanager
def _counted(engine: Engine, accounts: TimeAccounts) -> Iterator[None]:
    """Counts the time of the body, which is a run of ``engine``, and of the collections in it."""
    thread, charged_before = get_ident(), OTHER

    def charge_collection(phase: str, info: dict[str, int]) -> None:
        # A collection in another thread stops this thread too, but its callbacks may overlap with
        # a switch of this thread. Such a collection is charged to what this thread is doing.
        nonlocal charged_before
        if get_ident() != thread:
            return
        if phase == "start":
            charged_before = accounts.switch("gc")
        else:
            accounts.switch(charged_before)

    accounts.start(is_continued=is_interrupted(engine))
    try:
        with observed_collections(charge_collection):
            yield
    finally:
        accounts.stop()


def _remedy(part: str, seconds: float, engine: Engine) -> str | None:
    """Returns what to do if ``part`` takes long; None if its time cannot be avoided."""
    if part == "data":
        return _data_remedy(engine)
    if part == "validation":
        return "Validate less often, or limit its data with `max_batches`."
    if part == "checkpoint":
        savers = attached_handlers(engine, SaveCheckpoint)
        if all(each.background for each in savers):
            return "Save less often."
        return "SaveCheckpoint(background=True) writes while training goes on; or save less often."
    if part == "gc":
        if attached_handlers(engine, GarbageCollector):
            return "Let the GarbageCollector collect less often, or set its `freeze_after`."
        if seconds < _MIN_COLLECTION_SECONDS:
            return None
        return (
            "GarbageCollector(every_steps=1000, disable_automatic=True, freeze_after=100) collects "
            "every 1,000 steps, without the objects that live until the end."
        )
    if part == account_of("TrainingReport"):
        return None  # the wait for the last page, once in each run
    if part.startswith("handlers/"):
        handlers = attached_handlers(engine, Handler)
        if any(
            hasattr(h, "every_steps") and account_of(type(h).__name__) == part for h in handlers
        ):
            return "Give this handler a larger `every_steps`."
        return "Call this handler less often, with an event such as STEP_COMPLETED(every=10)."
    return None


def _data_remedy(engine: Engine) -> str:
    """Returns what to do about the wait for data, by the settings of the loader."""
    loader: Any = engine.state.dataloader
    loader = loader.loader if isinstance(loader, DataFeed) else loader
    loader = getattr(loader, "base_dataloader", loader)  # the torch loader inside Accelerate's
    workers = getattr(loader, "num_workers", None)
    if workers is None:
        text = (
            f"The data are a {type(loader).__name__}, which gives each batch when it is requested: "
            "a DataLoader with `num_workers` prepares batches ahead."
        )
    elif workers == 0:
        text = (
            "`num_workers` of the DataLoader is 0, so this process prepares each batch itself: "
            "set `num_workers` to 2 or more."
        )
    elif not getattr(loader, "persistent_workers", True) and (engine.state.max_epochs or 1) > 1:
        text = (
            "`persistent_workers` of the DataLoader is False, so its workers start again in each "
            "epoch: set it to True."
        )
    else:
        text = f"`num_workers` is {workers}: set it higher, or prepare the data before the run."
    if torch.accelerator.is_available() and not getattr(loader, "pin_memory", True):
        text += " `pin_memory` is False: set it to True, so that copies to the device are faster."
    return text
