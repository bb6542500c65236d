"""Draws the pictures of docs/book: graphs, and what was measured on this machine.

python scripts/book_pictures.py
"""

import itertools
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet.drawing import FILLS, Drawing, Vertex
from scratchnet.flags import flag, run_script
from scratchnet.report import new_figure, save_figure


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
    {"machines (MPI)": "parallel/mpi/*", "processes (pool)": "parallel/pool/*", "strategies": "parallel/*.py",
     "collectives": "parallel/comm/*"},
    {"recorded steps (jit)": "jit/*"},
    {"layers (nn)": "nn/**/*", "optimizers": "optim/*", "data": "data/**/*", "files (formats)": "formats/**/*"},
    {"tensors": "tensor.py", "functions": "[cfw]*.py", "autograd": "autograd.py"},
    {"ops: each function beside its derivative": "ops/*"},
    {"kernels: NumPy decides": "kernels/*.py", "kernels: cpu": "kernels/cpu/*", "kernels: cuda": "kernels/cuda/*"},
    {"native: Python becomes machine code": "native/*"},
)  # fmt: skip
LEAST = 0.18  # of the picture, the width of a box


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
    sn.report.plot_speedup(times, path)


def costs(path: Path) -> None:
    sn.report.plot_costs(sn.report.measure_costs(workers=2), path)


def timeline(path: Path) -> None:
    model, optimizer, x, y = network(256)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/run.json"
        options = {"workers": 2, "shards": 8, "progress": False, "timeline": file}
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), **options)
        trainer.fit(sn.data.DataLoader(sn.data.TensorDataset(x.numpy(), y.numpy()), batch_size=128), epochs=20)
        sn.report.plot_timeline(file, path)


PICTURES = five_steps, house, record, program, speedup, costs, timeline


def main(config: Config) -> None:
    for draw in PICTURES:
        if config.only and draw.__name__ not in config.only:
            continue
        draw(Path(config.folder, f"{draw.__name__}.svg"))
        print(f"{config.folder}/{draw.__name__}.svg")


if __name__ == "__main__":
    run_script(main, Config)
