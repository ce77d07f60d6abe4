"""The contestants by name, and the modules that define them.

Nothing is imported here, so a process imports only the library of its own contestant.
"""

from dataclasses import dataclass

__all__ = ["CONTESTANTS", "Entry"]


@dataclass(frozen=True)
class Entry:
    """A contestant.

    Args:
        file: the module in the folder ``contestants``.
        packages: further requirements to run it, by their names on PyPI.
        as_dicts: whether its batches are dicts.
    """

    file: str
    packages: tuple[str, ...] = ()
    as_dicts: bool = False


CONTESTANTS = {
    "raw": Entry("by_hand"),
    "raw_accelerate": Entry("by_hand"),
    "ignite": Entry("by_hand"),
    "ignite_accelerate": Entry("by_hand"),
    "ours_bare": Entry("ours"),
    "ours_wired": Entry("ours"),
    "ours_everything": Entry("ours"),
    "ours_listened": Entry("ours"),
    "fabric": Entry("lightning_trainers", ("lightning",)),
    "lightning": Entry("lightning_trainers", ("lightning",)),
    "hf_trainer": Entry("hugging_face", ("transformers",), as_dicts=True),
    "torchtnt": Entry("tnt", ("torchtnt", "setuptools")),
    "mmengine": Entry("open_mmlab", ("mmengine",)),
}
