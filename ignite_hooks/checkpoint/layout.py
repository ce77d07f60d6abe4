"""Names of the files in a checkpoint.

====================  ============================================================================
manifest.json         the position in the run, and the size and hash of each other file. A folder
                      with this file is a checkpoint
model.safetensors     the model. A loss function with a state is in ``loss_fn.safetensors``. With
                      ``safe_serialization=False`` both names end in ``.bin``
optimizer.bin         the optimizer, written by ``torch.save`` as Accelerate does
scheduler.bin         the scheduler, if there is one
scaler.pt             the gradient scaler, with mixed precision in float16
trainer.pt            handlers, objects of the user, metrics, and the metadata of the modules
rank_00000.pt         one file per process: counters, limits, the positions of the trainer and of
                      evaluators in their data, random generators, and those states of handlers
                      and objects that differ from the states on rank 0
custom_checkpoint_0.pkl  one file per object that was registered with the accelerator, in the
                      pickle format that Accelerate uses
sharded/              the model and the optimizer, written by ``accelerator.save_state``, if each
                      process holds only a part of the model (FSDP, DeepSpeed, Megatron)
====================  ============================================================================

While a checkpoint is written or removed, its manifest is called ``incomplete.json``.
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

# The names of files that every checkpoint has. A folder with such a file and without a manifest
# counts as a damaged checkpoint. A folder with neither is ignored: its files belong to the user, or
# are left from the removal of a checkpoint.
OWN_FILE = re.compile(r"trainer\.pt|rank_\d{5,}\.pt")


def rank_file(rank: int) -> str:
    """Returns the name of the file that belongs to one process."""
    return f"rank_{rank:05d}.pt"


def module_files(name: str) -> tuple[str, str]:
    """Returns the two possible names of a module's file: for safetensors and for ``torch.save``."""
    return f"{name}.safetensors", f"{name}.bin"


def registered_file(number: int) -> str:
    """Returns the name of the file for an object that is registered with the accelerator."""
    return f"custom_checkpoint_{number}.pkl"


def registered_files(names: set[str]) -> list[str]:
    """Returns the names of the files of registered objects among ``names``, sorted by number."""
    found = [name for name in names if name.startswith("custom_checkpoint_")]
    # A shorter name has a smaller number.
    return sorted(found, key=lambda name: (len(name), name))
