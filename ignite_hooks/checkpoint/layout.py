"""Names of the files in a checkpoint, defined here alone.

====================  ============================================================================
manifest.json         makes a folder a checkpoint: the position in the run, and the size and hash
                      of each other file
model.safetensors     the model; ``loss_fn.safetensors`` if the loss function has a state. With
                      ``safe_serialization=False`` they end in ``.bin``
optimizer.bin         the optimizer, written by ``torch.save`` as Accelerate does
scheduler.bin         the scheduler, if there is one
scaler.pt             the gradient scaler, with mixed precision in float16
trainer.pt            handlers, objects of the user, metrics, and the metadata of the modules
rank_00000.pt         one file per process: counters, limits, positions in the data of the trainer
                      and of evaluators, random generators, and the states of handlers and objects
                      that differ from those of rank 0
custom_checkpoint_0.pkl  objects that were registered with the accelerator, which unpickles them
sharded/              where each process holds a part of the model only (FSDP, DeepSpeed,
                      Megatron): model and optimizer, written by ``accelerator.save_state``
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

# Every checkpoint has such files. A folder that has neither these nor a manifest is not a damaged
# checkpoint: its files are a user's own, or were left when a checkpoint was removed.
OWN_FILE = re.compile(r"trainer\.pt|rank_\d{5,}\.pt")


def rank_file(rank: int) -> str:
    """Returns the name of the file of one process."""
    return f"rank_{rank:05d}.pt"


def module_files(name: str) -> tuple[str, str]:
    """Returns the two possible file names of a module: of safetensors, and of ``torch.save``."""
    return f"{name}.safetensors", f"{name}.bin"


def registered_file(number: int) -> str:
    """Returns the name of the file of an object registered with the accelerator."""
    return f"custom_checkpoint_{number}.pkl"


def registered_files(names: set[str]) -> list[str]:
    """Returns the files of registered objects among ``names``, in the order of their numbers."""
    found = [name for name in names if name.startswith("custom_checkpoint_")]
    return sorted(found, key=lambda name: (len(name), name))
