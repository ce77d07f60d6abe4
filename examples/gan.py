"""Trains a GAN on handwritten digits: two nets, each with its own optimizer.

The trainer trains the generator. The batch processor trains the discriminator first, in the same
step. After every few epochs the generator draws 64 digits from the same noise, in a PNG.

    python examples/gan.py          # can be stopped with Ctrl-C or SIGTERM
    python examples/gan.py          # continues: the pictures equal those of one run, byte by byte
    torchrun --nproc_per_node 2 examples/gan.py --cpu --output runs/two_processes
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from ignite.engine import Events
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import ignite_hooks as ih

NOISE = 16  # numbers from which the generator makes a picture


def make_generator():
    return nn.Sequential(
        *(nn.Linear(NOISE, 128), nn.BatchNorm1d(128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU()),
        *(nn.Linear(128, 64), nn.Sigmoid()),
    )


def make_discriminator():
    return nn.Sequential(
        *(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
        *(nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3)),
        nn.Linear(128, 1),
    )


def save_pictures(generator, noise, path):
    """Writes the pictures of ``noise`` as one PNG, 8 by 8, each pixel four times as large."""
    generator.eval()
    with torch.no_grad():
        pictures = F.pad(generator(noise).view(8, 8, 8, 8), (1, 1, 1, 1))  # with a black frame
    generator.train()
    sheet = (pictures.permute(0, 2, 1, 3).reshape(80, 80) * 255).byte().cpu().numpy()
    Image.fromarray(sheet).resize((320, 320), Image.Resampling.NEAREST).save(path)


def make_trainer(output, *, cpu):
    set_seed(0)
    accelerator = Accelerator(cpu=cpu)
    generator, discriminator = make_generator(), make_discriminator()
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.0005, betas=(0.5, 0.999))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=0.0005, betas=(0.5, 0.999))
    # The trainer prepares only what it trains itself.
    discriminator, d_optimizer = accelerator.prepare(discriminator, d_optimizer)

    def train_both(generator, real):
        fake = generator(torch.randn(len(real), NOISE, device=real.device))
        on_real, on_fake = discriminator(torch.cat([real, fake.detach()])).chunk(2)
        d_loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()  # binary cross entropy
        d_optimizer.zero_grad()
        accelerator.backward(d_loss)
        d_optimizer.step()
        return {"discriminator_loss": d_loss.detach()}, F.softplus(-discriminator(fake)).mean()

    digits = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    trainer = ih.create_supervised_trainer(
        generator,
        optimizer,
        data=DataLoader(digits, 64, shuffle=True),
        accelerator=accelerator,
        batch_processor=train_both,
        checkpoint=ih.SaveCheckpoint(
            output / "checkpoints",
            every_epochs=10,
            on_signals=("SIGINT", "SIGTERM"),
            also={"discriminator": discriminator, "discriminator_optimizer": d_optimizer},
        ),
        resume_from=ih.ResumeCheckpoint(output / "checkpoints", on_missing="start"),
        handlers=[ih.MeanLoss(keys=["discriminator_loss"]), ih.Console()],
    )
    trainer.seed_ranks(0)  # other noise on each process
    return trainer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/gan"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--every", type=int, default=10, help="epochs from one PNG to the next")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    args = parser.parse_args()
    args.output = args.output.expanduser()  # for --output=~/x
    torch.set_num_threads(1)  # so small a net is faster with one thread
    trainer = make_trainer(args.output, cpu=args.cpu)
    accelerator = trainer.accelerator
    noise = torch.randn(64, NOISE, generator=torch.Generator().manual_seed(1))
    noise = noise.to(accelerator.device)

    @trainer.on(Events.EPOCH_COMPLETED(every=args.every))
    def draw():
        if accelerator.is_main_process:
            path = args.output / f"epoch_{trainer.state.epoch:03}.png"
            save_pictures(accelerator.unwrap_model(trainer.model), noise, path)
            print(f"{path} shows what the generator draws")

    trainer.run(max_epochs=args.epochs)
    accelerator.print(f"epoch {trainer.state.epoch}: the pictures are in {args.output}")


if __name__ == "__main__":
    main()
