"""The two engines that these tests compare, and the table of their intended differences.

Each test runs twice: on Ignite's engine and on the trainer. Both get the same data, handlers and
arguments, and must show the same values, which the test writes out. Where the trainer departs from
Ignite on purpose, the test asks ``side.departs(name, ignite=…, ours=…)`` for the expected value.
"""

from contextlib import AbstractContextManager
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events
from ignite.engine import create_supervised_evaluator
from ignite.engine import create_supervised_trainer
from ignite.engine.events import CallableEventWithFilter

import ignite_hooks
from tests.ids import stable_id
from tests.reference import make_model
from tests.reference import make_trainer

DEPARTURES = {
    # How a run ends, and how the next begins
    "a batch whose step was not made is not counted": "After a stop within a window the counters "
    "are those after the last whole step, where the next run() continues. Ignite counts a batch "
    "that was not trained on.",
    "a stopped run continues": "The next run() gives the remaining batches of the epoch. Ignite "
    "leaves them out: it begins the next epoch, or starts from scratch after the last one.",
    "a stop at the last batch completes the epoch": "The epoch has had all its batches, so "
    "EPOCH_COMPLETED fires before TERMINATE. In Ignite it never fires.",
    "a failed run continues": "The next run() continues at the last step boundary. In Ignite the "
    "next run() returns None and does nothing.",
    "a handled failure ends the run": "When the handlers of EXCEPTION_RAISED return, the run ends. "
    "Ignite fires EPOCH_COMPLETED for the failed epoch and trains the next one.",
    "a failure within the step is handled once": "The handlers of EXCEPTION_RAISED are called "
    "once, even if one of them raises. In this case Ignite calls them again.",
    "a finished run continues to another kind of limit": "A finished run continues to a limit "
    "of another kind that is not reached yet. In Ignite the first limit must be set to None.",
    # Limits and lengths
    "an epoch is one pass": "Without an epoch_length each epoch asks for the current length of "
    "the data. Ignite keeps the length of the first epoch.",
    "after set_data the epoch ends with the new data": "Without an epoch_length the epoch ends "
    "where the new data end. Ignite keeps the length of the old data.",
    "a limit that is passed ends the run": "A limit that a handler sets below what is already "
    "done ends the run at once. Ignite tests for equality, and continues to the end of the epoch "
    "or forever.",
    "limits are checked before the run": "max_epochs=0 is an error. Ignite runs nothing.",
    "max_iters does not set max_epochs": "Ignite derives max_epochs from max_iters when the length "
    "of the data becomes known, and may therefore end a run before max_iters.",
    "other data may have another length": "A run that continues with other data takes their "
    "epoch_length. Ignite raises an error.",
    # Data
    "the end of the data is known in advance": "One batch is read ahead from data without a "
    "length. Ignite asks once more, with a GET_BATCH_STARTED for a batch that does not come.",
    "data that end too early are an error": "An iterator that gives no batch is an error. Ignite "
    "counts empty epochs, or warns and ends the run.",
    "a loader is prepared": "state.dataloader is the loader that Accelerate made from a "
    "DataLoader, with the same data set. A loader class with its own iteration stays as it is.",
    "a resumed epoch skips the batches it has had": "A loaded state continues at its batch. Ignite "
    "gives the right number of batches, but takes them from the beginning of the data.",
    # Events and state
    "last_event_name returns to the outer event": "last_event_name in a handler is the event of "
    "this handler, even after it has fired another. In Ignite it is the last event fired.",
    "metrics come first at EPOCH_COMPLETED": "All other handlers see the metrics of this epoch. "
    "In Ignite a handler that was attached before a metric sees the previous epoch's value.",
    "the step has events of its own": "The events of TrainEvents fire between ITERATION_STARTED "
    "and the next GET_BATCH_STARTED, and appear in last_event_name.",
    "no second GET_BATCH_STARTED after interrupt()": "Ignite fires GET_BATCH_STARTED twice for the "
    "same batch if the run was interrupted at DATALOADER_STOP_ITERATION.",
    "a handler added while its event fires, after another was removed in the same firing": "The "
    "new handler is called last in the same firing. Ignite does not call it in this firing.",
    "outputs are tensors": "state.output is loss.detach(): item() would synchronize with the "
    "device.",
    "gradients are zeroed within the iteration": "They are zeroed after the handlers of "
    "ITERATION_COMPLETED. Ignite zeroes them when the next iteration begins.",
    "frozen submodules stay in eval mode": "Submodules in eval mode at the start of an epoch stay "
    "in it. Ignite calls model.train() in each iteration, which changes their mode.",
    "the state counts steps": "state_dict() also holds optimizer_step.",
    "a batch is a pair": "A tensor is not a pair (x, y), even if its first dimension is 2.",
}
"""Each difference from Ignite's engine, with its reason.

The table is in docs/coming_from/differences_from_ignite.md, too.
"""


