"""A parent of three workers, which print their process ids and wait: tests/parallel/pool/test_launch.py kills it."""

import os
import signal
import time

import scratchnet as sn

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs in its background ignore it


def fn(comm):
    print(os.getpid(), flush=True)
    comm.barrier()
    if comm.rank == 0:
        time.sleep(60)
    comm.barrier()


sn.parallel.run(fn, workers=3)
