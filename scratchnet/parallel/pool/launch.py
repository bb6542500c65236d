"""Starts functions in other processes, and brings back their results or the reason why there are none.

This process is never forked: a fork copies locks and threads' memory in the middle of their work. Another one, which
does nothing else, forks workers (../comm/server.py), or they are started afresh (spawn). What they are to do travels as
../objects.py says.
"""

import contextlib
import errno
import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import multiprocess
from multiprocess import connection, context, popen_spawn_posix, reduction, spawn, util

from ...errors import CollectiveError, ConfigError, WorkerError
from ...kernels import get_num_threads
from ...native.limits import cores
from ..comm import server
from ..comm.memory import above_standard_streams
from ..objects import SharedObject, dumps, loads

THREAD_VARIABLES = tuple(f"{name}_NUM_THREADS" for name in ("NUMBA", "OMP", "OPENBLAS", "MKL"))
LAST_WORDS = 1.0  # seconds to wait for other workers' errors, once one has failed in a collective call
ENV = b"/usr/bin/env"  # starts a program with more variables in its environment
REAPED = 254  # the status of a process whose status is not known
WORDS = 2000  # characters of an error's message that are sent
REMEDIES = {  # where no worker can be started
    errno.EMFILE: "; `ulimit -n 1024` allows more in a shell",
    errno.EAGAIN: "; take fewer workers, or allow more processes by `ulimit -u`",
    errno.ENOMEM: "; take fewer workers",
}
END = 5.0  # seconds in which a worker that sent its result has to end by itself


def run(fn: Callable, args: tuple, workers: int, timeout: float | None) -> list:
    """`sn.parallel.run` in processes of this machine."""
    name = getattr(fn, "__qualname__", type(fn).__name__)
    work = SharedObject((fn, args), f"run: expected a function and arguments that can be sent to a worker, got {name}")
    from ..comm.arena import Arena, warm_up  # imports Numba

    arena = Arena(workers)
    with Workers(workers, _work, arena, work, timeout) as group:
        warm_up()  # while the workers start; they wait for the word
        group.send_all("go")
        return group.results(arena.abort)


