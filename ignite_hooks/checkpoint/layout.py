"""The files of a checkpoint: the one table of their names.

====================  ============================================================================
manifest.json         makes a folder a checkpoint: where in the run it was taken, and all other
                      files with their sizes and hashes
model.safetensors     the model; ``loss_fn.safetensors`` if the loss function has a state. With
                      ``safe_serialization=False`` they are called ``.bin``
optimizer.bin         the optimizer, by ``torch.save`` as Accelerate does it
scheduler.bin         the scheduler, if there is one
scaler.pt             the gradient scaler, with mixed precision in float16
trainer.pt            handlers, objects of the user, metrics, and what is said about the rest
rank_00000.pt         of each process: counters, limits, position in the data, and in those of
                      evaluators, random generators, and of handlers and objects what differs
                      from the first process
custom_checkpoint_0.pkl  objects that were registered with the accelerator, which it unpickles
sharded/              where a process holds a part of the model only (FSDP, DeepSpeed, Megatron):
                      what ``accelerator.save_state`` makes of model and optimizer
====================  ============================================================================

While a folder is being filled its manifest is called ``incomplete.json``.
"""

import re

__all__ = [
    "INCOMPLETE",
    "MANIFEST",
    "OPTIMIZER",
    "OWN_FILE",
    "SCALER",
    "SCHEDULER",
    "SHARDED",
    "TRAINER",
    "module_files",
    "rank_file",
    "registered_file",
    "registered_files",
]

MANIFEST = "manifest.json"
INCOMPLETE = "incomplete.json"
OPTIMIZER = "optimizer.bin"
SCHEDULER = "scheduler.bin"
SCALER = "scaler.pt"
TRAINER = "trainer.pt"
SHARDED = "sharded"

# Every checkpoint has such files. A folder without them and without a manifest is none, and was
# none or has been removed: what is in it is a user's.
OWN_FILE = re.compile(r"trainer\.pt|rank_\d{5,}\.pt")


def rank_file(rank: int) -> str:
    """Returns the name of the file of one process."""
    return f"rank_{rank:05d}.pt"


def module_files(name: str) -> tuple[str, str]:
    """Returns the names of a module's file: written by safetensors, or by ``torch.save``."""
    return f"{name}.safetensors", f"{name}.bin"


def registered_file(number: int) -> str:
    """Returns the name of the file of an object registered with the accelerator."""
    return f"custom_checkpoint_{number}.pkl"


def registered_files(names: set[str]) -> list[str]:
    """Returns those of ``names`` that are of registered objects, in the order of their numbers."""
    found = [name for name in names if name.startswith("custom_checkpoint_")]
    return sorted(found, key=lambda name: (len(name), name))
