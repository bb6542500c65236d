"""One command for a person with a GPU: are the cuda kernels right, how fast are they, does training come out the same?

Properties of every kernel against its oracle, times against the floor of this GPU and against CuPy and PyTorch where
they are installed, and the reference network trained on CPU and GPU. It leaves report.json and report.txt, to be
attached to a bug report. With NUMBA_ENABLE_CUDASIM=1 it goes through all of it in a small way, without any meaning of
the times.
"""

import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gpu_facts
import hypothesis
import numpy as np

import scratchnet as sn
from scratchnet.flags import flag, run_script
from scratchnet.kernels import device
from scratchnet.kernels.signatures import accepted, arrays_of
from scratchnet.testing import EDGES, KERNEL_ROWS, KernelCase, host_kernel, kernel_cases


@dataclass
class Config:
    """Check the cuda kernels on this machine's GPU."""

    folder: str = flag("gpu-check", "where report.json and report.txt go")
    examples: int = flag(50, "random calls of each kernel")
    rounds: int = flag(50, "timed calls of each kernel; the median counts")
    epochs: int = flag(5, "of the reference network on CPU and GPU")
    seed: int = flag(0, "of the data and initial weights")


# --- the machine ------------------------------------------------------------------------------------------------------

LANES = {(7, 0): 64, (7, 5): 64, (8, 0): 64}  # float32 multiplications a multiprocessor starts in a cycle; others 128
CACHE = 128 << 20  # bytes: inputs rotate through so much memory that no cache holds them all


def machine(simulated: bool) -> dict:
    """What a reader of the report must know; bandwidth and float32 peak as the driver's figures give them, or None."""
    import numba

    found = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    for name in ("numba_cuda", "cupy", "torch"):
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            found[name] = None
    if simulated:
        return found | {"gpu": "Numba's simulator", "bandwidth": None, "float32": None}
    from scratchnet.kernels.cuda import driver

    gpu = driver.gpu()
    attribute = partial(driver.attribute, number=gpu.number)
    clock, bus = attribute("memory_clock_rate") * 1e3, attribute("global_memory_bus_width") / 8
    lanes = LANES.get(gpu.capability, 128) * attribute("multiprocessor_count")
    return found | {
        "gpu": driver.call("cuDeviceGetName", 256, gpu.number).rstrip(b"\0").decode(),
        "driver": driver.call("cuDriverGetVersion"),
        "compute_capability": gpu.capability,
        "multiprocessors": attribute("multiprocessor_count"),
        "memory": driver.call("cuMemGetInfo")[1],
        "bandwidth": 2 * clock * bus or None,
        "float32": 2 * lanes * attribute("clock_rate") * 1e3 or None,
    }


# --- properties -------------------------------------------------------------------------------------------------------


def properties(config: Config, simulated: bool) -> dict[str, str | None]:
    """For each kernel None, or what is wrong with it."""
    sizes, most = ((0, 1, 2, 5, 9), 16) if simulated else ((*EDGES, 1000, 4097), 2**18)
    layouts = ("offset",) if simulated else ("C", "offset")
    result: dict[str, str | None] = {}
    for name, row in KERNEL_ROWS.items():
        dtypes = [np.float32, np.float64] + [np.int64] * row.integers
        cases = kernel_cases(name, dtypes=dtypes, sizes=sizes, max_elements=most)
        check = partial(KernelCase.check, kernel=host_kernel("cuda", name), layouts=layouts)
        result[name] = _failure(partial(_for_examples, cases, config.examples, check))
        print(f"  {name:<20} {result[name] or 'as its oracle says'}", flush=True)
    return result


def _for_examples(cases: Any, examples: int, check: Callable[[KernelCase], None]) -> None:
    every, phases = list(hypothesis.HealthCheck), [hypothesis.Phase.generate]  # to shrink an example takes minutes
    options = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=every,
        phases=phases, report_multiple_bugs=False,
    )  # fmt: skip
    options(hypothesis.given(cases)(lambda case: check(case)))()


def _failure(action: Callable[[], object]) -> str | None:
    try:
        action()
    except Exception as error:  # a report is worth most where something fails: it goes on with the next
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


# --- times ------------------------------------------------------------------------------------------------------------

