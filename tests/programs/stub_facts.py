"""The host side of the cuda table under the stub driver: each function is a scene, and returns what it saw.

Kernels compute nothing here, so values are looked at only where copies made them. With "--compile" the kernels are
compiled, else they are empty (see stub_driver.compile_nothing). Prints one line: {scene: what it saw, or its error}.
"""

import gc
import json
import sys
import threading

import numpy as np
from stub_driver import compile_nothing, counted, stub

if "--numpy-2.5" in sys.argv and hasattr(np, missing := "row_stack"):
    import numba.np.arrayobj  # noqa: F401  # Numba itself knows which NumPy has it

    delattr(np, missing)
    np.__all__.remove(missing)
if "--compile" not in sys.argv:
    compile_nothing()

import scratchnet as sn
from scratchnet.kernels.cuda import compile, driver, machine_code, memory, staging


def on_gpu(x):
    return sn.Tensor(np.asarray(x)).to("cuda")


def message(action):
    try:
        action()
    except sn.ScratchnetError as error:
        return f"{type(error).__name__}: {error}"
    return None


def start():
    """What is done before a context is there, and that none is needed to find GPUs."""
    return {
        "why": compile.why_unavailable(),
        "count": sn.cuda.device_count(),
        "contexts": [stub().stub_is_active(i) for i in range(2)],
    }


def training_step():
    sn.manual_seed(0)
    model = sn.nn.MLP(20, 16, 5, dropout=0.1).to("cuda")
    optimizer, loss_of = sn.optim.SGD(model.parameters(), 0.1, momentum=0.9), sn.nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def calls_of(action, *names):
    """How often an action calls functions of the driver."""
    before = [counted(name) for name in names]
    action()
    return [counted(name) - n for name, n in zip(names, before, strict=True)]


def launches_of(action):
    return calls_of(action, "cuLaunchKernel", "cuMemAlloc", "cuLibraryLoadData")


def eager():
    step, x = training_step(), batch(64)
    step(*x)
    return {"launches, allocations, loads": launches_of(lambda: step(*x)), "loss": step(*x).item()}


def batch(n):
    return on_gpu(np.ones((n, 20), np.float32)), on_gpu(np.zeros(n, np.int64))


STARTS = "cuLaunchKernel", "cuGraphLaunch", "cuMemcpyDtoDAsync", "cuMemcpyHtoDAsync", "cuStreamEndCapture"


def jit():
    """Calls that are recorded, replayed one by one and captured, and replayed as a graph; then with other shapes."""
    step, batches = sn.jit(training_step()), [batch(64) for _ in range(2)]
    calls = [calls_of(lambda i=i: step(*batches[i % 2]), *STARTS) for i in range(5)]
    other = batch(32)
    return {
        "calls": calls, "others": [calls_of(lambda: step(*other), *STARTS) for _ in range(4)],
        "allocations, loads": calls_of(lambda: step(*batches[1]), "cuMemAlloc", "cuLibraryLoadData"),
        "loss": step(*batches[0]).item(),
    }  # fmt: skip


def numbers_of_a_graph():
    """The learning rate and the keys of random numbers that a graph reads, of some steps with changing rates."""
    sn.manual_seed(0)
    model = sn.nn.Sequential(sn.nn.Linear(20, 5), sn.nn.Dropout(0.5)).to("cuda")
    optimizer = sn.optim.SGD(model.parameters(), 0.5)
    schedule = sn.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    @sn.jit
    def step(x):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        schedule.step()

    x, found = batch(8)[0], []
    for number in range(5):
        step(x)
        for part in step.programs[0].parts if number > 1 else ():
            (page, _), *_ = part.numbers._pages
            there = memory.to_host(page)
            (kept,) = [y for (dtype, _, _), y in part.numbers._made.items() if dtype == np.float32]
            found.append([memory.to_host(kept).tolist()[0], there.tobytes().hex()[:64]])
    return found


def others_launch_while_a_graph_is_made():
    """Launches of another thread are no part of the graph, and do not break it."""
    step, x = sn.jit(training_step()), batch(64)
    for _ in range(2):
        step(*x)
    begin, seen = driver._api.cuStreamEndCapture, []

    def ends(*arguments):
        thread = threading.Thread(target=lambda: seen.append(launches_of(lambda: x[0] + x[0])[0]))
        thread.start()
        thread.join()
        return begin(*arguments)

    driver._api.cuStreamEndCapture = ends
    try:
        step(*x)
    finally:
        driver._api.cuStreamEndCapture = begin
    (replay,) = [part for part in step.programs[0].parts if hasattr(part, "launches")]
    sn.cuda.synchronize()
    before = stub().stub_performed()
    step(*x)
    sn.cuda.synchronize()
    return {"seen": seen, "performed": stub().stub_performed() - before, "launches": len(replay.launches)}


def without_graphs():
    step, x = sn.jit(training_step()), batch(64)
    return [calls_of(lambda: step(*x), *STARTS[:2]) for _ in range(4)]


