"""What gpu_check.py does on a GPU, phase by phase: each calls `note(...)` with a row of results as soon as it has one.

Compile every kernel; compare each with its oracle; arrays above 2**31 elements; kernels and training steps beside
their peers; the reference network on CPU and GPU; the same launches under NVIDIA's checkers.
"""

import hashlib
import importlib
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import gpu_facts
import hypothesis
import numpy as np
from gpu_roofline import work_of

import scratchnet as sn
from scratchnet.kernels import device
from scratchnet.kernels.signatures import accepted, arrays_of
from scratchnet.parallel.pool.device_memory import VARIABLE as GRADIENTS
from scratchnet.testing import EDGES, KERNEL_ROWS, KernelCase, host_kernel, kernel_cases

Note = Callable[..., None]


def is_simulated() -> bool:
    from scratchnet.kernels.cuda.compile import SIMULATED

    return SIMULATED


def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(min(os.cpu_count() or 1, 16), multiprocessing.get_context("spawn"))


# --- the machine ------------------------------------------------------------------------------------------------------

LANES = {(7, 0): 64, (7, 5): 64, (8, 0): 64}  # float32 multiplications a multiprocessor starts in a cycle; others 128
HALVES = {(8, 0): 1024, (9, 0): 2048}  # of bfloat16 and float16 in its tensor cores, dense; others 512. Of TF32 half
CACHE = 128 << 20  # bytes: inputs rotate through so much memory that no cache holds them all


def versions(config: Any, note: Note) -> None:
    """The machine, for a reader of the report."""
    note(**machine())


def machine() -> dict:
    """What a reader of the report must know; bandwidth and float32 peak as the driver's figures give them, or None."""
    import numba

    found = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    for name in ("numba_cuda", "cupy", "torch"):
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            found[name] = None
    if is_simulated():
        return found | {"gpu": "Numba's simulator", "bandwidth": None, "float32": None}
    from scratchnet.kernels.cuda import driver

    gpu = driver.gpu()
    attribute = partial(driver.attribute, number=gpu.number)
    clock, bus = attribute("memory_clock_rate") * 1e3, attribute("global_memory_bus_width") / 8
    count = attribute("multiprocessor_count")
    lanes = LANES.get(gpu.capability, 128) * count
    return found | {
        "gpu": driver.call("cuDeviceGetName", 256, gpu.number).partition(b"\0")[0].decode(),
        "driver": driver.call("cuDriverGetVersion"),
        "compute_capability": gpu.capability,
        "multiprocessors": count,
        "memory": driver.call("cuMemGetInfo")[1],
        "bandwidth": 2 * clock * bus or None,
        "float32": 2 * lanes * attribute("clock_rate") * 1e3 or None,
        "halves": 2 * HALVES.get(gpu.capability, 512) * count * attribute("clock_rate") * 1e3,
    }


# --- compile ----------------------------------------------------------------------------------------------------------


def compile_all(config: Any, note: Note) -> None:
    """Every kernel with every signature, by all cores, into the cache: no phase waits for the compiler again."""
    if is_simulated():
        return
    from scratchnet.kernels.cuda.compile import machine as gpu

    architecture = "sm_{}{}".format(*gpu.gpu().capability)
    count = len(gpu_facts.launches())
    with _processes() as pool:
        parts = [pool.submit(_compile, range(i, count, 4 * 16), architecture) for i in range(4 * 16)]
        done = 0
        for part in as_completed(parts):
            for number, error in part.result():
                done += 1
                if error:
                    note(kernel=gpu_facts.launches()[number].name, wrong=f"does not compile: {error}")
    note(compiled=done, kernels=count)


def _compile(numbers: range, architecture: str) -> list[tuple[int, str | None]]:
    from scratchnet.kernels.cuda import machine_code

    launches = [(i, gpu_facts.launches()[i]) for i in numbers]
    make = machine_code.compiled
    return [(i, failure(partial(make, x.kernel.function, x.codes, x.kernel.bounds, architecture))) for i, x in launches]


# --- properties -------------------------------------------------------------------------------------------------------


def properties(config: Any, note: Note) -> None:
    """Every kernel against its oracle, on random arrays of awkward sizes and at offsets."""
    if is_simulated():
        for name in KERNEL_ROWS:
            note(kernel=name, wrong=property_of(name, config.examples))
        return
    with _processes() as pool:
        parts = {pool.submit(property_of, name, config.examples): name for name in KERNEL_ROWS}
        for part in as_completed(parts):
            note(kernel=parts[part], wrong=part.result())


