"""Two ranks whose GPUs are linked by NCCL, under the stubs: each function is a scene, and returns what its rank saw.

Each rank prints a line.
"""

import json
import os
import sys
import time

import numpy as np

import scratchnet as sn
from scratchnet.kernels.cuda import compile, memory, nccl

LARGE = 200_000  # bytes: several pieces of the stub's


def linked(comm):
    name = np.frombuffer(nccl.new_name() if comm.rank == 0 else bytes(nccl.NAME), np.int64).copy()
    name = comm.broadcast(name).tobytes()
    return nccl.Link(comm.size, comm.rank, name)


def until_done(link):
    while not link.Test():
        time.sleep(1e-4)


def message(action):
    try:
        action()
    except sn.DeviceError as error:
        return str(error)
    return None


def numbers(n, first):
    return (np.arange(n) + first).astype(np.uint8)


def bytes_of(n, first):
    return memory.from_host(numbers(n, first))


def moves(comm):
    """Each sends two arrays to the other, in order, after the kernels before; what arrived, and when."""
    link, other = linked(comm), 1 - comm.rank
    out = [bytes_of(LARGE, comm.rank), bytes_of(5, 50 + comm.rank)]
    into = [bytes_of(LARGE, 100), bytes_of(5, 100)]
    link.exchange([(other, x) for x in out], [(other, x) for x in into])
    was_done = link.Test()
    until_done(link)
    expected = numbers(LARGE, other), numbers(5, 50 + other)
    found = [bool((memory.to_host(x) == y).all()) for x, y in zip(into, expected, strict=True)]
    link.close()
    return {"done at once": was_done, "arrived": found}


def size(comm):
    """A message of another size than was sent."""
    link = linked(comm)
    x = bytes_of(100, 0)
    link.exchange([(1, x)] if comm.rank == 0 else [], [(0, x[:50])] if comm.rank else [])
    found = message(lambda: until_done(link))
    comm.barrier()
    link.abort()
    link.abort()
    return [found, message(lambda: link.exchange([], [(1 - comm.rank, x)]))]


def gone(comm):
    """What comes from a rank that has aborted never comes; afterwards the GPU goes on."""
    link = linked(comm)
    found = None
    if comm.rank:
        link.abort()
    else:
        x = bytes_of(10, 7)
        link.exchange([], [(1, x)])
        found = message(lambda: until_done(link))
        link.abort()
        memory.synchronize()
    comm.barrier()
    return found


def early(comm):
    """An end before all is done."""
    link = linked(comm)
    if comm.rank == 0:
        link.exchange([], [(1, bytes_of(10, 7))])
        found = message(link.close)
    comm.barrier()
    return found if comm.rank == 0 else None


def places(comm):
    """Memory of the host, a rank that is none, and one's own."""
    found, x = [], bytes_of(8, 0)
    host = memory.DeviceArray(np.zeros(8, np.uint8), None)
    for rank, array in ((1 - comm.rank, host), (2, x), (comm.rank, x)):
        link = linked(comm)
        found.append(message(lambda rank=rank, array=array, link=link: link.exchange([(rank, array)], [])))
        comm.barrier()
        link.abort()
    return found


def device(comm):
    """A link of two ranks on one GPU."""
    return message(lambda: linked(comm))


def main(comm):
    compile.use_gpu(0 if "device" in sys.argv else comm.rank)
    found = {scene: globals()[scene](comm) for scene in sys.argv[1:]}
    os.write(1, f"RESULT {json.dumps({'rank': comm.rank, 'found': found})}\n".encode())


if __name__ == "__main__":
    sn.parallel.run(main, workers=2)