def every_argument_lies_where_the_kernel_reads_it():
    """The packed bytes against what the driver says of the parameters of each kernel that was loaded so far."""
    wrong, seen = [], 0
    for kernel in [x for x in gc.get_objects() if type(x) is compile.Kernel]:
        for codes, (handle, struct) in kernel._loaded.items():
            expected = machine_code.places(machine_code.layout(codes))
            places = [tuple(driver.call("cuKernelGetParamInfo", handle, i)) for i in range(len(expected))]
            seen += 1
            if places != expected or struct.size < sum(places[-1]):
                wrong.append((kernel.function.__qualname__, codes, places))
    return {"wrong": wrong, "seen": seen}


def transfers():
    """Pinned memory is filled again only after its last transfer; views, other dtypes and empty arrays travel too."""
    batches = [(np.full((n, 3), n, np.float32), np.arange(n)) for n in (4, 4, 4, 6, 0, 1)]
    kept = list(staging.prefetch(iter(batches)))
    there = [
        all(np.array_equal(memory.to_host(x), y) for x, y in zip(*pair, strict=True))
        for pair in zip(kept, batches, strict=True)
    ]
    pieces, out = staging.PinnedTransfer(64), staging.PinnedTransfer.memory(64)
    found = []
    for number in (1, 2):
        pieces.send(np.full(64, number, np.uint8), out)
        back = np.zeros(64, np.uint8)
        pieces.receive(out, back)
        found.append(int(back[0]))
    x = np.arange(12, dtype=np.float32)
    sent = memory.from_host(x)
    x[:] = 0  # pageable memory was read at once
    return {"batches": there, "pieces": found, "pageable": memory.to_host(sent).tolist() == list(range(12))}


class Foreign:
    """An array of another library, whose stream writes its memory, now with 7s, and with 9s when it gets it back."""

    def __init__(self, n=64, dtype="|u1"):
        self.n, self.dtype, self.stream, self.memory = n, dtype, driver.Stream(), driver.Memory(512)
        self.returned = False
        self.write(7)

    def write(self, value):
        driver.call("cuMemsetD8Async", self.memory.address, value, 512, self.stream.handle)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": (self.n,), "typestr": self.dtype, "data": (self.memory.address, False), "strides": None,
            "version": 3, "stream": self.stream.handle,
        }  # fmt: skip

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream=None):
        mark = driver.Event()
        mark.record(self.stream)
        mark.wait(driver.Stream(stream))
        return memory.dlpack.export(memory.DeviceArray(np.asarray(memory.Address(self.memory.address, self.n)), self))

    def __del__(self):
        self.write(9)
        self.stream.synchronize()


def foreign_memory_is_read_after_its_kernels():
    by_interface = sn.Tensor(Foreign(), device="cuda")
    return [by_interface.numpy().tolist() == [7] * 64, sn.cuda.from_dlpack(Foreign()).numpy().tolist() == [7] * 64]


def foreign_memory_is_kept_until_our_kernels_are_done():
    found = []
    for take in (lambda: memory.adopt(Foreign()), lambda: memory.from_dlpack(Foreign())):
        x, pinned = take(), driver.pinned(64)
        driver.call("cuMemcpyDtoHAsync", pinned.__array_interface__["data"][0], x.address, 64, compile.stream().handle)
        del x  # our copy still waits in its stream
        gc.collect()
        held = len(memory._lent)
        sn.cuda.synchronize()
        found.append([held, pinned.tolist() == [7] * 64, len(memory._lent)])
    return found


def dlpack_export():
    x = on_gpu(np.arange(6, dtype=np.float32))
    theirs = driver.Stream()
    before = counted("cuStreamWaitEvent"), counted("cuStreamSynchronize")
    x.__dlpack__(stream=theirs.handle)
    waits = counted("cuStreamWaitEvent") - before[0], counted("cuStreamSynchronize") - before[1]
    x.__dlpack__(stream=-1)
    unordered = counted("cuStreamWaitEvent") - before[0] - waits[0]
    shared = memory.from_dlpack(x._data)
    copied = memory.from_dlpack(_Copying(x._data))
    return {
        "waits": waits, "unordered": unordered, "device": x.__dlpack_device__(),
        "shared": shared.address == x._data.address, "copied": copied.address != x._data.address,
        "to the host": message(lambda: x._data.__dlpack__(dl_device=(1, 0))),
        "stream 0": message(lambda: x._data.__dlpack__(stream=0)),
        "of the host": message(lambda: memory.adopt(_Interface(np.zeros(3, np.float32)))),
        "of GPU 1": message(lambda: memory.from_dlpack(_Elsewhere())),
    }  # fmt: skip


class _Copying:
    def __init__(self, x):
        self.x = x

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()

    def __dlpack__(self, *, stream=None):
        return self.x.__dlpack__(stream=stream, copy=True)


class _Interface:
    def __init__(self, x):
        self.x = x
        self.__cuda_array_interface__ = {**x.__array_interface__, "strides": None, "version": 3}


class _Elsewhere:
    def __dlpack_device__(self):
        return 2, 1

    def __dlpack__(self, *, stream=None):
        raise AssertionError("asked for memory that lies elsewhere")


