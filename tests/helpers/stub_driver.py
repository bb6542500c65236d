"""A CUDA driver and NCCL without a GPU (stub_driver.c, stub_nccl.c), built here, and processes that run under them."""

import functools
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PATHS = [ROOT, HERE, HERE.parent / "programs"]


@functools.cache
def why_none() -> str | None:
    """What is missing to build it; None if nothing is."""
    if not sys.platform.startswith("linux"):
        return "the stub driver is for Linux"
    return None if _compiler() else "needs a C compiler, to build the stub driver"


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


@functools.cache
def _folder(source: str, library: str) -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="stub-")
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    target = Path(folder.name) / library
    subprocess.run([_compiler(), *flags, "-o", target, HERE / source, "-ldl", "-lpthread"], check=True)
    return folder


def nccl() -> str:
    """The folder of an NCCL that goes before others."""
    return _folder("stub_nccl.c", "libnccl.so.2").name


def environment(with_nccl: bool = False, **settings: object) -> dict[str, str]:
    """Of a process under the stub. settings: devices, capability, memory, version, no_graphs, trace (stub_driver.c);
    with_nccl, and nccl_kill, nccl_error, nccl_trace, nccl_version (stub_nccl.c)."""
    folders = [*([nccl()] if with_nccl else []), _folder("stub_driver.c", "libcuda.so.1").name]
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_ENABLE_CUDASIM", "CUDA_VISIBLE_DEVICES")}
    return kept | {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [*folders, os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONPATH": os.pathsep.join([*map(str, PATHS), os.environ.get("PYTHONPATH", "")]),
        "SCRATCHNET_QUIET": "1",
        **{f"STUB_{name.upper()}": str(value) for name, value in settings.items()},
    }


def facts_of(program: str, *arguments: str, timeout: float = 120, **settings: object) -> dict:
    """What tests/programs/`program` prints last, a line of JSON, under the stub."""
    command = [sys.executable, HERE.parent / "programs" / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(**settings))
    if done.returncode:
        raise AssertionError(f"{program}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# --- inside such a process --------------------------------------------------------------------------------------------


@functools.cache
def stub():
    """The library, with its functions for tests."""
    import ctypes

    library = ctypes.CDLL("libcuda.so.1")
    for name in ("count", "most_grid", "performed", "used", "memories"):
        getattr(library, f"stub_{name}").restype = ctypes.c_long
    return library


def counted(name: str) -> int:
    """How often this process called a function of the driver."""
    return stub().stub_count(name.encode())


def compile_nothing() -> None:
    """From now on kernels are empty files that have the right parameters: the stub needs no more, and nothing waits."""
    from scratchnet.kernels.cuda import machine_code

    def compiled(function, codes, bounds, architecture):
        name = function.__qualname__.partition(".")[0]
        return name, empty_kernel(name, machine_code.layout(codes), bounds[0])

    machine_code.compiled = compiled


def empty_kernel(name: str, layout: str, threads: int) -> bytes:
    """An ELF file with the three sections that the stub reads: names, code, and facts of one kernel."""
    from scratchnet.kernels.cuda.machine_code import places

    facts = struct.pack("<BBHI", 4, 0x05, 4, threads)
    for number, (offset, size) in enumerate(places(layout)):
        facts += struct.pack("<BBHIHHI", 4, 0x17, 12, 0, number, offset, size << 18)
    sections = {".shstrtab": b"", f".text.{name}": b"", f".nv.info.{name}": facts}
    names = b"\0" + b"".join(x.encode() + b"\0" for x in sections)
    sections[".shstrtab"] = names
    at, table = 64, bytes(64)
    for section, body in sections.items():
        start = names.index(f"\0{section}\0".encode()) + 1
        table += struct.pack("<IIQQQQIIQQ", start, 1, 0, 0, at, len(body), 0, 32 << 24, 1, 0)  # of 32 registers
        at += len(body)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, at, 0, 64, 0, 0, 64, len(sections) + 1, 1)
    return head + b"".join(sections.values()) + table
