"""Pictures: a file of an image, or one line that says what is missing."""

import json
import sys
import xml.etree.ElementTree as xml

import numpy as np
import pytest
from messages import refused

import scratchnet as sn
from scratchnet.errors import ConfigError, DataError, DataNotFoundError, DtypeError, ShapeError
from scratchnet.parallel.comm.collectives import ALGORITHMS
from scratchnet.report import (
    Costs,
    _Bar,
    _waits,
    measure_costs,
    plot_confusion,
    plot_costs,
    plot_speedup,
    plot_timeline,
    serial_part,
)


def test_a_confusion_matrix_is_a_picture_with_a_cell_for_each_pair(tmp_path):
    image = pytest.importorskip("PIL.Image")
    plot_confusion([[5, 1], [0, 0]], tmp_path / "matrix.png", ["cat", "dog"])
    picture = np.asarray(image.open(tmp_path / "matrix.png").convert("L"))
    assert picture.min() < 50 and picture.max() == 255


@pytest.mark.parametrize(
    ("counts", "classes", "error", "message"),
    [
        ([[1, 2]], None, ShapeError, "counts (classes, classes), got (1, 2)"),
        (np.empty((0, 0), int), None, ShapeError, "got (0, 0)"),
        ([[1.5]], None, DtypeError, "expected numbers"),
        ([[1]], ["a", "b"], ShapeError, "expected 1 names of classes, got 2"),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path, counts, classes, error, message):
    assert message in refused(error, lambda: plot_confusion(counts, tmp_path / "x.png", classes))


def test_without_matplotlib_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in refused(ConfigError, lambda: plot_confusion([[1]], tmp_path / "x.png"))


def words(picture):
    """The texts of a picture, which a notebook shows as SVG."""
    root = xml.fromstring(picture._repr_html_())
    return " | ".join("".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text"))


def test_a_timeline_shows_the_newest_steps_of_each_worker(tmp_path):
    samples = sn.data.TensorDataset(np.ones((64, 4), np.float32), np.zeros(64, np.int64))
    model = sn.nn.Linear(4, 2)
    optimizer = sn.optim.SGD(model.parameters(), lr=0.1)
    file = tmp_path / "run.json"
    trainer = sn.Trainer(
        model, optimizer, sn.nn.CrossEntropyLoss(), workers=2, shards=4, progress=False, jit=False, timeline=file
    )
    trainer.fit(sn.data.DataLoader(samples, batch_size=16), epochs=1)
    shown = words(plot_timeline(file, tmp_path / "run.svg", steps=2))
    assert "worker 0" in shown and "compute" in shown and "milliseconds" in shown
    xml.parse(tmp_path / "run.svg")
    events = [e for e in json.loads(file.read_text())["traceEvents"] if e["ph"] == "X" and e["name"] == "compute"]
    assert {e["args"]["step"] for e in events} == {0, 1, 2, 3}
    bars = plot_timeline(file, steps=2).figure.axes[0].containers
    computed = next(bar for bar in bars if bar.get_label() == "compute")
    assert len(computed) >= 2 * 4  # shards of two steps, and none of the two before
    assert len(computed) < len(events)
    both = words(plot_timeline({"one": file, "two": file}, steps=2))
    assert "one: workers wait " in both and "two: workers wait " in both and both.count("compute") == 1


def test_what_is_no_timeline_is_refused(tmp_path):
    assert "no such file" in refused(DataNotFoundError, lambda: plot_timeline(tmp_path / "none.json"))
    span = '{"ph": "X", "name": "compute", "tid": 1, "ts": NaN, "dur": 1, "args": {"step": 0}}'
    for text in ("", "[]", '{"traceEvents": []}', '{"traceEvents": [{"ph": "X"}]}', f'{{"traceEvents": [{span}]}}'):
        (tmp_path / "other.json").write_text(text)
        assert "expected the timeline of a run" in refused(DataError, lambda: plot_timeline(tmp_path / "other.json"))
    assert "a file, or a dict of names and files" in refused(ConfigError, lambda: plot_timeline({}))


def test_the_part_of_the_time_in_which_workers_wait():
    bars = [
        _Bar(1, "compute", 0.0, 4.0),
        _Bar(2, "wait", 0.0, 2.0),
        _Bar(2, "compute", 2.0, 1.0),
        _Bar(2, "update", 3.0, 1.0),
    ]
    assert _waits(bars, 2) == 0.25
    assert _waits(bars, 3) == 0.5  # one did nothing at all
    assert _waits(bars[1:2], 1) == _waits([_Bar(1, "compute", 1.0, 0.0)], 1) == 1  # nobody did anything


def test_a_worker_whose_shards_others_took_has_a_line_and_counts(tmp_path):
    events = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": line, "args": {"name": name}}
        for line, name in enumerate(("parent", "worker 0", "worker 1"))
    ]
    events.append(
        {"ph": "X", "name": "compute", "cat": "compute", "pid": 0, "tid": 2, "ts": 0, "dur": 5, "args": {"step": 0}}
    )
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"traceEvents": events}))
    shown = words(plot_timeline({"late": file})).split(" | ")
    assert "worker 0" in shown and "worker 1" in shown and "parent" not in shown
    assert "late: workers wait 50%" in shown


