"""A process that forks workers, so that they start in milliseconds.

To start Python and to import NumPy, Numba and this package takes most of a second, and 60 MB. So the first process that
a program starts does no work: it imports what workers need, runs no thread, and forks a worker whenever it is asked to.
Until a worker writes to it, its memory is the server's. (A fork of the program itself would copy locks and threads in
the middle of their work.) Kernels that earlier workers needed, it loads before it forks the next: that is two thirds
of what a worker takes to its first step.

A server belongs to one thread and to its surroundings: environment, limits, cores. A thread in others has another one.
It ends with its program, whatever ends that, and when it had no worker for a minute, or at once where its thread has
MOST newer ones. Nobody depends on it: where it is not there, a worker starts afresh. One that is stopped, or stuck, is
killed when it has not answered for a while.
"""

import atexit
import contextlib
import ctypes
import fcntl
import functools
import json
import os
import selectors
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from multiprocess import spawn

from ... import kernels

NAME = "scratchnet-server"  # in its command line, which its workers have, too
IDLE = 60.0  # seconds after which a server without workers ends
MOST = 2  # servers of a thread, each of 119 MB, that wait so long
IMPORTS, ANSWERS = 60.0, 15.0  # seconds in which one answers, first and later; a machine that does much else is slow
STATUS_LINES = ("Umask", "Uid", "Gid", "Groups", "Cpus_allowed", "SigIgn")  # of /proc/self/status, all inherited
CHANGING = ("PYTEST_CURRENT_TEST", "SCRATCHNET_FAIL", "SCRATCHNET_FIRED")  # variables that no import looks at
ENDED = struct.Struct("i")  # how a worker ended, as waitpid says it
ANSWER = struct.Struct("2i")  # the process of a new worker, or the number of an error
FOLDER, STATUS = -1, -2  # what a descriptor is for that a worker does not get under a number

_own = threading.local()  # servers: {surroundings: Server} of this thread
forked_by: int | None = None  # in a worker: its server's process


@functools.cache
def is_possible() -> bool:
    """Linux, and a kernel and a Python that give handles of processes."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def surroundings(variables: dict[str, str]) -> tuple:
    """What a process inherits, and a program may change: a server in others is not the right one.

    The folder, standard streams and the variables of CHANGING are not in it: each worker gets them anew.
    """
    numbers = os.getpid(), os.getpgrp(), os.getsid(0), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    status = (line for line in lines if line.startswith(STATUS_LINES))
    environment = {**os.environ, **variables}.items()
    names = frozenset((name, value) for name, value in environment if name not in CHANGING)
    return *numbers, *status, Path("/proc/self/limits").read_text(), names


class Server:
    """What a program has of its server. start(target, sock): gives a process that runs target(sock, ...)."""

    def __init__(self, start: Callable[..., Any]):
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._program, self.has_forked, self._idle = os.getpid(), False, IDLE
        self._closing = threading.Lock()  # two threads may find at once that it does not answer
        with theirs:
            self._process = start(serve, theirs)

    def fork(self, descriptors: Sequence[int], status: int, orders: int) -> tuple[int, int]:
        """(process, handle) of a worker, who finds these descriptors, and reads what to do from `orders`.

        When it ends, ENDED comes through `status`. Raises OSError: there is no room for a process; ConnectionError:
        there is no server any more; TimeoutError: it does not answer.
        """
        self._socket.settimeout(ANSWERS if self.has_forked else IMPORTS)
        folder = os.open(".", os.O_PATH)
        try:
            kept = [orders, *(fd for fd in (0, 1, 2) if _is_open(fd)), *descriptors]
            variables = {name: os.environ.get(name) for name in CHANGING}
            order = json.dumps([[FOLDER, STATUS, *kept], variables]).encode()
            socket.send_fds(self._socket, [order], [folder, status, *kept])
        finally:
            os.close(folder)
        answer, handles, _, _ = socket.recv_fds(self._socket, ANSWER.size, 1)
        if not answer:
            raise ConnectionResetError("the server has ended")
        process, error = ANSWER.unpack(answer)
        if error:
            raise OSError(error, os.strerror(error))
        self.has_forked = True
        return process, handles[0]

    def wait(self, idle: float) -> None:
        """From now on it ends after so many seconds without workers."""
        if self._idle != idle:
            self._idle = idle
            with contextlib.suppress(OSError):  # it has ended, or is stuck
                self._socket.settimeout(0)
                self._socket.send(json.dumps(idle).encode())

    def is_alive(self) -> bool:
        return not self._is_closed() and os.getpid() == self._program and self._process.is_alive()

    def files(self) -> list[int]:
        return [] if self._is_closed() else [self._socket.fileno(), *self._process._popen.files]

    def _is_closed(self) -> bool:  # perhaps by another thread, which waited for the end of a worker
        return self._socket.fileno() < 0

    def close(self) -> None:
        """End it, stopped or not; in a process that was forked after it started, only forget it."""
        if os.getpid() != self._program:
            self._socket.close()
            return
        with self._closing:
            if not self._is_closed():
                self._socket.close()
                self._process.kill()
                self._process.join()
                self._process.close()

    def __del__(self):  # the thread ends
        with contextlib.suppress(Exception):  # it is closed, or was never started; or the program ends
            self.close()


def of_this_thread(variables: dict[str, str], start: Callable[..., Any]) -> Server:
    """The server for workers with these variables, started where there is none yet."""
    key = surroundings(variables)
    servers = {k: server for k, server in _servers().items() if server.is_alive()}
    found = servers.pop(key, None) or Server(start)
    _own.servers = {**servers, key: found}  # the newest is the last one
    for age, server in enumerate(reversed(_own.servers.values())):
        server.wait(IDLE if age < MOST else 0.0)
    return found


def forget(server: Server) -> None:
    """It has ended, or does not answer, and ends now."""
    server.close()
    _own.servers = {key: other for key, other in _servers().items() if other is not server}


def files() -> set[int]:
    """The open files of this program that belong to servers of this thread."""
    return set().union(*(server.files() for server in _servers().values()))


def die_with(parent: int) -> None:
    """End this process, a child of that one, when the thread that started it ends; the kernel does it, also while this
    process is stopped."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def _servers() -> dict[tuple, Server]:
    return _own.__dict__.setdefault("servers", {})


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# --- in the server ----------------------------------------------------------------------------------------------------


