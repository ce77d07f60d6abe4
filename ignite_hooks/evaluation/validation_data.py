"""The data of the evaluators that a trainer validates with, as checkpoints keep them.

An evaluator starts its data from the first batch with each validation. Some state of the data
lasts from one validation to the next: the number of the pass, by which samplers shuffle, persistent
workers, and attributes of a data set. Only evaluators of this package are covered; the data of
other engines and of callables are unknown.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import nullcontext
from functools import cached_property
from typing import Any

from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.data.active_loader import deactivated
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import load_between_passes
from ignite_hooks.evaluation.evaluator import Evaluator
from ignite_hooks.evaluation.validation import validations_of

__all__ = ["ValidationData"]


class ValidationData:
    """The feeds of all evaluators of this package that a trainer validates with, by name.

    The name of a feed is the prefix that the results on its data have in ``state.metrics``:
    ``"val_"``, for example.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: TrainingEngine) -> None:
        self._trainer = trainer

    @property
    def names(self) -> list[str]:
        """The names of the data."""
        return [*self._runs_by_name()]

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of the feeds; None for data that were not evaluated on yet."""
        feeds = self._feeds_at_save
        if all(feed is None for feed in feeds.values()):
            return dict.fromkeys(feeds)
        with self._training_loader_set_aside():
            return {
                name: None if feed is None else feed.state_dict() for name, feed in feeds.items()
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Moves the data to the saved positions; ignores the states of data that are gone."""
        training_feed = self._trainer.feed
        others = [training_feed] if isinstance(training_feed, DataFeed) else []
        with self._training_loader_set_aside():
            load_between_passes(self._pairs(state_dict).values(), others)

    def changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns a line for each change from the saved data, with its consequence."""
        pairs = self._pairs(state_dict).items()
        return [f"{name}: {each}" for name, pair in pairs for each in pair[0].changes(pair[1])]

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns the reasons why the batches differ from those of the run that is resumed."""
        found, pairs, names = [], self._pairs(state_dict), self._runs_by_name().keys()
        with self._training_loader_set_aside():
            for name, (feed, state) in pairs.items():
                found += [f"{name}: {each}" for each in feed.differences(state)]
                if state["position"][1]:
                    found.append(f"{name}: the checkpoint was saved while this was evaluated on")
        gone = [each for each, state in state_dict.items() if state and each not in names]
        new = sorted(names - state_dict.keys())
        if gone and new:  # the data may be the same under a new name
            found.append(
                f"{', '.join(new)}: begins at its first pass, as data of that name are not in the "
                f"checkpoint, which has {', '.join(gone)}; a Validation with the same prefix and "
                "names continues at its place"
            )
        return found

    def doubts(self) -> list[str]:
        """Returns the reasons why the data may have state that ``state_dict`` does not hold."""
        known = {name: feed for name, feed in self._feeds_at_save.items() if feed is not None}
        if not known:
            return []
        with self._training_loader_set_aside():
            doubts = ((name, feed.doubts()) for name, feed in known.items())
            return [f"{name}: {doubt}" for name, feed_doubts in doubts for doubt in feed_doubts]

    @cached_property
    def _feeds_at_save(self) -> dict[str, DataFeed | None]:
        """The feeds, looked up once for a save; None for data that were not evaluated on yet."""
        return {
            name: each.known_feed_of(data) for name, (each, data) in self._runs_by_name().items()
        }

    def _pairs(self, state_dict: Mapping[str, Any]) -> dict[str, tuple[DataFeed, Any]]:
        """Returns each feed that has a saved state, together with that state, by name."""
        return {
            name: (evaluator.feed_of(data), state_dict[name])
            for name, (evaluator, data) in self._runs_by_name().items()
            if state_dict.get(name) is not None
        }

    def _runs_by_name(self) -> dict[str, tuple[Evaluator, Any]]:
        """Returns each evaluator with its data, by the prefix of its results.

        A prefix that occurs again gets a number: ``"val_-2"``.
        """
        named: dict[str, tuple[Evaluator, Any]] = {}
        for plain, evaluator, data in self._all_runs():
            number, name = 1, plain
            while name in named:
                number += 1
                name = f"{plain}-{number}"
            named[name] = evaluator, data
        return named

    def _all_runs(self) -> Iterator[tuple[str, Evaluator, Any]]:
        for validation in dict.fromkeys(validations_of(self._trainer)):  # attached twice: once
            yield from validation.evaluations.runs()

    def _training_loader_set_aside(self) -> AbstractContextManager[None]:
        """Returns a scope in which the training loader is set aside, as within a validation.

        Persistent workers of training must not be taken for those of an evaluator that runs on the
        same loader.
        """
        feed = self._trainer.feed
        return nullcontext() if feed is None else deactivated(feed.loader)
