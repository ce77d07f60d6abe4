"""Trains a small GPT on the sources of the Python standard library, with bytes as tokens.

Shows warm-up and a cosine schedule, weight decay for matrices only, gradient accumulation, tokens
per second, and text that the model writes at the end. Takes two minutes on two CPU cores:

    python examples/language_model.py
"""

import argparse
import math
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from ignite.metrics import Loss
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

import ignite_hooks as ih

CONTEXT, WIDTH, HEADS = 128, 128, 4  # bytes, channels, attention heads


def windows():
    """Returns windows of CONTEXT + 1 bytes of the standard library: for training, and held out."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    data = torch.frombuffer(bytearray(b"".join(map(Path.read_bytes, files))), dtype=torch.uint8)
    data = data.unfold(0, CONTEXT + 1, CONTEXT)  # the last byte of a window begins the next one
    return data[: -len(data) // 20], data[-len(data) // 20 :]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH))
        self.out = nn.Linear(WIDTH, WIDTH)
        layers = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), *layers)

    def forward(self, x):
        qkv = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))
        for each in (self.token, self.position):
            nn.init.normal_(each.weight, std=0.02)

    def forward(self, tokens):
        return self.blocks(self.token(tokens) + self.position.weight[: tokens.shape[1]])


def prepare_batch(batch, device, non_blocking):
    """Returns the tokens of each window but the last, and as targets the tokens that follow."""
    return batch[:, :-1].long(), batch[:, 1:].long()


def bits_per_byte(logits, targets):
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()) / math.log(2)


@torch.no_grad()
def text_after(beginning, model, length=300):
    tokens = torch.tensor([[*beginning.encode()]], device=next(model.parameters()).device)
    for _ in range(length):
        logits = model(tokens[:, -CONTEXT:])[0, -1] / 0.7  # a temperature below 1: less chance
        tokens = torch.cat((tokens, torch.multinomial(logits.softmax(0), 1)[None]), dim=1)
    return bytes(tokens[0].tolist()).decode(errors="replace")


def main():
    args = parse_args()
    set_seed(0)
    accelerator = Accelerator(cpu=args.cpu, gradient_accumulation_steps=2)
    (train_part, held_out_part), model = windows(), GPT()
    matrices = {"params": [each for each in model.parameters() if each.ndim > 1]}
    vectors = {"params": [each for each in model.parameters() if each.ndim == 1], "weight_decay": 0}
    optimizer = torch.optim.AdamW([matrices, vectors], lr=0.003, weight_decay=0.1)
    warm_up = lr_scheduler.LinearLR(optimizer, 0.01, total_iters=args.steps // 10)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.steps - args.steps // 10)
    evaluator = ih.create_supervised_evaluator(
        model, {"loss": Loss(bits_per_byte)}, accelerator=accelerator, prepare_batch=prepare_batch
    )
    held_out = DataLoader(held_out_part, 64)
    speed = ih.Throughput(every_steps=10, items=lambda batch: batch[:, 1:].numel())  # tokens
    trainer = ih.create_supervised_trainer(
        model,
        optimizer,
        bits_per_byte,
        DataLoader(train_part, 8, shuffle=True),
        accelerator=accelerator,
        lr_scheduler=lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [args.steps // 10]),
        grad_clip=ih.GradientClipping(max_norm=1.0),
        validation=ih.Validation(evaluator, held_out, every_steps=100, max_batches=4),
        prepare_batch=prepare_batch,
        handlers=[speed, ih.Console(metric="val_loss", mode="min")],
    )
    trainer.run(max_steps=args.steps)
    accelerator.print(text_after("def ", model.eval()))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    return parser.parse_args()


if __name__ == "__main__":
    main()
