"""What the compiler makes of every cuda kernel, found without a GPU: a table of facts, and each kernel's floor.

The kernels of the table are called on arrays that exist on paper only, and their launches are noted. Each kernel is
then compiled for the types of its launch, to PTX by numba-cuda and to machine code by nvJitLink, whose report is read.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import numba
import numpy as np

from scratchnet.errors import ConfigError
from scratchnet.kernels import cuda as table
from scratchnet.kernels.cuda import compile, memory
from scratchnet.kernels.cuda.compile import Kernel

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")


@dataclass
class Gpu:
    """What a data sheet says of a GPU. Bandwidth in bytes/s, arithmetic in float32 and float64 operations/s."""

    name: str
    architecture: str
    bandwidth: float
    float32: float
    float64: float
    multiprocessors: int
    threads: int = 2048  # of a multiprocessor, at most
    blocks: int = 32
    registers: int = 65536
    shared: int = 164 * 1024  # bytes of a multiprocessor for shared memory
    reserved: int = 1024  # bytes of shared memory that the system takes of each block


# NVIDIA A100 40GB SXM: data sheet of 2020 (1555 GB/s, 19.5 and 9.7 TFLOP/s without tensor cores, 108 multiprocessors);
# limits of compute capability 8.0 from the CUDA C++ Programming Guide, technical specifications.
A100 = Gpu("NVIDIA A100 40GB SXM", "sm_80", 1555e9, 19.5e12, 9.7e12, 108)

# --- launches on paper ------------------------------------------------------------------------------------------------


class _Paper:
    """A pool whose memory is addresses alone."""

    def __init__(self) -> None:
        self.address = 1 << 40

    def take(self, nbytes: int) -> "_Paper":
        block = _Paper()
        block.address, self.address = self.address, self.address + max(-(-nbytes // 512), 1) * 512
        return block


@dataclass
class Launch:
    """One launch: for a kernel of the table, on a grid of blocks of threads, with these arguments."""

    name: str
    letters: str
    kernel: Kernel
    blocks: tuple[int, int]
    threads: int
    arguments: tuple
    facts: dict[str, dict] = field(default_factory=dict)

    @property
    def types(self) -> tuple:
        return tuple(_type(x) for x in self.arguments)

    @property
    def label(self) -> str:
        own = self.kernel.function.__qualname__.partition(".")[0]
        return f"{self.name} {self.letters}".ljust(24) + own


def _type(x) -> numba.types.Type:
    if isinstance(x, memory.DeviceArray):
        return numba.types.Array(numba.from_dtype(x.dtype), 1, "C")
    if isinstance(x, tuple):
        return numba.types.UniTuple(_type(x[0]), len(x))
    return numba.typeof(x)


@contextmanager
def on_paper() -> Iterator[list]:
    """Inside, device memory is addresses alone, and launches are noted: (kernel, blocks, threads, arguments)."""
    noted: list = []
    token = compile.launcher.set(lambda *launch: noted.append(launch))
    try:
        with mock.patch.object(memory, "pool", _Paper()), mock.patch.object(table, "_numbers", {}):
            yield noted
    finally:
        compile.launcher.reset(token)


# Shapes of the arrays of a call, inputs then outputs, and the numbers after them: one list for each way that a kernel
# has to run. Sizes are those of training on a GPU: 4096 rows of 1024 features, a softmax over 32,768 classes.
M, K, N = 4096, 1024, 1024
ROWS, SHORT, LONG = (8192, 4096), (65536, 10), (4, 1 << 24)
_FLAT, _BROADCAST = [(M, N), (M, N)], [(M, N), (N,), (M, N)]
_NUMBERS = {
    "sgd": (np.array([0.1, 0.9, 0.0, 1e-4]),),
    "adam": (np.array([1e-3, 0.9, 0.999, 1e-8, 0.01, 1.0, 10.0]),),
    "rmsprop": (np.array([1e-3, 0.99, 1e-8, 0.9, 0.0]),),
    "clip": (-1, 1),
    "standardize": (1e-5,),
    "standardize_grad": (1e-5,),
    "dropout": (0.1, np.array([1, 2], np.uint64)),
}
_REDUCED = [
    [(*ROWS, 1), (ROWS[0], 1)],
    [(1, M * N, 1), (1, 1)],
    [(1, *ROWS), (1, ROWS[1])],
    [(*SHORT, 1), (SHORT[0], 1)],
]
_OWN_SHAPES = {
    "where": [[(M, N)] * 4],
    "sum": _REDUCED,
    "max": _REDUCED,
    "min": _REDUCED,
    "argmax": [[(*ROWS, 1), (ROWS[0], 1)], [(*SHORT, 1), (SHORT[0], 1)]],
    "standardize": [[(*ROWS, 1)] * 2, [(1, M, N)] * 2, [(M, 128, 1)] * 2],
    "standardize_grad": [[(*ROWS, 1)] * 3, [(1, M, N)] * 3, [(M, 128, 1)] * 3],
    "take_rows": [[(50_000, 256), (8192,), (8192, 256)]],
    "scatter_rows": [[(8192, 256), (8192,), (50_000, 256)]],
    "linear": [[(M, K), (K, N), (N,), (M, N)], [(256, 784), (784, 512), (512,), (256, 512)], [(64, 784), (784, 128), (128,), (64, 128)]],
    "softmax": [[ROWS] * 2, [SHORT] * 2],
    "softmax_grad": [[ROWS] * 3, [SHORT] * 3],
    "log_softmax": [[ROWS] * 2, [SHORT] * 2],
    "logsumexp": [[ROWS, ROWS[:1]], [SHORT, SHORT[:1]]],
    "cross_entropy": [[ROWS, ROWS[:1], ROWS[:1]], [SHORT, SHORT[:1], SHORT[:1]]],
    "cross_entropy_grad": [[ROWS[:1], ROWS, ROWS[:1], ROWS], [SHORT[:1], SHORT, SHORT[:1], SHORT]],
}  # fmt: skip


def _cases(name: str, count: int) -> list[tuple[list, tuple]]:
    """(shapes, numbers) of each way in which a kernel can run."""
    numbers = _NUMBERS.get(name, ())
    if name == "matmul":
        sizes = [(M, K, N), (256, 784, 512), (64, 784, 128)]
        return [
            ([(k, m) if s else (m, k), (n, k) if t else (k, n), (m, n)], (s, t))
            for m, k, n in sizes for s in (False, True) for t in (False, True)
        ]  # fmt: skip
    if name in _OWN_SHAPES:
        return [(shapes, numbers) for shapes in _OWN_SHAPES[name]]
    flat = [([(M, N)] * count, numbers)]
    return flat + [([(M, N), (N,), (M, N)], numbers)] if count == 3 and name in table.elementwise.BINARY + table.elementwise.GRADIENTS + table.elementwise.COMPARISONS else flat  # fmt: skip


def launches() -> list[Launch]:
    """Every kernel with every signature that the table takes, each once: the first launch that needs it."""
    found: dict = {}
    signatures = table.SIGNATURES | {"fill": "f l B ?", "copy": "f->f l->l B->B ?->?"}
    with on_paper() as noted:
        for name, signature in signatures.items():
            for dtypes, letters in table.accepted(signature).items():
                for shapes, numbers in _cases(name, len(dtypes)):
                    arrays = [memory.empty(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
                    numbers = (0,) if name == "fill" else numbers
                    _note(name, "".join(d.char for d in dtypes), arrays, numbers, noted, found)
        for source in memory.DTYPES:  # conversions, and copies between strides
            for target in memory.DTYPES:
                x, out = memory.empty((N, M), source), memory.empty((M, N), target)
                _note("copy", f"{source.char}{target.char}", [x.T, out], (), noted, found)
    return list(found.values())


def _note(name, letters, arrays, numbers, noted, found) -> None:
    noted.clear()
    table.KERNELS[name](*arrays, *numbers)
    for kernel, blocks, threads, arguments in noted:
        if any(not isinstance(x, memory.DeviceArray) and x is None for x in arguments):
            raise ConfigError(f"{name}: expected arguments, got None")
        grid = blocks if isinstance(blocks, tuple) else (blocks, 1)
        count = int(np.prod(threads))
        launch = Launch(name, letters, kernel, grid, count, arguments)
        found.setdefault((kernel.function, launch.types), launch)


# --- compilation ------------------------------------------------------------------------------------------------------


def ptx_of(launch: Launch, architecture: str) -> str:
    cc = (int(architecture[3:-1]), int(architecture[-1]))
    ptx, _ = compile.numba_cuda.compile_ptx(
        launch.kernel.function, launch.types, cc=cc, launch_bounds=launch.kernel.threads
    )
    return ptx


def linked(ptx: str, architecture: str) -> str:
    """What the linker says of the machine code that it makes of PTX."""
    from cuda.bindings import nvjitlink

    handle = nvjitlink.create(3, [f"-arch={architecture}", "-Xptxas=-v", "-verbose"])
    try:
        code = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
        nvjitlink.complete(handle)
        size = nvjitlink.get_info_log_size(handle)
        log = bytearray(size)
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    return log.decode()


def facts(launch: Launch, architecture: str) -> dict:
    """registers, spills, stack (bytes), shared (bytes), barriers, and counts of instructions in the PTX."""
    ptx = ptx_of(launch, architecture)
    log = linked(ptx, architecture)
    body = re.sub(r"//.*", "", ptx)

    def number(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, log)[:1])

    return {
        "registers": number(r"[Uu]sed (\d+) registers"),
        "spills": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "stack": number(r"(\d+) bytes stack frame"),
        "shared": number(r"(\d+) bytes smem"),
        "barriers": number(r"used (\d+) barriers"),
        "local": len(re.findall(r"\b(?:ld|st)\.local", body)),
        "f64": len(re.findall(r"\.f64\b", body)),
        "fma": len(re.findall(r"\bfma\.rn\.f(?:32|64)\b", body)),
        "wide_loads": len(re.findall(r"\bld\.global(?:\.nc)?\.v[24]\.", body)),
        "wide_stores": len(re.findall(r"\bst\.global\.v[24]\.", body)),
        "loop": inner_loop(body),
    }


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


def occupancy(launch: Launch, found: dict, gpu: Gpu = A100) -> tuple[int, float]:
    """(blocks that a multiprocessor holds at a time, the part of its threads that they are)."""
    warps = -(-launch.threads // 32)
    registers = -(-found["registers"] * 32 // 256) * 256 * warps  # given out by warps, in units of 256
    shared = found["shared"] + gpu.reserved
    blocks = min(gpu.blocks, gpu.threads // (warps * 32), gpu.registers // max(registers, 1), gpu.shared // shared)
    return blocks, blocks * warps * 32 / gpu.threads
