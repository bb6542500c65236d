"""Does every rank of a job still live? A thread on each asks when its rank waits for long, and ends the job if not.

MPI itself waits for ever for a rank that was stopped, a machine that vanished or a link that stalls. Here a rank that
has waited for half of `patience` calls the roll: every other rank's thread answers with how far it has come, even while
its rank computes. Who does not answer in the other half is named, with the step, in one line, and the job is ended.
A rank that died is seen by mpirun. Open MPI's tells the others to end (SIGTERM); they call the roll then, too, to name
it. MPICH's (Hydra, seen in 5.0.2) kills them at once (SIGKILL), so that nobody can; it prints the exit code, but ends
with the dead rank's own status, which may be 0: so mpi_train.py waits for rank 0's word that all ranks have come to
their end. `-disable-auto-cleanup` does not stop it from that reliably. srun (22.05, with PMIx) kills them, too; it ends
with status 137.
"""

import os
import select
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

from ..comm.communicator import ranks_named

PATIENCE = float(os.environ.get("SCRATCHNET_MPI_PATIENCE", 30.0))  # seconds without a sign of life
POLL = 0.1  # seconds between two looks of the thread
URGENT = 0.4  # seconds that a roll call has once this rank is told to end: mpirun kills it after one
SILENT = "no sign of life from"
ASK, ANSWER = 1, 2  # tags


class Watch(threading.Thread):
    """The thread of this rank. talk: an MPI communicator that nobody else uses.

    step: of the training, -1 where there is none. calls: collective calls so far; it goes into answers.
    """

    def __init__(self, library: Any, talk: Any, patience: float):
        super().__init__(daemon=True, name="scratchnet-watch")
        self.library, self.talk, self.patience = library, talk, patience
        self.step, self.calls = -1, 0
        self._doing: tuple[float, str] | None = None
        self._asked: float | None = None
        self._round = 0
        self._answers: dict[int, int] = {}  # collective calls of each rank that answered this round
        self._sent: list[Any] = []
        self._parent = os.getppid()
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ended = self._was_stopped = False
        self._lock = threading.Lock()
        self.start()

    # --- for the rank ---

    def wait_for(self, text: str | None) -> None:
        """The rank waits in `text` from now on; None: it waits no more."""
        self._doing = None if text is None else (time.monotonic(), text)

    def listen(self) -> int:
        """From now on the thread hears of signals that this process handles; for the main thread. See set_wakeup_fd."""
        return signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def behind(self, seconds: float = 1.0, alive: bool = False) -> list[int]:
        """Ranks that say nothing within `seconds`, or, unless `alive` is enough, have not come as far as this one."""
        with self._lock:
            self._ask()
            end = time.monotonic() + seconds
            while time.monotonic() < end and len(self._answers) < self.talk.size - 1:
                self._hear()
                time.sleep(0.001)
            least = 0 if alive else self.calls
            return [rank for rank in self._others() if self._answers.get(rank, -1) < least]

    def end_job(self, line: str) -> None:
        """Print a line and end all ranks, this one too."""
        sys.stderr.write(f"scratchnet: {line}\n")  # one write: lines of ranks stay whole
        sys.stderr.flush()
        self._abort()

    def _abort(self) -> None:
        """One rank after the other, if several would: mpirun then ends the others, and some crash on two at once."""
        time.sleep(2 * POLL + min(0.3 * self.talk.rank, 3.0))  # also for lines to get away
        signal.alarm(5)  # it ends this process should the library not manage, even if no Python code runs any more
        self.library.COMM_WORLD.Abort(1)

    def close(self) -> None:
        self._ended = True
        os.write(self._write, b"\0")
        self.join()
        os.close(self._read)
        os.close(self._write)

    # --- the thread ---

    def run(self) -> None:
        while not self._ended:
            before = time.monotonic()
            heard, _, _ = select.select([self._read], [], [], POLL)
            self._was_stopped |= time.monotonic() - before > self.patience / 2  # then it is the one that others miss
            if heard and signal.SIGTERM in os.read(self._read, 64) and not self._was_stopped:
                self._look_around()
            with self._lock:
                self._hear()
                self._look()

    def _look_around(self) -> None:
        """This rank, which waits for others, was told to end: because one of them has?"""
        doing, missing = self._doing, self.behind(URGENT, alive=True)
        if doing is not None and missing:
            self._end(missing, "seen as the job was ended", doing[1])

    def _others(self) -> list[int]:
        return [rank for rank in range(self.talk.size) if rank != self.talk.rank]

    def _hear(self) -> None:
        status, message = self.library.Status(), np.zeros(2, np.int64)
        while self.talk.Iprobe(tag=self.library.ANY_TAG, status=status):
            self.talk.Recv(message, status.source, status.tag)
            if status.tag == ASK:
                self._say(status.source, ANSWER, int(message[0]))
            elif message[0] == self._round:
                self._answers[status.source] = int(message[1])

    def _say(self, rank: int, tag: int, number: int) -> None:
        message = np.array([number, self.calls], np.int64)
        self._sent = [(request, kept) for request, kept in self._sent if not request.Test()]
        self._sent.append((self.talk.Isend(message, rank, tag), message))

    def _ask(self) -> None:
        self._asked, self._round, self._answers = time.monotonic(), self._round + 1, {}
        for rank in self._others():
            self._say(rank, ASK, self._round)

    def _look(self) -> None:
        if os.getppid() != self._parent:  # whoever started this rank is dead, and nobody else would end it
            os._exit(1)
        now, doing = time.monotonic(), self._doing
        if doing is None or now - doing[0] < self.patience / 2:
            self._asked = None
        elif self._asked is None:
            self._ask()
        elif now - self._asked > self.patience / 2:
            missing = [rank for rank in self._others() if rank not in self._answers]
            if missing:
                self._end(missing, f"in {self.patience} s", doing[1])
            self._ask()

    def _end(self, missing: list[int], when: str, text: str) -> None:
        """The lowest of the ranks that hear each other tells."""
        me = self.talk.rank
        if any(rank < me for rank in self._answers):
            self._abort()
        where = f"step {self.step}" if self.step >= 0 else f"collective call {self.calls}"
        self.end_job(f"{where}: {SILENT} {ranks_named(missing)}, {when}, while rank {me} waited in {text}")
