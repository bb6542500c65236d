"""Draws the pictures of docs/book: graphs, and what was measured on this machine.

python scripts/book_pictures.py
"""

import collections
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

import scratchnet as sn
from scratchnet.drawing import COLOURS, FILLS, Drawing, Vertex
from scratchnet.flags import flag, run_script
from scratchnet.parallel.comm.collectives import ALGORITHMS
from scratchnet.parallel.model.timetable import idle, timetable
from scratchnet.parallel.phases import SCHEDULES
from scratchnet.report import MARKERS, new_figure, save_figure


@dataclass
class Config:
    """Draw the pictures of the book."""

    folder: str = flag("docs/pictures", "where they go")
    only: tuple[str, ...] = flag((), "names of pictures; all unless given")


def five_steps(path: Path) -> None:
    shards = range(4)
    vertices = [Vertex(("prepare", "read, clean, scale"), "input"), Vertex(("split", "a batch into shards"), "op")]
    vertices += [Vertex(("compute", f"gradient of shard {k}"), "parameter") for k in shards]
    vertices += [Vertex(("merge", "in a fixed order"), "op"), Vertex(("report", "loss, accuracy, time"), "result")]
    edges = [(0, 1), *((1, 2 + k) for k in shards), *((2 + k, 6) for k in shards), (6, 7)]
    Drawing("prepare, split, compute, merge, report", vertices, edges).save(path)


HOUSE = (  # floors, from the top: what a box is called, and the files that it is
    {"scripts, a page each": "../scripts/*.py"},
    {"Trainer": "trainer/*", "callbacks": "callbacks/*", "scikit-learn": "sklearn/*"},
    {"schedulers": "parallel/clusters/*", "machines (MPI)": "parallel/mpi/*", "processes (pool)": "parallel/pool/*",
     "model in parts": "parallel/model/*", "strategies": "parallel/*.py", "collectives": "parallel/comm/*"},
    {"recorded steps (jit)": "jit/*"},
    {"layers (nn)": "nn/**/*", "optimizers": "optim/*", "data": "data/**/*", "files (formats)": "formats/**/*"},
    {"tensors": "tensor.py", "functions": "[cfw]*.py", "autograd": "autograd.py"},
    {"ops: each function beside its derivative": "ops/*"},
    {"kernels: NumPy": "kernels/*.py", "kernels: cpu": "kernels/cpu/*", "kernels: cuda": "kernels/cuda/*"},
    {"native: Python becomes machine code": "native/*"},
)  # fmt: skip
LEAST = 0.16  # of the picture, the width of a box


def house(path: Path) -> None:
    """A row for each floor; a box is as wide as its part of the floor's lines, but wide enough for its name."""
    root, figure = Path(sn.__file__).parent, new_figure("house", 9, 5)
    axes = figure.subplots()
    for (y, floor), fill in zip(enumerate(HOUSE), itertools.cycle(FILLS.values()), strict=False):
        left, count = 0.0, {name: lines_of(root.glob(files)) for name, files in floor.items()}
        for name, lines in count.items():
            wide = LEAST + (1 - LEAST * len(floor)) * lines / sum(count.values())
            axes.barh(y, wide, 0.86, left, color=fill, edgecolor="#555555")
            axes.text(left + wide / 2, y, f"{name}\n{lines:,} lines", ha="center", va="center", fontsize=9)
            left += wide
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), title="a file imports what stands below it")
    axes.axis("off")
    save_figure(figure, path)


def lines_of(files: Iterable[Path]) -> int:
    return sum(file.read_text().count("\n") for file in files if file.suffix == ".py")


def record(path: Path) -> None:
    x, w, b = (sn.Tensor(v, requires_grad=True) for v in (3.0, 2.0, -1.0))

    class Named(sn.nn.Module):
        def __init__(self) -> None:
            self.w, self.b, self.x = (sn.nn.Parameter(t) for t in (w, b, x))

    model = Named()
    sn.draw((model.w * model.x + model.b) ** 2, model).save(path)


