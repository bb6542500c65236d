"""Checkpoints: a training state becomes one safetensors file that is whole or absent, and refused when damaged.

State comes from the Trainer (or any dict of modules, optimizers and plain values) and goes to disk; `load` gives it
back as plain Python and NumPy. Nothing is ever pickled or unpickled.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import stat
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import safetensors
import safetensors.numpy

from ..errors import CheckpointError, CheckpointNotFoundError, ConfigError

FORMAT = 1
MAX_DEPTH = 64  # nested containers; a state that contains itself ends here too
MAX_INT_BITS = 2048  # Python turns no longer integers into decimal digits under its strictest setting

# safetensors' name of each dtype that a checkpoint holds, and NumPy's name of the bytes behind it
DTYPES = {"BOOL": "<b1", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
DTYPES |= {"U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
DTYPES |= {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}

# Every checkpoint starts with 8 bytes of header length and this text, so the checksum has a fixed place in the file.
PREFIX = rb'{"__metadata__":{"scratchnet":"{\"sha256\":\"'
NO_DIGEST = b"0" * 64
DIGEST = slice(8 + len(PREFIX), 8 + len(PREFIX) + len(NO_DIGEST))

# What people hand to a loader by mistake, by its first bytes.
FOREIGN = {b"PK": "a zip archive (.pt or .npz)", b"\x93NUMPY": "a .npy array", b"\x89HDF": "an HDF5 file"}
FOREIGN |= {bytes([0x80, protocol]): "a pickle (.pkl, .pt or joblib)" for protocol in range(2, 6)}
FOREIGN |= {b"\x1f\x8b": "a gzip file", b"x\x9c": "a zlib stream (compressed joblib)"}

LOCK = ".scratchnet-lock"
TEMPORARY = ".scratchnet-tmp"  # the end of the name of a file that is being written
STEP_DIGITS = 12  # fixed, so that names sort as steps do


# ---------------------------------------------------------------------- a state <-> JSON and arrays


def _encode(node: Any, keys: tuple[str, ...], arrays: dict[str, np.ndarray]) -> Any:
    """`node` as JSON; its arrays go to `arrays` under their key path and leave `{"$array": key path}` behind."""
    where = "checkpoint key " + ("/".join(keys) or "(root)")
    if len(keys) > MAX_DEPTH:
        raise CheckpointError(f"{where[:80]}...: expected at most {MAX_DEPTH} nested levels, got more (a cycle?)")
    if hasattr(type(node), "state_dict"):
        node = node.state_dict()
    elif hasattr(type(node), "detach") and hasattr(type(node), "numpy"):
        node = node.detach().numpy()
    elif isinstance(node, np.number | np.bool_):
        node = node.item()
    match node:
        case np.ma.MaskedArray():
            raise CheckpointError(f"{where}: expected a plain array, got a masked array, whose mask would be lost")
        case np.ndarray():
            name = "/".join(map(_escape, keys))
            arrays[name] = _little_endian(node, where)
            return {"$array": name}
        case dict():
            return {_tag_safe(key, where): _encode(child, (*keys, key), arrays) for key, child in node.items()}
        case list():
            return [_encode(child, (*keys, str(i)), arrays) for i, child in enumerate(node)]
        case tuple() if type(node) is tuple:
            return {"$tuple": _encode(list(node), keys, arrays)}
        case float() if not math.isfinite(node):
            return {"$float": repr(float(node))}  # JSON has no word for these
        case int() if node.bit_length() > MAX_INT_BITS:
            raise CheckpointError(f"{where}: expected an integer of at most {MAX_INT_BITS} bits, got a longer one")
        case None | bool() | int() | float() | str():
            return node
    raise CheckpointError(
        f"{where}: expected an array, dict, list, tuple, str, int, float, bool, None or an object with state_dict(), "
        f"got {type(node).__name__}"
    )


def _decode(node: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Undo `_encode`. An array is taken out of `arrays`, so that no two leaves can claim the same one."""
    match node:
        case list():
            return [_decode(child, arrays) for child in node]
        case {"$array": name}:
            return arrays.pop(name)
        case {"$tuple": items}:
            return tuple(_decode(child, arrays) for child in items)
        case {"$float": text}:
            return float(text)
        case dict():
            return {key.removeprefix("$"): _decode(child, arrays) for key, child in node.items()}
    return node


