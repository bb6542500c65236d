"""Shows that no kill changes what a run computes: trials with one fault each, against a run that nothing disturbed.

Each trial is drill_victim.py in a session of its own, with a fresh folder and a hard time limit. A fault that did not
fire is a failure of the drill. The last table counts what came of the faults; the exit status is 1 if anything is
wrong.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from scratchnet.flags import flag, run_script
from scratchnet.parallel.failpoints import LOG, POINTS, VARIABLE

VICTIM = Path(__file__).with_name("drill_victim.py")
LIMIT = 90.0  # seconds until a trial counts as hung
GRACE = 2.0  # seconds that processes of a session may outlive their parent
PACE = "shard.claimed:*:*:sleep=0.01,slice.claimed:*:*:sleep=0.005"  # so that no worker is done before others begin
SIGNALS = ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGTERM")
DEADLY = (*SIGNALS, "exit", "sys.exit")
SIZES = (2, 3, 4, 7)
EPOCHS = {"all_reduce": 3, "parameter_server": 3, "stale": 3, "local_sgd": 7, "top_k": 3, "power_sgd": 3}  # 21 steps
STRATEGIES = tuple(EPOCHS)
CACHE = Path(os.environ.get("SCRATCHNET_CACHE_DIR") or Path.home() / ".cache" / "scratchnet").absolute()
WORLDS = {  # what a shell does before it becomes the victim
    "tiny /dev/shm": "mount -t tmpfs -o size=4k none /dev/shm",
    "read-only kernel cache": f"mount --bind {CACHE} {CACHE} && mount -o remount,bind,ro {CACHE}",
    "no home folder": "export HOME=/dev/null/home; unset SCRATCHNET_CACHE_DIR XDG_CACHE_HOME",
}
OPTIMIZERS = {4: "momentum", 8: "adam"}  # by the number of shards
OUTCOMES = ("EXACT", "RESUME", "CLEAN", "hung", "silently wrong", "lost", "leaked")
GOOD = OUTCOMES[:3]


@dataclass
class Config:
    """Kill workers and parents of a training run in every way, and compare the bytes that come out."""

    all: bool = flag(False, "every fault at every point with every number of workers, instead of the quick choice")
    random: int = flag(5, "trials with kills from outside at random instants")
    seed: int = flag(0, "of the random instants")
    only: str = flag("", "run only trials whose name contains this")
    side_by_side: int = flag(2, "trials at a time")
    verbose: bool = flag(False, "a line for each trial, not only for those that failed")


@dataclass(frozen=True)
class Trial:
    """One fault, and what must come of it.

    fail: of scratchnet.parallel.failpoints. flags: of the victim. fires: how many lines that begin with `mark` the log
    of faults must have, at least. status, says: of a run that does not end by itself. restarts: whether a worker has to
    be started again (None: may be). kills: workers killed from outside, at so many random instants. damage: a bit of
    the newest checkpoint is flipped before the run is resumed. resumed_by: workers of each run that goes on with it;
    again: the strikes in all of these but the last. world: of WORLDS.
    """

    name: str
    group: str
    expected: str = "EXACT"
    workers: int = 2
    shards: int = 4
    strategy: str = "all_reduce"
    fail: str = ""
    flags: tuple[str, ...] = ()
    mark: str = ""
    fires: int = 1
    status: int = 0
    says: str = ""
    restarts: bool | None = None
    kills: int = 0
    seed: int = 0
    damage: bool = False
    resumed_by: tuple[int, ...] = (3,)
    again: tuple[str, ...] = ()
    world: str = ""

    def job(self) -> list[str]:
        optimizer, epochs = OPTIMIZERS[self.shards], str(EPOCHS[self.strategy])
        return f"--shards {self.shards} --optimizer {optimizer} --strategy {self.strategy} --epochs {epochs}".split()


@dataclass
class Result:
    outcome: str
    fired: bool
    why: str = ""
    leaks: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def ok(self, trial: Trial) -> bool:
        return self.outcome == trial.expected and self.fired and not self.leaks


# --- one process ------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a victim ended: exit status (None: by force, at the time limit), facts, last words, and what it left."""

    status: int | None
    facts: dict[str, Any]
    words: str
    leaks: list[str]


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


def in_world(world: str, command: list[str]) -> list[str]:
    """The command in name spaces of its own, in which a shell has changed something."""
    script = f'{WORLDS[world]} && echo "world:{world}" >> "${LOG}" && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command]


