"""Rows scattered over machines: afterwards each has all, whoever had what, and what nobody has is an error."""

import concurrent.futures
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from scratchnet.data import ScatteredRows, StoredRows
from scratchnet.data.large import scattered, stored
from scratchnet.errors import ConfigError, DataError
from scratchnet.parallel import SerialCommunicator

NAMES, BOUNDS, KINDS = ["a", "b", "c"], [0, 1, 40, 41, 100], (None, ["no", "yes"])


def table(n=BOUNDS[-1]):
    return np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)


def rows_in(folder, classes=None):
    about = {"features": NAMES, "classes": classes, "source": "here", "categories": {}}
    return ScatteredRows(os.fspath(Path(folder, "rows-1")), BOUNDS, len(NAMES), about)


def write(rows, *parts):
    """The parts of `table` with these numbers, as executors write them."""
    rows.files.mkdir(parents=True, exist_ok=True)
    classes = rows.about["classes"]
    for part in parts:
        first, last = BOUNDS[part : part + 2]
        with stored.Writer(rows.files, NAMES, classes, first, BOUNDS[-1]) as writer:
            *columns, labels = table()[first:last].T
            assert (
                writer.write(list(columns), labels if classes is None else [classes[int(x > 0)] for x in labels])
                is None
            )
        scattered.seal(rows.files, first)
    return rows


class OfThreads:
    """What `all_gather` calls of a Communicator, for ranks that are threads: files are what is tested here."""

    def __init__(self, rank, barrier, arrays):
        self.rank, self.size, self.barrier, self.arrays = rank, barrier.parties, barrier.wait, arrays

    def all_reduce(self, array):
        return self._meet(array, lambda arrays: sum(arrays.values()))

    def broadcast(self, array, root):
        return self._meet(array, lambda arrays: arrays[root])

    def _meet(self, array, result):
        self.arrays[self.rank] = array.copy()
        self.barrier()
        array[...] = result(self.arrays)
        self.barrier()
        return array


def gathered(comm, folder, places, parts):
    """Each rank has its folder, which others may share, and its parts; at the third start the first machine is new."""
    found = []
    for classes in KINDS:
        for start in range(3):
            place = "new" if start == 2 and not comm.rank else places[comm.rank]
            rows = rows_in(Path(folder, place, f"{classes}"), classes)
            if not start:
                write(rows, *parts[comm.rank])
                comm.barrier()
            found.append(seen(rows.all_gather(comm)))
    return found


def seen(data):
    features, labels = data[:]
    return features.tobytes(), labels.tobytes(), data.feature_names, data.classes, len(data)


def test_each_machine_has_all_rows_whoever_had_them_before(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a hundred take seconds on a busy disk
    x = table()
    expected = [
        (x[:, :3].tobytes(), labels.tobytes(), tuple(NAMES), classes and tuple(classes), 100)
        for labels, classes in zip((x[:, 3:], (x[:, 3] > 0).astype(np.int64)), KINDS, strict=True)
        for _ in range(3)
    ]
    places, parts = ["own", "shared", "shared"], [(1, 2), (0, 1), (3,)]
    barrier, arrays = threading.Barrier(3, timeout=60), {}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        ranks = [pool.submit(gathered, OfThreads(k, barrier, arrays), tmp_path, places, parts) for k in range(3)]
        assert [rank.result() for rank in ranks] == [expected] * 3
    rows, stale = write(rows_in(tmp_path / "own" / "None"), 0), tmp_path / "own" / "None" / "rows-0"
    stale.mkdir()  # and Spark tried the task of part 0 twice
    assert seen(rows.all_gather(SerialCommunicator())) == expected[0] and not stale.exists()


def test_messages_are_bounded_and_cover_each_number_once():
    buffer = np.empty(64, np.int32)
    for first, last in ((0, 0), (5, 6), (3, 100), (0, 128), (1, 200)):
        pieces = [(at, len(numbers)) for at, numbers in scattered._pieces(first, last, buffer)]
        assert [k for at, n in pieces for k in range(at, at + n)] == list(range(first, last))
        assert {n for _, n in pieces} <= {1 << k for k in range(7)}


def test_rows_that_no_machine_has_are_an_error(tmp_path):
    rows = write(rows_in(tmp_path), 0, 1, 3)
    words = "rows 40 to 40: expected a machine of this job that has them, found none; ask for ranks on all machines of"
    with pytest.raises(DataError, match=words):
        rows.all_gather(SerialCommunicator())
    with pytest.raises(DataError):
        StoredRows(tmp_path)  # nothing whole
    with pytest.raises(ConfigError, match=r"all_gather: comm: expected the Communicator of the job, got 3"):
        rows.all_gather(3)
    write(rows, 2)
    assert len(rows.all_gather(SerialCommunicator())) == len(rows) == 100
    (rows.files / "features").unlink()
    with pytest.raises(DataError, match=r"features: expected 1200 bytes, as rows.json says, found 0|cannot be written"):
        rows.all_gather(SerialCommunicator())


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/rows-1: cannot be written or read \(Not a directory|File exists"):
        rows_in(tmp_path / "file").all_gather(SerialCommunicator())
