"""Loads the weights of the best checkpoint of a trainer's run, to test the model after training."""

from pathlib import Path

from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.state import training_id
from ignite_hooks.checkpoint.weights import CheckpointEntry
from ignite_hooks.checkpoint.weights import CheckpointReader
from ignite_hooks.checkpoint.weights import PreparedWeights
from ignite_hooks.core.borrowed_weights import forget_borrowed_weights
from ignite_hooks.core.borrowed_weights import note_borrowed_weights
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["load_best_weights"]


def load_best_weights(trainer: TrainingEngine) -> CheckpointEntry:
    """Loads the weights of the best checkpoint of the trainer's run; see ``Trainer.load_best``.

    Rank 0 chooses and verifies the checkpoint. Then each rank reads and loads the weights.
    """
    if is_running(trainer) or is_interrupted(trainer):
        raise RuntimeError(
            "load_best() must be called between runs, got a trainer that is running or "
            "interrupted: its run would continue with the loaded weights; call load_best() after "
            "run()"
        )
    reader = CheckpointReader(_find_best_directory(trainer))
    ranks, modules = Ranks(trainer.accelerator), trainer.modules

    def find() -> tuple[CheckpointCandidate, CheckpointEntry]:
        best, entry = reader.best_of_run(training_id(trainer))
        for name in modules:
            # verify=True hashes the files of the module. Only rank 0 does this, for all ranks.
            reader.read_part(best, name, verify=True)
        return best, entry

    best, entry = ranks.call_on_rank_0(find)
    prepared: list[PreparedWeights] = []

    def prepare() -> None:
        for name, module in modules.items():
            found = reader.read_part(best, name, verify=False)
            prepared.append(PreparedWeights(module, found, name, entry.path))

    # `prepare` changes no module. If it fails on one rank, all ranks raise an error here, and the
    # modules of all ranks are still unchanged.
    ranks.call_on_all_ranks(prepare)
    for each in prepared:
        each.load()
    # The counters, the optimizer and the scheduler stay at the trainer's present step, so a
    # checkpoint would mix two steps. ``note_borrowed_weights`` keeps a note of this in the trainer,
    # and each save raises an error while the note exists. The next run warns and removes the note.
    if entry.step != trainer.state.optimizer_step:
        note_borrowed_weights(trainer, entry.step)
    else:
        forget_borrowed_weights(trainer)  # removes the note of an earlier call, if there is one
    return entry


def _find_best_directory(trainer: TrainingEngine) -> Path:
    """Returns the directory of the attached SaveCheckpoint that keeps the best checkpoint.

    Raises:
        ValueError: no attached SaveCheckpoint keeps the best checkpoint, or several do.
    """
    handlers = attached_handlers(trainer, SaveCheckpoint)
    # Other handlers are ignored: they may have removed the best checkpoint because of its age.
    keeping_best = [each for each in handlers if each.keep_best or _keeps_all_by_metric(each)]
    if len(keeping_best) == 1:
        return Path(keeping_best[0].directory)
    found = ", ".join(str(each.directory) for each in keeping_best)
    raise ValueError(
        "load_best() needs one SaveCheckpoint that keeps the best by a metric, got "
        f"{f'{len(keeping_best)} ({found})' if found else 'none'}: give the factory "
        'checkpoint=SaveCheckpoint(directory, keep_best=1, metric="val_accuracy"), or load from a '
        "directory with ignite_hooks.checkpoint.load_weights(trainer.model, directory)"
    )


def _keeps_all_by_metric(handler: SaveCheckpoint) -> bool:
    """Returns whether a handler keeps all checkpoints, and has a metric that shows the best one."""
    return handler.metric is not None and handler.keep_last == "all"