@cache
def worlds() -> bool:
    """Does this system let us have them?"""
    with contextlib.suppress(OSError):
        return subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode == 0
    return False


def run_victim(
    victim: Path, flags: list[str], environment: dict[str, str], kills: Any = None, world: str = ""
) -> Ended:
    """Run it to its end; then nothing may be left of it. kills: called in a thread with the process."""
    shared, command = shared_memory(), [sys.executable, str(victim), *flags]
    process = subprocess.Popen(
        in_world(world, command) if world else command,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "SCRATCHNET_QUIET": "1", "SCRATCHNET_CACHE_DIR": str(CACHE), **environment},
    )  # fmt: skip
    killer = threading.Thread(target=kills, args=(process,)) if kills else None
    if killer:
        killer.start()
    try:
        out, words = process.communicate(timeout=LIMIT)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        status = None
    if killer:
        killer.join()
    deadline = time.monotonic() + GRACE
    while (left := session(process.pid)) and status is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if status is None:
        out, words = process.communicate()
    facts = json.loads(out.splitlines()[-1]) if out.strip() else {}
    leaks = [f"process {pid}: {command[:60]}" for pid, command in left.items()] if status is not None else []
    leaks += [f"/dev/shm/{name}" for name in shared_memory() - shared]
    leaks += [f"file {fd}: {target}" for fd, target in facts.get("files", [])]
    return Ended(status, facts, words, leaks)


# --- one trial --------------------------------------------------------------------------------------------------------


@cache
def reference(*job: str) -> str:
    """The digest of an undisturbed run in one process."""
    with tempfile.TemporaryDirectory() as folder:
        ended = run_victim(VICTIM, ["--folder", folder, *job], {})
    if ended.status != 0:
        sys.exit(f"drill.py: the undisturbed run failed: {ended.words}")
    return ended.facts["digest"]


class Drill:
    """Trials of one victim. victim: a program with the flags and the output of drill_victim.py."""

    def __init__(self, victim: Path = VICTIM):
        self.victim = victim

    def run(self, trial: Trial) -> Result:
        expected, folder = reference(*trial.job()), Path(tempfile.mkdtemp(prefix="drill-"))
        start = time.monotonic()
        try:
            result = self._run(trial, expected, folder)
        finally:
            shutil.rmtree(folder)
        result.seconds = time.monotonic() - start
        return result

    def _run(self, trial: Trial, expected: str, folder: Path) -> Result:
        log, run = folder / "fired", folder / "run"
        flags = ["--folder", str(run), *trial.job()]
        fail = ",".join(filter(None, (trial.fail, PACE)))
        killer = RandomKills(trial, log) if trial.kills else None
        first = run_victim(
            self.victim,
            [*flags, "--workers", str(trial.workers), *trial.flags],
            {VARIABLE: fail, LOG: str(log)},
            killer,
            trial.world,
        )
        marks = [line for line in log.read_text().splitlines() if line.startswith(trial.mark)] if log.exists() else []
        fired = len([line for line in marks if "sleep=0.01" not in line and "sleep=0.005" not in line]) >= trial.fires
        last = (first.words.strip().splitlines() or [""])[-1]
        result = Result("lost", fired, f"status {first.status}: {last}", first.leaks)
        if first.status is None:
            result.outcome = "hung"
        elif first.status == 0:
            self._judge(result, first, expected)
            restarted = max(first.facts.get("starts", [1])) > 1
            if trial.restarts not in (None, restarted):
                result.outcome, result.why = "lost", f"starts of workers: {first.facts.get('starts')}"
        elif trial.expected == "CLEAN" and first.status == 1:
            named = trial.says in last + first.facts.get("notes", "")
            result.outcome = "CLEAN" if last.startswith(self.victim.name) and named else "lost"
        elif trial.expected == "RESUME" and first.status == trial.status:
            if trial.damage:
                result.fired = flip_a_bit(run)
            for workers, strike in zip(trial.resumed_by, (*trial.again, ""), strict=True):
                later = [*flags, "--workers", str(workers), "--strike", strike]
                ended = run_victim(self.victim, later, {VARIABLE: PACE, LOG: str(log)})
                result.leaks += ended.leaks
                if strike and ended.status != trial.status:
                    result.fired = False
            self._judge(result, ended, expected, "RESUME")
        return result

    def _judge(self, result: Result, ended: Ended, expected: str, good: str = "EXACT") -> None:
        if ended.status is None:
            result.outcome = "hung"
        elif ended.status == 0:
            result.outcome = good if ended.facts["digest"] == expected else "silently wrong"
        result.why = "" if ended.status == 0 else f"status {ended.status}: {ended.words.strip()[-300:]}"


