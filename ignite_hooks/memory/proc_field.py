"""One field of the files of /proc whose lines say ``Name:  number kB``."""

__all__ = ["proc_field"]

KIB = 2**10


def proc_field(text: bytes, name: bytes) -> int:
    """The first field ``name`` in ``text``, in bytes; a ValueError if there is none."""
    start = text.index(name + b":") + len(name) + 1
    return int(text[start : text.index(b"kB", start)]) * KIB
