"""A checkpoint: a training state becomes one safetensors file that is whole or absent, and refused when damaged.

State comes from the Trainer (or any dict of modules, optimizers and plain values) and goes to disk; `load` gives it
back as plain Python and NumPy. Nothing is ever pickled or unpickled.
"""

import hashlib
import json
import math
import os
import stat
from typing import Any
from urllib.parse import quote

import numpy as np
import safetensors
import safetensors.numpy

from .. import checks
from ..errors import CheckpointError, CheckpointNotFoundError
from ..kernels.signatures import FLOATS, HALVES
from .atomic import write_atomically

FORMAT = 1
MAX_DEPTH = 64  # nested containers; a state that contains itself ends here too
MAX_INT_BITS = 2048  # Python turns no longer integers into decimal digits under its strictest setting

# safetensors' name of each dtype that a checkpoint holds, and NumPy's name of the bytes behind it
DTYPES = {"BOOL": "<b1", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
DTYPES |= {"U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
DTYPES |= {"I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "BF16": "bfloat16"}

# Every checkpoint starts with 8 bytes of header length and this text, so the checksum has a fixed place in the file.
PREFIX = rb'{"__metadata__":{"scratchnet":"{\"sha256\":\"'
NO_DIGEST = b"0" * 64
DIGEST = slice(8 + len(PREFIX), 8 + len(PREFIX) + len(NO_DIGEST))

# What people hand to a loader by mistake, by its first bytes.
FOREIGN = {b"PK": "a zip archive (.pt or .npz)", b"\x93NUMPY": "a .npy array", b"\x89HDF": "an HDF5 file"}
FOREIGN |= {bytes([0x80, protocol]): "a pickle (.pkl, .pt or joblib)" for protocol in range(2, 6)}
FOREIGN |= {b"\x1f\x8b": "a gzip file", b"x\x9c": "a zlib stream (compressed joblib)"}


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
    dtype = "bfloat16" if array.dtype in HALVES[:1] else f"<{array.dtype.kind}{array.dtype.itemsize}"
    if dtype not in DTYPES.values():
        raise CheckpointError(
            f"{where}: expected an array of bool, integers or {', '.join(map(str, FLOATS))}, got {array.dtype}"
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
    name, blob = checks.path("save", path), dumps(state)
    try:
        write_atomically(name, blob)
    except OSError as error:
        raise CheckpointError(f"{name}: checkpoint not written: {error.strerror}") from error


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state that `save` wrote to `path`: tensors as NumPy arrays, modules as dicts of them.

    A file that is missing (`CheckpointNotFoundError`), damaged anywhere, or of another kind is a one-line
    `CheckpointError`. The file is never executed, and memory stays within a small multiple of its size.
    """
    name = checks.path("load", path)
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