def network(units: int) -> tuple[sn.nn.Module, sn.optim.SGD, sn.Tensor, sn.Tensor]:
    sn.manual_seed(0)
    model, rng = sn.nn.MLP(784, units, 10), np.random.default_rng(0)
    x, y = sn.Tensor(rng.random((256, 784), np.float32)), sn.Tensor(rng.integers(0, 10, 256))
    return model, sn.optim.SGD(model.parameters(), lr=0.1), x, y


def program(path: Path) -> None:
    model, optimizer, x, y = network(32)

    @sn.jit
    def step(x, y):
        loss = sn.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(3):
        step(x[:64], y[:64])
    sn.draw(step, model).save(path)


def speedup(path: Path) -> None:
    def seconds(units: int, threads: int) -> float:
        sn.set_num_threads(threads)
        model, _, x, y = network(units)
        best = float("inf")
        for _ in range(30):
            start = time.perf_counter()
            sn.nn.functional.cross_entropy(model(x), y).backward()
            best = min(best, time.perf_counter() - start)
        return best

    most = sn.get_num_threads()
    times = {f"{u} units": {n: seconds(u, n) for n in range(1, most + 1)} for u in (32, 512)}
    sn.set_num_threads(most)
    sn.report.plot_speedup(times, path, "threads")


def costs(path: Path) -> None:
    sn.report.plot_costs(sn.report.measure_costs(workers=2), path)


class Watched:
    """A rank's link that notes, for each pair, when each message began and its bytes, and when each was there."""

    def __init__(self, link: Any, sent: dict, received: dict):
        self.link, self.rank, self.size, self.sent, self.received = link, link.rank, link.size, sent, received

    def send(self, array: np.ndarray, receiver: int) -> None:
        self.sent[self.rank, receiver].append((self.link.clock, array.nbytes))
        self.link.send(array, receiver)

    def receive(self, array: np.ndarray, sender: int) -> None:
        self.link.receive(array, sender)
        self.received[sender, self.rank].append(self.link.clock)

    def exchange(self, outgoing: np.ndarray, receiver: int, incoming: np.ndarray, sender: int) -> None:
        self.sent[self.rank, receiver].append((self.link.clock, outgoing.nbytes))
        self.link.exchange(outgoing, receiver, incoming, sender)
        self.received[sender, self.rank].append(self.link.clock)


def all_reduces(path: Path, ranks: int = 8, elements: int = 1024) -> None:
    """Every message of each all-reduce, as counted: time goes down, a line is as thick as the message is large."""
    figure, names = new_figure("all_reduces", 12, 4.6), [name for name, known in ALGORITHMS.items() if known.run]
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        run: Any = ALGORITHMS[name].run
        sent, received = (collections.defaultdict(list) for _ in range(2))
        arrays = [np.ones(elements, np.float32) for _ in range(ranks)]

        def watched(link: Any, x: Any, combine: Any, run: Any = run, notes: Any = (sent, received)) -> None:
            run(Watched(link, *notes), x, combine)

        cost = sn.parallel.simulate_all_reduce(watched, arrays)
        for (sender, receiver), messages in sent.items():
            for (begin, nbytes), end in zip(messages, received[sender, receiver], strict=True):
                arrow = {"arrowstyle": "-|>", "linewidth": 0.4 + 2 * nbytes / arrays[0].nbytes, "shrinkA": 0}
                arrow |= {"color": COLOURS[0] if receiver > sender else COLOURS[1], "shrinkB": 0}
                axes.annotate("", (receiver, end), (sender, begin), arrowprops=arrow)
        axes.vlines(range(ranks), 0, cost.steps, color="#bbbbbb", linewidth=1, zorder=0)
        title = f"{name}\n{cost.steps} steps, {cost.messages} messages\na rank sends up to {cost.bytes:,} bytes"
        axes.set(xlabel="rank", xticks=range(ranks), ylim=(2 * ranks - 1.7, -0.3))
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    figure.axes[0].set_ylabel("step")
    save_figure(figure, path)


def timeline_of(file: str, model: Any, optimizer: Any, batch: tuple[Any, Any], strategy: Any = "all_reduce") -> None:
    """Two workers train for 20 epochs; what they did goes to a file."""
    options = {"workers": 2, "shards": 8, "progress": False, "timeline": file, "strategy": strategy}
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), **options)
    trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(*batch), batch_size=len(batch[0]) // 2), epochs=20)