def out_of_memory():
    """The pool gives up what waits in it before it refuses, and refuses in one line."""
    sn.cuda.empty_cache()
    free, before = driver.free_bytes(), stub().stub_used(0)
    x = memory.empty(free // 2 // 4, np.float32)
    del x
    other = memory.empty(free * 3 // 4 // 4, np.float32)  # fits only where the first one was
    refused = message(lambda: memory.empty(free, np.float32))
    del other
    sn.cuda.empty_cache()
    return {"refused": refused, "grown": stub().stub_used(0) - before}


def threads():
    """A thread that Python starts computes on the GPU of the process, and two at once do not disturb each other."""
    errors = []

    def work():
        try:
            for _ in range(20):
                x = on_gpu(np.arange(100, dtype=np.float32))
                assert np.array_equal(x.numpy(), np.arange(100)), "another's memory"
                x + x
        except BaseException as error:
            errors.append(repr(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return errors


def second_gpu():
    """A process computes on one GPU, the one that it chose, in all of its threads."""
    compile.use_gpu(1)
    x = on_gpu(np.ones(3, np.float32))
    x + x
    return {
        "number": x.__dlpack_device__(), "contexts": [stub().stub_is_active(i) for i in range(2)], "threads": threads(),
        "another": message(lambda: compile.use_gpu(0)), "missing": message(lambda: compile.use_gpu(7)),
    }  # fmt: skip


def forked():
    """A forked process is refused in one line that says what to do."""
    import os

    on_gpu(np.ones(3, np.float32))
    reader, writer = os.pipe()
    if os.fork() == 0:
        stub().stub_forget()  # as the driver does in a forked process
        os.write(writer, str(message(lambda: memory.from_host(np.ones(3)))).encode())
        os._exit(0)
    os.wait()
    return os.read(reader, 1000).decode()


def large_grids():
    """Rows and columns by the million: a driver takes 65,535 blocks along the second axis of a grid."""
    from scratchnet.kernels import device

    kernels, found = device("cuda").kernels, {}
    for name, shapes, numbers in (
        ("matmul", [(9_000_000, 2), (2, 3), (9_000_000, 3)], (False, False)),
        ("matmul", [(3, 2), (2, 9_000_000), (3, 9_000_000)], (False, False)),
        ("scatter_rows", [(2, 20_000_000), (2,), (3, 20_000_000)], ()),
        ("take_rows", [(3, 2), (9_000_000,), (9_000_000, 2)], ()),
        ("sum", [(1, 2**31 + 8, 1), (1, 1)], ()),
        ("copy", [(2**31 + 8,), (2**31 + 8,)], ()),
        ("copy", [(2, 3_000_000), "transposed"], ()),
    ):
        arrays = []
        for shape in shapes:
            kind = np.int64 if len(shape) == 1 and name != "copy" else np.float32
            arrays.append(
                memory.empty(arrays[-1].shape[::-1], kind).T if shape == "transposed" else memory.empty(shape, kind)
            )
        found[f"{name} {shapes}"] = message(lambda n=name, a=arrays, m=numbers: kernels[n](*a, *m))
        sn.cuda.synchronize()
        del arrays
        sn.cuda.empty_cache()
    return found


def loss_scale():
    """Training in float16, with a scale: the steps that are skipped, and the scale, as the host reads them."""
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, (x[:, 0] > 0).astype(np.int64)), 8)
    model = sn.nn.MLP(5, 4, 2).to("cuda")
    optimizer = sn.optim.SGD(model.parameters(), 0.1)
    trainer = sn.Trainer(model, optimizer, sn.nn.CrossEntropyLoss(), shards=2, progress=False, precision="float16")
    record = trainer.fit(loader, epochs=2).records[-1]
    return [record["loss_scale"], record["skipped"]]


def parent_of_workers():
    """Training with workers on GPUs: the parent, whose model is on the CPU, leaves the GPUs to them."""
    from stub_losses import Stubbed

    sn.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, (x[:, 0] > 0).astype(np.int64)), 8)
    model = sn.nn.MLP(5, 4, 2)
    optimizer = sn.optim.SGD(model.parameters(), 0.1)
    trainer = sn.Trainer(model, optimizer, Stubbed(), workers=2, shards=2, devices=["cuda:0", "cuda:1"], progress=False)
    history = trainer.fit(loader, epochs=1)
    return {
        "shards": [row["shards"] for row in history.workers], "starts": [row["starts"] for row in history.workers],
        "contexts": [stub().stub_is_active(i) for i in range(2)],
    }  # fmt: skip


def compiled_here():
    """Kernels that this process compiled, and found on disk."""
    from scratchnet.native.compile import compile_stats

    x = on_gpu(np.arange(8, dtype=np.float32))
    x + x, x.exp(), x.reshape(2, 4) @ x.reshape(4, 2)
    sn.cuda.synchronize()
    stats = compile_stats()
    return [stats.compiled, stats.loaded]


if __name__ == "__main__":
    seen = {}
    for scene in (x for x in sys.argv[1:] if not x.startswith("--")):
        try:
            seen[scene] = globals()[scene]()
        except Exception as error:
            seen[scene] = repr(error)
    print(json.dumps(seen))
