"""Is a change slower? Measures two checkouts in pairs, and says how far their median ratio is known.

    git worktree add /tmp/before main
    python scripts/bench/pairs.py --before /tmp/before --cases "product(64, 784, 128)" "product(784, 64, 128, True)"
    python scripts/bench/pairs.py --before /tmp/before --threads 2 \\
        --setup "x = sn.tensor(np.ones((512, 784), np.float32))" --cases "lambda: sn.exp(x).numpy()"

A case is an expression for a function, which is called again and again; what it returns must have the same bits in both
checkouts. Each checkout has a process of its own; a pair is one turn of each, and every other pair begins with the
other one. The processes start anew now and then. On a machine that is not idle, take more pairs: the interval says when
there are enough.
"""

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script

PRODUCTS = (
    "product(64, 784, 128)",
    "product(784, 64, 128, True)",
    "product(64, 128, 784, False, True)",
    "product(512, 784, 128)",
    "product(784, 512, 128, True)",
    "product(1, 784, 128)",
    "product(64, 128, 10)",
    "product(512, 1024, 1024, False, True)",
    "product(1024, 1024, 1024)",
    "product(2048, 2048, 2048)",
)


@dataclass
class Config:
    """Measure two checkouts of scratchnet in pairs."""

    before: str = flag(".", "folder of the checkout that is compared with")
    after: str = flag(".", "folder of the checkout that may be slower")
    cases: tuple[str, ...] = flag(PRODUCTS, "expressions for functions; they see np, sn, product and the setup")
    setup: str = flag("", "statements that run before the cases")
    threads: int = flag(1, "threads, and cores")
    pairs: int = flag(40, "turns of each checkout")
    runs: int = flag(4, "pairs of processes that the turns are spread over, as memory lies elsewhere in each")
    seconds: float = flag(0.02, "length of a turn")


def aligned(shape: tuple[int, int]) -> np.ndarray:
    """Memory that begins with a page, in both checkouts: where an array lies in its lines of cache has its effect."""
    size = 4 * shape[0] * shape[1]
    memory = np.empty(size + 4096, np.uint8)
    start = -memory.ctypes.data % 4096
    return memory[start : start + size].view(np.float32).reshape(shape)


def product(m: int, k: int, n: int, transpose_a: bool = False, transpose_b: bool = False):
    """The product (m, k) @ (k, n) of the table `cpu`, with op(a) or op(b) stored transposed."""
    from scratchnet.kernels import device

    matmul = device("cpu").kernels["matmul"]
    a, b, out = (
        aligned(shape) for shape in ((k, m) if transpose_a else (m, k), (n, k) if transpose_b else (k, n), (m, n))
    )
    for x in a, b:
        np.random.default_rng(0).random(out=x, dtype=np.float32)

    def multiply():
        matmul(a, b, out, transpose_a, transpose_b)
        return out

    return multiply


def turn(call, seconds: float) -> float:
    """Seconds of one call: the fastest of the batches of calls that fit into a turn."""
    start = time.perf_counter()
    call()
    count = max(1, int(seconds / 10 / (time.perf_counter() - start)))
    end, best = start + seconds, math.inf
    while best == math.inf or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter() - start) / count)
    return best


def serve() -> None:
    """The process of one checkout: reads cases and turns from stdin, one JSON a line, and answers each with one."""
    scope: dict = {"np": np, "sn": sn, "product": product}
    call = None
    for line in sys.stdin:
        request = json.loads(line)
        if "setup" in request:
            exec(request["setup"], scope)
            answer: object = str(Path(sn.__file__).parents[1])
        elif "case" in request:
            call = eval(request["case"], scope)
            answer = hashlib.sha256(np.ascontiguousarray(call())).hexdigest()
        else:
            answer = turn(call, request["seconds"])
        print(json.dumps(answer), flush=True)


class Checkout:
    """A process that measures one checkout."""

    def __init__(self, folder: str, config: Config):
        names = ("NUMBA", "OMP", "OPENBLAS", "MKL")
        environment = os.environ | {f"{name}_NUM_THREADS": str(config.threads) for name in names}
        environment |= {"PYTHONPATH": str(Path(folder).absolute())}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.folder = self.ask(setup=config.setup)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else sys.exit("pairs.py: a process ended early, see above")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Of the median, whatever the distribution: it lies below the i-th smallest of n values with a chance of
    sum(comb(n, j) for j < i) / 2**n, and likewise above the i-th largest."""
    ordered, n = sorted(values), len(values)
    i, chance = 0, 1 / 2**n
    while chance + math.comb(n, i + 1) / 2**n <= (1 - confidence) / 2:
        i += 1
        chance += math.comb(n, i) / 2**n
    return ordered[i], ordered[-1 - i]


def main(config: Config) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: config.threads])
    print(f"{config.after} against {config.before}, threads: {config.threads}, pairs: {config.pairs}")
    print(f"{'':45} {'before':>10} {'after':>10}  after / before, 95 % interval")
    found: dict[str, tuple[list[float], list[float]]] = {case: ([], []) for case in config.cases}
    bits: dict[str, set[str]] = {case: set() for case in config.cases}
    for run in range(config.runs):
        both = Checkout(config.before, config), Checkout(config.after, config)
        for case, times in found.items():
            bits[case] |= {checkout.ask(case=case) for checkout in both}
            for pair in range(run, config.pairs, config.runs):
                for i in (0, 1) if pair % 2 else (1, 0):
                    times[i].append(both[i].ask(seconds=config.seconds))
        for checkout in both:
            checkout.close()
    for case, times in found.items():
        same = "same bits" if len(bits[case]) == 1 else "OTHER BITS"
        ratios = [after / before for before, after in zip(*times, strict=True)]
        low, high = interval(ratios)
        before, after = (f"{1e6 * statistics.median(t):.1f} us" for t in times)
        print(f"{case:45} {before:>10} {after:>10}  {statistics.median(ratios):.3f}  {low:.3f} to {high:.3f}  {same}")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        run_script(main, Config)
