"""Several GPUs under the stub driver: each function is a scene, and returns what it saw. Kernels compute nothing here.

Prints one line: {scene: what it saw, or its error}.
"""

import json
import os
import subprocess
import sys

import numpy as np
from logs import log_lines
from stub_driver import compile_nothing, stub

compile_nothing()

import scratchnet as sn  # noqa: E402
from scratchnet.kernels.cuda import compile, ipc, memory  # noqa: E402

PAGE = 4096
WIDE = 40_000  # jit remembers what is in memory of less than a megabyte when it records


def message(action):
    try:
        action()
    except sn.ScratchnetError as error:
        return f"{type(error).__name__}: {error}"
    return None


class Other:
    """Another process, which computes on GPU 1 and does what it is asked to: `talk`."""

    def __init__(self):
        command = [sys.executable, __file__, "talk"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.kill()
        self.process.communicate()


def talk():
    """What another process is asked: to open, read, write and hold memory."""
    compile.use_gpu(1)
    arrays, held = {}, []

    def do(what, *words):
        if what == "hold":
            held.append(ipc.Held(1, PAGE))
            held[-1].send(0, np.full(PAGE, 5, np.uint8))
            return held[-1].handle.hex()
        if what == "open":
            arrays["x"] = ipc.opened(bytes.fromhex(words[0]), PAGE)
        elif what == "read":
            return memory.to_host(arrays["x"][words[0] : words[1]]).tolist()
        else:
            memory.write(arrays["x"][words[0] : words[1]], np.full(words[1] - words[0], words[2], np.uint8))
            memory.synchronize()
        return None

    for line in sys.stdin:
        try:
            answer = do(*json.loads(line))
        except sn.ScratchnetError as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)
    sys.exit()


def handles():
    """Memory that this process holds on GPU 0 is opened, read and written on GPU 1 by another; then it is gone."""
    found, other = {}, Other()
    try:
        held, back = ipc.Held(0, PAGE), np.zeros(4, np.uint8)
        held.receive(0, back)
        found["zero"] = back.tolist()
        held.send(16, np.arange(4, dtype=np.uint8))
        found["opened"] = other.ask("open", held.handle.hex())
        found["there"] = other.ask("read", 16, 20)
        other.ask("write", 100, 104, 7)
        held.receive(100, back)
        found["here"] = back.tolist()
        found["own"] = message(lambda: ipc.opened(held.handle, PAGE))
        found["no room"] = message(lambda: ipc.Held(1, 1 << 40))
        found["contexts"] = [stub().stub_is_active(i) for i in range(2)]
        held.free()
        held.free()
        found["freed"], found["used"] = other.ask("read", 16, 20), stub().stub_used(0)
        x = ipc.opened(bytes.fromhex(other.ask("hold")), PAGE)
        found["of the other"] = memory.to_host(x[:2]).tolist()
    finally:
        other.end()
    found["its holder is dead"] = message(lambda: memory.to_host(x[:2]))
    return found


def why():
    return ipc.why_not_shared()


def trained(loss, devices, workers=2, shards=4, **options):
    """A run of two epochs of two steps: what its workers did, and what the log says."""
    import stub_losses

    lines = log_lines()
    sn.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(16, 7)).astype(np.float32)
    loader = sn.data.DataLoader(sn.data.TensorDataset(x, (x[:, 0] > 0).astype(np.int64)), 8)
    model = sn.nn.MLP(7, WIDE, 2).to("cuda" if devices is None else "cpu")
    optimizer = sn.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss = getattr(stub_losses, loss)()
    trainer = sn.Trainer(
        model, optimizer, loss, workers=workers, shards=shards, devices=devices, progress=False, **options
    )
    before = [stub().stub_used(i) for i in range(3)]
    history = trainer.fit(loader, epochs=2)
    return {
        "shards": [int(row["shards"]) for row in history.workers],
        "starts": [int(row["starts"]) for row in history.workers],
        "left": [stub().stub_used(i) - n for i, n in enumerate(before)],
        "workers": trainer.workers,
        "contexts": [stub().stub_is_active(i) for i in range(2)], "log": lines, "parent": os.getpid(),
    }  # fmt: skip


def two():
    return trained("Stubbed", ["cuda:0", "cuda:1"])


def three():
    return trained("Stubbed", ["cuda:0", "cuda:1", "cuda:0"], workers=3, clip_norm=1.0)


def alone():
    return trained("Stubbed", None, workers=1, clip_norm=1.0)


def auto():
    return trained("Stubbed", None, workers="auto")


def watched():
    return trained("Watched", ["cuda:0", "cuda:1"])


if __name__ == "__main__":
    seen = {}
    for scene in sys.argv[1:]:
        try:
            seen[scene] = globals()[scene]()
        except Exception as error:
            seen[scene] = repr(error)
    print(json.dumps(seen))
