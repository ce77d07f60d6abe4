"""Stops that one of two processes requests, and the cost of exchanging them."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import PartialState
from ignite.engine import Events
from ignite.handlers import EarlyStopping
from ignite.handlers import TerminateOnNan
from ignite.handlers import TimeLimit
from ignite.metrics import Loss
from torch.utils.data import DataLoader

from ignite_hooks import GarbageCollector
from ignite_hooks import GradientClipping
from ignite_hooks import ResumeCheckpoint
from ignite_hooks import SaveCheckpoint
from ignite_hooks import TrainEvents
from ignite_hooks import Validation
from ignite_hooks import create_supervised_evaluator
from ignite_hooks import create_supervised_trainer
from ignite_hooks.config import RunSettings
from ignite_hooks.processes.decisions import Decisions
from ignite_hooks.processes.decisions import Question
from tests.checkpoint.damage.training import whole_steps
from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import counting_collectives
from tests.distributed.programs.checks import run
from tests.reference import Repeatable
from tests.reference import make_model
from tests.reference import samples
from tests.reference import seed
from tests.reference import weights

EPOCHS = 3
LENGTH = 6
"""Batches of an epoch, for each process."""


def rank():
    return PartialState().process_index


def directory_of(name):
    """Returns a directory that both processes see."""
    return Path(sys.argv[1]) / f"{name} checkpoints"


def trainer_of(steps=1, data=None, directory=None, **options):
    """A trainer whose two processes draw the same numbers."""
    seed()
    if directory is not None:
        options["checkpoint"] = SaveCheckpoint(directory, keep_last="all", on_signals=("SIGTERM",))
    if data is None:
        data = DataLoader(samples(4 * LENGTH), batch_size=2, shuffle=True)
    model = make_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ours = accelerator(steps)
    return create_supervised_trainer(
        model, optimizer, F.mse_loss, data, accelerator=ours, **options
    )


def on_second(trainer, event, ask):
    """Calls ``ask(trainer)`` at an event on rank 1."""
    if rank() == 1:
        trainer.add_event_handler(event, lambda: ask(trainer))


def iterations_at(trainer, event):
    """Returns a list that gets the iteration at each event of a kind."""
    iterations = []
    trainer.add_event_handler(event, lambda engine: iterations.append(engine.state.iteration))
    return iterations


def found_in(trainer):
    state = trainer.state
    return {
        "reason": trainer.stop_reason,
        "ended_by": trainer.ended_by,
        "place": [state.epoch, state.iteration, state.optimizer_step],
        "weights": weights(trainer.model).tolist(),
    }


def terminate(trainer):
    trainer.terminate()


def terminate_by_flag(trainer):
    trainer.should_terminate = True


def poison(trainer):
    trainer.state.output = torch.tensor(float("nan"))


def withdraw(trainer):
    trainer.terminate()
    trainer.should_terminate = False


EVENTS = {
    "STARTED": Events.STARTED,
    "EPOCH_STARTED": Events.EPOCH_STARTED(once=2),
    "ITERATION_STARTED": Events.ITERATION_STARTED(once=3),
    "OPTIMIZER_STEP_STARTED": TrainEvents.OPTIMIZER_STEP_STARTED(once=3),
    "STEP_COMPLETED": TrainEvents.STEP_COMPLETED(once=3),
    "last batch but one": Events.ITERATION_COMPLETED(once=LENGTH - 1),
    "last batch": Events.ITERATION_COMPLETED(once=LENGTH),
    "EPOCH_COMPLETED": Events.EPOCH_COMPLETED(once=1),
}


def terminated_at_events():
    found = {}
    for name, event in EVENTS.items():
        trainer = trainer_of()
        ends = [iterations_at(trainer, each) for each in (Events.TERMINATE, Events.COMPLETED)]
        on_second(trainer, event, terminate)
        trainer.run(max_epochs=EPOCHS)
        found[name] = {**found_in(trainer), "ends": ends}
    return found


def terminated_windows():
    found = {}
    for name, steps, every in (("windows", 2, 1), ("seldom", 1, 4)):
        trainer = trainer_of(steps, agree_every=every)
        on_second(trainer, Events.ITERATION_COMPLETED(once=1), terminate)
        trainer.run(max_epochs=EPOCHS)
        found[name] = found_in(trainer)
    return found


def stopped_by_handlers():
    found = {}

    def by(name, ask=None, handler=None, event=Events.ITERATION_COMPLETED):
        trainer = trainer_of()
        if ask is not None:
            on_second(trainer, Events.ITERATION_COMPLETED(once=3), ask)
        if handler is not None:
            trainer.add_event_handler(event, handler(trainer))
        trainer.run(max_epochs=EPOCHS)
        found[name] = found_in(trainer)

    def patience(trainer):
        scores = iter(range(9) if rank() == 0 else range(0, -9, -1))
        return EarlyStopping(1, lambda engine: next(scores), trainer)

    def long_ago(trainer):
        limit = TimeLimit(1000)
        limit.start_time -= 2000 * rank()
        return limit

    by("flag", terminate_by_flag)
    by("nan", poison, lambda trainer: TerminateOnNan())
    by("time", None, long_ago)
    by("early", None, patience, Events.EPOCH_COMPLETED)
    by("withdrawn", withdraw)
    return found


def stopped_by_two():
    """Requests another stop on each rank; the one that finishes the run names the reason."""
    found = {}
    for final in range(2):
        trainer = trainer_of()

        def stop(engine, final=final):
            engine.terminate(resumable=rank() != final)

        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), stop)
        trainer.run(max_epochs=EPOCHS)
        found[final] = found_in(trainer)
    return found


def stopped_without_completed():
    trainer = trainer_of()
    completed = iterations_at(trainer, Events.COMPLETED)
    on_second(trainer, Events.ITERATION_COMPLETED(once=3), lambda t: t.terminate(True))
    trainer.run(max_epochs=EPOCHS)
    return {**found_in(trainer), "completed": completed}


def stopped_before_a_validation_at_start():
    """The validation has collectives: both ranks have it, or none."""
    model = make_model(dropout=0.0)
    evaluator = create_supervised_evaluator(model, {"loss": Loss(F.mse_loss)})
    held_out = [*DataLoader(samples(4), 2)]
    trainer = trainer_of(validation=Validation(evaluator, held_out, at_start=True))
    on_second(trainer, Events.STARTED, terminate)
    trainer.run(max_epochs=EPOCHS)
    return {**found_in(trainer), "metrics": list(trainer.state.metrics)}


def stopped_at_limits():
    """A stop in the last step of a run by ``max_steps``: within an epoch, and at its end."""
    found = {}
    for limit in (3, LENGTH):
        trainer = trainer_of()
        on_second(trainer, Events.ITERATION_COMPLETED(once=limit), terminate)
        trainer.run(max_steps=limit)
        found[limit] = found_in(trainer)
    return found


def stopped_at_a_save():
    """A stop at CHECKPOINT_SAVED, at the end of the first epoch and of the last one."""
    found = {}
    for epoch in (1, EPOCHS):
        checkpoint = SaveCheckpoint(directory_of(f"at a save of {epoch}"), every_epochs=1)
        trainer = trainer_of(checkpoint=checkpoint)

        def stop(engine, epoch=epoch):
            if rank() == 1 and engine.state.epoch == epoch:
                engine.terminate()

        trainer.add_event_handler(TrainEvents.CHECKPOINT_SAVED, stop)
        trainer.run(max_epochs=EPOCHS)
        found[epoch] = found_in(trainer)
    return found


def stopped_by_all():
    trainer = trainer_of()
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), terminate)
    trainer.run(max_epochs=EPOCHS)
    return found_in(trainer)


def streams_that_end_elsewhere():
    """Data of unknown length, which ends earlier on the rank that asks."""
    mine = [*DataLoader(samples(4 * LENGTH), batch_size=2)][: LENGTH + 1 - rank()]
    trainer = trainer_of(2, Repeatable(mine))
    on_second(trainer, Events.ITERATION_COMPLETED(once=1), terminate)
    trainer.run(max_epochs=EPOCHS)
    return found_in(trainer)


def epochs_cut():
    """``terminate_epoch`` in the first window, in the last one, and where no epoch can be cut."""
    found = {}
    for name, event in (("first", 1), ("last", LENGTH)):
        trainer = trainer_of()
        on_second(trainer, Events.ITERATION_COMPLETED(once=event), lambda t: t.terminate_epoch())
        lengths = iterations_at(trainer, Events.EPOCH_COMPLETED)
        trainer.run(max_epochs=EPOCHS)
        found[name] = {**found_in(trainer), "lengths": lengths}
    trainer = trainer_of()
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: engine.terminate_epoch())
    try:
        trainer.run()
    except RuntimeError as error:
        found["not in an epoch"] = str(error)
    return found


def interrupted():
    unbroken = trainer_of()
    unbroken.run(max_epochs=EPOCHS)
    trainer = trainer_of()
    on_second(trainer, Events.ITERATION_COMPLETED(once=3), lambda t: t.interrupt())
    places = iterations_at(trainer, Events.INTERRUPT)
    trainer.run(max_epochs=EPOCHS)
    places.append(trainer.state.iteration)
    trainer.run(max_epochs=EPOCHS)
    is_equal = torch.equal(weights(trainer.model), weights(unbroken.model))
    return {"places": places, "iteration": trainer.state.iteration, "equal": is_equal}


def continued():
    """Continues on both ranks after a stop by one of them, and compares the weights bit by bit."""
    unbroken = trainer_of()
    unbroken.run(max_epochs=EPOCHS)
    trainer = trainer_of()
    on_second(trainer, Events.ITERATION_COMPLETED(once=3), terminate)
    trainer.run(max_epochs=EPOCHS)
    stopped = trainer.state.iteration
    trainer.run(max_epochs=EPOCHS)
    is_equal = torch.equal(weights(trainer.model), weights(unbroken.model))
    return {"stopped": stopped, "iteration": trainer.state.iteration, "equal": is_equal}


def saved():
    """A stop by a handler, and one by a signal, end in one checkpoint each, which is resumed."""
    unbroken = trainer_of()
    unbroken.run(max_epochs=EPOCHS)
    found = {}
    for name, ask in (
        ("handler", lambda trainer: trainer.terminate(resumable=True)),
        ("signal", lambda trainer: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        directory = directory_of(name)
        trainer = trainer_of(directory=directory)
        on_second(trainer, Events.ITERATION_COMPLETED(once=3), ask)
        trainer.run(max_epochs=EPOCHS)
        resumed = trainer_of(resume_from=ResumeCheckpoint(directory))
        resumed.run(max_epochs=EPOCHS)
        found[name] = {
            **found_in(trainer),
            "steps": whole_steps(directory),
            "equal": torch.equal(weights(resumed.model), weights(unbroken.model)),
        }
    return found


def settings():
    """A run from settings, which exchanges stops as seldom as they say."""
    seed()
    run_settings = RunSettings(agree_every=4, max_epochs=EPOCHS)
    model = make_model(dropout=0.0)
    trainer = run_settings.build(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        F.mse_loss,
        DataLoader(samples(4 * LENGTH), batch_size=2),
        accelerator=accelerator(),
    )
    on_second(trainer, Events.ITERATION_COMPLETED(once=1), terminate)
    trainer.run()
    return found_in(trainer)


def failed_while_pending():
    """Fails on all ranks while an exchange is pending; the next run must not read it."""
    trainer = trainer_of()
    failing = trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda engine: 1 / 0)
    try:
        trainer.run(max_epochs=EPOCHS)
    except ZeroDivisionError:
        failing.remove()
    on_second(trainer, Events.ITERATION_COMPLETED(once=4), terminate)
    trainer.run(max_epochs=EPOCHS)
    return found_in(trainer)


def other_handlers():
    """Adds a question on one rank only, which must be an error on all."""
    decisions = Decisions(accelerator(), 1)
    decisions.add(Question(lambda: None, lambda asked: None))
    if rank() == 1:
        decisions.add(Question(lambda: "stop", lambda asked: None))
    try:
        decisions.exchange_now()
    except RuntimeError as error:
        return {"error": str(error)}
    return {}


def collectives():
    """Returns the collectives of an epoch without requests, except those of DDP."""
    ours = accelerator()
    seed()
    model = make_model(dropout=0.0)
    evaluator = create_supervised_evaluator(model, {}, accelerator=ours)
    trainer = create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        F.mse_loss,
        DataLoader(samples(4 * LENGTH), batch_size=2),
        accelerator=ours,
        grad_clip=GradientClipping(max_norm=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100),
        validation=Validation(evaluator, [*DataLoader(samples(4), 2)], every_steps=1000),
        checkpoint=SaveCheckpoint(directory_of("costs"), every_epochs=100, every_seconds=10**6),
        handlers=[GarbageCollector(every_steps=1000)],
    )
    by_epoch = []
    with counting_collectives() as counts:

        @trainer.on(Events.EPOCH_STARTED)
        def take():
            by_epoch.append(dict(counts))
            counts.clear()

        trainer.run(max_epochs=EPOCHS)
    return {"epoch": by_epoch[2]}


if __name__ == "__main__":
    run(
        terminated_at_events,
        terminated_windows,
        stopped_by_handlers,
        stopped_at_a_save,
        stopped_by_two,
        stopped_without_completed,
        stopped_before_a_validation_at_start,
        stopped_at_limits,
        stopped_by_all,
        streams_that_end_elsewhere,
        epochs_cut,
        interrupted,
        continued,
        saved,
        settings,
        failed_while_pending,
        other_handlers,
        collectives,
    )
