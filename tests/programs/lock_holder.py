"""Holds the locks of all kernels of a cache, beside half-written files of those that are named, and does nothing."""

import fcntl
import sys
import time

from scratchnet.native import cache


def main():
    with open(cache._folder() / "lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # every byte
        for name in sys.argv[1:]:
            (cache._folder() / f"{name}.123.tmp").write_text("half a kernel")
        print("held", flush=True)
        time.sleep(600)
