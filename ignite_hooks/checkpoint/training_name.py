"""Which checkpoints are of one training: those of a trainer, and of those that go on from them."""

from uuid import uuid4

from ignite.engine import Engine

from ignite_hooks.core.engine import belongings

__all__ = ["name_training", "training_of"]


def training_of(trainer: Engine) -> str:
    """The name of the trainer's training, one that no other has."""
    name: str = belongings(trainer).setdefault("training", uuid4().hex)
    return name


def name_training(trainer: Engine, name: str) -> None:
    """Has the trainer go on with the training of that name."""
    belongings(trainer)["training"] = name
