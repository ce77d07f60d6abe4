"""The evaluators and callables of a Validation, their data, and the names of their results."""

import inspect
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import nullcontext
from typing import Any

import torch
from ignite.engine import Engine
from torch.utils.data import DataLoader

from ignite_hooks.core.engine import forget_run
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.rules import shown_type
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.data.workers import starting_workers
from ignite_hooks.evaluation.breaking_off import Breaker
from ignite_hooks.evaluation.evaluator import Evaluator
from ignite_hooks.evaluation.evaluator import FirstBatches
from ignite_hooks.evaluation.modes import without_ddp

__all__ = ["Evaluations"]


class Evaluations:
    """The evaluators and callables that one validation runs, and the names of their results.

    Args:
        evaluate: an evaluator or callable, or several by name.
        data: what evaluators run on, or several by name.
        prefix: what the names of results begin with.
        max_batches: the largest number of batches of each of the data.

    Raises:
        TypeError: ``evaluate`` is neither an engine nor a callable that can be called, ``data`` no
            iterable.
        ValueError: there are no data for an evaluator, or some that no evaluator takes; they are
            empty, or endless as far as can be told.
    """

    def __init__(self, evaluate: Any, data: Any, prefix: str, max_batches: int | None) -> None:
        self._evaluate: Mapping[Any, Any] = (
            evaluate if isinstance(evaluate, Mapping) else {"": evaluate}
        )
        self._data: Mapping[Any, Any] = data if isinstance(data, Mapping) else {"": data}
        self._prefix = prefix
        self._max_batches = max_batches

    def check(self) -> None:
        """Raises what can be told before the first evaluation."""
        if not self._evaluate:
            raise ValueError(
                "`evaluate` must be an engine or a callable, or several by name, got {}: pass "
                "create_supervised_evaluator(model, metrics)"
            )
        for name, evaluate in self._evaluate.items():
            if not isinstance(evaluate, Engine):
                _check_callable(f"`evaluate` of {name!r}" if name != "" else "`evaluate`", evaluate)
        if self.engines:
            _check_data(self._data, self._max_batches, len(self.engines))
        elif self._data != {"": None}:
            raise ValueError(
                "`data` must be left out with a callable, which takes none or the model: "
                "evaluate on the data within it"
            )
        elif self._max_batches is not None:
            raise ValueError(
                f"`max_batches` must be left out with a callable, got {self._max_batches}: it "
                "limits the data of evaluators"
            )

    @property
    def wants_model(self) -> bool:
        """Whether a callable takes the model."""
        return any(
            not isinstance(evaluate, Engine) and bool(_arguments_of(evaluate))
            for evaluate in self._evaluate.values()
        )

    @property
    def engines(self) -> list[Engine]:
        """The evaluators that are engines."""
        return [each for each in self._evaluate.values() if isinstance(each, Engine)]

    @property
    def callables(self) -> list[Callable[..., Any]]:
        """Those that are no engines."""
        return [each for each in self._evaluate.values() if not isinstance(each, Engine)]

    def results(self, engine: Engine, breaker: Breaker) -> Iterator[tuple[str, Any]]:
        """Evaluates; gives each metric with the name that it has in ``state.metrics``.

        Raises:
            BrokenOff: ``breaker`` has broken off an evaluator, or kept what follows from beginning.
        """
        for name, evaluate in self._evaluate.items():
            prefix = _joined(self._prefix, name)
            if not isinstance(evaluate, Engine):
                breaker.look()
                owner: Any = engine  # of a plain engine's model nothing is known
                arguments = [without_ddp(owner.model)] if _arguments_of(evaluate) else []
                metrics = evaluate(*arguments)
                yield from _named(prefix, metrics if isinstance(metrics, Mapping) else {})
                continue
            for of_data, data in self._data.items():
                yield from _named(_joined(prefix, of_data), self._run(evaluate, data, breaker))

    def runs(self) -> Iterator[tuple[str, Evaluator, Any]]:
        """Yields each evaluator of ours with each of its data, after the prefix of the results."""
        for name, evaluate in self._evaluate.items():
            if isinstance(evaluate, Evaluator):
                for of_data, data in self._data.items():
                    yield _joined(_joined(self._prefix, name), of_data), evaluate, data

    def _run(self, evaluator: Engine, data: Any, breaker: Breaker) -> Mapping[str, Any]:
        breaker.look()
        evaluator.state.metrics = {}  # none of an earlier run, should this one break off
        try:
            with breaker.breaking(evaluator):
                if isinstance(evaluator, Evaluator):
                    evaluator.run(evaluator.feed_of(data), max_batches=self._max_batches)
                else:
                    limit = self._max_batches
                    with _workers_kept(data):
                        evaluator.run(data if limit is None else FirstBatches(data, limit))
        except BaseException:
            forget_run(evaluator)
            raise
        if is_interrupted(evaluator):  # else the next validation would go on with this one
            forget_run(evaluator)
        return dict(evaluator.state.metrics)


