"""The trainer: an Ignite engine with a training loop that can stop, continue and resume."""

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
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.ignite_arguments import explain_ignite_arguments
from ignite_hooks.core.place import Progress
from ignite_hooks.core.rules import check_count
from ignite_hooks.core.rules import is_integer
from ignite_hooks.core.run_scope import enter_at_each_run
from ignite_hooks.core.run_scope import run_in_scopes
from ignite_hooks.core.stale_metrics import forget_validations
from ignite_hooks.core.torch_modules import unwrap_module
from ignite_hooks.core.undo_stack import undo_on_exit
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import Feeds
from ignite_hooks.data.random_state import FoundGenerators
from ignite_hooks.data.run_generators import generators_of_run
from ignite_hooks.data.shared_order import rank_dependent_part
from ignite_hooks.hooks.hooks import Hooks
from ignite_hooks.observe.summary import summary_of
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.processes.host_group import host_group
from ignite_hooks.processes.peer_failures import PeerFailures
from ignite_hooks.processes.same_parameters import SameParameters
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.trainer.limits import Limits
from ignite_hooks.trainer.limits import ShownLimits
from ignite_hooks.trainer.loop import TrainingLoop
from ignite_hooks.trainer.run_requests import StopRequest

if TYPE_CHECKING:
    from ignite_hooks.checkpoint.report import ResumeReport
    from ignite_hooks.checkpoint.weights import CheckpointEntry

__all__ = ["Trainer"]

_SEED_COUNT = 2**32  # numpy takes seeds below this


