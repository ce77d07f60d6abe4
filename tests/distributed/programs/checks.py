"""Runs the checks of a program one after another and writes down what each finds."""

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.state import GradientState
from accelerate.utils import InitProcessGroupKwargs

from tests.reference import seed


def accelerator(steps=1, *handlers, **settings):
    """A fresh one. A collective that one process does not take part in fails after a while."""
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
