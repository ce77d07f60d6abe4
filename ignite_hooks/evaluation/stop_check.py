"""Breaks a validation off between two batches when the training run is to stop.

Every rank breaks off after the same batch.
"""

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
from ignite_hooks.core.stop_requests import ValidationStopped
from ignite_hooks.core.stop_requests import stop_monitors
from ignite_hooks.core.training_engine import AnyEngine
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import load_between_passes

__all__ = ["NEVER_STOPS", "StopCheck"]


class StopCheck:
    """Checks whether a training run is to stop, and if so, breaks off the validation of the run.

    The run of an evaluator is ended with Ignite's ``terminate(skip_completed=True)``. So the
    evaluator does not fire the events at which handlers expect its results.

    With several processes the ranks tell each other after each batch whether one of them was asked
    to stop. Ranks may have different numbers of batches. A rank that has evaluated its last batch
    takes part in these exchanges until all ranks have evaluated their last batches.

    If the number of batches is unknown, a rank learns only at EPOCH_COMPLETED that it has evaluated
    its last batch. Calling ``terminate`` at EPOCH_COMPLETED would be too late, because Ignite would
    still call the other handlers of this event. So a handler that comes before these handlers
    raises ``ValidationStopped`` instead.

    Attributes:
        monitors: the sources of requests to stop the training run, such as a signal.

    Args:
        engine: the engine that trains; None for a validation that cannot be broken off.
    """

    def __init__(self, engine: AnyEngine | None) -> None:
        self.monitors = () if engine is None else stop_monitors(engine)
        # The collective by which the ranks exchange flags; None with one process. Its result for a
        # flag is True on all ranks if the flag is True on any rank.
        self._any_of = next((each.any_of for each in self.monitors if each.any_of), None)
        # The models whose weights `remember_weights` has remembered, and norms of the weights.
        self._watched_models: Sequence[torch.nn.Module] = ()
        self._norms: list[torch.Tensor] = []

    def remember_weights(self, models: Sequence[torch.nn.Module]) -> None:
        """Remembers the weights of training, before a handler can swap other weights in.

        For example, a handler swaps averaged weights in at VALIDATION_STARTED, and swaps the
        weights of training back at VALIDATION_COMPLETED. If the validation were broken off in
        between, VALIDATION_COMPLETED would not be fired, and the averaged weights would be saved
        and trained. So the validation is not broken off while the weights of the models differ from
        the remembered weights.
        """
        if self.monitors:
            self._watched_models, self._norms = models, _parameter_norms(models)

    def snapshot(
        self, evaluators: Sequence[Engine], feeds: Callable[[], Iterable[DataFeed]]
    ) -> Callable[[], None]:
        """Copies the results of evaluators, the states of their handlers and the data positions.

        A validation that was broken off is repeated from its first evaluator. So all evaluators are
        restored, even those that had completed before the validation was broken off.

        Args:
            evaluators: the evaluators of a validation that has not started yet.
            feeds: returns the feeds (``DataFeed``) that give the batches of the evaluators.

        Returns:
            A function that restores these results, states and positions.
        """
        # Without monitors nothing breaks the validation off, so no copies are needed.
        if not self.monitors:
            return lambda: None
        owners = {id(owner): owner for each in evaluators for owner in _handlers_with_state(each)}
        # The states are copied, because a `state_dict` may return references to the live state.
        states = [(owner, copy.deepcopy(owner.state_dict())) for owner in owners.values()]
        data = [(feed, copy.deepcopy(feed.state_dict())) for feed in feeds()]
        results = [(each, each.state.metrics) for each in evaluators]

        def restore() -> None:
            for owner, state in states:
                owner.load_state_dict(state)
            load_between_passes(data)
            for evaluator, metrics in results:
                evaluator.state.metrics = metrics

        return restore

    def raise_if_stopping(self) -> None:
        """Raises ValidationStopped if the training run is to stop.

        This is a collective call with several processes.
        """
        if self.monitors and self.check_all_ranks(is_busy=False)[0]:
            raise ValidationStopped

    @contextmanager
    def stopping(self, evaluator: Engine) -> Iterator[None]:
        """Breaks off ``evaluator``, which the body runs, if the training run is to stop.

        Raises:
            ValidationStopped: the evaluator was broken off.
        """
        if not self.monitors:
            yield
            return
        run, is_single_process = _EvaluatorRun(self), self._any_of is None
        after_batch = run.after_batch if is_single_process else run.after_batch_on_all_ranks
        watching = evaluator.add_event_handler(Events.ITERATION_COMPLETED, after_batch)
        with undo_on_exit(watching.remove):
            if is_single_process:
                yield
            else:
                with _first_at_epoch_completed(evaluator, run.at_end_of_data):
                    yield
                # If a handler has terminated the evaluator on this rank, this rank has not waited
                # for the other ranks yet.
                run.wait_for_others()
        if run.is_broken_off:
            raise ValidationStopped

    def check_all_ranks(self, *, is_busy: bool) -> list[bool]:
        """Returns two flags: whether the run is to stop now, and whether any rank has batches left.

        All ranks return the same flags. The first flag is False while other weights than those of
        training are swapped in (see ``remember_weights``).

        Args:
            is_busy: whether this rank has batches left.
        """
        is_asked = any(each.is_asked() for each in self.monitors)
        if self._any_of is not None:
            is_asked, is_busy = self._any_of(is_asked, is_busy)
        return [is_asked and not self._are_weights_swapped(), is_busy]

    def _are_weights_swapped(self) -> bool:
        """Returns whether the weights of a model on any rank differ from the remembered weights."""
        now = _parameter_norms(self._watched_models)
        is_swapped = any(
            not torch.equal(then, each) for then, each in zip(self._norms, now, strict=False)
        )
        return is_swapped if self._any_of is None else self._any_of(is_swapped)[0]


