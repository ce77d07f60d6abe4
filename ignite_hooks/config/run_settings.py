"""``RunSettings``: the settings of a run as plain data, from which a trainer is built."""

from collections.abc import Iterable
from typing import Annotated
from typing import Any
from typing import Literal
from typing import get_args

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from ignite.engine import Engine
from pydantic import WithJsonSchema

from ignite_hooks.checkpoint.resume import ResumeCheckpoint
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.config.conversion import replace
from ignite_hooks.config.registry import register
from ignite_hooks.config.schema import json_schema
from ignite_hooks.core.accelerators import accelerator_or_default
from ignite_hooks.core.accelerators import shared_mixed_precision
from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import MetricName
from ignite_hooks.core.fields import must_be
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.rules import is_count
from ignite_hooks.core.rules import is_integer
from ignite_hooks.evaluation.validation import Validation
from ignite_hooks.evaluation.validation import ValidationSchedule
from ignite_hooks.factory import create_supervised_trainer
from ignite_hooks.optim import lr_scheduler as schedulers
from ignite_hooks.optim.gradient_clipping import GradientClipping
from ignite_hooks.optim.lr_scheduler import SchedulerArgument
from ignite_hooks.processes.watched_run import OnPeerFailure
from ignite_hooks.trainer.trainer import Trainer

__all__ = [
    "Accumulation",
    "AgreeEvery",
    "MaxCount",
    "PeerFailure",
    "Precision",
    "RunSettings",
    "SchedulerAt",
    "Seed",
]

_PRECISIONS = ("no", "fp16", "bf16", "fp8")
_POSITIVE_INTEGER = WithJsonSchema({"type": "integer", "minimum": 1})

Seed = Annotated[
    int,
    must_be(
        "an integer from 0 to 2**32 - 1",
        lambda value: is_integer(value) and 0 <= value < 2**32,
        "leave it out to seed nothing",
    ),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2**32 - 1}),
]
"""A seed of random generators: an integer from 0 to 2**32 - 1."""

Precision = Annotated[
    Literal["no", "fp16", "bf16", "fp8"],
    must_be(
        f"one of {', '.join(_PRECISIONS)}",
        lambda value: value in _PRECISIONS,
        "leave it out to use the setting of the accelerator",
    ),
]
"""A mixed precision of Accelerate: "no", "fp16", "bf16" or "fp8"."""

Accumulation = Annotated[
    int,
    must_be("an integer >= 1", is_count, "with 1, the optimizer steps after each batch"),
    _POSITIVE_INTEGER,
]
"""The number of batches for one optimizer step: an integer >= 1."""

AgreeEvery = Annotated[
    int,
    must_be(
        "an integer >= 1",
        is_count,
        "with 1, processes tell each other after each window whether to stop",
    ),
    _POSITIVE_INTEGER,
]
"""The interval, in windows, at which processes tell each other whether to stop: an integer >= 1.

A window is the batches whose gradients are accumulated for one optimizer step.
"""

MaxCount = Annotated[
    int,
    must_be("an integer >= 1", is_count, "leave it out for no such limit"),
    _POSITIVE_INTEGER,
]
"""The largest number of epochs or steps of a run: an integer >= 1."""

SchedulerAt = Annotated[
    schedulers.SchedulerAt,
    must_be(
        '"step", "epoch" or "validation"',
        lambda value: value in get_args(schedulers.SchedulerAt),
        "it says when the learning rate scheduler steps",
        may_be_none=False,
    ),
]
"""The event at which a learning rate scheduler steps: "step", "epoch" or "validation"."""

PeerFailure = Annotated[
    OnPeerFailure,
    must_be(
        '"exit" or "wait"',
        lambda value: value in get_args(OnPeerFailure),
        '"exit" ends a process that waits for a failed process',
        may_be_none=False,
    ),
]
"""The behavior of a process that waits for a failed process in a collective: "exit" or "wait"."""


