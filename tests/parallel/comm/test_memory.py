"""Shared memory: arrays where they should be, errors before the system kills, memory that is used again."""

import errno
import gc
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from residue import no_residue

import scratchnet as sn
from scratchnet.parallel.comm import memory
from scratchnet.parallel.comm.memory import Heap, Layout, SharedMemory


@pytest.fixture(autouse=True)
def nothing_is_left():
    with no_residue():
        yield


def test_arrays_at_one_offset_are_the_same_memory_and_begin_as_zeros():
    shared = SharedMemory(4096)
    a, b = (shared.array(64, (3, 4), np.float32) for _ in range(2))
    assert not a.any()
    a[1, 2] = 5
    assert b[1, 2] == 5 and shared.array(64 + 4 * 6, 1, np.float32)[0] == 5


def test_an_array_keeps_its_memory_alive():
    array = SharedMemory(4096).array(0, 10, np.int64)
    gc.collect()
    array[:] = 7
    assert array.sum() == 70


def test_a_layout_gives_offsets_on_cache_lines_that_do_not_overlap():
    layout = Layout()
    offsets = [layout.place(nbytes) for nbytes in (1, 64, 65, 0, 8)]
    assert offsets == [0, 64, 128, 256, 256]
    assert layout.size == 320


@pytest.mark.parametrize("size", [2**50, 2**62])
def test_more_memory_than_there_is_is_refused_in_one_line(size):
    with pytest.raises(sn.SharedMemoryError, match=f"^shared memory: expected {size} bytes, got .*$"):
        SharedMemory(size)


def test_a_file_system_that_is_full_is_an_error_and_not_a_dead_process(monkeypatch):
    def full(fd, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(memory.os, "posix_fallocate", full)
    with pytest.raises(sn.SharedMemoryError, match="expected 100 bytes, got No space left"):
        SharedMemory(100)


def test_without_memfd_memory_has_no_name_either(monkeypatch):
    monkeypatch.delattr(memory.os, "memfd_create")
    array = SharedMemory(4096).array(0, 4, np.float32)  # the fixture looks at /dev/shm
    array[:] = 1
    assert array.sum() == 4


def test_a_heap_commits_only_what_it_hands_out():
    shared = SharedMemory(1 << 40, committed=0)
    heap = Heap(shared, 0, 1 << 40)
    array = heap.empty((1000, 1000), np.float64)
    array[:] = 1
    assert memory.os.fstat(shared.fd).st_blocks * 512 < 2 * array.nbytes


def test_a_heap_that_is_too_small_is_an_error():
    heap = Heap(SharedMemory(4096), 0, 4096)
    with pytest.raises(sn.SharedMemoryError, match=r"room for 8000 bytes|room for 8064 bytes"):
        heap.empty(1000, np.float64)


@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=30))
def test_arrays_of_a_heap_never_overlap_and_their_memory_is_used_again(steps):
    heap = Heap(SharedMemory(1 << 20), 0, 1 << 20)
    kept = []
    for number, (n, forget) in enumerate(steps):
        array = heap.empty(n, np.int32)
        assert array.ctypes.data % 64 == 0
        array[:] = number
        kept.append((number, array[:]))  # a view is enough to keep it
        del array
        if forget:
            kept.pop(len(kept) // 2)
        assert all((view == value).all() for value, view in kept)
    kept.clear()
    assert heap._free == [(0, 1 << 20)]


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_memory_is_never_the_file_of_a_closed_standard_stream(fd):
    """What anybody writes to `stderr` would go into it."""
    code = "import sys; from scratchnet.parallel.comm.memory import SharedMemory; sys.exit(SharedMemory(9).fd <= 2)"
    assert subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {fd}>&-', sys.executable, code]).returncode == 0
