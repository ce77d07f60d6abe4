"""Small checkpoints in a ``CheckpointStore``, and ways to damage them."""

from datetime import datetime
from datetime import timezone

from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.manifest import Manifest

OURS = "ours"
FILES = {"model.safetensors": b"weights", "rank_0/rng.json": b"{}"}


def fill(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def manifest_of(store, folder, step, **fields):
    return Manifest(
        number=store.next_number(),
        saved_at=datetime(2026, 1, 2, tzinfo=timezone.utc),
        step=step,
        epoch=0,
        iteration=step,
        data_pass=0,
        batches=step,
        world_size=1,
        versions={},
        files={name: file_record(folder / name) for name in FILES},
        **{"training": OURS, **fields},
    )


def save(store, step, **fields):
    folder = store.begin(step)
    fill(folder)
    store.commit(folder, manifest_of(store, folder, step, **fields))
    return folder


def damaged(folder, how):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "truncated":
        file.write_bytes(content[:-1])
    elif how == "longer":
        file.write_bytes(content + b"\0")
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    else:
        content[3] ^= 1
        file.write_bytes(content)
