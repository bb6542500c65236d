"""Does every rank of a job still live? A thread on each rank asks the others, and ends the job if one does not answer.

MPI itself waits for ever for a rank that was stopped, a machine that vanished or a link that stalls. Here a rank that
has waited for half of `patience` pings all others; the thread of each answers with its number of collective calls, even
while its rank computes. One line names the ranks that do not answer in the other half, and the step; then the job ends.

A rank that died is seen by mpirun. Open MPI's sends SIGTERM to the other ranks, which then ping each other to name the
dead one; but SIGTERM may also ask them to save and end, and one that runs on the same machine is not dead, though it is
too busy to answer. MPICH's (Hydra, seen in 5.0.2) kills them at once (SIGKILL), so that nobody can name it; it prints
the exit code, but ends with the dead rank's own status, which may be 0: so mpi_train.py waits for the line of rank 0
that all ranks have come to their end. `-disable-auto-cleanup` does not reliably stop it from that. srun (22.05, with
PMIx) kills them, too, and ends with status 137.
"""

import hashlib
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..comm.communicator import ranks_named

PATIENCE = float(os.environ.get("SCRATCHNET_MPI_PATIENCE", 30.0))  # seconds without a sign of life
POLL = 0.1  # seconds between two looks of the thread
URGENT = 0.4  # seconds to wait for answers after SIGTERM: mpirun kills this rank after one
SILENT = "no sign of life from"
PING, ANSWER = 1, 2  # tags


class Watch(threading.Thread):
    """The thread of this rank. group: an MPI communicator that nobody else uses.

    step: of the training, -1 where there is none. calls: this rank's collective calls so far, which answers hold.
    """

    def __init__(self, library: Any, group: Any, patience: float):
        super().__init__(daemon=True, name="scratchnet-watch")
        self.library, self.group, self.patience = library, group, patience
        self.step, self.calls = -1, 0
        self._waits: tuple[float, str] | None = None  # since when, and in what
        self._pinged: float | None = None  # when, in this wait
        self._round = 0
        self._answers: dict[int, int] = {}  # collective calls of each rank that answered the last ping
        self._sent: list[Any] = []
        self._where = np.zeros((group.size, 2), np.int64)  # machine and process of each rank
        group.Allgather(np.array([_machine(), os.getpid()]), self._where)
        self._parent = os.getppid()
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ended = self._was_stopped = False
        self._lock = threading.Lock()
        self.start()

    # --- for the rank ---

    def wait_for(self, text: str | None) -> None:
        """The rank waits in `text` from now on; None: it waits no more."""
        self._waits = None if text is None else (time.monotonic(), text)

    def listen(self) -> int:
        """From now on the thread hears of signals that this process handles. Only the main thread may call this; it
        returns what `signal.set_wakeup_fd` does."""
        return signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def behind(self, seconds: float = 1.0, alive: bool = False) -> list[int]:
        """Ranks that do not answer within `seconds`; unless `alive`, also ranks that made fewer calls than this one."""
        with self._lock:
            self._ping()
            end = time.monotonic() + seconds
            while time.monotonic() < end and len(self._answers) < self.group.size - 1:
                self._hear()
                time.sleep(0.001)
            least = 0 if alive else self.calls
            return [rank for rank in self._others() if self._answers.get(rank, -1) < least]

    def end_job(self, line: str) -> None:
        """Print a line and end all ranks, this one too."""
        sys.stderr.write(f"scratchnet: {line}\n")  # in one write, so that lines of ranks do not mix
        sys.stderr.flush()
        self._abort()

    def _abort(self) -> None:
        """If several ranks abort, they do so one after the other: some launchers crash on two at once."""
        time.sleep(2 * POLL + min(0.3 * self.group.rank, 3.0))  # also until printed lines are on their way
        signal.alarm(5)  # ends this process if Abort does not, even if no Python code runs any more
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
            self._was_stopped |= time.monotonic() - before > self.patience / 2  # then the others miss this rank
            if heard and signal.SIGTERM in os.read(self._read, 64) and not self._was_stopped:
                self._name_the_dead()
            with self._lock:
                self._hear()
                self._look()

    def _name_the_dead(self) -> None:
        """This rank was told to end while it waited for others, perhaps because one of them died."""
        waits = self._waits
        missing = [rank for rank in self.behind(URGENT, alive=True) if not self._runs_here(rank)]
        if waits is not None and missing:
            self._end(missing, "seen as the job was ended", waits[1])

    def _runs_here(self, rank: int) -> bool:
        """Is it a process of this machine that runs? It may be too busy to answer in so short a time."""
        (machine, process), own = self._where[rank].tolist(), self._where[self.group.rank, 0]
        try:
            status = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return False
        return machine == own != 0 and status.rpartition(")")[2].split()[0] in "RSD"

    def _others(self) -> list[int]:
        return [rank for rank in range(self.group.size) if rank != self.group.rank]

    def _hear(self) -> None:
        status, message = self.library.Status(), np.zeros(2, np.int64)
        while self.group.Iprobe(tag=self.library.ANY_TAG, status=status):
            self.group.Recv(message, status.source, status.tag)
            if status.tag == PING:
                self._send(status.source, ANSWER, int(message[0]))
            elif message[0] == self._round:
                self._answers[status.source] = int(message[1])

    def _send(self, rank: int, tag: int, number: int) -> None:
        message = np.array([number, self.calls], np.int64)
        self._sent = [(request, kept) for request, kept in self._sent if not request.Test()]
        self._sent.append((self.group.Isend(message, rank, tag), message))

    def _ping(self) -> None:
        self._pinged, self._round, self._answers = time.monotonic(), self._round + 1, {}
        for rank in self._others():
            self._send(rank, PING, self._round)

    def _look(self) -> None:
        if os.getppid() != self._parent:  # the launcher of this rank is dead, and nobody else would end it
            os._exit(1)
        now, waits = time.monotonic(), self._waits
        if waits is None or now - waits[0] < self.patience / 2:
            self._pinged = None
        elif self._pinged is None:
            self._ping()
        elif now - self._pinged > self.patience / 2:
            missing = [rank for rank in self._others() if rank not in self._answers]
            if missing:
                self._end(missing, f"in {self.patience} s", waits[1])
            self._ping()

    def _end(self, missing: list[int], when: str, text: str) -> None:
        """The lowest of the ranks that answer each other prints the line."""
        me = self.group.rank
        if any(rank < me for rank in self._answers):
            self._abort()
        where = f"step {self.step}" if self.step >= 0 else f"collective call {self.calls}"
        self.end_job(f"{where}: {SILENT} {ranks_named(missing)}, {when}, while rank {me} waited in {text}")


def _machine() -> int:
    """The same number for processes that see each other under the same process numbers; 0 where that is not known."""
    try:
        words = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return 0
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "little")
