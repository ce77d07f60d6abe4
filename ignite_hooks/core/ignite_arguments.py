"""Errors for arguments that exist only in Ignite's factories. They say what to write instead."""

import inspect
from collections.abc import Callable
from collections.abc import Iterable
from functools import wraps
from typing import Any
from typing import ParamSpec
from typing import TypeVar

import torch

from ignite_hooks.core.rules import did_you_mean

__all__ = ["check_data_is_not_a_device", "explain_ignite_arguments"]

P = ParamSpec("P")
R = TypeVar("R")

# Maps each argument that only Ignite's factories have to the end of an error message, which says
# what to write instead.
_REMEDIES = {
    "device": "the accelerator has the device, a GPU if there is one: pass "
    "accelerator=Accelerator(), or Accelerator(cpu=True) for the CPU",
    "non_blocking": "the accelerator moves the batches: pass accelerator=Accelerator("
    "dataloader_config=DataLoaderConfiguration(non_blocking=True))",
    "deterministic": "a resume restores the order of the data without this argument: seed once, "
    "with accelerate.utils.set_seed(0), and pass `resume_from`",
    "amp_mode": "the accelerator has the precision: pass "
    'accelerator=Accelerator(mixed_precision="fp16")',
    "scaler": "the accelerator scales the loss: pass "
    'accelerator=Accelerator(mixed_precision="fp16"), and settings of the scaler as '
    "kwargs_handlers=[GradScalerKwargs(init_scale=1024.0)]",
    "gradient_accumulation_steps": "the accelerator accumulates: pass "
    "accelerator=Accelerator(gradient_accumulation_steps=4)",
}


def explain_ignite_arguments(
    ignite_factory: Callable[..., Any],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a factory raise helpful errors for arguments that only Ignite's factory has.

    The errors say what to write instead. Python's own TypeError would only name the argument. Type
    checkers and ``inspect.signature`` still see the signature of the decorated factory.

    Args:
        ignite_factory: Ignite's factory or method of the same name. If too many arguments are given
            by position, the error takes their names from the signature of ``ignite_factory``.
    """

    def decorate(factory: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(factory).parameters.values()
        names = [each.name for each in parameters]
        max_positional = sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters)

        @wraps(factory)
        def explained(*args: P.args, **kwargs: P.kwargs) -> R:
            if len(args) > max_positional:
                # Most likely the caller has passed the arguments in the order of Ignite's factory.
                ignite_names = list(inspect.signature(ignite_factory).parameters)[: len(args)]
                given = [name for name in ignite_names if name not in names[:max_positional]]
                raise TypeError(
                    f"{factory.__name__}() takes {max_positional} positional arguments, got "
                    f"{len(args)}: pass the others by name{_explanation_of(given)}"
                )
            for name in kwargs:
                if name not in names:
                    remedy = _REMEDIES.get(name) or did_you_mean(name, names)
                    raise TypeError(
                        f"{factory.__name__}() has no argument `{name}`, got {kwargs[name]!r}: "
                        f"{remedy}"
                    )
            return factory(*args, **kwargs)

        return explained

    return decorate


def check_data_is_not_a_device(data: Any) -> None:
    """Raises a TypeError if ``data`` is a device.

    The fourth positional argument of ``create_supervised_trainer`` is ``data`` in this package, but
    ``device`` in Ignite. A device such as "cuda" is a string, and strings would be accepted as data
    because they are iterable.
    """
    if isinstance(data, str | torch.device):
        raise TypeError(
            f"`data` must be an iterable of batches, got {data!r}; Ignite's fourth argument, "
            f"`device`, does not exist here: {_REMEDIES['device']}"
        )


def _explanation_of(names: Iterable[str]) -> str:
    """Returns the end of a message, which says of each argument what to write instead."""
    parts = [f"`{name}`: {_REMEDIES.get(name, f'pass {name}=…')}" for name in names]
    return f". In Ignite's order they are {'; '.join(parts)}" if parts else ""
