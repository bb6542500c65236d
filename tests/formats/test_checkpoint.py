"""Checkpoints: what is saved comes back, a damaged file never does, and a crash leaves the old or the new one whole.

Oracles: the safetensors package reading our files by itself, hashlib, the bytes on disk, and a real process that is
killed, out of disk space or holding the lock (tests/programs/checkpoint_victim.py).
"""

import contextlib
import copy
import errno
import hashlib
import io
import json
import math
import os
import pickle
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tracemalloc
import urllib.parse
import warnings
import zipfile
import zlib
from pathlib import Path

import checkpoint_victim as victim
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scratchnet.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from scratchnet.formats import checkpoint
from scratchnet.formats.checkpoint import CheckpointFolder, dumps, load, loads, save

SMALL = {"w": np.array([1.5, -2.0], np.float32), "epoch": 3}


def run_victim(mode, folder, *, prefix=(), **env):
    """The finished process of `checkpoint_victim.py MODE FOLDER`."""
    command = [*prefix, sys.executable, victim.__file__, mode, str(folder)]
    return subprocess.run(command, env=victim_env(**env), capture_output=True, text=True, timeout=60)


def victim_env(**env):
    return {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[2]), **env}


@contextlib.contextmanager
def time_limit(seconds):
    """A hang becomes a failure."""

    def fail(*_):
        raise AssertionError(f"still waiting after {seconds} s")  # no TimeoutError: that is an OSError, and caught

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


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
arrays = st.builds(
    lambda array, layout: LAYOUTS[layout](array),
    hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
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


def assert_same(got, want):
    """The same tree: types, order of keys, every bit of every float and array."""
    if isinstance(want, np.ndarray):
        assert (got.dtype, got.shape) == (want.dtype.newbyteorder("="), want.shape)
        assert got.tobytes() == want.astype(got.dtype).tobytes()
        assert got.flags.writeable and got.flags.c_contiguous and got.flags.aligned
        return
    assert type(got) is type(want)
    if isinstance(want, dict):
        assert list(got) == list(want)
        got, want = list(got.values()), list(want.values())
    if isinstance(want, list | tuple):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert_same(one, other)
    elif isinstance(want, float):
        assert (math.isnan(got) and math.isnan(want)) or got.hex() == want.hex()
    else:
        assert got == want


@settings(deadline=None, max_examples=20 * settings().max_examples)  # trees vary more than arrays
@given(states)
def test_a_loaded_state_is_the_saved_state(state):
    before = copy.deepcopy(state)
    blob = dumps(state)
    assert_same(loads(blob), before)
    assert dumps(loads(blob)) == blob == dumps(before), "the same state, the same bytes"


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
    assert "\n" not in str(caught.value)
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


def test_a_zero_tail_and_extra_bytes_are_refused():
    blob = dumps(SMALL)
    tails = [blob[:-n] + bytes(n) for n in range(1, len(blob) + 1)]
    assert sum(tail != blob for tail in tails) > len(blob) - 10
    assert all(refused(tail) for tail in tails if tail != blob)
    assert all(refused(blob + extra) for extra in (b"\0", b"x", blob, bytes(4096)))


def damage(path):
    """Flip one bit in the middle of the file."""
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def in_place_of_a_file(kind, path):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "empty":
        path.touch()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a terabyte of zeros that takes no disk
    elif kind == "loop of links":
        path.symlink_to(path)
    else:
        path.write_bytes(dumps(SMALL))
        damage(path)


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
FORGED = {
    "length 2^63": forged({}, length=2**63),
    "length 2^64-1": forged({}, length=2**64 - 1),
    "length past the end": forged({}, length=10_000),
    "length of nothing": forged({}, length=0),
    "deep JSON": forged(metadata=DEEP + "[" * 500_000),
    "deep JSON, closed": forged(metadata=DEEP + "[" * 100_000 + "]" * 100_000 + "}"),
    "deep JSON in the header": forged({}, ',"a":' + "[" * 100_000),
    "a tree deeper than Python's stack": forged(metadata=DEEP + '{"x":' * 900 + "1" + "}" * 901),
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
    "unknown dtype": forged(ONE, tensor([1], 0, 4, "F99"), X),
    "dtype that NumPy lacks": forged(ONE, tensor([2], 0, 4, "BF16"), X),
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


def test_a_newer_format_is_named():
    with pytest.raises(CheckpointError, match="expected format 1, found 2"):
        loads(FORGED["newer format"])


# ---------------------------------------------------------------------- faults while saving


def record_calls(monkeypatch):
    """The system calls that matter for durability, in order, with the kind of what they were called on."""
    calls = []
    write, fsync, replace, unlink = os.write, os.fsync, os.replace, os.unlink

    def kind(descriptor):
        return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"

    monkeypatch.setattr(os, "write", lambda fd, data: (calls.append(f"write {kind(fd)}"), write(fd, data))[1])
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(f"fsync {kind(fd)}"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    monkeypatch.setattr(os, "unlink", lambda path: (calls.append("unlink"), unlink(path))[1])
    return calls


def test_old_checkpoints_go_after_the_new_one_is_on_disk_and_its_name_too(tmp_path, monkeypatch):
    with CheckpointFolder(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, **SMALL)
        calls = record_calls(monkeypatch)
        checkpoints.save(2, **SMALL)
    assert calls == ["write file", "fsync file", "replace", "fsync folder", "unlink"]


def fail_nth(monkeypatch, name, n, number):
    """Make the n-th call of `os.name` fail; the returned list fills when it does."""
    original, calls, fired = getattr(os, name), iter(range(10**6)), []

    def call(*args, **kwargs):
        if next(calls) == n:
            fired.append(n)
            if name == "close":
                original(*args, **kwargs)  # Linux frees the descriptor even then
            raise OSError(number, os.strerror(number))
        if name == "write":
            return original(args[0], args[1][:200])  # a disk may take less than it is given
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, call)
    return fired


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize(
    ("name", "calls"), [("open", 2), ("write", 4), ("fsync", 2), ("replace", 1), ("close", 2), ("unlink", 0)]
)
def test_any_failing_call_leaves_the_old_or_the_new_file_and_nothing_else(tmp_path, monkeypatch, name, calls, number):
    path, new = tmp_path / "model.safetensors", {"x": np.arange(50.0)}
    failures = 0
    for n in range(100):
        save(path, **SMALL)
        with monkeypatch.context() as patched:
            fired = fail_nth(patched, name, n, number)
            try:
                save(path, **new)
                error = None
            except CheckpointError as caught:
                error = caught
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_bytes() in (dumps(SMALL), dumps(new))
        if not fired:
            break
        failures += 1
        assert str(path) in str(error) and os.strerror(number) in str(error)
        assert error.__cause__.errno == number
    assert error is None and path.read_bytes() == dumps(new), "without a fault, the new file"
    assert failures >= calls


def test_a_folder_that_cannot_be_synced_at_all_is_no_failure(tmp_path, monkeypatch):
    fail_nth(monkeypatch, "fsync", 1, errno.EINVAL)
    save(tmp_path / "model.safetensors", **SMALL)
    assert_same(load(tmp_path / "model.safetensors"), SMALL)


def test_ctrl_c_during_a_save_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save(path, **SMALL)

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(path, x=1)
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == dumps(SMALL)


@pytest.mark.parametrize("target", ["missing/model.safetensors", "folder"])
def test_a_place_that_takes_no_file_is_refused_by_name(target, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=f"{target}: checkpoint not written") as caught:
        save(tmp_path / target, **SMALL)
    assert isinstance(caught.value.__cause__, OSError)
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == []


def test_a_link_stays_a_link_to_the_new_checkpoint(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/model.safetensors")
    save(tmp_path / "link", **SMALL)
    assert (tmp_path / "link").is_symlink()
    assert_same(load(tmp_path / "real" / "model.safetensors"), SMALL)


def test_a_kill_at_any_point_leaves_whole_checkpoints_that_never_go_back(tmp_path):
    finished = run_victim("kill_at_each_call", tmp_path)
    assert finished.returncode == 0, finished.stderr
    moments = json.loads(finished.stdout)
    assert [status for _, status in moments].count(0) == 2, "the last child of each round was not killed"
    assert len(moments) > 40
    progress = {"before": [], "after": []}
    temporaries = 0
    outcomes = [(1, victim.OLD), (1, victim.NEW), (2, victim.NEWEST)]
    for name, _ in moments:
        folder = tmp_path / name
        temporaries += len(list(folder.glob(f".*{checkpoint.TEMPORARY}")))
        for path in folder.glob("*.safetensors"):
            load(path)
        with CheckpointFolder(folder) as checkpoints, warnings.catch_warnings():
            warnings.simplefilter("error")
            step, state = checkpoints.load_latest()
        assert list(folder.glob(f".*{checkpoint.TEMPORARY}")) == []
        match = [i for i, (at, want) in enumerate(outcomes) if at == step and np.array_equal(state["x"], want["x"])]
        progress[name.split("-")[0]] += match
    for reached in progress.values():
        assert len(reached) == len(moments) // 2
        assert reached == sorted(reached) and set(reached) == {0, 1, 2}
    assert temporaries > 10, "some kills came in the middle of a write"


def test_a_file_size_limit_leaves_the_old_checkpoint(tmp_path):
    report = json.loads(run_victim("limit_the_file_size", tmp_path).stdout)
    assert report["whole"] and report["files"] == ["model.safetensors"]
    assert "checkpoint not written: File too large" in report["error"][0] and report["error"][1] == errno.EFBIG


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    mount = f'mount -t tmpfs -o size=64k none "{tmp_path}" && echo mounted && exec "$@"'
    finished = run_victim("fill_the_disk", tmp_path, prefix=("unshare", "-rm", "sh", "-c", mount, "sh"))
    if "mounted" not in finished.stdout:
        pytest.skip("this machine lets nobody mount a file system")
    report = json.loads(finished.stdout.splitlines()[1])
    assert report["whole"] and report["files"] == ["model.safetensors"]
    assert "No space left on device" in report["error"][0] and report["error"][1] == errno.ENOSPC


# ---------------------------------------------------------------------- a folder of checkpoints


def test_the_newest_checkpoints_stay_and_foreign_files_are_never_touched(tmp_path):
    foreign = ["notes.txt", "checkpoint-7.safetensors", "checkpoint-000000000001.safetensors.bak", ".other-tmp"]
    for name in foreign:
        (tmp_path / name).write_text(name)
    with CheckpointFolder(tmp_path, keep=2) as checkpoints:
        assert checkpoints.load_latest() is None
        paths = [checkpoints.save(step, loss=step / 2) for step in (0, 5, 5, 10, 100)]
        assert checkpoints.steps() == [10, 100]
        assert_same(checkpoints.load_latest(), (100, {"loss": 50.0}))
    assert paths[-1] == tmp_path / "checkpoint-000000000100.safetensors"
    assert all((tmp_path / name).read_text() == name for name in foreign)
    assert set(os.listdir(tmp_path)) == {paths[-2].name, paths[-1].name, checkpoint.LOCK, *foreign}


@pytest.mark.parametrize("kind", ["folder", "pipe", "empty", "damaged"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_previous_one_used(kind, tmp_path):
    with CheckpointFolder(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, x=1)
        checkpoints.save(2, x=2)
        in_place_of_a_file(kind, checkpoints.path(3))
        with time_limit(5), pytest.warns(RuntimeWarning) as caught:
            assert checkpoints.load_latest() == (2, {"x": 2})
        assert [str(checkpoints.path(3)) in str(w.message) and "\n" not in str(w.message) for w in caught] == [True]


def test_training_goes_on_over_a_damaged_checkpoint(tmp_path):
    with CheckpointFolder(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, x=1)
        checkpoints.path(9).write_bytes(b"not one of ours")
        with pytest.warns(RuntimeWarning):
            checkpoints.load_latest()
        checkpoints.save(2, x=2)
        assert checkpoints.steps() == [2, 9], "the new one is kept, the damaged one counts for nothing"
        checkpoints.save(9, x=9)
        assert checkpoints.load_latest() == (9, {"x": 9})
        assert checkpoints.steps() == [9]


def test_nothing_but_damaged_checkpoints_is_an_error_that_names_them(tmp_path):
    with CheckpointFolder(tmp_path) as checkpoints:
        for step in (1, 2):
            damage(checkpoints.save(step, x=step))
        with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError, match="damaged") as caught:
            checkpoints.load_latest()
        assert all(str(checkpoints.path(step)) in str(caught.value) for step in (1, 2))
        assert checkpoints.steps() == [1, 2]


def test_a_step_before_a_saved_one_is_refused(tmp_path):
    with CheckpointFolder(tmp_path) as checkpoints:
        checkpoints.save(20, x=1)
        with pytest.raises(CheckpointError, match=r"expected a step from 20 on, .* got 3"):
            checkpoints.save(3, x=2)
        assert checkpoints.load_latest() == (20, {"x": 1})


def test_an_old_checkpoint_that_cannot_be_removed_is_only_a_warning(tmp_path, monkeypatch):
    with CheckpointFolder(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, x=1)
        fail_nth(monkeypatch, "unlink", 0, errno.EIO)
        with pytest.warns(RuntimeWarning, match="old checkpoint not removed"):
            checkpoints.save(2, x=2)
        assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("step", [-1, 10**12, 1.0, "1", None])
def test_a_step_is_an_integer_that_fits_its_name(step, tmp_path):
    with CheckpointFolder(tmp_path) as checkpoints, pytest.raises(ConfigError, match="step: expected an integer"):
        checkpoints.save(step)


def test_arguments_of_a_folder_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="keep: expected at least 1"):
        CheckpointFolder(tmp_path, keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: expected a folder to write to: File exists"):
        CheckpointFolder(tmp_path / "file")


def test_a_closed_or_removed_folder_says_so(tmp_path):
    checkpoints = CheckpointFolder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="expected a folder of checkpoints: No such file"):
        checkpoints.save(1)
    checkpoints.close()
    checkpoints.close()
    with pytest.raises(CheckpointError, match="expected an open CheckpointFolder"):
        checkpoints.save(1)


def test_two_runs_in_one_process_cannot_share_a_folder(tmp_path):
    with CheckpointFolder(tmp_path):
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            with pytest.raises(CheckpointError, match=f"another run in it .process {os.getpid()}"):
                CheckpointFolder(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == descriptors
    CheckpointFolder(tmp_path).close()


def test_a_living_run_keeps_its_lock_and_temporary_file_and_a_dead_one_loses_both(tmp_path):
    command = [sys.executable, victim.__file__, "hold_the_lock", str(tmp_path)]
    with subprocess.Popen(command, env=victim_env(), stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "locked\n"
            with pytest.raises(CheckpointError, match=f"another run in it .process {other.pid}"):
                CheckpointFolder(tmp_path)
            (temporary,) = tmp_path.glob(f".model.safetensors.{other.pid}.*{checkpoint.TEMPORARY}")
            checkpoint._remove_dead_temporaries(tmp_path)
            assert temporary.exists(), "its writer lives"
        finally:
            other.kill()
    with CheckpointFolder(tmp_path) as checkpoints:
        assert not temporary.exists()
        assert checkpoints.load_latest() is None
    assert os.listdir(tmp_path) == [checkpoint.LOCK]