def property_of(name: str, examples: int) -> str | None:
    """What is wrong with a kernel, or None."""
    simulated = is_simulated()
    sizes, most = ((0, 1, 2, 5, 9), 16) if simulated else ((*EDGES, 1000, 4097), 2**18)
    dtypes = [np.float32, np.float64] + [np.int64] * KERNEL_ROWS[name].integers
    cases = kernel_cases(name, dtypes=dtypes, sizes=sizes, max_elements=most)
    layouts = ("offset",) if simulated else ("C", "offset")
    check = partial(KernelCase.check, kernel=host_kernel("cuda", name), layouts=layouts)
    return failure(partial(_for_examples, cases, examples, check))


def _for_examples(cases: Any, examples: int, check: Callable[[KernelCase], None]) -> None:
    every, phases = list(hypothesis.HealthCheck), [hypothesis.Phase.generate]  # to shrink an example takes minutes
    options = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=every,
        phases=phases, report_multiple_bugs=False,
    )  # fmt: skip
    options(hypothesis.given(cases)(lambda case: check(case)))()


def failure(action: Callable[[], object]) -> str | None:
    """What an action raised, in one line; None if nothing."""
    try:
        action()
    except Exception as error:  # a report is worth most where something fails: it goes on with the next
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


# --- large arrays -----------------------------------------------------------------------------------------------------


def large(config: Any, note: Note) -> None:
    """Arrays above 2**31 elements, and products with more tiles than a grid has along its second axis."""
    from scratchnet.kernels.cuda import KERNELS, memory

    n, m = (2**31 + 1024, 9_000_000) if not is_simulated() else (64, 32)
    x, out = memory.empty(n, np.float32), memory.empty((1, 1), np.float32)
    KERNELS["fill"](x, 1.0)
    KERNELS["add"](x, x, x)
    for name in "min", "max":
        KERNELS[name](x.reshape(1, n, 1), out)
        note(what=f"{name} of {n:,} elements", **_expected(out.item(), 2.0))
    del x
    for rows, columns in (m, 3), (3, m):
        a, b, c = (memory.empty(shape, np.float32) for shape in ((rows, 16), (16, columns), (rows, columns)))
        KERNELS["fill"](a, 1.0)
        KERNELS["fill"](b, 0.5)
        KERNELS["matmul"](a, b, c, False, False)
        note(
            what=f"the last element of a product {rows:,} x {columns:,}",
            **_expected(c[rows - 1, columns - 1].item(), 8.0),
        )


def _expected(found: float, expected: float) -> dict:
    return {"found": found, "wrong": None if found == expected else f"expected {expected}, got {found}"}


# --- kernels ----------------------------------------------------------------------------------------------------------

PEERS = {  # name -> what a peer calls it, of its own arrays in the order of ours
    "exp": lambda xp, x: xp.exp(x),
    "tanh": lambda xp, x: xp.tanh(x),
    "add": lambda xp, a, b: a + b,
    "mul": lambda xp, a, b: a * b,
    "sum": lambda xp, x: x.sum(1),
    "matmul": lambda xp, a, b: a @ b,
    "matmul_bfloat16": lambda xp, a, b: (a.bfloat16() @ b.bfloat16()).float() if hasattr(xp, "bfloat16") else None,
    "linear": lambda xp, x, w, b: xp.addmm(b, x, w) if hasattr(xp, "addmm") else x @ w + b,
    "softmax": lambda xp, x: xp.softmax(x, 1) if hasattr(xp, "softmax") else None,
    "cross_entropy": lambda xp, x, y: (
        xp.nn.functional.cross_entropy(x, y, reduction="none") if hasattr(xp, "nn") else None
    ),
}


def kernels(config: Any, note: Note) -> None:
    """Each kernel and shape in float32: median seconds in a graph, the floor of this GPU, the medians of peers."""
    facts, peers = machine(), {}
    if not is_simulated():
        peers = {name: importlib.import_module(name) for name in ("cupy", "torch") if facts[name]}
    for name, shapes_of in gpu_facts.SHAPES.items():
        for shapes in shapes_of[:1] if is_simulated() else shapes_of:
            row: dict = {"kernel": name, "shapes": shapes}
            error = failure(partial(_time, config, name, shapes, facts, peers, row))
            note(**row, wrong=error)


