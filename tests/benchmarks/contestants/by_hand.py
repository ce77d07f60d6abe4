"""Loops written by hand: with PyTorch alone, with Accelerate, with Ignite, and with both."""

from accelerate import Accelerator
from ignite.engine import Engine
from torch.nn.utils import clip_grad_norm_

from tests.benchmarks.work import MAX_NORM

__all__ = ["ignite", "ignite_accelerate", "raw", "raw_accelerate"]


def raw(work):
    model, optimizer, scheduler = work.model, work.optimizer, work.scheduler()
    accumulation, loss_fn = work.accumulation, work.loss_fn
    for index, (x, y) in enumerate(work.loader, 1):
        loss = loss_fn(model(x), y)
        if accumulation > 1:
            loss = loss / accumulation
        loss.backward()
        if index % accumulation == 0:
            clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def prepared(work):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=work.accumulation)
    return accelerator, *accelerator.prepare(
        work.model, work.optimizer, work.loader, work.scheduler()
    )


def raw_accelerate(work):
    accelerator, model, optimizer, loader, scheduler = prepared(work)
    loss_fn = work.loss_fn
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_fn(model(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def ignite(work):
    model, optimizer, scheduler = work.model, work.optimizer, work.scheduler()
    accumulation, loss_fn = work.accumulation, work.loss_fn

    def step(engine, batch):
        x, y = batch
        loss = loss_fn(model(x), y)
        (loss / accumulation if accumulation > 1 else loss).backward()
        if engine.state.iteration % accumulation == 0:
            clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return loss.detach()

    Engine(step).run(work.loader, max_epochs=1)


def ignite_accelerate(work):
    accelerator, model, optimizer, loader, scheduler = prepared(work)
    loss_fn = work.loss_fn

    def step(engine, batch):
        x, y = batch
        with accelerator.accumulate(model):
            loss = loss_fn(model(x), y)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        return loss.detach()

    Engine(step).run(loader, max_epochs=1)
