"""Compares some lines of Accelerate and Ignite with faster ones.

Each case is called as a loop calls it, as it is and with its remedy, in turns.
"""

import functools
import inspect
import statistics
import textwrap
import timeit
from types import MethodType

import accelerate.optimizer
import ignite.engine.engine
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks import TrainEvents
from tests.benchmarks.machine import use_core
from tests.benchmarks.sizes import CLOCKS
from tests.benchmarks.work import MAX_NORM
from tests.benchmarks.work import Convs
from tests.benchmarks.work import Linear


def prepared(model):
    """Returns accelerator, model and optimizer, prepared, with gradients in place."""
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1e-9))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return accelerator, model, optimizer


def step():
    """Times ``step``, which searches the path for the package ``lomo_optim`` twice per call."""
    _, _, optimizer = prepared(Linear())
    looks_up = accelerate.optimizer.is_lomo_available
    cached = functools.lru_cache(looks_up)

    def with_cache():
        accelerate.optimizer.is_lomo_available = cached
        optimizer.step()

    def as_it_is():
        accelerate.optimizer.is_lomo_available = looks_up
        optimizer.step()

    return as_it_is, with_cache


def zero_grad():
    """Times ``zero_grad``, which inspects the signature of the optimizer's method in each call."""
    _, _, optimizer = prepared(Linear())

    def remedied():  # as if the signature was inspected once, in __init__
        if optimizer.gradient_state.sync_gradients:
            optimizer.optimizer.zero_grad(set_to_none=True)

    return optimizer.zero_grad, remedied


def clip_of(make_model):
    """Times ``clip_grad_norm_``, which sorts parameters by mesh even if none is a DTensor."""

    def clip():
        accelerator, model, _ = prepared(make_model())
        parameters = list(model.parameters())

        def remedied():
            accelerator.unscale_gradients()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)

        return lambda: accelerator.clip_grad_norm_(parameters, MAX_NORM), remedied

    return clip


def with_lines(name, *changes):
    """Returns an engine, and a second one with some lines of a method replaced."""
    plain, remedied = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    source = textwrap.dedent(inspect.getsource(getattr(Engine, name)))
    for line, other in changes:
        if line not in source:
            raise RuntimeError(f"this version of Ignite does not have the line {line}")
        source = source.replace(line, other)
    names = {}
    exec(source, vars(ignite.engine.engine), names)
    setattr(remedied, name, MethodType(names[name], remedied))
    return plain, remedied


def fire():
    """Times ``_fire_event``, which formats a log message even if it is not logged."""
    eager = 'f"{self.state.epoch} | {self.state.iteration}, Firing handlers for event {event_name}"'
    lazy = (
        '"%s | %s, Firing handlers for event %s", '
        "self.state.epoch, self.state.iteration, event_name"
    )
    plain, remedied = with_lines("_fire_event", (eager, lazy))
    event = Events.ITERATION_STARTED
    return lambda: plain._fire_event(event), lambda: remedied._fire_event(event)


def fire_custom():
    """Times ``fire_event``, which searches a list of events that compare in Python."""
    plain, remedied = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    event = TrainEvents.STEP_COMPLETED
    for engine in (plain, remedied):
        engine.register_events(*TrainEvents)
    remedied._allowed_events = set(remedied._allowed_events)
    return lambda: plain.fire_event(event), lambda: remedied.fire_event(event)


def filtered():
    """Times a filter, which looks up the counter of its event twice, by hash and equality."""
    before = "    @functools.wraps(handler)"
    attribute = "    attribute = State.event_to_attr[event_name]\n"
    engines = with_lines(
        "_handler_wrapper",
        (before, attribute + before),
        ("self.state.get_event_attrib_value(event_name)", "getattr(self.state, attribute)"),
    )
    event = Events.ITERATION_COMPLETED(every=10**6)
    for engine in engines:
        engine.state.iteration = 1
        engine.add_event_handler(event, lambda: None)
    return tuple(engine._event_handlers[event][0][0] for engine in engines)


CASES = {
    "`AcceleratedOptimizer.step`, `is_lomo_available` twice": step,
    "`AcceleratedOptimizer.zero_grad`, `inspect.signature`": zero_grad,
    "`Accelerator.clip_grad_norm_`, 2 parameters": clip_of(Linear),
    "`Accelerator.clip_grad_norm_`, 162 parameters": clip_of(Convs),
    "`Engine._fire_event`, an eager f-string": fire,
    "`Engine.fire_event` of a custom event, looked for in a list": fire_custom,
    "a handler with `every=…` that is not due": filtered,
}


def microseconds(call, clock, number=300):
    return timeit.timeit(call, timer=clock, number=number) / number * 1e6


def table(rounds, core=None, clock="wall"):
    use_core(core)
    torch.set_num_threads(1)
    yield "| one call | unchanged, µs | with the remedy | difference | quartiles |"
    yield "|---|---|---|---|---|"
    for what, make in CASES.items():
        calls = make()
        taken = []
        for number in range(rounds):
            order = (0, 1) if number % 2 else (1, 0)
            times = {which: microseconds(calls[which], CLOCKS[clock]) for which in order}
            taken.append((times[0], times[1], times[0] - times[1]))
        before, after, more = zip(*taken, strict=True)
        low, middle, high = statistics.quantiles(more, n=4)
        yield (
            f"| {what} | {statistics.median(before):.2f} | {statistics.median(after):.2f} | "
            f"{middle:.2f} | {low:.2f} to {high:.2f} |"
        )


def tables(given):
    yield table(3 * given.rounds, given.core, given.clock)