class RandomKills:
    """Kills workers of a victim at random instants of its life."""

    def __init__(self, trial: Trial, log: Path):
        self.kills, self.log, self.dice = trial.kills, log, random.Random(trial.seed)

    def __call__(self, process: subprocess.Popen) -> None:
        for _ in range(self.kills):
            while process.poll() is None and not (workers := self._workers(process.pid)):
                time.sleep(0.005)
            time.sleep(self.dice.uniform(0, 1.0))
            workers = self._workers(process.pid) if process.poll() is None else []
            if workers:
                victim, number = self.dice.choice(workers), self.dice.choice(SIGNALS)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.Signals[number])
                    with self.log.open("a") as file:
                        file.write(f"outside:{number}\n")

    def _workers(self, pid: int) -> list[int]:
        return sorted(child for child, command in session(pid).items() if "spawn_main" in command)


def flip_a_bit(folder: Path) -> bool:
    """One bit of a weight in the newest checkpoint."""
    path = max(folder.glob("checkpoint-*.safetensors"))
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(blob)
    return True


# --- the trials -------------------------------------------------------------------------------------------------------


def at(point: str) -> str:
    """Steps at which a point fires: in the midst of the run, or at any."""
    return "*" if point in ("start", "exit") else "5+"


def ended_by(point: str, action: str, workers: int, shards: int = 4) -> Trial:
    """Worker 1 ends, in some way, at a point of its life."""
    name = f"{action} at {point}, {workers} workers, {shards} shards"
    plan, mark = f"{point}:{at(point)}:1:{action}", f"{point}:"
    return Trial(name, f"worker: {action}", workers=workers, shards=shards, fail=plan, mark=mark)


def stuck(how: str, point: str, workers: int, shards: int = 4) -> Trial:
    """Worker 1 stops, or runs in circles, and is killed after a while, or at the end if nobody waits for it."""
    flags = ("--patience", "5", "--ready", "4" if point == "start" else "20")
    return replace(ended_by(point, how, workers, shards), flags=flags)


def several(workers: int, shards: int = 4) -> list[Trial]:
    size = {"workers": workers, "shards": shards}
    two = "shard.claimed:5+:0:SIGKILL,shard.half_written:5+:1:SIGKILL"
    return [
        Trial(f"two at once, {size}", "workers: several", fail=two, mark="shard", fires=2, restarts=True, **size),
        Trial(
            f"all at once, {size}", "workers: several", fail="idle:5+:*:SIGKILL", mark="idle",
            fires=workers, restarts=True, **size,
        ),
        Trial(
            f"the same one again and again, {size}", "workers: several", fail="shard.written:2+:1:!SIGKILL",
            mark="shard.written", restarts=True, **size,
        ),
        Trial(
            f"workers come and go, {size}", "workers: resized", fail="shard.written:5+:1:SIGKILL",
            flags=("--resize", f"4:{workers + 2},9:1,12:{workers}"), mark="resize", fires=3, **size,
        ),
        slow(workers, shards),
    ]  # fmt: skip


def slow(workers: int, shards: int = 4) -> Trial:
    """Worker 1 takes ten times as long for each shard as the others: its first one is always the last to come; but
    where there are more workers than shards, it may not get any at first.
    """
    size = {"workers": workers, "shards": shards}
    return Trial(
        f"ten times slower, {size}", "worker: slow", fail="shard.claimed:*:1:!sleep=0.1",
        mark="shard.claimed:0:1:sleep=0.1" if workers <= shards else "shard.claimed", restarts=False, **size,
    )  # fmt: skip