PEERS = {  # name -> what a peer calls it, of its own arrays in the order of ours
    "exp": lambda xp, x: xp.exp(x),
    "tanh": lambda xp, x: xp.tanh(x),
    "add": lambda xp, a, b: a + b,
    "mul": lambda xp, a, b: a * b,
    "sum": lambda xp, x: x.sum(1),
    "matmul": lambda xp, a, b: a @ b,
    "linear": lambda xp, x, w, b: xp.addmm(b, x, w) if hasattr(xp, "addmm") else x @ w + b,
    "softmax": lambda xp, x: xp.softmax(x, 1) if hasattr(xp, "softmax") else None,
    "cross_entropy": lambda xp, x, y: (
        xp.nn.functional.cross_entropy(x, y, reduction="none") if hasattr(xp, "nn") else None
    ),
}


def times(config: Config, facts: dict, simulated: bool) -> list[dict]:
    """A row for each kernel and shape, in float32: median seconds, the floor, and the medians of peers."""
    from scratchnet.kernels.cuda import memory

    where, rows = device("cuda"), []
    peers = {} if simulated else {name: importlib.import_module(name) for name in ("cupy", "torch") if facts[name]}
    for name, shapes_of in gpu_facts.SHAPES.items():
        dtypes = next(iter(accepted(name, "cuda")))
        for shapes in shapes_of[:1] if simulated else shapes_of:
            shapes = [tuple(min(n, 3) for n in shape) for shape in shapes] if simulated else shapes
            numbers = gpu_facts.NUMBERS.get(name, ())
            sets = [_arrays(config.seed + i, name, shapes, dtypes) for i in range(1 if simulated else _copies(shapes))]
            there = [[memory.from_host(x) for x in arrays] for arrays in sets]
            calls = [partial(where.kernels[name], *arrays, *numbers) for arrays in there]
            row = {"kernel": name, "shapes": shapes, "seconds": median(calls, config, simulated)}
            size, operations = gpu_facts.work_of(name, shapes, dtypes)
            if facts["bandwidth"] and facts["float32"]:
                row["floor"] = max(size / facts["bandwidth"], operations / facts["float32"])
            for peer, module in peers.items() if name in PEERS else ():
                row[peer] = _peer_time(peer, module, name, sets, config)
            rows.append(row)
            print(_line(row), flush=True)
    return rows


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


