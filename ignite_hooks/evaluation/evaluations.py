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
from ignite.engine import State
from torch.utils.data import DataLoader

from ignite_hooks.core.engine import forget_run
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.warn_once import warn_once
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.data.workers import starting_workers
from ignite_hooks.evaluation.evaluator import Evaluator
from ignite_hooks.evaluation.evaluator import FirstBatches
from ignite_hooks.evaluation.modes import without_ddp
from ignite_hooks.evaluation.stop_check import StopCheck

__all__ = ["Evaluations"]


class Evaluations:
    """The evaluators and callables that one validation runs, and the names of their results.

    Args:
        evaluate: an evaluator or callable, or a mapping from names to several of them.
        data: the data that evaluators run on, or a mapping from names to several data; None if
            there are only callables.
        prefix: the beginning of the names of all results, for example "val_".
        max_batches: the largest number of batches in each run of an evaluator; None for no limit.
    """

    def __init__(self, evaluate: Any, data: Any, prefix: str, max_batches: int | None) -> None:
        self._evaluate: Mapping[Any, Any] = (
            evaluate if isinstance(evaluate, Mapping) else {"": evaluate}
        )
        self._data: Mapping[Any, Any] = data if isinstance(data, Mapping) else {"": data}
        self._prefix = prefix
        self._max_batches = max_batches

    def check(self) -> None:
        """Checks the arguments, before the first evaluation.

        Raises:
            TypeError: ``evaluate`` is neither an engine nor a callable of the form ``f()`` or
                ``f(model)``; ``data`` is not an iterable.
            ValueError: an evaluator has no data; ``data`` or ``max_batches`` is given although
                there is no evaluator; the data are empty; the data are an iterator that several
                evaluators would share; ``max_batches`` is not given for data of unknown length,
                which may be endless.
        """
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
                "`data` must be left out with a callable, which takes no argument or the model: "
                "read the data inside the callable"
            )
        elif self._max_batches is not None:
            raise ValueError(
                f"`max_batches` must be left out with a callable, got {self._max_batches}: it "
                "limits the data of evaluators"
            )

    @property
    def needs_model(self) -> bool:
        """True if one of the callables takes the model as its argument."""
        return any(
            not isinstance(evaluate, Engine) and bool(_count_required_arguments(evaluate))
            for evaluate in self._evaluate.values()
        )

    @property
    def engines(self) -> list[Engine]:
        """The engines in ``evaluate``."""
        return [each for each in self._evaluate.values() if isinstance(each, Engine)]

    @property
    def callables(self) -> list[Callable[..., Any]]:
        """The callables in ``evaluate``, without the engines."""
        return [each for each in self._evaluate.values() if not isinstance(each, Engine)]

    def results(self, engine: Engine, stop_check: StopCheck) -> Iterator[tuple[str, Any]]:
        """Runs the evaluators and callables, and yields (name, value) for each metric.

        The name is the name of the metric in ``state.metrics`` of the training engine.

        Args:
            engine: the engine that trains.
            stop_check: breaks evaluators off when the training run is to stop.

        Raises:
            ValidationStopped: the training run is to stop. If an evaluator was running, it was
                broken off. The evaluators and callables that follow are not run.
        """
        for name, evaluate in self._evaluate.items():
            prefix = _extended_prefix(self._prefix, name)
            if not isinstance(evaluate, Engine):
                stop_check.raise_if_stopping()
                # Ignite's type `Engine` has no `model`. `Validation.check` has made sure that this
                # engine has one if it is needed.
                owner: Any = engine
                arguments = (
                    [without_ddp(owner.model)] if _count_required_arguments(evaluate) else []
                )
                yield from _with_prefix(prefix, _metrics_of(evaluate(*arguments), prefix))
                continue
            for data_name, data in self._data.items():
                yield from _with_prefix(
                    _extended_prefix(prefix, data_name),
                    self._run_evaluator(evaluate, data, stop_check),
                )

    def runs(self) -> Iterator[tuple[str, Evaluator, Any]]:
        """Yields (prefix of the results, evaluator, data) for each run of an ``Evaluator``.

        Callables and engines of other classes are left out, because they have no ``DataFeed``.
        """
        for name, evaluate in self._evaluate.items():
            if isinstance(evaluate, Evaluator):
                for data_name, data in self._data.items():
                    yield (
                        _extended_prefix(_extended_prefix(self._prefix, name), data_name),
                        evaluate,
                        data,
                    )

    def _run_evaluator(
        self, evaluator: Engine, data: Any, stop_check: StopCheck
    ) -> Mapping[str, Any]:
        stop_check.raise_if_stopping()
        evaluator.state.metrics = {}  # a run that ends early must not show earlier results
        try:
            with stop_check.stopping(evaluator):
                if isinstance(evaluator, Evaluator):
                    evaluator.run(evaluator.feed_of(data), max_batches=self._max_batches)
                else:
                    limit = self._max_batches
                    with _workers_survive_signals(data):
                        evaluator.run(data if limit is None else FirstBatches(data, limit))
        except BaseException:
            # Without this call, Ignite's next `run` after a failure would do nothing.
            forget_run(evaluator)
            raise
        if is_interrupted(evaluator):  # the next validation would continue this run otherwise
            forget_run(evaluator)
        return dict(evaluator.state.metrics)