def _time(config: Any, name: str, shapes: list, facts: dict, peers: dict, row: dict) -> None:
    from scratchnet.kernels.cuda import memory

    dtypes = next(iter(accepted(name, "cuda")))
    shapes = smaller(shapes, 3) if is_simulated() else shapes
    sets = [arrays_for(config.seed + i, name, shapes, dtypes) for i in range(1 if is_simulated() else _copies(shapes))]
    there = [[memory.from_host(x) for x in arrays] for arrays in sets]
    row["seconds"] = seconds_of(name, there, config.rounds)
    size, operations = work_of(name, shapes, dtypes)
    if facts["bandwidth"] and facts["float32"]:
        slower = {"matmul_tf32": 2, "matmul_tf32x3": 6}.get(name, 1)
        is_rounded = name.startswith("matmul_") or name.endswith("_rounded")
        peak = facts["halves" if is_rounded else "float32"] / slower
        row["floor"] = max(size / facts["bandwidth"], operations / peak)
    for peer, module in peers.items() if name in PEERS else ():
        row[peer] = _peer_time(peer, module, name, sets, config)


def smaller(shapes: list, most: int) -> list[tuple[int, ...]]:
    """Shapes with lengths of at most `most`; those under ten stay, since they count gates, statistics or a window."""
    return [tuple(n if n < 10 else min(n, most) for n in shape) for shape in shapes]