class Trainer(TrainingLoop):
    """An Ignite engine that trains. ``create_supervised_trainer`` builds it, ``run`` starts a run.

    The trainer is an ``Engine``: ``trainer.on(...)``, metrics, loggers and ``ProgressBar`` work as
    on any engine. The loop is drawn in ``ignite_hooks.events``. In addition to Ignite's attributes,
    ``trainer.state`` has these:

    - ``optimizer_step``: the number of committed optimizer steps. A step is *committed* if it has
      changed the parameters, so a step that the loss scaler skips is not counted.
    - ``step_committed``: whether the present iteration made a committed step.
    - ``max_steps``: the number of committed steps at which the run ends; None for no such limit.
    - ``start_epoch``, ``start_step``: the numbers of complete epochs and of committed steps at the
      time when ``run`` was called.
    - ``model_outputs``, ``loss``: the outputs of the model and the loss for the present batch.

    Args:
        process_function: is called with the trainer and each batch. It makes the forward and the
            backward pass, and returns ``state.output``.
        model: the prepared model.
        optimizer_step: makes the optimizer steps. The trainer takes its accelerator, optimizer and
            scheduler from this object.
        feeds: prepares the data. Data that is used again is not prepared a second time.
        modules: maps the names of arguments of the factory, such as "loss_fn", to the modules that
            were given as these arguments. The model is not included.
        agree_every: see ``create_supervised_trainer``.
        on_peer_failure: see ``create_supervised_trainer``.

    Attributes:
        accelerator: the accelerator that the factory was given or has made. It owns the device, the
            precision and the processes.
        model: the model as Accelerate has prepared it, for example wrapped in DDP. ``modules`` has
            the model without wrappers.
        optimizer: the optimizer as Accelerate has prepared it.
        lr_scheduler: the scheduler that the trainer moves; None if there is none.
        stop_reason: why the last run ended: the limit that was reached ("max_epochs", "max_iters"
            or "max_steps"); "exception"; the class of the handler that called ``terminate()``
            ("EarlyStopping"); "terminate" if a function called ``terminate()``; or the name of the
            signal for which a ``SaveCheckpoint`` has stopped the run. If only some of several
            processes requested the stop, the lowest of their ranks is added, as in
            "EarlyStopping on rank 1". None before the first run, and during a run.
        ended_by: the name of the handler or function that finished the run before its limit; None
            if there is none. If a handler or function finished a saved run before its limit, a
            process that resumes this run trains nothing by default.
        resume_report: says which parts of a saved run were restored, and whether they are exactly
            as saved; None if no run was resumed.
        hooks: the contexts of this trainer. Each context is entered before a part of the loop and
            left after this part.
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
        self._add_state_attributes()
        self.resume_report: ResumeReport | None = None
        self._default_limits = Limits()
        self._feeds = feeds
        self._rank_seed: int | None = None
        self._modules = dict(modules or {})
        self._frozen_modules: list[torch.nn.Module] = []
        self._same_parameters = SameParameters()
        self._peer_failures = PeerFailures(self, on_peer_failure)
        self.state_dict_user_keys.append("optimizer_step")
        optimizer_step.attach(self)
        # In the first scope, signals can be held back. The second scope collects the changes that
        # must be undone when the run ends. The trainer holds the lambdas, so they do not use
        # `self`: it would make a reference cycle.
        enter_at_each_run(self, lambda trainer: trainer._optimizer_step.signals)
        enter_at_each_run(self, lambda trainer: trainer._changes)
        # A cache: the model with its wrappers, and the same model without them.
        self._unwrapped_cache: tuple[Any, Any] = (None, None)
        self._position.find_generators = self._find_generators
        self._found_generators = FoundGenerators()
        self._hooks = Hooks()
        self._hooks.attach(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {'; '.join(summary_of(self, self.feed))}>"

    @property
    def hooks(self) -> Hooks:
        """The contexts of this trainer, each on one of the eight channels (parts of the loop)."""
        return self._hooks

    @hooks.setter
    def hooks(self, hooks: Hooks) -> None:
        # ``trainer.hooks += more`` changes the set in place and then assigns it here.
        if hooks is not self._hooks:
            raise AttributeError(
                f"`trainer.hooks` must stay the same object, got {hooks!r}: call "
                "trainer.hooks.register_all(…), or hooks.attach(trainer) on the new object"
            )

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """The modules of the run by name, without wrappers such as DDP.

        "model" is the model. The other names are those of arguments of the factory, such as
        ``loss_fn`` or ``batch_processor``, whose value is a module that has a state.
        """
        others = {name: unwrap_module(module) for name, module in self._modules.items()}
        with_state = {name: module for name, module in others.items() if module.state_dict()}
        return {"model": self._unwrapped_model(), **with_state}

    def parameter_digest(self) -> tuple[int, int] | None:
        """Returns a digest of this rank's parameters, to be compared with the other ranks' digests.

        Returns None if there is only one rank, or if the ranks hold different parts of the model.
        """
        return (
            self._same_parameters.digest(self._replicated_parameters())
            if self._has_replicas
            else None
        )

    def compare_parameters(self, digests: Sequence[tuple[int, int] | None]) -> None:
        """Warns once, or raises an error, if ranks have different parameters.

        If the digests differ, this is a collective call.

        Args:
            digests: the digests of all ranks, in the order of the ranks.

        Raises:
            RuntimeError: a parameter differs by more than rounding can explain.
        """
        present = [each for each in digests if each is not None]
        if present:
            self._same_parameters.compare(self._replicated_parameters(), present)

    def _compare_parameters_now(self) -> None:
        """Exchanges the digests of all ranks and compares them. Collective."""
        own = self.parameter_digest()
        digests: list[Any] = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(digests, own, group=host_group(self.accelerator))
        self.compare_parameters(digests)

    @property
    def _has_replicas(self) -> bool:
        """True if several ranks train, each with the whole model."""
        return self.accelerator.num_processes > 1 and is_data_parallel(self.accelerator)

    def _replicated_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Returns the parameters that must be the same on every rank.

        These are the parameters of the model and the trained parameters of other modules.
        """
        trained = {id(each) for each in self._optimizer_step.prepared.parameters}
        ignored = {f"model.{each}" for each in getattr(self.model, "parameters_to_ignore", ())}
        return {
            f"{name}.{path}": parameter
            for name, module in self.modules.items()
            for path, parameter in module.named_parameters()
            if (name == "model" or id(parameter) in trained)
            and f"{name}.{path}" not in ignored  # the user has excluded this parameter from DDP
            and type(parameter.data) is torch.Tensor  # the bytes of a subclass cannot be read
        }

    def _unwrapped_model(self) -> torch.nn.Module:
        """Returns the model without wrappers, from a cache if the model is the same as before."""
        if self._unwrapped_cache[0] is not self.model:
            # ``unwrap_model`` makes hundreds of calls, and is too slow to be called for each save.
            try:
                unwrapped = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            except KeyError:
                # Up to version 1.12, Accelerate fails if only parts of the model are compiled.
                unwrapped = unwrap_module(self.model)
            self._unwrapped_cache = (self.model, unwrapped)
        unwrapped_model: torch.nn.Module = self._unwrapped_cache[1]
        return unwrapped_model

    @property
    def generators(self) -> Mapping[str, Any]:
        """The random generators that belong to the model, to functions and to handlers, by name.

        These generators are saved and restored like the global generators, and a validation does
        not change their state. Generators of the data are not included, because they belong to the
        position in the data.
        """
        return self._find_generators().named

    @property
    def searched_objects(self) -> Mapping[str, Callable[[], Any]]:
        """The objects that the last search for random generators has looked into.

        The property maps the name of each object to a function. This function returns the object,
        or None if the object no longer exists. A name begins with "model", "optimizer",
        "process_function" or the like. The property returns the same mapping object until a search
        finds a change, so a caller can cache what it has derived from the mapping.
        """
        return self._found_generators.watched

    def unknown_parts(self) -> dict[str, str]:
        """Returns the reasons why a resume may not restore some parts of the run.

        The result maps the name of such a part, for example "data", to the reasons.
        """
        return self._position.unknown_parts()

    def _find_generators(self) -> FoundGenerators:
        """Searches for random generators in all objects that a run can reach."""
        step, feed = self._optimizer_step, self.feed
        others = {
            "model": self._unwrapped_model(),
            **self._modules,
            "optimizer": getattr(self.optimizer, "optimizer", self.optimizer),
            "scheduler": getattr(self.lr_scheduler, "scheduler", self.lr_scheduler),
        }
        # These objects are not searched: parts of the trainer, the wrappers of objects in
        # ``others``, and the data, whose generators the feed finds.
        excluded = [self.accelerator, step, self._position, self._feeds, self.model, self.optimizer]
        excluded.append(self.hook_channels)
        data_generators = FoundGenerators()
        if feed is not None:
            excluded += [feed, feed.loader, *feed.roots.values()]
            data_generators = feed.found_generators
        searched = {*map(id, others.values())}
        excluded = [each for each in excluded if id(each) not in searched]
        self._found_generators = generators_of_run(self, others, excluded, data_generators)
        return self._found_generators

    @explain_ignite_arguments(Engine.run)
    def run(
        self,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
        *,
        max_steps: int | None = None,
    ) -> State:
        """Trains until a limit is reached, whichever comes first.

        If no limit is given, a new run has the limits of ``set_limits``, or lasts one epoch if
        ``set_limits`` was not called. A run that continues keeps its limits.

        A run that was stopped or failed continues after its last optimizer step, at the next batch
        of the same pass over the data. A run that reached its limit continues if a higher limit is
        given; otherwise a new run begins, with the next pass. Limits count from the beginning of
        the run, not from this call. Handlers may write other limits to the state; these limits hold
        for the rest of the run.

        Args:
            data: the batches to train on, for example a DataLoader; default: the data of the
                factory, or of the previous run. Without data, ``epoch_length`` is needed, and each
                batch is None.
            max_epochs: the number of epochs.
            max_iters: the number of batches. Not together with ``max_epochs``.
            epoch_length: the number of batches in an epoch; default: one pass over the data.
            max_steps: the number of committed optimizer steps.

        Returns:
            The state.

        Raises:
            TypeError: ``data`` is an integer.
            ValueError: a limit is not a positive integer, or the run has exceeded it already; or
                there is no data.
            RuntimeError: the trainer is running; an optimizer step of the previous run broke off
                half-way; or another rank has failed, in this run or in an earlier one.
        """
        if is_integer(data):
            raise TypeError(
                f"`data` must be an iterable of batches, got {data}: for {data} epochs write "
                f"run(max_epochs={data})"
            )
        self._check_not_running(
            "run()",
            "to continue with other data call set_data(); for another run call terminate(), and "
            "run() when the present run has returned",
        )
        with self._peer_failures:
            given = Limits(max_epochs, max_iters, max_steps)
            self._warn_of_borrowed_weights()
            self._adopt_replaced_state()
            if given == Limits() and self._position.is_resumed:
                given = self._default_limits
            now = ShownLimits.read(self.state)
            if is_interrupted(self) and self._position.shown.asks_for_new_run(now):
                self._close_interrupted()
            if self._optimizer_step.scheduler.at == "validation":
                _warn_without_validation(self)
            if not is_interrupted(self):
                self._finish_unwinding()
            state = run_in_scopes(self, lambda: self._run(data, given, epoch_length))
        # The outcome is noted in the return statement. If Ctrl-C comes before this statement, the
        # run counts as failed, and the next ``run()`` continues the run.
        return self._note_outcome() or state  # type: ignore[func-returns-value]

    def load_best(self) -> "CheckpointEntry":
        """Loads the weights of the best checkpoint of this run, to test the model after the run.

        This method loads the weights of the model, and those of the loss function if it has any.
        Everything else is left unchanged: counters, optimizer, scheduler, metrics, modes and
        handlers. Weights and counters then belong to different steps, so nothing is saved until
        training continues. If training continues, ``run`` warns, and starts from the loaded
        weights. To continue where the run ended, resume from its last checkpoint instead.

        The best checkpoint is chosen by the ``metric`` and the ``mode`` of the trainer's
        ``SaveCheckpoint``, among the checkpoints of this run that still exist. (With
        ``keep_best=1`` the best checkpoint is not deleted.) With several processes all of them must
        call this method, and all load the same checkpoint.

        Returns:
            The checkpoint that was loaded.

        Raises:
            OSError: the directory cannot be read.
            RuntimeError: the trainer is running, or interrupted.
            ValueError: no SaveCheckpoint keeps the best by a metric; no checkpoint has a value of
                this metric; the checkpoint is damaged; or the model has changed since the save. In
                all of these cases the weights stay unchanged.
        """
        # Imported here: most trainers never need it, and the import takes time.
        from ignite_hooks.checkpoint.best_weights import load_best_weights

        return load_best_weights(self)

    def _handle_failure(self, error: BaseException) -> bool:
        """Reports the failure to the other ranks, and then handles the failure on this rank."""
        # Reported first, because handlers of EXCEPTION_RAISED may take long.
        self._peer_failures.report(error)
        return super()._handle_failure(error)

    def _warn_of_borrowed_weights(self) -> None:
        """Warns if a run starts from weights that ``load_best`` has loaded."""
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
        """Finishes the roll-back of the previous run, if an exception broke the roll-back off.

        Raises:
            RuntimeError: an optimizer step of the previous run broke off half-way.
        """
        if self.hook_channels.scopes.open:
            self.hook_channels.scopes.abandon()
        self._roll_back_to_boundary()
        self._changes.undo_all()
        if self._optimizer_step.is_half_done:
            raise RuntimeError(_half_done_message(self))

    def _note_outcome(self) -> None:
        """Notes whether the run is unfinished: it failed, or a stop broke off a validation."""
        if not is_interrupted(self):
            self._position.is_unfinished = self.stop_reason == "exception" or self.is_broken_off

    def _run(self, data: Any, given: Limits, epoch_length: int | None) -> State:
        """Starts, continues or resumes a run. The scopes around the run are open already."""
        position, run = self._position, None
        if is_interrupted(self):
            given.check(position.place.progress, position.steps)
            position.given_limits = given | position.given_limits
            for name, limit in vars(given).items():
                if limit is not None:  # the loop adopts the limits that it finds on the state
                    setattr(self.state, name, limit)
        elif position.is_finished(given, ShownLimits.read(self.state)):
            # ``is_last_time=False`` keeps the saved random state for the next ``run``, which
            # resumes the saved run if it is given a higher limit.
            position.restore_random_state(is_last_time=False)
            self._report_finished(given)
            return self.state  # type: ignore[no-any-return]
        else:
            self._set_up_run(data, given, epoch_length)
            self.logger.info("Engine run starting with %s: %r", position.limits, self)
            self._after_first_step = [self._compare_parameters_now] if self._has_replicas else []
            run = self._run_loop()
        was_enabled = torch.is_grad_enabled()

        def restore() -> None:
            torch.set_grad_enabled(was_enabled)

        try:
            # If Ctrl-C comes within torch at the end of a ``with torch.no_grad()``, gradients stay
            # disabled. ``restore`` enables them if they were enabled before the run.
            with undo_on_exit(restore, out_of_order=True):
                state = self._advance_run(run)
        except BaseException:
            if is_interrupted(self):
                raise  # Ctrl-C came before the interrupted run continued, so it stays interrupted
            # The end of this ``with`` closes scopes that the exception may have left open.
            with self.hook_channels.scopes:
                self.stop_reason = "exception"
                self._roll_back_to_boundary()
                raise
        if not is_interrupted(self):
            self._finish_deferred()
        return state

    def _report_finished(self, given: Limits) -> None:
        """Sets ``stop_reason`` of a resumed run that is finished; warns if a handler ended it."""
        position, ended_by = self._position, self._position.ended_by
        if ended_by is None:
            limits = given | position.limits
            self.stop_reason = limits.reached(position.place.progress, position.steps)
            return
        self.stop_reason = StopRequest(ended_by).reason
        progress = position.place.progress
        epoch = progress.epochs + (progress.batches > 0)
        # Only this call of ``run()`` trains nothing: the next call continues the run.
        position.ended_by = None
        warnings.warn(
            f"nothing is trained: {ended_by} ended this run in epoch {epoch}, after step "
            f"{position.steps}, and the same command would end it again; to continue anyway, pass "
            'ResumeCheckpoint(after_terminate="continue")',
            stacklevel=2,
        )

    def set_limits(
        self,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        max_steps: int | None = None,
    ) -> None:
        """Sets the limits that ``run()`` uses if it is called without limits.

        These limits apply to a new run and to a run that is resumed from a checkpoint. If
        ``set_limits`` is not called, a new run lasts one epoch, and a resumed run keeps the limits
        of the saved run. See ``run`` for the arguments.

        Raises:
            ValueError: a limit is not a positive integer.
        """
        limits = Limits(max_epochs, max_iters, max_steps)
        limits.check(Progress(), 0)
        self._default_limits = limits

    def seed_ranks(self, seed: int) -> None:
        """Gives each rank different random numbers from the next run on.

        Dropout and augmentation should differ between ranks, while the model and the order of the
        data must be the same. Rank 0 keeps the state of its random generators; rank ``r`` is seeded
        with ``seed`` + ``r``. If the order of the data may come from a global random generator, no
        rank is seeded, and a warning says so. If a run resumes, the generators are restored from
        the checkpoint.

        Args:
            seed: an integer from 0 to 2**32 - 1. A sum ``seed`` + ``r`` above this range wraps
                around to 0.

        Raises:
            ValueError: ``seed`` is not an integer in this range.
        """
        if not (is_integer(seed) and 0 <= seed < _SEED_COUNT):
            raise ValueError(
                f"`seed` must be an integer from 0 to 2**32 - 1, got {seed!r}: pass the seed that "
                "all ranks were seeded with before the model was made"
            )
        self._rank_seed = seed

    def _seed_this_rank(self) -> None:
        """Seeds this rank if ``seed_ranks`` has been called since the last run began."""
        seed, self._rank_seed = self._rank_seed, None
        if seed is None or self.accelerator.num_processes == 1:
            return
        source = rank_dependent_part(self._present_feed.loader) if self._has_data else None
        if source is not None:
            warnings.warn(
                "dropout and augmentation draw the same random numbers on all ranks, because "
                f"{source} may draw the order of `data` from a global random generator: give "
                f"{source} a `generator` of its own",
                stacklevel=2,
            )
        elif self.accelerator.process_index:
            set_seed((seed + self.accelerator.process_index) % _SEED_COUNT)

    def set_data(self, data: Iterable[Any]) -> None:
        """Makes training continue with the batches of ``data``.

        If a run is in progress, its epoch continues with the batches of ``data``, and ends at
        the end of the pass over ``data``. If the run has an ``epoch_length``, or a handler has
        written an epoch length to the state, the epoch keeps this length instead, as in Ignite.
        """
        if self.feed is not None:
            self.feed.close()
        feed = self._choose_feed(data, None)
        feed.update_length()
        self._position.change_feed(feed)
        self._batches = iter(feed)
        self._show_lengths()

    def _set_up_run(self, data: Any, given: Limits, epoch_length: int | None) -> None:
        """Sets up a new run, or the continuation of the last run, with its limits."""
        if epoch_length is not None:
            check_count("epoch_length", epoch_length, "leave it out for one pass over the data")
        position, state = self._position, self.state
        now = ShownLimits.read(state)
        limits = position.limits_to_continue(given, now)
        if limits is None:
            given.check(Progress(), 0)
            default = (
                Limits(max_epochs=1) if self._default_limits == Limits() else self._default_limits
            )
            if not self._has_data:
                epoch_length = epoch_length or position.epoch_length
            feed = self._choose_feed(data, epoch_length)
            limits = default if given == Limits() else given
            position.check_schedule(limits, feed, epoch_length, is_new=True)
            self._due.clear()
            self._running_metrics.forget()
            forget_validations(self)
            state.iteration = state.epoch = state.validation = state.optimizer_step = 0
            position.start_new_run(feed, limits, epoch_length)
        else:
            position.adopt_epoch_length(now)
            feed = self._choose_feed(data, position.epoch_length)
            self._check_can_end(now)
            length = epoch_length or position.epoch_length
            position.check_schedule(limits, feed, length, is_new=False)
            position.continue_run(feed, limits, epoch_length)
        self._seed_this_rank()
        self._show_limits()
        state.start_step = position.steps
        state.start_epoch = position.place.progress.epochs
        if not self.model.training:
            self.model.train()
        self._note_frozen_modules()

    def return_to_train_mode(self) -> None:
        """Sets the model to train mode, except for frozen submodules.

        A submodule is *frozen* if it was in eval mode when the epoch began. A user's handler may
        leave the model in eval mode, for example if it runs an evaluator of
        ``ignite.engine.create_supervised_evaluator``. Ignite's own trainer calls ``model.train()``
        in each iteration.
        """
        # If a handler has set a frozen module to train mode, the module is no longer frozen.
        self._frozen_modules = [module for module in self._frozen_modules if not module.training]
        self.model.train()
        for module in self._frozen_modules:
            module.training = False

    def _note_frozen_modules(self) -> None:
        """Notes which submodules are frozen: those in eval mode, if the model is in train mode."""
        # If the model itself is in eval mode, its submodules are too, whether frozen or not.
        if self.model.training:
            self._frozen_modules = [
                module for module in self.model.modules() if not module.training
            ]

    def _adopt_replaced_state(self) -> None:
        """Continues from the counters of a new ``trainer.state``, if a user has assigned one."""
        state = self.state
        if state is self._own_state:
            return
        self._close_interrupted()
        self._add_state_attributes()
        self._own_state = state
        self._move_to_state()

    def _add_state_attributes(self) -> None:
        """Adds the trainer's attributes to the state, with their values before a run."""
        # The state of Ignite 0.5.4 has no ``max_iters``.
        initially_none = ("max_steps", "max_iters", "model_outputs", "loss")
        values = {**dict.fromkeys(initially_none), "start_epoch": 0, "start_step": 0}
        for name, value in values.items():
            if not hasattr(self.state, name):
                setattr(self.state, name, value)

    def _choose_feed(self, data: Any, epoch_length: int | None) -> DataFeed:
        """Returns the feed of ``data``; without data, the feed of the previous run.

        Raises:
            ValueError: there is no data and no ``epoch_length``.
        """
        feed = self.feed
        if data is None:
            data = self._assigned_data
        if data is not None:
            feed = self._feeds.feed_for(data)
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
    """Stands in for missing data: a sequence of None, longer than any epoch."""

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: Any) -> Any:
        return None

    def __iter__(self) -> Iterator[None]:
        return repeat(None)


def _half_done_message(trainer: Trainer) -> str:
    """Returns the error message of a run that follows a half-done optimizer step."""
    # Imported here: most trainers never need it, and the import takes time.
    from ignite_hooks.checkpoint.save import SaveCheckpoint

    saved = (each.last_checkpoint for each in attached_handlers(trainer, SaveCheckpoint))
    report = trainer.resume_report
    last = next((each for each in saved if each is not None), report and report.checkpoint)
    remedy = "make model, optimizer and trainer again"
    if last is not None:
        remedy += f" and resume from the last checkpoint, ResumeCheckpoint({str(last)!r})"
    return (
        f"the optimizer step after step {trainer.state.optimizer_step} broke off half-way: some "
        f"parameters may have changed and others not, so the step cannot be repeated; {remedy}"
    )


def _warn_without_validation(trainer: Trainer) -> None:
    """Warns if no Validation is attached, although the scheduler moves only after a validation."""
    # Imported here: most trainers never need it, and the import takes 60 ms.
    from ignite_hooks.evaluation.validation import validations_without_result

    if validations_without_result(trainer) is None:
        warnings.warn(
            'no Validation is attached, and with scheduler_at="validation" the learning rate will '
            "not change: give the factory a `validation`",
            stacklevel=3,
        )
