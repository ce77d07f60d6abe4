"""Lightning's Trainer, with ``barebones=True`` for measurements of overhead, and Fabric."""

import lightning.pytorch as pl
from lightning.fabric import Fabric

from tests.benchmarks.work import MAX_NORM

__all__ = ["fabric", "lightning"]


class Module(pl.LightningModule):
    def __init__(self, work):
        super().__init__()
        self.model = work.model
        self.work = work

    def training_step(self, batch, batch_index):
        x, y = batch
        return self.work.loss_fn(self.model(x), y)

    def configure_optimizers(self):
        scheduler = {"scheduler": self.work.scheduler(), "interval": "step"}
        return {"optimizer": self.work.optimizer, "lr_scheduler": scheduler}


def lightning(work):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        barebones=True,  # no logger, checkpoints, progress bar, summary, sanity check
        gradient_clip_val=MAX_NORM,
        accumulate_grad_batches=work.accumulation,
    )
    trainer.fit(Module(work), work.loader)


def fabric(work):
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(work.model, work.optimizer)
    loader = fabric.setup_dataloaders(work.loader)
    scheduler, loss_fn, accumulation = work.scheduler(), work.loss_fn, work.accumulation
    for index, (x, y) in enumerate(loader, 1):
        is_stepping = index % accumulation == 0
        with fabric.no_backward_sync(model, enabled=not is_stepping):
            loss = loss_fn(model(x), y)
            fabric.backward(loss / accumulation if accumulation > 1 else loss)
        if is_stepping:
            fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM, error_if_nonfinite=False)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