def timeline(path: Path, strategy: Any = "all_reduce", units: int = 256, steps: int = 3) -> None:
    model, optimizer, x, y = network(units)
    with tempfile.TemporaryDirectory() as folder:
        timeline_of(f"{folder}/run.json", model, optimizer, (x.numpy(), y.numpy()), strategy)
        sn.report.plot_timeline(f"{folder}/run.json", path, steps)


RUNS = {  # every strategy but the pipeline, which `schedules` draws
    "all-reduce": sn.parallel.AllReduce(),
    "parameter server, synchronous": sn.parallel.ParameterServer(0),
    "parameter server, gradients 4 updates old": sn.parallel.ParameterServer(4),
    "parameter server, asynchronous": sn.parallel.ParameterServer(None),
    "Hogwild": sn.parallel.Hogwild(),
    "local SGD, a merge in 2 batches": sn.parallel.LocalSGD(every=2),
    "tensor parallelism, 2 parts": sn.parallel.TensorParallel(2),
}


def strategies(path: Path, units: int = 256) -> None:
    """Two steps of each strategy, of the same network and batch."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, strategy in RUNS.items():
            model, optimizer, x, y = network(units)
            files[name] = f"{folder}/{len(files)}.json"
            timeline_of(files[name], model, optimizer, (x.numpy(), y.numpy()), strategy)
        sn.report.plot_timeline(files, path, 2)


def pipeline(path: Path) -> None:
    timeline(path, sn.parallel.Pipeline(stages=2), 1024, 2)


def schedules(path: Path, width: int = 512, layers: int = 8) -> None:
    """A step of each schedule, of two stages of as many equal layers."""
    rng, files = np.random.default_rng(0), {}
    batch = rng.normal(size=(1024, width)).astype(np.float32), rng.integers(0, width, 1024)
    with tempfile.TemporaryDirectory() as folder:
        for schedule in SCHEDULES:
            sn.manual_seed(0)
            model = sn.nn.Sequential(
                *(layer for _ in range(layers) for layer in (sn.nn.Linear(width, width), sn.nn.Tanh()))
            )
            strategy = sn.parallel.Pipeline(2, [str(layers)], schedule)
            files[schedule] = f"{folder}/{schedule}.json"
            timeline_of(files[schedule], model, sn.optim.SGD(model.parameters(), lr=0.1), batch, strategy)
        sn.report.plot_timeline(files, path, 1)


A100 = "NVIDIA A100, data sheet", 19.5e12, 1555e9  # float32 operations and bytes a second
SHAPES = (64, 784, 128), (64, 784, 10), (512, 512, 512)  # of products


def roofline(path: Path) -> None:
    """One core, measured: its roof, and kernels below it. A GPU by its data sheet: a roof without points."""
    most = sn.get_num_threads()
    sn.set_num_threads(1)
    points = {}
    for m, k, n in SHAPES:
        a, b = sn.Tensor(np.ones((m, k), np.float32)), sn.Tensor(np.ones((k, n), np.float32))
        flop, nbytes = 2 * m * k * n, 4 * (m * k + k * n + m * n)
        points[f"product {m} x {k} x {n}"] = flop / nbytes, flop / best(lambda a=a, b=b: a @ b)
    large = np.ones(2**24, np.float32)
    x, copy = sn.Tensor(large), np.empty_like(large)
    points["ReLU, 16 million"] = 1 / 8, large.size / best(lambda: x.relu())
    bandwidth = 2 * large.nbytes / best(lambda: np.copyto(copy, large))
    sn.set_num_threads(most)
    figure = new_figure("roofline", 7, 4.4)
    axes = figure.subplots()
    intensity = np.geomspace(0.05, 500, 200)
    machines = ("one core, measured", max(rate for _, rate in points.values()), bandwidth), A100
    for (name, peak, rate), colour in zip(machines, COLOURS, strict=False):
        label = f"{name}: {peak / 1e9:,.0f} GFLOP/s, {rate / 1e9:,.0f} GB/s"
        axes.plot(intensity, np.minimum(peak, intensity * rate) / 1e9, color=colour, linewidth=2, label=label)
    for (name, (where, rate)), marker in zip(points.items(), MARKERS, strict=False):
        axes.plot(where, rate / 1e9, marker, color=COLOURS[0], label=name, markersize=7)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def best(f: Callable[[], object], rounds: int = 20) -> float:
    """Seconds: other programs can only make a round longer."""
    f()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def bubbles(path: Path, stages: int = 4, shards: int = 8) -> None:
    """Schedules of a pipeline: who works when, if a forward pass and each half of a backward one take as long."""
    figure = new_figure("bubbles", 9, 5.6)
    kinds = {
        "forward": COLOURS[5],
        "backward": COLOURS[3],
        "backward_inputs": COLOURS[1],
        "backward_weights": COLOURS[4],
    }
    for axes, schedule in zip(figure.subplots(len(SCHEDULES), 1, sharex=True), SCHEDULES, strict=True):
        strategy = sn.parallel.Pipeline(stages, schedule=schedule)
        phases = [phase for phase in strategy.phases(shards, 1, False) if phase.name in kinds]
        spans = timetable(strategy, phases, stages, lambda phase, _: 1 + (phase.name == "backward"))
        for span in spans:
            length = span.end - span.start
            axes.barh(span.worker, length, 0.9, span.start, color=kinds[span.phase.name], edgecolor="white")
            middle = span.start + length / 2
            axes.text(middle, span.worker, span.piece, ha="center", va="center", fontsize=7)
        axes.set(title=f"{schedule}: stages wait {idle(spans, stages):.0%}", ylabel="stage")
        axes.set_yticks(range(stages))
        axes.invert_yaxis()
    axes.set_xlabel("time, in forward passes of a stage")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in kinds.values()]
    figure.legend(handles, kinds, frameon=False, fontsize=9, ncols=4, loc="outside lower center")
    save_figure(figure, path)


class Killer:
    """Kills one of the workers after some steps."""

    every, step = 1, 60

    def on_step_end(self, run: Any) -> None:
        if run.step == self.step and (found := os.getpid()):
            for _ in range(2):  # our newest child is a server, whose newest child is a worker
                found = int(Path(f"/proc/{found}/task/{found}/children").read_text().split()[-1])
            os.kill(found, signal.SIGKILL)


def kill(path: Path) -> None:
    """One of two workers is killed while it trains; the other goes on, and another takes its place."""
    model, optimizer, x, y = network(1024)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/run.json"
        options = {"workers": 2, "shards": 8, "progress": False, "timeline": file, "callbacks": [Killer()]}
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), **options)
        trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x.numpy(), y.numpy()), batch_size=256), epochs=90)
        sn.report.plot_timeline(file, path, steps=36)


# --- many machines: a step of 256 samples is measured here, what links add is computed -------------------------------

PARAMETERS = 4 * 1_863_690  # bytes of 784-1024-1024-10 in float32
LATENCY, EVERY = 20e-6, 16


def measured_step() -> float:
    """Seconds of the gradients of 256 samples in 784-1024-1024-10, on one core."""
    most = sn.get_num_threads()
    sn.set_num_threads(1)
    sn.manual_seed(0)
    model, rng = sn.nn.MLP(784, 1024, 1024, 10), np.random.default_rng(0)
    x, y = sn.Tensor(rng.random((256, 784), np.float32)), sn.Tensor(rng.integers(0, 10, 256))
    seconds = best(lambda: sn.nn.functional.cross_entropy(model(x), y).backward())
    sn.set_num_threads(most)
    return seconds


def merging(name: str, machines: int, bandwidth: float) -> float:
    """Seconds a step that Hockney's model gives for one way to merge, on links of so many bytes a second."""
    algorithm, share, every = WAYS[name]
    cost = sn.parallel.all_reduce_cost(algorithm, machines, int(PARAMETERS * share))
    return (cost.steps * LATENCY + cost.bytes / bandwidth) / every


