"""The two sides that these tests compare, and the table of where they depart from each other.

Each test runs twice: on Ignite's engine and on the trainer, which get the same data, handlers and
arguments, and must show the same values, written out in the test. Where the trainer departs from
Ignite on purpose, the test asks ``side.departs(name, ignite=…, ours=…)`` for the value of its side.
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
from ignite.engine import create_supervised_trainer
from ignite.engine.events import CallableEventWithFilter

import ignite_hooks
from tests.ids import stable_id
from tests.reference import make_model
from tests.reference import make_trainer

DEPARTURES = {
    # How a run ends, and how the next begins
    "a stop before the step drops its batch": "The counters stand at the last step boundary, where "
    "the next run() continues; Ignite counts a batch that was not trained on.",
    "a stopped run continues": "The next run() gives the batches that are left of the epoch. "
    "Ignite begins the next epoch, or all over if it was the last, and leaves batches out.",
    "a stop at the last batch completes the epoch": "The epoch has had all its batches, so "
    "EPOCH_COMPLETED comes before TERMINATE. In Ignite it never comes.",
    "a failed run continues": "The next run() continues at the last step boundary. Ignite's "
    "returns None and does nothing.",
    "a handled failure ends the run": "When handlers of EXCEPTION_RAISED return, the run ends. "
    "Ignite trains the next epoch, after EPOCH_COMPLETED of the one that failed.",
    "failures within the step are raised once": "Ignite calls the handlers of EXCEPTION_RAISED "
    "again when one of them raises.",
    "another kind of limit continues": "A finished run continues to a limit of another kind that "
    "lies further; in Ignite the first limit must be set to None.",
    # Limits and lengths
    "an epoch is one pass": "Without an epoch_length the length of the data is asked in each epoch "
    "anew. Ignite keeps that of the first epoch.",
    "set_data ends the epoch with its pass": "Without an epoch_length the epoch ends where the new "
    "data end. Ignite keeps the length of the old data.",
    "a limit that is passed ends the run": "A limit that is set below what is done ends the run at "
    "once. Ignite asks for equality, and goes on to the end of the epoch or for ever.",
    "limits are checked before the run": "max_epochs=0 is an error; Ignite runs nothing.",
    "max_iters shows no max_epochs": "Ignite derives max_epochs from max_iters when the length of "
    "the data becomes known, and may end a run before max_iters by it.",
    "other data may have another length": "A run that continues on other data takes their "
    "epoch_length. Ignite raises an error.",
    # Data
    "the end of the data is foreseen": "One batch is read ahead of data without a length. Ignite "
    "asks once more in vain, with a GET_BATCH_STARTED for a batch that does not come.",
    "data that end too early are an error": "An iterator that has nothing to give is an error. "
    "Ignite counts empty epochs, or warns and ends the run.",
    "a loader is prepared": "state.dataloader is the loader that Accelerate made of a DataLoader, "
    "with the same data set. One whose class iterates in its own way stays as it is.",
    "a resumed epoch skips what it has had": "A loaded state continues at its batch. Ignite "
    "gives as many batches as are left, but the first ones of the data.",
    # Events and state
    "an event goes back to the one around it": "last_event_name in a handler is that handler's "
    "event, also after it fired another. In Ignite it is the last that was fired.",
    "metrics come first at EPOCH_COMPLETED": "All other handlers see the metrics of this epoch. "
    "In Ignite those that were attached before a metric see that of the epoch before.",
    "the step has events of its own": "Those of TrainEvents come between ITERATION_STARTED and the "
    "next GET_BATCH_STARTED, and show in last_event_name.",
    "no second GET_BATCH_STARTED after interrupt()": "Ignite fires it once more for the same batch "
    "when it was interrupted at DATALOADER_STOP_ITERATION.",
    "added while firing, after a removal": "A handler that is added to the event that is being "
    "fired is called at its end. In Ignite not if another was removed from it before.",
    "outputs are tensors": "state.output is loss.detach(): item() would wait for the device.",
    "gradients end with their iteration": "They are zeroed when the handlers of "
    "ITERATION_COMPLETED have returned; in Ignite as the next iteration begins.",
    "frozen submodules stay in eval mode": "Those in eval mode as an epoch begins stay so. "
    "Ignite calls model.train() in each iteration, which wakes them.",
    "the state counts steps": "state_dict() holds optimizer_step too.",
    "a batch is a pair": "A tensor is no pair (x, y), even if its first dimension is 2.",
}
"""What the trainer does otherwise than Ignite, and why. README repeats this table."""


@dataclass(frozen=True)
class Supervised:
    """What a script holds after it called ``create_supervised_trainer``."""

    engine: Engine
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer


class Side:
    """One of the two engines, built from the same arguments."""

    def __init__(self, name: str) -> None:
        self.is_ours = name == "trainer"

    def engine(self, update: Any = lambda batch: batch) -> Engine:
        """An engine for batches of any kind: its output is ``update(batch)``, the batch itself.

        It trains a small model all the same, on data that are always the same.
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

    def supervised(self, model: torch.nn.Module | None = None, lr: float = 0.1) -> Supervised:
        """What ``create_supervised_trainer`` makes: the import is all that differs."""
        model = model or make_model(0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        if self.is_ours:
            accelerator = Accelerator(cpu=True)
            engine = ignite_hooks.create_supervised_trainer(
                model, optimizer, F.mse_loss, accelerator=accelerator
            )
        else:
            engine = create_supervised_trainer(model, optimizer, F.mse_loss)
        return Supervised(engine, model, optimizer)

    def departs(self, name: str, *, ignite: Any, ours: Any) -> Any:
        """Returns the value of this side, where the two depart from each other."""
        assert name in DEPARTURES
        return ours if self.is_ours else ignite

    def refuses(self, name: str, error: type[Exception] = ValueError) -> AbstractContextManager:
        """Expects ``error`` on the trainer, where Ignite goes on."""
        assert name in DEPARTURES
        return pytest.raises(error) if self.is_ours else nullcontext()

    def accepts(self, name: str, error: type[Exception] = ValueError) -> AbstractContextManager:
        """Expects ``error`` on Ignite's engine, where the trainer goes on."""
        assert name in DEPARTURES
        return nullcontext() if self.is_ours else pytest.raises(error)


OF_RUNS = [event for event in Events if event is not Events.EXCEPTION_RAISED]
"""Ignite's events; to listen to EXCEPTION_RAISED is to handle failures."""


def short_id(value: Any) -> str:
    """The name of an event, without its filter, or what ``tests.ids`` makes of other values."""
    return value.name if isinstance(value, CallableEventWithFilter) else stable_id(value)


class Unknown:
    """Batches that can be iterated again, of no known length."""

    def __init__(self, length: int) -> None:
        self._batches = range(length)

    def __iter__(self) -> Any:
        return iter(self._batches)


def endless() -> Any:
    """A generator of the numbers from 0 on."""
    number = 0
    while True:
        yield number
        number += 1


def listen(engine: Engine, *events: Any) -> list[tuple[str, int, int]]:
    """A list that grows by (name of the event, epoch, iteration) at each of the events."""
    seen: list[tuple[str, int, int]] = []
    for event in events:

        def note(engine: Engine, *args: Any, name: str = event.name, **kwargs: Any) -> None:
            seen.append((name, engine.state.epoch, engine.state.iteration))

        engine.add_event_handler(event, note)
    return seen


def counters(engine: Engine) -> tuple[int, int]:
    """The epoch and the iteration that the state shows."""
    return engine.state.epoch, engine.state.iteration


def outputs(engine: Engine) -> list[Any]:
    """A list that grows by the output of each iteration."""
    seen: list[Any] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output))
    return seen
