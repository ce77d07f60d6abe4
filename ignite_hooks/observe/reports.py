"""Reports: the values that are new in ``state.metrics``, passed on to a handler that shows them."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from ignite.engine import Engine
from ignite.engine import Events

from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.stale_metrics import measured_at
from ignite_hooks.core.stale_metrics import version_of
from ignite_hooks.core.training_engine import Turn
from ignite_hooks.core.training_engine import is_trainer
from ignite_hooks.events import TrainEvents

__all__ = ["Report", "Reports"]


class Report(NamedTuple):
    """The values that are new since the last report.

    Attributes:
        reason: why the report is made: "step" (a multiple of ``every_steps``), "validation",
            "epoch" (the end of an epoch), or "end" (the end of the run).
        metrics: the new values by name, as the handlers have written them.
    """

    reason: str
    metrics: dict[str, Any]


class Reports:
    """Makes the reports of one attachment.

    A report is made after every ``every_steps`` steps, after each validation, at the end of each
    epoch, and at the end of a run that does not fail. On a trainer, a report comes after the other
    handlers of the event, so it has the values that these handlers write, whenever they were
    attached. On any other engine, the handler must be attached after them.

    A value is new if a handler has stored another object under its name, has changed the object in
    place, or if a validation has measured the value once more. A handler may also store the very
    same object again, for example a small integer. Such a value does not count as new.

    Values that were in ``state.metrics`` before the handler was attached, before a new run, or in a
    checkpoint, are not new: they were reported before. If a checkpoint was saved between two
    reports, some of its values were not reported yet. ``state_dict`` has the names of these values.

    Args:
        attachment: the attachment of the handler.
        every_steps: the number of steps from one report to the next; None for no report by step.
            On an engine without an ``OptimizerStep``, iterations are counted instead.
        report: is called with the engine and the report. A report at the end of a run is left out
            if no value is new. Other reports may have no values.
        prepare: is called before ``report``, with the same arguments, and returns items for
            ``queue``. If ``prepare`` fails, or a signal breaks it off, the values stay new.
        queue: a list to which the items are added before ``report`` is called. From then on the
            values are not new. So a signal between the two loses no value.
    """

    def __init__(
        self,
        attachment: Attachment,
        every_steps: int | None,
        report: Callable[[Engine, Report], None],
        prepare: Callable[[Engine, Report], list[Any]] | None = None,
        queue: list[Any] | None = None,
    ) -> None:
        self._attachment, self._report, self._prepare = attachment, report, prepare
        self._queue = [] if queue is None else queue
        self._seen: dict[str, _Entry] = {}
        self._unreported: Collection[str] = ()  # names of values that a checkpoint has as new
        self._is_loaded = False  # whether a state was loaded for the run that begins next
        self._is_resumed = False  # whether the present run continues from a checkpoint
        engine = attachment.engine
        TrainEvents.register(engine)  # a plain engine may get these events from other handlers
        self._see(engine)
        if every_steps is not None:
            attachment.on_steps(
                every_steps, lambda engine: self._make(engine, "step"), is_last=True
            )
        attachment.on(Events.STARTED, self._begin, turn=Turn.NOTE)
        if is_trainer(engine):
            attachment.on_removal(engine.call_on_resume(self._begin_resumed))
        ends = Events.TERMINATE, Events.COMPLETED
        reasons: dict[Any, str] = {
            TrainEvents.VALIDATION_COMPLETED: "validation",
            Events.EPOCH_COMPLETED: "epoch",
            **dict.fromkeys(ends, "end"),
        }
        for event, reason in reasons.items():
            attachment.on(event, self._maker(reason), turn=Turn.REPORTS)

    def state_dict(self) -> dict[str, Any]:
        """Returns the names of the values that are new now, and have not been reported."""
        engine = self._attachment.engine
        return {"unreported": self._new_names(engine, _entries_of(engine))}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Adds the values that were new at the save to the next report."""
        self._unreported = set(state_dict["unreported"])
        self._is_loaded = not self._is_resumed  # a resumed run loads the state again later

    def _maker(self, reason: str) -> Callable[[Engine], None]:
        return lambda engine: self._make(engine, reason)

    def _make(self, engine: Engine, reason: str) -> None:
        entries = _entries_of(engine)
        names = self._new_names(engine, entries)
        if reason == "end" and not names:
            return
        report = Report(reason, {name: entries[name].value for name in names})
        items = [] if self._prepare is None else self._prepare(engine, report)
        queue = self._queue
        # One line, because a signal handler can raise an exception only between two lines.
        self._seen, self._unreported, queue[len(queue) :] = entries, (), items
        self._report(engine, report)

    def _begin(self, engine: Engine) -> None:
        """Marks all values as reported, except if the run continues in the same process."""
        if engine.state.iteration == 0 or self._is_loaded:
            self._see(engine)
        self._is_loaded = self._is_resumed = False

    def _begin_resumed(self) -> None:
        """Marks the values of the checkpoint as reported.

        If a run resumes in the middle of an epoch, this method is called twice: after STARTED and
        after EPOCH_STARTED.
        """
        if not self._is_resumed:
            self._is_resumed = True
            self._see(self._attachment.engine)

    def _see(self, engine: Engine) -> None:
        self._seen = _entries_of(engine)

    def _new_names(self, engine: Engine, entries: Mapping[str, "_Entry"]) -> list[str]:
        """Returns the names of the new values, in the order of ``state.metrics``."""
        return [
            name
            for name, entry in entries.items()
            if name in self._unreported or not entry.equals(self._seen.get(name))
        ]


class _Entry(NamedTuple):
    """A value in ``state.metrics``, with what shows that it was measured or changed again.

    The value itself is kept, and not its ``id``, because a new object may get the ``id`` of an
    object that was freed.
    """

    value: Any
    version: Any
    iteration: int | None  # when a validation measured the value; None for other values

    def equals(self, other: "_Entry | None") -> bool:
        """Returns whether the value is the same as ``other``."""
        return (
            other is not None
            and self.value is other.value
            and self.iteration == other.iteration
            and _are_equal(self.version, other.version)
        )


def _are_equal(version: Any, other: Any) -> bool:
    """Returns whether two versions are equal. NaN is equal to NaN."""
    return bool(version == other) or bool(version != version and other != other)


def _entries_of(engine: Engine) -> dict[str, _Entry]:
    measured = measured_at(engine)
    return {
        name: _Entry(value, version_of(value), measured.get(name))
        for name, value in engine.state.metrics.items()
    }
