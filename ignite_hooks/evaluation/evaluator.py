"""An engine that evaluates each sample once and restores everything that it changes."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from itertools import islice
from typing import Any

import ignite.engine
import torch
from accelerate import Accelerator
from accelerate.utils import convert_to_fp32
from ignite.engine import Engine
from ignite.engine import State
from ignite.metrics import Metric

from ignite_hooks.core.accelerators import accelerator_or_default
from ignite_hooks.core.accelerators import is_prepared
from ignite_hooks.core.engine import EventCheckingEngine
from ignite_hooks.core.engine import forget_run
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.ignite_arguments import explain_ignite_arguments
from ignite_hooks.core.rules import check_count
from ignite_hooks.core.rules import shown_type
from ignite_hooks.core.torch_modules import check_model
from ignite_hooks.data.batch import apply_model
from ignite_hooks.data.batch import default_prepare_batch
from ignite_hooks.data.batch import identity
from ignite_hooks.data.feed import DataFeed
from ignite_hooks.data.feed import Feeds
from ignite_hooks.data.sources import PlainIterable
from ignite_hooks.evaluation.modes import buffers_of_rank_0
from ignite_hooks.evaluation.modes import modes_kept
from ignite_hooks.evaluation.modes import without_ddp
from ignite_hooks.evaluation.shared_metrics import SharedMetrics

__all__ = ["Evaluator", "FirstBatches", "create_supervised_evaluator"]


class FirstBatches:
    """The first batches of an iterable.

    Args:
        data: an iterable of batches.
        number: the largest number of batches to give.
    """

    def __init__(self, data: Iterable[Any], number: int) -> None:
        self._data = data
        self._number = number

    @property
    def length(self) -> int | None:
        """The number of batches; None if it is unknown."""
        data_length = PlainIterable(self._data).length
        return None if data_length is None else min(data_length, self._number)

    def __len__(self) -> int:
        length = self.length
        if length is None:
            raise TypeError(f"{type(self._data).__name__} has no certain number of batches")
        return length

    def __iter__(self) -> Iterator[Any]:
        return islice(self._data, self._number)


class Evaluator(EventCheckingEngine):
    """An Ignite engine that evaluates a model. ``create_supervised_evaluator`` builds it.

    Each ``run(data)`` starts from the first batch. When the run ends, it restores Accelerate's
    state and the modes of the model. If a loader is not prepared with Accelerate yet, the first run
    on the loader prepares it.

    With several processes every rank must call ``run``. All ranks evaluate with the buffers of the
    model on rank 0, such as the running statistics of a BatchNorm.
    """

    def __init__(
        self,
        process_function: Callable[[Engine, Any], Any],
        model: torch.nn.Module,
        accelerator: Accelerator,
    ) -> None:
        super().__init__(process_function)
        self.model = model
        self.accelerator = accelerator
        self._feeds = Feeds(accelerator, even_batches=False)
        self._shared_metrics = SharedMetrics(accelerator)

    def feed_of(self, data: Iterable[Any]) -> DataFeed:
        """Returns the ``DataFeed`` of ``data``, which gives the batches.

        From now on the evaluator keeps the feed, so that later runs use the same feed.
        """
        return self._feeds.feed_for(data, remember=True)

    def known_feed_of(self, data: Iterable[Any]) -> DataFeed | None:
        """Returns the ``DataFeed`` of ``data``; None if this evaluator has no feed of ``data``."""
        return self._feeds.existing_feed(data)

    @explain_ignite_arguments(Engine.run)
    def run(
        self,
        data: Iterable[Any] | None = None,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        epoch_length: int | None = None,
        *,
        max_batches: int | None = None,
    ) -> State:
        """Runs as Ignite's ``Engine.run`` does, with the model in eval mode.

        Args:
            data: the batches.
            max_epochs: as in Ignite.
            max_iters: as in Ignite.
            epoch_length: as in Ignite. Data with fewer batches are iterated again.
            max_batches: the largest number of batches to evaluate, in each process; None for all.

        Raises:
            ValueError: ``data`` is missing or empty; the loader repeats samples to give all
                processes equally many batches, so that metrics would count these samples twice;
                ``max_batches`` is not a positive integer.
        """
        if data is None:
            raise ValueError(
                "`data` must be given, got None: run(loader), or Validation(evaluator, loader)"
            )
        if max_batches is not None:
            check_count("max_batches", max_batches, "leave it out for all batches")
        feed = self._feeds.feed_for(data)
        # If an earlier run was left in its middle, the feed must not continue the old pass, and
        # Ignite must not continue the old run.
        feed.next_pass()
        # The feed keeps a reference to its iterator until `feed.close`. Without the reference,
        # Python would delete the iterator when the engine drops it, and a Ctrl-C that arrives
        # during the deletion would be lost.
        feed.holds_iterator = True
        forget_run(self)
        try:
            with (
                modes_kept(self.model),
                buffers_of_rank_0(self.model, self.accelerator),
                self._shared_metrics.computed_together(
                    self, reaches_all_ranks=feed.reaches_all_ranks
                ),
            ):
                self.model.eval()
                limits = {"max_iters": max_iters} if max_iters is not None else {}
                batches = feed if max_batches is None else FirstBatches(feed, max_batches)

                length = epoch_length or batches.length or None
                return super().run(batches, max_epochs, epoch_length=length, **limits)
        finally:
            feed.next_pass()  # so that checkpoints save the position at the start of the next run
            if is_interrupted(self):
                forget_run(self)  # an interrupted evaluation is never continued


@explain_ignite_arguments(ignite.engine.create_supervised_evaluator)
def create_supervised_evaluator(
    model: torch.nn.Module,
    metrics: Mapping[str, Metric] | None = None,
    *,
    accelerator: Accelerator | None = None,
    prepare_batch: Callable[..., tuple[Any, Any]] = default_prepare_batch,
    model_transform: Callable[[Any], Any] = identity,
    model_fn: Callable[[torch.nn.Module, Any], Any] = apply_model,
    output_transform: Callable[[Any, Any, Any], Any] = lambda x, y, y_pred: (y_pred, y),
    inference_mode: bool = False,
) -> Evaluator:
    """Builds an evaluator, which computes exact metrics.

    The model runs without gradients and with the accelerator's mixed precision. With several
    processes each sample is evaluated once, on one rank. All ranks use the buffers of the model on
    rank 0. Ignite's metrics reduce over the ranks as usual. Do not gather outputs yourself: each
    sample would count once per process.

    Args:
        model: the model, prepared or not. A model that is not prepared is moved to the device, but
            not prepared.
        metrics: Ignite's metrics by name; the results are in ``state.metrics``.
        accelerator: the accelerator to use; default: a new ``Accelerator`` with the settings of the
            existing accelerators.
        prepare_batch: (batch, device, non_blocking) -> (x, y); the batch is on the device already.
        model_transform: converts the model's output to ``y_pred``.
        model_fn: (model, x) -> the model's output.
        output_transform: (x, y, y_pred) -> ``state.output``, the input of the metrics.
        inference_mode: whether to evaluate in ``torch.inference_mode`` instead of
            ``torch.no_grad``. Inference mode is a little faster, but tensors that are made in it
            cannot be used in training later.

    Raises:
        TypeError: ``model`` is not a module, or a metric is not an Ignite metric.
    """
    check_model(model, "the order is create_supervised_evaluator(model, metrics)")
    if not isinstance(metrics or {}, Mapping):
        raise TypeError(
            f"`metrics` must map names to Ignite metrics, got {shown_type(metrics)}: "
            'write metrics={"accuracy": Accuracy()}'
        )
    accelerator = accelerator_or_default(accelerator)
    if accelerator.device_placement and not is_prepared(model):
        model = model.to(accelerator.device)
    # The forward pass of DDP is collective, and hangs if a rank has fewer batches than the others.
    # So the module inside DDP is used.
    model = without_ddp(model)
    device, non_blocking = accelerator.device, accelerator.non_blocking
    # Accelerate converts the outputs of a prepared model to float32. The model may not be prepared,
    # so the outputs are converted here.
    to_full_precision = convert_to_fp32 if accelerator.native_amp else identity

    def process(engine: Engine, batch: Any) -> Any:
        with torch.inference_mode() if inference_mode else torch.no_grad():
            x, y = prepare_batch(batch, device=device, non_blocking=non_blocking)
            with accelerator.autocast():
                y_pred = model_transform(to_full_precision(model_fn(model, x)))
            return output_transform(x, y, y_pred)

    evaluator = Evaluator(process, model, accelerator)
    for name, metric in (metrics or {}).items():
        if not isinstance(metric, Metric):
            raise TypeError(
                f"`metrics` must hold Ignite metrics, got {shown_type(metric)} for "
                f"{name!r}: make one, ignite.metrics.Accuracy() for example"
            )
        metric.attach(evaluator, name)
    return evaluator
