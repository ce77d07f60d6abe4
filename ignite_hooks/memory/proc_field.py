"""One field of the files of /proc whose lines say ``Name:  number kB``."""

from ignite_hooks.memory.mark import KIB

__all__ = ["proc_field"]


def proc_field(text: bytes, name: bytes) -> int:
    """The first field ``name`` in ``text``, in bytes; a ValueError if there is none."""
    start = text.index(name + b":") + len(name) + 1
    return int(text[start : text.index(b"kB", start)]) * KIB
