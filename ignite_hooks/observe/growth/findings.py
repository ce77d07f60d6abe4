"""A finding of ``GrowthWatch``: a cause of growth as plain data, and the text of its warning."""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import torch

from ignite_hooks.memory.mark import MIB
from ignite_hooks.observe.growth.chains import Chain
from ignite_hooks.observe.growth.quantities import ENTRIES
from ignite_hooks.observe.growth.quantities import LIMITS
from ignite_hooks.observe.growth.quantities import MEMORY

__all__ = ["Cause", "End", "make_finding", "warning_of"]


class Cause(NamedTuple):
    """Quantities that grow together, and the chain of references to one of the objects."""

    names: list[str]
    chain: Chain | None

    @property
    def is_clear(self) -> bool:
        """True if a variable of the program, and not of a library, holds what grows."""
        chain = self.chain
        return chain is not None and chain.holder is not None and not chain.is_library


class End(NamedTuple):
    """A limit that is reached.

    Attributes:
        seconds: the time until then.
        limit: what there is a limit of, a value of ``LIMITS``.
    """

    seconds: float
    limit: str


def make_finding(
    rates: Mapping[str, float],
    chain: Chain | None,
    *,
    step: int,
    since_step: int,
    ram_rate: float | None,
    end: End | None,
) -> dict[str, Any]:
    """Returns a finding, which can be written as JSON.

    Args:
        rates: the growth per 1,000 steps of each quantity, by its name in messages, the most
            telling first.
        chain: the chain of references to one of the objects.
        step: the present step.
        since_step: the step of the first look that shows the growth.
        ram_rate: the growth of resident memory in bytes per 1,000 steps.
        end: the limit that is reached first.
    """
    return {
        "class": next(iter(rates)),
        "classes": dict(rates),
        "step": step,
        "since_step": since_step,
        "chain": None if chain is None else chain.path,
        "holder": None if chain is None else chain.holder,
        "holder_is": None if chain is None else chain.holder_text,
        "ram_bytes_per_1000_steps": ram_rate,
        "seconds_left": None if end is None else end.seconds,
        "limit": None if end is None else end.limit,
    }


_OF_THIS_PROCESS = (MEMORY["ram_bytes"], MEMORY["device_bytes"])
_NO_OBJECT = (
    "No kind of object grows with it: look for arrays or tensors that are made longer, for losses "
    "that are added up with their graphs, and at extensions in C"
)


def warning_of(finding: Mapping[str, Any]) -> str:
    """Returns the text of a warning. With several processes, the text begins with the rank."""
    kind, since, chain = finding["class"], finding["since_step"], finding["chain"]
    rate, ram_rate = finding["classes"][kind], finding["ram_bytes_per_1000_steps"]
    growth = f"grows by {_mib(rate)}" if kind in MEMORY.values() else f"grow by {rate:,.0f}"
    text = f"{_rank_text()}{kind} {growth} per 1,000 steps since step {since:,}"
    if ram_rate is not None and kind != MEMORY["ram_bytes"]:
        text += f", resident memory by {_mib(ram_rate)}"
    if finding["seconds_left"] is not None:
        is_memory = finding["limit"] != LIMITS["open_files"]
        end = "ends" if is_memory else "reach their limit"
        text += f"; {finding['limit']} {end} in {_duration(finding['seconds_left'])}"
    if chain is None:
        return f"{text}. {_NO_OBJECT}" if kind in _OF_THIS_PROCESS else text
    if kind == MEMORY["worker_ram_bytes"]:
        return f"{text}. Their data set is {chain}"
    holder = "" if finding["holder"] is None else f"; {finding['holder']} is {finding['holder_is']}"
    if kind.startswith(ENTRIES):  # the chain leads to the holder, and not to an entry
        return f"{text}{holder}"
    return f"{text}. One of them is held by {chain}{holder}"


def _mib(size: float) -> str:
    return f"{size / MIB:,.1f} MiB"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"


def _rank_text() -> str:
    distributed = torch.distributed
    is_initialized = distributed.is_available() and distributed.is_initialized()
    if not is_initialized or distributed.get_world_size() == 1:
        return ""
    return f"rank {distributed.get_rank()}: "