WAYS = {  # algorithm, part of the bytes that is sent, steps between two merges
    "all-reduce (Rabenseifner)": ("rabenseifner", 1.0, 1),
    "the same in float16": ("rabenseifner", 0.5, 1),
    f"local SGD, every {EVERY} steps": ("rabenseifner", 1.0, EVERY),
    "ring": ("ring", 1.0, 1),
    "one server": ("naive", 1.0, 1),
}


def links(path: Path, machines: int = 8) -> None:
    """The time of a step by the speed of the links."""
    alone, figure = measured_step(), new_figure("links", 7, 4.2)
    axes, rates = figure.subplots(), np.geomspace(1e8, 1e11, 60)
    for name, colour, style in zip(WAYS, COLOURS, LINES, strict=False):
        times = [1e3 * (alone + merging(name, machines, rate / 8)) for rate in rates]
        axes.plot(rates / 1e9, times, linestyle=style, color=colour, label=name)
    axes.axhline(1e3 * alone, color="#999999", linewidth=1)
    axes.text(rates[0] / 1e9, 1e3 * alone, "computing alone, measured", va="bottom", fontsize=9)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="Gbit/s",
        ylabel="milliseconds a step",
        title=f"{machines} machines, by the model",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def scaling(path: Path, deviation: float = 0.05) -> None:
    """Efficiency by the number of machines, if each has a deviation of its own in each step and the slowest decides."""
    alone, figure = measured_step(), new_figure("scaling", 7, 4.2)
    axes, rng = figure.subplots(), np.random.default_rng(0)
    numbers = [2**k for k in range(11)]
    times = {w: alone * (1 + deviation * abs(rng.standard_normal((200, EVERY, w)))) for w in numbers}
    for name, colour, style in zip(WAYS, COLOURS, LINES, strict=False):
        every, found = WAYS[name][2], []
        for w in numbers:
            rounds = times[w].reshape(-1, every, w).sum(axis=1).max(axis=1).mean() / every
            found.append(alone / (rounds + (merging(name, w, 1.25e9) if w > 1 else 0)))
        axes.plot(numbers, found, linestyle=style, color=colour, label=name)
    axes.set(
        xscale="log",
        ylim=(0, 1),
        xlabel="machines, 256 samples each",
        ylabel="efficiency",
        title="links of 10 Gbit/s, by the model",
    )
    axes.set_xticks(numbers, map(str, numbers))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


