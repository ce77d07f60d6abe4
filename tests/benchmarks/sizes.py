"""The amount of work, and the clocks. This module does not import torch."""

import time

__all__ = ["CLOCKS", "MODELS", "STRETCH", "WARM_UP"]

# "cpu" does not advance while other processes have the core: for a machine that is not idle.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

WARM_UP = 300
STRETCH = 100  # iterations between two readings of the clock; a multiple of each accumulation

MODELS = {"linear": 4000, "convs": 300, "transformer": 300}  # iterations that are timed
