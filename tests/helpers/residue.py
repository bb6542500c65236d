"""What a test may not leave behind: a process, an entry of /dev/shm, an open file."""

import contextlib
import gc
import os
from pathlib import Path

import multiprocess
from multiprocess import resource_tracker
from running import shared_memory

from scratchnet.parallel.comm import server

TRACKER = "multiprocess.resource_tracker"  # one helper process of multiprocess, which ends with this one


def children(of="self"):
    """{process: its command line} of the children of a process, dead ones that nobody waited for included.

    A server of workers, which stays for a minute, is no child, but what it forked.
    """
    multiprocess.active_children()  # takes the status of those that have ended
    found = _children(of)
    servers = [pid for pid, command in found.items() if server.NAME in command]
    for pid in servers:
        del found[pid]
        found |= _children(pid)
    return found


def _children(of):
    found = {}
    for task in Path(f"/proc/{of}/task").glob("*/children"):
        for child in task.read_text().split():
            with contextlib.suppress(OSError):  # it may end while we look
                found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return {pid: command for pid, command in found.items() if TRACKER not in command}


def descendants(of="self"):
    """The same of its children, their children, and so on."""
    found = children(of)
    for pid in list(found):
        found |= descendants(pid)
    return found


def open_files():
    """{descriptor: what it is} of this process."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
    return {fd: t for fd, t in found.items() if not t.startswith("/proc") and fd not in server.files()}


def alive(pid):
    """Is the process there, and not merely waited for?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _here():
    return {"processes": children(), "files": open_files(), "shared memory": dict.fromkeys(shared_memory())}


def _new(before):
    return {kind: {k: v for k, v in now.items() if k not in before[kind]} for kind, now in _here().items()}


@contextlib.contextmanager
def no_residue():
    """Asserts at the end that nothing is there that was not there at the start."""
    resource_tracker.ensure_running()
    before = _here()
    yield
    if any(_new(before).values()):
        gc.collect()  # an error's traceback may hold frames that hold files; this takes a tenth of a second
    assert not any(_new(before).values()), _new(before)
