"""Tests that files hold data only, that loading restores it, and that copies are independent."""

import collections
import enum
import io
import math
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ignite_hooks.checkpoint.contents import Objects
from ignite_hooks.checkpoint.contents import Tensors
from ignite_hooks.checkpoint.contents import load_objects
from tests.ids import stable_id


class Custom:
    def __init__(self, value=0):
        self.value = value


class CreatesFolderWhenUnpickled:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def write_and_read(content, path):
    content.write(path)
    return load_objects(path)


def is_same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return one == other


DATA = {
    "numbers": {"a": 1, "b": 2.5, "c": 1j, "d": -math.inf, "e": 2**70},
    "strings": ["", "é", b"\0\xff", None, True],
    "nested": {"a": [1, (2, {"b": [3, torch.ones(2)]})], 7: {}, (1, 2): ()},
    "an OrderedDict": collections.OrderedDict(b=torch.ones(2), a=[1]),
    "a Counter": collections.Counter("aab"),
    "a set": {1, 2},
    "a bytearray": bytearray(b"ab"),
    "what torch has": [torch.float32, torch.device("cpu"), torch.Size([1, 2])],
    "a number as a tensor": torch.tensor(3.5),
    "an empty tensor": torch.zeros(0, 3),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "integers and bools": [torch.tensor([1, 2]), torch.tensor([True])],
    "not contiguous": torch.arange(6.0).view(2, 3).t(),
    "expanded": torch.ones(1).expand(4),
    "a parameter": [torch.nn.Parameter(torch.ones(2))],
}


@pytest.mark.parametrize("kind", DATA)
def test_loaded_data_equals_saved_data(tmp_path, kind):
    content = DATA[kind]
    for each in (Objects(content, "it"), Objects(content, "it").copied()):
        found = write_and_read(each, tmp_path / "file")
        assert type(found) is type(content)
        assert is_same(content, found)


@pytest.mark.parametrize(
    "content",
    [
        Custom(),
        {"deep": [({"down": Custom()},)]},
        lambda: None,
        Custom,
        print,
        frozenset([1]),
        range(3),
        torch.nn.Linear(1, 1),
    ],
    ids=stable_id,
)
def test_objects_that_need_pickle_are_refused(content):
    with pytest.raises(TypeError, match="the state of the optimizer must be made of tensors"):
        Objects(content, "the optimizer")


class Rate(float):
    """A subclass of float, which needs its class to be unpickled."""


class Color(enum.Enum):
    ONE = 1


Pair = collections.namedtuple("Pair", "one other")


def with_attribute(content, value):
    content.attribute = value
    return content


def nested(depth, content=0):
    for _ in range(depth):
        content = [content]
    return content


BORDERLINE = {
    "64 bits": [2**63 - 1, 2**63, -(2**63), -(2**63) - 1],
    "a very long int": 2**3000,
    "half a character": "\ud800",
    "a class of float": Rate(1),
    "an Enum": Color.ONE,
    "a named tuple": Pair(1, 2),
    "a defaultdict": collections.defaultdict(list),
    "keys of all kinds": {None: 1, 2.5: 2, True: 3, (1, ("a",)): 4, "b": 5},
    "a key that needs pickle": {frozenset([1]): 1},
    "a number of numpy": np.float64(1),
    "a key of numpy": {np.float64(1): 1},
    "an array of numpy": np.zeros(2),
    "a tensor as a key": {torch.zeros(1): 1},
    "an OrderedDict with data": with_attribute(collections.OrderedDict(a=1), {"b": 2}),
    "an OrderedDict with code": with_attribute(collections.OrderedDict(a=1), Custom()),
    "a tensor with code": with_attribute(torch.zeros(1), Custom()),
    "a parameter with code": with_attribute(torch.nn.Parameter(torch.zeros(1)), Custom()),
    "complex": torch.zeros(1, dtype=torch.complex64),
    "conjugated": torch.ones(1, dtype=torch.complex64).conj(),
    "a negative view": torch.ones(1, dtype=torch.complex64).conj().imag,
    "sparse": torch.eye(2).to_sparse(),
    "uint16": torch.zeros(2, dtype=torch.uint16),
    "meta": torch.zeros(2, device="meta"),
    "nested 300 times": nested(300),
    "nested too often": nested(100_000),
    "the same list twice": [[1, 2]] * 2,
}


