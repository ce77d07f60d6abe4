"""Breaks an evaluation off between two batches, on all processes at the same one."""

import copy
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import ExitStack
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Engine
from ignite.engine import Events
from ignite.metrics import Metric

from ignite_hooks.core.engine import handlers_of
from ignite_hooks.core.engine import move_to_front
from ignite_hooks.core.restoring import restored
from ignite_hooks.core.stop_requests import BrokenOff
from ignite_hooks.core.stop_requests import stop_watches
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import load_between_passes

__all__ = ["NEVER", "Breaker"]


class Breaker:
    """Breaks a validation off when the run that it is part of is to stop.

    An evaluator is left by Ignite's own ``terminate``, without the events that its results would
    come with. With several processes they agree after each batch, whatever number of batches each
    of them has: one that has had its last answers until all have had theirs. (Where Ignite does not
    know which batch is the last, the evaluator ends by an exception then, ``BrokenOff``.)

    Args:
        engine: the engine that trains; None for a validation that cannot be broken off.
    """

    def __init__(self, engine: AnyEngine | None) -> None:
        self.watches = () if engine is None else stop_watches(engine)
        self._any_of = next((each.any_of for each in self.watches if each.any_of), None)
        self._weighed: Sequence[torch.nn.Module] = ()
        self._norms: list[torch.Tensor] = []

    def note_weights(self, models: Sequence[torch.nn.Module]) -> None:
        """Notes the weights of training: the validation is not broken off while they are others.

        Handlers of VALIDATION_STARTED, or of the first events of an evaluator, that swap other
        weights in swap them out at the event that is left out. The wrong ones would be saved, and
        trained on.
        """
        if self.watches:
            self._weighed, self._norms = models, _norms(models)

    def noted(
        self, evaluators: Sequence[Engine], feeds: Callable[[], Iterable[DataFeed]]
    ) -> Callable[[], None]:
        """Notes the results of evaluators and the states of their handlers, before they run.

        Those of an evaluator that is complete when the next one is broken off are dropped too. The
        data go back to where they began: all evaluators run on them once more.

        Args:
            evaluators: the evaluators.
            feeds: returns the feeds of their data.

        Returns:
            What puts them back.
        """
        if not self.watches:
            return lambda: None
        owners = {id(owner): owner for each in evaluators for owner in _owners(each)}
        states = [(owner, copy.deepcopy(owner.state_dict())) for owner in owners.values()]
        data = [(feed, copy.deepcopy(feed.state_dict())) for feed in feeds()]
        results = [(each, each.state.metrics) for each in evaluators]

        def put_back() -> None:
            for owner, state in states:
                owner.load_state_dict(state)
            load_between_passes(data)
            for evaluator, metrics in results:
                evaluator.state.metrics = metrics

        return put_back

    def look(self) -> None:
        """Raises BrokenOff if the run is to stop. Collective."""
        if self.watches and self.agree(is_busy=False)[0]:
            raise BrokenOff

    @contextmanager
    def breaking(self, evaluator: Engine) -> Iterator[None]:
        """Breaks off a run of ``evaluator`` in the body.

        Raises:
            BrokenOff: it was broken off.
        """
        if not self.watches:
            yield
            return
        run, is_alone = _Run(self), self._any_of is None
        after_batch = run.after_batch if is_alone else run.after_batch_of_several
        watching = evaluator.add_event_handler(Events.ITERATION_COMPLETED, after_batch)
        with restored(watching.remove):
            if is_alone:
                yield
            else:
                with _waiting(evaluator, run.wait):
                    yield
                run.answer_others()
        if run.is_broken_off:
            raise BrokenOff

    def agree(self, *, is_busy: bool) -> list[bool]:
        """Returns whether the run is to stop, and whether any process is busy, as all see it."""
        is_asked = any(each.is_asked() for each in self.watches)
        if self._any_of is not None:
            is_asked, is_busy = self._any_of(is_asked, is_busy)
        return [is_asked and not self._has_other_weights(), is_busy]

    def _has_other_weights(self) -> bool:
        """Returns whether a model has other weights, in any process, than those noted."""
        now = _norms(self._weighed)
        is_other = any(
            not torch.equal(then, each) for then, each in zip(self._norms, now, strict=False)
        )
        return is_other if self._any_of is None else self._any_of(is_other)[0]


class _Run:
    """A run of an evaluator."""

    def __init__(self, breaker: Breaker) -> None:
        self.is_broken_off = False
        self._breaker = breaker
        self._are_all_done = False
        self._watches = breaker.watches

    def after_batch(self, evaluator: Engine) -> None:
        """Ends the run if it is to be broken off, with one process: nearly at no cost if not."""
        for watch in self._watches:
            if watch.is_asked():
                self.is_broken_off, _ = self._breaker.agree(is_busy=False)
                self._end_if_broken_off(evaluator)

    def after_batch_of_several(self, evaluator: Engine) -> None:
        """Ends the run if it is to be broken off, on all processes."""
        is_last = evaluator.state.iteration == evaluator.state.epoch_length
        if is_last:
            self.answer_others()
        else:
            self.is_broken_off, _ = self._breaker.agree(is_busy=True)
        self._end_if_broken_off(evaluator)

    def _end_if_broken_off(self, evaluator: Engine) -> None:
        if self.is_broken_off:
            evaluator.terminate(skip_completed=True)

    def wait(self, evaluator: Engine) -> None:
        """Waits for the others where it was not known that a batch was the last."""
        self.answer_others()
        if self.is_broken_off:
            raise BrokenOff

    def answer_others(self) -> None:
        """Returns when all processes have had their batches, or the run is to be broken off."""
        while not (self._are_all_done or self.is_broken_off):
            self.is_broken_off, is_any_busy = self._breaker.agree(is_busy=False)
            self._are_all_done = not is_any_busy


NEVER = Breaker(None)
"""For a validation that cannot be broken off."""


@contextmanager
def _waiting(evaluator: Engine, wait: Callable[[Engine], None]) -> Iterator[None]:
    """Has ``wait`` called first as the data end: what follows may exchange something, too.

    An evaluator of ours attaches such a handler in its ``run``, which is before STARTED.
    """
    with ExitStack() as stack:

        def attach(evaluator: Engine) -> None:
            waiting = evaluator.add_event_handler(Events.EPOCH_COMPLETED, wait)
            stack.enter_context(restored(waiting.remove))
            move_to_front(evaluator, Events.EPOCH_COMPLETED)

        starting = evaluator.add_event_handler(Events.STARTED, attach)
        stack.enter_context(restored(starting.remove))
        yield


def _norms(models: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """Returns the norms of the parameters of models, some of which differ for other weights.

    A parameter's version would be quicker, and does not tell of what is written to its ``data``.
    """
    parameters = {id(each): each.detach() for model in models for each in model.parameters()}
    local = (each.to_local() if hasattr(each, "to_local") else each for each in parameters.values())
    norm = torch.linalg.vector_norm
    return [norm(each, 1, dtype=torch.float32) for each in local if each.is_floating_point()]


def _owners(evaluator: Engine) -> Iterator[Any]:
    """Gives the handlers of an evaluator that have a state, but for metrics, which are reset."""
    for function in handlers_of(evaluator):
        owner = getattr(function, "__self__", function)
        is_other = isinstance(owner, Engine | Metric | torch.nn.Module | type)
        has_state = all(
            callable(getattr(owner, name, None)) for name in ("state_dict", "load_state_dict")
        )
        if has_state and not is_other:
            yield owner