class _EvaluatorRun:
    """A run of an evaluator that may be broken off, with the handlers that break it off.

    Attributes:
        is_broken_off: whether the run is broken off, or is about to be.
    """

    def __init__(self, stop_check: StopCheck) -> None:
        self.is_broken_off = False
        self._stop_check = stop_check
        self._are_all_done = False  # whether all ranks have evaluated their last batches
        self._monitors = stop_check.monitors

    def after_batch(self, evaluator: Engine) -> None:
        """Ends the run if it is to be broken off. This is the handler for a single process.

        Without a request to stop, the weights are not compared, so the call costs next to nothing.
        """
        for monitor in self._monitors:
            if monitor.is_asked():
                self.is_broken_off, _ = self._stop_check.check_all_ranks(is_busy=False)
                self._end_if_broken_off(evaluator)

    def after_batch_on_all_ranks(self, evaluator: Engine) -> None:
        """Ends the run if it is to be broken off. This is the handler for several processes."""
        # If the number of batches is unknown, `epoch_length` is None, and this condition is never
        # true. `at_end_of_data` waits for the other ranks instead.
        is_last = evaluator.state.iteration == evaluator.state.epoch_length
        if is_last:
            self.wait_for_others()
        else:
            self.is_broken_off, _ = self._stop_check.check_all_ranks(is_busy=True)
        self._end_if_broken_off(evaluator)

    def _end_if_broken_off(self, evaluator: Engine) -> None:
        if self.is_broken_off:
            evaluator.terminate(skip_completed=True)

    def at_end_of_data(self, evaluator: Engine) -> None:
        """Waits for the other ranks, if this rank has not waited after its last batch."""
        self.wait_for_others()
        if self.is_broken_off:
            raise ValidationStopped

    def wait_for_others(self) -> None:
        """Waits until all ranks have evaluated their batches, or the run is to be broken off.

        The ``while`` loop exchanges flags with the other ranks. A rank that has batches left takes
        part in the exchange after each batch.
        """
        while not (self._are_all_done or self.is_broken_off):
            self.is_broken_off, is_any_busy = self._stop_check.check_all_ranks(is_busy=False)
            self._are_all_done = not is_any_busy


NEVER_STOPS = StopCheck(None)
"""The check of a validation that cannot be broken off."""


@contextmanager
def _first_at_epoch_completed(
    evaluator: Engine, at_end_of_data: Callable[[Engine], None]
) -> Iterator[None]:
    """Calls ``at_end_of_data`` before all other handlers of EPOCH_COMPLETED.

    The other handlers may make collective calls. A rank must not make these calls while other ranks
    still exchange flags after their batches.
    """
    with ExitStack() as stack:

        def attach(evaluator: Engine) -> None:
            ending = evaluator.add_event_handler(Events.EPOCH_COMPLETED, at_end_of_data)
            stack.enter_context(undo_on_exit(ending.remove))
            move_to_front(evaluator, Events.EPOCH_COMPLETED)

        # At the beginning of `run`, `SharedMetrics` puts its own handler to the front.
        # `at_end_of_data` must come before that handler, so it is put to the front at STARTED.
        starting = evaluator.add_event_handler(Events.STARTED, attach)
        stack.enter_context(undo_on_exit(starting.remove))
        yield


def _parameter_norms(models: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """Returns a norm of each parameter. If other weights are swapped in, some of the norms change.

    Comparing ``Tensor._version`` would be faster, but the version does not change when a swap
    writes to ``parameter.data``.
    """
    # An evaluator and the trainer usually have the same model. The dict takes each parameter once.
    # If a parameter is sharded, the norm is that of this rank's shard, so no collective is needed.
    parameters = {id(each): each.detach() for model in models for each in model.parameters()}
    local = (each.to_local() if hasattr(each, "to_local") else each for each in parameters.values())
    norm = torch.linalg.vector_norm
    return [norm(each, 1, dtype=torch.float32) for each in local if each.is_floating_point()]


def _handlers_with_state(evaluator: Engine) -> Iterator[Any]:
    """Yields the handlers of an evaluator that have a state, except metrics, engines and modules.

    Metrics need no copy, because they are reset at the beginning of each run.
    """
    for function in handlers_of(evaluator):
        owner = getattr(function, "__self__", function)  # a bound method, or a callable object
        is_other = isinstance(owner, Engine | Metric | torch.nn.Module | type)
        has_state = all(
            callable(getattr(owner, name, None)) for name in ("state_dict", "load_state_dict")
        )
        if has_state and not is_other:
            yield owner
