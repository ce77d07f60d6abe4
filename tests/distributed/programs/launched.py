"""The environment that each rank finds when it starts."""

import os
import random
import sys

import numpy as np
import torch
from accelerate.utils import DistributedType

from tests.distributed.programs.checks import accelerator
from tests.distributed.programs.checks import run

DRAWN = [random.random(), float(np.random.rand())]  # before a check is seeded


def surroundings():
    ours = accelerator()
    return {
        "environment": {**os.environ},
        "is_of_cpus": ours.distributed_type is DistributedType.MULTI_CPU,
        "backend": torch.distributed.get_backend(),
        "places": [ours.process_index, ours.local_process_index, ours.num_processes],
        "arguments": sys.argv,
        "main": sys.modules["__main__"].__file__,
        "leads a session": os.getsid(0) == os.getpid(),
        "drawn": DRAWN,
    }


if __name__ == "__main__":
    run(surroundings)
