"""How products are cut on this CPU: a good start for CPUs of its kind, or what a search measured here and kept.

`load` runs before the first kernel. `search` times candidates for each number of `Cuts`, one after the other, beside
those in use; `keep` writes what won next to the compiled kernels, under the CPU's name, where later processes find it.
SCRATCHNET_TUNING=off leaves everything at the start. No bit of a result depends on any of this (gemm_blocks.py).
"""

import contextlib
import hashlib
import json
import os
import statistics
import time
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

from ... import checks
from ...native.cache import writable_folder
from ...native.compile import before_first_kernel, get_num_threads, set_num_threads
from ...native.simd import TILE
from . import gemm
from .gemm_cuts import BLOCK_UNIT, MOST_M_BLOCK, NEVER, Cuts, get_cuts, set_cuts

VARIABLE = "SCRATCHNET_TUNING"

STARTS = {  # by the first feature that the CPU has
    "amx-tile": Cuts(288, NEVER, 320, 1 << 20, 1 << 25),  # Sapphire Rapids and later: 2 MiB of L2, 12 ways of L1
    "avx512vp2intersect": Cuts(288, NEVER, 320, 1 << 20, 1 << 23),  # Zen 5, Tiger Lake: 12 ways of L1, 1 MiB of L2
    "": Cuts({64: 144, 32: 72, 16: 72}[TILE.vector_bytes], 256, 160, 1 << 20, 1 << 23),  # Zen 3, Zen 4
}

CANDIDATES = {
    "m_block": (72, 144, 216, 288, 360),
    "pack_a_columns": (256, 1024, NEVER),
    "pack_b_rows": (160, 320, 640),
    "small_product": (1 << 19, 1 << 20, 1 << 21),
    "serial_product": (1 << 20, 1 << 23, 1 << 25),
}
PRODUCTS = {  # (m, k, n, is a transposed?) that show what a number brings; the others, with all numbers of threads
    "small_product": ((64, 64, 128, False), (64, 128, 128, False), (128, 128, 128, False)),
    "serial_product": ((128, 128, 128, False), (256, 256, 256, False)),
    "": ((256, 256, 256, False), (512, 784, 128, True), (512, 512, 512, False), (1024, 1024, 1024, False)),
}
LARGEST = 1 << 16  # bytes; a file as long as that was not written by `keep`
ROUNDS, WORTH = 8, 1.03  # how often each candidate is timed; how much faster it has to be than what is in use


def start() -> Cuts:
    features = llvm.get_host_cpu_features()
    return next(cuts for feature, cuts in STARTS.items() if features.get(feature, feature == ""))


def kept_in() -> Path | None:
    """The file of this CPU; None without a cache folder."""
    folder = writable_folder()
    features = hashlib.sha256(llvm.get_host_cpu_features().flatten().encode()).hexdigest()[:8]
    return folder and folder.parent / f"tuning-{llvm.get_host_cpu_name()}-{features}.json"


def kept() -> Cuts | None:
    """What `keep` kept; None where there is nothing, or nothing that this version can use."""
    file = kept_in()
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        if file is None or not file.is_file() or file.stat().st_size >= LARGEST:  # a pipe would be waited for
            return None
        cuts = Cuts(**json.loads(file.read_text()))
        whole = all(type(n) is int and 0 <= n <= NEVER for n in cuts)
        if whole and cuts.m_block % BLOCK_UNIT == 0 and BLOCK_UNIT <= cuts.m_block <= MOST_M_BLOCK:
            return cuts
    return None


def is_on() -> bool:
    return checks.one_of(VARIABLE, os.environ.get(VARIABLE, "on"), ("on", "off")) == "on"


def load() -> None:
    """Cut as this machine was found to be fastest."""
    set_cuts((kept() if is_on() else None) or start())


def prepare() -> None:
    """Let `load` run before the first kernel. Where none is compiled, the start will do."""
    set_cuts(start())
    before_first_kernel(load)


def keep(cuts: Cuts) -> Path | None:
    """Writes `cuts` for later processes, and returns where; None without a cache folder."""
    if (file := kept_in()) is not None:
        new = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            new.write_text(json.dumps(cuts._asdict()))
            os.replace(new, file)
        finally:
            new.unlink(missing_ok=True)  # of a full disk
    return file


def in_words(number: int) -> str:
    return str(number) if number < NEVER else "never"


def describe() -> str:
    """The numbers in use, and where they come from."""
    numbers = (f"{name} {in_words(n)}" for name, n in get_cuts()._asdict().items())
    file, used = kept_in(), is_on() and kept()
    origin = "measured here" if used else "the start for CPUs of this kind"
    if is_on() and not used and file is not None and os.path.lexists(file):
        origin += f"; {file} is not used, since no search of this version wrote it (--forget removes it)"
    return f"{', '.join(numbers)}: {origin}"


# --- the search -------------------------------------------------------------------------------------------------------


def seconds_of(products) -> list[float]:
    """How long each product takes, once."""
    found = []
    for run in products:
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return found


def speedup(products, cuts, other) -> float:
    """How many times as fast as with `other` these products are with `cuts`: the best of some rounds of pairs."""
    best = {cuts: [np.inf] * len(products), other: [np.inf] * len(products)}
    for _ in range(ROUNDS):
        for choice, times in best.items():
            set_cuts(choice)
            times[:] = map(min, times, seconds_of(products))
    return statistics.geometric_mean([b / a for a, b in zip(best[cuts], best[other], strict=True)])


def search(say=print) -> Cuts:
    """The best numbers for this machine as it is now, found in a few seconds; `say` gets a line for each candidate.

    Each number is tried in turn, with one thread and with all; a candidate wins if it is WORTH times as fast.
    """
    rng, all_threads, multiply = np.random.default_rng(0), get_num_threads(), gemm.at_once(gemm.matmul)
    best, before = get_cuts(), get_cuts()

    def product(m, k, n, transposed):
        a, b = (rng.standard_normal(shape, np.float32) for shape in ((k, m) if transposed else (m, k), (k, n)))
        out = np.empty((m, n), np.float32)
        times = max(1, 10**7 // (m * k * n))  # several, where one is too short for a clock
        return lambda: [multiply(a, b, out, transposed) for _ in range(times)]

    try:
        for name, values in CANDIDATES.items():
            products = [product(*shape) for shape in PRODUCTS.get(name, PRODUCTS[""])]
            counts = {"small_product": {all_threads} - {1}, "serial_product": {1}}.get(name, {1, all_threads})
            for value in values:
                candidate = best._replace(**{name: value})
                if candidate == best or not counts:
                    continue
                gains = []
                for count in sorted(counts):
                    set_num_threads(count)
                    gains.append(speedup(products, candidate, best))
                gain = statistics.geometric_mean(gains)
                say(f"{name} {in_words(value)}: {gain:.3f} times as fast as {in_words(getattr(best, name))}")
                if gain > WORTH:
                    best = candidate
    finally:
        set_num_threads(all_threads)
        set_cuts(before)
    return best
