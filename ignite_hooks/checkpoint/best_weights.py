"""Loading of the best weights that a trainer's run has saved, for a test after training."""

from pathlib import Path

from ignite_hooks.checkpoint.ranks import Ranks
from ignite_hooks.checkpoint.save import SaveCheckpoint
from ignite_hooks.checkpoint.source_interface import CheckpointCandidate
from ignite_hooks.checkpoint.state import training_id
from ignite_hooks.checkpoint.weights import CheckpointEntry
from ignite_hooks.checkpoint.weights import CheckpointReader
from ignite_hooks.checkpoint.weights import PreparedWeights
from ignite_hooks.core.borrowed_weights import note_borrowed_weights
from ignite_hooks.core.engine import is_interrupted
from ignite_hooks.core.engine import is_running
from ignite_hooks.core.handler import attached_handlers
from ignite_hooks.core.training_engine import TrainingEngine

__all__ = ["load_best_weights"]


def load_best_weights(trainer: TrainingEngine) -> CheckpointEntry:
    """Loads the weights of the best checkpoint of the trainer's run; see ``Trainer.load_best``.

    Rank 0 chooses and verifies the checkpoint; all ranks then read and load it.
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
            # Only rank 0 verifies, because this reads and hashes every file of the checkpoint.
            reader.read_part(best, name, verify=True)
        return best, entry

    best, entry = ranks.call_on_rank_0(find)
    prepared: list[PreparedWeights] = []

    def prepare() -> None:
        for name, module in modules.items():
            found = reader.read_part(best, name, verify=False)
            prepared.append(PreparedWeights(module, found, name, entry.path))

    # No rank has changed a module yet: if `prepare` fails on any rank, all ranks raise an error.
    ranks.call_on_all_ranks(prepare)
    for each in prepared:
        each.load()
    # The loaded weights must not be saved as the weights of the trainer's present step. Because of
    # this note, a save between runs is refused, and the next run warns.
    if entry.step != trainer.state.optimizer_step:
        note_borrowed_weights(trainer, entry.step)
    return entry


def _find_best_directory(trainer: TrainingEngine) -> Path:
    """Returns the directory of the attached SaveCheckpoint that keeps the best checkpoint.

    Raises:
        ValueError: none or several of the attached SaveCheckpoint keep the best checkpoint.
    """
    handlers = attached_handlers(trainer, SaveCheckpoint)
    # Handlers that do not keep the best are ignored: such a handler may have pruned the best
    # checkpoint, and the best of its remaining checkpoints would silently be loaded instead.
    keeping_best = [each for each in handlers if each.keep_best or _keeps_all_by_metric(each)]
    if len(keeping_best) == 1:
        return Path(keeping_best[0].directory)
    found = ", ".join(str(each.directory) for each in keeping_best or handlers)
    raise ValueError(
        "load_best() needs one SaveCheckpoint that keeps the best by a metric, got "
        f"{len(keeping_best)}{f' ({found})' if found else ''}: give the factory "
        'checkpoint=SaveCheckpoint(directory, keep_best=1, metric="val_accuracy"), or load from a '
        "directory with ignite_hooks.checkpoint.load_weights(trainer.model, directory)"
    )


def _keeps_all_by_metric(handler: SaveCheckpoint) -> bool:
    return handler.metric is not None and handler.keep_last == "all"
