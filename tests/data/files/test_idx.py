"""read_idx and write_idx: what is written comes back; a damaged file gives a DataError, in little memory and time."""

import gzip
import math
import mmap
import os
import struct
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scratchnet.data import TensorDataset, read_idx, write_idx
from scratchnet.errors import DataError, DataNotFoundError, DtypeError, ShapeError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}

LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "reversed": lambda a: np.flip(a).copy()[(slice(None, None, -1),) * a.ndim],
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}

arrays = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


def encode(code, shape, data=b""):
    """An IDX file by the letter of the format."""
    return bytes([0, 0, code, len(shape)]) + b"".join(struct.pack(">I", n) for n in shape) + data


def decode(content):
    """The strictest and simplest reader: the array, or None if the bytes are not exactly an IDX file."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in DTYPES or not 1 <= content[3] <= 64:
        return None
    ndim, dtype = content[3], np.dtype(DTYPES[content[2]]).newbyteorder(">")
    if len(content) < 4 + 4 * ndim:
        return None
    shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    data = content[4 + 4 * ndim :]
    if len(data) != math.prod(shape) * dtype.itemsize:
        return None
    words = {1: "B", 2: "H", 4: "I", 8: "Q"}[dtype.itemsize]  # integers: a Python float would change signalling NaNs
    values = [value[0] for value in struct.iter_unpack(f">{words}", data)]
    return np.array(values, f"u{dtype.itemsize}").view(dtype.newbyteorder("=")).reshape(shape)


def written(folder, content, name="file"):
    path = folder / name
    path.write_bytes(content)
    return path


SMALL = encode(0x0B, (2, 3), struct.pack(">6h", 1, -2, 300, -400, 5, 6))


# --- round trips ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(array=arrays, layout=st.sampled_from(list(LAYOUTS)), name=st.sampled_from(["a", "a.gz"]))
def test_what_is_written_comes_back_bit_for_bit(tmp_path_factory, array, layout, name):
    path = tmp_path_factory.mktemp("idx") / name
    write_idx(path, LAYOUTS[layout](array))
    back = read_idx(path)
    assert back.dtype == array.dtype and back.dtype.isnative
    assert back.shape == array.shape and back.tobytes() == array.tobytes()
    assert back.flags.c_contiguous and back.flags.writeable


@settings(deadline=None, max_examples=40)
@given(array=arrays)
def test_the_file_is_big_endian_by_the_letter_of_the_format(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("idx") / "a"
    write_idx(path, array)
    code = {dtype: code for code, dtype in DTYPES.items()}[array.dtype.str[1:]]
    data = b"".join(struct.pack(f">{array.dtype.char}", value) for value in array.ravel().tolist())
    if not (array.dtype.kind == "f" and np.isnan(array).any()):  # a Python float need not keep the payload of a NaN
        assert path.read_bytes() == encode(code, array.shape, data)


def test_a_known_file_reads_as_its_numbers(tmp_path):
    np.testing.assert_array_equal(read_idx(written(tmp_path, SMALL)), np.array([[1, -2, 300], [-400, 5, 6]], np.int16))


def test_equal_arrays_give_equal_gzip_bytes_with_no_time_or_name_in_them(tmp_path):
    write_idx(tmp_path / "a.gz", np.arange(9, dtype=np.uint8))
    write_idx(tmp_path / "b.gz", np.arange(9, dtype=np.uint8))
    packed = (tmp_path / "a.gz").read_bytes()
    assert packed == (tmp_path / "b.gz").read_bytes()
    assert packed[3] == 0 and packed[4:8] == bytes(4)  # flags: no name; modification time: none
    assert gzip.decompress(packed) == encode(0x08, (9,), bytes(range(9)))


@pytest.mark.parametrize("name", ["a", "a.gz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_the_content_decides_whether_a_file_is_gzipped(tmp_path, name, pack):
    assert read_idx(written(tmp_path, pack(SMALL), name)).shape == (2, 3)


# --- damage ---------------------------------------------------------------------------------------------------------


def assert_right_or_data_error(path, expected):
    """`expected` None: a DataError of one line that names the file. Else the very array."""
    try:
        array = read_idx(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert expected is None, f"refused a good file: {error}"
    else:
        assert expected is not None, "accepted a damaged file"
        assert array.dtype == expected.dtype and array.shape == expected.shape
        assert array.tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=150)
@given(array=arrays, data=st.data())
def test_any_damage_to_a_plain_file_gives_what_the_bytes_say_or_a_data_error(tmp_path_factory, array, data):
    path = tmp_path_factory.mktemp("idx") / "a"
    write_idx(path, array)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1), "at")
    match data.draw(st.sampled_from(["none", "flip", "cut", "append", "insert"]), "damage"):
        case "flip":
            content[at] ^= data.draw(st.integers(1, 255), "mask")
        case "cut":
            del content[at:]
        case "append":
            content += data.draw(st.binary(min_size=1, max_size=9), "tail")
        case "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9), "piece")
    path.write_bytes(content)
    if content[:2] != b"\x1f\x8b":
        assert_right_or_data_error(path, decode(bytes(content)))


def test_every_cut_of_a_gzip_file_is_refused(tmp_path):
    packed = gzip.compress(SMALL)
    for length in range(len(packed)):
        assert_right_or_data_error(written(tmp_path, packed[:length]), None)


def test_every_flipped_bit_of_a_gzip_file_is_refused_or_harmless(tmp_path):
    packed = gzip.compress(SMALL)
    harmless = 0
    for bit in range(8 * len(packed)):
        content = bytearray(packed)
        content[bit // 8] ^= 1 << bit % 8
        try:
            assert read_idx(written(tmp_path, content)).tobytes() == decode(SMALL).tobytes()
            harmless += 1
        except DataError:
            pass
    assert 48 <= harmless <= 60  # time stamp, compression hint and system in the gzip header, and little else


GOOD = encode(0x08, (2, 2), b"abcd")

FAULTS = {
    "empty": (b"", "at least 4 bytes, found 0"),
    "cut in the magic number": (b"\0\0\x08", "at least 4 bytes, found 3"),
    "cut in the dimensions": (GOOD[:9], "expected 8 bytes of dimensions, found 5"),
    "cut in the data": (GOOD[:-1], r"expected 4 bytes of data for uint8 \(2, 2\), found 3"),
    "no data": (GOOD[:12], "expected 4 bytes of data .* found 0"),
    "one byte more": (GOOD + b"x", "expected 4 bytes of data .* found at least 5"),
    "bad magic": (b"PK" + GOOD[2:], "expected it to start with bytes 00 00, found 50 4b"),
    "unknown type": (encode(0x0A, (1,), b"a"), "type of 08, .* found 0a"),
    "no dimensions": (encode(0x08, (), b"a"), "1 to 64 dimensions, found 0"),
    "255 dimensions": (encode(0x08, (1,) * 255, b"a"), "1 to 64 dimensions, found 255"),
    "65 dimensions": (encode(0x08, (1,) * 65, b"a"), "1 to 64 dimensions, found 65"),
    "a huge dimension": (encode(0x08, (2**31,), b"a"), "expected 2147483648 bytes .* found 1"),
    "a huge claim": (encode(0x08, (2**32 - 1,), b"a"), "at most 2147483648 bytes .* claim of 4294967295"),
    "product over 2**64": (encode(0x0E, (2**32 - 1,) * 3), "product fits in memory"),
    "product wraps to 0": (encode(0x08, (2**16,) * 4), "product fits in memory"),
    "product wraps to 4": (encode(0x08, (2**31 + 1, 2**31 + 1, 4), b"abcd"), "product fits in memory"),
    "zero times huge": (encode(0x08, (0, 2**32 - 1, 2**32 - 1)), "product fits in memory"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_header_that_lies_is_refused_with_what_was_expected_and_found(tmp_path, fault, pack):
    content, message = FAULTS[fault]
    with pytest.raises(DataError, match=message):
        read_idx(written(tmp_path, pack(content)))


PACKED = gzip.compress(GOOD)

GZIP_FAULTS = {
    "bad CRC": (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "damaged gzip data .*incorrect data check"),
    "bad length": (PACKED[:-4] + b"\0\0\0\1", "damaged gzip data .*incorrect length check"),
    "no CRC": (PACKED[:-8], "expected the gzip data to end in a checksum"),
    "only the magic": (PACKED[:2], "at least 4 bytes, found 0"),
    "not gzip after the magic": (b"\x1f\x8b" + bytes(40), "damaged gzip data"),
    "zlib stream with gzip magic": (b"\x1f\x8b" + zlib.compress(GOOD), "damaged gzip data"),
    "trailing junk": (PACKED + b"junk", f"expected {len(PACKED)} bytes of gzip data, found 4 more bytes"),
    "trailing zeros": (PACKED + bytes(200_000), "found 200000 more bytes"),
    "a second member": (PACKED + PACKED, f"found {len(PACKED)} more bytes"),
    "gzip in gzip": (gzip.compress(PACKED), "start with bytes 00 00, found 1f 8b"),
}


@pytest.mark.parametrize("fault", GZIP_FAULTS)
def test_a_damaged_gzip_stream_is_refused(tmp_path, fault):
    content, message = GZIP_FAULTS[fault]
    with pytest.raises(DataError, match=message):
        read_idx(written(tmp_path, content))


# --- memory and time ------------------------------------------------------------------------------------------------

MIB = 1 << 20
ZEROS = bytes(64 * MIB)


BOMBS = {
    "plain, claims 2 GiB, holds nothing": encode(0x08, (2**31,)),
    "gzip, claims 2 GiB, holds nothing": gzip.compress(encode(0x08, (2**31,))),
    "gzip, claims 4 bytes, holds 64 MiB": gzip.compress(encode(0x08, (4,), ZEROS), 1),
    "gzip, claims 16 GiB and packs well": gzip.compress(encode(0x0E, (2**31,), ZEROS), 1),
    "gzip, 64 MiB that are no IDX": gzip.compress(ZEROS, 1),
    "gzip, a file name of 8 MiB": b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (8 * MIB),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(tmp_path, name):
    path = written(tmp_path, BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MIB


def test_a_good_file_above_max_bytes_is_refused_before_it_is_unpacked(tmp_path):
    path = written(tmp_path, gzip.compress(encode(0x08, (MIB,), bytes(MIB)), 1))
    with pytest.raises(DataError, match=r"at most 1048575 bytes of data \(`max_bytes`\), found a claim of 1048576"):
        read_idx(path, max_bytes=MIB - 1)
    assert read_idx(path, max_bytes=MIB).size == MIB


def test_a_sparse_file_of_a_terabyte_is_refused_at_once(tmp_path):
    path = written(tmp_path, encode(0x08, (2**20, 2**20)))
    os.truncate(path, 12 + 2**40)
    with pytest.raises(DataError, match="claim of 1099511627776"):
        read_idx(path)


# --- things that are not files --------------------------------------------------------------------------------------


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    caught = []

    def read():
        try:
            read_idx(tmp_path / "fifo")
        except DataError as error:
            caught.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=20)
    assert caught and "expected a regular file" in caught[0]


@pytest.mark.parametrize("path", ["/", "/dev/zero"])
def test_a_folder_or_a_device_is_refused(path):
    with pytest.raises(DataError, match="expected a regular file"):
        read_idx(path)


def test_a_missing_file_is_a_data_error_and_a_file_not_found_error(tmp_path):
    with pytest.raises(DataNotFoundError, match="no such file"):
        read_idx(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none" / "none")


def test_a_file_without_permission_is_a_data_error(tmp_path):
    path = written(tmp_path, GOOD)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # for root there are no permissions
    try:
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
            read_idx(path)
    finally:
        if root:
            os.seteuid(0)


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i8", "u2", "f2", "?", "c8", "O", "U3", "M8[s]"])
def test_a_type_that_idx_does_not_have_is_refused(tmp_path, dtype):
    with pytest.raises(DtypeError, match="expected uint8, int8, int16, int32, float32 or float64, got"):
        write_idx(tmp_path / "a", np.zeros(3, dtype))
    assert not list(tmp_path.iterdir())


def test_a_number_without_dimensions_is_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"got shape \(\)"):
        write_idx(tmp_path / "a", np.float32(1))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = written(tmp_path, GOOD)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match=r"file: cannot be written \(No space left on device\)"):
        write_idx(path, np.zeros(3, np.uint8))
    assert path.read_bytes() == GOOD
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_a_missing_folder_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        write_idx(tmp_path / "none" / "a", np.zeros(3, np.uint8))


def is_mapped(array):
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array is not None


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "float32"])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 4), (0,), (3, 0)])
def test_a_mapped_file_gives_the_same_array(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    for name in ("array", "array.gz"):
        write_idx(tmp_path / name, array)
        found = read_idx(tmp_path / name, mapped=True)
        assert found.dtype == array.dtype and found.flags.c_contiguous
        np.testing.assert_array_equal(found, array)
        assert is_mapped(found) == (name == "array" and array.itemsize == 1 and array.size > 0)


def test_a_mapped_file_may_be_larger_than_what_is_unpacked_and_is_never_written(tmp_path):
    write_idx(tmp_path / "array", np.zeros((1000, 100), np.uint8))
    before = (tmp_path / "array").read_bytes()
    array = read_idx(tmp_path / "array", max_bytes=10, mapped=True)
    array[:] = 1
    assert array.sum() == 100_000 and (tmp_path / "array").read_bytes() == before
    assert is_mapped(TensorDataset(array.reshape(1000, -1), np.zeros(1000, int)).arrays[0])


def test_a_damaged_file_is_refused_mapped_or_not(tmp_path):
    write_idx(tmp_path / "array", np.zeros((5, 3), np.uint8))
    content = (tmp_path / "array").read_bytes()
    for damaged in [*(content[:n] for n in range(len(content))), content + b"x", b"\1" + content[1:]]:
        said = []
        for mapped in (False, True):
            with pytest.raises(DataError) as caught:
                read_idx(written(tmp_path, damaged), mapped=mapped)
            said.append(str(caught.value))
        assert said[0] == said[1]
