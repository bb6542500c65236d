"""What the compiler makes of every cuda kernel, found without a GPU: a table of facts, and each kernel's floor.

The kernels of the table are called on arrays that exist on paper only, and their launches are noted. Each kernel is
then compiled for the types of its launch, to PTX by numba-cuda and to machine code by nvJitLink, whose report is read.
"""

import itertools
import json
import multiprocessing
import os
import re
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
from gpu_roofline import A100, TENSOR_CORES, roofline

from scratchnet.flags import flag, run_script
from scratchnet.kernels import cuda as table
from scratchnet.kernels.cuda import compile, machine_code, memory
from scratchnet.kernels.cuda.compile import Kernel
from scratchnet.kernels.scalars import kernels_of
from scratchnet.kernels.signatures import DTYPES, SIGNATURES, accepted

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")

# --- launches on paper ------------------------------------------------------------------------------------------------


class _Paper:
    """A pool whose memory is addresses alone."""

    def __init__(self) -> None:
        self.address, self.last = 1 << 40, None

    @property
    def memory(self) -> "_Paper":
        return self

    def take(self, nbytes: int) -> "_Paper":
        block = _Paper()
        block.address, self.address = self.address, self.address + max(-(-nbytes // 512), 1) * 512
        return block


@dataclass
class Launch:
    """One launch, for a call of the table's kernel `name` on `arrays`: a grid of blocks of threads, and arguments."""

    name: str
    arrays: list  # of the call
    numbers: tuple
    kernel: Kernel
    blocks: tuple[int, int]
    threads: int
    arguments: tuple

    @property
    def codes(self) -> tuple:
        """Of the arguments, see kernels/cuda/machine_code.py."""
        return compile.packed(self.arguments)[0]

    @property
    def dtypes(self) -> str:
        return "".join(x.dtype.char for x in self.arguments if isinstance(x, memory.DeviceArray))

    @property
    def factory(self) -> str:
        return self.kernel.function.__qualname__.partition(".")[0]

    def is_for(self, architecture: str) -> bool:
        """Has a GPU of this architecture what the kernel needs?"""
        return int(architecture[3:]) >= (80 if self.is_in_warps else 0)

    @property
    def precision(self) -> str | None:
        """Of rounded operands."""
        if self.name.endswith("_rounded"):
            return self.numbers[-1]
        return self.name.removeprefix("matmul_") if self.name.startswith("matmul_") else None

    @property
    def is_in_warps(self) -> bool:
        """Does it multiply by tensor cores?"""
        return self.precision is not None and self.factory in ("product_in_warps", "convolving")

    @property
    def is_float32(self) -> bool:
        return "f" in self.dtypes and "d" not in self.dtypes


@contextmanager
def on_paper() -> Iterator[list]:
    """Inside, device memory is addresses alone, and launches are noted: (kernel, blocks, threads, arguments)."""
    noted: list = []
    token = compile.launcher.set(lambda *launch: noted.append(launch))
    try:
        has_tensor_cores = mock.patch.object(compile.machine, "has_tensor_cores", lambda: True)
        with mock.patch.object(memory, "pool", _Paper()), mock.patch.object(table, "_numbers", {}), has_tensor_cores:
            yield noted
    finally:
        compile.launcher.reset(token)


# Shapes of the arrays of a call, inputs then outputs, of each way in which a kernel can run. The sizes are those of
# training on a GPU: 4096 rows of 1024 features, a softmax over 4096 classes, products from large to small.
M, K, N = 4096, 1024, 1024
LONG, SHORT = (8192, 4096), (65536, 10)
PRODUCTS = (M, K, N), (1024, 1024, 1024), (256, 784, 512), (64, 784, 128)
FLAT, BROADCAST = [(M, N)] * 3, [(M, N), (N,), (M, N)]
REDUCED = [(*LONG, 1), (1, M * N, 1), (1, *LONG), (*SHORT, 1)]
STANDARDIZED = [(*LONG, 1), (1, M, N), (M, 128, 1)]
IMAGES, FILTERS = (128, 64, 28, 28), (64, 64, 3, 3)
CHANNELS = (128, 64, 784)
PLANES, POOLED = (8192, 28, 28), (8192, 14, 14)
BATCH_NORM = "batch_norm", "batch_norm_sums", "batch_norm_grad"
CELLS = {"rnn": (1, 1, 1, 1), "gru": (3, 5, 1, 2), "lstm": (4, 6, 2, 1)}  # gates, slots, states, gradients of gates
ROW = (512, N)
LABELLED = [[x, x[:1]] for x in (LONG, SHORT)]

SHAPES = {
    **{name: [FLAT[:2]] for name in (*kernels_of(1), "dropout")},
    **{
        name: [FLAT] if "?" in scalar.dtypes.split()[0] else [FLAT, BROADCAST] for name, scalar in kernels_of(2).items()
    },
    "where": [[(M, N)] * 4],
    **{name: [[x, (x[0], x[2])] for x in REDUCED] for name in ("sum", "max", "min", "argmax")},
    "standardize": [[x] * 2 for x in STANDARDIZED],
    "standardize_grad": [[x] * 3 for x in STANDARDIZED],
    "fill": [FLAT[:1]],
    "copy": [FLAT[:2]],
    "take_rows": [[(50_000, 256), (8192,), (8192, 256)]],
    "scatter_rows": [[(8192, 256), (8192,), (50_000, 256)]],
    "add_rows": [[(50_000, 256), (8192,), (8192,), (8192,), (512, 256)]],
    "argmax_rows": [[(50_000, 256), (8192,), (8192,), (512, 256)]],
    "matmul": [[(m, k), (k, n), (m, n)] for m, k, n in PRODUCTS],
    "batched_matmul": [[(256, 64, 32), (256, 32, 64), (256, 64, 64)]],
    **{f"matmul_{name}": [[(1, M, K), (1, K, N), (1, M, N)]] for name in TENSOR_CORES},
    "linear": [[(m, k), (k, n), (n,), (m, n)] for m, k, n in PRODUCTS],
    "conv2d": [[IMAGES, (n, *FILTERS[1:]), (n,), (128, n, 28, 28)] for n in (64, 8)],
    "conv2d_input": [[IMAGES, FILTERS, IMAGES]],
    "conv2d_weight": [[IMAGES, IMAGES, FILTERS]],
    "conv2d_rounded": [[IMAGES, FILTERS, FILTERS[:1], IMAGES]],
    "conv2d_input_rounded": [[IMAGES, FILTERS, IMAGES]],
    "conv2d_weight_rounded": [[IMAGES, IMAGES, FILTERS]],
    "channel_moments": [[CHANNELS, (2, 64)]],
    "batch_norm": [[CHANNELS, (2, 64), (64,), (64,), CHANNELS]],
    "batch_norm_sums": [[CHANNELS, CHANNELS, (2, 64), (2, 64)]],
    "batch_norm_grad": [[CHANNELS, CHANNELS, (2, 64), (64,), (2, 64), CHANNELS]],
    **{name: [[PLANES, POOLED]] for name in ("max_pool2d", "avg_pool2d")},
    "avg_pool2d_grad": [[POOLED, PLANES]],
    "take_in_rows": [[(8192, 784), (8192, 196), (8192, 196)]],
    "scatter_in_rows": [[(8192, 196), (8192, 196), (8192, 784)]],
    **{f"{x}_cell": [[(512, g, N), (512, g, N), (s, *ROW), ROW[:1], (s, *ROW)]] for x, (g, s, _, _) in CELLS.items()},
    **{
        f"{name}_cell_grad": [
            [(n, *ROW), (n, *ROW), ROW, (2, slots, *ROW), ROW[:1], *[(512, gates, N)] * written, (n, *ROW)]
        ]
        for name, (gates, slots, n, written) in CELLS.items()
    },
    **{name: [[x] * 2 for x in (LONG, SHORT)] for name in ("softmax", "log_softmax", "argsort")},
    "softmax_grad": [[x] * 3 for x in (LONG, SHORT)],
    "logsumexp": LABELLED,
    "cross_entropy": [[x, rows, rows] for x, rows in LABELLED],
    "cross_entropy_grad": [[rows, x, rows, x] for x, rows in LABELLED],
    "sgd": [[(M * N,)] * 5],
    "adam": [[(M * N,)] * 7],
    **{name: [[(M * N,)] * 7] for name in ("rmsprop", "adadelta")},
    "amsgrad": [[(M * N,)] * 9],
    "adagrad": [[(M * N,)] * 5],
}
TRANSPOSED = list(itertools.product((False, True), repeat=2))
ALL_WAYS = "matmul", "batched_matmul", "matmul_bfloat16"
WINDOWS = (1, 1), (1, 1), (1, 1), 1
ROUNDED = "conv2d_rounded", "conv2d_input_rounded", "conv2d_weight_rounded"
NUMBERS = {
    "matmul": TRANSPOSED[0],
    "sgd": (np.array([0.1, 0.9, 0.0, 1e-4]),),
    "adam": (np.array([1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0, 10.0]),),
    "amsgrad": (np.array([1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0, 10.0]),),
    "rmsprop": (np.array([1e-3, 0.99, 1e-8, 0.9, 0.0]),),
    "adagrad": (np.array([1e-2, 1e-10, 0.0]),),
    "adadelta": (np.array([1.0, 0.9, 1e-6, 0.0]),),
    "clip": (-1, 1),
    **dict.fromkeys(("rnn_cell", "rnn_cell_grad"), (False,)),
    "fill": (0,),
    **dict.fromkeys(("standardize", "standardize_grad", *BATCH_NORM), (1e-5,)),
    **dict.fromkeys(("conv2d", "conv2d_input", "conv2d_weight"), WINDOWS),
    **dict.fromkeys(ROUNDED, (*WINDOWS, "bfloat16")),
    "max_pool2d": ((2, 2), (2, 2), (0, 0), (1, 1)),
    **dict.fromkeys(("avg_pool2d", "avg_pool2d_grad"), ((2, 2), (2, 2), (0, 0), True)),
    "dropout": (0.1, np.array([1, 2], np.uint64)),
}


WAYS = dict.fromkeys(ALL_WAYS, TRANSPOSED) | {key: [(*WINDOWS, name) for name in TENSOR_CORES] for key in ROUNDED}


@cache
def launches() -> list[Launch]:
    """Every kernel with every signature that the table takes, each once: the first launch that needs it."""
    found: dict = {}
    with on_paper() as noted:
        for name in SIGNATURES:
            for dtypes in accepted(name, "cuda"):
                for shapes in SHAPES[name]:
                    for numbers in WAYS.get(name) or [NUMBERS.get(name, ())]:
                        arrays = [memory.empty(*pair) for pair in zip(shapes, dtypes, strict=True)]
                        if name in ALL_WAYS:
                            ways = zip(arrays, numbers, strict=False)
                            arrays[:2] = [x.swapaxes(-1, -2).copy() if t else x for x, t in ways]
                        _note(name, arrays, numbers, noted, found)
        for source, target in itertools.product(DTYPES, repeat=2):  # conversions, and copies between strides
            for x in memory.empty((N, M), source).T, memory.empty((2 * M, N), source)[::2]:
                _note("copy", [x, memory.empty((M, N), target)], (), noted, found)
    return list(found.values())


def _note(name: str, arrays: list, numbers: tuple, noted: list, found: dict) -> None:
    noted.clear()
    table.KERNELS[name](*arrays, *numbers)
    for kernel, blocks, threads, arguments in noted:
        grid = blocks if isinstance(blocks, tuple) else (blocks, 1)
        launch = Launch(name, arrays, numbers, kernel, grid, int(np.prod(threads)), arguments)
        found.setdefault((kernel.function, launch.codes), launch)


# --- compilation ------------------------------------------------------------------------------------------------------


IN_LOG = {  # fact: patterns in the linker's report, whose numbers are added
    "registers": [r"[Uu]sed (\d+) registers"],
    "spills": [r"(\d+) bytes spill stores", r"(\d+) bytes spill loads"],
    "stack": [r"(\d+) bytes stack frame"],
    "shared": [r"(\d+) bytes smem"],
    "barriers": [r"used (\d+) barriers"],
}
IN_PTX = {  # fact: instructions that are counted
    "local": r"\b(?:ld|st)\.local",
    "f64": r"\.f64\b",
    "fma": r"\bfma\.rn\.f(?:32|64)\b",
    "wide_loads": r"\bld\.global(?:\.nc)?\.v[24]\.",
    "wide_stores": r"\bst\.global\.v[24]\.",
    "mma": r"\bmma\.sync",
}


def facts(launch: Launch, architecture: str) -> dict:
    """registers, spills, stack (bytes), shared (bytes), barriers, counts of instructions in the PTX; hmma: see HMMA."""
    ptx = machine_code.ptx_of(launch.kernel.function, launch.codes, launch.kernel.bounds, architecture)
    code, log = machine_code.linked(ptx, architecture, "-Xptxas=-v", "-verbose")
    body = re.sub(r"//.*", "", ptx)
    found = {name: sum(int(n) for p in patterns for n in re.findall(p, log)[:1]) for name, patterns in IN_LOG.items()}
    found |= {name: len(re.findall(pattern, body)) for name, pattern in IN_PTX.items()}
    return found | {"under_way": most_read(body), "loop": inner_loop(body), "hmma": count_hmma(code)}


HMMA = 0x23C  # the lowest 12 bits of an instruction, of 16 bytes, that multiplies in tensor cores; nvdisasm agrees


def count_hmma(code: bytes) -> int:
    """Instructions of tensor cores in machine code: in the sections of an ELF file that are executed."""
    (headers,), (size, count) = struct.unpack_from("Q", code, 40), struct.unpack_from("HH", code, 58)
    found = 0
    for i in range(count):
        flags, _, start, length = struct.unpack_from("4Q", code, headers + i * size + 8)
        if flags & 4:  # executed
            first = np.frombuffer(code, np.uint64, length // 8, start)[::2]
            found += int(((first & np.uint64(0xFFF)) == HMMA).sum())
    return found


def facts_of_all(wanted: Sequence[tuple[int, str]]) -> list[dict]:
    """Facts of launches, by number in `launches()`, each for an architecture; every core compiles."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        return list(pool.map(_facts_of_one, wanted, chunksize=4))


def _facts_of_one(wanted: tuple[int, str]) -> dict:
    number, architecture = wanted
    return facts(launches()[number], architecture)


def most_read(ptx: str) -> int:
    """The most bytes that a thread asks memory for before it comes to a branch."""
    most = 0
    for block in re.split(r"\bbra\b|^\$\w+:", ptx, flags=re.MULTILINE):
        loads = re.findall(r"\bld\.global(?:\.nc)?(?:\.v(\d))?\.[a-z](\d+)\s", block)
        most = max(most, sum(int(n or 1) * int(bits) // 8 for n, bits in loads))
    return most


def inner_loop(ptx: str) -> dict:
    """Of the loop with the most fused multiply-adds: their number, loads from shared memory by width, the rest."""
    lines = [line.strip() for line in ptx.splitlines()]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    best = {"fma": 0, "shared_wide": 0, "shared_narrow": 0, "other": 0}
    for end, line in enumerate(lines):
        branch = re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", line)
        start = labels.get(branch[1], end) if branch else end
        body = [x for x in lines[start:end] if x and not x.endswith(":") and not x.startswith(".")]
        if start < end and not any(re.search(r"\bbra\b", x) for x in body):
            fma = sum(bool(re.search(r"\bfma\.rn", x)) for x in body)
            wide = sum("ld.shared.v" in x for x in body)
            narrow = sum(bool(re.search(r"\bld\.shared\.[a-z]", x)) for x in body) - wide
            if fma > best["fma"]:
                other = len(body) - fma - wide - narrow
                best = {"fma": fma, "shared_wide": wide, "shared_narrow": narrow, "other": other}
    return best


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass
class Config:
    """Compile every cuda kernel without a GPU, and print what the compiler and a data sheet say of it."""

    architectures: tuple[str, ...] = flag(("sm_80",), "architectures to compile for", list(ARCHITECTURES))
    only: str = flag("", "kernels whose name has this in it")
    json: str | None = flag(None, "a file for all figures")


COLUMNS = {
    "kernel": "<22", "written as": "<27", "types": "<9", "regs": ">8", "spill": ">6", "shared": ">8", "bar": ">4",
    "f64": ">4", "wide": ">5", "fma/read": ">9", "hmma": ">5", "occup.": ">8", "MB": ">8", "GFLOP": ">8",
    "floor us": ">10", "fraction": ">10", "  limit": "",
}  # fmt: skip


def main(config: Config) -> None:
    print(
        f"floors: {A100.name}, from its data sheet; fraction: the most of it that the facts allow, and what limits it"
    )
    print("registers, shared bytes, barriers and occupancy of sm_80 where that is among the architectures\n")
    print("".join(f"{title:{form}}" for title, form in COLUMNS.items()))
    rows = []
    chosen = [(i, launch) for i, launch in enumerate(launches()) if config.only in launch.name]
    wanted = [(i, arch) for i, launch in chosen for arch in config.architectures if launch.is_for(arch)]
    by_number = dict(zip(wanted, facts_of_all(wanted), strict=True))
    for number, launch in chosen:
        if not (found := {arch: by_number[number, arch] for arch in config.architectures if launch.is_for(arch)}):
            continue
        first = found.get(A100.architecture) or next(iter(found.values()))
        roof, loop = roofline(launch, first), first["loop"]
        reads = loop["shared_wide"] + loop["shared_narrow"]
        cells = (
            launch.name, launch.factory, launch.precision or launch.dtypes,
            "/".join(str(f["registers"]) for f in found.values()),
            sum(f["spills"] for f in found.values()), first["shared"], first["barriers"],
            first["f64"] if launch.is_float32 else "", first["wide_loads"],
            f"{loop['fma'] / reads:.0f}" if reads and loop["fma"] > 8 else "", first["hmma"] or "",
            f"{roof['occupancy']:.0%}", f"{roof['bytes'] / 1e6:.1f}", f"{roof['operations'] / 1e9:.3f}",
            f"{roof['floor'] * 1e6:.1f}", f"{roof['fraction']:.0%}", f"  {roof['reason']}",
        )  # fmt: skip
        print("".join(f"{cell:{form}}" for cell, form in zip(cells, COLUMNS.values(), strict=True)))
        rows.append({"kernel": launch.name, "factory": launch.factory, "types": launch.dtypes, "facts": found} | roof)
    all_facts = [(row["types"], f) for row in rows for f in row["facts"].values()]
    spills = sum(f["spills"] + f["stack"] for _, f in all_facts)
    doubles = sum(f["f64"] for types, f in all_facts if "d" not in types and "f" in types)
    print(f"\n{len(rows)} kernels for {', '.join(config.architectures)}: {spills} bytes of spills and stack, ", end="")
    print(f"{doubles} float64 instructions in float32 kernels")
    if config.json:
        Path(config.json).write_text(json.dumps({"gpu": asdict(A100), "kernels": rows}, indent=1))


if __name__ == "__main__":
    run_script(main, Config)
