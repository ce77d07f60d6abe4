"""Who runs, and where it is found; nothing is imported here, so that each imports only its own."""

from dataclasses import dataclass

__all__ = ["CONTESTANTS", "Entry"]


@dataclass(frozen=True)
class Entry:
    """A contestant.

    Args:
        file: of the folder ``contestants``.
        packages: what it takes to run it, as on PyPI, in addition to what this package needs.
        as_dicts: whether it asks for batches that are dicts.
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
