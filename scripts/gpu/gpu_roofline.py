"""The least time that a kernel could take on a GPU, from its data sheet, and the part of that which its facts allow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scratchnet.jit.explain import CONVOLUTIONS


@dataclass
class Gpu:
    """What a data sheet says of a GPU. Bandwidth in bytes/s, arithmetic in float32 and float64 operations/s."""

    name: str
    architecture: str
    bandwidth: float
    float32: float
    float64: float
    multiprocessors: int
    clock: float
    threads: int = 2048  # of a multiprocessor, at most
    blocks: int = 32
    registers: int = 65536
    shared: int = 164 * 1024  # bytes of a multiprocessor for shared memory
    reserved: int = 1024  # bytes of shared memory that the system takes of each block
    latency: float = 600e-9  # seconds that a read from memory takes, about; so much must be under way at any time
    shared_bytes: int = 128  # that a multiprocessor reads from shared memory in a cycle
    issues: int = 4  # instructions of a warp that it starts in a cycle
    tensor: dict[str, float] = field(default_factory=dict)  # operations/s of tensor cores, dense


# NVIDIA A100 40GB SXM, data sheet: 1555 GB/s, 19.5 and 9.7 TFLOP/s without tensor cores, 108 multiprocessors, 1410 MHz;
# limits of compute capability 8.0 from the CUDA C++ Programming Guide, technical specifications.
TENSOR_CORES = {"bfloat16": 312e12, "float16": 312e12, "tf32": 156e12, "tf32x3": 52e12}
A100 = Gpu("NVIDIA A100 40GB SXM", "sm_80", 1555e9, 19.5e12, 9.7e12, 108, 1.41e9, tensor=TENSOR_CORES)


def occupancy(launch: Any, found: dict, gpu: Gpu = A100) -> tuple[int, float]:
    """(blocks that a multiprocessor holds at a time, the part of its threads that they are)."""
    warps = -(-launch.threads // 32)
    registers = -(-found["registers"] * 32 // 256) * 256 * warps  # given out by warps, in units of 256
    shared = found["shared"] + gpu.reserved
    blocks = min(gpu.blocks, gpu.threads // (warps * 32), gpu.registers // max(registers, 1), gpu.shared // shared)
    return blocks, blocks * warps * 32 / gpu.threads


# --- the roofline -----------------------------------------------------------------------------------------------------


def work(launch: Any) -> tuple[int, int]:
    return work_of(launch.name, [x.shape for x in launch.arrays], [x.dtype for x in launch.arrays])


def work_of(name: str, shapes: Sequence, dtypes: Sequence[np.dtype]) -> tuple[int, int]:
    """(bytes that must be read and written once, multiplications and additions) of a call."""
    sizes = [math.prod(shape) for shape in shapes]
    size = sum(n * dtype.itemsize for n, dtype in zip(sizes, dtypes, strict=True))
    if name in CONVOLUTIONS:
        return size, 2 * sizes[CONVOLUTIONS[name][0]] * math.prod(shapes[CONVOLUTIONS[name][1]][1:])
    if "matmul" not in name and name != "linear":
        return size, max(sizes)
    return size, 2 * sizes[-1] * (sizes[0] * shapes[-1][-1] // (sizes[-1] or 1))  # 2 m n k


def roofline(launch: Any, found: dict, gpu: Gpu = A100) -> dict:
    """floor: the least time on this GPU, in seconds. fraction: the part of that speed that the facts allow at most.

    Three things are counted. *Waves*: the grid fills the GPU a whole number of times, and the rest of the last time is
    idle. *Under way*: by Little's law bandwidth times latency bytes must be on their way: those that its
    threads ask for before a branch.
    *Issue*: in the inner loop of a product, loads from shared memory and other instructions take turns with the
    multiplications. Caches, clocks that fall and the distance between peak and possible bandwidth are not counted.
    """
    size, operations = work(launch)
    tensor = gpu.tensor.get(launch.precision or "")
    peak = tensor or (gpu.float64 if "d" in launch.dtypes else gpu.float32)
    by_memory, by_arithmetic = size / gpu.bandwidth, operations / peak
    resident, part = occupancy(launch, found, gpu)
    blocks = launch.blocks[0] * launch.blocks[1]
    places = gpu.multiprocessors * resident
    waves = blocks / (-(-blocks // places) * places)
    if by_arithmetic > by_memory and found["loop"]["fma"]:
        loop = found["loop"]
        width = 32 / (peak / 2 / gpu.multiprocessors / gpu.clock)  # cycles of a multiprocessor for one warp's fma
        arithmetic = loop["fma"] * width
        reads = (loop["shared_wide"] * 512 + loop["shared_narrow"] * 128) / gpu.shared_bytes
        issue = (loop["fma"] + loop["shared_wide"] + loop["shared_narrow"] + loop["other"]) / gpu.issues
        limits = {"waves": waves, "shared reads": arithmetic / reads, "issue": arithmetic / issue}
    else:
        busy = min(blocks, places) * launch.threads
        each = found["under_way"] or launch.arrays[-1].itemsize  # a kernel that reads nothing: what it writes
        under_way = busy * each / (gpu.bandwidth * gpu.latency)
        limits = {"waves": waves if blocks > places else 1.0, "bytes under way": under_way}
    reason = min(limits, key=lambda name: limits[name])
    fraction = min(1.0, limits.pop("waves")) * min(1.0, *limits.values())
    return {
        "bytes": size,
        "operations": operations,
        "bound": "arithmetic" if by_arithmetic > by_memory else "memory",
        "floor": max(by_memory, by_arithmetic),
        "fraction": fraction,
        "reason": reason if fraction < 0.995 else "-",
        "occupancy": part,
    }