def _copies(shapes: list) -> int:
    return max(1, min(8, CACHE // max(sum(4 * int(np.prod(shape)) for shape in shapes), 1)))


# Integers number rows or classes: of which array, along which axis.
NUMBERED = {
    "take_rows": (0, 0),
    "scatter_rows": (2, 0),
    "add_rows": (4, 0),
    "argmax_rows": (3, 0),
    "cross_entropy": (0, 1),
    "cross_entropy_grad": (1, 1),
}


def arrays_for(seed: int, name: str, shapes: list, dtypes: tuple) -> list[np.ndarray]:
    """Floats from 0 to 1, and numbers of rows or classes."""
    rng = np.random.default_rng(seed)
    array, axis = NUMBERED.get(name, (0, 0))
    return [
        rng.random(shape, np.float32)
        if dtype.kind == "f"
        else rng.integers(0, shapes[array][axis], shape).astype(dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def seconds_of(name: str, sets: list, rounds: int) -> float:
    """Seconds of a call of ours: all sets in one graph, so that the host has no part in it."""
    from scratchnet.kernels.cuda.compile import Event, stream
    from scratchnet.kernels.cuda.memory import synchronize

    calls = [partial(device("cuda").kernels[name], *x, *gpu_facts.NUMBERS.get(name, ())) for x in sets]
    calls[0]()
    synchronize()
    if is_simulated():
        start = time.perf_counter()
        calls[0]()
        return time.perf_counter() - start
    numbers, new = gpu_facts.NUMBERS.get(name, ()), partial(Event, timing=True)
    (graph,) = device("cuda").replayed([(name, (*arrays, *numbers)) for arrays in sets])
    record, elapsed = (lambda mark: mark.record(stream())), (lambda start, end: start.elapsed_time(end))
    return _between_events([graph], rounds, new, record, elapsed) / len(sets)


def _peer_time(peer: str, module: Any, name: str, sets: list, config: Any) -> float | None:
    inputs, is_torch = arrays_of(name)[0], peer == "torch"
    move = (lambda x: module.from_numpy(x).cuda()) if is_torch else module.asarray
    calls = [partial(PEERS[name], module, *map(move, arrays[:inputs])) for arrays in sets]
    if calls[0]() is None:
        return None
    new = partial(module.cuda.Event, enable_timing=True) if is_torch else module.cuda.Event
    elapsed = (lambda start, end: start.elapsed_time(end)) if is_torch else module.cuda.get_elapsed_time
    if is_torch:
        module.cuda.synchronize()
        graph = module.cuda.CUDAGraph()
        with module.cuda.graph(graph):
            for call in calls:
                call()
        return _between_events([graph.replay], config.rounds, new, lambda mark: mark.record(), elapsed) / len(calls)
    return _between_events(calls, config.rounds, new, lambda mark: mark.record(), elapsed)


def _between_events(calls: list, rounds: int, new: Callable, record: Callable, elapsed: Callable) -> float:
    """Median seconds of a call between two events on the GPU, each round with other inputs, after a warm-up."""
    marks = [(new(), new()) for _ in range(rounds)]
    for call in calls[:3]:
        call()
    for i, (start, end) in enumerate(marks):
        record(start)
        calls[i % len(calls)]()
        record(end)
    marks[-1][1].synchronize()
    return statistics.median(elapsed(start, end) for start, end in marks) / 1e3


# --- training ---------------------------------------------------------------------------------------------------------

RUNS = {"cpu": 0, "cuda": 0, "one worker": 1, "workers": 2, "workers, through the host": 2}  # workers on GPUs


def _training(config: Any) -> dict:
    """The reference network on CPU, on GPU, and with workers on GPUs, or on the only one: training losses, test
    accuracies, and the largest relative difference of losses; digests of what was trained."""
    train, test = sn.data.load("fashion-mnist-mini")
    simulated = is_simulated()
    if simulated:  # the first 16 pixels of 8 and 4 images
        train, test = (
            sn.data.random_split(part, [n, len(part) - n])[0].map(lambda x: x[:, :16])
            for part, n in ((train, 8), (test, 4))
        )
    features, hidden, batch = (16, 4, 4) if simulated else (784, 128, 64)
    result: dict = {}
    devices = [f"cuda:{rank % sn.cuda.device_count()}" for rank in range(2)]
    for where, count in RUNS.items():
        os.environ[GRADIENTS] = "host" if "host" in where else "gpu"
        sn.manual_seed(config.seed)
        model = sn.nn.MLP(features, hidden, 10).to("cuda" if where == "cuda" else "cpu")
        optimizer = sn.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options = {"shards": 2, "seed": config.seed, "progress": False} | (
            {"workers": count, "devices": devices[:count]} if count else {}
        )
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), **options)
        loader = sn.data.DataLoader(train, batch, shuffle=True, seed=config.seed)
        start = time.perf_counter()
        history = trainer.fit(loader, epochs=1 if simulated else config.epochs)
        seconds = time.perf_counter() - start
        score = trainer.evaluate(sn.data.DataLoader(test, 1024))
        digest = hashlib.sha256(b"".join(x.tobytes() for x in model.state_dict().values())).hexdigest()
        result[where] = {"train_loss": history["train_loss"], "seconds": seconds, "digest": digest, **score}
        print(f"  {where:<7} losses {' '.join(f'{x:.5f}' for x in history['train_loss'])}  {score}", flush=True)
    expected, *others = (np.array(result[where]["train_loss"]) for where in RUNS)
    result["largest_relative_difference"] = max(float((np.abs(x - expected) / expected).max()) for x in others)
    result["allowed"] = 0.01  # rounding differences grow from step to step; curves that are 1 % apart look the same
    return result


def training(config: Any, note: Note) -> None:
    """The reference network on CPU, GPU and with workers, whose number changes no bit."""
    from scratchnet.kernels.cuda.ipc import why_not_shared

    result = _training(config)
    difference, allowed = result["largest_relative_difference"], result["allowed"]
    wrong = f"the losses of CPU and GPU are {difference:.2%} apart, expected at most {allowed:.0%}"
    one, two = (result[where]["digest"] for where in ("one worker", "workers"))
    if difference <= allowed:
        wrong = None if one == two else "two workers on GPUs gave other bits than one"
    note(**result, through_the_host=why_not_shared(), wrong=wrong)


# --- checkers ---------------------------------------------------------------------------------------------------------

TOOLS = {  # command: options
    "compute-sanitizer": [["--tool", tool, "--error-exitcode", "9"] for tool in ("memcheck", "racecheck", "initcheck")],
    "ncu": [["--clock-control", "none", "--kernel-name", "regex:multiply|loop", "--launch-count", "24", "--csv"]],
}


def checkers(config: Any, note: Note) -> None:
    """One launch of each kernel at awkward sizes under NVIDIA's tools, where they exist."""
    script = Path(__file__).with_name("gpu_check.py")
    for tool, runs in TOOLS.items():
        if shutil.which(tool) is None or is_simulated():
            note(tool=tool, missing=True)
            continue
        for options in runs:
            command = [tool, *options, sys.executable, str(script), "--phase", "launches", "--folder", config.folder]
            done = subprocess.run(command, capture_output=True, text=True)
            report = Path(config.folder) / f"{tool}-{options[1]}.txt"
            report.write_text(done.stdout + done.stderr)
            wrong = f"exit status {done.returncode}, see {report.name}" if done.returncode else None
            note(tool=f"{tool} {options[1]}", wrong=wrong)


def launch_all(config: Any, note: Note) -> None:
    """A call of each kernel, at sizes that are multiples of nothing."""
    from scratchnet.kernels.cuda import KERNELS, memory

    for name, shapes_of in gpu_facts.SHAPES.items():
        for shapes in shapes_of:
            dtypes = next(iter(accepted(name, "cuda")))
            arrays = arrays_for(1, name, smaller(shapes, 333), dtypes)
            error = failure(partial(KERNELS[name], *map(memory.from_host, arrays), *gpu_facts.NUMBERS.get(name, ())))
            if error:
                note(kernel=name, wrong=error)
    memory.synchronize()
