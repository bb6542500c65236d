"""The matrix product in four versions: the plain loop, blocked, packed, in registers. docs/matmul.md tells the story.

    python scripts/bench/matmul.py                                       # checks each version, then times it
    python scripts/bench/matmul.py --picture docs/pictures/matmul.png --cuts docs/pictures/matmul_cuts.png

Each version computes out (m, n) = a (m, k) @ b (k, n) in float32 on one thread, and says what it changes and why. The
last one is the product of the table `cpu` without its special cases (kernels/cpu/gemm_blocks.py). NumPy stands beside
them with the BLAS that it comes with, and the peak: the innermost loop of the last version on two lines of cache.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scratchnet.flags import flag, run_script
from scratchnet.kernels import device
from scratchnet.kernels.cpu.gemm_cuts import PAD, PANEL, ROWS, next_panel
from scratchnet.native.compile import jit, stamp
from scratchnet.native.llvm import Operand
from scratchnet.native.simd import TILE, Strip, tile

LANES = TILE.vector_bytes // 4  # float32 numbers in a vector
VECTORS, WIDTH = PANEL, PANEL * LANES  # of a tile in registers: vectors and columns; it has ROWS rows
WIDE = 128  # columns of a panel of b for loops
K_BLOCK, M_BLOCK = 512, 12 * ROWS  # steps of k, and rows of a, that are packed at a time

# ruff: noqa: F821 - bound by each stamp
inner: Callable
width: int


@dataclass
class Config:
    """Check the four versions of the matrix product, then time them."""

    sizes: tuple[int, ...] = flag((64, 128, 256, 512, 1024), "rows and columns of the matrices, which are square")
    rounds: int = flag(5, "turns of each version, of which the best one counts")
    seconds: float = flag(0.05, "length of a turn, at least one product")
    picture: str | None = flag(None, "file for a picture of GFLOP/s by size")
    cuts: str | None = flag(None, "file for a picture of how the last version cuts the matrices")


# --- 1: the plain loop ------------------------------------------------------------------------------------------------


@jit
def plain(a, b, out):
    (m, k), n = a.shape, b.shape[1]
    for i in range(m):
        for j in range(n):
            total = a.dtype.type(0)
            for s in range(k):
                total += a[i, s] * b[s, j]
            out[i, j] = total


# --- 2: blocked -------------------------------------------------------------------------------------------------------


@jit
def blocked(a, b, out):
    (m, k), n = a.shape, b.shape[1]
    out[:] = 0
    for k0 in range(0, k, 64):
        for j0 in range(0, n, 512):  # a block of b, 64 x 512, stays in L2 while all rows of a use it
            for i in range(m):
                row = out[i, j0 : j0 + 512]
                for s in range(k0, min(k, k0 + 64)):
                    factor, right = a[i, s], b[s, j0 : j0 + 512]
                    for j in range(row.size):
                        row[j] += factor * right[j]


# --- 3: packed; 4: in registers ---------------------------------------------------------------------------------------


@jit
def _packed(a, b, out):
    (m, k), n = a.shape, b.shape[1]
    left, right = np.empty((M_BLOCK, K_BLOCK + PAD), a.dtype), np.empty((1, K_BLOCK * n), a.dtype)
    out[:] = 0
    for k0 in range(0, k, K_BLOCK):
        depth = min(K_BLOCK, k - k0)
        for j in range(0, n, width):  # a panel: so many columns of b, one row of them right behind the other
            columns = min(width, n - j)
            panel = right[0, j * depth : (j + columns) * depth].reshape((depth, columns))
            for s in range(depth):
                panel[s] = b[k0 + s, j : j + columns]
        for i in range(0, m, M_BLOCK):
            rows = min(M_BLOCK, m - i)
            for r in range(rows):
                left[r, :depth] = a[i + r, k0 : k0 + depth]
            for j in range(0, n, width):
                inner(left, right, out, i, j, rows, depth)


@jit
def _loops(left, right, out, i0, j, rows, depth):
    columns = min(width, out.shape[1] - j)
    panel = right[0, j * depth : (j + columns) * depth].reshape((depth, columns))
    for i in range(rows):
        row = out[i0 + i, j : j + columns]
        for s in range(depth):
            factor, terms = left[i, s], panel[s]
            for c in range(columns):
                row[c] += factor * terms[c]


@jit
def _tiles(left, right, out, i0, j, rows, depth):
    n, row = out.shape[1], left.shape[1]
    columns, vectors, last = next_panel(min(n - j, WIDTH), VECTORS, LANES)
    panel = Operand(right, j * depth, columns, 0)
    for i in range(0, rows, ROWS):
        sums = Operand(out, (i0 + i) * n + j, n, 0)
        strip = Strip(1, depth, min(ROWS, rows - i), vectors, last, False, False, False)
        tile(Operand(left, i * row, row, 0), panel, sums, sums, sums, sums, sums, sums, strip)


VERSIONS = {
    "plain": plain,
    "blocked": blocked,
    "packed": stamp(_packed, "packed", inner=stamp(_loops, "loops", width=WIDE), width=WIDE),
    "in registers": stamp(_packed, "in_registers", inner=_tiles, width=WIDTH),
}

# --- checking and timing ----------------------------------------------------------------------------------------------


def operands(m: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a (m, k) and b (k, n), random, and out (m, n), not filled."""
    random = np.random.default_rng(0)
    a, b = random.standard_normal((m, k)), random.standard_normal((k, n))
    return a.astype(np.float32), b.astype(np.float32), np.full((m, n), np.nan, np.float32)