def is_loaded_without_pickle(content):
    file = io.BytesIO()
    try:
        torch.save(content, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


def normalized(content):
    """Returns the content with Python numbers for numpy's, and tensors without attributes."""
    if isinstance(content, torch.Tensor):
        return content.detach()
    return content.item() if isinstance(content, np.generic) else content


@pytest.mark.parametrize("kind", BORDERLINE)
def test_accepted_types_are_those_torch_loads_without_pickle(kind):
    content = BORDERLINE[kind]
    try:
        Objects(content, "it")
        is_let_through = True
    except TypeError:
        is_let_through = False
    assert is_let_through == is_loaded_without_pickle(normalized(content))


@pytest.mark.parametrize("times", [1, 3])
def test_list_that_contains_itself_is_refused(times):
    content = [1]
    content += [content] * times
    with pytest.raises(TypeError, match="must be made of tensors"):
        Objects(content, "it")


def test_refusal_names_the_refused_class():
    with pytest.raises(TypeError, match="Custom") as caught:
        Objects({"a": Custom()}, "the optimizer")
    assert "\33" not in str(caught.value), "torch colours its message for terminals"


def test_pickled_objects_are_loaded_only_with_trust_pickle(tmp_path):
    path = tmp_path / "file"
    Objects({"it": Custom(5)}, "it", may_pickle=True).write(path)
    with pytest.raises(ValueError, match="file holds more than data"):
        load_objects(path)
    assert load_objects(path, trust_pickle=True)["it"].value == 5


def test_view_is_written_without_the_rest_of_its_storage(tmp_path):
    large = torch.zeros(1_000_000)
    found = write_and_read(Objects({"a": large[5:7], "b": [large[:1]]}, "it"), tmp_path / "file")
    assert (tmp_path / "file").stat().st_size < 5_000
    assert found["a"].tolist() == [0, 0]
    Tensors({"a": large[5:7]}).write(tmp_path / "tensors")
    assert (tmp_path / "tensors").stat().st_size < 500


def test_loaded_tensors_equal_saved_tensors(tmp_path):
    tensors = {
        "turned": torch.arange(6.0).view(2, 3).t(),
        "a number": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "bfloat16": torch.tensor([1.5], dtype=torch.bfloat16),
        "complex": torch.tensor([1j], dtype=torch.complex64),
        "bool": torch.tensor([True, False]),
        "every second": torch.arange(10)[::2],
    }
    for content in (Tensors(tensors), Tensors(tensors).copied()):
        content.write(tmp_path / "file")
        assert is_same(tensors, load_file(tmp_path / "file"))


def change_in_place(content):
    """Changes everything in the content that can be changed."""
    if isinstance(content, torch.Tensor):
        content.add_(1)
    elif isinstance(content, set | collections.Counter):
        content.update([99])
    elif isinstance(content, dict):
        for value in content.values():
            change_in_place(value)
        content["new"] = 1
    elif isinstance(content, list | tuple):
        for value in content:
            change_in_place(value)
        if isinstance(content, list):
            content.append(1)
    elif isinstance(content, bytearray):
        content.extend(b"new")
    elif isinstance(content, Custom):
        content.value += 1


def fresh():
    return {
        "tensors": [torch.zeros(3), (torch.zeros(()), {"view": torch.zeros(9)[::3]})],
        "dicts": collections.OrderedDict(a={}, b=collections.Counter("aab")),
        "lists": [[1], ([2], [])],
        "a set": {1, 2},
        "a bytearray": bytearray(b"ab"),
    }


@pytest.mark.parametrize("kind", fresh())
def test_copy_is_independent_of_later_changes(tmp_path, kind):
    content = fresh()[kind]
    copy = Objects(content, "it").copied()
    change_in_place(content)
    assert not is_same(content, fresh()[kind])
    assert is_same(write_and_read(copy, tmp_path / "file"), fresh()[kind])


def test_copy_of_pickled_objects_is_independent(tmp_path):
    content = {"it": Custom(5)}
    copy = Objects(content, "it", may_pickle=True).copied()
    change_in_place(content)
    copy.write(tmp_path / "file")
    assert load_objects(tmp_path / "file", trust_pickle=True)["it"].value == 5


def test_copy_of_tensors_is_independent(tmp_path):
    tensors = {"a": torch.zeros(3), "b": torch.zeros(2, 3).t()}
    copy = Tensors(tensors).copied()
    change_in_place(tensors)
    copy.write(tmp_path / "file")
    assert is_same(load_file(tmp_path / "file"), {"a": torch.zeros(3), "b": torch.zeros(3, 2)})


def test_a_copy_needs_no_gradient_and_shares_no_memory():
    parameter = torch.nn.Parameter(torch.ones(2))
    (copied,) = Objects([parameter], "it").copied().content
    assert not copied.requires_grad
    assert copied.data_ptr() != parameter.data_ptr()


WAYS = {
    "torch.save": torch.save,
    "the old format of torch.save": lambda content, path: torch.save(
        content, path, _use_new_zipfile_serialization=False
    ),
    "pickle": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"state": [1, (bomb,)]}])
def test_code_in_a_file_is_not_run(tmp_path, way, wrap):
    path, mark = tmp_path / "file", tmp_path / "ran"
    WAYS[way](wrap(CreatesFolderWhenUnpickled(mark)), path)
    with pytest.raises(ValueError, match=r"file (holds more than data|cannot be read)"):
        load_objects(path)
    assert not mark.exists()
    load_objects(path, trust_pickle=True) if way != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists(), "it is dangerous indeed"


def damaged(content):
    file = io.BytesIO()
    torch.save(content, file)
    whole = file.getvalue()
    yield b""
    yield b"garbage" * 100
    yield whole[1:]
    for part in range(1, 20):
        yield whole[: len(whole) * part // 20]


def test_unreadable_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "optimizer.bin"
    for text in damaged({"a": torch.arange(50.0), "b": [1, "x"]}):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"optimizer\.bin (cannot be read|holds more)"):
            load_objects(path)


def test_numpy_numbers_become_python_numbers(tmp_path):
    found = {"rate": np.float64(0.1), "steps": [np.int64(3), (np.bool_(True), np.float32(0.5))]}
    Objects(found, "x").write(tmp_path / "file")
    loaded = load_objects(tmp_path / "file")
    assert loaded == {"rate": 0.1, "steps": [3, (True, 0.5)]}
    assert [type(each) for each in (loaded["rate"], *loaded["steps"][1])] == [float, bool, float]
