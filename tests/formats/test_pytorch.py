"""Weights of PyTorch models: what its formulas make of the arrays, layouts, ties, and files that are none."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import safetensors.numpy

import scratchnet as sn
from scratchnet import nn
from scratchnet.errors import CheckpointError, CheckpointNotFoundError, ConfigError, ScratchnetError

rng = np.random.default_rng(0)
X = rng.normal(size=(4, 6)).astype(np.float32)


def net():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def theirs():
    """The state dict of PyTorch's twin of `net`, in its shapes."""
    shapes = {"0.weight": (5, 6), "0.bias": (5,), "1.weight": (5,), "1.bias": (5,), "1.running_mean": (5,)}
    shapes |= {"1.running_var": (5,), "3.weight": (2, 5), "3.bias": (2,)}
    state = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    return state | {"1.num_batches_tracked": np.array(7, np.int64)}


def formula(s, x):
    """PyTorch's: F.linear(x, W, b) = x W^T + b."""
    h = x @ s["0.weight"].T + s["0.bias"]
    h = (h - s["1.running_mean"]) / np.sqrt(s["1.running_var"] + 1e-5) * s["1.weight"] + s["1.bias"]
    return np.maximum(h, 0) @ s["3.weight"].T + s["3.bias"]


@pytest.mark.parametrize("source", ["dict", "file"])
def test_a_model_computes_what_theirs_does(source, tmp_path):
    state, model = theirs(), net().eval()
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    keys = sn.pytorch.load_state_dict(model, state if source == "dict" else tmp_path / "model.safetensors")
    assert keys == ([], [])
    np.testing.assert_allclose(model(X).detach().numpy(), formula(state, X), rtol=1e-5, atol=1e-5)


def test_state_dict_gives_back_what_was_loaded():
    state, model = theirs(), net()
    sn.pytorch.load_state_dict(model, state)
    found = sn.pytorch.state_dict(model)
    assert found.keys() == state.keys()
    for name, array in state.items():
        assert found[name].flags.c_contiguous and found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], 0 if name.endswith("tracked") else array)
        assert found[name].shape == array.shape


def test_a_square_linear_is_transposed_too():
    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    model = nn.Linear(3, 3, bias=False)
    sn.pytorch.load_state_dict(model, {"weight": weight})
    np.testing.assert_array_equal(model(np.eye(3, dtype=np.float32)).detach().numpy(), weight.T)


def test_a_subclass_of_linear_has_its_layout():
    class Mine(nn.Linear):
        pass

    model = Mine(2, 3)
    sn.pytorch.load_state_dict(model, {"weight": np.ones((3, 2), np.float32), "bias": np.ones(3, np.float32)})
    assert sn.pytorch.state_dict(model)["weight"].shape == (3, 2)