def _tag_safe(key: Any, where: str) -> str:
    """A dict's key as a JSON key: a user's "$array" becomes "$$array", so that tags stay ours."""
    if not isinstance(key, str):
        raise CheckpointError(f"{where}: expected str keys, got {key!r} ({type(key).__name__})")
    return "$" + key if key.startswith("$") else key


def _escape(key: str) -> str:
    """A key as one part of a tensor name, percent-encoded as in a URL: "/" only ever separates."""
    escaped = quote(key, safe=" ", errors="surrogatepass")
    return escaped.replace("__metadata__", "%5F_metadata__")  # the one name that safetensors keeps for itself


def _little_endian(array: np.ndarray, where: str) -> np.ndarray:
    dtype = f"<{array.dtype.kind}{array.dtype.itemsize}"
    if dtype not in DTYPES.values():
        raise CheckpointError(
            f"{where}: expected a bool, integer, float16, float32 or float64 array, got {array.dtype}"
        )
    return np.asarray(array, dtype=dtype, order="C")


# ---------------------------------------------------------------------- a state <-> bytes


def dumps(state: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint: the same state gives the same bytes, on every machine.

    The file is plain safetensors. Arrays stand under their key path ("optimizer/state/0/momentum"); the rest is JSON in
    the one metadata key `scratchnet`, with the format version and the SHA-256 of the whole file, computed with zeros in
    place of its own 64 hex digits. (One key, because safetensors writes several in random order.)
    """
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(state, (), arrays)
    metadata = json.dumps({"sha256": NO_DIGEST.decode(), "format": FORMAT, "tree": tree}, separators=(",", ":"))
    try:
        blob = bytearray(safetensors.numpy.save(arrays, {"scratchnet": metadata}))
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"checkpoint of {len(arrays)} arrays and {len(metadata)} bytes of JSON: {error}"
        ) from error
    _check_head(blob, len(blob))
    blob[DIGEST] = hashlib.sha256(blob).hexdigest().encode()
    return bytes(blob)


def loads(blob: bytes) -> dict[str, Any]:
    """The state in the bytes of a checkpoint, arrays in memory of their own. Other bytes are a `CheckpointError`."""
    _check_head(blob, len(blob))
    _check_digest(blob)
    header = blob[8 : 8 + int.from_bytes(blob[:8], "little")]
    # From here on damage is ruled out, but a forged file, whose checksum fits, may still hold anything.
    try:
        tensors = safetensors.deserialize(blob)
        metadata = json.loads(json.loads(header)["__metadata__"]["scratchnet"])
        if metadata["format"] != FORMAT:
            raise CheckpointError(
                f"expected format {FORMAT}, found {metadata['format']!r}: another scratchnet wrote it"
            )
        arrays = {name: _as_array(**tensor) for name, tensor in tensors}
        state = _decode(metadata["tree"], arrays)
    except CheckpointError:
        raise
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"expected a valid safetensors header, found: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"expected a state tree, found: {type(error).__name__}: {str(error)[:200]}") from error
    if arrays or not isinstance(state, dict):
        raise CheckpointError(
            f"expected a dict that names every array, found {type(state).__name__}, {len(arrays)} left"
        )
    return state


def _as_array(dtype: str, shape: list[int], data: bytearray) -> np.ndarray:
    return np.ndarray(shape, DTYPES[dtype], buffer=data)


def _check_head(head: bytes | bytearray, size: int) -> None:
    """Refuse what `dumps` never wrote, from the first bytes and the file's size, before the rest is read."""
    length = int.from_bytes(head[:8], "little")
    if head[8:].startswith(PREFIX):
        if DIGEST.stop <= 8 + length <= size:
            return
        raise CheckpointError(f"expected a header of {length} bytes, found a file of {size}: damaged or cut short")
    if head[8:9] == b"{":
        raise CheckpointError("expected a scratchnet checkpoint, found a safetensors file without its checksum")
    kind = next((kind for magic, kind in FOREIGN.items() if head.startswith(magic)), "other bytes")
    raise CheckpointError(f"expected a scratchnet checkpoint, found {kind}: {size} bytes from {bytes(head[:8])!r}")


def _check_digest(blob: bytes) -> None:
    view = memoryview(blob)
    digest = hashlib.sha256(view[: DIGEST.start])
    digest.update(NO_DIGEST)
    digest.update(view[DIGEST.stop :])
    expected, found = bytes(view[DIGEST]), digest.hexdigest().encode()
    if expected != found:
        raise CheckpointError(f"expected SHA-256 {expected[:12]!r}..., found {found[:12]!r}...: damaged or cut short")


# ---------------------------------------------------------------------- files


def save(path: str | os.PathLike[str], /, **state: Any) -> None:
    """Write `state` to the file `path`: afterwards it holds either all of it, on disk, or what it held before.

    `sn.save("run/model.safetensors", model=model, optimizer=optimizer, epoch=3, config={"lr": 0.1}, history=[])`

    A state is a tree of dict (str keys), list, tuple, str, int, float, bool and None with arrays as leaves: tensors,
    and NumPy arrays of bool, integers or floats up to 64 bits, in any layout and byte order. Whatever has a
    `state_dict()` (modules, optimizers, schedulers) is stored as that; NumPy scalars become Python numbers. Anything
    else is a `CheckpointError` that names its key path, before a file is touched. A write that fails is one too, with
    the `OSError` as its `__cause__`.
    """
    blob = dumps(state)
    try:
        write_atomically(path, blob)
    except OSError as error:
        raise CheckpointError(f"{os.fsdecode(path)}: checkpoint not written: {error.strerror}") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `save` wrote to `path`: tensors as NumPy arrays, modules as dicts of them.

    A file that is missing (`CheckpointNotFoundError`), damaged anywhere, or of another kind is a one-line
    `CheckpointError`. The file is never executed, and memory stays within a small multiple of its size.
    """
    name = os.fsdecode(path)
    try:
        return loads(_read(name))
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(f"{name}: expected a checkpoint, found no such file") from error
    except OSError as error:
        raise CheckpointError(f"{name}: expected a readable file: {error.strerror}") from error


def _read(path: str) -> bytes:
    # Without O_NONBLOCK, opening a FIFO would wait for a writer for ever.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("expected a regular file, found a pipe or a device")
        _check_head(file.read(DIGEST.stop), status.st_size)  # before gigabytes of something else fill the memory
        file.seek(0)
        return file.read()


def write_atomically(path: str | os.PathLike[str], blob: bytes) -> None:
    """Write beside, fsync, rename over, fsync the folder: at every instant `path` is the old or the new file.

    Raises the `OSError` of the step that failed, with the temporary file gone.
    """
    target = os.path.realpath(os.fsdecode(path))
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel drops it if we die: a sign of life for cleaners
        rest = memoryview(blob)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    _fsync_folder(folder)


def _fsync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: a file system whose folders cannot be synced
            raise
    finally:
        os.close(descriptor)


class CheckpointFolder:
    """The newest `keep` checkpoints of one training run, in a folder that no other run can open meanwhile.

    `with CheckpointFolder("run") as checkpoints: checkpoints.save(step, model=model)` writes
    `run/checkpoint-000000000120.safetensors` and then, with that one safely on disk, removes the oldest. The lock dies
    with the process, so there is nothing to clean up after a crash; temporary files of dead writers go at the start.
    Files that are not named by this class are never touched.

    Raises `CheckpointError` when the folder is in use or cannot be made, `ConfigError` for `keep < 1`.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
        if keep < 1:
            raise ConfigError(f"keep: expected at least 1 checkpoint, got {keep}")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._damaged: set[int] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = _lock_folder(self.folder)
            _remove_dead_temporaries(self.folder)
        except OSError as error:
            raise CheckpointError(f"{folder}: expected a folder to write to: {error.strerror}") from error

    def steps(self) -> list[int]:
        """The steps that have a checkpoint here, oldest first, damaged ones included."""
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: expected a folder of checkpoints: {error.strerror}") from error
        matches = (re.fullmatch(rf"checkpoint-([0-9]{{{STEP_DIGITS}}})\.safetensors", name) for name in names)
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """The file of a step's checkpoint, there or not."""
        return self.folder / f"checkpoint-{step:0{STEP_DIGITS}d}.safetensors"

    def save(self, step: int, /, **state: Any) -> Path:
        """Save `state` as `sn.save` does; once it is on disk, remove what is older than the newest `keep` whole ones.

        A step before one that is already here would never be resumed from, so it is refused.
        """
        if self._lock is None:
            raise CheckpointError(f"{self.folder}: expected an open CheckpointFolder, got a closed one")
        if not (isinstance(step, int | np.integer) and 0 <= step < 10**STEP_DIGITS):
            raise ConfigError(f"step: expected an integer from 0 to 10**{STEP_DIGITS} - 1, got {step!r}")
        newest = max(self._whole_steps(), default=step)
        if step < newest:
            raise CheckpointError(
                f"{self.folder}: expected a step from {newest} on, which is saved here already, got {step}: "
                "resume from it, or train in another folder"
            )
        path = self.path(step)
        save(path, **state)
        self._damaged.discard(step)
        oldest_kept = self._whole_steps()[-self.keep :][0]
        for old in self.steps():
            if old < oldest_kept:
                self._remove(old)
        return path

    def load_latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, state), with a warning for every damaged one; None in an empty folder.

        Raises `CheckpointError` when there are checkpoints and all are damaged.
        """
        reasons = []
        for step in reversed(self.steps()):
            try:
                return step, load(self.path(step))
            except CheckpointError as error:
                self._damaged.add(step)
                reasons.append(str(error))
                warnings.warn(f"{error}: trying the one before it", RuntimeWarning, stacklevel=2)
        if reasons:
            raise CheckpointError(
                f"{self.folder}: expected a whole checkpoint, found only damaged ones: {'; '.join(reasons)}"
            )
        return None

    def close(self) -> None:
        """Let other runs use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _whole_steps(self) -> list[int]:
        return [step for step in self.steps() if step not in self._damaged]

    def _remove(self, step: int) -> None:
        try:
            os.unlink(self.path(step))
        except OSError as error:  # the new checkpoint is safe: no reason to stop the training
            warnings.warn(
                f"{self.path(step)}: old checkpoint not removed: {error.strerror}", RuntimeWarning, stacklevel=3
            )


def _lock_folder(folder: Path) -> int:
    """Hold the folder's lock file; the kernel lets go when the returned descriptor is closed, by us or by our death.

    The file itself stays: removing it would let two processes lock two different files of that name.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace")
        os.close(descriptor)
        if not isinstance(error, BlockingIOError):
            raise
        raise CheckpointError(f"{folder}: expected a free folder, found another run in it (process {owner})") from error
    with contextlib.suppress(OSError):  # only for the message above
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _remove_dead_temporaries(folder: Path) -> None:
    for path in folder.glob(f".*{TEMPORARY}"):
        # A living writer holds the lock of its file, so taking it fails; process numbers are reused, locks are not.
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
