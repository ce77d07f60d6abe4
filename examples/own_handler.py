"""Shows a handler of your own: it averages the weights, and validates the average.

The handler has the three parts that handlers can have:

- a callback: after each optimizer step, the average moves a little towards the new weights.
- a scope: during a validation, the averaged weights are in the model. The scope is a generator. Its
  ``finally`` puts the trained weights back, also if the validation fails.
- a state: checkpoints contain the average, so a resumed run continues with the same average.

Stop the script with Ctrl-C, and run the same command again: the run continues from the last
checkpoint.

    python examples/own_handler.py
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import digits
from ignite.metrics import Accuracy
from torch import nn
from torch.utils.data import DataLoader

import ignite_hooks as ih
from ignite_hooks.handlers import Handler


class AveragedWeights(Handler):
    """Keeps an exponential average of a model's weights, and validates with the average.

    Args:
        model: the model. Only its parameters are averaged, not the buffers of BatchNorm.
        decay: the share of the old average in the new average, at each step.
    """

    def __init__(self, model, decay=0.99):
        self.model, self.decay = model, decay
        self.average = [each.detach().clone() for each in model.parameters()]

    def attach_to(self, attachment):
        """Attaches the callback and the scope. When the handler is removed, both are undone."""
        attachment.on(ih.TrainEvents.STEP_COMPLETED, self)
        hooks = ih.Hooks()
        hooks.register("on_validation", self.averaged)
        attachment.on_removal(hooks.attach(attachment.engine).remove)

    @torch.no_grad()
    def __call__(self, engine):
        """Moves the average towards the weights."""
        for average, weight in zip(self.average, self.model.parameters(), strict=True):
            average.lerp_(weight, 1 - self.decay)

    def averaged(self, engine):
        """Puts the averaged weights into the model, and the trained weights back."""
        trained = [each.data for each in self.model.parameters()]
        try:
            self.put(self.average)
            yield
        finally:
            self.put(trained)

    def put(self, weights):
        for parameter, weight in zip(self.model.parameters(), weights, strict=True):
            parameter.data = weight

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        for average, saved in zip(self.average, state["average"], strict=True):
            average.copy_(saved)


def main():
    args = parse_args()
    torch.set_num_threads(1)
    set_seed(0)
    accelerator = Accelerator(cpu=args.cpu)
    train_part, held_out_part = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model.to(accelerator.device)  # before the handler copies the weights
    evaluator = ih.create_supervised_evaluator(
        model, {"accuracy": Accuracy()}, accelerator=accelerator
    )
    held_out = DataLoader(held_out_part, 120)
    trainer = ih.create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),  # large: the weights are noisy
        F.cross_entropy,
        DataLoader(train_part, 16, shuffle=True),
        accelerator=accelerator,
        validation=ih.Validation(evaluator, held_out, every_epochs=1),
        checkpoint=ih.SaveCheckpoint("runs/own_handler", every_epochs=1),
        resume_from=ih.ResumeCheckpoint("runs/own_handler", on_missing="start"),
        handlers=[AveragedWeights(model)],
    )

    @trainer.on(ih.TrainEvents.VALIDATION_COMPLETED)
    def print_accuracy():
        epoch, accuracy = trainer.state.epoch, trainer.state.metrics["val_accuracy"]
        accelerator.print(f"epoch {epoch:2}   accuracy with averaged weights {accuracy:.2%}")

    trainer.run(max_epochs=args.epochs)
    accuracy = evaluator.run(held_out).metrics["accuracy"]
    accelerator.print(f"last trained weights, not averaged: accuracy {accuracy:.2%}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