def _work(channel: connection.Connection, rank: int, arena: Any, work: SharedObject, timeout: float | None) -> None:
    """What a worker of `run` does."""
    from ..comm.arena import ArenaCommunicator
    from ..comm.communicator import RAISED, RETURNED

    channel.recv()
    comm = ArenaCommunicator(arena, rank, timeout)
    ending = RAISED
    try:
        fn, args = work.open()
        reply = dumps(("result", fn(comm, *args)))
        ending = RETURNED
    except BaseException as error:  # SystemExit and KeyboardInterrupt end a worker as any other error does
        reply = dumps(("error", describe(error)))
    channel.send_bytes(reply)  # before `finish`, whose consequences other ranks may report
    comm.finish(ending)


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as the parent gets it; `follows`: is it a consequence of the failure of another rank?"""
    frames = error.__traceback__ and error.__traceback__.tb_next  # without that of the caller
    try:
        words = str(error)
    except Exception:  # what the user's __str__ may raise
        words = "(its __str__ raises)"
    message = f"{type(error).__name__}: {words}".splitlines()[0]
    text = "".join(traceback.format_exception(type(error), error, frames))
    follows = isinstance(error, CollectiveError)
    return {"message": shortened(message), "traceback": shortened(text, 50 * WORDS), "follows": follows}


def shortened(text: str, size: int = WORDS) -> str:
    """The beginning and the end of a text that is too long to be read."""
    left = len(text) - size
    return text if left <= 0 else f"{text[: size // 2]} ... {left} characters ... {text[-size // 2 :]}"


# --- processes --------------------------------------------------------------------------------------------------------


class Workers:
    """`size` processes, each with a pipe: worker `rank` runs `target(channel, rank, *args)`. A context manager: when it
    ends, they are gone, whatever they were doing.

    target: a function of a module, imported in the worker. args: sent by pickle, SharedMemory included. threads: of a
    worker's libraries; see `threads_of`. Raises WorkerError if a process cannot be started.
    """

    def __init__(self, size: int, target: Callable, *args: Any, threads: int | None = None):
        self.processes: list[Any] = []
        self.channels: list[connection.Connection] = []
        self._target, self._args = target, args
        self._threads = threads_of(size) if threads is None else threads
        process = multiprocess.current_process()
        if getattr(process, "_inheriting", False) or process.daemon:
            raise ConfigError(
                "workers: expected a process that is no worker itself, got one that is, or is being imported; "
                "compute with workers=1 in it"
            )
        try:
            for rank in range(size):
                self._start(rank)
        except BaseException:
            self.end()
            raise

    def _start(self, rank: int) -> None:
        with _no_interrupt():
            self._start_now(rank)

    def _start_now(self, rank: int) -> None:
        with contextlib.ExitStack() as ends:
            try:
                ours, theirs = map(ends.enter_context, connection.Pipe())
                arguments = (self._target, theirs, rank, *self._args_of(rank))
                process = Process(_variables(self._threads), _begin, arguments, f"scratchnet-worker-{rank}")
                process.start()
            except OSError as error:
                remedy = REMEDIES.get(error.errno or 0, "")
                raise WorkerError(f"worker {rank} could not be started: {error}{remedy}", rank) from None
            ends.pop_all()
            theirs.close()
        self.processes.append(process)
        self.channels.append(ours)

    def _args_of(self, rank: int) -> tuple:
        return self._args

    def send_all(self, message: Any) -> None:
        """Send to every worker that is alive; `results` finds the others."""
        for channel in self.channels:
            with contextlib.suppress(BrokenPipeError, ConnectionError):
                channel.send(message)

    def results(self, abort: Callable[[], None]) -> list:
        """What workers send as ("result", value), in rank order; WorkerError for ("error", describe(...)), or death.

        abort: called at the first failure, so that the others stop waiting.
        """
        results: dict[int, Any] = {}
        failures: list[tuple[bool, WorkerError]] = []
        while len(results) < len(self.processes):
            open_ranks = [rank for rank in range(len(self.processes)) if rank not in results]
            answers = list(self._answers(open_ranks, LAST_WORDS if failures else None))
            for rank, kind, value in answers:
                results[rank] = value
                if kind == "error":
                    text = f"worker {rank} raised {value['message']}"
                    failures.append((value["follows"], WorkerError(text, rank, None, value["traceback"])))
                elif kind == "death":
                    failures.append((False, _death(rank, value)))
            if failures and (not answers or not all(follows for follows, _ in failures)):
                break
            if failures:
                abort()
        if failures:
            abort()
            raise min(failures, key=lambda failure: failure[0])[1]  # what is no consequence of another failure
        return [results[rank] for rank in range(len(self.processes))]

    def _answers(self, ranks: list[int], timeout: float | None) -> Iterator[tuple[int, str, Any]]:
        """(rank, kind, value) of each worker that has answered or is dead: at least one, unless the timeout passes."""
        waited = [self.channels[rank] for rank in ranks] + [self.processes[rank].sentinel for rank in ranks]
        ready = connection.wait(waited, timeout)
        for rank in ranks:
            channel, process = self.channels[rank], self.processes[rank]
            if channel not in ready and process.sentinel not in ready:
                continue
            try:
                if channel.poll():
                    yield rank, *loads(channel.recv_bytes())
                    continue
            except (EOFError, OSError):  # it died, perhaps in the middle of a message
                pass
            process.join()
            yield rank, "death", process.exitcode

    def end(self) -> None:
        """Kill all processes that have not ended, and wait until they are gone."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
        for process, channel in zip(self.processes, self.channels, strict=True):
            process.join()
            process.close()
            channel.close()
        self.processes, self.channels = [], []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            for process in self.processes:
                process.join(END)
        self.end()