def half_precision(path: Path) -> None:
    rng, gaps = np.random.default_rng(0), np.linspace(0, 0.25, 500)
    x, w = rng.random((784, 200)), rng.normal(0, 784**-0.5, (784, 1))
    sums, updates, softmax = (figure := new_figure("half_precision", 7, 9)).subplots(3)
    for dtype, bits, colour in zip((sn.bfloat16, sn.float16, sn.float32), (8, 11, 24), COLOURS, strict=False):
        a, b, label = x.astype(dtype), w.astype(dtype), f"{dtype}, {bits} bits"
        for terms, line, what in ((a.astype(float) * b, "--", "operands"), (a * b, "-", "operands and sums")):
            errors = np.abs(np.add.accumulate(terms).astype(float) - np.cumsum(x * w, 0)).max(1)
            sums.plot(range(1, 785), errors, line, color=colour, label=f"{label}: {what}")
        updates.plot(np.add.accumulate(np.array([0.05] + [1e-4] * 1000).astype(dtype)), color=colour, label=label)
        softmax.plot(gaps, 1 / (1 + np.exp(12 - (12 + gaps).astype(dtype).astype(float))), color=colour, label=label)
    sums.set(yscale="log", ylim=(1e-14, 1), xlabel="products added up", ylabel="largest error of 200 sums")
    updates.set(xlabel="updates of 0.0001", ylabel="a weight that was 0.05")
    softmax.set(xlabel="difference of two logits, 12 and more", ylabel="probability of the larger")
    for axes in (sums, updates, softmax):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


LINES = "-", "--", "-.", ":", (0, (5, 1))
PICTURES = (
    five_steps, house, record, program, speedup, costs, all_reduces, timeline, strategies, roofline, bubbles, pipeline,
    schedules, kill, links, scaling, half_precision,
)  # fmt: skip


def main(config: Config) -> None:
    for draw in PICTURES:
        if config.only and draw.__name__ not in config.only:
            continue
        draw(Path(config.folder, f"{draw.__name__}.svg"))
        print(f"{config.folder}/{draw.__name__}.svg")


if __name__ == "__main__":
    run_script(main, Config)
