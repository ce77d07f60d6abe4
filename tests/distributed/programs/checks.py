"""Runs the checks of a program one after another, and writes the findings of each."""

import json
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.utils import InitProcessGroupKwargs

from tests.reference import seed

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "reduce",
    "scatter",
)


@contextmanager
def counting_collectives():
    """Counts the calls of each collective of torch; asynchronous ones are counted separately."""
    counts, originals = Counter(), {}

    def counted(name):
        def call(*args, **kwargs):
            counts[f"asynchronous {name}" if kwargs.get("async_op") else name] += 1
            return originals[name](*args, **kwargs)

        return call

    for name in COLLECTIVES:
        originals[name] = getattr(torch.distributed, name)
        setattr(torch.distributed, name, counted(name))
    try:
        yield counts
    finally:
        for name, original in originals.items():
            setattr(torch.distributed, name, original)


def accelerator(steps=1, *handlers, **settings):
    """Returns a new accelerator. A collective that not all processes call fails after a timeout."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    patience = InitProcessGroupKwargs(timeout=timedelta(seconds=20))
    return Accelerator(
        cpu=True,
        gradient_accumulation_steps=steps,
        kwargs_handlers=[patience, *handlers],
        **settings,
    )


def run(*checks):
    """Calls each of ``checks``; what it returns goes to <folder>/<its name>.<rank>.json."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    rank = accelerator().process_index
    for check in checks:
        seed()
        try:
            finding = check()
            finding["references"] = GradientState().dataloader_references == [None]
            text = json.dumps(finding)
        except Exception:
            text = json.dumps({"failure": traceback.format_exc()})
        (folder / f"{check.__name__}.{rank}.json").write_text(text)
    torch.distributed.destroy_process_group()
