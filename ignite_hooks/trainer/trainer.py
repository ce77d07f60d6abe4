"""The trainer: an engine whose runs begin, go on and end where they should."""

from collections.abc import Callable
from collections.abc import Iterable
from typing import TYPE_CHECKING
from typing import Any

import torch
from ignite.engine import Engine
from ignite.engine import State

from ignite_hooks.core.place import Place
from ignite_hooks.core.place import Progress
from ignite_hooks.core.run_scope import run_scopes
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import Feeds
from ignite_hooks.hooks.hooks import Hooks
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.trainer.loop import TrainingLoop
from ignite_hooks.trainer.progress import Limits
from ignite_hooks.trainer.progress import whole_number

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
    says what of an earlier training was taken up, and how exactly; None if nothing was. ``hooks``
    has what is entered before and left after a part of the loop.
    """

    def __init__(
        self,
        process_function: Callable[[Engine, Any], Any],
        model: torch.nn.Module,
        optimizer_step: OptimizerStep,
        feeds: Feeds,
        loss_fn: Any = None,
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
        self._loss_fn = loss_fn
        self._state_dict_user_keys.append("optimizer_step")
        optimizer_step.attach(self)
        self._hooks = Hooks()
        self._hooks.attach(self)

    @property
    def hooks(self) -> Hooks:
        """The trainer's own set of contexts on the seven channels."""
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
        """What is trained, without wrappers: the model, and the loss function if it has a state."""
        modules = {"model": self.accelerator.unwrap_model(self.model, keep_torch_compile=False)}
        if isinstance(self._loss_fn, torch.nn.Module) and self._loss_fn.state_dict():
            modules["loss_fn"] = self._loss_fn
        return modules

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
        if given == Limits() and self._is_resumed:
            given = self._usual_limits
        with run_scopes(self):
            return self._run(data, given, epoch_length)

    def _run(self, data: Any, given: Limits, epoch_length: int | None) -> State:
        if self._internal_run_generator is None:
            if self._nothing_is_left(given):
                self._take_up(is_last_time=False)
                return self.state  # type: ignore[no-any-return]
            self._set_up(data, given, epoch_length)
            self._internal_run_generator = self._run_all()
        else:  # interrupted
            limits = given | self._limits
            limits.check(self._place.progress, self._optimizer_step.steps)
            self._set_limits(limits)
        try:
            state: State = next(self._internal_run_generator)
            return state
        except BaseException as end:
            self._internal_run_generator = None
            if isinstance(end, StopIteration):
                return end.value  # type: ignore[no-any-return]
            with self.hook_channels.scopes:  # closes what a second Ctrl-C has left open
                raise

    def set_limits(
        self,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        """What ends a training that ``run()`` begins, or takes up, without a limit of its own.

        It is one epoch unless this is called. See ``run`` for the arguments.

        Raises:
            ValueError: a limit is no positive integer.
        """
        limits = Limits(max_epochs, max_iters, max_steps)
        limits.check(Progress(), 0)
        self._usual_limits = limits

    def set_data(self, data: Iterable[Any]) -> None:
        """The next batch comes from ``data``; the length of the epoch stays. As in Ignite."""
        if self._feed is not None:
            self._feed.close()
        self._use(data, None)
        position = self._feed.position
        self._place = self._place._replace(position=position)
        self._boundary = self._boundary._replace(position=position)
        self._batches = iter(self._feed)

    def _set_up(self, data: Any, given: Limits, epoch_length: int | None) -> None:
        """Settles where this run begins and ends, before anything happens."""
        if epoch_length is not None:
            whole_number("epoch_length", epoch_length, "leave it out for one pass over the data")
        before = self._limits.edited(self._shown, Limits.of(self.state))
        progress, steps = self._place.progress, self._optimizer_step.steps
        if before == Limits():
            self._begin_anew(data, given, epoch_length)
        else:
            given.check(progress, steps)
            if self._is_resumed and given != Limits():
                before = given  # those of the other run were for that run
            further = given if given != Limits() else before
            if further.reached(progress, steps):
                self._begin_anew(data, given, epoch_length)
            else:
                limits = given | before.without_reached(progress, steps)
                limits.check(progress, steps)
                self._go_on(data, limits, epoch_length)
        self._is_resumed = False
        state = self.state
        state.epoch_length = self._epoch_length
        state.start_epoch = self._place.progress.epochs
        state.start_step = self._optimizer_step.steps
        self._show_max_epochs()
        if not self.model.training:
            self.model.train()

    def _begin_anew(self, data: Any, limits: Limits, epoch_length: int | None) -> None:
        limits.check(Progress(), 0)
        self._use(data, epoch_length)
        self._feed.next_pass()
        self._epoch_length = epoch_length or self._feed.length
        self._place = Place()
        self._go_to = self._random = None
        self._taking_up = []
        self._optimizer_step.start_from(0, self)
        self.state.iteration = self.state.epoch = self.state.validation = 0
        usual = Limits(max_epochs=1) if self._usual_limits == Limits() else self._usual_limits
        self._set_limits(usual if limits == Limits() else limits)

    def _go_on(self, data: Any, limits: Limits, epoch_length: int | None) -> None:
        before = self._feed
        self._use(data, self._epoch_length)
        if self._go_to is not None:
            self._go_to(self._feed)
            self._go_to = None
        elif self._feed is not before:  # the epoch begins anew with it
            self._place = Place(self._place.progress.at_epoch_start())
            self._epoch_length = epoch_length or self._feed.length
        if epoch_length not in (None, self._epoch_length):
            raise ValueError(
                f"`epoch_length` must stay {self._epoch_length} when training goes on, got "
                f"{epoch_length}: leave it out, or set trainer.state.max_epochs = None (or "
                "max_iters, or max_steps) before run() to begin anew"
            )
        self._set_limits(limits)

    def _use(self, data: Any, epoch_length: int | None) -> None:
        """Makes ``data``, or else that of before, what is trained on."""
        if data is not None:
            self._feed = self._feeds.of(data)
            self._has_data = True
            self.state.dataloader = self._feed.loader
        elif not self._has_data and epoch_length is not None:
            if self._feed is None or self._feed.length != epoch_length:
                self._feed = DataFeed([None] * epoch_length, self.accelerator)
        elif self._feed is None:
            raise ValueError(
                "`data` must be given to the factory or to run(), got None: pass a DataLoader or a "
                "list of batches, or an `epoch_length` to have batches of None"
            )