@dataclass(frozen=True)
class Supervised:
    """The objects of a script that has called ``create_supervised_trainer``."""

    engine: Engine
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer


class Side:
    """The parameter of each test: builds Ignite's engine or the trainer from the same arguments."""

    def __init__(self, name: str) -> None:
        self.is_ours = name == "trainer"

    def engine(self, update: Any = lambda batch: batch) -> Engine:
        """Returns an engine whose output is ``update(batch)``, by default the batch itself.

        The engine takes batches of any type. In each iteration it also trains a small model on
        constant data, so that there are real steps.
        """
        ones = torch.ones(1, 4)
        if self.is_ours:
            return make_trainer(
                batch_processor=lambda model, batch: (update(batch), model(ones).pow(2).mean()),
                output_transform=lambda batch, _, outputs, loss: outputs,
            )
        model = make_model(0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def process(engine, batch):
            optimizer.zero_grad()
            output = update(batch)
            model(ones).pow(2).mean().backward()
            optimizer.step()
            return output

        return Engine(process)

    def supervised(
        self, model: torch.nn.Module | None = None, lr: float = 0.1, accumulation: int = 1
    ) -> Supervised:
        """Calls ``create_supervised_trainer`` of Ignite or of this package."""
        model = model or make_model(0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        if self.is_ours:
            accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
            engine = ignite_hooks.create_supervised_trainer(
                model, optimizer, F.mse_loss, accelerator=accelerator
            )
        else:
            engine = create_supervised_trainer(
                model, optimizer, F.mse_loss, gradient_accumulation_steps=accumulation
            )
        return Supervised(engine, model, optimizer)

    def evaluator(self, model: torch.nn.Module, metrics: Any = None) -> Engine:
        """Calls ``create_supervised_evaluator`` of Ignite or of this package."""
        if self.is_ours:
            # The accelerator shares the settings of that of the trainer.
            return ignite_hooks.create_supervised_evaluator(model, metrics)
        return create_supervised_evaluator(model, metrics)

    def validate(self, trainer: Engine, evaluator: Engine, data: Any) -> None:
        """Runs the evaluator after each epoch, with the ``Validation`` of this package or without.

        The results of the ``Validation`` are also in the metrics of the trainer.
        """
        if self.is_ours:
            ignite_hooks.Validation(evaluator, data, every_epochs=1).attach(trainer)
        else:
            trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(data))

    def departs(self, name: str, *, ignite: Any, ours: Any) -> Any:
        """Returns the expected value of this side, for a difference in the table."""
        assert name in DEPARTURES
        return ours if self.is_ours else ignite

    def refuses(self, name: str, error: type[Exception] = ValueError) -> AbstractContextManager:
        """Expects ``error`` on the trainer, where Ignite raises nothing."""
        assert name in DEPARTURES
        return pytest.raises(error) if self.is_ours else nullcontext()

    def accepts(self, name: str, error: type[Exception] = ValueError) -> AbstractContextManager:
        """Expects ``error`` on Ignite's engine, where the trainer raises nothing."""
        assert name in DEPARTURES
        return nullcontext() if self.is_ours else pytest.raises(error)


def on_both_sides(script: Any) -> Any:
    """Returns the result of ``script(side)``, which must be the same on both sides."""
    ignite, ours = (script(Side(name)) for name in ("ignite", "trainer"))
    assert ours == ignite, (ours, ignite)
    return ours


# A listener of EXCEPTION_RAISED would count as a handler of failures, and change what happens.
EVENTS_OF_RUNS = [event for event in Events if event is not Events.EXCEPTION_RAISED]


def short_id(value: Any) -> str:
    """Returns the name of an event without its filter, and for other values their stable id."""
    return value.name if isinstance(value, CallableEventWithFilter) else stable_id(value)


class UnknownLength:
    """Batches without a length, which can be iterated again."""

    def __init__(self, length: int) -> None:
        self._batches = range(length)

    def __iter__(self) -> Any:
        return iter(self._batches)


def endless() -> Any:
    """Yields the numbers from 0 on."""
    number = 0
    while True:
        yield number
        number += 1


def listen(engine: Engine, *events: Any) -> list[tuple[str, int, int]]:
    """Returns a list that grows by (name of the event, epoch, iteration) at each of the events."""
    seen: list[tuple[str, int, int]] = []
    for event in events:

        def note(engine: Engine, *args: Any, name: str = event.name, **kwargs: Any) -> None:
            seen.append((name, engine.state.epoch, engine.state.iteration))

        engine.add_event_handler(event, note)
    return seen


def counters(engine: Engine) -> tuple[int, int]:
    """Returns the epoch and the iteration of the state."""
    return engine.state.epoch, engine.state.iteration


def outputs(engine: Engine) -> list[Any]:
    """Returns a list that grows by the output of each iteration."""
    seen: list[Any] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output))
    return seen