def _arrays(seed: int, name: str, shapes: list, dtypes: tuple) -> list[np.ndarray]:
    """Floats from 0 to 1, and numbers of rows or classes."""
    rng = np.random.default_rng(seed)
    array, axis = NUMBERED.get(name, (0, 0))
    return [
        rng.random(shape, np.float32)
        if dtype.kind == "f"
        else rng.integers(0, shapes[array][axis], shape).astype(dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]


def median(calls: list[Callable[[], object]], config: Config, simulated: bool) -> float:
    """Seconds of a call of ours."""
    from scratchnet.kernels.cuda.compile import Event, stream
    from scratchnet.kernels.cuda.memory import synchronize

    if simulated:
        start = time.perf_counter()
        calls[0]()
        synchronize()
        return time.perf_counter() - start
    record, elapsed = (lambda mark: mark.record(stream())), (lambda start, end: start.elapsed_time(end))
    return _between_events(calls, config.rounds, partial(Event, timing=True), record, elapsed)


def _peer_time(peer: str, module: Any, name: str, sets: list, config: Config) -> float | None:
    inputs, is_torch = arrays_of(name)[0], peer == "torch"
    move = (lambda x: module.from_numpy(x).cuda()) if is_torch else module.asarray
    calls = [partial(PEERS[name], module, *map(move, arrays[:inputs])) for arrays in sets]
    if calls[0]() is None:
        return None
    new = partial(module.cuda.Event, enable_timing=True) if is_torch else module.cuda.Event
    elapsed = (lambda start, end: start.elapsed_time(end)) if is_torch else module.cuda.get_elapsed_time
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


def _line(row: dict) -> str:
    shapes = " ".join("x".join(map(str, shape)) or "()" for shape in row["shapes"])
    text = f"  {row['kernel']:<20} {row['seconds'] * 1e6:>10.1f} us"
    if "floor" in row:
        text += f"  floor {row['floor'] * 1e6:>9.1f} us  {row['floor'] / row['seconds']:>5.0%} of it"
    for peer in ("cupy", "torch"):
        if row.get(peer):
            text += f"  {peer} {row[peer] * 1e6:.1f} us"
    return f"{text}  {shapes}"


# --- the reference job ------------------------------------------------------------------------------------------------


RUNS = ("cpu", "cuda", "workers")


def training(config: Config, simulated: bool) -> dict:
    """The reference network on CPU, on GPU, and with two workers on GPUs, or on the only one: training losses, test
    accuracies, and the largest relative difference of losses."""
    train, test = sn.data.load("fashion-mnist-mini")
    if simulated:  # the first 16 pixels of 8 and 4 images
        train, test = (
            sn.data.random_split(part, [n, len(part) - n])[0].map(lambda x: x[:, :16])
            for part, n in ((train, 8), (test, 4))
        )
    features, hidden, batch = (16, 4, 4) if simulated else (784, 128, 64)
    result: dict = {}
    workers = {"workers": 2, "devices": [f"cuda:{rank % sn.cuda.device_count()}" for rank in range(2)]}
    for where in RUNS:
        sn.manual_seed(config.seed)
        model = sn.nn.MLP(features, hidden, 10).to("cuda" if where == "cuda" else "cpu")
        optimizer = sn.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        options = {"shards": 2, "seed": config.seed, "progress": False} | (workers if where == "workers" else {})
        trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), **options)
        loader = sn.data.DataLoader(train, batch, shuffle=True, seed=config.seed)
        start = time.perf_counter()
        history = trainer.fit(loader, epochs=1 if simulated else config.epochs)
        seconds = time.perf_counter() - start
        score = trainer.evaluate(sn.data.DataLoader(test, 1024))
        result[where] = {"train_loss": history["train_loss"], "seconds": seconds, **score}
        print(f"  {where:<7} losses {' '.join(f'{x:.5f}' for x in history['train_loss'])}  {score}", flush=True)
    expected, *others = (np.array(result[where]["train_loss"]) for where in RUNS)
    result["largest_relative_difference"] = max(float((np.abs(x - expected) / expected).max()) for x in others)
    result["allowed"] = 0.01  # rounding differences grow from step to step; curves that are 1 % apart look the same
    return result


# --- the report -------------------------------------------------------------------------------------------------------


def main(config: Config) -> None:
    device("cuda")  # or one line that says what is missing
    from scratchnet.kernels.cuda import tuning
    from scratchnet.kernels.cuda.compile import SIMULATED

    if SIMULATED:
        config.examples = min(config.examples, 2)
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict = {"simulated": SIMULATED, "machine": machine(SIMULATED)}
    print(f"on {report['machine']['gpu']}")
    with tuning.use(tuning.SIMULATED_SMALL) if SIMULATED else nullcontext():
        print("every kernel against its oracle:")
        report["properties"] = properties(config, SIMULATED)
        print("times, in float32:" if not SIMULATED else "times, of the simulator, which mean nothing:")
        report["times"] = times(config, report["machine"], SIMULATED)
        print("the reference network:")
        report["training"] = training(config, SIMULATED)
    wrong = [f"{name}: {what}" for name, what in report["properties"].items() if what]
    difference, allowed = report["training"]["largest_relative_difference"], report["training"]["allowed"]
    if not difference <= allowed:
        wrong.append(f"training: the losses of CPU and GPU are {difference:.2%} apart, expected at most {allowed:.0%}")
    report["wrong"] = wrong
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    (folder / "report.txt").write_text(_readable(report))
    print(f"{'ALL WELL' if not wrong else f'{len(wrong)} FAILED'}; the report is in {folder}")
    if wrong:
        raise sn.ScratchnetError("something on this machine is not as it should be; see the report")


def _readable(report: dict) -> str:
    lines = ["scratchnet on a GPU" + (" (simulated: times mean nothing)" if report["simulated"] else ""), ""]
    lines += [f"{name}: {value}" for name, value in report["machine"].items()]
    lines += ["", *(report["wrong"] or ["every kernel computes what its oracle does"]), ""]
    lines += [_line(row) for row in report["times"]]
    lines += [f"{where}: {report['training'][where]}" for where in RUNS]
    lines.append(f"largest relative difference of losses: {report['training']['largest_relative_difference']:.2e}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(main, Config)
