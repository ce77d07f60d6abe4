"""The trainer: an engine whose runs begin, continue and end where they should."""

import sys
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING
from typing import Any

import torch
from accelerate.utils import set_seed
from ignite.engine import Engine
from ignite.engine import State

from ignite_hooks.core.accelerators import is_data_parallel
from ignite_hooks.core.borrowed_weights import forget_borrowed_weights
from ignite_hooks.core.borrowed_weights import step_of_borrowed_weights
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.handler import attached
from ignite_hooks.core.ignite_arguments import explains_arguments_of
from ignite_hooks.core.measured import forget_validations
from ignite_hooks.core.place import Progress
from ignite_hooks.core.restoring import restored
from ignite_hooks.core.rules import is_integer
from ignite_hooks.core.rules import whole_number
from ignite_hooks.core.run_scope import enter_at_each_run
from ignite_hooks.core.run_scope import run_in_scopes
from ignite_hooks.core.torch_modules import unwrapped
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import Feeds
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.run_generators import generators_of_run
from ignite_hooks.data.shared_order import what_may_draw_apart
from ignite_hooks.hooks.hooks import Hooks
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.processes.host_group import host_group
from ignite_hooks.processes.peer_failures import PeerFailures
from ignite_hooks.processes.same_parameters import SameParameters
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.trainer.limits import Limits
from ignite_hooks.trainer.limits import Shown
from ignite_hooks.trainer.loop import TrainingLoop
from ignite_hooks.trainer.requests import Stop
from ignite_hooks.trainer.summary import summary_of

if TYPE_CHECKING:
    from ignite_hooks.checkpoint.report import ResumeReport
    from ignite_hooks.checkpoint.weights import CheckpointEntry

__all__ = ["Trainer"]

_SEEDS = 2**32  # that numpy takes


