"""The IDX format of MNIST: a few header bytes, then one array, big-endian; often gzipped.

A file is foreign until proven: a header's claims are compared with the bytes that are really there, and nothing is
allocated or inflated because a header asks for it. Layout: http://yann.lecun.com/exdb/mnist (0, 0, type, number of
dimensions, each dimension as a big-endian uint32, data).
"""

import gzip
import io
import math
import os
import stat
import struct
import sys
import zlib
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from ... import checks
from ...errors import DataError, DataNotFoundError, DtypeError, ShapeError
from ...formats.atomic import write_atomically

TYPES: dict[int, np.dtype] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
CODES = {dtype: code for code, dtype in TYPES.items()}

GZIP_MAGIC = b"\x1f\x8b"
MAX_BYTES = 1 << 31  # the largest array that `read_idx` unpacks by default
MAX_DIMENSIONS = 64  # NumPy's own limit
CHUNK = 1 << 16  # bytes of a gzip file taken at a time


def read_idx(path: str | os.PathLike, max_bytes: int = MAX_BYTES, mapped: bool = False) -> np.ndarray:
    """Read the array of an IDX file, gzipped or not (the content decides, not the name).

    path: a regular file. max_bytes: the largest array to accept, in bytes. mapped: leave the numbers of a file of bytes
    that is not gzipped on disk, whatever their size: a row takes memory when it is read, and the system may take that
    back. The file must not be cut short meanwhile.
    Returns a writable C-contiguous array in native byte order: uint8, int8, int16, int32, float32 or float64.
    Raises DataError for a file that is damaged, cut, too long or of another format, with the sizes expected and found,
    and DataNotFoundError where there is none. Memory stays below about twice what the file really holds.
    """
    path, max_bytes = checks.path("read_idx", path), checks.integer("read_idx: max_bytes", max_bytes, 0)
    mapped = checks.flag("read_idx: mapped", mapped)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: to open a FIFO is to wait for its writer
            raise DataError(f"{path}: expected a regular file, found a folder, pipe or device")
        with open(path, "rb") as file:
            array = _map(file, path) if mapped else None
            file.seek(0)
            return parse_idx(file, path, max_bytes) if array is None else array
    except FileNotFoundError:
        raise DataNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def parse_idx(file: BinaryIO, name: str | os.PathLike, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """`read_idx` for an open, seekable binary file; `name` is what error messages call it."""
    magic = file.read(2)
    file.seek(0)
    stream = _Inflater(file) if magic == GZIP_MAGIC else _Plain(file)
    try:
        array = _parse(stream, name, max_bytes)
    except zlib.error as error:
        raise DataError(f"{name}: damaged gzip data ({error})") from error
    stream.expect_end(name)
    return array


def write_idx(path: str | os.PathLike, array: ArrayLike) -> None:
    """Write an array as an IDX file, gzipped if `path` ends in .gz; equal arrays give equal bytes.

    array: uint8, int8, int16, int32, float32 or float64 of any layout and byte order, with at least one dimension.
    The file appears whole or not at all. Raises DtypeError, ShapeError, or DataError where nothing can be written.
    """
    path, array = checks.path("write_idx", path), checks.array("write_idx", array, "biufcOSUMmV")
    data = idx_header(array) + array.astype(array.dtype.newbyteorder(">"), copy=False).tobytes()
    if path.endswith(".gz"):
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
            file.write(data)
        data = packed.getvalue()
    write_whole(path, data)


def idx_header(array: np.ndarray) -> bytes:
    """The bytes that stand before the data of `array` in an IDX file."""
    code = CODES.get(array.dtype.newbyteorder(">"))
    if code is None:
        raise DtypeError(f"IDX: expected uint8, int8, int16, int32, float32 or float64, got {array.dtype}")
    if array.ndim == 0 or max(array.shape) >= 1 << 32:
        raise ShapeError(f"IDX: expected 1 to {MAX_DIMENSIONS} dimensions below 2**32, got shape {array.shape}")
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Write bytes so that others see the whole file or none. Raises DataError if that fails."""
    try:
        write_atomically(path, data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _map(file, name):
    """The array where it lies in the file; None if it has to be unpacked, or is damaged."""
    size = os.fstat(file.fileno()).st_size
    if file.read(2) == GZIP_MAGIC or size == 0:
        return None
    dtype, shape = _parse_header(_Plain(file), name)
    if dtype.itemsize > 1 or size != 4 + 4 * len(shape) + math.prod(shape) or 0 in shape:
        return None
    return np.asarray(np.memmap(file, dtype, "c", 4 + 4 * len(shape), shape))


def _parse_header(stream, name):
    """The dtype as it lies in the file, and the shape."""
    head = stream.read(4)
    if len(head) < 4:
        raise DataError(f"{name}: expected a header of at least 4 bytes, found {len(head)}")
    zeros, code, ndim = bytes(head[:2]), head[2], head[3]
    if zeros != b"\0\0":
        raise DataError(f"{name}: not an IDX file: expected it to start with bytes 00 00, found {zeros.hex(' ')}")
    if code not in TYPES:
        raise DataError(f"{name}: expected an IDX type of 08, 09, 0b, 0c, 0d or 0e, found {code:02x}")
    if not 1 <= ndim <= MAX_DIMENSIONS:
        raise DataError(f"{name}: expected 1 to {MAX_DIMENSIONS} dimensions, found {ndim}")
    sizes = stream.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise DataError(f"{name}: expected {4 * ndim} bytes of dimensions, found {len(sizes)}")

    return TYPES[code], struct.unpack(f">{ndim}I", sizes)


def _parse(stream, name, max_bytes):
    dtype, shape = _parse_header(stream, name)
    expected = dtype.itemsize * math.prod(shape)  # Python integers do not overflow
    content = f"{dtype.newbyteorder('=')} {shape}"
    if dtype.itemsize * math.prod(size or 1 for size in shape) > sys.maxsize:  # NumPy refuses it even with a zero in it
        raise DataError(f"{name}: expected dimensions whose product fits in memory, found {content}")
    if expected > max_bytes:
        raise DataError(
            f"{name}: expected at most {max_bytes} bytes of data (`max_bytes`), found a claim of {expected}"
        )
    data = stream.read(expected + 1)  # one more, to see that there is no more
    if len(data) != expected:
        found = f"{len(data)}" if len(data) < expected else f"at least {len(data)}"
        raise DataError(f"{name}: expected {expected} bytes of data for {content}, found {found}")
    array = np.frombuffer(data, dtype)
    if sys.byteorder == "little":
        array.byteswap(inplace=True)
    return array.view(dtype.newbyteorder("=")).reshape(shape)


class _Plain:
    """The bytes of a file: `read(n)` gives n of them, or fewer where it ends, and allocates no more than it gives."""

    def __init__(self, file):
        self._file = file
        self._left = file.seek(0, os.SEEK_END)
        file.seek(0)

    def read(self, n):
        buffer = bytearray(min(n, self._left))
        del buffer[self._file.readinto(buffer) :]
        self._left -= len(buffer)
        return buffer

    def expect_end(self, name):
        """`_parse` asked for one byte more than there should be, so it has seen the end."""


class _Inflater:
    """The content of a gzip file of one member, inflated no further than asked for; zlib checks CRC and length."""

    def __init__(self, file):
        self._file = file
        self._zlib = zlib.decompressobj(wbits=31)

    def read(self, n):
        content = bytearray()
        while len(content) < n and not self._zlib.eof:
            packed = self._zlib.unconsumed_tail or self._file.read(CHUNK)
            piece = self._zlib.decompress(packed, n - len(content))
            content += piece
            if not packed and not piece:
                break
        return content

    def expect_end(self, name):
        if not self._zlib.eof:
            raise DataError(f"{name}: expected the gzip data to end in a checksum, found that it breaks off")
        here = self._file.tell() - len(self._zlib.unused_data)
        size = self._file.seek(0, os.SEEK_END)
        if size != here:
            raise DataError(f"{name}: expected {here} bytes of gzip data, found {size - here} more bytes after its end")