@register("run")
@checked_dataclass
class RunSettings:
    """The settings of a run that are plain data, so that a file can contain them.

    Objects that are not plain data, such as the model, the loaders and functions, are given in
    code::

        settings = load("run.yaml", RunSettings)
        accelerator = settings.set_up()
        model = make_model()
        evaluator = create_supervised_evaluator(model, metrics, accelerator=accelerator)
        trainer = settings.build(
            model, make_optimizer(model), loss_fn, train_loader,
            accelerator=accelerator, evaluator=evaluator, validation_data=held_out_loader,
        )
        trainer.run()

    A subclass can add further settings, for example a learning rate. It needs its own tag, which is
    the entry "type" in a settings file.

    Args:
        seed: the seed of the random generators of Python, numpy and torch. ``set_up`` seeds them
            in the same way on all processes, so that the model gets the same initial weights on
            each of them. From the first run of the trainer on, each process draws different random
            numbers, for dropout and augmentation.
        mixed_precision: "no", "fp16", "bf16" or "fp8", as for ``Accelerator``.
        gradient_accumulation_steps: the number of batches for one optimizer step, as for
            ``Accelerator``.
        max_epochs: the total number of epochs. A limit that is given to ``trainer.run()`` replaces
            ``max_epochs`` and ``max_steps``.
        max_steps: the total number of optimizer steps, without those that the loss scaler skips. If
            ``max_epochs`` is given too, the limit that is reached first ends the run.
        grad_clip: clips the gradient of each step.
        scheduler_at: the event at which the scheduler steps: after each "step", "epoch" or
            "validation".
        scheduler_metric: the name of the metric that a ``ReduceLROnPlateau`` receives.
        validation: the schedule of validations, and the prefix of their metrics.
        checkpoint: saves checkpoints on its schedule.
        resume_from: the checkpoint to resume from.
        handlers: further handlers, in the order in which they are attached.
        agree_every: with several processes, the interval at which the processes tell each other
            whether to stop the run. The unit is a window, the batches of one optimizer step.
        on_peer_failure: the behavior of a process that waits for a failed process in a collective.
            The waiting process ends ("exit"), or waits for the timeout of the collective ("wait").

    Raises:
        ValueError: an argument is out of its range.
    """

    seed: Seed | None = None
    mixed_precision: Precision | None = None
    gradient_accumulation_steps: Accumulation | None = None
    max_epochs: MaxCount | None = None
    max_steps: MaxCount | None = None
    grad_clip: GradientClipping | None = None
    scheduler_at: SchedulerAt = "step"
    scheduler_metric: MetricName | None = None
    validation: ValidationSchedule | None = None
    checkpoint: SaveCheckpoint | None = None
    resume_from: ResumeCheckpoint | None = None
    handlers: tuple[Handler, ...] = ()
    agree_every: AgreeEvery = 1
    on_peer_failure: PeerFailure = "exit"

    def set_up(self, **options: Any) -> Accelerator:
        """Seeds the random generators, and makes the accelerator of these settings.

        Call ``set_up`` before you make the model, because the generators give its initial weights.

        Args:
            options: further arguments of ``Accelerator``, for example ``cpu=True``.

        Raises:
            ValueError: an option has the name of a setting; an accelerator with another mixed
                precision was made before.
        """
        settings = {
            "mixed_precision": self.mixed_precision,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }
        for name in settings:
            if name in options:
                raise ValueError(
                    f"`{name}` must not be given, because it is a setting (its value is "
                    f"{settings[name]!r}): use replace(settings, {name}={options[name]!r})"
                )
        # The first accelerator of a process sets the mixed precision of all accelerators.
        before = shared_mixed_precision()
        if self.mixed_precision is not None and before not in (None, self.mixed_precision):
            raise ValueError(
                f"`mixed_precision` must be {before!r}, as for the accelerator that was made "
                f"before, got {self.mixed_precision!r}: call set_up() before any other accelerator "
                "is made"
            )
        if self.seed is not None:
            set_seed(self.seed)
        given = {name: value for name, value in settings.items() if value is not None}
        return accelerator_or_default(Accelerator(**given, **options) if given or options else None)

    def build(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Any = None,
        data: Iterable[Any] | None = None,
        *,
        accelerator: Accelerator | None = None,
        lr_scheduler: SchedulerArgument = None,
        evaluator: Any = None,
        validation_data: Any = None,
        handlers: Iterable[Any] = (),
        also: Any = None,
        **functions: Any,
    ) -> Trainer:
        """Makes the trainer of these settings with ``create_supervised_trainer``.

        Args:
            model: the model to train.
            optimizer: an optimizer of the model's parameters.
            loss_fn: (y_pred, y) -> scalar loss.
            data: the batches to train on.
            accelerator: the accelerator that ``set_up`` made. By default ``build`` calls
                ``set_up``.
            lr_scheduler: a scheduler of torch, or a callable that makes one from the optimizer.
            evaluator: the evaluator of validations; needed if the settings have a ``validation``.
            validation_data: the batches for the evaluator.
            handlers: further objects with ``attach(engine)``, attached after the handlers of the
                settings.
            also: further objects that checkpoints save; used if the settings have a
                ``checkpoint``.
            functions: further arguments of ``create_supervised_trainer``: ``batch_processor``,
                ``prepare_batch``, ``model_transform``, ``model_fn``, ``output_transform``.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: arguments do not fit the settings or each other; a path cannot be used.
            FileNotFoundError: there is no checkpoint to resume from.
        """
        if accelerator is None:
            accelerator = self.set_up()
        self._check_accelerator(accelerator)
        self._check_functions(functions)
        checkpoint = self.checkpoint
        if checkpoint is not None and also is not None:
            checkpoint = replace(checkpoint, also=also)
        trainer = create_supervised_trainer(
            model,
            optimizer,
            loss_fn,
            data,
            accelerator=accelerator,
            lr_scheduler=lr_scheduler,
            scheduler_at=self.scheduler_at,
            scheduler_metric=self.scheduler_metric,
            grad_clip=self.grad_clip,
            validation=self._make_validation(evaluator, validation_data),
            checkpoint=checkpoint,
            resume_from=self.resume_from,
            handlers=[*self.handlers, *handlers],
            agree_every=self.agree_every,
            on_peer_failure=self.on_peer_failure,
            **functions,
        )
        # `set_up` has seeded all processes alike. In the run, each process draws its own numbers.
        if self.seed is not None:
            trainer.seed_ranks(self.seed)
        trainer.set_limits(max_epochs=self.max_epochs, max_steps=self.max_steps)
        return trainer

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Returns the JSON Schema (draft 2020-12) of a settings file, for use in editors."""
        return json_schema(cls)

    def _make_validation(self, evaluator: Any, data: Any) -> Validation | None:
        if self.validation is None:
            return None
        if evaluator is None:
            raise ValueError(
                "`evaluator` must be given with settings that have a `validation`, got None: pass "
                "create_supervised_evaluator(model, metrics), or a function of the model"
            )
        if isinstance(evaluator, Engine) and data is None:
            raise ValueError(
                "`validation_data` must be given with an engine as evaluator, got None: pass a "
                "DataLoader"
            )
        # The fields of a ValidationSchedule are arguments of Validation too.
        return Validation(evaluator, data, **vars(self.validation))

    def _check_accelerator(self, accelerator: Any) -> None:
        for name in ("mixed_precision", "gradient_accumulation_steps"):
            setting, actual = getattr(self, name), getattr(accelerator, name, None)
            if setting is not None and setting != actual:
                raise ValueError(
                    f"`accelerator` must have {name}={setting!r}, as in the settings, got "
                    f"{actual!r}: make it with settings.set_up()"
                )

    def _check_functions(self, functions: dict[str, Any]) -> None:
        for name in functions:
            if hasattr(self, name):
                raise ValueError(
                    f"`{name}` must not be given, because it is a setting: use "
                    f"replace(settings, {name}=…)"
                )
