"""What this process may use of the machine: cores and memory, as its affinity and its control groups (cgroups) allow.

A container, a job of Slurm or a pod of Kubernetes sees all cores and all memory of its machine, but may use less: with
more threads than its quota it is throttled, and with more memory than its limit it is killed.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")  # lines "number:controllers:path"; version 2 has one, "0::path"
UNLIMITED = 1 << 60  # bytes: version 1 says "no limit" by a number of this size


def cores() -> int:
    """Cores that this process may use, at least 1; of a fraction of a core nothing."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _quotas())]))


def available_bytes() -> int | None:
    """Memory that can be allocated without swapping or being killed, or None where the system does not say."""
    found = [*_rooms()]
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    return max(0, min(found)) if found else None


def _quotas() -> Iterator[float]:
    """Of each control group above this process, the cores that its members may use together."""
    for folder in _folders("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # "max": no limit
                quota, period = " ".join((folder / name).read_text() for name in names).split()
                if int(quota) > 0:  # -1: no limit
                    yield int(quota) / int(period)


def _rooms() -> Iterator[int]:
    """Of each control group above this process, the bytes that its members may still allocate."""
    for folder in _folders("memory"):
        for most, used, kept in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):
                limit, usage = (int((folder / name).read_text()) for name in (most, used))
                if limit < UNLIMITED:
                    yield limit - usage + _field(folder / "memory.stat", kept)


def _field(file: Path, name: str) -> int:
    """Pages of files that nobody reads any more are given back when memory is short."""
    with contextlib.suppress(OSError, ValueError):
        return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name), 0)
    return 0


def _folders(controller: str) -> Iterator[Path]:
    """The folders of the control groups of this process that have a controller, from its own one to the root.

    In a container the path may be that of the machine, of which only the root is there.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            names = [controllers, controller] if controllers else ["", "unified"]
            root = next((CGROUPS / name for name in names if (CGROUPS / name).is_dir()), None)
            if root is not None:
                folder = Path("/" + path.strip("/"))
                yield from (root / part.relative_to("/") for part in (folder, *folder.parents))
