"""The trials of the drill: one fault each, in a worker's or in the parent's life, and what must come of it."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from scratchnet.parallel.failpoints import LOG, POINTS, STAGE_POINTS

SIGNALS = ("SIGKILL", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGTERM")
DEADLY = (*SIGNALS, "exit", "sys.exit")
SIZES = (2, 3, 4, 7)
OPTIMIZERS = {4: "momentum", 8: "adam"}  # by the number of shards
EPOCHS = {  # of 7 steps each
    "all_reduce": 3,
    "parameter_server": 3,
    "stale": 3,
    "local_sgd": 7,
    "top_k": 3,
    "power_sgd": 3,
    "bfloat16": 3,
    "tensor_parallel": 3,
    "pipeline": 3,
    "shared_parts": 3,
}
# Whose workers do stages, or parts, of a shard: the numbers of workers that can; and who has the same bytes.
STAGED = {"pipeline": (2, 4), "shared_parts": (2, 3, 4)}
WHOLE = {"pipeline": "all_reduce", "shared_parts": "tensor_parallel"}
STRATEGIES = tuple(name for name in EPOCHS if name not in STAGED)
CACHE = Path(os.environ.get("SCRATCHNET_CACHE_DIR") or Path.home() / ".cache" / "scratchnet").absolute()
WORLDS = {  # what a shell does before it becomes the victim
    "tiny /dev/shm": "mount -t tmpfs -o size=4k none /dev/shm",
    "read-only kernel cache": f"mount --bind {CACHE} {CACHE} && mount -o remount,bind,ro {CACHE}",
    "no home folder": "export HOME=/dev/null/home; unset SCRATCHNET_CACHE_DIR XDG_CACHE_HOME",
}
UNSHARE = ["unshare", "--map-root-user", "--mount"]


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
    workers: int = 2
    shards: int = 4
    expected: str = "EXACT"
    strategy: str = "all_reduce"
    fail: str = ""
    flags: str = ""
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
        optimizer, epochs = OPTIMIZERS[self.shards], EPOCHS[self.strategy]
        return f"--shards {self.shards} --optimizer {optimizer} --strategy {self.strategy} --epochs {epochs}".split()

    def undisturbed(self) -> list[str]:
        """The job of one process with the same bytes."""
        return replace(self, strategy=WHOLE.get(self.strategy, self.strategy)).job()


def sized(name: str, group: str, workers: int, shards: int, **fields: Any) -> Trial:
    return Trial(f"{name}, {workers} workers, {shards} shards", group, workers, shards, **fields)


# --- workers ----------------------------------------------------------------------------------------------------------


def ended_by(point: str, action: str, workers: int, shards: int = 4, flags: str = "") -> Trial:
    """Worker 1 ends, in some way, at a point of its life."""
    step = "*" if point in ("start", "exit") else "5+"  # in the midst of the run, where it can be
    plan = f"{point}:{step}:1:{action}"
    return sized(f"{action} at {point}", f"worker: {action}", workers, shards, fail=plan, mark=f"{point}:", flags=flags)


def ended_together(faults: Sequence[tuple[str, str]], shards: int = 4) -> Trial:
    """Each worker ends, at a point (point, action) of its own: where a step counts, four steps after the one before."""
    plans = [
        f"{point}:{'*' if point in ('start', 'exit') else f'{4 * i + 3}+'}:{i}:{action}"
        for i, (point, action) in enumerate(faults)
    ]
    workers, name = len(faults), ", ".join(f"{action} at {point}" for point, action in faults)
    return sized(name, "workers: each", workers, shards, fail=",".join(plans), fires=workers, restarts=True)


def stuck(how: str, point: str, workers: int, shards: int = 4) -> Trial:
    """Worker 1 stops, or runs in circles, and is killed after a while, or at the end if nobody waits for it."""
    return ended_by(point, how, workers, shards, f"--patience 5 --ready {4 if point == 'start' else 20}")


def stopped_server(workers: int, shards: int = 4) -> Trial:
    """The process that forks workers stops, and then one of them dies: nobody says how, nor forks another."""
    flags = "--patience 5 --strike submit:5:stopped-server"
    plan = {"fail": "shard.claimed:6+:1:SIGKILL", "flags": flags, "mark": "s", "fires": 2, "restarts": True}
    return sized("the server of workers stops, one dies", "workers: stopped server", workers, shards, **plan)


def several(workers: int, shards: int = 4) -> list[Trial]:
    two = "shard.claimed:5+:0:SIGKILL,shard.half_written:5+:1:SIGKILL"
    again, once = "shard.written:2+:1:!SIGKILL", "shard.written:5+:1:SIGKILL"
    come_and_go = f"--resize 4:{workers + 2},9:1,12:{workers}"
    rows = [  # name, kind, fail points, flags, mark, how often it fires, whether workers start again
        ("two at once", "several", two, "", "shard", 2, True),
        ("all at once", "several", "idle:5+:*:SIGKILL", "", "idle", workers, True),
        ("the same one again and again", "several", again, "", "shard.written", 1, True),
        ("workers come and go", "resized", once, come_and_go, "resize", 3, None),
    ]
    return [
        sized(
            name, f"workers: {kind}", workers, shards, fail=fail, flags=flags, mark=mark, fires=fires, restarts=restarts
        )
        for name, kind, fail, flags, mark, fires, restarts in rows
    ] + [slow(workers, shards)]


def slow(workers: int, shards: int = 4) -> Trial:
    """Worker 1 takes ten times as long for each shard as the others: its first one is always the last to come; but
    where there are more workers than shards, it may not get any at first.
    """
    mark = "shard.claimed:0:1:sleep=0.1" if workers <= shards else "shard.claimed"
    fail = "shard.claimed:*:1:!sleep=0.1"
    return sized("ten times slower", "worker: slow", workers, shards, fail=fail, mark=mark, restarts=False)


ERRORS = [  # what no other worker can make good: name, group, flags, mark, how often it fires, what the run says
    ("user code raises", "user: exception", "--data raises", "sample:17", 1, 'raise ValueError("sample 17 is bad")'),
    ("a sample kills", "user: deadly sample", "--data kills", "sample:17", 3,
     "over shard 3 of step 4 (samples 6, 17), the last by SIGKILL"),
    ("loss is NaN", "user: NaN loss", "--data nan", "sample:17", 1, "got nan at step 4, shard 3, from log"),
    ("no process can be started", "limits", "--processes 1", "processes", 1, "worker 1 could not be started"),
    ("no memory in a worker", "limits", f"--memory {200 << 20}", "memory", 1, "workers that live"),
    ("no room for shared memory", "limits", "--file-size 65536", "file size", 1, "shared memory: expected"),
]  # fmt: skip


def errors(workers: int) -> list[Trial]:
    clean = [
        Trial(f"{name}, {workers} workers", group, workers, 4, "CLEAN", flags=flags, mark=mark, fires=fires, says=says)
        for name, group, flags, mark, fires, says in ERRORS
    ]
    fewer = Trial(
        f"no new process for a dead one, {workers} workers", "limits", workers, flags=f"--processes {workers}",
        fail="shard.written:5+:1:SIGKILL", mark="processes",
    )  # fmt: skip
    return [*clean, fewer]


def random_kills(n: int, seed: int) -> list[Trial]:
    dice = random.Random(seed)
    trials = []
    for i in range(n):
        strategy, shards, kills = dice.choice(list(EPOCHS)), dice.choice(list(OPTIMIZERS)), dice.randint(1, 3)
        workers = dice.choice(STAGED.get(strategy, SIZES))
        name, random_at = f"random {i}: {kills} kills, {strategy}", {"kills": kills, "seed": seed + i}
        trials.append(
            sized(name, "worker: random kills", workers, shards, strategy=strategy, mark="outside", **random_at)
        )
    return trials


# --- the parent, and the world around it ------------------------------------------------------------------------------

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


def struck(strike: str, group: str, workers: int, shards: int, name: str = "", **fields: Any) -> Trial:
    """The parent is struck, and the run resumed."""
    plan, status = STRIKES[strike]
    fired = {"mark": plan.partition(":")[0], "fires": plan.count(",") + 1, "status": status}
    return sized(name or strike, group, workers, shards, expected="RESUME", flags=f"--strike {plan}", **fired, **fields)


def parents(workers: int, shards: int = 4) -> list[Trial]:
    """Each is resumed by another number of workers, one process alone among them."""
    others = itertools.cycle((1, 3, 4))
    again = {"again": ("submit:13:SIGKILL", "submit:18:SIGKILL"), "resumed_by": (3, 2, 1)}
    return [
        *(struck(name, f"parent: {name}", workers, shards, resumed_by=(next(others),)) for name in STRIKES),
        flipped(workers, shards),
        struck("kill", "parent: several kills", workers, shards, "kill, kill, kill", **again),
    ]


def flipped(workers: int, shards: int = 4) -> Trial:
    """The parent is killed, and its newest checkpoint is damaged: the run goes on from the one before."""
    name = "kill, then a bit of the newest checkpoint flips"
    return struck("kill", "checkpoint: damaged", workers, shards, name, damage=True, resumed_by=(1,))


@cache
def worlds() -> bool:
    """Does this system give us name spaces of our own?"""
    with contextlib.suppress(OSError):
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    return False


def in_world(world: str, command: list[str]) -> list[str]:
    """The command in name spaces of its own, in which a shell has changed something."""
    if not world:
        return command
    script = f'{WORLDS[world]} && echo "world:{world}" >> "${LOG}" && exec "$@"'
    return [*UNSHARE, "sh", "-c", script, "sh", *command]


def elsewhere(names: Iterable[str]) -> list[Trial]:
    """The same run where something of the system is missing."""
    return [Trial(name, "world", world=name, mark=f"world:{name}") for name in names if worlds()]


# --- choices ----------------------------------------------------------------------------------------------------------


def in_stages(trials: Sequence[Trial], strategy: str = "pipeline") -> list[Trial]:
    """The trials, in which shards of a model in stages are computed; those with as many workers as that takes."""
    moved = [
        replace(
            t, strategy=strategy, group=f"strategy: {strategy}", name=f"{t.name}, {strategy}",
            fail=t.fail.replace("shard.", "backward."), mark=t.mark.replace("shard.", "backward."),
        )
        for t in trials if t.workers in STAGED[strategy]
    ]  # fmt: skip
    return [replace(t, resumed_by=tuple(w if w < 3 else 4 for w in t.resumed_by)) for t in moved]


def in_each_strategy(trials: list[Trial], strategies: Sequence[str] = STRATEGIES[1:]) -> list[Trial]:
    """The trials under all strategies but the default one."""
    return [replace(t, name=f"{t.name}, {s}", group=f"strategy: {s}", strategy=s) for s in strategies for t in trials]


def quick() -> list[Trial]:
    """All points, ends and strikes once; where an end of a worker is as good as another, three in one run."""
    kills = [(point, "SIGKILL") for point in POINTS]
    trials = [ended_together(kills[i::3], 4 + 4 * (i % 2)) for i in range(3)]
    points = ("slice.half_written", "shard.half_written", "start", "slice.claimed", "shard.written", "slice.written")
    ends = list(zip(points, DEADLY[1:], strict=True))
    trials += [ended_together(ends[:3]), ended_together(ends[3:])]
    trials += [
        stuck("SIGSTOP", "shard.half_written", 2),
        stuck("SIGSTOP", "start", 2),
        stuck("loop", "slice.claimed", 2),
        stopped_server(2),
    ]
    trials += in_each_strategy([ended_together([("shard.half_written", "SIGKILL"), ("slice.half_written", "SIGKILL")])])
    kill, ctrl_c = (trial for trial in parents(2) if trial.group in ("parent: kill", "parent: Ctrl-C"))
    trials += in_each_strategy([kill], ("stale", "local_sgd", "top_k")) + in_each_strategy([ctrl_c], ("stale",))
    ends = [*zip(STAGE_POINTS, itertools.cycle(DEADLY), strict=False), ("idle", "SIGKILL"), ("slice.claimed", "exit")]
    trials += in_stages([ended_together(ends[i::2]) for i in range(2)] + [stuck("SIGSTOP", "forward.half_written", 2)])
    ends = [("forward.half_written", "SIGSEGV"), ("backward.half_written", "SIGKILL")]
    trials += in_stages([ended_together(ends)], "shared_parts")
    return trials + several(3) + errors(2) + parents(2) + elsewhere(("tiny /dev/shm", "read-only kernel cache"))


def sweep() -> list[Trial]:
    trials = [ended_by(p, a, w, k) for k in OPTIMIZERS for w in SIZES for p in POINTS for a in DEADLY]
    trials += [stuck(how, p, w, k) for k in OPTIMIZERS for w in SIZES for p in POINTS for how in ("SIGSTOP", "loop")]
    for workers in SIZES:
        trials += errors(workers)
        for shards in OPTIMIZERS:
            trials += [*several(workers, shards), *parents(workers, shards), stopped_server(workers, shards)]
            killed = [ended_by(p, "SIGKILL", workers, shards) for p in POINTS]
            trials += in_each_strategy([*killed, *several(workers, shards), *parents(workers, shards)])
            points = (*STAGE_POINTS, "idle", "slice.half_written")  # idle: in a bubble
            killed = [ended_by(p, a, workers, shards) for p in points for a in (*DEADLY, "SIGSTOP")]
            for strategy in STAGED:
                trials += in_stages([*killed, *several(workers, shards), *parents(workers, shards)], strategy)
    return trials + elsewhere(WORLDS)
