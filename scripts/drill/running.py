"""Programs run to their end under a hard time limit, and what a drill says of them: an outcome, a line, a table.

Nothing that a program started may outlive it: neither processes nor shared memory.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT = 120.0  # seconds until a program counts as hung, unless said otherwise
GRACE = 2.0  # seconds that processes of a session may outlive their parent
OUTCOMES = ("EXACT", "RESUME", "CLEAN", "hung", "silently wrong", "lost", "leaked")


@dataclass
class Ended:
    """How a program ended: exit status (None: by force, at the time limit), what it said, and what it left."""

    status: int | None
    out: str
    words: str
    leaks: list[str]

    @property
    def last_word(self) -> str:
        return (self.words.strip().splitlines() or [""])[-1]


@dataclass
class Result:
    """What came of a fault: an outcome, whether the fault fired, why not as expected, what was left, seconds."""

    outcome: str
    fired: bool
    why: str = ""
    leaks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def ok(self, trial: Any) -> bool:
        return self.outcome == trial.expected and self.fired and not self.leaks


def session(pid: int) -> dict[int, str]:
    """Processes of a session that are alive: their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if fields[3] == str(pid) and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def shared_memory() -> set[str]:
    """Entries that scratchnet may have made, which has no semaphores; other programs have theirs there, too."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("scratchnet", "psm_"))}


def run(command: list[str], limit: float, kills: Callable | None = None, folder: Any = None, **variables: str) -> Ended:
    """Runs a command in a session of its own, in a folder, with variables. kills: called in a thread with the process.

    What it leaves when it ends by itself is named, and ended.
    """
    shared = shared_memory()
    variables = {**os.environ, "SCRATCHNET_QUIET": "1", **variables}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=folder,
        env=variables,
    )  # fmt: skip
    killer = threading.Thread(target=kills or (lambda process: None), args=(process,))
    killer.start()
    try:
        out, words = process.communicate(timeout=limit)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        status = None
    killer.join()
    deadline = time.monotonic() + GRACE
    while (left := session(process.pid)) and status is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if status is None:
        out, words = process.communicate()
    leaks = [f"process {pid}: {command[:60]}" for pid, command in left.items()] if status is not None else []
    return Ended(status, out, words, leaks + [f"/dev/shm/{name}" for name in shared_memory() - shared])


# --- the report -------------------------------------------------------------------------------------------------------


def run_trials(run: Callable[[Any], Result], trials: Sequence[Any], side_by_side: int, verbose: bool) -> None:
    """Runs all trials, says what came of them, and ends the program with status 1 if anything is wrong.

    A trial has a name, a group and an expected outcome. A line for each that failed comes as soon as it did.
    """

    def one(trial: Any) -> Result:
        start = time.monotonic()
        result = run(trial)
        result.seconds = time.monotonic() - start
        if verbose or not result.ok(trial):
            print(line(trial, result), flush=True)
        return result

    start = time.monotonic()
    with ThreadPoolExecutor(side_by_side) as threads:
        results = list(threads.map(one, trials))
    print("\n".join(table(trials, results)))
    failed = sum(not result.ok(trial) for trial, result in zip(trials, results, strict=True))
    print(f"{len(trials)} trials in {time.monotonic() - start:.0f} s, {failed} failed")
    sys.exit(bool(failed) or not trials)


def line(trial: Any, result: Result) -> str:
    verdict, wrong = ("ok    ", "") if result.ok(trial) else ("FAILED", f" (expected {trial.expected}) {result.why}")
    parts = [result.outcome, "" if result.fired else "NOT FIRED", *(f"left {leak}" for leak in result.leaks)]
    return f"{verdict} {result.seconds:5.1f} s  {trial.name}: {', '.join(filter(None, parts))}{wrong}"


def table(trials: Sequence[Any], results: Sequence[Result]) -> Iterator[str]:
    """One row for each kind of fault, and their sum."""
    columns = ("injected", "fired", *OUTCOMES)
    rows: dict[str, Counter[str]] = {}
    for trial, result in zip(trials, results, strict=True):
        counts = {"injected": 1, "fired": int(result.fired), result.outcome: 1, "leaked": int(bool(result.leaks))}
        for name in (trial.group, "all"):
            rows.setdefault(name, Counter()).update(counts)
    rows["all"] = rows.pop("all", Counter())
    for name, cells in {"fault": {column: column for column in columns}, **rows}.items():
        yield f"{name:34}" + "".join(f"{cells[column]:>{max(9, len(column) + 2)}}" for column in columns)
