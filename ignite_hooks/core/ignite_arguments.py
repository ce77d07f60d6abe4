"""Arguments that only Ignite's factories have: an error says what replaces each."""

import inspect
from collections.abc import Callable
from collections.abc import Iterable
from functools import wraps
from typing import Any
from typing import ParamSpec
from typing import TypeVar

import torch

from ignite_hooks.core.rules import close_to

__all__ = ["check_no_device", "explains_arguments_of"]

P = ParamSpec("P")
R = TypeVar("R")

_REMEDIES = {
    "device": "the accelerator has the device, a GPU if there is one: pass "
    "accelerator=Accelerator(), or Accelerator(cpu=True) for the CPU",
    "non_blocking": "the accelerator moves the batches: pass accelerator=Accelerator("
    "dataloader_config=DataLoaderConfiguration(non_blocking=True))",
    "deterministic": "the order of the data is restored on a resume without it: seed once, with "
    "accelerate.utils.set_seed(0), and pass `resume_from`",
    "amp_mode": "the accelerator has the precision: pass "
    'accelerator=Accelerator(mixed_precision="fp16")',
    "scaler": "the accelerator scales the loss: pass "
    'accelerator=Accelerator(mixed_precision="fp16"), and settings of the scaler as '
    "kwargs_handlers=[GradScalerKwargs(init_scale=1024.0)]",
    "gradient_accumulation_steps": "the accelerator accumulates: pass "
    "accelerator=Accelerator(gradient_accumulation_steps=4)",
}


def explains_arguments_of(
    ignites: Callable[..., Any],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a factory to explain arguments that only Ignite's factory has.

    Python's own message names the argument and no remedy. Type checkers and ``inspect.signature``
    see the factory as it is.

    Args:
        ignites: Ignite's factory of the same name, for the order of its arguments.
    """

    def decorate(factory: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(factory).parameters.values()
        names = [each.name for each in parameters]
        positional = sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters)

        @wraps(factory)
        def explained(*args: P.args, **kwargs: P.kwargs) -> R:
            if len(args) > positional:
                theirs = list(inspect.signature(ignites).parameters)[: len(args)]
                given = [name for name in theirs if name not in names[:positional]]
                raise TypeError(
                    f"{factory.__name__}() takes {positional} positional arguments, got "
                    f"{len(args)}: pass the others by name{_explanation_of(given)}"
                )
            for name in kwargs:
                if name not in names:
                    remedy = _REMEDIES.get(name) or close_to(name, names)
                    raise TypeError(
                        f"{factory.__name__}() has no argument `{name}`, got {kwargs[name]!r}: "
                        f"{remedy}"
                    )
            return factory(*args, **kwargs)

        return explained

    return decorate


def check_no_device(data: Any) -> None:
    """Raises a TypeError for a device in the place of the data, where Ignite's factory has it."""
    if isinstance(data, str | torch.device):
        raise TypeError(
            f"`data` must be an iterable of batches, got {data!r}; Ignite's fourth argument, "
            f"`device`, is none of this factory: {_REMEDIES['device']}"
        )


def _explanation_of(names: Iterable[str]) -> str:
    """Returns what replaces each of the arguments that were given in Ignite's order."""
    parts = [f"`{name}`: {_REMEDIES.get(name, f'pass {name}=…')}" for name in names]
    return f". In Ignite's order they are {'; '.join(parts)}" if parts else ""