def errors(version: Callable, m: int, k: int, n: int) -> float:
    """The largest error of a version, in units of the bound for sums of k products: Higham (2002), section 3.1."""
    a, b, out = operands(m, k, n)
    version(a, b, out)
    exact, size = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    unit = k * np.finfo(np.float32).eps / 2
    return float(np.max(np.abs(out - exact) / (unit / (1 - unit) * size)))


@jit
def _run_tile(a, b, out, steps):
    left, right, sums = Operand(a, 0, 0, 0), Operand(b, 0, 0, 0), Operand(out, 0, WIDTH, 0)
    strip = Strip(1, steps, ROWS, VECTORS, WIDTH - LANES, True, False, False)
    tile(left, right, sums, sums, sums, sums, sums, sums, strip)


def measure_peak(seconds: float) -> float:
    """Operations a second of a tile that reads the same few numbers at every step."""
    a, b, out = (np.zeros((ROWS, WIDTH), np.float32) for _ in range(3))
    steps = 100_000
    return 2 * ROWS * WIDTH * steps / fastest(lambda: _run_tile(a, b, out, steps), seconds)


def fastest(call: Callable, seconds: float) -> float:
    """Seconds of the fastest call in a turn."""
    end, best = time.perf_counter() + seconds, float("inf")
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def main(config: Config) -> None:
    for name, version in VERSIONS.items():
        worst = max(errors(version, m, k, n) for m, k, n in [(1, 1, 1), (13, 70, 33), (150, 600, 95)])
        print(f"{name}: errors of at most {worst:.2f} bounds")
        if not worst <= 1:
            sys.exit(f"matmul.py: {name} is wrong")
    competitors = {**VERSIONS, "scratchnet": device("cpu").kernels["matmul"], "NumPy": np.matmul}
    speed: dict[str, list[float]] = {name: [] for name in competitors}
    for size in config.sizes:
        matrices = operands(size, size, size)
        best = dict.fromkeys(competitors, float("inf"))
        for _ in range(config.rounds):
            for name, multiply in competitors.items():
                best[name] = min(best[name], fastest(functools.partial(multiply, *matrices), config.seconds))
        for name, seconds in best.items():
            speed[name].append(2e-9 * size**3 / seconds)
    peak = max(measure_peak(config.seconds) for _ in range(config.rounds)) / 1e9
    print(f"\nGFLOP/s on one thread; the peak is {peak:.0f}")
    print("".join(f"{text:>14}" for text in ("size", *config.sizes)))
    for name, row in speed.items():
        print(f"{name:>14}" + "".join(f"{x:>14.1f}" for x in row))
    if config.picture:
        draw_speed(config.sizes, speed, peak, config.picture)
    if config.cuts:
        draw_cuts(config.cuts)


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw_speed(sizes, speed: dict[str, list[float]], peak: float, file: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, row in speed.items():
        peer = name in ("scratchnet", "NumPy")
        axes.plot(range(len(sizes)), row, "--" if peer else "-", marker="" if peer else "o", label=name)
    axes.axhline(peak, color="black", linewidth=1, label="peak")
    axes.set(yscale="log", xlabel="rows and columns", ylabel="GFLOP/s, one thread")
    axes.set_xticks(range(len(sizes)), sizes)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(file, dpi=120)


def draw_cuts(file: str) -> None:
    """a, b and out with what each level of memory holds of them: a block of a, panels of b, a tile of out."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    m, k, n = 6.0, 5.0, 7.0
    light, middle, dark = "#dbe9f6", "#89bedc", "#0b559f"
    for x, y, width, height, color in [
        (0, 0, k, m, "white"), (k + 1, m + 1, n, k, "white"), (k + 1, 0, n, m, "white"),  # a, b, out
        (0, 3, k / 2, 2, light), (k + 1, m + 1 + k / 2, n, k / 2, light),
        (k + 3, m + 1 + k / 2, 1, k / 2, middle), (0, 4.5, k / 2, 0.5, middle),
        (k + 1, 3, n, 2, light), (k + 3, 4.5, 1, 0.5, dark),
    ]:  # fmt: skip
        axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="black", linewidth=0.8))
    for x, y, text in [
        (k / 2, -0.5, "a"), (k + 1 + n / 2, -0.5, "out"), (k + 0.6, m + 1 + k / 2, "b"),
        (k / 4, 3.7, "block of a,\npacked: L2"), (k + 6, m + 1 + 3 * k / 4, "panels of b,\npacked"),
        (k + 3.5, m + 0.6 + k / 2, "a panel: L1 or L2"), (k + 6.2, 4.75, "a tile: registers"),
    ]:  # fmt: skip
        axes.text(x, y, text, ha="center", va="center", fontsize=10)
    axes.set(xlim=(-0.5, k + n + 1.5), ylim=(-1, m + k + 1.5), aspect="equal")
    axes.axis("off")
    figure.savefig(file, dpi=120)


def alone() -> dict[str, str]:
    """The environment in which every product has one thread, and OpenBLAS the kernels that it takes for the best."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    return kept | {f"{name}_NUM_THREADS": "1" for name in ("NUMBA", "OPENBLAS", "OMP", "MKL")}


if __name__ == "__main__":
    if alone() != dict(os.environ):  # it is read when NumPy and Numba load
        os.execve(sys.executable, [sys.executable, *sys.argv], alone())
    run_script(main, Config)
