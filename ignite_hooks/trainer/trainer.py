"""The trainer: an engine whose runs begin, continue and end where they should."""

import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any

import torch
from ignite.engine import State

from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.measured import forget_validations
from ignite_hooks.core.place import Progress
from ignite_hooks.core.rules import whole_number
from ignite_hooks.core.run_scope import run_scopes
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import Feeds
from ignite_hooks.hooks.hooks import Hooks
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.trainer.loop import TrainingLoop
from ignite_hooks.trainer.run_position import Limits

if TYPE_CHECKING:
    from ignite_hooks.checkpoint.report import ResumeReport

__all__ = ["Trainer"]


class Trainer(TrainingLoop):
    """An Ignite engine that trains: ``create_supervised_trainer`` builds it, ``run`` runs it.

    It is an ``Engine``: ``trainer.on(...)``, metrics, loggers and ``ProgressBar`` work as on any.
    The loop is drawn in ``ignite_hooks.events``. Its state shows, in addition to Ignite's,
    ``optimizer_step`` (committed steps in all), ``step_committed``, ``max_steps``, ``start_epoch``
    and ``start_step`` (where this run began), ``model_outputs`` and ``loss``.

    ``stop_reason`` says why the last run ended: "max_epochs", "max_iters", "max_steps",
    "terminate", "exception" or, with a ``SaveCheckpoint``, the name of a signal. ``resume_report``
    says what of an earlier run was resumed, and how exactly; None if nothing was. ``hooks``
    has what is entered before and left after a part of the loop.
    """

    def __init__(
        self,
        process_function: Callable[[TrainingLoop, Any], Any],
        model: torch.nn.Module,
        optimizer_step: OptimizerStep,
        feeds: Feeds,
        modules: Mapping[str, torch.nn.Module] | None = None,
    ) -> None:
        super().__init__(process_function, optimizer_step)
        self.accelerator = optimizer_step.accelerator
        self.model = model
        self.optimizer = optimizer_step.optimizer
        self.lr_scheduler = optimizer_step.lr_scheduler
        self.state.max_steps = None
        self.state.max_iters = None  # which Ignite 0.5.4 does not do before a run
        self.state.start_epoch = self.state.start_step = 0
        self.state.model_outputs = self.state.loss = None
        self.resume_report: ResumeReport | None = None
        self._usual_limits = Limits()
        self._feeds = feeds
        self._modules = dict(modules or {})
        self.state_dict_user_keys.append("optimizer_step")
        optimizer_step.attach(self)
        self._hooks = Hooks()
        self._hooks.attach(self)

    @property
    def hooks(self) -> Hooks:
        """The trainer's own set of contexts on the eight channels."""
        return self._hooks

    @hooks.setter
    def hooks(self, hooks: Hooks) -> None:
        if hooks is not self._hooks:  # else it is `trainer.hooks += more`
            raise AttributeError(
                f"`trainer.hooks` must stay the set that it is, got {hooks!r}: use its "
                "register_all(), or attach() the other"
            )

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules by name, without wrappers: the model, and others with a state.

        The others are those that the factory was given as ``loss_fn``, ``batch_processor`` and so
        on.
        """
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        others = {name: module for name, module in self._modules.items() if module.state_dict()}
        return {"model": model, **others}

    def run(
        self,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
        *,
        max_steps: int | None = None,
    ) -> State:
        """Trains until a limit is reached, whichever comes first; see ``set_limits`` for the usual.

        A run that was stopped or failed goes on where its last whole step ended, at the next batch
        of the same pass over the data. One that was finished goes on if a limit is given that lies
        further; else training begins anew, with the next pass. All limits count from the beginning
        of the training.

        Args:
            data: batches to train on, a DataLoader for instance; default: those of the factory, or
                of the run before. Without any, ``epoch_length`` is needed and batches are None.
            max_epochs: number of epochs.
            max_iters: number of batches. Not together with ``max_epochs``.
            epoch_length: number of batches of an epoch; default: one pass over the data.
            max_steps: number of committed optimizer steps.

        Returns:
            The state.

        Raises:
            ValueError: a limit is no positive integer or lies in the past, or there is no data.
        """
        self._check_not_running(
            "run()", "call terminate() and run() after it, or set_data() to go on with other data"
        )
        given = Limits(max_epochs, max_iters, max_steps)
        if given == Limits() and self._position.is_resumed:
            given = self._usual_limits
        if self._optimizer_step.scheduler.at == "validation":
            _warn_without_validation(self)
        with run_scopes(self):
            return self._run(data, given, epoch_length)

    def _run(self, data: Any, given: Limits, epoch_length: int | None) -> State:
        position, run = self._position, None
        if is_interrupted(self):
            limits = given | position.limits
            limits.check(position.place.progress, position.steps)
            position.set_limits(limits)
            self._show_limits()
        elif position.is_finished(given, Limits.of(self.state)):
            position.restore_random_state(is_last_time=False)
            return self.state  # type: ignore[no-any-return]
        else:
            self._set_up(data, given, epoch_length)
            run = self._run_loop()
        try:
            state = self._drive(run)
        except BaseException:
            if is_interrupted(self):  # Ctrl-C before the run continued: it still can
                raise
            with self.hook_channels.scopes:  # closes what a second Ctrl-C has left open
                raise
        if not is_interrupted(self):
            self._finish_due()
        return state

    def set_limits(
        self,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        """Sets the limits of a run that ``run()`` begins, or resumes, without a limit of its own.

        It is one epoch unless this is called. See ``run`` for the arguments.

        Raises:
            ValueError: a limit is no positive integer.
        """
        limits = Limits(max_epochs, max_iters, max_steps)
        limits.check(Progress(), 0)
        self._usual_limits = limits

    def set_data(self, data: Iterable[Any]) -> None:
        """Takes the next batch from ``data``; the length of the epoch stays. As in Ignite."""
        if self.feed is not None:
            self.feed.close()
        feed = self._feed_of(data, None)
        self._position.change_feed(feed)
        self._batches = iter(feed)

    def _set_up(self, data: Any, given: Limits, epoch_length: int | None) -> None:
        """Settles where this run begins and ends, before anything happens."""
        if epoch_length is not None:
            whole_number("epoch_length", epoch_length, "leave it out for one pass over the data")
        position, state = self._position, self.state
        limits = position.limits_to_continue(given, Limits.of(state))
        if limits is None:
            given.check(Progress(), 0)
            usual = Limits(max_epochs=1) if self._usual_limits == Limits() else self._usual_limits
            feed = self._feed_of(data, epoch_length)
            position.start_new_run(feed, usual if given == Limits() else given, epoch_length)
            self._due.clear()
            forget_validations(self)
            self._show_limits()
            state.iteration = state.epoch = state.validation = state.optimizer_step = 0
        else:
            feed = self._feed_of(data, position.epoch_length)
            position.continue_run(feed, limits, epoch_length)
            self._show_limits()
        state.epoch_length = position.epoch_length
        state.start_step = position.steps
        state.start_epoch = position.place.progress.epochs
        self._show_max_epochs()
        if not self.model.training:
            self.model.train()

    def _feed_of(self, data: Any, epoch_length: int | None) -> DataFeed:
        """Returns the feed of ``data``, or else that of the run before."""
        feed = self.feed
        if data is not None:
            feed = self._feeds.of(data)
            self._has_data = True
            self.state.dataloader = feed.loader
        elif not self._has_data and epoch_length is not None:
            if feed is None or feed.length != epoch_length:
                feed = DataFeed([None] * epoch_length, self.accelerator)
        elif feed is None:
            raise ValueError(
                "`data` must be given to the factory or to run(), got None: pass a DataLoader or a "
                "list of batches, or an `epoch_length` to have batches of None"
            )
        return feed


def _warn_without_validation(trainer: Trainer) -> None:
    # Most trainers need not wait for this import, which takes 60 ms.
    from ignite_hooks.evaluation.validation import validations_to_come

    if validations_to_come(trainer) is None:
        warnings.warn(
            'no Validation is attached, and with scheduler_at="validation" the learning rate will '
            "not change: give the factory a `validation`",
            stacklevel=3,
        )
