"""N tasks of a scheduler become N ranks of an MPI job: one launcher for every scheduler.

    the driver                               a task, on whatever machine
    listens (rendezvous.py)
    asks the scheduler for N tasks      ->   connects, says which machine it is on
    starts mpiexec (hydra.py)
    sends each machine one command      ->   its first task starts the ranks (task.py), the others hold their slots
    prints what ranks print             <-   ranks run the function (rank.py), MPI carries what they say to each other
    gets results from the scheduler     <-   each rank's result

A scheduler is a row of five fields, see `Scheduler`; nothing here asks which one it is.
"""

import concurrent.futures
import functools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ... import checks
from ...errors import ConfigError, WorkerError
from ..comm.job import ENDED
from ..groups import YEARS
from ..objects import culprit, dumps, loads
from ..pool.launch import signal_name
from . import hydra
from .rendezvous import Rendezvous
from .task import misfit, work

RANK = "scratchnet.parallel.clusters.rank"
START = 60.0  # seconds that a scheduler may take to start all tasks, or a part of it again that has died
SETTLE = 5.0  # seconds in which the slots of a job that has just ended become free
RECOVER = 20.0  # and those of a part that has died come back, before a restart goes on with fewer
END = 20.0  # seconds in which tasks have to end
LATE = 5.0  # and if one of them is lost, the others
POLL = 0.05
BAD_END = re.compile(r"PID (\d+) RUNNING AT machine(\d+)\s+=\s+EXIT CODE: (\d+)")  # what Hydra reports of one rank
REPORT = (
    "=",
    "[mpiexec@",
    "[proxy:",
    "YOUR APPLICATION TERMINATED WITH",
    "This typically refers to a problem",
    "Please see the FAQ page",
)
LAST_WORDS = 1.0  # seconds between the first sign of a failure and the end of all ranks


@dataclass(frozen=True)
class Scheduler:
    """What starts tasks.

    address: of this process, as tasks reach it. free: how many tasks can start at once, now. collect: runs
    `work(task)` in tasks 0 to n - 1 at the same time and returns what they return; it may raise whatever the scheduler
    does. cancel: makes `collect` end. explain: an error of `collect` in one line, if it is one that this package knows.
    """

    name: str
    address: str
    free: Callable[[], int]
    collect: Callable[[Callable[[int], dict], int], list]
    cancel: Callable[[], Any]
    explain: Callable[[BaseException], str] = lambda error: f"{type(error).__name__}: {error}".splitlines()[0]


class Lost(WorkerError):
    """The job ended for a reason that a restart may mend: a rank, a task or a machine died."""


def run(
    scheduler: Scheduler,
    fn: Callable,
    args: tuple,
    ranks: int,
    restarts: int = 0,
    at_least: int | None = None,
    timeout: float | None = None,
) -> list:
    """`fn(comm, *args)` in `ranks` tasks of a scheduler, whose results come in rank order; see docs/clusters.md.

    restarts: how often the job is started again after a rank, a task or a machine died; then it takes the slots that
    there are, `at_least` so many (all, if None). timeout: seconds that a collective call may wait; None for ever.
    """
    what = f"{scheduler.name}.run"
    ranks = checks.integer(f"{what}: ranks", ranks, 1)
    restarts = checks.integer(f"{what}: restarts", restarts, 0)
    at_least = ranks if at_least is None else checks.integer(f"{what}: at_least", at_least, 1, ranks)
    checks.function(what, fn)
    if timeout is not None:
        timeout = checks.number(f"{what}: timeout", timeout, "(0, inf]")
        timeout = None if timeout > YEARS else timeout
    payload = _payload(what, (fn, args, timeout))
    for attempt in range(restarts + 1):
        count = _slots(scheduler, ranks, at_least, RECOVER, START) if attempt else _slots(scheduler, ranks, ranks)
        try:
            return _Attempt(scheduler, count, payload, attempt).results()
        except Lost as error:
            if attempt == restarts:
                raise
            sys.stderr.write(f"scratchnet: {error}; restart {attempt + 1} of {restarts}\n")
    raise AssertionError


