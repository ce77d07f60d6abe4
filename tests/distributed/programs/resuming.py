"""Resumes from every step of a run on two processes."""

import torch

from tests.distributed.programs.checks import run
from tests.reference import weights
from tests.trainer.test_resuming import EPOCHS
from tests.trainer.test_resuming import history
from tests.trainer.test_resuming import load
from tests.trainer.test_resuming import trainer_of
from tests.trainer.test_resuming import whole_run

CHECKS = {
    "sampler": "plain",
    "accumulation": "accumulation",
    "seedable_sampler": "a seedable sampler",
    "short_epochs": "epochs of 3 batches",
    "drawing_handlers": "handlers that draw",
}


def check_of(name, kind):
    def check():
        seen, saved, final = whole_run(kind)
        exact = []
        for iteration, state_dicts in saved:
            trainer, options = trainer_of(kind, number=2)
            load(trainer, state_dicts)
            resumed = history(trainer)
            trainer.run(max_epochs=EPOCHS, **options)
            same = resumed == [each for each in seen if each[1] > iteration]
            exact.append(same and torch.equal(weights(trainer.model), final))
        return {"exact": exact}

    check.__name__ = name
    return check


if __name__ == "__main__":
    run(*(check_of(name, kind) for name, kind in CHECKS.items()))
