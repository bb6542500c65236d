"""Plants faults in copies of the project, one at a time, and tells which of them the tests find: `make mutants`.

    python tests/programs/mutants.py                # all of tests/mutants/*.toml: an hour or more
    python tests/programs/mutants.py --sample 10    # as many cheap ones, spread over the tables, which CI runs
    python tests/programs/mutants.py --only reduce  # those whose file, text or test has this in it

A mutant is found if its test fails, or crashes. Compiled kernels are compiled anew for each fault in their sources, so
most faults of kernels are planted without the JIT. The exit status is 1 if one survives that is not explained, if its
text is no longer in the file, once, or if its test cannot run; it may be skipped, where a package is missing.
"""

import compileall
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from queue import SimpleQueue

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from scratchnet.flags import flag, run_script  # noqa: E402

LIMIT = 900  # seconds until a test counts as hung
COPIED = "scratchnet", "tests", "scripts", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)  # what a wrong address ends in
# By pytest's exit status; any other means that no test could run.
OUTCOMES = {0: "SURVIVED", 1: "found", **{-number: "found" for number in CRASHES}}
SKIPPED = "skipped: the test needs what is not here"  # and must run elsewhere: no fault, and none found


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` becomes `new` in `file`, and `test` (what pytest takes) must fail.

    jit: are kernels compiled for the test? simulated: those of "cuda" run in Numba's simulator. why: it need not be
    found; an explanation.
    """

    table: str
    file: str
    old: str
    new: str
    test: str
    jit: bool = False
    simulated: bool = False
    why: str = ""


@dataclass
class Config:
    """Plant each fault of tests/mutants in a copy of the project, and see whether its test fails."""

    only: str = flag("", "only mutants whose file, text or test has this in it")
    sample: int = flag(0, "only so many, of the cheap ones, spread evenly; 0: all")
    side_by_side: int = flag(os.cpu_count() or 1, "mutants at a time")


def load() -> list[Mutant]:
    """All mutants, in the order of the tables."""
    return [
        Mutant(path.stem, **row)
        for path in sorted((PROJECT / "tests" / "mutants").glob("*.toml"))
        for row in tomllib.loads(path.read_text())["mutant"]
    ]


def copy_of_the_project(folder: Path) -> Path:
    """Compiled to files that hold the hash of their source, as a fault may change it within a tick of the clock."""
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    compileall.compile_dir(folder, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return folder


def outcome(mutant: Mutant, copy: Path) -> str:
    """Of the mutant's test in this copy, which is then as it was."""
    path = copy / mutant.file
    original = path.read_text() if path.exists() else ""
    if original.count(mutant.old) != 1:
        return f"TEXT {original.count(mutant.old)} TIMES"
    path.write_text(original.replace(mutant.old, mutant.new))
    variables = {"PYTHONPATH": str(copy), "SCRATCHNET_QUIET": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if mutant.jit:
        variables["SCRATCHNET_CACHE_DIR"] = str(copy.parent / "kernels")  # shared by all copies
    else:
        variables["NUMBA_DISABLE_JIT"] = "1"
    if mutant.simulated:
        variables["NUMBA_ENABLE_CUDASIM"] = "1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-x",
        "-p",
        "no:cacheprovider",
        *shlex.split(mutant.test),
    ]
    try:
        ended = subprocess.run(
            command, cwd=copy, env={**os.environ, **variables}, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return "HUNG"
    finally:
        path.write_text(original)
    if ended.returncode == 0 and " passed" not in ended.stdout:
        return SKIPPED
    return OUTCOMES.get(ended.returncode, f"NO TEST: {(ended.stdout + ended.stderr).strip()[-200:]}")


def main(config: Config) -> None:
    mutants = load()
    if config.only:
        mutants = [m for m in mutants if config.only in f"{m.table} {m.file} {m.old} {m.new} {m.test}"]
    if config.sample:
        cheap = [m for m in mutants if not m.jit and not m.why]
        mutants = cheap[:: max(1, len(cheap) // config.sample)][: config.sample]
    started, counts = time.monotonic(), Counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(config.side_by_side) as threads:
        copies: SimpleQueue[Path] = SimpleQueue()
        for i in range(config.side_by_side):
            copies.put(copy_of_the_project(Path(folder) / str(i)))

        def run(mutant: Mutant) -> str:
            copy = copies.get()
            try:
                return outcome(mutant, copy)
            finally:
                copies.put(copy)

        for mutant, result in zip(mutants, threads.map(run, mutants), strict=True):
            if result == "SURVIVED" and mutant.why:
                result = f"explained: {mutant.why}"
            counts[mutant.table, result.split(":")[0]] += 1
            if result != "found":
                words = (
                    f"{result}\n    {mutant.file}: {mutant.old.strip()!r} -> {mutant.new.strip()!r}\n    {mutant.test}"
                )
                print(words, flush=True)
    report(counts)
    total = Counter()
    for (_, result), n in counts.items():
        total[result] += n
    print(f"{len(mutants)} mutants in {time.monotonic() - started:.0f} s, {total['found']} found")
    if total["found"] + total["explained"] + total["skipped"] < len(mutants):
        sys.exit(1)


def report(counts: Counter) -> None:
    columns = sorted({result for _, result in counts}, key=lambda result: result != "found")
    print("".join([f"{'table':<12}", *(f"{name:>16}" for name in columns)]))
    for table in sorted({table for table, _ in counts}):
        print("".join([f"{table:<12}", *(f"{counts[table, name]:>16}" for name in columns)]))


if __name__ == "__main__":
    run_script(main, Config)
