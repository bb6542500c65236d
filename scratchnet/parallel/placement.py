"""On which device each worker computes: all on the CPU, each on a GPU of its own, or some on CPUs and some on GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import checks
from ..errors import DeviceError
from ..kernels import device as find_device

EXAMPLES = "'cpu', 'cuda' or 'cuda:1'"


class Placement:
    """The device of each worker, by rank.

    names: of devices; GPUs have numbers, "cuda:1", and "cuda" is the first one. None: all compute on the device
        `default`; if that is "cuda", each has a GPU of its own.

    A GPU and a CPU round differently. So that no bit depends on which worker was faster, or died, shard k is always
    computed on the kind of device of names[k mod len(names)], by any worker that has this kind.

    Raises DeviceError for a name that is no device, or for a GPU that is not there.
    """

    def __init__(self, names: Sequence[str] | None, default: str):
        if names is not None and (not isinstance(names, tuple | list) or not names):
            checks.refuse("Trainer", f"devices to be names such as {EXAMPLES}, or None", names, DeviceError)
        self.is_given = names is not None
        self.names = None if names is None else tuple(names)
        if self.names is None and default == "cuda":
            from ..kernels.cuda.compile import count_gpus

            self.names = tuple(f"cuda:{number}" for number in range(count_gpus()))
        self._default = default
        self.kinds = tuple(_kind(name) for name in self.names or (default,))
        self.are_mixed = len(set(self.kinds)) > 1

    def check(self, workers: int) -> None:
        """Raises DeviceError unless each of so many workers has a device, and each shard a worker that may do it."""
        if self.names is None:
            return
        if workers > len(self.names):
            raise DeviceError(f"Trainer: expected at most one worker a device, {self}, got {workers} workers")
        if missing := set(self.kinds) - set(self.kinds[:workers]):
            expected = f"workers for the shards of all devices, {self}"
            raise DeviceError(f"Trainer: expected {expected}, got {workers}, none on {missing.pop()!r}")

    def of(self, rank: int) -> str:
        """The name of a worker's device."""
        return self._default if self.names is None else self.names[rank]

    def gpu(self, rank: int) -> int:
        """The number of a worker's GPU."""
        return int(self.of(rank).partition(":")[2] or 0)

    def kind(self, rank: int) -> str:
        """ "cuda", "cpu" or "numpy"."""
        return self.kinds[rank % len(self.kinds)]

    def shards_of(self, rank: int, shards: int) -> np.ndarray:
        """(shards,) bool: those that worker `rank` may compute."""
        return np.array([self.kind(k) == self.kind(rank) for k in range(shards)])

    def __str__(self) -> str:
        return ", ".join(self.names or (self._default,))


def _kind(name: str) -> str:
    """The kind of a device, which is the name of its table of kernels. Raises DeviceError if it is not there."""
    kind, _, number = name.partition(":") if isinstance(name, str) else (None, "", "")
    if kind == "cuda" and (number.isdecimal() or name == kind):
        find_device(kind)
        from ..kernels.cuda.compile import check_gpu

        check_gpu(int(number or 0))
    elif name not in ("cpu", "numpy"):
        raise DeviceError(f"Trainer: expected devices to be names such as {EXAMPLES}, got {checks.shown(name)}")
    return kind


def go_to(name: str) -> str:
    """Let this process compute on the device `name`, before it has used another one; returns its kind."""
    kind, _, number = name.partition(":")
    if kind == "cuda":
        from ..kernels.cuda.compile import use_gpu

        use_gpu(int(number or 0))
    return kind
