"""Pictures of training runs and of measurements, drawn by matplotlib, which the package itself does not require.

Each `plot_` function returns a Picture, which a notebook shows; with a path it writes the file, too (.svg, .png, .pdf).
Colours are Okabe and Ito's, which colour-blind people can tell apart.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .drawing import COLOURS
from .errors import ConfigError, DataError, DataNotFoundError, ShapeError
from .parallel import all_reduce_cost, run
from .parallel.comm.collectives import ALGORITHMS, DTYPES
from .trainer import History

__all__ = ["Costs", "measure_costs", "plot_confusion", "plot_costs", "plot_curves", "plot_speedup", "plot_timeline"]

MARKERS = "osD^vPX"


class Picture:
    """A figure of matplotlib (`.figure`) that a notebook shows as SVG. `.svg` is its text."""

    def __init__(self, figure: Any):
        self.figure = figure

    @property
    def svg(self) -> str:
        import matplotlib

        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scratchnet"}):
            self.figure.savefig(text := io.StringIO(), format="svg", metadata={"Date": None})
        return text.getvalue()

    def _repr_html_(self) -> str:
        svg = self.svg
        return svg[svg.index("<svg") :]


def new_figure(what: str, width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(f"{what}: expected matplotlib, found none; pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def _shown(what: str, figure: Any, path: str | Path | None) -> Picture:
    """The picture, which is written to `path` if there is one."""
    if path is not None:
        save_figure(figure, checks.path(f"{what}: path", path))
    return Picture(figure)


def _axes(figure: Any, axes: Any, **labels: str) -> None:
    """Titles, a light grid, a legend if lines have names."""
    axes.set(**labels)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)


def save_figure(figure: Any, path: str | Path) -> None:
    """Raises ConfigError for a file that cannot be written, or is no image by its ending."""
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}: expected an image file to write to: {why}") from None


def plot_curves(history: History, path: str | Path | None = None) -> Picture:
    """Loss and accuracy by epoch. Raises ConfigError if matplotlib is not installed."""
    checks.instance("plot_curves", history, History, "the History that fit returned")
    figure = new_figure("plot_curves", 9, 3.5)
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"]
    for axes, title, columns in (
        (left, "loss", {"train_loss": "train", "val_loss": "validation"}),
        (right, "accuracy", {"val_accuracy": "validation"}),
    ):
        for column, label in columns.items():
            if column in history.columns and any(value is not None for value in history[column]):
                axes.plot(epochs, history[column], marker="o", markersize=3, label=label)
        _axes(figure, axes, title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _shown("plot_curves", figure, path)


def plot_confusion(counts: Any, path: str | Path | None = None, classes: Sequence[str] | None = None) -> Picture:
    """A confusion matrix (see `metrics.confusion_matrix`): a row for each label, shaded by the share of its rows, with
    the counts. classes: the names. Raises ShapeError, or ConfigError without matplotlib.
    """
    counts = checks.array("plot_confusion", counts, "iu")
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ShapeError(f"plot_confusion: expected counts (classes, classes), got {counts.shape}")
    names = [*map(str, range(len(counts)))]
    if classes is not None:
        names = [*map(str, checks.items("plot_confusion: classes", classes, "names"))]
    if len(names) != len(counts):
        raise ShapeError(f"plot_confusion: expected {len(counts)} names of classes, got {len(names)}")
    size = 2.5 + 0.5 * len(names)
    figure = new_figure("plot_confusion", size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), n in np.ndenumerate(counts):
        axes.text(j, i, n, ha="center", va="center", fontsize=8, color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="label")
    return _shown("plot_confusion", figure, path)


# --- what workers did when --------------------------------------------------------------------------------------------

WORK = {"compute": COLOURS[0], "update": COLOURS[1], "wait": "#dddddd"}


def plot_timeline(
    timeline: str | Path | Mapping[str, str | Path], path: str | Path | None = None, steps: int = 3
) -> Picture:
    """What each worker did when: a line for each worker, a bar for each piece of work, coloured by its kind.

    timeline: the file that `Trainer(timeline=...)` wrote; or several with a name each, which are drawn one below the
    other, on one axis of time, with the part of it in which workers wait. steps: only the newest so many optimizer
    steps, as the first ones compile. Raises DataNotFoundError for no file, DataError for another one, ConfigError
    without matplotlib.
    """
    steps = checks.integer("plot_timeline: steps", steps, 1)
    files = timeline if isinstance(timeline, Mapping) else {"": timeline}
    if not files:
        checks.refuse("plot_timeline", "a file, or a dict of names and files", timeline)
    runs = {str(name): _bars(Path(checks.path("plot_timeline", file)), steps) for name, file in files.items()}
    height = sum(0.8 + 0.4 * len(names) for names, _ in runs.values())
    figure = new_figure("plot_timeline", 9, 0.5 + height)
    kinds = dict.fromkeys(bar.kind for _, bars in runs.values() for bar in bars)
    others = itertools.cycle(COLOURS[2:])
    colours = WORK | {kind: next(others) for kind in sorted(kinds.keys() - WORK.keys())}
    ratios = {"height_ratios": [1 + len(names) for names, _ in runs.values()]}
    shown: dict[str, Any] = {}
    rows = figure.subplots(len(runs), 1, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    for axes, (title, (names, bars)) in zip(rows, runs.items(), strict=True):
        lines = {line: i for i, line in enumerate(names)}
        for kind in kinds:
            if not (mine := [bar for bar in bars if bar.kind == kind]):
                continue
            shown[kind] = axes.barh(
                [lines[bar.line] for bar in mine],
                [bar.length for bar in mine],
                left=[bar.start for bar in mine],
                color=colours[kind],
                edgecolor="white",
                linewidth=0.5,
                label=kind,
            )
        axes.set_yticks(range(len(names)), names.values())
        axes.invert_yaxis()
        _axes(figure, axes)
        axes.get_legend().remove()
        if title:
            axes.set_title(f"{title}: workers wait {_waits(bars, len(names)):.0%}", fontsize=10, loc="right")
    rows[-1].set_xlabel("milliseconds")
    handles = [shown[kind] for kind in kinds]
    figure.legend(handles, kinds, frameon=False, fontsize=9, ncols=6, loc="outside upper left")
    return _shown("plot_timeline", figure, path)


class _Bar(NamedTuple):
    """Something that happened on a line; milliseconds from the first of them."""

    line: int
    kind: str
    start: float
    length: float


def _bars(file: Path, steps: int) -> tuple[dict[int, str], list[_Bar]]:
    """The names of the lines of a timeline, and its bars of the newest steps."""
    try:
        events = json.loads(file.read_bytes())["traceEvents"]
        named = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
        spans = [e for e in events if e["ph"] == "X"]
        first = max(e["args"]["step"] for e in spans if "step" in e.get("args", ())) - steps + 1
        begin = min(e["ts"] for e in spans if e.get("args", {}).get("step", -1) >= first)
        bars = [_Bar(e["tid"], e["name"], (e["ts"] - begin) / 1e3, e["dur"] / 1e3) for e in spans if e["ts"] >= begin]
        workers = {line for line, name in named.items() if name != "parent"}  # also one that only waited
        if not bars or not all(math.isfinite(bar.start + bar.length) for bar in bars):
            raise ValueError
    except FileNotFoundError:
        raise DataNotFoundError(f"{file}: expected the timeline of a run, found no such file") from None
    except (OSError, ValueError, TypeError, LookupError):
        raise DataError(f"{file}: expected the timeline of a run, as Trainer(timeline=...) writes it") from None
    return {line: named.get(line, str(line)) for line in sorted(workers | {bar.line for bar in bars})}, bars


def _waits(bars: Sequence[_Bar], lines: int) -> float:
    """The part of the time of all lines in which nothing is done."""
    works = [bar for bar in bars if bar.kind != "wait"]
    ends, starts = [bar.start + bar.length for bar in works], [bar.start for bar in works]
    length = max(ends, default=0.0) - min(starts, default=0.0)
    return 1 - sum(bar.length for bar in works) / (lines * length) if length > 0 else 1.0


# --- speed-up ---------------------------------------------------------------------------------------------------------


def plot_speedup(
    seconds: Mapping[str, Mapping[int, float]],
    path: str | Path | None = None,
    xlabel: str = "threads, workers or machines",
) -> Picture:
    """Speed-up by the number of threads, workers or machines: measured points, beside the ideal line and Amdahl's law.

    seconds: for each curve a name and {number: seconds}, with the seconds of one: {"threads": {1: 0.8, 2: 0.5}}. The
    dashed curve is Amdahl's law, 1 / (s + (1 - s) / n), for the serial part s that fits the points best (AFIPS 1967).
    xlabel: what is counted, below the axis. Raises ConfigError for other numbers or labels, or without matplotlib.
    """
    checks.instance("plot_speedup: xlabel", xlabel, str, "a text")
    curves = {}
    for name, points in _mapping("plot_speedup", seconds).items():
        known = _mapping(f"plot_speedup: {name}", points)
        numbers = [checks.integer(f"plot_speedup: {name}", n, 1) for n in known]
        times = [checks.number(f"plot_speedup: {name}", t, "(0, inf)") for t in known.values()]
        if 1 not in numbers:
            checks.refuse(f"plot_speedup: {name}", "the seconds of 1, which the others are compared with", known)
        curves[str(name)] = dict(sorted(zip(numbers, times, strict=True)))
    figure = new_figure("plot_speedup", 5, 3.8)
    axes = figure.subplots()
    most = max([n for points in curves.values() for n in points], default=1)
    axes.plot([1, most], [1, most], color="#999999", linewidth=1, label="ideal")
    for (name, points), colour, marker in zip(
        curves.items(), itertools.cycle(COLOURS), itertools.cycle(MARKERS), strict=False
    ):
        n = np.array([*points])
        speedup = points[1] / np.array([*points.values()])
        serial = serial_part(n, speedup)
        axes.plot(n, speedup, color=colour, marker=marker, linestyle="none", label=f"{name}, serial part {serial:.0%}")
        fine = np.linspace(1, most, 100)
        axes.plot(fine, 1 / (serial + (1 - serial) / fine), color=colour, linestyle="--", linewidth=1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _axes(figure, axes, xlabel=xlabel, ylabel="speed-up over one")
    return _shown("plot_speedup", figure, path)


def serial_part(n: np.ndarray, speedup: np.ndarray) -> float:
    """The s in [0, 1] for which 1 / speedup = s + (1 - s) / n fits best, by least squares."""
    shrink = 1 - 1 / n  # 1 / speedup - 1 / n = s * shrink
    return float(np.clip((shrink * (1 / speedup - 1 / n)).sum() / max((shrink**2).sum(), 1e-12), 0, 1))


def _mapping(what: str, value: Any) -> dict:
    if not isinstance(value, Mapping) or not value:
        checks.refuse(what, "a dict of numbers, such as {'threads': {1: 0.8, 2: 0.5}}", value)
    return dict(value)


# --- what an all-reduce costs -----------------------------------------------------------------------------------------

SIZES = tuple(4**k for k in range(4, 11))  # elements of float32: 1 KiB to 4 MiB


@dataclass(frozen=True)
class Costs:
    """Seconds that all-reduces took, and the two numbers of Hockney's model that fit them best.

    workers: how many. seconds: {algorithm: {bytes of the array: seconds}}. latency: seconds a step. bandwidth: bytes a
    second. `predict(algorithm, nbytes)` = steps * latency + bytes sent / bandwidth (Parallel Computing 20, 1994).
    """

    workers: int
    seconds: Mapping[str, Mapping[int, float]]
    latency: float
    bandwidth: float

    def predict(self, algorithm: str, nbytes: int) -> float:
        """Seconds by the model, of an algorithm that sends messages."""
        cost = all_reduce_cost(algorithm, self.workers, nbytes)
        return cost.steps * self.latency + cost.bytes / self.bandwidth


def measure_costs(workers: int = 2, sizes: Sequence[int] = SIZES, dtype: str = "float32") -> Costs:
    """Measures every all-reduce here, by so many worker processes, for arrays of these numbers of elements.

    The best of several calls counts. Latency and bandwidth are those with the least relative squared error over all
    algorithms that send messages. Raises ConfigError for workers < 2, or other sizes than positive integers.
    """
    workers = checks.integer("measure_costs: workers", workers, 2)
    elements = [checks.integer("measure_costs: sizes", n, 1) for n in checks.items("measure_costs", sizes, "sizes")]
    checks.one_of("measure_costs: dtype", dtype, DTYPES)
    if not elements:
        checks.refuse("measure_costs: sizes", "at least one size", sizes)
    measured = run(_time_all_reduces, elements, dtype, workers=workers)[0]
    rows, ones = [], []
    for name, points in measured.items():
        if ALGORITHMS[name].run:
            for nbytes, took in points.items():
                cost = ALGORITHMS[name].cost(workers, nbytes)
                rows.append([cost.steps / took, cost.bytes / took])
                ones.append(1.0)
    (latency, inverse), *_ = np.linalg.lstsq(np.array(rows), np.array(ones), rcond=None)
    return Costs(workers, measured, max(float(latency), 0.0), 1 / max(float(inverse), 1e-15))


def _time_all_reduces(comm: Any, sizes: list[int], dtype: str) -> dict[str, dict[int, float]]:
    """What each rank does: {algorithm: {bytes: seconds of the best call}}; the slowest rank counts."""
    found: dict[str, dict[int, float]] = {name: {} for name in ALGORITHMS}
    for n in sizes:
        array = comm.empty(n, dtype)
        for name in ALGORITHMS:
            best = np.array([np.inf])
            for _ in range(max(3, min(50, 2**20 // n))):
                array[...] = 1
                comm.barrier()
                start = time.perf_counter()
                comm.all_reduce(array, algorithm=name)
                best[0] = min(best[0], time.perf_counter() - start)
            found[name][array.nbytes] = float(comm.all_reduce(best, "max")[0])
    return found


def plot_costs(costs: Costs | None = None, path: str | Path | None = None) -> Picture:
    """Seconds of an all-reduce by the size of the array: measured points, and lines by Hockney's model.

    costs: what `measure_costs` found; None measures with 2 workers. Algorithms in shared memory send no messages, so
    they have points alone. Raises ConfigError without matplotlib.
    """
    if costs is not None:
        checks.instance("plot_costs", costs, Costs, "what measure_costs found, or None")
    figure = new_figure("plot_costs", 7, 4.2)
    costs = measure_costs() if costs is None else costs
    axes = figure.subplots()
    for (name, points), colour, marker in zip(costs.seconds.items(), COLOURS, MARKERS, strict=False):
        sizes = sorted(points)
        axes.plot(sizes, [points[n] * 1e6 for n in sizes], marker, color=colour, label=name, markersize=5)
        if ALGORITHMS[name].run:
            axes.plot(sizes, [costs.predict(name, n) * 1e6 for n in sizes], color=colour, linewidth=1)
    axes.set(xscale="log", yscale="log")
    title = f"{costs.workers} workers: {costs.latency * 1e6:.1f} us a step, {costs.bandwidth / 1e9:.1f} GB/s"
    _axes(figure, axes, xlabel="bytes", ylabel="microseconds", title=title)
    return _shown("plot_costs", figure, path)
