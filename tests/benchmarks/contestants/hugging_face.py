"""The Trainer of Hugging Face Transformers, without logs, bars, evaluation and checkpoints."""

import tempfile

from transformers import Trainer
from transformers import TrainingArguments

from tests.benchmarks.work import MAX_NORM

__all__ = ["hf_trainer"]


class SupervisedTrainer(Trainer):
    """A Trainer that uses the given loader instead of building its own; batches are dicts."""

    def __init__(self, work, args):
        super().__init__(work.model, args, optimizers=(work.optimizer, work.scheduler()))
        self.work = work

    def get_train_dataloader(self):
        return self.accelerator.prepare(self.work.loader)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return self.work.loss_fn(model(inputs["x"]), inputs["labels"])


def hf_trainer(work):
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            use_cpu=True,
            num_train_epochs=1,
            gradient_accumulation_steps=work.accumulation,
            max_grad_norm=MAX_NORM,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
        )
        SupervisedTrainer(work, arguments).train()
