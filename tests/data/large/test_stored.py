"""Stored rows: what was written is what is read, nothing half-written is read, and they travel by name."""

import json
import pickle

import numpy as np
import pytest

import scratchnet as sn
from scratchnet.data import StoredRows
from scratchnet.data.large import stored
from scratchnet.errors import DataError, DataNotFoundError

NAMES = ["a", "b"]


def store(folder, rows, classes=None, parts=1):
    """rows: (n, 3), the last column the label. Parts are written last to first, as tasks of Spark may do it."""
    with stored.filling(folder):
        files = stored.begin(folder)
        for first, part in reversed(list(zip(*(split(x, parts) for x in (range(len(rows)), rows)), strict=True))):
            with stored.Writer(files, NAMES, classes, first[0]) as writer:
                labels = part[:, 2] if classes is None else [classes[int(k)] for k in part[:, 2]]
                assert writer.write([part[:, 0], part[:, 1]], labels) is None
        stored.finish(files, len(rows), NAMES, classes, "here")
    return StoredRows(folder)


def split(values, parts):
    return [part for part in np.array_split(np.asarray(values), parts) if len(part)]


@pytest.mark.parametrize("n", [1, 7, 8])
@pytest.mark.parametrize("classes", [None, ["no", "yes"]])
def test_rows_come_back_in_their_places_whoever_wrote_first(tmp_path, n, classes):
    rows = np.random.default_rng(n).normal(size=(n, 3)) * 10
    rows[:, 2] = np.arange(n) % 2
    found = store(tmp_path, rows, classes, parts=3)
    features, labels = found.gather(np.arange(n)[::-1])
    assert np.array_equal(features, rows[::-1, :2].astype(np.float32)) and features.dtype == np.float32
    kind, shape = (np.float32, (n, 1)) if classes is None else (np.int64, (n,))
    assert np.array_equal(labels, rows[::-1, 2].astype(kind).reshape(shape)) and labels.dtype == kind
    assert found.classes == (None if classes is None else ("no", "yes")) and found.feature_names == ("a", "b")
    assert len(found) == n and found.inputs([[1, 2]]).tolist() == [[1.0, 2.0]]


def test_they_travel_as_a_name_and_train_as_arrays_do_on_any_number_of_workers(tmp_path):
    rows = np.random.default_rng(0).normal(size=(64, 3))
    rows[:, 2] = rows[:, 0] > 0
    found = store(tmp_path, rows, ["no", "yes"])
    assert len(pickle.dumps(found)) < 500
    x, y = found.gather(np.arange(64))

    def weights(data, workers):
        sn.manual_seed(0)
        model = sn.nn.Linear(2, 2)
        optimizer = sn.optim.SGD(model.parameters(), 0.1)
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), workers=workers, shards=2, progress=False)
        trainer.fit(sn.data.DataLoader(data, 16, shuffle=True), epochs=1)
        return model.weight.detach().numpy().tobytes()

    expected = weights(sn.data.TensorDataset(x, y), 1)
    assert weights(found, 1) == weights(found, 2) == expected


@pytest.mark.parametrize(("rows", "expected"), [
    ([[1, 2, 0], [3, np.nan, 0]], (1, "b", "a finite number of float32")),
    ([[1e39, 2, 0]], (0, "a", "a finite number of float32")),
    ([[1, 2, 0], [1, 2, 0], [1, 2, np.inf]], (2, "", "a finite number of float32")),
])  # fmt: skip
def test_a_bad_row_is_named_and_nothing_of_its_part_is_written(tmp_path, rows, expected):
    rows = np.array(rows, float)
    with stored.filling(tmp_path):
        files = stored.begin(tmp_path)
        with stored.Writer(files, NAMES, None) as writer:
            assert writer.write([rows[:, 0], rows[:, 1]], rows[:, 2]) == expected
        with stored.Writer(files, NAMES, ["x"]) as writer:
            assert writer.write([np.ones(2), np.ones(2)], ["x", None]) == (1, "", "a class")
    assert (files / "features").stat().st_size == (files / "labels").stat().st_size == 0


def test_what_is_not_whole_is_refused(tmp_path):
    with pytest.raises(
        DataNotFoundError, match="expected rows that from_folder or from_spark stored, on every machine"
    ):
        StoredRows(tmp_path)
    store(tmp_path, np.ones((3, 3)))
    found = store(tmp_path, np.ones((4, 3)))
    [files] = tmp_path.glob("rows-*")  # those of the rows before have gone
    with (files / "features").open("r+b") as file:
        file.truncate(31)
    with pytest.raises(DataError, match=r"features: expected 32 bytes, as rows.json says, found 31; remove the folder"):
        StoredRows(tmp_path)
    with (files / "features").open("r+b") as file:
        file.truncate(32)
    stored.begin(tmp_path)
    assert found[:][0][:3].all()  # who has mapped the rows reads on
    with pytest.raises(DataNotFoundError):
        StoredRows(tmp_path)
    whole = {"format": 2, "rows": 4, "files": "rows-1"}
    bad = ({}, whole | {"format": 1}, whole | {"rows": "4"}, whole | {"files": "x"}, {"format": 2, "rows": 4})
    for text in ("", "[]", *map(json.dumps, bad)):
        (tmp_path / "rows.json").write_text(text)
        with pytest.raises(DataNotFoundError):
            StoredRows(tmp_path)


def test_a_folder_that_another_machine_does_not_share_is_named(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"  # the same name, on two machines
    with stored.filling(own), stored.filling(other):
        files, _ = stored.begin(own), stored.begin(other)
    assert stored.why_not_shared(files) is None
    words = (
        "other, found none or another; store= must name one that all machines share, such as one of NFS; with shared"
    )
    assert words in stored.why_not_shared(other / files.name)
