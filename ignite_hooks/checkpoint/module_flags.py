"""What a module's state leaves out: which parameters are frozen, which parts are in eval mode."""

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["flags_of", "set_flags"]


def flags_of(module: torch.nn.Module) -> dict[str, list[str]]:
    """The names of the frozen parameters, and of the submodules that are in eval mode."""
    return {
        "frozen": [name for name, each in module.named_parameters() if not each.requires_grad],
        "eval": [name for name, each in module.named_modules() if not each.training],
    }


def set_flags(module: torch.nn.Module, flags: Mapping[str, Any]) -> None:
    """Makes them what ``flags_of`` has said of a module that was built the same way."""
    for name, parameter in module.named_parameters():
        is_trained = name not in flags["frozen"]
        if parameter.requires_grad != is_trained:
            parameter.requires_grad_(is_trained)
    for name, each in module.named_modules():
        each.training = name not in flags["eval"]
