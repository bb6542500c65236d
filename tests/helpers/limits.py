"""A time limit for each test: a hang prints the stacks of all processes, and ends them.

A thread watches. Past the limit it prints the stacks of this process, then kills what the test started by
SIGABRT: with PYTHONFAULTHANDLER=1 each Python among them prints its stacks first. Then the test
usually ends by itself; if it does not within a while, the watcher ends this process (pytest-xdist names the test and
goes on with a new one).
"""

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from residue import alive, descendants
from sizes import THOROUGH

SECONDS = float(os.environ.get("SCRATCHNET_TEST_SECONDS", 3600 if THOROUGH else 300))  # on an idle machine
GRACE = 5.0  # for processes to print and end, on an idle machine, too

os.environ.setdefault("PYTHONFAULTHANDLER", "1")


class Watch:
    """Gives each test SECONDS, and more if other programs keep the cores busy. file: where stacks are printed."""

    def __init__(self, file):
        self.file, self.name, self.started, self.exceeded = file, "", 0.0, set()
        self._thread = threading.Thread(target=self._run, daemon=True, name="time limit")

    def begin(self, name):
        self.name, self.started = name, time.monotonic()
        if not self._thread.is_alive():
            self._thread.start()

    def end(self):
        self.name = ""

    def _run(self):
        while True:
            time.sleep(min(5.0, SECONDS / 4))
            if self.name and time.monotonic() - self.started > SECONDS * others():
                self._stop(self.name)

    def _stop(self, name):
        self.exceeded.add(name)
        self._say(f"\n{name}: no end after {time.monotonic() - self.started:.0f} s; stacks of process {os.getpid()}:")
        faulthandler.dump_traceback(self.file)
        # A process of its own stops this one meanwhile, which would read and lose what the others print.
        command = [sys.executable, __file__, str(os.getpid())]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=self.file)
        wait_until(lambda: self.name != name)
        if self.name == name:
            self._say(f"\n{name}: ends process {os.getpid()}")
            os._exit(1)

    def _say(self, text):
        print(text, file=self.file, flush=True)


def others():
    """How many times as long all takes because other programs keep the cores busy."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_until(condition):
    deadline = time.monotonic() + GRACE * others()
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def end_descendants(of):
    """Print the stacks of all processes that a process started, and end them."""
    found = {pid: command for pid, command in descendants(of).items() if pid != os.getpid()}
    streams = {pid: readable(pid) for pid in found}
    send(signal.SIGSTOP, [of])
    wait_until(lambda: has_stopped(of))  # until then one of its threads might read, and lose, what is printed here
    for number in (signal.SIGSTOP, signal.SIGABRT, signal.SIGCONT):  # no parent sees its child end, and goes on
        send(number, found)
    wait_until(lambda: not any(map(alive, found)))
    for pid, command in found.items():
        print(f"\nprocess {pid}, {command[:200]}", flush=True)
        if (stream := streams[pid]) is not None:
            with contextlib.suppress(BlockingIOError):  # nothing is there
                print(os.read(stream, 1 << 20).decode(errors="replace"), flush=True)
    send(signal.SIGKILL, (descendants(of) | found).keys() - {os.getpid()})
    send(signal.SIGCONT, [of])


def send(number, processes):
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def has_stopped(pid):
    """Have all threads of a process?"""
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if thread.read_text().rpartition(")")[2].split()[0] not in "Tt":
                return False
    return True


def readable(pid):
    """What the process is going to write to its standard error, and what of a pipe nobody has read yet; None if it
    cannot be read."""
    try:
        stream = os.open(f"/proc/{pid}/fd/2", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a pipe has no end to go to
        os.lseek(stream, 0, os.SEEK_END)
    return stream


if __name__ == "__main__":
    end_descendants(int(sys.argv[1]))