def _payload(what: str, value: tuple) -> bytes:
    here = os.getcwd(), [os.path.abspath(folder) for folder in sys.path if isinstance(folder, str)]
    try:
        return dumps((here, dumps(value)))
    except Exception as error:
        reason = (str(error) or "no reason given").splitlines()[0]
        name = getattr(value[0], "__qualname__", type(value[0]).__name__)
        where = culprit(value[:2]) or "it"
        raise ConfigError(
            f"{what}: expected a function and arguments that can be sent, got {name}: {type(error).__name__}: "
            f"{reason}, in {where}; make it in the rank"
        ) from None


def _slots(scheduler: Scheduler, most: int, least: int, patience: float = 0.0, limit: float | None = None) -> int:
    """How many ranks can start, at most `most`, for which it waits so many seconds. ConfigError for fewer than `least`,
    for which it waits to the limit."""
    begin, limit = time.monotonic(), SETTLE if limit is None else limit
    try:
        while (free := scheduler.free()) < most:
            if time.monotonic() - begin >= (limit if free < least else patience):
                break
            time.sleep(0.2)
    except Exception as error:  # whatever the scheduler's library raises once its other end has gone
        raise ConfigError(
            f"{scheduler.name}.run: expected a scheduler that answers, got {scheduler.explain(error)}"
        ) from None
    if free < least:
        raise ConfigError(
            f"{scheduler.name}.run: expected {least} free slots, one for each rank, found {free}; "
            "ask for fewer ranks, or for more executors or workers"
        )
    return min(free, most)


def one_of(others: list[int]) -> str:
    return "".join(f"or {other} " for other in others)


