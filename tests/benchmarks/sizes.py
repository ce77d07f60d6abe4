"""How much is trained, and by which clock; known without importing torch."""

import time

__all__ = ["CLOCKS", "MODELS", "STRETCH", "WARM_UP"]

# The second does not run while others have the core: for a machine that is not quiet.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

WARM_UP = 300
STRETCH = 100  # iterations between two looks at the clock; a multiple of each accumulation

MODELS = {"linear": 4000, "convs": 300, "transformer": 300}  # iterations that are timed
