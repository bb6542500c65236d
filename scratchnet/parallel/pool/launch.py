"""Starts functions in other processes, and brings back their results or the reason why there are none.

Processes are started afresh (spawn), never forked: a fork copies locks and threads' memory in the middle of their work.
What they are to do travels as ../objects.py says.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

import multiprocess
from multiprocess import connection

from ...errors import CollectiveError, ConfigError, WorkerError
from ..comm.memory import cores
from ..objects import SharedObject, dumps, loads

THREAD_VARIABLES = tuple(f"{name}_NUM_THREADS" for name in ("NUMBA", "OMP", "OPENBLAS", "MKL"))
LAST_WORDS = 1.0  # seconds to wait for other workers' errors, once one has failed in a collective call
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
    text = "".join(traceback.format_exception(type(error), error, frames))
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"message": message, "traceback": text, "follows": isinstance(error, CollectiveError)}


# --- processes --------------------------------------------------------------------------------------------------------


class Workers:
    """`size` processes, each with a pipe: worker `rank` runs `target(channel, rank, *args)`. A context manager: when it
    ends, they are gone, whatever they were doing.

    target: a function of a module, imported in the worker. args: sent by pickle, SharedMemory included. threads: of a
    worker's libraries; by default cores // size. Raises WorkerError if a process cannot be started.
    """

    def __init__(self, size: int, target: Callable, *args: Any, threads: int | None = None):
        self.processes: list[Any] = []
        self.channels: list[connection.Connection] = []
        self._target, self._args = target, args
        self._threads = max(1, cores() // size if threads is None else threads)
        process = multiprocess.current_process()
        if getattr(process, "_inheriting", False) or process.daemon:
            raise ConfigError("run: expected a process that is no worker itself, got one that is, or is being imported")
        try:
            for rank in range(size):
                self._start(rank)
        except BaseException:
            self.end()
            raise

    def _start(self, rank: int) -> None:
        context = multiprocess.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (self._target, theirs, rank, self._args_of(rank))
        process = context.Process(target=_begin, args=arguments, name=f"scratchnet-worker-{rank}", daemon=True)
        try:
            with _environment(dict.fromkeys(THREAD_VARIABLES, str(self._threads))), _no_main_program():
                process.start()
        except OSError as error:
            ours.close()
            raise WorkerError(f"worker {rank} could not be started: {error}", rank) from None
        finally:
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


def _death(rank: int, status: int) -> WorkerError:
    if status < 0:
        return WorkerError(f"worker {rank} was killed by {signal.Signals(-status).name}", rank, -status)
    return WorkerError(f"worker {rank} ended with status {status} before its function returned", rank)


def _begin(target: Callable, channel: connection.Connection, rank: int, args: tuple) -> None:
    """The first function that a worker runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    die_with_parent()
    target(channel, rank, *args)


def die_with_parent() -> None:
    """End this process, a child of `multiprocess`, when its parent ends, whatever the reason.

    On Linux the kernel does it, even if this process is stopped: it sends SIGKILL when the thread that started the
    process ends. Elsewhere a thread waits for the end of a pipe.
    """
    parent = multiprocess.parent_process()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent.pid:  # it ended before
            os._exit(1)
        return
    threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Processes started inside get these variables; a smaller number that the user has set stays."""
    before = {name: os.environ.get(name) for name in variables}
    for name, value in variables.items():
        own = before[name]
        os.environ[name] = str(min(int(value), int(own))) if own is not None and own.isdigit() else value
    try:
        yield
    finally:
        for name, own in before.items():
            if own is None:
                del os.environ[name]
            else:
                os.environ[name] = own


@contextlib.contextmanager
def _no_main_program() -> Iterator[None]:
    """Processes started inside do not import the main program, as spawn would make them do.

    They get by value what they need of it, so nothing in it runs twice, guarded or not.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