class _Attempt:
    """One start of the job."""

    def __init__(self, scheduler: Scheduler, ranks: int, payload: bytes, attempt: int):
        self.scheduler, self.ranks, self.payload, self.attempt = scheduler, ranks, payload, attempt
        self.tasks: concurrent.futures.Future[list] = concurrent.futures.Future()
        self.machines: list[list[int]] = []  # the tasks of each
        self.report = ""  # Hydra's, about a rank that ended badly
        self.trouble = ""  # what the scheduler said about its tasks

    def results(self) -> list:
        with Rendezvous(self.scheduler.address) as meeting:
            try:
                do = functools.partial(
                    work, address=self.scheduler.address, port=meeting.port, token=meeting.token,
                    payload=self.payload, attempt=self.attempt,
                )  # fmt: skip
                thread = threading.Thread(target=self._collect, args=(do,), daemon=True)
                thread.start()
                if not meeting.gather(self.ranks, START, self.tasks.done):
                    raise self._not_started(len(meeting.peers))
                if wrong := misfit(hello for _, hello in meeting.peers.values()):
                    raise ConfigError(f"{self.scheduler.name}.run: {wrong}")
                lost, status = self._run(meeting)
            except BaseException:
                meeting.close()  # then tasks end their ranks
                self._cancel()
                raise
        replies = self._replies(LATE if lost else END)
        if self.tasks.done():
            thread.join()  # and with it ends what belongs to it, such as a server of workers
        return self._outcome(replies, lost, status)

    def _collect(self, do: Callable) -> None:
        try:
            self.tasks.set_result(self.scheduler.collect(do, self.ranks))
        except BaseException as error:
            self.tasks.set_exception(error)

    def _not_started(self, came: int) -> Exception:
        name = self.scheduler.name
        if self.tasks.done() and (error := self.tasks.exception()):
            return ConfigError(f"{name}.run: {self.scheduler.explain(error)}")
        when = "before the others ended" if self.tasks.done() else f"within {START:.0f} s"
        remedy = f"can they reach {self.scheduler.address}?"
        return Lost(f"{name}.run: expected {self.ranks} tasks to call this process {when}, got {came}; {remedy}", came)

    def _run(self, meeting: Rendezvous) -> tuple[list[int], int]:
        """The job, from mpiexec's start to its end: what `_wait` returns, and mpiexec's status."""
        machines: dict[str, list[int]] = {}
        for task in sorted(meeting.peers):
            machines.setdefault(meeting.peers[task][1]["machine"], []).append(task)
        self.machines = list(machines.values())
        job = hydra.Job(self.scheduler.address, list(map(len, self.machines)), [RANK], self._print)
        try:
            for tasks, command in zip(self.machines, job.commands, strict=True):
                meeting.peers[tasks[0]][0].send(command=command, ranks=len(tasks))
            lost, said = self._wait(job, meeting), self.report
        finally:
            status = job.close()
        if lost:  # what Hydra says of the ranks that `close` ended is no reason
            self.report = said
        return lost, status

    def _print(self, stream: str, line: str) -> None:
        """What ranks print, on the driver. Hydra's own report of a bad end becomes the error's line instead."""
        if line.startswith(REPORT):
            self.report += line
        elif line != ENDED:
            getattr(sys, stream).write(line)

    def _wait(self, job: hydra.Job, meeting: Rendezvous) -> list[int]:
        """Returns when mpiexec has ended, or a task while ranks ran: the ranks of such tasks."""
        while job.process.poll() is None:
            gone = [task for task, (peer, _) in meeting.peers.items() if peer.has_ended()]
            if gone or self.tasks.done():
                try:  # a task that starts ranks ends just after them, and mpiexec, too
                    job.process.wait(LAST_WORDS)
                except subprocess.TimeoutExpired:
                    order = [task for tasks in self.machines for task in tasks]
                    return sorted(map(order.index, gone)) or [0]
            time.sleep(POLL)
        return []

    def _replies(self, seconds: float) -> dict[int, tuple[str, Any]]:
        """What each rank kept for us, see rank.py: nothing of those whose task ended."""
        if not concurrent.futures.wait([self.tasks], seconds).done:
            self._cancel()
            return {}
        try:
            parts = self.tasks.result()
        except Exception as error:
            self.trouble = self.scheduler.explain(error)
            return {}
        return {rank: loads(reply) for part in parts for rank, reply in part.items()}

    def _cancel(self) -> None:
        """Returns when the scheduler has ended all tasks, or after END seconds."""
        if not self.tasks.done():
            self.scheduler.cancel()
            concurrent.futures.wait([self.tasks], END)

    def _outcome(self, replies: dict[int, tuple[str, Any]], lost: list[int], status: int) -> list:
        """The results, in rank order. Raises the error of the rank that failed first."""
        name, errors = self.scheduler.name, {n: error for n, (kind, error) in replies.items() if kind == "error"}
        for rank, error in sorted(errors.items()):
            if not error["follows"]:
                raise WorkerError(f"{name}.run: rank {rank} raised {error['message']}", rank, None, error["traceback"])
        done = {rank: value for rank, (kind, value) in replies.items() if kind == "result"}
        if len(done) == self.ranks:
            return [done[rank] for rank in range(self.ranks)]
        rank, *others = (rank for rank in range(self.ranks) if rank not in done)
        how, number = f"ended before its function returned (mpiexec: status {status})", None
        firsts = [sum(map(len, self.machines[:i])) for i in range(len(self.machines))]
        if found := BAD_END.search(self.report):
            pid, machine, code = map(int, found.groups())
            own = range(firsts[machine], firsts[machine] + len(self.machines[machine]))
            rank = next((n for n in own if replies.get(n) == ("started", pid)), own[0])
            number = code if f"(signal {code})" in self.report else None
            ended = f"ended with status {code} before its function returned"
            how = f"was killed by {signal_name(number)}" if number else ended
        elif lost or self.trouble:
            rank, others = (lost[0], []) if lost else (rank, others)  # else nobody knows which of them was the first
            how = f"{one_of(others)}was lost: {self.trouble or 'its task ended, or the scheduler ended it'}"
        elif errors:
            rank, how = min((n, f"raised {error['message']}") for n, error in errors.items())
        else:
            how = one_of(others) + how
        kind = WorkerError if "cancel" in self.trouble.lower() else Lost  # who cancels a job wants no restart
        raise kind(f"{name}.run: rank {rank} {how}", rank, number)