def raw(dtype, data, shape):
    """The bytes of a safetensors file of one tensor."""
    header = json.dumps({"weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_half_precision_is_widened(tmp_path):
    values = np.array([[1.0, -2.5], [0.15625, 3e38]], np.float32)  # bfloat16 is the upper half of a float32
    upper = (values.view(np.uint32) >> 16).astype("<u2")
    expected = (upper.astype(np.uint32) << 16).view(np.float32)
    (tmp_path / "bf16").write_bytes(raw("BF16", upper.tobytes(), [2, 2]))
    (tmp_path / "f16").write_bytes(raw("F16", np.float16([[1, 2], [3, 4]]).tobytes(), [2, 2]))
    model = nn.Linear(2, 2, bias=False)
    sn.pytorch.load_state_dict(model, tmp_path / "bf16")
    np.testing.assert_array_equal(model.weight.detach().numpy().T, expected)
    sn.pytorch.load_state_dict(model, tmp_path / "f16")
    np.testing.assert_array_equal(model.weight.detach().numpy().T, [[1, 2], [3, 4]])
    (tmp_path / "f8").write_bytes(raw("F8_E4M3", bytes(4), [2, 2]))
    with pytest.raises(CheckpointError, match=r"weight: expected floats or integers, found F8_E4M3"):
        sn.pytorch.load_state_dict(model, tmp_path / "f8")


class FakeTensor:
    """What `_array` uses of a tensor of PyTorch."""

    __module__ = "torch"

    def __init__(self, array, dtype="torch.float32"):
        self.array, self.dtype = array, dtype

    detach = cpu = resolve_conj = lambda self: self

    def float(self):
        return FakeTensor(self.array.astype(np.float32))

    def numpy(self):
        assert self.dtype == "torch.float32"  # NumPy has no bfloat16
        return self.array


def test_tensors_of_pytorch_are_taken():
    model = nn.Linear(2, 3, bias=False)
    for dtype in ("torch.float32", "torch.bfloat16"):
        sn.pytorch.load_state_dict(model, {"weight": FakeTensor(np.full((3, 2), 2, np.float32), dtype)})
        assert (model.weight.detach().numpy() == 2).all()
    with pytest.raises(CheckpointError, match=r"scratchnet.pytorch.load_state_dict\(model, state\) converts them"):
        model.load_state_dict({"weight": FakeTensor(np.ones((3, 2)))})


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("names", [["0.weight"], ["1.weight"], ["0.weight", "1.weight"]])
def test_tied_weights_come_under_one_name_or_both(names):
    model, weight = tied(), np.arange(9, dtype=np.float32).reshape(3, 3)
    biases = {"0.bias": np.zeros(3, np.float32), "1.bias": np.ones(3, np.float32)}
    assert sn.pytorch.load_state_dict(model, dict.fromkeys(names, weight) | biases) == ([], [])
    assert model[1].weight is model[0].weight
    np.testing.assert_array_equal(model[0].weight.detach().numpy(), weight.T)
    found = sn.pytorch.state_dict(model)
    assert [*found] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    np.testing.assert_array_equal(found["1.weight"], weight)


def test_tied_weights_that_differ_are_refused():
    state = sn.pytorch.state_dict(tied())
    state["1.weight"] = state["1.weight"] + 1
    with pytest.raises(CheckpointError, match=r"1.weight and 0.weight: expected one value"):
        sn.pytorch.load_state_dict(tied(), state)


def test_what_does_not_fit_is_named_and_changes_nothing():
    model, state = net(), theirs()
    before = model.state_dict()
    for change, message in (
        (lambda s: s.pop("3.bias"), r"missing 3\.bias"),
        (lambda s: s.update(extra=X), "unexpected extra$"),
        (lambda s: s.update(dict.fromkeys("abcdef", X)), "unexpected a, b, c, d, e, f$"),
        (lambda s: s.update(dict.fromkeys("abcdefg", X)), "unexpected a, b, c, d, e, f and 1 more$"),
        (lambda s: s.update({"3.weight": X}), r"3\.weight: expected float32 \(5, 2\), got float32 \(6, 4\)"),
        (lambda s: s.update({"3.bias": s["3.bias"].astype(np.float64)}), "expected float32 .* got float64"),
        (lambda s: s.update({"3.bias": "text"}), "expected numbers"),
    ):
        changed = dict(state)
        change(changed)
        with pytest.raises(ScratchnetError, match=message) as error:
            sn.pytorch.load_state_dict(model, changed)
        assert "\n" not in str(error.value)
    assert all((before[name] == array).all() for name, array in model.state_dict().items())
    state.pop("3.bias")
    assert sn.pytorch.load_state_dict(model, state | {"extra": X}, strict=False) == (["3.bias"], ["extra"])


def test_names_of_a_wrapped_model_have_a_remedy():
    state = {f"module.{name}": array for name, array in theirs().items()}
    with pytest.raises(CheckpointError, match=r"name.removeprefix\('module\.'\)"):
        sn.pytorch.load_state_dict(net(), state)


def canary(folder):
    """A pickle that would make a file."""

    class Runs:
        def __reduce__(self):
            return open, (str(folder / "ran"), "w")

    return pickle.dumps(Runs())


LIES = {
    "a pickle": (canary, r"found a pickle, .*save_file\(torch.load\('.*', weights_only=True\)"),
    "a .pt": (lambda folder: b"PK\x03\x04" + bytes(99), "found a pickle"),
    "nothing": (lambda folder: b"", "expected a safetensors file"),
    "text": (lambda folder: b"hello, world, hello", "expected a safetensors file"),
    "a header of exabytes": (lambda folder: struct.pack("<Q", 2**60) + b"{}", "expected a safetensors file"),
    "too few bytes": (lambda folder: raw("F32", bytes(16), [2, 2])[:-1], "expected a safetensors file"),
    "lengths of terabytes": (lambda folder: raw("F32", bytes(16), [2**40, 2]), "expected a safetensors file"),
    "a checkpoint of ours": (
        lambda folder: (sn.save(folder / "ours", model=nn.Linear(2, 2)), (folder / "ours").read_bytes())[1],
        "found a checkpoint of scratchnet",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_one_line_and_runs_nothing(lie, tmp_path):
    make, message = LIES[lie]
    (tmp_path / "model").write_bytes(make(tmp_path))
    with pytest.raises(CheckpointError, match=message) as error:
        sn.pytorch.load_state_dict(nn.Linear(2, 2, bias=False), tmp_path / "model")
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointNotFoundError):
        sn.pytorch.load_state_dict(net(), tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="found a pipe"):
        sn.pytorch.load_state_dict(net(), tmp_path / "pipe")
    with pytest.raises(ConfigError, match="expected a path"):
        sn.pytorch.load_state_dict(net(), 3)


def test_damage_is_one_line(tmp_path):
    blob, model = safetensors.numpy.save(theirs()), net()
    for _ in range(300):
        damaged = bytearray(blob)
        for _ in range(rng.integers(1, 4)):
            damaged[int(rng.integers(min(len(damaged), 700)))] = int(rng.integers(256))
        (tmp_path / "model").write_bytes(damaged)
        try:
            sn.pytorch.load_state_dict(model, tmp_path / "model")
        except ScratchnetError as error:
            assert "\n" not in str(error)