def _workers_kept(data: Any) -> AbstractContextManager[None]:
    """Has workers outlive signals where an engine of Ignite iterates over ``data`` by itself."""
    loader = getattr(data, "base_dataloader", data)  # of one that Accelerate has prepared
    is_torch = isinstance(loader, DataLoader)
    return starting_workers(loader, blocks=False) if is_torch else nullcontext()


def _joined(prefix: str, name: Any) -> str:
    return f"{prefix}{name}_" if name != "" else prefix


def _named(prefix: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{prefix}{name}", value) for name, value in metrics.items())


def _check_data(by_name: Mapping[Any, Any], max_batches: int | None, evaluators: int) -> None:
    """Checks that an evaluator has data, under each name, and that they come to an end."""
    if not by_name:
        raise ValueError(
            "`data` must be given with an evaluator engine, got {}: "
            "Validation(evaluator, loader, every_epochs=1)"
        )
    for name, each in by_name.items():
        where = f"`data` of {name!r}" if name else "`data`"
        if each is None:
            raise ValueError(
                f"{where} must be given with an evaluator engine, got None: "
                "Validation(evaluator, loader, every_epochs=1)"
            )
        if not isinstance(each, Iterable) or isinstance(each, str):
            raise TypeError(
                f"{where} must be an iterable of batches, got {shown_type(each)}: pass a "
                "DataLoader or a list of batches"
            )
        if evaluators > 1 and isinstance(each, Iterator):
            raise ValueError(
                f"{where} must be an iterable that can begin again with several evaluators, got a "
                f"{type(each).__name__}, which would give each of them other batches: pass a "
                "DataLoader or a list of batches"
            )
        length = PlainIterable(each).promised_length
        if length == 0:
            raise ValueError(
                f"{where} must give at least one batch, got an empty {type(each).__name__}: check "
                "its data set"
            )
        if length is None and max_batches is None:
            raise ValueError(
                f"`max_batches` must be given with {where} of unknown length, got None with a "
                f"{type(each).__name__}, which may be endless: pass the largest number of batches "
                "to evaluate, shorter data end by themselves"
            )


def _check_callable(where: str, evaluate: Any) -> None:
    if not callable(evaluate) or isinstance(evaluate, torch.nn.Module):
        raise TypeError(
            f"{where} must be an engine or a callable, got "
            f"{type(evaluate).__name__}: pass create_supervised_evaluator(model, metrics)"
        )
    _arguments_of(evaluate)


def _arguments_of(evaluate: Callable[..., Any]) -> int:
    """Returns how many arguments a callable must be given: none, or one for the model."""
    try:
        parameters = inspect.signature(evaluate).parameters.values()
    except ValueError:
        raise TypeError(
            f"`evaluate` must have a signature that tells its arguments, {evaluate!r} has none: "
            "put a function around it, lambda model: evaluate(model)"
        ) from None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty]
    needed = [p for p in needed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) > 1 or any(p.kind not in kinds for p in needed):
        names = ", ".join(p.name for p in needed)
        raise TypeError(
            f"`evaluate` must take no argument or the model, it needs ({names}): bind the others, "
            "lambda model: evaluate(model, loader)"
        )
    return len(needed)