class Trainer(TrainingLoop):
    """An Ignite engine that trains: ``create_supervised_trainer`` builds it, ``run`` runs it.

    It is an ``Engine``: ``trainer.on(...)``, metrics, loggers and ``ProgressBar`` work as on any.
    The loop is drawn in ``ignite_hooks.events``. Its state shows, in addition to Ignite's,
    ``optimizer_step`` (committed steps in all), ``step_committed``, ``max_steps``, ``start_epoch``
    and ``start_step`` (where this run began), ``model_outputs`` and ``loss``.

    ``stop_reason`` says why the last run ended: "max_epochs", "max_iters", "max_steps",
    "exception", the class of the handler that called ``terminate()`` ("EarlyStopping"),
    "terminate" where a function did or, with a ``SaveCheckpoint``, the name of a signal. With
    several processes it names the rank that has asked, "EarlyStopping on rank 1", if not all have.
    ``ended_by`` names what finished the run before its limit, in which case a process that resumes
    it has nothing left to do. ``resume_report`` says what of an earlier run was resumed, and how
    exactly; None if nothing was. ``hooks`` has what is entered before and left after a part of the
    loop.
    """

    def __init__(
        self,
        process_function: Callable[["Trainer", Any], Any],
        model: torch.nn.Module,
        optimizer_step: OptimizerStep,
        feeds: Feeds,
        modules: Mapping[str, torch.nn.Module] | None = None,
        agree_every: int = 1,
        on_peer_failure: OnPeerFailure = "exit",
    ) -> None:
        super().__init__(process_function, optimizer_step, agree_every)  # type: ignore[arg-type]
        self.accelerator = optimizer_step.accelerator
        self.model = model
        self.optimizer = optimizer_step.optimizer
        self.lr_scheduler = optimizer_step.lr_scheduler
        self._complete_state()
        self.resume_report: ResumeReport | None = None
        self._usual_limits = Limits()
        self._feeds = feeds
        self._rank_seed: int | None = None
        self._modules = dict(modules or {})
        self._frozen: list[torch.nn.Module] = []
        self._same = SameParameters()
        self._peers = PeerFailures(self, on_peer_failure)
        self.state_dict_user_keys.append("optimizer_step")
        optimizer_step.attach(self)
        enter_at_each_run(self, lambda trainer: trainer._optimizer_step.signals)
        enter_at_each_run(self, lambda trainer: trainer._changes)
        self._unwrapped: tuple[Any, Any] = (None, None)  # the model, and what is in its wrappers
        self._position.find_generators = self._find_generators
        self._found = FoundGenerators()
        self._hooks = Hooks()
        self._hooks.attach(self)

    def __repr__(self) -> str:
        feed = self._feeds.newest if self.feed is None else self.feed
        return f"<{type(self).__name__}: {summary_of(self, feed)}>"

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
        others = {name: unwrapped(module) for name, module in self._modules.items()}
        with_state = {name: module for name, module in others.items() if module.state_dict()}
        return {"model": self._bare_model(), **with_state}

    def parameter_digest(self) -> tuple[int, int] | None:
        """Returns what tells the parameters of this rank from those of others; None if alone."""
        return self._same.digest(self._replicated()) if self._has_replicas else None

    def compare_parameters(self, digests: Sequence[tuple[int, int] | None]) -> None:
        """Warns once, or raises, if ranks have other parameters. Collective if digests differ.

        Args:
            digests: those of all ranks, in their order.

        Raises:
            RuntimeError: a parameter differs by more than rounding does.
        """
        present = [each for each in digests if each is not None]
        if present:
            self._same.compare(self._replicated(), present)

    def _compare_now(self) -> None:
        own = self.parameter_digest()
        digests: list[Any] = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(digests, own, group=host_group(self.accelerator))
        self.compare_parameters(digests)

    @property
    def _has_replicas(self) -> bool:
        """Whether several ranks train the whole model each."""
        return self.accelerator.num_processes > 1 and is_data_parallel(self.accelerator)

    def _replicated(self) -> dict[str, torch.nn.Parameter]:
        """Returns the parameters that are the same on every rank: the model's, and trained ones."""
        trained = {id(each) for each in self._optimizer_step.prepared.parameters}
        ignored = {f"model.{each}" for each in getattr(self.model, "parameters_to_ignore", ())}
        return {
            f"{name}.{path}": parameter
            for name, module in self.modules.items()
            for path, parameter in module.named_parameters()
            if (name == "model" or id(parameter) in trained)
            and f"{name}.{path}" not in ignored  # by DDP, on the user's demand
            and type(parameter.data) is torch.Tensor
        }

    def _bare_model(self) -> torch.nn.Module:
        """Returns the model without wrappers."""
        if self._unwrapped[0] is not self.model:
            # Accelerate takes hundreds of calls for it, too many for each save.
            bare = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            self._unwrapped = (self.model, bare)
        bare_model: torch.nn.Module = self._unwrapped[1]
        return bare_model

    @property
    def generators(self) -> Mapping[str, Any]:
        """The random generators that model, functions and handlers have for themselves, by name.

        They are saved and restored with the global generators, and a validation leaves them where
        they were. Those of the data belong to the place in the data.
        """
        return self._find_generators().named

    @property
    def searched(self) -> Mapping[str, Callable[[], Any]]:
        """What the last search for random generators has looked into, by name.

        The names begin with "model", "optimizer", "process_function" and so on. Each value is a
        function that returns the object, or None if it is gone. It is the same mapping until
        another object is found.
        """
        return self._found.watched

    def unknown_parts(self) -> dict[str, str]:
        """Returns why parts of a ``ResumeReport`` may not be restored, by their names."""
        return self._position.unknown_parts()

    def _find_generators(self) -> FoundGenerators:
        step, feed = self._optimizer_step, self.feed
        others = {
            "model": self._bare_model(),
            **self._modules,
            "optimizer": getattr(self.optimizer, "optimizer", self.optimizer),
            "scheduler": getattr(self.lr_scheduler, "scheduler", self.lr_scheduler),
        }
        closed = [self.accelerator, step, self._position, self._feeds, self.model, self.optimizer]
        closed.append(self.hook_channels)
        of_data = FoundGenerators()
        if feed is not None:
            closed += [feed, feed.loader, *feed.roots.values()]
            of_data = feed.found_generators
        searched = {*map(id, others.values())}
        closed = [each for each in closed if id(each) not in searched]
        self._found = generators_of_run(self, others, closed, of_data)
        return self._found

    @explains_arguments_of(Engine.run)
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
        of the training. A handler may write others to the state, for the rest of the run.

        Args:
            data: batches to train on, a DataLoader for instance; default: those of the factory, or
                of the run before. Without any, ``epoch_length`` is needed and batches are None.
            max_epochs: number of epochs.
            max_iters: number of batches. Not in one call with ``max_epochs``.
            epoch_length: number of batches of an epoch; default: one pass over the data.
            max_steps: number of committed optimizer steps.

        Returns:
            The state.

        Raises:
            ValueError: a limit is no positive integer or lies in the past, or there is no data.
            RuntimeError: another rank failed in this run, or in one before.
        """
        if is_integer(data):
            raise TypeError(
                f"`data` must be an iterable of batches, got {data}: for {data} epochs write "
                f"run(max_epochs={data})"
            )
        self._check_not_running(
            "run()", "call terminate() and run() after it, or set_data() to go on with other data"
        )
        with self._peers:
            given = Limits(max_epochs, max_iters, max_steps)
            self._take_borrowed_weights()
            self._adopt_state()
            if given == Limits() and self._position.is_resumed:
                given = self._usual_limits
            if is_interrupted(self) and self._position.shown.asks_for_new_run(Shown.on(self.state)):
                self._close_interrupted()
            if self._optimizer_step.scheduler.at == "validation":
                _warn_without_validation(self)
            if not is_interrupted(self):
                self._finish_unwinding()
            state = run_in_scopes(self, lambda: self._run(data, given, epoch_length))
        return self._finish_run() or state  # type: ignore[func-returns-value]  # as one line

    def load_best(self) -> "CheckpointEntry":
        """Loads the weights of the best checkpoint of this run, for a test pass after it.

        The model gets them, and a loss function with weights of its own; everything else stays as
        it is: counters, optimizer, scheduler, metrics, modes and handlers. So nothing is saved
        until training continues, and a run that does continue starts from these weights, with a
        warning. To continue where the run ended, resume from its last checkpoint instead.

        The best is that by the ``metric`` and the ``mode`` of the trainer's ``SaveCheckpoint``,
        among the checkpoints of this run that are there (``keep_best=1`` keeps it). With several
        processes all of them call this, and all load the same.

        Returns:
            The checkpoint that it was.

        Raises:
            OSError: the directory cannot be read.
            RuntimeError: the trainer is running, or interrupted.
            ValueError: there is no SaveCheckpoint with a metric, or no checkpoint with a value of
                it; the checkpoint is damaged, or the model has changed since. The weights are as
                they were.
        """
        # Most trainers need not wait for this import.
        from ignite_hooks.checkpoint.best_weights import load_best_weights

        return load_best_weights(self)

    def _is_handled(self, error: BaseException) -> bool:
        self._peers.tell(error)  # before anyone handles it, which may take long
        return super()._is_handled(error)

    def _take_borrowed_weights(self) -> None:
        """Warns of a run that continues with the weights of another step."""
        step = step_of_borrowed_weights(self)
        if step is not None:
            forget_borrowed_weights(self)
            warnings.warn(
                f"the run starts from the weights of step {step}, which load_best() has loaded, "
                f"with the optimizer of step {self.state.optimizer_step}; to continue where the "
                "run ended, resume from its last checkpoint",
                stacklevel=3,
            )

    def _finish_unwinding(self) -> None:
        """Does what an exception kept the run before from doing on its way out."""
        if self.hook_channels.scopes.open:
            self.hook_channels.scopes.abandon()
        self._stand_at_boundary()
        self._changes.undo()
        if self._optimizer_step.is_half_done:
            raise RuntimeError(_half_done(self))

    def _finish_run(self) -> None:
        """Notes that a run has ended, or failed, as its very last act: it may break off before."""
        if not is_interrupted(self):
            self._position.has_failed = self.stop_reason == "exception" or self.is_broken_off

    def _run(self, data: Any, given: Limits, epoch_length: int | None) -> State:
        position, run = self._position, None
        if is_interrupted(self):
            given.check(position.place.progress, position.steps)
            position.asked = given | position.asked
            for name, limit in vars(given).items():
                if limit is not None:  # for the next look of the loop
                    setattr(self.state, name, limit)
        elif position.is_finished(given, Shown.on(self.state)):
            position.restore_random_state(is_last_time=False)
            self._tell_finished(given)
            return self.state  # type: ignore[no-any-return]
        else:
            self._set_up(data, given, epoch_length)
            self.logger.info("Engine run starting with %s: %r", position.limits, self)
            self._after_first_step = [self._compare_now] if self._has_replicas else []
            run = self._run_loop()
        was_enabled = torch.is_grad_enabled()

        def restore() -> None:
            torch.set_grad_enabled(was_enabled)

        try:
            # Ctrl-C at the end of a `with torch.no_grad()` of torch's leaves gradients disabled.
            with restored(restore, alone=True):
                state = self._drive(run)
        except BaseException:
            if is_interrupted(self):  # Ctrl-C before the run continued: it still can
                raise
            with self.hook_channels.scopes:  # closes what a second Ctrl-C has left open
                self.stop_reason = "exception"
                self._stand_at_boundary()
                raise
        if not is_interrupted(self):
            self._finish_due()
        return state

    def _tell_finished(self, given: Limits) -> None:
        """Says why a resumed run has nothing left to do."""
        position, ended_by = self._position, self._position.ended_by
        if ended_by is None:
            limits = given | position.limits
            self.stop_reason = limits.reached(position.place.progress, position.steps)
            return
        self.stop_reason = Stop(ended_by).reason
        progress = position.place.progress
        epoch = progress.epochs + (progress.batches > 0)
        position.ended_by = None  # a further run() continues, as it does where this one was ended
        warnings.warn(
            f"nothing is trained: {ended_by} ended this run in epoch {epoch}, after step "
            f"{position.steps}, and the same command would end it again; to train on all the same, "
            'say ResumeCheckpoint(after_terminate="continue")',
            stacklevel=2,
        )

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

    def seed_ranks(self, seed: int) -> None:
        """Has each rank draw other random numbers from the next run on.

        So dropout and augmentation differ between ranks, where model and order of the data must
        not. Rank 0 goes on with the numbers that it has; rank ``r`` is seeded with ``seed`` + r. If
        the order of the data may come from a global random generator, all go on with the same
        numbers, and a warning says so. A run that resumes has the numbers that it had.

        Args:
            seed: an integer from 0 to 2**32 - 1, beyond which it begins with 0 again.

        Raises:
            ValueError: ``seed`` is none.
        """
        if not (is_integer(seed) and 0 <= seed < _SEEDS):
            raise ValueError(
                f"`seed` must be an integer from 0 to 2**32 - 1, got {seed!r}: give what the ranks "
                "were seeded with before the model was made"
            )
        self._rank_seed = seed

    def _begin_random_numbers(self) -> None:
        """Seeds the ranks as ``seed_ranks`` has said, once."""
        seed, self._rank_seed = self._rank_seed, None
        if seed is None or self.accelerator.num_processes == 1:
            return
        source = what_may_draw_apart(self._present_feed.loader) if self._has_data else None
        if source is not None:
            warnings.warn(
                "dropout and augmentation draw the same random numbers on all ranks, because "
                f"{source} may draw the order of `data` from a global random generator: give it a "
                "`generator` of its own",
                stacklevel=2,
            )
        elif self.accelerator.process_index:
            set_seed((seed + self.accelerator.process_index) % _SEEDS)

    def set_data(self, data: Iterable[Any]) -> None:
        """Takes the next batch from ``data``.

        Within a run the present epoch ends with the pass over ``data``, unless the run has an
        ``epoch_length`` or a handler writes one to the state: that stays, as in Ignite.
        """
        if self.feed is not None:
            self.feed.close()
        feed = self._feed_of(data, None)
        feed.look()
        self._position.change_feed(feed)
        self._batches = iter(feed)
        self._show_lengths()

    def _set_up(self, data: Any, given: Limits, epoch_length: int | None) -> None:
        """Settles where this run begins and ends, before anything happens."""
        if epoch_length is not None:
            whole_number("epoch_length", epoch_length, "leave it out for one pass over the data")
        position, state = self._position, self.state
        now = Shown.on(state)
        limits = position.limits_to_continue(given, now)
        if limits is None:
            given.check(Progress(), 0)
            usual = Limits(max_epochs=1) if self._usual_limits == Limits() else self._usual_limits
            if not self._has_data:
                epoch_length = epoch_length or position.epoch_length
            feed = self._feed_of(data, epoch_length)
            limits = usual if given == Limits() else given
            position.check_schedule(limits, feed, epoch_length, is_new=True)
            self._due.clear()
            self._running_metrics.forget()
            forget_validations(self)
            state.iteration = state.epoch = state.validation = state.optimizer_step = 0
            position.start_new_run(feed, limits, epoch_length)
        else:
            position.take_over_length(now)
            feed = self._feed_of(data, position.epoch_length)
            self._check_can_end(now)
            length = epoch_length or position.epoch_length
            position.check_schedule(limits, feed, length, is_new=False)
            position.continue_run(feed, limits, epoch_length)
        self._begin_random_numbers()
        self._show_limits()
        state.start_step = position.steps
        state.start_epoch = position.place.progress.epochs
        if not self.model.training:
            self.model.train()
        self._note_frozen()

    def return_to_train_mode(self) -> None:
        """Sets the model to train mode, but for the submodules that were frozen as the epoch began.

        Ignite's own trainer calls ``model.train()`` in each iteration, and so its users' handlers
        leave the model in eval mode: ``ignite.engine.create_supervised_evaluator`` does.
        """
        self._frozen = [module for module in self._frozen if not module.training]  # one was thawed
        self.model.train()
        for module in self._frozen:
            module.training = False

    def _note_frozen(self) -> None:
        if self.model.training:  # else all were left in eval mode
            self._frozen = [module for module in self.model.modules() if not module.training]

    def _adopt_state(self) -> None:
        """Works with a state that a user has put in the place of the trainer's, as Ignite does."""
        state = self.state
        if state is self._own_state:
            return
        self._close_interrupted()
        self._complete_state()
        self._own_state = state
        self._move_to_state()

    def _complete_state(self) -> None:
        """Gives the state what it shows in addition to Ignite's, as it is before a run."""
        none = ("max_steps", "max_iters", "model_outputs", "loss")  # Ignite 0.5.4 has no max_iters
        values = {**dict.fromkeys(none), "start_epoch": 0, "start_step": 0}
        for name, value in values.items():
            if not hasattr(self.state, name):
                setattr(self.state, name, value)

    def _feed_of(self, data: Any, epoch_length: int | None) -> DataFeed:
        """Returns the feed of ``data``, or else that of the run before."""
        feed = self.feed
        if data is None:
            data = self._data_on_state
        if data is not None:
            feed = self._feeds.of(data)
            self._has_data = True
            self.state.dataloader = feed.loader
        elif not self._has_data and epoch_length is not None:
            feed = feed or DataFeed(_NoData(), self.accelerator)
        elif feed is None:
            raise ValueError(
                "`data` must be given to the factory or to run(), got None: pass a DataLoader or a "
                "list of batches, or an `epoch_length` to have batches of None"
            )
        return feed


class _NoData(Sequence[None]):
    """Batches of None for as long as there can be an epoch."""

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        return None

    def __iter__(self) -> Iterator[None]:
        return repeat(None)


def _half_done(trainer: Trainer) -> str:
    # Most trainers need not wait for this import.
    from ignite_hooks.checkpoint.save import SaveCheckpoint

    saved = (each.last_checkpoint for each in attached(trainer, SaveCheckpoint))
    report = trainer.resume_report
    last = next((each for each in saved if each is not None), report and report.checkpoint)
    remedy = "make model, optimizer and trainer again"
    if last is not None:
        remedy += f" and resume from the last checkpoint, ResumeCheckpoint({str(last)!r})"
    return (
        f"the optimizer step after step {trainer.state.optimizer_step} broke off half-way: some "
        f"parameters may have changed and others not, and it cannot be repeated; {remedy}"
    )


def _warn_without_validation(trainer: Trainer) -> None:
    # Most trainers need not wait for this import, which takes 60 ms.
    from ignite_hooks.evaluation.validation import validations_to_come

    if validations_to_come(trainer) is None:
        warnings.warn(
            'no Validation is attached, and with scheduler_at="validation" the learning rate will '
            "not change: give the factory a `validation`",
            stacklevel=3,
        )
