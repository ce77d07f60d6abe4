"""The contestants by name, and the modules that define them.

Nothing is imported here, so a process imports only the library of its own contestant.
"""

from dataclasses import dataclass

__all__ = ["CONTESTANTS", "Entry"]


@dataclass(frozen=True)
class Entry:
    """A contestant.

    Args:
        label: what it is called in the tables.
        file: the module in the folder ``contestants``.
        packages: further requirements to run it, by their names on PyPI.
        as_dicts: whether its batches are dicts.
    """

    label: str
    file: str
    packages: tuple[str, ...] = ()
    as_dicts: bool = False


CONTESTANTS = {
    "raw": Entry("a plain PyTorch loop", "by_hand"),
    "raw_accelerate": Entry("the loop of Accelerate's documentation", "by_hand"),
    "ignite": Entry("the plain loop's body in an Ignite engine", "by_hand"),
    "ignite_accelerate": Entry("the body of Accelerate's loop in an Ignite engine", "by_hand"),
    "ours_bare": Entry("the trainer, bare", "ours"),
    "ours_wired": Entry("the trainer, wired", "ours"),
    "ours_everything": Entry("the trainer, with everything", "ours"),
    "ours_listened": Entry("the trainer, with a listener on every event", "ours"),
    "fabric": Entry("Lightning Fabric", "lightning_trainers", ("lightning",)),
    "lightning": Entry("Lightning", "lightning_trainers", ("lightning",)),
    "hf_trainer": Entry(
        "Hugging Face's `Trainer`", "hugging_face", ("transformers",), as_dicts=True
    ),
    "torchtnt": Entry("torchtnt", "tnt", ("torchtnt", "setuptools")),
    "mmengine": Entry("MMEngine", "open_mmlab", ("mmengine",)),
}