def serve(sock: socket.socket, work: Callable | None = None, idle: float = IDLE) -> None:
    """Fork workers until nobody can ask for one any more.

    work: what the first of them does; it came with its modules.
    """
    os.chdir("/")  # perhaps the folder is gone, which some imports mind
    inherited = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody learns how workers end
    kernels.device("cpu")  # imports Numba
    import numpy.ma  # noqa: F401 - which Numba imports when it sees an array: 20 ms

    from ...native import ahead
    from . import arena  # noqa: F401 - has kernels that workers need

    told, tell = os.pipe()
    os.set_blocking(told, False)
    os.set_blocking(tell, False)
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while events := selector.select(None if len(selector.get_map()) > 1 else idle):
            for event, _ in events:
                if event.fileobj is not sock:
                    selector.unregister(event.fd)
                    _report(event.fd, *event.data)
                    continue
                order, given, _, _ = socket.recv_fds(sock, 1 << 16, 253)
                if not order:
                    return
                if isinstance(asked := json.loads(order), float):
                    idle = asked
                    continue
                ahead.load(_lines(told))
                children = [fd for key in selector.get_map().values() if key.data for fd in (key.fd, key.data[1])]
                forked = _fork(asked, given, [sock.fileno(), selector.fileno(), told, *children], tell, inherited)
                if isinstance(forked, OSError):
                    sock.send(ANSWER.pack(0, forked.errno))
                else:
                    handle = os.pidfd_open(forked[0])
                    selector.register(handle, selectors.EVENT_READ, forked)
                    socket.send_fds(sock, [ANSWER.pack(forked[0], 0)], [handle])


def _lines(pipe: int) -> list[str]:
    """What workers have told; they write whole lines, and leave out those for which there is no room."""
    with contextlib.suppress(BlockingIOError):
        return os.read(pipe, 1 << 20).decode().splitlines()
    return []


def _report(handle: int, process: int, status: int) -> None:
    """A worker has ended."""
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know
        os.write(status, ENDED.pack(os.waitpid(process, 0)[1]))
    os.close(status)
    os.close(handle)


def _fork(order: Any, given: list[int], servers: list[int], tell: int, inherited: Any) -> tuple[int, int] | OSError:
    """A worker's process, and the descriptor through which its end is to be said."""
    numbers, variables = order
    places = dict(zip(numbers, given, strict=True))
    parent, status = os.getpid(), places.pop(STATUS)
    found: tuple[int, int] | OSError
    try:
        found = os.fork(), status
    except OSError as error:
        found = error
        os.close(status)
    if os.getpid() != parent:
        _work(parent, places, variables, [status, *servers], tell, inherited)
    for fd in places.values():
        os.close(fd)
    return found


def _work(
    server: int, places: dict[int, int], variables: dict[str, Any], others: list[int], tell: int, inherited: Any
) -> None:
    """A worker, from its first instant to its last."""
    from ...native import ahead

    global forked_by
    code = 1
    try:
        forked_by = server
        die_with(server)  # now: nobody else may read orders that are for another
        signal.signal(signal.SIGCHLD, inherited)
        above = fcntl.fcntl(tell, fcntl.F_DUPFD_CLOEXEC, max(places) + 1)
        for fd in (*others, tell):
            os.close(fd)
        os.fchdir(places[FOLDER])
        os.close(places.pop(FOLDER))
        orders = next(iter(places))
        _move(places)
        for name, value in variables.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        np.random.seed()  # noqa: NPY002 - numbers of its own, as a process has that starts afresh
        ahead.begin()
        ahead.tell(functools.partial(_say, above))
        code = spawn._main(orders, os.dup(orders))
        atexit._run_exitfuncs()
    finally:
        os._exit(code)


def _say(pipe: int, line: str) -> None:
    with contextlib.suppress(OSError):  # it is full, or nobody reads it any more
        os.write(pipe, f"{line}\n".encode())


def _move(places: dict[int, int]) -> None:
    """Each descriptor to its place; standard streams that the program has closed are closed."""
    above = max(*places, *places.values()) + 1
    moved = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for place, fd in places.items()}
    for fd in {*places.values(), 0, 1, 2}:
        with contextlib.suppress(OSError):
            os.close(fd)
    for place, fd in moved.items():
        os.dup2(fd, place, inheritable=place <= 2)
        os.close(fd)
