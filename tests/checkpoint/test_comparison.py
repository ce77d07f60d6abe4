import math
from datetime import datetime
from datetime import timezone
from math import inf
from math import nan

import pytest
import torch

from ignite_hooks.checkpoint import comparison
from ignite_hooks.checkpoint.comparison import compare_checkpoints
from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.differences import Difference
from ignite_hooks.checkpoint.durable import file_record
from ignite_hooks.checkpoint.manifest import Manifest
from ignite_hooks.checkpoint.module_state import module_file
from ignite_hooks.checkpoint.store import Checkpoint
from ignite_hooks.checkpoint.store import CheckpointStore
from tests.ids import stable_id


class Values(torch.nn.Module):
    """A module with the given buffers."""

    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, value)


@pytest.fixture
def saved(tmp_path):
    store = CheckpointStore(tmp_path)

    def save(module, step=1, safe=True, objects=None, files=None, **fields):
        folder = store.begin(step)
        name, content, about = module_file("model", module, safe_serialization=safe)
        written = {
            name: content,
            "trainer.pt": Objects({"modules": {"model": about}, "objects": objects or {}}, "it"),
            **(files or {}),
        }
        for file, each in written.items():
            each.write(folder / file)
        files = {file: file_record(folder / file) for file in written}
        manifest = Manifest(
            **{
                "number": store.next_number(),
                "training": "ours",
                "saved_at": datetime(2026, 1, 2, tzinfo=timezone.utc),
                "step": step,
                "epoch": 0,
                "iteration": step,
                "data_pass": 0,
                "batches": step,
                "world_size": 1,
                "versions": {},
                "files": files,
                **fields,
            }
        )
        store.commit(folder, manifest)
        return Checkpoint(folder, manifest)

    return save


def differences(found, part="model"):
    return found.parts[part].differences


@pytest.mark.parametrize(
    ("first", "second", "norm", "relative", "note"),
    [
        ([3.0, 4.0], [3.0, 4.5], 0.5, 0.1, ""),
        ([0.0, 0.0], [3.0, 4.0], 5.0, inf, ""),
        ([3, 4], [3, 6], 2.0, 0.4, ""),
        ([True, False], [True, True], 1.0, 1.0, ""),
        ([3j, 4], [3j, 5], 1.0, 0.2, ""),
        ([1e200, 0.0], [1e200, 1e200], 1e200, 1.0, ""),
        ([1e-200, 0.0], [1e-200, 1e-200], 1e-200, 1.0, ""),
        ([nan, 4.0], [nan, 5.0], 1.0, 0.25, ""),
        ([inf, 4.0], [inf, 5.0], 1.0, 0.25, ""),
        ([nan, 4.0], [1.0, 4.0], 0.0, 0.0, "1 of 2 elements differ by a NaN or an infinity"),
        ([inf, 4.0], [-inf, 4.0], 0.0, 0.0, "1 of 2 elements differ by a NaN or an infinity"),
        ([nan, nan], [inf, 1.0], 0.0, 0.0, "2 of 2 elements differ by a NaN or an infinity"),
        ([0.0, 1.0], [-0.0, 1.0], 0.0, 0.0, "equal numbers with different bits"),
    ],
    ids=stable_id,
)
def test_tensor_differs_by_its_norm(saved, first, second, norm, relative, note):
    wide = {float: torch.float64}
    pair = [torch.tensor(each, dtype=wide.get(type(each[1]))) for each in (first, second)]
    a, b = (saved(Values(w=each), step) for step, each in enumerate(pair, 1))
    (found,) = differences(compare_checkpoints(a, b))
    assert found == Difference("w", pytest.approx(norm), pytest.approx(relative), note)