def threads_of(workers: int) -> int:
    """Of each worker's libraries: the cores, or fewer if `set_num_threads` said so, shared out among the workers."""
    return max(1, min(cores(), get_num_threads()) // workers)


def how_it_ended(status: int) -> str:
    """The end of a process, from its exit status."""
    if status == REAPED:
        return "an unknown status, which another part of this program has taken"
    return f"status {status}" if status >= 0 else signal_name(-status)


def signal_name(number: int) -> str:
    """Real-time signals have no name."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _death(rank: int, status: int) -> WorkerError:
    if status < 0:
        return WorkerError(f"worker {rank} was killed by {signal_name(-status)}", rank, -status)
    return WorkerError(f"worker {rank} ended with {how_it_ended(status)} before its function returned", rank)


def _begin(target: Callable, *args: Any) -> None:
    """The first function that a worker runs, and a server."""
    gc.freeze()  # what was imported stays: to look through it would take 0.1 s at the end, and some at each collection
    gc.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    die_with_parent()
    target(*args)


def die_with_parent() -> None:
    """End this process, a child of `multiprocess`, when its parent ends, whatever the reason.

    On Linux the kernel does it, even if this process is stopped. Elsewhere a thread waits for the end of a pipe.
    """
    parent = multiprocess.parent_process()
    if sys.platform == "linux":
        server.die_with(server.forked_by or parent.pid)  # a server ends with its program
        return
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C waits: no process is started and then forgotten, and one that starts does not hear of it.

    The mask is inherited. It does not keep Python from calling the handler here, if another thread takes the signal.
    """
    mask, handler = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]), signal.getsignal(signal.SIGINT)
    waits = callable(handler) and threading.current_thread() is threading.main_thread()
    heard: list[int] = []
    if waits:
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        if waits:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if heard:
            signal.raise_signal(signal.SIGINT)


def _variables(threads: int) -> dict[str, str]:
    """What is added to the environment of a worker; a smaller number that the user has set stays."""
    own = {name: os.environ.get(name, "") for name in THREAD_VARIABLES}
    seed = os.environ.get("PYTHONHASHSEED", "random")  # all workers agree on hash("text"), whoever computes a shard
    hashing = {"PYTHONHASHSEED": "0" if seed == "random" else seed}
    return hashing | {
        name: str(min(threads, int(value)) if value.isdigit() else threads) for name, value in own.items()
    }


class Process(multiprocess.context.SpawnProcess):
    """A process of `multiprocess` that is started without touching this one: other threads may be at work in it.

    It does not import the main program, as spawn makes its processes do: what it needs of that, it gets by value, so
    nothing in it runs twice, guarded or not. Nothing here has a name in the system, so no tracker of such names starts.
    variables: of its environment, besides ours. forks: may a server fork it?
    """

    def __init__(self, variables: dict[str, str], target: Callable, args: tuple, name: str, forks: bool = True):
        super().__init__(target=target, args=args, name=name, daemon=True)
        self.variables, self.forks = variables, forks and server.is_possible()

    @staticmethod
    def _Popen(process):
        return _Popen(process)


# Before a worker's first imports: a folder that was deleted is left, as some imports ask which it is. And they make no
# garbage, so none is looked for before `_begin`.
FIRST = b"import gc, os; os.stat('.').st_nlink or os.chdir('/'); gc.disable(); "


def _prepared(part: str | bytes) -> bytes:
    """A part of a worker's command."""
    return os.fsencode(part).replace(b"from multiprocess.spawn", FIRST + b"from multiprocess.spawn")


