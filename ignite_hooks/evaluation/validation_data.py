"""Saves and restores the state of the data on which a trainer validates.

Each validation starts from the first batch of the data. But some state of the data lasts from one
validation to the next, so checkpoints save it:

- the number of the pass (one iteration over the data), which determines how samplers shuffle
- the states of persistent workers
- the state of the data set

Only the data of evaluators of this package are saved. This module does not know on which data other
engines and callables evaluate.
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
    """The data of all evaluators of this package that a trainer validates with, by name.

    The results of an evaluator have a common prefix in ``state.metrics``, for example ``"val_"``.
    This prefix is also the name of the evaluator's data. A *feed* (``DataFeed``) gives the batches
    of the data, and knows the position in the data.

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
        """Returns a dict that maps the names of the data to the states of their feeds.

        The state is None for data that no evaluator has run on yet.
        """
        feeds = self._feeds_at_save
        if all(feed is None for feed in feeds.values()):
            return dict.fromkeys(feeds)
        with self._training_loader_set_aside():
            return {
                name: None if feed is None else feed.state_dict() for name, feed in feeds.items()
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Moves the data to the saved positions.

        Saved states of data that this trainer does not have are ignored.
        """
        training_feed = self._trainer.feed
        others = [training_feed] if isinstance(training_feed, DataFeed) else []
        with self._training_loader_set_aside():
            load_between_passes(self._pairs(state_dict).values(), others)

    def changes(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns a line for each change of the data since the save: the change and its effect."""
        pairs = self._pairs(state_dict).items()
        return [f"{name}: {each}" for name, pair in pairs for each in pair[0].data_changes(pair[1])]

    def differences(self, state_dict: Mapping[str, Any]) -> list[str]:
        """Returns the reasons why the next batches may differ from those of the saved run.

        The saved run is the run whose checkpoint contains ``state_dict``.
        """
        found, pairs, names = [], self._pairs(state_dict), self._runs_by_name().keys()
        with self._training_loader_set_aside():
            for name, (feed, state) in pairs.items():
                found += [f"{name}: {each}" for each in feed.differences(state)]
                if state["position"][1]:
                    found.append(
                        f"{name}: the checkpoint was saved in the middle of its evaluation"
                    )
        gone = [each for each, state in state_dict.items() if state and each not in names]
        new = sorted(names - state_dict.keys())
        # Data with a new name may be the data that were saved under another name.
        if gone and new:
            found.append(
                f"{', '.join(new)}: begins at its first pass, because the checkpoint has no data "
                f"of this name, but has {', '.join(gone)}; to continue from the saved pass, give "
                "the Validation the prefix and the names that it had in the saved run"
            )
        return found

    def doubts(self) -> list[str]:
        """Returns the reasons why ``state_dict`` may lack some of the state of the data."""
        known = {name: feed for name, feed in self._feeds_at_save.items() if feed is not None}
        if not known:
            return []
        with self._training_loader_set_aside():
            doubts = ((name, feed.doubts()) for name, feed in known.items())
            return [f"{name}: {doubt}" for name, feed_doubts in doubts for doubt in feed_doubts]

    @cached_property
    def _feeds_at_save(self) -> dict[str, DataFeed | None]:
        """Maps names of data to their feeds, or to None if no evaluator has run on the data yet.

        The dict may be cached, because each save makes a new ``ValidationData``.
        """
        return {
            name: each.known_feed_of(data) for name, (each, data) in self._runs_by_name().items()
        }

    def _pairs(self, state_dict: Mapping[str, Any]) -> dict[str, tuple[DataFeed, Any]]:
        """Returns a dict that maps names of data to (feed, saved state of the feed).

        Data without a saved state are left out.
        """
        return {
            name: (evaluator.feed_of(data), state_dict[name])
            for name, (evaluator, data) in self._runs_by_name().items()
            if state_dict.get(name) is not None
        }

    def _runs_by_name(self) -> dict[str, tuple[Evaluator, Any]]:
        """Returns a dict that maps the names of the data to (evaluator, data).

        The name is the prefix of the results. If the prefix ``"val_"`` occurs twice, the second
        name is ``"val_-2"``.
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
        for validation in dict.fromkeys(validations_of(self._trainer)):  # without duplicates
            yield from validation.evaluations.runs()

    def _training_loader_set_aside(self) -> AbstractContextManager[None]:
        """Returns a context manager that pauses the training loader, as a validation does.

        An evaluator may run on the loader of training. Without this context manager, the persistent
        workers of training would be taken for the workers of the evaluator.
        """
        feed = self._trainer.feed
        return nullcontext() if feed is None else deactivated(feed.loader)
