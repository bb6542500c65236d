"""Shows that no kill changes what a run computes: trials with one fault each, against a run that nothing disturbed.

    python scripts/drill/drill.py                # the quick choice, which CI runs
    python scripts/drill/drill.py --all          # every fault at every point with every number of workers

Each trial is victim.py in a session of its own, with a fresh folder and a hard time limit. A fault that did not fire is
a failure of the drill. The last table counts what came of the faults; the exit status is 1 if anything is wrong.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import running
from running import Ended, Result, session
from trials import CACHE, SIGNALS, WORLDS, Trial, in_world, quick, random_kills, sweep, worlds

from scratchnet.flags import flag, run_script
from scratchnet.parallel.failpoints import LOG, VARIABLE

VICTIM = Path(__file__).with_name("victim.py")
LIMIT = 90.0  # seconds until a trial counts as hung
LATE = 50  # pieces after which a run is killed at once: it may be over soon
PAUSES = {"shard": "0.01", "slice": "0.005", "forward": "0.003", "backward": "0.003"}  # seconds before each piece,
PACE = ",".join(f"{phase}.claimed:*:*:sleep={pause}" for phase, pause in PAUSES.items())  # so that all workers get some


@dataclass
class Config:
    """Kill workers and parents of a training run in every way, and compare the bytes that come out."""

    all: bool = flag(False, "every fault at every point with every number of workers, instead of the quick choice")
    random: int = flag(3, "trials with kills from outside at random instants")
    seed: int = flag(0, "of the random instants")
    only: str = flag("", "run only trials whose name contains this")
    side_by_side: int = flag(2, "trials at a time")
    verbose: bool = flag(False, "a line for each trial, not only for those that failed")


def run_victim(
    victim: Path, flags: list[str], kills: Any = None, world: str = "", **variables: str
) -> tuple[Ended, Any]:
    """Runs it to its end; with the facts that it says. Files that it left open count as left behind."""
    command = in_world(world, [sys.executable, str(victim), *flags])
    ended = running.run(command, LIMIT, kills, **{"SCRATCHNET_CACHE_DIR": str(CACHE)}, **variables)
    facts = json.loads(ended.out.splitlines()[-1]) if ended.out.strip() else {}
    ended.leaks += [f"file {fd}: {target}" for fd, target in facts.get("files", [])]
    return ended, facts


@cache
def reference(*job: str) -> str:
    """The digest of an undisturbed run in one process."""
    with tempfile.TemporaryDirectory() as folder:
        ended, facts = run_victim(VICTIM, ["--folder", folder, *job])
    if ended.status != 0:
        sys.exit(f"drill.py: the undisturbed run failed: {ended.words}")
    return facts["digest"]


class Drill:
    """Trials of one victim. victim: a program with the flags and the output of victim.py."""

    def __init__(self, victim: Path = VICTIM):
        self.victim = victim

    def run(self, trial: Trial) -> Result:
        with tempfile.TemporaryDirectory(prefix="drill-") as folder:
            return self._run(trial, reference(*trial.undisturbed()), Path(folder))

    def _run(self, trial: Trial, expected: str, folder: Path) -> Result:
        log, flags = folder / "fired", ["--folder", str(folder / "run"), *trial.job()]
        armed = {VARIABLE: ",".join(filter(None, (trial.fail, PACE))), LOG: str(log)}
        killer = RandomKills(trial, log) if trial.kills else None
        first = [*flags, "--workers", str(trial.workers), *trial.flags.split()]
        ended, facts = run_victim(self.victim, first, killer, trial.world, **armed)
        marks = [line for line in log.read_text().splitlines() if line.startswith(trial.mark)] if log.exists() else []
        fired = len([line for line in marks if line.partition("sleep=")[2] not in PAUSES.values()]) >= trial.fires
        result = Result("lost", fired, f"status {ended.status}: {ended.last_word}", ended.leaks)
        if ended.status in (0, None):
            _judge(result, ended, facts, expected)
            if ended.status == 0 and trial.restarts not in (None, max(facts.get("starts", [1])) > 1):
                result.outcome, result.why = "lost", f"starts of workers: {facts.get('starts')}"
        elif trial.expected == "CLEAN" and ended.status == 1:
            if ended.last_word.startswith(self.victim.name) and trial.says in ended.last_word + facts.get("notes", ""):
                result.outcome = "CLEAN"
        elif trial.expected == "RESUME" and ended.status == trial.status:
            if trial.damage:
                flip_a_bit(folder / "run")
            for workers, strike in zip(trial.resumed_by, (*trial.again, ""), strict=True):
                later = [*flags, "--workers", str(workers), "--strike", strike]
                ended, facts = run_victim(self.victim, later, **armed | {VARIABLE: PACE})
                result.leaks += ended.leaks
                result.fired &= not strike or ended.status == trial.status
            _judge(result, ended, facts, expected, "RESUME")
        return result


def _judge(result: Result, ended: Ended, facts: dict, expected: str, good: str = "EXACT") -> None:
    if ended.status is None:
        result.outcome = "hung"
    elif ended.status == 0:
        result.outcome = good if facts["digest"] == expected else "silently wrong"
    result.why = "" if ended.status == 0 else f"status {ended.status}: {ended.words.strip()[-300:]}"


class RandomKills:
    """Kills workers of a victim at random instants of its life, which is short on a fast machine."""

    def __init__(self, trial: Trial, log: Path):
        self.kills, self.log, self.dice = trial.kills, log, random.Random(trial.seed)

    def __call__(self, process: subprocess.Popen) -> None:
        for _ in range(self.kills):
            while process.poll() is None and not self._workers(process.pid):
                time.sleep(0.005)
            instant = time.monotonic() + self.dice.uniform(0, 1.0)
            while time.monotonic() < instant and self._pieces() < LATE and process.poll() is None:
                time.sleep(0.005)
            if process.poll() is None and (workers := self._workers(process.pid)):
                victim, number = self.dice.choice(workers), self.dice.choice(SIGNALS)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.Signals[number])
                    with self.log.open("a") as file:
                        file.write(f"outside:{number}\n")

    def _pieces(self) -> int:
        """That workers began, see PACE."""
        return self.log.read_text().count("\n") if self.log.exists() else 0

    def _workers(self, pid: int) -> list[int]:
        return sorted(child for child, command in session(pid).items() if "spawn_main" in command)


def flip_a_bit(folder: Path) -> None:
    """One bit of a weight in the newest checkpoint."""
    path = max(folder.glob("checkpoint-*.safetensors"))
    blob = bytearray(path.read_bytes())
    blob[-3] ^= 1
    path.write_bytes(blob)


def main(config: Config) -> None:
    trials = (sweep() if config.all else quick()) + random_kills(config.random, config.seed)
    trials = [trial for trial in trials if config.only in trial.name]
    if not worlds():
        print(f"this system gives no name spaces, so these trials are left out: {', '.join(WORLDS)}")
    with ThreadPoolExecutor(config.side_by_side) as threads:
        list(threads.map(lambda job: reference(*job), sorted({tuple(trial.undisturbed()) for trial in trials})))
    running.run_trials(Drill().run, trials, config.side_by_side, config.verbose)


if __name__ == "__main__":
    run_script(main, Config)