class _Popen(popen_spawn_posix.Popen):
    returncode: Any
    handle: int | None = None  # of a process that a server forked
    server: Any = None

    def __init__(self, process):
        self._program, self._taking = os.getpid(), threading.RLock()
        super().__init__(process)

    def _launch(self, process):
        own = multiprocess.current_process()
        folders = [folder for folder in sys.path if isinstance(folder, str)]  # as Python, which passes over the others
        about = {"name": process.name, "authkey": own.authkey, "sys_path": folders, "sys_argv": sys.argv}
        stream = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(about | {"start_method": "spawn"}, stream)
            reduction.dump(process, stream)
        finally:
            context.set_spawning_popen(None)
        ours, theirs = self.files, _ = [], []
        try:
            for kept in (0, 1):  # the reading end of the first pipe, which says when the process ends
                pipe = [above_standard_streams(end) for end in os.pipe()]
                ours.append(pipe[kept])
                theirs.append(pipe[1 - kept])
            self.sentinel, orders = self.end, _ = ours
            if not (process.forks and self._fork(process, *theirs)):
                self._spawn(process.name, process.variables, *theirs)
            if self.handle is not None:
                self.sentinel = self.handle  # the pipe would end when the server says so, which may be stopped
                ours.append(self.handle)
            with open(orders, "wb", closefd=False) as file, contextlib.suppress(BrokenPipeError):  # it died: see poll
                file.write(stream.getbuffer())
        finally:
            self.finalizer = util.Finalize(self, util.close_fds, ours)
            for end in theirs:
                os.close(end)

    def _spawn(self, name, variables, end, orders):
        command = [*map(_prepared, spawn.get_command_line(pipe_handle=orders)), os.fsencode(name)]
        settings = [f"{name}={value}" for name, value in variables.items()]
        self.pid = util.spawnv_passfds(ENV, [ENV, *settings, *command], [*self._fds, end, orders])

    def _fork(self, process, end, orders):
        """Have a server fork it; False where there is none. One that has ended, or is stuck, is replaced once."""
        with contextlib.suppress(OSError):  # no room for a process; a new one perhaps has
            while True:
                own = server.of_this_thread(process.variables, lambda *work: _start_server(process, *work))
                try:
                    self.pid, self.handle = own.fork(self._fds, end, orders)
                    self.server = own
                    return True
                except (ConnectionError, TimeoutError):
                    server.forget(own)
                    if not own.has_forked:
                        return False
        return False

    def poll(self, flag=os.WNOHANG):
        """The exit status, None while it runs; REAPED if somebody else has taken the status.

        A server that handles SIGCHLD takes those of all its children, and with SIG_IGN the system does. A thread that
        starts a process asks for the status of all of them, those of other threads included; and so does a process that
        was forked from this one, whose children they are not.
        """
        if self.returncode is None and os.getpid() != self._program:
            self.returncode = REAPED
        if self.returncode is None:
            with self._taking:  # the status comes once
                if self.returncode is None:
                    self.returncode = self._taken(flag)
        return self.returncode

    def close(self):
        with self._taking:  # nobody reads the files that are closed
            super().close()

    def _taken(self, flag):
        try:
            status = self._status(flag)
        except ChildProcessError:
            return REAPED
        return None if status is None else os.waitstatus_to_exitcode(status)

    def _status(self, flag):
        """As waitpid gives it."""
        if self.handle is None:
            pid, status = os.waitpid(self.pid, flag)
            return status if pid else None
        if not connection.wait([self.handle], 0 if flag == os.WNOHANG else None):
            return None
        if not connection.wait([self.end], server.ANSWERS):
            server.forget(self.server)
        said = os.read(self.end, server.ENDED.size)
        return server.ENDED.unpack(said)[0] if said else signal.SIGKILL  # it ends with its server

    def terminate(self):  # what multiprocess does to those that are left as the program ends, and then waits for them
        self.kill()

    def _send_signal(self, number):
        if self.handle is None:
            super()._send_signal(number)
        elif self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, number)


def _start_server(first: Process, serve: Callable, sock: Any) -> Process:
    """A server for processes as the first one."""
    process = Process(first.variables, _begin, (serve, sock, first._args[0]), server.NAME, forks=False)
    process.start()
    return process
