"""A checkpoint: what is saved comes back, and a damaged or foreign file never does.

Oracles: the safetensors package reading our files by itself, hashlib, and the bytes on disk.
"""

import copy
import hashlib
import io
import json
import math
import os
import pickle
import re
import sys
import tracemalloc
import urllib.parse
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from checkpoints import SMALL, assert_same, in_place_of_a_file, run_victim, time_limit
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scratchnet.errors import CheckpointError, CheckpointNotFoundError
from scratchnet.formats.checkpoint import dumps, load, loads, save
from scratchnet.kernels.signatures import HALVES

# ---------------------------------------------------------------------- round trips

DTYPES = [np.dtype(code) for code in ("?", "i1", "u1")]
DTYPES += [np.dtype(f"{order}{kind}{size}") for order in "<>" for kind in "iu" for size in (2, 4, 8)]
DTYPES += [np.dtype(f"{order}f{size}") for order in "<>" for size in (2, 4, 8)]
LAYOUTS = {
    "C": lambda x: x,
    "Fortran": np.asfortranarray,
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[::-1] if x.ndim else x,
    "strided": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "read-only": lambda x: (x.setflags(write=False), x)[1],
}
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
bfloat16s = hnp.arrays(np.uint16, shapes).map(lambda bits: bits.view(HALVES[0]))  # every number and every NaN
arrays = st.builds(
    lambda array, layout: LAYOUTS[layout](array),
    hnp.arrays(st.sampled_from(DTYPES), shapes) | bfloat16s,
    st.sampled_from(list(LAYOUTS)),
)
keys = st.text(max_size=4) | st.sampled_from(
    ["a/b", "0.weight", "$array", "$$", "__metadata__", "%2F", "\ud800", "$tuple"]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | arrays
trees = st.recursive(
    leaves,
    lambda node: (
        st.lists(node, max_size=3) | st.dictionaries(keys, node, max_size=3) | st.lists(node, max_size=2).map(tuple)
    ),
    max_leaves=12,
)
states = st.dictionaries(keys, trees, max_size=4)


ALIKE = {"a/b": np.ones(2), "a": {"b": np.zeros(2)}, "a%2Fb": np.ones(1)}  # names that an escape tells apart


@example(ALIKE)
@settings(deadline=None, max_examples=20 * settings().max_examples)  # trees vary more than arrays
@given(states)
def test_a_loaded_state_is_the_saved_state(state):
    before = copy.deepcopy(state)
    blob = dumps(state)
    assert_same(loads(blob), before)
    assert dumps(loads(blob)) == blob == dumps(before), "the same state, the same bytes"


@example(state=ALIKE)
@settings(deadline=None, max_examples=5 * settings().max_examples)
@given(state=states)
def test_safetensors_reads_every_array_of_a_file_by_itself(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save(path, **state)
    expected = {}

    def collect(node, where):
        if isinstance(node, np.ndarray):
            expected["/".join(where)] = node
        elif isinstance(node, dict | list | tuple):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                escaped = urllib.parse.quote(str(key), safe=" ", errors="surrogatepass")
                collect(child, [*where, escaped.replace("__metadata__", "%5F_metadata__")])

    collect(state, [])
    found = safetensors.numpy.load_file(path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_same(found[name], array)
    assert_same(load(path), state)


def test_names_and_checksum_can_be_read_without_scratchnet(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, optimizer={"state": [{"momentum": np.arange(3.0)}]}, epoch=3, best=math.inf)
    with safetensors.safe_open(path, "np") as file:
        assert list(file.keys()) == ["optimizer/state/0/momentum"]
        metadata = file.metadata()
    assert list(metadata) == ["scratchnet"]
    content = json.loads(
        metadata["scratchnet"], parse_constant=pytest.fail
    )  # Infinity is Python's own word, not JSON's
    assert (content["format"], content["tree"]["epoch"]) == (1, 3)
    zeroed = path.read_bytes().replace(content["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(zeroed).hexdigest() == content["sha256"]


def test_bytes_do_not_depend_on_the_process(tmp_path):
    outputs = {run_victim("print_bytes", tmp_path, PYTHONHASHSEED=seed).stdout for seed in ("1", "2")}
    assert len(outputs) == 1 and len(outputs.pop()) > 500


def test_loaded_arrays_share_no_memory():
    shared = np.zeros(4)
    state = loads(dumps({"a": shared, "b": shared}))
    state["a"][:] = 1
    assert state["b"].tolist() == [0, 0, 0, 0]


def test_modules_and_tensors_are_saved_as_state_dicts_and_arrays():
    class Tensor:
        def __init__(self, data):
            self.data = data

        def detach(self):
            return self

        def numpy(self):
            return self.data

    class Module:
        def state_dict(self):
            return {"weight": Tensor(np.eye(2)), "inner": {"bias": np.float32(0.5)}}

    state = loads(dumps({"model": Module(), "parts": [Module()], "loss": Tensor(np.array(2.0))}))
    assert_same(state["model"], {"weight": np.eye(2), "inner": {"bias": 0.5}})
    assert_same(state["parts"][0]["weight"], np.eye(2))
    assert_same(state["loss"], np.array(2.0))


class Point(tuple):
    """A tuple of another type, like a named tuple: it would come back as a plain one."""


LOOP: list = []
LOOP.append(LOOP)
REFUSED = {
    "object array": np.array([object()]),
    "string array": np.array(["a"]),
    "complex array": np.zeros(2, np.complex64),
    "long double array": np.zeros(2, np.longdouble),
    "date array": np.zeros(2, "M8[s]"),
    "structured array": np.zeros(2, [("a", "f4")]),
    "masked array": np.ma.masked_array([1.0], mask=[True]),
    "complex number": 1j,
    "set": {1},
    "bytes": b"x",
    "function": len,
    "class with state_dict": type("Module", (), {"state_dict": lambda self: {}}),
    "number as a key": {1: 2},
    "named tuple": Point((1, 2)),
    "huge integer": 1 << 5000,
    "a list that holds itself": LOOP,
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_other_types_are_refused_by_key_path_before_a_file_is_touched(value, tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, **SMALL)
    before = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=r"^checkpoint key config/layers/0(/0)*(\.\.\.)?: expected .*, got"
    ) as caught:
        save(path, config={"layers": [value]})
    assert "\n" not in str(caught.value) and ("at most 64 nested" in str(caught.value)) == (value is LOOP)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == before


def test_a_state_too_long_to_be_read_again_is_refused_when_it_is_saved():
    with pytest.raises(CheckpointError, match="header too large"):
        dumps({"history": "x" * 100_000_001})


# ---------------------------------------------------------------------- damaged and foreign files


def refused(blob):
    """Whether `loads` refuses the bytes, in one line."""
    try:
        loads(blob)
    except CheckpointError as error:
        assert "\n" not in str(error) and "expected" in str(error) and "found" in str(error)
        return True
    return False


def test_every_cut_is_refused():
    blob = dumps(SMALL)
    assert [n for n in range(len(blob)) if not refused(blob[:n])] == []


def test_every_flipped_bit_is_refused():
    blob = dumps(SMALL)
    accepted = []
    for bit in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        if not refused(bytes(damaged)):
            accepted.append(bit)
    assert accepted == []
    with pytest.raises(CheckpointError, match=r"expected SHA-256 b'\w{12}'..., found b'\w{12}'...: damaged"):
        loads(bytes([*blob[:-1], blob[-1] ^ 1]))


def test_a_zero_tail_and_extra_bytes_are_refused():
    blob = dumps(SMALL)
    tails = [blob[:-n] + bytes(n) for n in range(1, len(blob) + 1)]
    assert sum(tail != blob for tail in tails) > len(blob) - 10
    assert all(refused(tail) for tail in tails if tail != blob)
    assert all(refused(blob + extra) for extra in (b"\0", b"x", blob, bytes(4096)))


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "device", "empty", "sparse", "loop of links", "damaged"])
def test_what_is_no_whole_file_is_refused_at_once_by_name(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    in_place_of_a_file(kind, Path("model"))
    descriptors = len(os.listdir("/proc/self/fd"))
    with time_limit(5), pytest.raises(CheckpointError, match=r"^model: expected "):
        load("model")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_pipe_with_a_silent_writer_is_refused_at_once(tmp_path):
    path = tmp_path / "model"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    try:
        with time_limit(5), pytest.raises(CheckpointError, match="expected a regular file, found a pipe"):
            load(path)
    finally:
        os.close(writer)


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="expected a checkpoint, found no such file"):
        load(tmp_path / "model.safetensors")
    assert issubclass(CheckpointNotFoundError, FileNotFoundError)


class Canary:
    """Creates a file if it is ever unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_are_refused_and_never_executed(tmp_path):
    canary = tmp_path / "canary"
    pickles = [pickle.dumps({"model": Canary(canary)}, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:  # as torch.save writes it
        file.writestr("archive/data.pkl", pickles[2])
    head = b'{"__metadata__":{"scratchnet":'
    files = [
        *pickles,
        archive.getvalue(),
        zlib.compress(pickles[4]),
        len(head).to_bytes(8, "little") + head + pickles[4],
    ]
    for content in files:
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="expected a scratchnet checkpoint, found"):
            load(path)
    assert not canary.exists()
    pickle.loads(pickles[0])["model"].close()
    assert canary.exists(), "a canary that cannot sing proves nothing"


def test_a_safetensors_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="a safetensors file without its checksum"):
        load(path)


def forged(tree=None, tensors="", data=b"", metadata=None, version=1, length=None):
    """A file as an attacker would make it: any header, and a checksum that fits."""
    metadata = metadata or json.dumps({"sha256": "0" * 64, "format": version, "tree": tree}, separators=(",", ":"))
    text = '{"__metadata__":{"scratchnet":' + json.dumps(metadata) + "}" + tensors + "}"
    header = text.encode(errors="surrogateescape")
    blob = (len(header) if length is None else length).to_bytes(8, "little") + header + data
    return blob.replace(b"0" * 64, hashlib.sha256(blob).hexdigest().encode(), 1)


def tensor(shape, begin, end, dtype="F32", name="a"):
    return f',"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


ONE, X = {"x": {"$array": "a"}}, b"1234"
DEEP = '{"sha256":"' + "0" * 64 + '","format":1,"tree":'
DEPTH = 900 if sys.version_info < (3, 12) else 1_500  # JSON has room for it, reading the tree has not
FORGED = {
    "length 2^63": forged({}, length=2**63),
    "length 2^64-1": forged({}, length=2**64 - 1),
    "length past the end": forged({}, length=10_000),
    "length of nothing": forged({}, length=0),
    "deep JSON": forged(metadata=DEEP + "[" * 500_000),
    "deep JSON, closed": forged(metadata=DEEP + "[" * 100_000 + "]" * 100_000 + "}"),
    "deep JSON in the header": forged({}, ',"a":' + "[" * 100_000),
    "a tree deeper than Python's stack": forged(metadata=DEEP + '{"x":' * DEPTH + "1" + "}" * (DEPTH + 1)),
    "a number of a million digits": forged(metadata=DEEP + "1" * 1_000_000 + "}"),
    "no JSON": forged(metadata=DEEP),
    "no UTF-8": forged({}, ',"\udcff":1'),
    "no tree": forged(metadata=DEEP[:-8] + "}"),
    "a tree that is a list": forged([1]),
    "a tree that is a number": forged(1),
    "newer format": forged({}, version=2),
    "format in words": forged({}, version="1"),
    "overlapping tensors": forged(ONE, tensor([1], 0, 4) + tensor([1], 0, 4, name="b"), X),
    "overlapping in part": forged(ONE, tensor([2], 0, 8) + tensor([1], 4, 8, name="b"), X + X),
    "a hole": forged(ONE, tensor([1], 4, 8), X + X),
    "data that no tensor owns": forged({}, "", X),
    "offsets past the end": forged(ONE, tensor([2], 0, 8), X),
    "offsets backwards": forged(ONE, tensor([1], 4, 0), X),
    "negative shape": forged(ONE, tensor([-1], 0, 4), X),
    "shape and data differ": forged(ONE, tensor([3], 0, 4), X),
    "shape overflows to 0": forged(ONE, tensor([2**32, 2**32], 0, 0)),
    "shape overflows in bytes": forged(ONE, tensor([2**62], 0, 0)),
    "zero-size of absurd width": forged(ONE, tensor([0, 2**62], 0, 0)),
    "zero-size beyond int64": forged(ONE, tensor([0, 2**64 - 1], 0, 0)),
    "a hundred dimensions": forged(ONE, tensor([1] * 100, 0, 4), X),
    "a BF16 of four bytes": forged(ONE, tensor([1], 0, 4, "BF16"), X),
    "an F16 of eight bytes": forged(ONE, tensor([4], 0, 4, "F16"), X),
    "unknown dtype": forged(ONE, tensor([1], 0, 4, "F99"), X),
    "dtype that NumPy lacks": forged(ONE, tensor([4], 0, 4, "F8_E4M3"), X),
    "an array claimed twice": forged({"x": {"$array": "a"}, "y": {"$array": "a"}}, tensor([1], 0, 4), X),
    "an array that is not there": forged({"x": {"$array": "b"}}),
    "an array that nobody claims": forged({}, tensor([1], 0, 4), X),
    "an array named by a list": forged({"x": {"$array": []}}),
    "a tuple of nothing": forged({"x": {"$tuple": 5}}),
    "a float in other words": forged({"x": {"$float": "much"}}),
}


def test_a_forged_file_that_is_right_is_read():
    assert_same(loads(forged(ONE, tensor([1], 0, 4), X)), {"x": np.frombuffer(X, np.float32)})


@pytest.mark.parametrize("blob", FORGED.values(), ids=FORGED.keys())
def test_a_forged_file_is_refused_in_memory_bounded_by_its_size(blob):
    tracemalloc.start()
    try:
        assert refused(blob)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * len(blob) + 2**20  # a megabyte for the stack of a deep recursion


@pytest.mark.parametrize("version", [0, 2, 1.5, "1", None, [1]])
def test_another_format_is_refused_by_its_version(version):
    with pytest.raises(CheckpointError, match=re.escape(f"expected format 1, found {version!r}: another scratchnet")):
        loads(forged({}, version=version))


STATE_OF_0_1 = {
    "model": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])},
    "epoch": 3,
    "lr": 0.1,
    "best": math.inf,
    "widths": (784, 10),
    "notes": ["a", None],
}
FILE_OF_0_1 = (
    b'\xc0\x01\0\0\0\0\0\0{"__metadata__":{"scratchnet":"{\\"sha256\\":'
    b'\\"3bb36d71e237778cbc78e7f2a1c22642d0bc03f7b92f8a57b8ab1daf8bb25639\\",\\"format\\":1,\\"tree\\":{\\"model\\":'
    b'{\\"w\\":{\\"$array\\":\\"model/w\\"},\\"b\\":{\\"$array\\":\\"model/b\\"}},\\"epoch\\":3,\\"lr\\":0.1,\\"best\\":'
    b'{\\"$float\\":\\"inf\\"},\\"widths\\":{\\"$tuple\\":[784,10]},\\"notes\\":[\\"a\\",null]}}"},"model/w":'
    b'{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"model/b":{"dtype":"BOOL","shape":[2],'
    b'"data_offsets":[24,26]}}  \0\0\0\0\0\0\x80?\0\0\0@\0\0@@\0\0\x80@\0\0\xa0@\x01\0'
)


def test_a_checkpoint_of_version_0_1_is_read():
    assert_same(loads(FILE_OF_0_1), STATE_OF_0_1)


def test_a_state_is_written_as_version_0_1_did():
    """A change here needs a new number of the format."""
    assert dumps(STATE_OF_0_1) == FILE_OF_0_1
