"""The metrics log: every whole line is read back, a torn one costs only itself, a full disk costs no training."""

import json
import math
import os
import warnings

import numpy as np
import pytest

from scratchnet.errors import DataError, DataNotFoundError, DtypeError
from scratchnet.trainer.metrics_log import append_jsonl, read_jsonl, write_jsonl

RECORDS = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "note": "half\nway \u00e9 \ud800"}]


def strict(text):
    """JSON as other languages read it: Python alone knows NaN and Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_records_come_back_one_line_each(tmp_path):
    log = tmp_path / "metrics.jsonl"
    for record in RECORDS:
        append_jsonl(log, record)
    assert read_jsonl(log) == RECORDS
    assert [strict(line) for line in log.read_text().splitlines()] == RECORDS


def test_numpy_values_become_numbers_and_non_finite_ones_null(tmp_path):
    log = tmp_path / "metrics.jsonl"
    record = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.array([1.0, np.nan]),
        "d": (math.inf, [-math.inf]),
        "e": True,
    }
    append_jsonl(log, record)
    assert strict(log.read_text()) == {"a": 0.5, "b": 3, "c": [1.0, None], "d": [None, [None]], "e": True}


def test_a_record_is_one_write(tmp_path, monkeypatch):
    writes, write = [], os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (writes.append(data), write(fd, data))[1])
    append_jsonl(tmp_path / "metrics.jsonl", {"text": "x" * 100_000})
    assert len(writes) == 1 and writes[0].endswith(b"\n")


def test_a_line_torn_anywhere_is_skipped_and_the_next_record_starts_a_new_line(tmp_path):
    log = tmp_path / "metrics.jsonl"
    write_jsonl(log, RECORDS)
    whole = log.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        log.write_bytes(whole[:cut])
        read = RECORDS if cut == len(whole) - 1 else RECORDS[:1]  # only the line's end is missing: nothing is lost
        assert read_jsonl(log) == read
        append_jsonl(log, {"epoch": 3})
        assert read_jsonl(log) == [*read, {"epoch": 3}]


@pytest.mark.parametrize("line", [b"[1, 2]", b"7", b"\xff\xfe", b"[" * 100_000, b"\0" * 100, b""])
def test_lines_that_are_no_record_are_skipped(line, tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert read_jsonl(log) == [{"a": 1}, {"a": 2}]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_warns_once_and_training_goes_on():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for epoch in range(3):
            append_jsonl("/dev/full", {"epoch": epoch})
    assert [str(w.message) for w in caught] == ["/dev/full: metrics not written: No space left on device"]


def test_a_disk_that_fills_within_a_line_costs_that_line(tmp_path, monkeypatch):
    log, write = tmp_path / "metrics.jsonl", os.write
    append_jsonl(log, {"epoch": 1})
    with monkeypatch.context() as patched, pytest.warns(RuntimeWarning, match="took only a part"):
        patched.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
        append_jsonl(log, {"epoch": 2})
    append_jsonl(log, {"epoch": 3})
    assert read_jsonl(log) == [{"epoch": 1}, {"epoch": 3}]


def test_a_log_is_rewritten_at_one_instant_or_left_alone(tmp_path, monkeypatch):
    log = tmp_path / "metrics.jsonl"
    write_jsonl(log, RECORDS)

    def fail(source, target):
        raise OSError(5, "Input/output error")

    with (
        monkeypatch.context() as patched,
        pytest.warns(RuntimeWarning, match="metrics not written: Input/output error"),
    ):
        patched.setattr(os, "replace", fail)
        write_jsonl(log, [])
    assert read_jsonl(log) == RECORDS and os.listdir(tmp_path) == ["metrics.jsonl"]
    write_jsonl(log, RECORDS[:1])
    assert read_jsonl(log) == RECORDS[:1]


def test_a_missing_folder_warns_and_a_missing_log_is_an_error(tmp_path):
    with pytest.warns(RuntimeWarning, match="metrics not written: No such file"):
        append_jsonl(tmp_path / "gone" / "metrics.jsonl", {})
    with pytest.raises(DataNotFoundError, match="expected a metrics log, found no such file"):
        read_jsonl(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="expected a metrics log: Is a directory"):
        read_jsonl(tmp_path)


LOOP: dict = {}
LOOP["self"] = LOOP


@pytest.mark.parametrize("record", [[1], 5, None, {"a": {1}}, {"a": object()}, {(1, 2): 3}, {"a": 1j}, LOOP])
@pytest.mark.parametrize("write", [append_jsonl, lambda path, record: write_jsonl(path, [record])])
def test_a_record_that_json_cannot_hold_is_a_dtype_error_and_writes_nothing(record, write, tmp_path):
    with pytest.raises(DtypeError, match=r"metrics.jsonl: expected a"):
        write(tmp_path / "metrics.jsonl", record)
    assert os.listdir(tmp_path) == []
