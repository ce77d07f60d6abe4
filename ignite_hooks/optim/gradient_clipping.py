"""Clips the accumulated, unscaled gradient once per optimizer step, directly before the step."""

from typing import Any

from ignite.engine import Engine

from ignite_hooks.core.checked_dataclass import checked_dataclass
from ignite_hooks.core.fields import Limit
from ignite_hooks.core.fields import NormType
from ignite_hooks.core.handler import Attachment
from ignite_hooks.core.handler import Handler
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.optim.optimizer_step import OptimizerStep
from ignite_hooks.optim.optimizer_step import callbacks_before_step
from ignite_hooks.optim.prepared_optimizer import PreparedOptimizer

__all__ = ["GradientClipping"]


@checked_dataclass
class GradientClipping(Handler):
    """Clips the gradient of each optimizer step, either by its norm or by value.

    Training loops that accumulate the gradients of several batches often make one of three
    mistakes:

    - They clip after each batch instead of once per step.
    - They clip before the loss scaler's factor is removed.
    - They clip at the wrong scale when the data end and a step has fewer batches than usual.

    GradientClipping clips the accumulated, unscaled gradient when all handlers of
    OPTIMIZER_STEP_STARTED have returned. So it does not matter when these handlers were attached:
    if one of them rescales the gradient, the rescaled gradient is clipped. GradientClipping clips
    the gradients of all trainable parameters of the optimizer.

    Clipping by norm writes the norm from before the clipping to ``state.metrics["grad_norm"]``, as
    a tensor, without synchronizing with the device.

    Args:
        max_norm: largest norm of all gradients together, as in ``torch.nn.utils.clip_grad_norm_``.
            With inf the norm is measured and nothing is clipped.
        clip_value: largest absolute value of an element of a gradient, as in
            ``torch.nn.utils.clip_grad_value_``.
        norm_type: the p of the p-norm, inf for the largest absolute value.

    Raises:
        ValueError: both limits or neither are given; a limit is not positive; the engine has no
            OptimizerStep, or has a GradientClipping already.
    """

    max_norm: Limit | None = None
    clip_value: Limit | None = None
    norm_type: NormType = 2.0

    def __post_init__(self) -> None:
        """Checks that there is exactly one limit."""
        if (self.max_norm is None) == (self.clip_value is None):
            raise ValueError(
                "exactly one of `max_norm` and `clip_value` must be given, got "
                f"max_norm={self.max_norm} and clip_value={self.clip_value}: "
                "max_norm=1.0 is the usual choice"
            )

    def check(self, engine: Engine, event: Any) -> None:
        """Checks that ``engine`` has an OptimizerStep, and no GradientClipping yet."""
        _find_optimizer_step(engine)
        if attached_handlers(engine, GradientClipping):
            raise ValueError(
                "`engine` must have at most one GradientClipping, got a second one: give only one, "
                "as `grad_clip` or in `handlers`; to replace one, first call remove() on the "
                "Attachment that its attach() has returned"
            )

    def attach_to(self, attachment: Attachment) -> None:
        """Clips the gradient directly before each optimizer step."""
        step = _find_optimizer_step(attachment.engine)
        step_attachment = step.attachment

        def clip(engine: Engine) -> None:
            nonlocal step, step_attachment
            # If the OptimizerStep is detached, another one may have been attached since.
            if not (step_attachment and step_attachment.is_attached):
                step = _find_optimizer_step(engine)
                step_attachment = step.attachment
            self._clip(step.prepared, engine)

        callbacks = callbacks_before_step(attachment.engine)
        callbacks.append(clip)
        attachment.on_removal(lambda: callbacks.remove(clip))

    def __call__(self, engine: Engine) -> None:
        """Clips the present gradients."""
        self._clip(_find_optimizer_step(engine).prepared, engine)

    def _clip(self, prepared: PreparedOptimizer, engine: Engine) -> None:
        """Clips the gradients; with ``max_norm`` also writes the norm to the metrics."""
        if self.max_norm is not None:
            norm = prepared.clip_grad_norm_(self.max_norm, self.norm_type)
            engine.state.metrics["grad_norm"] = norm
        elif self.clip_value is not None:
            prepared.clip_grad_value_(self.clip_value)


def _find_optimizer_step(engine: Engine) -> OptimizerStep:
    """Returns the OptimizerStep of ``engine``, or raises a ValueError."""
    for step in attached_handlers(engine, OptimizerStep):
        return step
    raise ValueError(
        "`engine` must have an OptimizerStep before a GradientClipping, got none: write "
        "create_supervised_trainer(…, grad_clip=…), or first attach OptimizerStep(accelerator, "
        "optimizer), which calls optimizer.step() in your place"
    )
