"""The data of the evaluators that a trainer validates with, as a checkpoint keeps them.

An evaluator begins its data again with each validation. Some of what the data are then lasts from
one to the next: the number of the pass, by which samplers shuffle, the workers that stay, and what
a data set counts or keeps. Of evaluators of other kinds, and of callables, nothing is known.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextlib import nullcontext
from functools import cached_property
from typing import Any

from ignite_hooks.core.training_engine import TrainingEngine
from ignite_hooks.data.active_loader import set_aside
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import load_between_passes
from ignite_hooks.evaluation.evaluator import Evaluator
from ignite_hooks.evaluation.validation import validations_of

__all__ = ["DataOfValidations"]


class DataOfValidations:
    """The feeds of all evaluators of this package that a trainer validates with, by name.

    The name is what the names of the results begin with: "val_" for instance.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: TrainingEngine) -> None:
        self._trainer = trainer

    @property
    def names(self) -> list[str]:
        """The names of the data."""
        return [*self._runs()]

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of the feeds; None for data that were not evaluated on yet."""
        known = self._known
        if all(feed is None for feed in known.values()):
            return dict.fromkeys(known)
        with self._as_in_validation():
            return {
                name: None if feed is None else feed.state_dict() for name, feed in known.items()
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Moves the data that are here too to their places."""
        of_training = self._trainer.feed
        others = [of_training] if isinstance(of_training, DataFeed) else []
        with self._as_in_validation():
            load_between_passes(self._pairs(state_dict).values(), others)

    def changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns each change from the saved data, with its consequence."""
        pairs = self._pairs(state_dict).items()
        return [f"{name}: {each}" for name, pair in pairs for each in pair[0].changes(pair[1])]

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns what keeps the batches from being those of the run that is resumed."""
        found, pairs, names = [], self._pairs(state_dict), self._runs().keys()
        with self._as_in_validation():
            for name, (feed, state) in pairs.items():
                found += [f"{name}: {each}" for each in feed.differences(state)]
                if state["position"][1]:
                    found.append(f"{name}: the checkpoint was saved while this was evaluated on")
        gone = [each for each, state in state_dict.items() if state and each not in names]
        new = sorted(names - state_dict.keys())
        if gone and new:  # one may be the other, by a new name
            found.append(
                f"{', '.join(new)}: begins at its first pass, as data of that name are not in the "
                f"checkpoint, which has {', '.join(gone)}; a Validation with the same prefix and "
                "names continues at its place"
            )
        return found

    def doubts(self) -> list[str]:
        """Returns why the data may have a state that ``state_dict`` does not have."""
        known = {name: feed for name, feed in self._known.items() if feed is not None}
        if not known:
            return []
        with self._as_in_validation():
            doubts = ((name, feed.doubts()) for name, feed in known.items())
            return [f"{name}: {doubt}" for name, of_feed in doubts for doubt in of_feed]

    @cached_property
    def _known(self) -> dict[str, DataFeed | None]:
        """The feeds at one save; None for data that were not evaluated on yet."""
        return {name: each.known_feed_of(data) for name, (each, data) in self._runs().items()}

    def _pairs(self, state_dict: Mapping[str, Any]) -> dict[str, tuple[DataFeed, Any]]:
        """Returns the feeds that have a state, each with it."""
        return {
            name: (evaluator.feed_of(data), state_dict[name])
            for name, (evaluator, data) in self._runs().items()
            if state_dict.get(name) is not None
        }

    def _runs(self) -> dict[str, tuple[Evaluator, Any]]:
        named: dict[str, tuple[Evaluator, Any]] = {}
        for plain, evaluator, data in self._all_runs():
            number, name = 1, plain
            while name in named:
                number += 1
                name = f"{plain}-{number}"
            named[name] = evaluator, data
        return named

    def _all_runs(self) -> Iterator[tuple[str, Evaluator, Any]]:
        for validation in dict.fromkeys(validations_of(self._trainer)):
            yield from validation.evaluations.runs()

    def _as_in_validation(self) -> AbstractContextManager[None]:
        """Has the data look as they look within a validation.

        Workers of training that stay are not those of an evaluator on the same loader.
        """
        feed = self._trainer.feed
        return nullcontext() if feed is None else set_aside(feed.loader)
