"""All of a run that is plain data, and the trainer that it makes of a model and data."""

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

Seed = Annotated[
    int,
    must_be(
        "an integer from 0 to 2**32 - 1",
        lambda value: is_integer(value) and 0 <= value < 2**32,
        "leave it out to seed nothing",
    ),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 2**32 - 1}),
]
"""What random generators begin with."""

Precision = Annotated[
    Literal["no", "fp16", "bf16", "fp8"],
    must_be(
        f"one of {', '.join(_PRECISIONS)}",
        lambda value: value in _PRECISIONS,
        "leave it out for what the accelerator has",
    ),
]
"""As Accelerate calls them."""

Accumulation = Annotated[
    int,
    must_be("an integer >= 1", is_count, "1 steps after each batch"),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
"""Batches of a step."""

AgreeEvery = Annotated[
    int,
    must_be("an integer >= 1", is_count, "1 exchanges after each step"),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
"""Windows from one exchange of stops between processes to the next."""

MaxCount = Annotated[
    int,
    must_be("an integer >= 1", is_count, "leave it out for no such limit"),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
"""What ends a run."""

SchedulerAt = Annotated[
    schedulers.SchedulerAt,
    must_be(
        '"step", "epoch" or "validation"',
        lambda value: value in get_args(schedulers.SchedulerAt),
        "it says when the learning rate scheduler moves",
        may_be_none=False,
    ),
]
"""When a scheduler moves."""


PeerFailure = Annotated[
    OnPeerFailure,
    must_be(
        '"exit" or "wait"',
        lambda value: value in get_args(OnPeerFailure),
        "it says what becomes of a process that waits for one that has failed",
        may_be_none=False,
    ),
]
"""What a process does that waits in a collective for another that has failed."""


@register("run")
@checked_dataclass
class RunSettings:
    """All of a run that is plain data, to be kept in a file, compared, and sent.

    What is no data, the model, the loaders, the functions, is given in code::

        settings = load("run.yaml")
        accelerator = settings.set_up()
        model = make_model()
        evaluator = create_supervised_evaluator(model, metrics, accelerator=accelerator)
        trainer = settings.build(
            model, make_optimizer(model), loss_fn, train_loader,
            accelerator=accelerator, evaluator=evaluator, validation_data=held_out_loader,
        )
        trainer.run()

    Settings of one's own, a learning rate, a batch size, go into a subclass with a tag of its own.

    Args:
        seed: what ``set_up`` seeds the random generators of Python, numpy and torch with, on all
            processes alike. The first run of the trainer that ``build`` makes begins with other
            numbers on each of several processes, for dropout and augmentation.
        mixed_precision: "no", "fp16", "bf16" or "fp8", as for ``Accelerator``.
        gradient_accumulation_steps: batches of a step, as for ``Accelerator``.
        max_epochs: epochs in all, for a ``trainer.run()`` that is given no limit itself.
        max_steps: committed optimizer steps in all; with ``max_epochs`` whichever comes first.
        grad_clip: clips the gradient of each step.
        scheduler_at: when the scheduler moves: after each "step", "epoch" or "validation".
        scheduler_metric: the name of the metric that a ``ReduceLROnPlateau`` is given.
        validation: when to validate, and what the results are called.
        checkpoint: saves on its schedule.
        resume_from: what to go on from.
        handlers: further handlers, in order.
        agree_every: with several processes, the windows from one exchange of stops to the next.
        on_peer_failure: whether a process that is blocked in a collective when another has failed
            ends ("exit") or waits for the timeout of the collective ("wait").

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
        """Seeds the random generators, and makes the accelerator that the settings ask for.

        Call it before the model is made, whose weights are drawn from these generators.

        Args:
            options: further arguments of ``Accelerator``: ``cpu=True``, say.

        Raises:
            ValueError: an option is one of the settings; an accelerator of another precision was
                made before.
        """
        asked = {
            "mixed_precision": self.mixed_precision,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }
        for name in asked:
            if name in options:
                raise ValueError(
                    f"`{name}` must not be given, it is a setting, {asked[name]!r}: use "
                    f"replace(settings, {name}={options[name]!r})"
                )
        before = shared_mixed_precision()
        if self.mixed_precision is not None and before not in (None, self.mixed_precision):
            raise ValueError(
                f"`mixed_precision` must be {before!r}, that of the accelerator that was made "
                f"before, got {self.mixed_precision!r}: call set_up() before any is made"
            )
        if self.seed is not None:
            set_seed(self.seed)
        given = {name: value for name, value in asked.items() if value is not None}
        return accelerator_or_default(Accelerator(**given, **options) if given or options else None)

    def build(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Any = None,
        data: Iterable[Any] | None = None,
        *,
        accelerator: Accelerator | None = None,
        lr_scheduler: Any = None,
        evaluator: Any = None,
        validation_data: Any = None,
        handlers: Iterable[Any] = (),
        also: Any = None,
        **functions: Any,
    ) -> Trainer:
        """Makes the trainer, by ``create_supervised_trainer``.

        Args:
            model: the model to train.
            optimizer: an optimizer of its parameters.
            loss_fn: (y_pred, y) -> scalar loss.
            data: the batches to train on.
            accelerator: what ``set_up`` has made; it is called here if none is given.
            lr_scheduler: as for the factory.
            evaluator: what a validation evaluates with, if the settings have one.
            validation_data: what the evaluator runs on.
            handlers: further objects with ``attach(engine)``, after those of the settings.
            also: what checkpoints hold besides, if the settings have them.
            functions: ``batch_processor``, ``prepare_batch``, ``model_transform``, ``model_fn``,
                ``output_transform``.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: arguments do not go together with the settings or with each other; a path
                cannot be used.
            FileNotFoundError: there is nothing to go on from.
        """
        if accelerator is None:
            accelerator = self.set_up()
        self._check_fits(accelerator)
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
            validation=self._validation(evaluator, validation_data),
            checkpoint=checkpoint,
            resume_from=self.resume_from,
            handlers=[*self.handlers, *handlers],
            agree_every=self.agree_every,
            on_peer_failure=self.on_peer_failure,
            **functions,
        )
        if self.seed is not None:
            trainer.seed_ranks(self.seed)
        trainer.set_limits(max_epochs=self.max_epochs, max_steps=self.max_steps)
        return trainer

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema, draft 2020-12, of a file with such settings, for editors and forms."""
        return json_schema(cls)

    def _validation(self, evaluator: Any, data: Any) -> Validation | None:
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
        return Validation(evaluator, data, **vars(self.validation))

    def _check_fits(self, accelerator: Any) -> None:
        for name in ("mixed_precision", "gradient_accumulation_steps"):
            asked, has = getattr(self, name), getattr(accelerator, name, None)
            if asked is not None and asked != has:
                raise ValueError(
                    f"`accelerator` must have the settings' {name}, {asked!r}, it has {has!r}: "
                    "make it with settings.set_up()"
                )

    def _check_functions(self, functions: dict[str, Any]) -> None:
        for name in functions:
            if hasattr(self, name) or name == "validation":
                raise ValueError(
                    f"`{name}` must not be given, it is a setting: use replace(settings, {name}=…)"
                )