@pytest.mark.parametrize(
    "value",
    [
        lambda: torch.tensor([nan, inf, -0.0]),
        lambda: torch.zeros(0),
        lambda: torch.tensor(3),
        lambda: torch.ones(2, dtype=torch.cfloat),
        lambda: torch.ones(2).to_sparse(),
        lambda: torch.ones(2).to(torch.float8_e4m3fn),
        lambda: torch.ones(2, dtype=torch.uint64),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_same_tensor_is_equal_bit_for_bit(saved, value):
    assert compare_checkpoints(saved(Values(w=value())), saved(Values(w=value()), 1)).is_equal


@pytest.mark.parametrize(
    ("first", "second", "note", "is_structural"),
    [
        (torch.ones(2, 3), torch.ones(3, 2), "(2, 3) float32 | (3, 2) float32", True),
        (torch.ones(1), torch.tensor(1.0), "(1,) float32 | () float32", True),
        (torch.ones(2), torch.ones(2).half(), "float32 | float16", False),
        (torch.ones(2), torch.ones(2).to_sparse(), "torch.sparse_coo", True),
    ],
    ids=stable_id,
)
def test_shape_and_dtype_that_differ_are_named(saved, first, second, note, is_structural):
    (found,) = differences(compare_checkpoints(saved(Values(w=first)), saved(Values(w=second), 2)))
    assert note in found.note
    assert found.is_structural == is_structural


def test_differences_are_sorted_structural_first_then_by_size(saved):
    one = torch.ones(1)
    a = saved(Values(small=one, large=one, same=one, gone=one))
    b = saved(Values(small=one * 1.1, large=one * 9, same=one, new=one), 2)
    found = compare_checkpoints(a, b).parts["model"]
    assert found.count == 5
    assert [(each.name, each.note) for each in found.differences] == [
        ("gone", "only in the first"),
        ("new", "only in the second"),
        ("large", ""),
        ("small", ""),
    ]


def test_tied_weights_and_other_values_are_compared_too(saved):
    tied = torch.nn.Sequential(torch.nn.Linear(2, 2, False), torch.nn.Linear(2, 2, False))
    tied[1].weight = tied[0].weight
    a = saved(tied)
    with torch.no_grad():
        tied[0].weight += 1
    assert [each.name for each in differences(compare_checkpoints(a, saved(tied, 2)))] == [
        "0.weight",
        "1.weight",
    ]


def test_bin_file_equals_a_safetensors_file(saved):
    module = torch.nn.Linear(3, 2)
    found = compare_checkpoints(saved(module), saved(module, 1, safe=False))
    assert differences(found) == []
    assert found.rows["files"] == []


def test_norm_is_the_same_in_chunks_and_with_reopened_files(saved, monkeypatch):
    a, b = torch.randn(100), torch.randn(100)
    monkeypatch.setattr(comparison, "_CHUNK_ELEMENTS", 7)
    monkeypatch.setattr(comparison, "_MAX_MAPPED_BYTES", 1)
    pair = saved(Values(w=a, v=b)), saved(Values(w=b, v=a), 2)
    found = differences(compare_checkpoints(*pair))
    assert len(found) == 2
    assert found[0].norm == pytest.approx(float((a.double() - b.double()).norm()), rel=1e-12)


def test_states_of_handlers_and_objects_are_separate_parts(saved):
    module = torch.nn.Linear(1, 1)

    def objects(weight, count):
        ema = {"w": torch.tensor([weight]), "n": 1}
        return {"handlers": {"EarlyStopping": {"counter": count}}, "also": {"ema": ema}}

    found = compare_checkpoints(
        saved(module, objects=objects(1.0, 2)), saved(module, 1, objects=objects(3.0, 5))
    )
    assert differences(found, "also/ema") == [Difference("w", 2.0, 2.0)]
    assert differences(found, "handlers/EarlyStopping") == [Difference("counter", note="2 | 5")]
    assert differences(found, "trainer") == []


def test_optimizer_is_compared_by_value_and_other_files_by_checksum(saved):
    module = torch.nn.Linear(1, 1)

    def files(lr, seed):
        return {
            "optimizer.bin": Objects({"param_groups": [{"lr": lr}]}, "the optimizer"),
            "rank_00000.pt": Objects({"random": seed}, "the data loader"),
        }

    found = compare_checkpoints(
        saved(module, files=files(0.1, 1)), saved(module, 1, files=files(0.2, 2))
    )
    assert differences(found, "optimizer") == [Difference("param_groups/0/lr", note="0.1 | 0.2")]
    assert [row.name for row in found.rows["files"]] == ["rank_00000.pt"]


@pytest.mark.parametrize(
    ("section", "first", "second", "rows"),
    [
        ("counters", {"metric_value": nan}, {"metric_value": nan}, []),
        ("counters", {"metric_value": nan}, {"metric_value": 1.0}, ["metric value"]),
        ("counters", {"global_batch": 8}, {}, ["global batch"]),
        ("versions", {"versions": {"torch": "1"}}, {"versions": {"torch": "2"}}, ["torch"]),
        ("settings", {"settings": {"a": {"lr": 1}}}, {"settings": {"a": {"lr": 2}}}, ["a.lr"]),
        ("settings", {"settings": {"lr": 1}}, {"settings": {"lr": 1.0}}, []),
        ("settings", {"settings": {"lr": 1, "b": 2}}, {}, ["all"]),
        ("contents", {"contents": {"also": ["a", "b"]}}, {"contents": {"also": ["b"]}}, ["also"]),
        ("command", {"command_line": ["a"]}, {"command_line": ["b"]}, []),
        ("run", {"training": "a"}, {"training": "b"}, []),
    ],
)
def test_manifests_are_compared_by_section(saved, section, first, second, rows):
    module = torch.nn.Linear(1, 1)
    found = compare_checkpoints(saved(module, **first), saved(module, 1, **second))
    assert [row.name for row in found.rows.get(section, [])] == rows
    assert found.is_equal == (not rows)


def test_pickle_is_never_loaded(saved):
    module = torch.nn.Linear(1, 1)
    loaded = []

    class Code:
        def __reduce__(self):
            return loaded.append, (1,)

    files = {"custom_checkpoint_0.pkl": Objects(Code(), "it", may_pickle=True)}
    pair = saved(module, files=files), saved(module, 1, files=files)
    assert compare_checkpoints(*pair).is_equal
    assert loaded == []
    files = {"optimizer.bin": Objects({"a": Code()}, "it", may_pickle=True)}
    with pytest.raises(ValueError, match="would run code"):
        compare_checkpoints(saved(module, 3, files=files), pair[0])
    assert loaded == []


@pytest.mark.parametrize("content", [{"modules": {"model": {}}}, {"modules": 3}, [1]])
def test_unexpected_content_is_an_error_that_names_the_file(saved, content):
    whole = saved(torch.nn.Linear(1, 1))
    other = saved(torch.nn.Linear(1, 1), 2, files={"trainer.pt": Objects(content, "it")})
    with pytest.raises(ValueError, match=r"trainer\.pt of .* must be as a SaveCheckpoint writes"):
        compare_checkpoints(whole, other)


def test_damaged_safetensors_file_is_an_error(saved):
    whole, other = saved(torch.nn.Linear(1, 1)), saved(torch.nn.Linear(1, 1), 2)
    (other.folder / "model.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        compare_checkpoints(whole, other)


def test_newer_layout_is_refused(saved):
    whole = saved(torch.nn.Linear(1, 1))
    newer = Checkpoint(whole.folder, whole.manifest.model_copy(update={"version": 99}))
    with pytest.raises(ValueError, match="layout 99 of a newer ignite_hooks"):
        compare_checkpoints(whole, newer)


def test_norm_of_overflowing_differences_is_infinite(saved):
    large = torch.tensor([1.7e308], dtype=torch.float64)
    (found,) = differences(compare_checkpoints(saved(Values(w=large)), saved(Values(w=-large), 2)))
    assert math.isinf(found.norm)