def test_the_serial_part_is_that_of_amdahls_law():
    n = np.array([1, 2, 4, 8])
    for s in (0.0, 0.1, 0.5, 1.0):
        assert serial_part(n, 1 / (s + (1 - s) / n)) == pytest.approx(s, abs=1e-12)
    assert serial_part(n, 2.0 * n) == 0 and serial_part(n[:1], np.array([1.0])) == 0  # nothing below 0


def test_speedups_have_names_and_serial_parts(tmp_path):
    picture = plot_speedup({"threads": {1: 1.0, 2: 0.6}, "workers": {4: 0.5, 1: 1.0}}, tmp_path / "a.svg")
    assert all(word in words(picture) for word in ("ideal", "threads, serial part 20%", "workers, serial part 33%"))
    assert "threads, workers or machines" in words(picture)  # what is counted
    assert "machines" in words(plot_speedup({"ring": {1: 1.0}}, xlabel="machines")).split(" | ")
    assert "the seconds of 1" in refused(ConfigError, lambda: plot_speedup({"threads": {2: 1.0}}))
    for seconds in ({}, {"threads": {}}, {"threads": {1: 0.0}}, {"threads": {0: 1.0, 1: 1.0}}, {"threads": {1.5: 1.0}}):
        refused(ConfigError, lambda seconds=seconds: plot_speedup(seconds))


def test_costs_are_measured_for_every_algorithm_and_drawn_beside_the_model():
    costs = measure_costs(2, (256, 4096))
    assert costs.seconds.keys() == ALGORITHMS.keys()
    assert all(points.keys() == {1024, 16384} and min(points.values()) > 0 for points in costs.seconds.values())
    assert costs.latency >= 0 and costs.bandwidth > 0
    assert all(name in words(plot_costs(costs)) for name in ALGORITHMS)


def test_the_model_is_steps_by_latency_and_bytes_by_bandwidth():
    costs = Costs(4, {}, latency=1e-5, bandwidth=1e9)
    assert costs.predict("ring", 4000) == pytest.approx(6 * 1e-5 + 6000 / 1e9)
    assert "expected one of naive" in refused(ConfigError, lambda: costs.predict("star", 4))


def test_the_fit_finds_the_model_that_made_the_numbers(monkeypatch):
    made = Costs(4, {}, latency=2e-6, bandwidth=5e9)
    messages = [name for name, known in ALGORITHMS.items() if known.run]
    seconds = {name: {n: made.predict(name, n) for n in (1000, 100000)} for name in messages}
    monkeypatch.setattr(sn.report, "run", lambda *args, **options: [seconds])
    found = measure_costs(4)
    assert (found.latency, found.bandwidth) == pytest.approx((2e-6, 5e9))
