"""Ignite's progress bar, which can also count optimizer steps."""

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ignite import handlers
from ignite.engine import Engine
from ignite.engine import Events
from ignite.handlers.base_logger import BaseOutputHandler

from ignite_hooks.core.engine import values_to_log
from ignite_hooks.core.run_scope import enter_at_each_run
from ignite_hooks.events import TrainEvents
from ignite_hooks.observe.remaining import steps_of_epoch
from ignite_hooks.observe.remaining import steps_of_run
from ignite_hooks.observe.steps import optimizer_step_of

__all__ = ["ProgressBar"]


class ProgressBar(handlers.ProgressBar):
    """Ignite's ``ProgressBar``, which can also advance with each optimizer step.

    Ignite's class accepts no events but Ignite's own, and does not know how many steps a run has.
    This class accepts STEP_COMPLETED too::

        ProgressBar().attach(
            trainer, event_name=TrainEvents.STEP_COMPLETED, closing_event_name=Events.COMPLETED
        )

    This bar shows the committed steps out of all steps of the run. The total follows from
    ``max_steps``, ``max_epochs`` or ``max_iters``, whichever ends the run first. A limit that
    changes and a step that is skipped change the total. After a resume, the bar starts at the step
    of the checkpoint.

    If EPOCH_COMPLETED closes the bar, each epoch has its own bar, which also counts the steps of
    the epoch that were skipped.

    If no limit can be converted to steps, because the length of an epoch is not known, the bar
    shows ``?`` as the total. With several processes, only the main process shows the bar. With any
    other event, the class behaves like Ignite's.

    To show a tensor, the bar synchronizes with the device. With
    ``TrainEvents.STEP_COMPLETED(every=10)`` this happens in each tenth step only.

    Args:
        persist: whether a closed bar stays on the screen.
        bar_format: the format of the bar, or None for the format of tqdm.
        tqdm_kwargs: further arguments of tqdm, such as ``desc``, ``file`` and ``ncols``.
    """

    def attach(  # type: ignore[override]  # as Ignite's class
        self,
        engine: Engine,
        metric_names: str | list[str] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        event_name: Any = Events.ITERATION_COMPLETED,
        closing_event_name: Any = Events.EPOCH_COMPLETED,
        state_attributes: list[str] | None = None,
    ) -> None:
        """Attaches the bar to an engine.

        Args:
            engine: a trainer, or an engine with an ``OptimizerStep``. For other events than
                STEP_COMPLETED, any engine.
            metric_names: the names of the metrics to show, or "all".
            output_transform: takes ``state.output``, and returns a value to show, or a dict of
                values.
            event_name: the event at which the bar advances, with or without a filter.
            closing_event_name: the event at which the bar is closed.
            state_attributes: the names of the attributes of ``state`` to show.

        Raises:
            ValueError: ``event_name`` is STEP_COMPLETED, and the engine has no ``OptimizerStep``,
                or ``closing_event_name`` is neither EPOCH_COMPLETED nor COMPLETED.
        """
        if event_name != TrainEvents.STEP_COMPLETED:  # filters do not count for ``==`` of events
            super().attach(
                engine,
                metric_names,
                output_transform,
                event_name,
                closing_event_name,
                state_attributes,
            )
            return
        step = optimizer_step_of(engine)
        if step is None:
            raise ValueError(
                "`event_name` must be an event that the engine fires, got STEP_COMPLETED, which "
                "only an OptimizerStep fires: attach an OptimizerStep first, or write "
                "event_name=Events.ITERATION_COMPLETED"
            )
        if closing_event_name not in (Events.EPOCH_COMPLETED, Events.COMPLETED):
            raise ValueError(
                "`closing_event_name` must be Events.EPOCH_COMPLETED or Events.COMPLETED for a bar "
                f"of steps, got {closing_event_name}: write Events.COMPLETED for one bar over the "
                "whole run"
            )
        if step.accelerator.is_main_process:
            show = _ShowSteps(
                self, closing_event_name, metric_names, output_transform, state_attributes
            )
            engine.add_event_handler(event_name, show)
            engine.add_event_handler(closing_event_name, show.close)
            enter_at_each_run(engine, show.closing)


class _ShowSteps(BaseOutputHandler):
    """Shows the completed steps of a run, or of each epoch, in the bar of a ``ProgressBar``.

    The other arguments are those of ``ProgressBar.attach``.

    Args:
        logger: owns the bar, and the settings for it.
    """

    def __init__(
        self,
        logger: handlers.ProgressBar,
        closing_event_name: Any,
        metric_names: str | list[str] | None,
        output_transform: Callable[[Any], Any] | None,
        state_attributes: list[str] | None,
    ) -> None:
        super().__init__(
            "",
            [] if metric_names is None else metric_names,
            output_transform,
            state_attributes=state_attributes,
        )
        self._logger = logger
        self._is_by_epoch = closing_event_name == Events.EPOCH_COMPLETED
        self._count = steps_of_epoch if self._is_by_epoch else steps_of_run
        self._shown_step = 0

    # The engine calls the handler without the logger and the event that Ignite's handlers get.
    def __call__(self, engine: Engine) -> None:  # type: ignore[override]
        """Creates the bar if there is none, and shows the present step."""
        state: Any = engine.state
        logger, description = self._logger, self._describe(engine)
        done, total = self._count(engine)
        bar: Any = logger.pbar
        if bar is None:
            # With ``initial``, the speed is that of the steps since now, also after a resume.
            options = {**logger.tqdm_kwargs, "desc": f"{description}: ", "initial": done}
            bar = logger.pbar = logger.pbar_cls(
                total=total, leave=logger.persist, bar_format=logger.bar_format, **options
            )
        bar.total = total
        bar.set_description(description, refresh=False)
        bar.set_postfix(values_to_log(self, engine), refresh=False)
        bar.update(done - bar.n)
        self._shown_step = state.optimizer_step

    def close(self, engine: Engine) -> None:
        """Closes the bar, if there is one, and shows the last step."""
        state: Any = engine.state
        bar: Any = self._logger.pbar
        if bar is None:
            return
        # With a filter, the bar may not have shown the last steps. ``_count`` does not know their
        # number: at EPOCH_COMPLETED it counts the steps of the next epoch.
        bar.n += state.optimizer_step - self._shown_step
        bar.total = self._count(engine)[1]
        self._logger.pbar = None
        bar.close()

    @contextmanager
    def closing(self, engine: Engine) -> Iterator[None]:
        """Closes the bar at the end of a run that failed or was terminated."""
        try:
            yield
        finally:
            self.close(engine)

    def _describe(self, engine: Engine) -> str:
        """Returns the words before the bar, with the number of the epoch if it has its own bar."""
        description: str = self._logger.tqdm_kwargs.get("desc", "")
        state = engine.state
        if not self._is_by_epoch or state.max_epochs == 1:
            return description or "Step"
        of_all = "" if state.max_epochs is None else f"/{state.max_epochs}"
        return f"{description or 'Epoch'} [{state.epoch}{of_all}]"
