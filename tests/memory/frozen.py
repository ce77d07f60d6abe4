"""Whether ``gc.freeze()`` is in effect."""

import gc
import sys


def is_frozen():
    """Returns whether ``gc.freeze()`` has been called, and not undone.

    The count alone does not tell: Python 3.12 counts its immortal objects as frozen.
    """
    return all(each is not sys.modules for each in gc.get_objects())