def errors(workers: int) -> list[Trial]:
    """What no other worker can make good."""
    clean = {"expected": "CLEAN", "workers": workers}
    return [
        Trial(
            f"user code raises, {workers} workers", "user: exception", flags=("--data", "raises"),
            mark="sample:17", says='raise ValueError("sample 17 is bad")', **clean,
        ),
        Trial(
            f"a sample kills, {workers} workers", "user: deadly sample", flags=("--data", "kills"),
            mark="sample:17", fires=3, says="over shard 3 of step 4 (samples 6, 17), the last by SIGKILL", **clean,
        ),
        Trial(
            f"loss is NaN, {workers} workers", "user: NaN loss", flags=("--data", "nan"),
            mark="sample:17", says="got nan at step 4, shard 3, from log", **clean,
        ),
        Trial(
            f"no process can be started, {workers} workers", "limits", flags=("--processes", "1"),
            mark="processes", says="worker 1 could not be started", **clean,
        ),
        Trial(
            f"no memory in a worker, {workers} workers", "limits", flags=("--memory", str(300 << 20)),
            mark="memory", says="workers that live", **clean,
        ),
        Trial(
            f"no new process for a dead one, {workers} workers", "limits", "EXACT", workers,
            flags=("--processes", str(workers)), fail="shard.written:5+:1:SIGKILL", mark="processes",
        ),
        Trial(
            f"no room for shared memory, {workers} workers", "limits", flags=("--file-size", "65536"),
            mark="file size", says="shared memory: expected", **clean,
        ),
    ]  # fmt: skip


STRIKES = {  # name: strikes at the parent, exit status
    "kill": ("submit:9:SIGKILL", -signal.SIGKILL),
    "kill at start-up": ("starting:0:SIGKILL", -signal.SIGKILL),
    "kill before a rename": ("save.written:1:SIGKILL", -signal.SIGKILL),
    "kill after a rename": ("save.renamed:1:SIGKILL", -signal.SIGKILL),
    "Ctrl-C": ("submit:9:SIGINT", 130),
    "Ctrl-C twice": ("submit:9:SIGINT,submit:9:SIGINT", 130),
    "Ctrl-C during a save": ("save.written:1:SIGINT", 130),
    "terminate": ("submit:9:SIGTERM", 143),
    "a full disk during a save": ("save.written:1:ENOSPC", 1),
}


def parents(workers: int, shards: int = 4) -> list[Trial]:
    """Each is resumed by another number of workers, one process alone among them."""
    size, others = {"workers": workers, "shards": shards}, itertools.cycle((1, 3, 4))
    trials = [
        Trial(
            f"{name}, {size}", f"parent: {name}", "RESUME", flags=("--strike", plan), mark=plan.partition(":")[0],
            fires=plan.count(",") + 1, status=status, resumed_by=(next(others),), **size,
        )
        for name, (plan, status) in STRIKES.items()
    ]  # fmt: skip
    chain = replace(trials[0], name=f"kill, kill, kill, {size}", again=("submit:13:SIGKILL", "submit:18:SIGKILL"))
    return [
        *trials,
        flipped(workers, shards),
        replace(chain, group="parent: several kills", resumed_by=(3, 2, 1)),
    ]


def flipped(workers: int, shards: int = 4) -> Trial:
    """The parent is killed, and its newest checkpoint is damaged: the run goes on from the one before."""
    size = {"workers": workers, "shards": shards}
    plan, status = STRIKES["kill"]
    return Trial(
        f"kill, then a bit of the newest checkpoint flips, {size}", "checkpoint: damaged", "RESUME",
        flags=("--strike", plan), mark="submit", status=status, damage=True, resumed_by=(1,), **size,
    )  # fmt: skip


def elsewhere(names: Sequence[str], workers: int = 2) -> list[Trial]:
    """The same run where something of the system is missing."""
    return [Trial(name, "world", workers=workers, world=name, mark=f"world:{name}") for name in names if worlds()]


def in_each_strategy(trials: list[Trial], strategies: Sequence[str] = STRATEGIES[1:]) -> list[Trial]:
    """The trials under all strategies but the default one."""
    return [replace(t, name=f"{t.name}, {s}", group=f"strategy: {s}", strategy=s) for s in strategies for t in trials]


def random_kills(n: int, seed: int) -> list[Trial]:
    dice = random.Random(seed)
    trials = []
    for i in range(n):
        workers, shards, kills = dice.choice(SIZES), dice.choice(list(OPTIMIZERS)), dice.randint(1, 3)
        size = {"workers": workers, "shards": shards, "strategy": dice.choice(STRATEGIES)}
        name = f"random {i}: {kills} kills, {size}"
        trials.append(Trial(name, "worker: random kills", mark="outside", kills=kills, seed=seed + i, **size))
    return trials


