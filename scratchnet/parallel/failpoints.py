"""Named points at which a test can make a worker fail, armed from outside by an environment variable.

SCRATCHNET_FAIL holds "point:step:rank:action", several separated by commas. Step and rank may be `*`; `5+` means all
steps from 5 on. The action is the name of a signal (`SIGKILL`, `SIGSTOP`, ...) that the worker sends itself, or `exit`
(at once), `sys.exit`, `raise`, `loop` (for ever) or `sleep=seconds`. Only the first process of a rank fails; with `!`
before the action, its successors fail as well. A line for each failure goes to the file of SCRATCHNET_FIRED.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..kernels import device

VARIABLE = "SCRATCHNET_FAIL"
LOG = "SCRATCHNET_FIRED"
POINTS = (
    "start",
    "idle",
    "shard.claimed",
    "shard.half_written",
    "shard.written",
    "slice.claimed",
    "slice.half_written",
    "slice.written",
    "exit",
)
STAGE_POINTS = tuple(  # of a pipeline, beside those of slices
    [f"{phase}.{when}" for phase in ("forward", "backward") for when in ("claimed", "half_written", "written")]
)

GPU_POINTS = "gradients.sent", "parameters.sent"  # of ranks whose gradients stay on GPUs, see mpi/gpus.py


def armed(rank: int, starts: int) -> Callable[..., None]:
    """The function that a worker calls at each point, fail(point, step, memory). starts: earlier processes of its rank.

    Where a `half_written` point fires, the second half of each array from memory() is overwritten first.
    """
    plans = [plan.split(":") for plan in os.environ.get(VARIABLE, "").split(",") if plan]
    mine = [
        (point, step, action.removeprefix("!"))
        for point, step, who, action in plans
        if who in ("*", str(rank)) and (starts == 0 or action.startswith("!"))
    ]

    def fail(point: str, step: int, memory: Callable[[], Iterable[np.ndarray]] = tuple) -> None:
        for name, when, action in mine:
            if name == point and (when in ("*", str(step)) or (when.endswith("+") and step >= int(when[:-1]))):
                note(f"{point}:{step}:{rank}:{action}")
                for array in memory():
                    _spoil(array)
                _ACTIONS.get(action.partition("=")[0], _signal)(action.partition("=")[2] or action)

    return fail if mine else never


def _spoil(array: Any) -> None:
    """Overwrite the second half."""
    if isinstance(array, np.ndarray):
        array = np.atleast_1d(array)  # which may be a block of a larger one
        array[len(array) // 2 :] = np.full(array.itemsize, 0xFF, np.uint8).view(array.dtype)[0]
        return
    half, gpu = array.reshape(-1)[array.size // 2 :], device("cuda")
    gpu.write(half, np.full(half.nbytes, 0xFF, np.uint8).view(half.dtype))
    gpu.to_host(half)  # which waits for it


def note(line: str) -> None:
    """Append a line to the file of SCRATCHNET_FIRED, if there is one; in one write, so that lines do not mix."""
    if os.environ.get(LOG):
        file = os.open(os.environ[LOG], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(file, f"{line}\n".encode())
        os.close(file)


def never(point: str, step: int, memory: Any = None) -> None:
    """Nothing is armed."""


def _signal(name: str) -> None:
    os.kill(os.getpid(), signal.Signals[name])
    time.sleep(60)  # until the signal arrives


def _raise(argument: str) -> None:
    raise RuntimeError("a fail point was armed")


def _loop(argument: str) -> None:
    while True:
        pass


_ACTIONS: dict[str, Callable[[str], Any]] = {
    "exit": lambda argument: os._exit(0),
    "sys.exit": lambda argument: sys.exit(0),
    "raise": _raise,
    "loop": _loop,
    "sleep": lambda seconds: time.sleep(float(seconds)),
}
