"""Tests of the files of a trainer's state, and of the identifier of its run of training."""

import pytest
import torch
from accelerate import Accelerator
from ignite.engine import Engine
from torch.optim.lr_scheduler import StepLR

from ignite_hooks import SaveCheckpoint
from ignite_hooks import create_supervised_trainer
from ignite_hooks.checkpoint.state import TrainingState
from ignite_hooks.checkpoint.state import digests_of
from ignite_hooks.checkpoint.state import set_training_id
from ignite_hooks.checkpoint.state import training_id
from tests.reference import batches_of
from tests.reference import make_trainer


class Box:
    def __init__(self, value=None):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


def trainer_of(model, **options):
    return create_supervised_trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        data=batches_of(2),
        accelerator=Accelerator(cpu=True),
        batch_processor=lambda model, batch: (None, model(batch[0]).sum()),
        **options,
    )


def files(state, rank=0):
    objects = state.objects()
    return state.files(rank, objects, digests_of(objects))


def test_files_of_a_plain_trainer():
    state = TrainingState(make_trainer(batches_of(2)))
    assert set(files(state)) == {
        "rank_00000.pt",
        "model.safetensors",
        "optimizer.bin",
        "trainer.pt",
    }
    assert not state.is_sharded


def test_files_of_a_trainer_with_every_kind_of_state():
    accelerator = Accelerator(cpu=True)
    accelerator.register_for_checkpointing(Box(), Box())
    loss_fn = torch.nn.CrossEntropyLoss(weight=torch.ones(2))
    trainer = make_trainer(batches_of(2), loss_fn=loss_fn, lr_scheduler=lambda o: StepLR(o, 1))
    trainer.accelerator.register_for_checkpointing(Box(), Box())
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    state = TrainingState(trainer, safe_serialization=False, trust_pickle=True)
    assert set(files(state)) == {
        "rank_00000.pt",
        "model.bin",
        "loss_fn.bin",
        "optimizer.bin",
        "scheduler.bin",
        "scaler.pt",
        "custom_checkpoint_0.pkl",
        "custom_checkpoint_1.pkl",
        "trainer.pt",
    }


def test_a_loss_function_without_a_state_has_no_file():
    trainer = make_trainer(batches_of(2), loss_fn=torch.nn.MSELoss())
    assert not any(name.startswith("loss_fn") for name in files(TrainingState(trainer)))


def test_rank_1_writes_its_own_file_only():
    state = TrainingState(make_trainer(batches_of(2)), {"box": Box()})
    assert set(files(state, 3)) == {"rank_00003.pt"}


def test_registered_objects_are_refused_with_the_remedy():
    trainer = make_trainer(batches_of(2))
    TrainingState(trainer).check()
    trainer.accelerator.register_for_checkpointing(Box())
    with pytest.raises(ValueError, match=r"got Box: .*SaveCheckpoint\(also=.*trust_pickle=True"):
        TrainingState(trainer).check()
    TrainingState(trainer, trust_pickle=True).check()


def test_registered_objects_are_refused_when_saving(tmp_path):
    trainer = make_trainer(batches_of(2), checkpoint=SaveCheckpoint(tmp_path))
    trainer.accelerator.register_for_checkpointing(Box())
    with pytest.raises(ValueError, match="trust_pickle=True"):
        trainer.run()
    assert not any(tmp_path.glob("step_*"))


def test_unsupported_state_is_refused_naming_its_owner(tmp_path):
    checkpoint = SaveCheckpoint(tmp_path, also={"fine": Box(1), "the culprit": Box(object())})
    trainer = make_trainer(batches_of(2), checkpoint=checkpoint)
    with pytest.raises(TypeError, match="the culprit"):
        trainer.run()
    assert not any(tmp_path.glob("step_*"))


def tensors_of(trainer):
    return files(TrainingState(trainer))["model.safetensors"].tensors


def test_tied_weights_are_saved_once():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    trainer = trainer_of(model)
    assert sorted(tensors_of(trainer)) == ["0.bias", "0.weight", "1.bias"]
    modules = files(TrainingState(trainer))["trainer.pt"].content["modules"]
    assert modules["model"]["aliases"] == {"1.weight": "0.weight"}


def test_tensors_that_overlap_are_both_saved_whole():
    model = torch.nn.Linear(4, 2)
    memory = torch.arange(6.0)
    model.register_buffer("left", memory[:4])
    model.register_buffer("right", memory[2:])
    model.register_buffer("turned", memory.view(2, 3).t())
    model.register_buffer("empty", memory[:0])
    model.register_buffer("also_empty", torch.zeros(0))
    found = tensors_of(trainer_of(model))
    assert found["left"].tolist() == [0, 1, 2, 3]
    assert found["right"].tolist() == [2, 3, 4, 5]
    assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["empty"].shape == found["also_empty"].shape == (0,)
    storages = [tensor.untyped_storage().data_ptr() for tensor in found.values() if tensor.numel()]
    assert len(set(storages)) == len(storages)


def test_class_names_ignore_accelerates_wrappers():
    trainer = make_trainer(batches_of(2), lr_scheduler=lambda o: StepLR(o, 1))
    assert TrainingState(trainer).class_names() == {
        "optimizer": "SGD",
        "scheduler": "StepLR",
        "scaler": None,
    }
    without = make_trainer(batches_of(2))
    assert TrainingState(without).class_names()["scheduler"] is None


def test_user_keys_are_named_state_attributes():
    trainer = make_trainer(batches_of(2))
    state = TrainingState(trainer)
    assert state.user_keys == []
    trainer.state_dict_user_keys.append("alpha")
    trainer.state.alpha = [1, 2]
    assert files(state)["trainer.pt"].content["objects"]["user_state"] == {"alpha": [1, 2]}


def test_rank_1_writes_states_that_differ_from_rank_0():
    trainer = make_trainer(batches_of(2))
    trainer.run()
    trainer.state.metrics.update({"same": 1.0, "other": 2.0, "new": 3.0})
    also = {"same": Box(1), "other": Box(2)}
    state = TrainingState(trainer, also)
    objects = state.objects()
    rank0_digests = digests_of(objects)
    assert not any(files(state, 1)["rank_00001.pt"].content["objects"].values())
    rank0_digests["metrics"].pop("new")
    for kind in ("metrics", "also"):
        rank0_digests[kind]["other"] = "another"
    place = state.files(1, objects, rank0_digests)["rank_00001.pt"].content
    assert {kind: each for kind, each in place["objects"].items() if each} == {
        "metrics": {"other": 2.0, "new": 3.0},
        "also": {"other": {"value": 2}},
    }
    assert "objects" not in files(state)["rank_00000.pt"].content


# The identifier of a run of training


def test_a_trainer_keeps_a_unique_training_id():
    one, other = (Engine(lambda engine, batch: None) for _ in range(2))
    assert training_id(one) == training_id(one)
    assert training_id(one) != training_id(other)


def test_a_resumed_trainer_has_the_saved_training_id():
    one, other = (Engine(lambda engine, batch: None) for _ in range(2))
    set_training_id(other, training_id(one))
    assert training_id(other) == training_id(one)