def quick() -> list[Trial]:
    sizes = (2, 3, 2, 2, 4, 2, 2, 3, 2)
    trials = [ended_by(point, "SIGKILL", w, 4 + 4 * (i % 2)) for i, (point, w) in enumerate(zip(POINTS, sizes))]  # noqa: B905
    points = ("slice.half_written", "shard.half_written", "start", "slice.claimed", "shard.written", "slice.written")
    trials += [ended_by(point, action, 2) for point, action in zip(points, DEADLY[1:], strict=True)]
    trials += [
        stuck("SIGSTOP", "shard.half_written", 2),
        stuck("SIGSTOP", "start", 2),
        stuck("loop", "slice.claimed", 2),
    ]
    killed = [ended_by(point, "SIGKILL", 2) for point in ("shard.half_written", "slice.half_written")]
    trials += in_each_strategy(killed[:1]) + in_each_strategy(killed[1:], ("parameter_server", "local_sgd"))
    trials += in_each_strategy(parents(2)[:1], ("stale", "local_sgd", "top_k"))
    trials += in_each_strategy([trial for trial in parents(2) if trial.group == "parent: Ctrl-C"], ("stale",))
    return trials + several(3) + errors(2) + parents(2) + elsewhere(("tiny /dev/shm", "read-only kernel cache"))


def sweep() -> list[Trial]:
    trials = [ended_by(p, a, w, k) for k in OPTIMIZERS for w in SIZES for p in POINTS for a in DEADLY]
    trials += [stuck(how, p, w, k) for k in OPTIMIZERS for w in SIZES for p in POINTS for how in ("SIGSTOP", "loop")]
    for workers in SIZES:
        trials += errors(workers)
        for shards in OPTIMIZERS:
            trials += several(workers, shards) + parents(workers, shards)
            killed = [ended_by(p, "SIGKILL", workers, shards) for p in POINTS]
            trials += in_each_strategy([*killed, *several(workers, shards), *parents(workers, shards)])
    return trials + elsewhere(WORLDS)


# --- the report -------------------------------------------------------------------------------------------------------


def run_trials(drill: Drill, trials: list[Trial], side_by_side: int = 2, verbose: bool = False) -> list[Result]:
    """Results in the order of the trials; a line for each that failed, as soon as it did."""

    def one(trial: Trial) -> Result:
        result = drill.run(trial)
        if verbose or not result.ok(trial):
            print(line(trial, result), flush=True)
        return result

    with ThreadPoolExecutor(side_by_side) as threads:
        list(threads.map(lambda job: reference(*job), sorted({tuple(trial.job()) for trial in trials})))
        return list(threads.map(one, trials))


def line(trial: Trial, result: Result) -> str:
    told = "ok    " if result.ok(trial) else "FAILED"
    wrong = "" if result.ok(trial) else f" (expected {trial.expected}) {result.why}"
    parts = [result.outcome, "" if result.fired else "NOT FIRED", *(f"left {leak}" for leak in result.leaks)]
    return f"{told} {result.seconds:5.1f} s  {trial.name}: {', '.join(filter(None, parts))}{wrong}"


def table(trials: list[Trial], results: list[Result]) -> Iterator[str]:
    """One row for each kind of fault, and their sum."""
    columns = ("injected", "fired", *OUTCOMES)
    rows: dict[str, Counter[str]] = {}
    for trial, result in zip(trials, results, strict=True):
        counts = {"injected": 1, "fired": int(result.fired), result.outcome: 1, "leaked": int(bool(result.leaks))}
        for name in (trial.group, "all"):
            rows.setdefault(name, Counter()).update(counts)
    rows["all"] = rows.pop("all")
    yield f"{'fault':34}" + "".join(f"{column:>{max(9, len(column) + 2)}}" for column in columns)
    for name, row in rows.items():
        yield f"{name:34}" + "".join(f"{row[column]:>{max(9, len(column) + 2)}}" for column in columns)


def main(config: Config) -> None:
    start = time.monotonic()
    trials = (sweep() if config.all else quick()) + random_kills(config.random, config.seed)
    trials = [trial for trial in trials if config.only in trial.name]
    if not worlds():
        print(f"this system gives no name spaces, so these trials are left out: {', '.join(WORLDS)}")
    results = run_trials(Drill(), trials, config.side_by_side, config.verbose)
    print("\n".join(table(trials, results)))
    failed = sum(not result.ok(trial) for trial, result in zip(trials, results, strict=True))
    print(f"{len(trials)} trials in {time.monotonic() - start:.0f} s, {failed} failed")
    if failed or not trials:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, Config)