def _workers_survive_signals(data: Any) -> AbstractContextManager[None]:
    """Returns a context manager in which the loader ``data`` starts workers that ignore signals.

    An ``Evaluator`` needs no such context manager: its ``DataFeed`` makes workers ignore signals.
    """
    loader = getattr(data, "base_dataloader", data)  # the torch loader inside Accelerate's wrapper
    is_torch = isinstance(loader, DataLoader)
    return starting_workers(loader, blocks=False) if is_torch else nullcontext()


def _extended_prefix(prefix: str, name: Any) -> str:
    return f"{prefix}{name}_" if name != "" else prefix


def _with_prefix(prefix: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{prefix}{name}", value) for name, value in metrics.items())


def _metrics_of(result: Any, prefix: str) -> Mapping[str, Any]:
    """Returns the metrics in the result of a callable; warns once about a result of another type.

    Args:
        result: the mapping of metrics; None for a callable that computes no metrics.
        prefix: the beginning of the names of the metrics, for the warning.
    """
    if isinstance(result, Mapping):
        return result
    if result is not None:
        remedy = (
            "pass the evaluator itself, Validation(evaluator, loader)"
            if isinstance(result, State)
            else f'return {{"x": value}}, which is written to state.metrics as "{prefix}x"; '
            "return None if there are no metrics"
        )
        warn_once(
            f"`evaluate` must return a dict of metrics, got {shown_type(result)}; no metric of "
            f"this validation is written to state.metrics: {remedy}"
        )
    return {}


def _check_data(
    by_name: Mapping[Any, Any], max_batches: int | None, number_of_evaluators: int
) -> None:
    """Raises an error if there are no data, or if the data are empty or may be endless."""
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
        if number_of_evaluators > 1 and isinstance(each, Iterator):
            raise ValueError(
                f"{where} must be an iterable from which several evaluators get the same batches, "
                f"got a {type(each).__name__}, which gives each batch only once: pass a DataLoader "
                "or a list of batches"
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
                "to evaluate; shorter data are evaluated to their end"
            )


def _check_callable(where: str, evaluate: Any) -> None:
    if not callable(evaluate) or isinstance(evaluate, torch.nn.Module):
        remedy = "pass create_supervised_evaluator(model, metrics)"
        if isinstance(evaluate, Iterable) and not isinstance(evaluate, torch.nn.Module):
            remedy = "the order is Validation(evaluator, loader)"
        raise TypeError(
            f"{where} must be an engine or a callable, got {shown_type(evaluate)}: {remedy}"
        )
    _count_required_arguments(evaluate)


def _count_required_arguments(evaluate: Callable[..., Any]) -> int:
    """Returns the number of arguments that a callable needs: 0, or 1 for the model.

    Raises:
        TypeError: the callable needs other arguments, or has no signature.
    """
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
            f"`evaluate` must take no argument or the model, it needs ({names}): bind the other "
            "arguments, lambda model: evaluate(model, loader)"
        )
    return len(needed)
